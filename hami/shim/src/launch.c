/* launch.c: every way to submit work. Through the gate, then to the driver, whose answer it is. The
 * exported functions are the stubs of launch.S.
 *
 * The size of a launch is its number of threads; a graph's cost is that of the whole graph. Launches of
 * green contexts come through here as well: their device is that of the current context.
 */
#include "gate.h"
#include "graph_memory.h"
#include "hooks.h"
#include "shim.h"

_Static_assert(offsetof(struct hami_thread, calm_pulse) == 0, "launch.S compares with it");

/* But for the third dimension of a block, which no register holds at the stub. */
static inline uint64_t threads_of(uint64_t grid_x, uint64_t grid_y, uint64_t grid_z, uint64_t block_x,
                                  uint64_t block_y)
{
    return grid_x * grid_y * grid_z * block_x * block_y;
}

static inline uint64_t threads_of_config(const CUlaunchConfig *config)
{
    return config == NULL ? 0
                          : threads_of(config->gridDimX, config->gridDimY, config->gridDimZ,
                                       config->blockDimX, config->blockDimY);
}

static inline CUstream stream_of_config(const CUlaunchConfig *config)
{
    return config == NULL ? NULL : config->hStream;
}

/* The two halves behind a stub of launch.S. `leading` are the parameters as far as they say what is
 * launched; `launched`, `size` and `on_stream` (as functions without _ptsz name it) are made of them. */
#define LAUNCH_HOOK(name, ...) LAUNCH_HOOK_TO(HAMI_REAL(name), name, __VA_ARGS__)
#define LAUNCH_HOOK_TO(driver, name, leading, parameters, arguments, launched, size, on_stream)               \
    static CUresult paced_##name parameters;                                                       \
    void *_Atomic hami_target_##name = (void *)paced_##name; /* until the driver's own is known */ \
                                                                                                   \
    void *hami_credit_##name leading;                                                              \
    void *hami_credit_##name leading                                                               \
    {                                                                                              \
        return hami_gate_pays(launched, size)                                                      \
                   ? atomic_load_explicit(&hami_target_##name, memory_order_relaxed)               \
                   : (void *)paced_##name;                                                         \
    }                                                                                              \
                                                                                                   \
    static CUresult paced_##name parameters                                                        \
    {                                                                                              \
        struct hami_launch launch = {                                                              \
            .handle = (launched), .threads = (size), .stream = (on_stream)};                    \
        hami_type_##name *real = (driver);                                                         \
        if (real == NULL)                                                                          \
            return CUDA_ERROR_NOT_SUPPORTED;                                                       \
        atomic_store_explicit(&hami_target_##name, (void *)real, memory_order_relaxed);            \
        hami_launch_begin(&launch);                                                                \
        const CUresult result = real arguments;                                                    \
        hami_launch_end(&launch, result);                                                          \
        return result;                                                                             \
    }

#define KERNEL                                                                                     \
    CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,            \
        unsigned int block_x, unsigned int block_y
#define KERNEL_REST unsigned int block_z, unsigned int shared_bytes, CUstream stream
#define KERNEL_ARGUMENTS                                                                           \
    function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream
#define KERNEL_THREADS threads_of(grid_x, grid_y, grid_z, block_x, block_y)

LAUNCH_HOOK(cuLaunchKernel, (KERNEL), (KERNEL, KERNEL_REST, void **parameters, void **extra),
            (KERNEL_ARGUMENTS, parameters, extra), function, KERNEL_THREADS, stream)
LAUNCH_HOOK(cuLaunchKernel_ptsz, (KERNEL), (KERNEL, KERNEL_REST, void **parameters, void **extra),
            (KERNEL_ARGUMENTS, parameters, extra), function, KERNEL_THREADS, hami_stream_per_thread(stream))
LAUNCH_HOOK(cuLaunchCooperativeKernel, (KERNEL), (KERNEL, KERNEL_REST, void **parameters),
            (KERNEL_ARGUMENTS, parameters), function, KERNEL_THREADS, stream)
LAUNCH_HOOK(cuLaunchCooperativeKernel_ptsz, (KERNEL), (KERNEL, KERNEL_REST, void **parameters),
            (KERNEL_ARGUMENTS, parameters), function, KERNEL_THREADS, hami_stream_per_thread(stream))

#define CONFIG const CUlaunchConfig *config, CUfunction function

LAUNCH_HOOK(cuLaunchKernelEx, (CONFIG), (CONFIG, void **parameters, void **extra),
            (config, function, parameters, extra), function, threads_of_config(config),
            stream_of_config(config))
LAUNCH_HOOK(cuLaunchKernelEx_ptsz, (CONFIG), (CONFIG, void **parameters, void **extra),
            (config, function, parameters, extra), function, threads_of_config(config),
            hami_stream_per_thread(stream_of_config(config)))

/* The old forms: what a block is was set beforehand. */
#define GRID CUfunction function, int width, int height
#define GRID_THREADS threads_of((unsigned)width, (unsigned)height, 1, 1, 1)

LAUNCH_HOOK(cuLaunch, (CUfunction function), (CUfunction function), (function), function, 0,
            HAMI_LEGACY_STREAM)
LAUNCH_HOOK(cuLaunchGrid, (GRID), (GRID), (function, width, height), function, GRID_THREADS,
            HAMI_LEGACY_STREAM)
LAUNCH_HOOK(cuLaunchGridAsync, (GRID), (GRID, CUstream stream), (function, width, height, stream),
            function, GRID_THREADS, stream)

/* Graphs may allocate. Where none does that costs one load. */
static __attribute__((noinline)) CUresult launch_allocating(hami_type_cuGraphLaunch *real,
                                                            CUgraphExec graph, CUstream stream,
                                                            CUstream on_stream)
{
    struct hami_graph_growth growth = {.count = 0};
    CUresult result = CUDA_SUCCESS;
    if (real == NULL)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!hami_capture_is_active() || !hami_capture_covers(on_stream))
        result = hami_graph_memory_admit(graph, &growth);
    if (result != CUDA_SUCCESS)
        return result;
    result = real(graph, stream);
    hami_graph_memory_settle(&growth, result);
    return result;
}

#define SUBMIT_GRAPH(name, on_stream)                                                              \
    static CUresult submit_##name(CUgraphExec graph, CUstream stream)                              \
    {                                                                                              \
        hami_type_##name *real = HAMI_REAL(name);                                                  \
        if (__builtin_expect(real != NULL && !hami_graph_memory_is_used(), 1))                     \
            return real(graph, stream);                                                            \
        return launch_allocating(real, graph, stream, on_stream);                                  \
    }

SUBMIT_GRAPH(cuGraphLaunch, stream)
SUBMIT_GRAPH(cuGraphLaunch_ptsz, hami_stream_per_thread(stream))
LAUNCH_HOOK_TO(submit_cuGraphLaunch, cuGraphLaunch, (CUgraphExec graph),
               (CUgraphExec graph, CUstream stream), (graph, stream), graph, HAMI_GRAPH, stream)
LAUNCH_HOOK_TO(submit_cuGraphLaunch_ptsz, cuGraphLaunch_ptsz, (CUgraphExec graph),
               (CUgraphExec graph, CUstream stream), (graph, stream), graph, HAMI_GRAPH,
               hami_stream_per_thread(stream))

/* Region index of the device of a stream that is not the current context's. */
static int device_of_stream(CUstream stream)
{
    CUcontext context = NULL;
    CUdevice ordinal = 0;
    if (HAMI_CUDA(cuStreamGetCtx, stream, &context) != CUDA_SUCCESS ||
        HAMI_CUDA(cuCtxPushCurrent_v2, context) != CUDA_SUCCESS)
        return HAMI_UNLISTED;
    const CUresult result = HAMI_CUDA(cuCtxGetDevice, &ordinal);
    HAMI_CUDA(cuCtxPopCurrent_v2, &context);
    return result == CUDA_SUCCESS ? hami_device_of_ordinal(ordinal) : HAMI_UNLISTED;
}

/* One launch on each of several devices. Each pays on its own. */
HAMI_EXPORT CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *list, unsigned int count,
                                                          unsigned int flags)
{
    for (unsigned int i = 0; !hami_gate_is_calm() && list != NULL && i < count; i++) {
        const CUDA_LAUNCH_PARAMS *one = &list[i];
        const struct hami_launch launch = {
            .handle = one->function,
            .threads = threads_of(one->gridDimX, one->gridDimY, one->gridDimZ, one->blockDimX,
                                   one->blockDimY),
            .stream = one->hStream};
        if (hami_start() == HAMI_ENFORCING)
            hami_launch_pay(&launch, device_of_stream(one->hStream));
    }
    return HAMI_CUDA(cuLaunchCooperativeKernelMultiDevice, list, count, flags);
}
