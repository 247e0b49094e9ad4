/* client: obeys one order a line on stdin and answers each with one line on stdout.
 *
 * The answer begins with the CUresult (or nvmlReturn_t). Orders:
 *   init ORDINAL | create ORDINAL | destroy | reset | release
 *   alloc BYTES | managed BYTES | pitch WIDTH HEIGHT | free ADDRESS
 *   info | info-null | total | nvml UUID | nvml2 UUID | launch | pid
 *   threads COUNT BYTES   allocate from that many threads at once: how many succeeded
 *   fork                  continue in a child that inherits the pipes; the parent waits for its end
 *   closefrom NUMBER      close all descriptors from there on
 *   exec                  execute this program anew in the same process
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct {
    unsigned long long total, free, used;
} memory_v1;
typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} memory_v2;

#define FUNCTIONS(X)                                                                               \
    X(cuInit, (unsigned))                                                                          \
    X(cuDevicePrimaryCtxRetain, (void **, int))                                                    \
    X(cuDevicePrimaryCtxRelease_v2, (int))                                                         \
    X(cuDevicePrimaryCtxReset_v2, (int))                                                           \
    X(cuCtxCreate_v2, (void **, unsigned, int))                                                    \
    X(cuCtxDestroy_v2, (void *))                                                                   \
    X(cuCtxSetCurrent, (void *))                                                                   \
    X(cuMemAlloc_v2, (uint64_t *, size_t))                                                         \
    X(cuMemAllocManaged, (uint64_t *, size_t, unsigned))                                           \
    X(cuMemAllocPitch_v2, (uint64_t *, size_t *, size_t, size_t, unsigned))                        \
    X(cuMemFree_v2, (uint64_t))                                                                    \
    X(cuMemGetInfo_v2, (size_t *, size_t *))                                                       \
    X(cuDeviceTotalMem_v2, (size_t *, int))
#define NVML_FUNCTIONS(X)                                                                          \
    X(nvmlInit_v2, (void))                                                                         \
    X(nvmlDeviceGetHandleByUUID, (const char *, void **))                                          \
    X(nvmlDeviceGetMemoryInfo, (void *, memory_v1 *))                                              \
    X(nvmlDeviceGetMemoryInfo_v2, (void *, memory_v2 *))

#define X(name, parameters) static int(*name) parameters;
FUNCTIONS(X)
NVML_FUNCTIONS(X)
#undef X

static int ordinal;
static void *context;

static void load(void)
{
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (cuda == NULL || nvml == NULL) {
        fprintf(stderr, "client: %s\n", dlerror());
        exit(3);
    }
#define X(name, parameters) name = (int(*) parameters)dlsym(cuda, #name);
    FUNCTIONS(X)
#undef X
#define X(name, parameters) name = (int(*) parameters)dlsym(nvml, #name);
    NVML_FUNCTIONS(X)
#undef X
}

static int init(int wanted)
{
    ordinal = wanted;
    int result = cuInit(0);
    if (result == 0)
        result = cuDevicePrimaryCtxRetain(&context, ordinal);
    return result != 0 ? result : cuCtxSetCurrent(context);
}

static void *allocate_in_thread(void *bytes)
{
    uint64_t address;
    if (cuCtxSetCurrent(context) != 0)
        return (void *)0;
    return (void *)(intptr_t)(cuMemAlloc_v2(&address, *(size_t *)bytes) == 0);
}

static int allocate_in_threads(int count, size_t bytes)
{
    pthread_t threads[256];
    int succeeded = 0;
    for (int i = 0; i < count; i++)
        pthread_create(&threads[i], NULL, allocate_in_thread, &bytes);
    for (int i = 0; i < count; i++) {
        void *done;
        pthread_join(threads[i], &done);
        succeeded += done != NULL;
    }
    return succeeded;
}

static void *handle_of(const char *uuid)
{
    void *handle = NULL;
    nvmlInit_v2();
    nvmlDeviceGetHandleByUUID(uuid, &handle);
    return handle;
}

static void fork_and_wait(void)
{
    const pid_t child = fork();
    if (child == 0)
        return;
    int status = 0;
    waitpid(child, &status, 0);
    printf("%d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    fflush(stdout);
}

int main(int count, char **words)
{
    char line[256];
    (void)count;
    setvbuf(stdin, NULL, _IONBF, 0); /* a forked or executed successor reads on where we stopped */
    load();
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        char order[32] = "", text[64] = "";
        unsigned long long first = 0, second = 0;
        uint64_t address = 0;
        size_t pitch = 0, free_bytes = 0, total = 0;
        sscanf(line, "%31s %63s", order, text);
        sscanf(line, "%*s %llu %llu", &first, &second);
        if (strcmp(order, "init") == 0) {
            printf("%d\n", init((int)first));
        } else if (strcmp(order, "create") == 0) {
            printf("%d\n", cuCtxCreate_v2(&context, 0, (int)first));
        } else if (strcmp(order, "destroy") == 0) {
            printf("%d\n", cuCtxDestroy_v2(context));
        } else if (strcmp(order, "release") == 0) {
            printf("%d\n", cuDevicePrimaryCtxRelease_v2(ordinal));
        } else if (strcmp(order, "reset") == 0) {
            printf("%d\n", cuDevicePrimaryCtxReset_v2(ordinal));
        } else if (strcmp(order, "alloc") == 0) {
            const int result = cuMemAlloc_v2(&address, first);
            printf("%d %llu\n", result, (unsigned long long)address);
        } else if (strcmp(order, "managed") == 0) {
            const int result = cuMemAllocManaged(&address, first, 1);
            printf("%d %llu\n", result, (unsigned long long)address);
        } else if (strcmp(order, "pitch") == 0) {
            const int result = cuMemAllocPitch_v2(&address, &pitch, first, second, 4);
            printf("%d %llu %zu\n", result, (unsigned long long)address, pitch);
        } else if (strcmp(order, "free") == 0) {
            printf("%d\n", cuMemFree_v2(first));
        } else if (strcmp(order, "info") == 0) {
            const int result = cuMemGetInfo_v2(&free_bytes, &total);
            printf("%d %zu %zu\n", result, free_bytes, total);
        } else if (strcmp(order, "info-null") == 0) {
            const int result = cuMemGetInfo_v2(NULL, NULL);
            printf("%d\n", result);
        } else if (strcmp(order, "total") == 0) {
            const int result = cuDeviceTotalMem_v2(&total, ordinal);
            printf("%d %zu\n", result, total);
        } else if (strcmp(order, "nvml") == 0) {
            memory_v1 memory = {0};
            const int result = nvmlDeviceGetMemoryInfo(handle_of(text), &memory);
            printf("%d %llu %llu %llu\n", result, memory.free, memory.total, memory.used);
        } else if (strcmp(order, "nvml2") == 0) {
            memory_v2 memory = {.version = sizeof memory | 2U << 24};
            const int result = nvmlDeviceGetMemoryInfo_v2(handle_of(text), &memory);
            printf("%d %llu %llu %llu %llu\n", result, memory.free, memory.total, memory.used,
                   memory.reserved);
        } else if (strcmp(order, "threads") == 0) {
            printf("0 %d\n", allocate_in_threads((int)first, second));
        } else if (strcmp(order, "closefrom") == 0) {
            for (int descriptor = (int)first; descriptor < 1024; descriptor++)
                close(descriptor);
            puts("0");
        } else if (strcmp(order, "pid") == 0) {
            printf("0 %d\n", (int)getpid());
        } else if (strcmp(order, "fork") == 0) {
            fork_and_wait();
            continue;
        } else if (strcmp(order, "exec") == 0) {
            execv("/proc/self/exe", words);
        } else if (strcmp(order, "exit") == 0) {
            return (int)first;
        } else {
            printf("-1 unknown order %s\n", order);
        }
        fflush(stdout);
    }
    return 0;
}
