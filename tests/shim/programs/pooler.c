/* pooler: obeys orders about pools, graphs' memory and managed memory, as client.c does about the rest.
 *
 * One order a line on stdin, one line on stdout that begins with the CUresult. With $RESOLVE set to 0
 * or 2, functions come from cuGetProcAddress with those flags (2: per-thread default stream), else
 * from dlsym.
 *   init ORDINAL | alloc BYTES | free ADDRESS | free-async ADDRESS
 *   async BYTES | from POOL BYTES | loop POOL BYTES COUNT   take and give back COUNT times: how many got it
 *   race THREADS BYTES COUNT   the same in so many threads at once
 *   default ORDINAL | current ORDINAL | set-current ORDINAL POOL
 *   create LOCATION ID MAXIMUM | destroy POOL | trim POOL KEEP | get POOL ATTRIBUTE | set POOL ATTRIBUTE VALUE
 *   managed BYTES | pitch WIDTH HEIGHT | advise ADDRESS BYTES ADVICE | prefetch ADDRESS BYTES | is-managed ADDRESS
 *   kernel COUNT MICROSECONDS   run so many kernels: nanoseconds until they were done
 *   graph   begin a graph; its nodes form a chain, those added with 1 for ALONE depend on nothing
 *   node-alloc BYTES ORDINAL ALONE | node-free ADDRESS | wrap   make the graph the child of a new one
 *   capture | end-capture   of the stream that all calls use from then on; the graph is what came of it
 *   instantiate FORM FLAGS | launch EXEC | upload EXEC | drop EXEC | trim-graphs ORDINAL
 *   graph-memory ORDINAL ATTRIBUTE
 *   work MICROSECONDS   the same, one and without waiting
 *   stream ORDINAL   asynchronous calls use a stream of that device from then on
 *   sync-stream | sync-event | sync | info | nvml UUID | reset | fork
 */
#include "pooler.h"

#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int ordinal;
static void *stream; /* that asynchronous calls use */
static void *graph, *last_node;

static int init(int wanted)
{
    void *context = NULL;
    ordinal = wanted;
    int result = cuInit(0);
    if (result == 0)
        result = cuDevicePrimaryCtxRetain(&context, ordinal);
    return result != 0 ? result : cuCtxSetCurrent(context);
}

static int synchronize_by_event(void)
{
    void *event = NULL;
    int result = cuEventCreate(&event, 0);
    if (result == 0)
        result = cuEventRecord(event, stream);
    return result != 0 ? result : cuEventSynchronize(event);
}

static unsigned long long loop(void *pool, size_t bytes, unsigned long long count)
{
    unsigned long long got = 0;
    for (unsigned long long i = 0; i < count; i++) {
        uint64_t address = 0;
        if ((pool != NULL ? cuMemAllocFromPoolAsync(&address, bytes, pool, stream)
                          : cuMemAllocAsync(&address, bytes, stream)) != 0)
            continue;
        got++;
        cuMemFreeAsync(address, stream);
        if (i % 3 == 0)
            cuStreamSynchronize(stream);
    }
    return got;
}

struct race {
    size_t bytes;
    unsigned long long count;
    void *context;
};

static void *race(void *argument)
{
    const struct race *wanted = argument;
    if (cuCtxSetCurrent(wanted->context) != 0)
        return NULL;
    return (void *)(uintptr_t)loop(NULL, wanted->bytes, wanted->count);
}

static unsigned long long race_in_threads(int count, size_t bytes, unsigned long long times)
{
    pthread_t threads[64];
    unsigned long long got = 0;
    struct race wanted = {.bytes = bytes, .count = times};
    cuCtxGetCurrent(&wanted.context);
    for (int i = 0; i < count; i++)
        pthread_create(&threads[i], NULL, race, &wanted);
    for (int i = 0; i < count; i++) {
        void *done;
        pthread_join(threads[i], &done);
        got += (uintptr_t)done;
    }
    return got;
}

/* A stream of another device than that of the current context, which stays current. */
static int use_stream(int device)
{
    void *own = NULL, *other = NULL;
    int result = cuCtxGetCurrent(&own);
    if (result == 0)
        result = cuDevicePrimaryCtxRetain(&other, device);
    if (result == 0)
        result = cuCtxSetCurrent(other);
    if (result == 0)
        result = cuStreamCreate(&stream, 0);
    return result != 0 ? result : cuCtxSetCurrent(own);
}

static int get_attribute(void *pool, int attribute, unsigned long long *value)
{
    int narrow = 0;
    const int result = cuMemPoolGetAttribute(pool, attribute, attribute < 4 ? (void *)&narrow : value);
    if (attribute < 4)
        *value = (unsigned long long)narrow;
    return result;
}

static int set_attribute(void *pool, int attribute, unsigned long long value)
{
    int narrow = (int)value;
    return cuMemPoolSetAttribute(pool, attribute, attribute < 4 ? (void *)&narrow : &value);
}

static int create(int type, int id, size_t maximum, void **pool)
{
    const pool_properties properties = {
        .allocation_type = 1, .location = {type, id}, .max_bytes = maximum};
    return cuMemPoolCreate(pool, &properties);
}

static int tell_nvml(const char *uuid)
{
    nvml_memory memory = {0, 0, 0};
    void *handle = NULL;
    nvml_init();
    nvml_handle(uuid, &handle);
    const int result = nvml_memory_info(handle, &memory);
    return printf("%d %llu %llu %llu\n", result, memory.free, memory.total, memory.used);
}

static int launch_kernels(int count, int microseconds)
{
    void *module = NULL, *function = NULL;
    char image[64];
    snprintf(image, sizeof image, "hami-sim kernels\nwave %d\n", microseconds);
    int result = cuModuleLoadData(&module, image);
    if (result == 0)
        result = cuModuleGetFunction(&function, module, "wave");
    for (int i = 0; i < count && result == 0; i++)
        result = cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, NULL, NULL);
    return result;
}

static int run_kernels(int count, int microseconds, unsigned long long *took_ns)
{
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    int result = launch_kernels(count, microseconds);
    if (result == 0)
        result = cuStreamSynchronize(stream);
    clock_gettime(CLOCK_MONOTONIC, &end);
    *took_ns = (unsigned long long)((end.tv_sec - start.tv_sec) * 1000000000 + end.tv_nsec - start.tv_nsec);
    return result;
}

static int begin_graph(void)
{
    last_node = NULL;
    return cuGraphCreate(&graph, 0);
}

static int add_allocation(size_t bytes, int device, int alone, uint64_t *address)
{
    allocation_node wanted = {
        .pool = {.allocation_type = 1, .location = {1, device}}, .bytes = bytes};
    void *node = NULL;
    const int result =
        cuGraphAddMemAllocNode(&node, graph, &last_node, last_node != NULL && !alone, &wanted);
    *address = wanted.address;
    last_node = node;
    return result;
}

static int add_free(uint64_t address)
{
    void *node = NULL;
    const int result = cuGraphAddMemFreeNode(&node, graph, &last_node, last_node != NULL, address);
    last_node = node;
    return result;
}

static int wrap(void)
{
    node_parameters moved = {.type = 4, .child = {graph, 1}};
    const int result = begin_graph();
    return result != 0 ? result : cuGraphAddNode(&last_node, graph, NULL, 0, &moved);
}

static int begin_capture(void)
{
    const int result = stream != NULL ? 0 : cuStreamCreate(&stream, 1);
    return result != 0 ? result : cuStreamBeginCapture_v2(stream, 0);
}

static int instantiate(int form, uint64_t flags, void **executable)
{
    instantiation how = {.flags = flags};
    char log[16];
    switch (form) {
    case 1: return cuGraphInstantiate(executable, graph, NULL, log, sizeof log);
    case 2: return cuGraphInstantiate_v2(executable, graph, NULL, log, sizeof log);
    case 3: return cuGraphInstantiateWithFlags(executable, graph, flags);
    default: return cuGraphInstantiateWithParams(executable, graph, &how);
    }
}

static void fork_and_wait(void)
{
    const pid_t child = fork();
    int status = 0;
    if (child == 0)
        return;
    waitpid(child, &status, 0);
    printf("%d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static int pair(int result, unsigned long long value)
{
    return printf("%d %llu\n", result, value);
}

#define IS(text) (strcmp(order, text) == 0)

/* Orders about graphs; 0: it is none. */
static int obey_graphs(const char *order, unsigned long long a, unsigned long long b,
                       unsigned long long c)
{
    uint64_t address = 0;
    void *executable = NULL;
    unsigned long long value = 0;
    int result;
    if (IS("graph"))
        return printf("%d\n", begin_graph());
    if (IS("node-alloc"))
        return result = add_allocation(a, (int)b, (int)c, &address), pair(result, address);
    if (IS("node-free"))
        return printf("%d\n", add_free(a));
    if (IS("wrap"))
        return printf("%d\n", wrap());
    if (IS("capture"))
        return printf("%d\n", begin_capture());
    if (IS("end-capture"))
        return printf("%d\n", cuStreamEndCapture(stream, &graph));
    if (IS("instantiate"))
        return result = instantiate((int)a, b, &executable), pair(result, (uintptr_t)executable);
    if (IS("launch"))
        return printf("%d\n", cuGraphLaunch((void *)a, stream));
    if (IS("upload"))
        return printf("%d\n", cuGraphUpload((void *)a, stream));
    if (IS("drop"))
        return printf("%d\n", cuGraphExecDestroy((void *)a));
    if (IS("trim-graphs"))
        return printf("%d\n", cuDeviceGraphMemTrim((int)a));
    if (IS("graph-memory"))
        return result = cuDeviceGetGraphMemAttribute((int)a, (int)b, &value), pair(result, value);
    return 0;
}

static int obey(const char *order, const char *text, unsigned long long a, unsigned long long b,
                unsigned long long c)
{
    uint64_t address = 0;
    void *pool = NULL;
    unsigned long long value = 0;
    size_t free_bytes = 0, total = 0;
    int result, truth = 0;
    if (IS("managed"))
        return result = cuMemAllocManaged(&address, a, 1), pair(result, address);
    if (IS("pitch"))
        return result = cuMemAllocPitch_v2(&address, &total, a, b, 4),
               printf("%d %llu %zu\n", result, (unsigned long long)address, total);
    if (IS("advise"))
        return printf("%d\n", cuMemAdvise(a, b, (int)c, ordinal));
    if (IS("prefetch"))
        return printf("%d\n", cuMemPrefetchAsync(a, b, ordinal, NULL));
    if (IS("is-managed"))
        return result = cuPointerGetAttribute(&truth, 8, a), pair(result, (unsigned long long)truth);
    if (IS("kernel"))
        return result = run_kernels((int)a, (int)b, &value), pair(result, value);
    if (IS("work"))
        return printf("%d\n", launch_kernels(1, (int)a));
    if (IS("init"))
        return printf("%d\n", init((int)a));
    if (IS("alloc"))
        return result = cuMemAlloc_v2(&address, a), pair(result, address);
    if (IS("free"))
        return printf("%d\n", cuMemFree_v2(a));
    if (IS("free-async"))
        return printf("%d\n", cuMemFreeAsync(a, stream));
    if (IS("async"))
        return result = cuMemAllocAsync(&address, a, stream), pair(result, address);
    if (IS("from"))
        return result = cuMemAllocFromPoolAsync(&address, b, (void *)a, stream), pair(result, address);
    if (IS("loop"))
        return pair(0, loop((void *)a, b, c));
    if (IS("race"))
        return pair(0, race_in_threads((int)a, b, c));
    if (IS("stream"))
        return printf("%d\n", use_stream((int)a));
    if (IS("default"))
        return result = cuDeviceGetDefaultMemPool(&pool, (int)a), pair(result, (uintptr_t)pool);
    if (IS("current"))
        return result = cuDeviceGetMemPool(&pool, (int)a), pair(result, (uintptr_t)pool);
    if (IS("set-current"))
        return printf("%d\n", cuDeviceSetMemPool((int)a, (void *)b));
    if (IS("create"))
        return result = create((int)a, (int)b, c, &pool), pair(result, (uintptr_t)pool);
    if (IS("destroy"))
        return printf("%d\n", cuMemPoolDestroy((void *)a));
    if (IS("trim"))
        return printf("%d\n", cuMemPoolTrimTo((void *)a, b));
    if (IS("get"))
        return result = get_attribute((void *)a, (int)b, &value), pair(result, value);
    if (IS("set"))
        return printf("%d\n", set_attribute((void *)a, (int)b, c));
    if (IS("sync-stream"))
        return printf("%d\n", cuStreamSynchronize(stream));
    if (IS("sync-event"))
        return printf("%d\n", synchronize_by_event());
    if (IS("sync"))
        return printf("%d\n", cuCtxSynchronize());
    if (IS("info"))
        return result = cuMemGetInfo_v2(&free_bytes, &total),
               printf("%d %zu %zu\n", result, free_bytes, total);
    if (IS("nvml"))
        return tell_nvml(text);
    if (IS("reset"))
        return printf("%d\n", cuDevicePrimaryCtxReset_v2(ordinal));
    if (IS("fork"))
        return fork_and_wait(), 0;
    return printf("-1 unknown order %s\n", order);
}

int main(void)
{
    char line[256];
    setvbuf(stdin, NULL, _IONBF, 0); /* a forked successor reads on where we stopped */
    load();
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        char order[32] = "", text[64] = "";
        unsigned long long a = 0, b = 0, c = 0;
        sscanf(line, "%31s %63s", order, text);
        sscanf(line, "%*s %llu %llu %llu", &a, &b, &c);
        if (IS("exit"))
            return (int)a;
        if (obey_graphs(order, a, b, c) == 0)
            obey(order, text, a, b, c);
        fflush(stdout);
    }
    return 0;
}
