/* gpu-probe: says what a process may use of its GPUs, and tries it. Works on any CUDA driver.
 *
 *   gpu-probe [--text] [--fill] [--check] [--allocate MiB] [--launch N] [--hold SECONDS]
 *
 *   --text         one fact a line instead of one JSON document on one line
 *   --fill         allocate exactly what is reported free on each device, then one byte more; frees it
 *   --check        exit 1 unless CUDA and NVML agree and, with --fill, the last byte fits and one
 *                  more gets CUDA_ERROR_OUT_OF_MEMORY
 *   --allocate N   allocate N MiB on each device, and keep them
 *   --launch N     launch N kernels of 1 ms on the first device (simulated driver only)
 *   --hold N       stay for N seconds, 0 for ever; SIGTERM ends it with exit code 0
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DEVICES 64
#define MIB (UINT64_C(1) << 20)
#define OUT_OF_MEMORY 2

/* What the probe calls: return type, name as dlsym knows it, parameters. */
#define CUDA_FUNCTIONS(X)                                                                          \
    X(cuInit, (unsigned flags))                                                                    \
    X(cuDeviceGetCount, (int *count))                                                              \
    X(cuDeviceGetName, (char *name, int length, int device))                                       \
    X(cuDeviceGetUuid, (unsigned char *uuid, int device))                                          \
    X(cuDeviceTotalMem_v2, (size_t *bytes, int device))                                            \
    X(cuDevicePrimaryCtxRetain, (void **context, int device))                                      \
    X(cuCtxSetCurrent, (void *context))                                                            \
    X(cuCtxSynchronize, (void))                                                                    \
    X(cuMemGetInfo_v2, (size_t *free_bytes, size_t *total_bytes))                                  \
    X(cuMemAlloc_v2, (uint64_t *address, size_t bytes))                                            \
    X(cuMemFree_v2, (uint64_t address))                                                            \
    X(cuModuleLoadData, (void **module, const void *image))                                        \
    X(cuModuleGetFunction, (void **function, void *module, const char *name))                      \
    X(cuLaunchKernel, (void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,         \
                       unsigned by, unsigned bz, unsigned shared, void *stream, void **parameters, \
                       void **extra))

struct nvml_memory {
    unsigned long long total, free, used;
};

#define NVML_FUNCTIONS(X)                                                                          \
    X(nvmlInit_v2, (void))                                                                         \
    X(nvmlDeviceGetHandleByUUID, (const char *uuid, void **device))                                \
    X(nvmlDeviceGetMemoryInfo, (void *device, struct nvml_memory *memory))

#define X(name, parameters) static int(*name) parameters;
CUDA_FUNCTIONS(X)
NVML_FUNCTIONS(X)
#undef X

struct findings {
    char uuid[48];
    char name[96];
    size_t free_bytes, total_bytes, device_total_bytes;
    struct nvml_memory nvml;
    bool nvml_known;
    bool filled; /* --fill was tried */
    size_t fill_bytes;
    int fill_result;     /* CUresult of the allocation of all that is free */
    int one_more_result; /* and of one byte after it */
    int allocate_result; /* of --allocate; 0 where it was not asked for */
    bool ok;
};

static struct {
    bool text, fill, check, hold;
    uint64_t allocate_mib;
    unsigned long launches;
    unsigned hold_seconds;
} options;

static volatile sig_atomic_t terminated;

static void on_signal(int number)
{
    (void)number;
    terminated = 1;
}

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list arguments;
    char text[256];
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (options.text)
        printf("error: %s\n", text);
    else
        printf("{\"ok\": false, \"error\": \"%s\", \"devices\": []}\n", text);
    exit(1);
}

static void load_functions(void)
{
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (cuda == NULL)
        fail("libcuda.so.1 cannot be loaded");
#define X(name, parameters)                                                                        \
    name = (int(*) parameters)dlsym(cuda, #name);                                                  \
    if (name == NULL)                                                                              \
        fail("libcuda.so.1 has no " #name);
    CUDA_FUNCTIONS(X)
#undef X
#define X(name, parameters) name = nvml != NULL ? (int(*) parameters)dlsym(nvml, #name) : NULL;
    NVML_FUNCTIONS(X)
#undef X
}

static void call(int result, const char *what)
{
    if (result != 0)
        fail("%s: CUresult %d", what, result);
}

static void read_uuid(int device, char text[48])
{
    unsigned char uuid[16];
    call(cuDeviceGetUuid(uuid, device), "cuDeviceGetUuid");
    int length = sprintf(text, "GPU-");
    for (int i = 0; i < 16; i++)
        length += sprintf(text + length, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x",
                          uuid[i]);
}

static void read_nvml(struct findings *found)
{
    void *handle;
    found->nvml_known = nvmlInit_v2 != NULL && nvmlDeviceGetHandleByUUID != NULL &&
                        nvmlDeviceGetMemoryInfo != NULL && nvmlInit_v2() == 0 &&
                        nvmlDeviceGetHandleByUUID(found->uuid, &handle) == 0 &&
                        nvmlDeviceGetMemoryInfo(handle, &found->nvml) == 0;
}

static void fill(struct findings *found)
{
    uint64_t all = 0;
    uint64_t more = 0;
    found->filled = true;
    found->fill_bytes = found->free_bytes;
    found->fill_result = cuMemAlloc_v2(&all, found->fill_bytes);
    found->one_more_result = cuMemAlloc_v2(&more, 1);
    if (found->one_more_result == 0)
        cuMemFree_v2(more);
    if (found->fill_result == 0)
        cuMemFree_v2(all);
}

/* Without a limit CUDA's total is what the driver leaves of NVML's; with one both are the limit. */
static bool is_consistent(const struct findings *found)
{
    return found->device_total_bytes == found->total_bytes && found->free_bytes <= found->total_bytes &&
           (!found->nvml_known || (found->nvml.total >= found->total_bytes &&
                                   found->nvml.free <= found->nvml.total));
}

static void examine(int device, struct findings *found)
{
    void *context;
    uint64_t kept;
    call(cuDeviceGetName(found->name, sizeof found->name, device), "cuDeviceGetName");
    call(cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    call(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    read_uuid(device, found->uuid);
    call(cuDeviceTotalMem_v2(&found->device_total_bytes, device), "cuDeviceTotalMem");
    call(cuMemGetInfo_v2(&found->free_bytes, &found->total_bytes), "cuMemGetInfo");
    read_nvml(found);
    if (options.fill)
        fill(found);
    if (options.allocate_mib != 0)
        found->allocate_result = cuMemAlloc_v2(&kept, options.allocate_mib * MIB);
    found->ok = is_consistent(found) && found->allocate_result == 0 &&
                (!found->filled ||
                 (found->fill_result == 0 && found->one_more_result == OUT_OF_MEMORY));
}

static void launch(void)
{
    static const char image[] = "hami-sim kernels\nprobe 1000\n";
    void *context, *module, *function;
    call(cuDevicePrimaryCtxRetain(&context, 0), "cuDevicePrimaryCtxRetain");
    call(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    call(cuModuleLoadData(&module, image), "cuModuleLoadData");
    call(cuModuleGetFunction(&function, module, "probe"), "cuModuleGetFunction");
    for (unsigned long i = 0; i < options.launches && !terminated; i++)
        call(cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, NULL, NULL, NULL), "cuLaunchKernel");
    call(cuCtxSynchronize(), "cuCtxSynchronize");
}

static void print_json(const struct findings *found, int count, bool ok, double launch_seconds)
{
    printf("{\"ok\": %s, \"pid\": %d, ", ok ? "true" : "false", (int)getpid());
    if (options.launches != 0)
        printf("\"launch\": {\"count\": %lu, \"seconds\": %.6f}, ", options.launches, launch_seconds);
    printf("\"devices\": [");
    for (int i = 0; i < count; i++, found++) {
        printf("%s{\"uuid\": \"%s\", \"name\": \"%s\", \"ok\": %s, ", i > 0 ? ", " : "", found->uuid,
               found->name, found->ok ? "true" : "false");
        printf("\"cuda\": {\"total\": %zu, \"free\": %zu, \"device_total\": %zu}", found->total_bytes,
               found->free_bytes, found->device_total_bytes);
        if (found->nvml_known)
            printf(", \"nvml\": {\"total\": %llu, \"free\": %llu, \"used\": %llu}", found->nvml.total,
                   found->nvml.free, found->nvml.used);
        if (found->filled)
            printf(", \"fill\": {\"ok\": %s, \"bytes\": %zu, \"result\": %d, \"one_more_byte\": %d}",
                   found->fill_result == 0 ? "true" : "false", found->fill_bytes, found->fill_result,
                   found->one_more_result);
        if (options.allocate_mib != 0)
            printf(", \"allocate\": {\"mib\": %llu, \"result\": %d}",
                   (unsigned long long)options.allocate_mib, found->allocate_result);
        printf("}");
    }
    printf("]}\n");
}

static void print_text(const struct findings *found, int count, double launch_seconds)
{
    for (int i = 0; i < count; i++, found++) {
        printf("device %d: %s %s\n", i, found->name, found->uuid);
        printf("  CUDA: %zu bytes free of %zu (%zu MiB)\n", found->free_bytes, found->total_bytes,
               found->total_bytes / MIB);
        if (found->nvml_known)
            printf("  NVML: %llu bytes free of %llu, %llu used\n", found->nvml.free, found->nvml.total,
                   found->nvml.used);
        if (found->filled)
            printf("  allocating all %zu free bytes: %s\n  one byte more: CUresult %d%s\n",
                   found->fill_bytes, found->fill_result == 0 ? "done" : "refused",
                   found->one_more_result,
                   found->one_more_result == OUT_OF_MEMORY ? " (out of memory)" : "");
        if (options.allocate_mib != 0)
            printf("  holding %llu MiB: CUresult %d\n", (unsigned long long)options.allocate_mib,
                   found->allocate_result);
    }
    if (options.launches != 0)
        printf("%lu launches took %.3f s\n", options.launches, launch_seconds);
}

static void hold(void)
{
    const time_t end = time(NULL) + (time_t)options.hold_seconds;
    while (!terminated && (options.hold_seconds == 0 || time(NULL) < end))
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
}

static void usage(const char *name)
{
    fprintf(stderr,
            "usage: %s [--text] [--fill] [--check] [--allocate MiB] [--launch N] [--hold SECONDS]\n",
            name);
    exit(2);
}

static unsigned long number(const char *text, const char *name)
{
    char *end;
    const unsigned long value = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0')
        usage(name);
    return value;
}

static void parse(int count, char **words)
{
    static const struct option known[] = {
        {"text", no_argument, NULL, 't'},         {"fill", no_argument, NULL, 'f'},
        {"check", no_argument, NULL, 'c'},        {"allocate", required_argument, NULL, 'a'},
        {"launch", required_argument, NULL, 'l'}, {"hold", required_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    for (int option; (option = getopt_long(count, words, "", known, NULL)) != -1;) {
        if (option == 't')
            options.text = true;
        else if (option == 'f')
            options.fill = true;
        else if (option == 'c')
            options.check = true;
        else if (option == 'a')
            options.allocate_mib = number(optarg, words[0]);
        else if (option == 'l')
            options.launches = number(optarg, words[0]);
        else if (option == 'h') {
            options.hold = true;
            options.hold_seconds = (unsigned)number(optarg, words[0]);
        } else
            usage(words[0]);
    }
    if (optind != count)
        usage(words[0]);
}

int main(int count, char **words)
{
    static struct findings found[DEVICES];
    struct timespec start, end;
    int devices = 0;
    bool ok = true;
    parse(count, words);
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    load_functions();
    call(cuInit(0), "cuInit");
    call(cuDeviceGetCount(&devices), "cuDeviceGetCount");
    if (devices > DEVICES)
        devices = DEVICES;
    for (int device = 0; device < devices; device++) {
        examine(device, &found[device]);
        ok = ok && found[device].ok;
    }
    clock_gettime(CLOCK_MONOTONIC, &start);
    if (options.launches != 0)
        launch();
    clock_gettime(CLOCK_MONOTONIC, &end);
    const double seconds = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
    if (options.text)
        print_text(found, devices, seconds);
    else
        print_json(found, devices, ok, seconds);
    fflush(stdout);
    if (options.check && !ok)
        return 1;
    if (options.hold)
        hold();
    return 0;
}
