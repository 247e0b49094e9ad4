/* launch.c: every way to submit work. Through the gate, then to the driver, whose answer it is.
 *
 * The size of a launch is its number of threads; a graph's cost is that of the whole graph. Launches of
 * green contexts come through here as well: their device is that of the current context.
 */
#include "gate.h"
#include "hooks.h"
#include "shim.h"

/* How the hooks below name their arguments. */
#define SHAPE                                                                                      \
    unsigned int grid_x, unsigned int grid_y, unsigned int grid_z, unsigned int block_x,           \
        unsigned int block_y, unsigned int block_z, unsigned int shared_bytes, CUstream stream
#define SHAPE_ARGUMENTS grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream
#define SHAPE_CLASS class_of(grid_x, grid_y, grid_z, block_x, block_y, block_z)

static inline unsigned class_of(uint64_t grid_x, uint64_t grid_y, uint64_t grid_z, uint64_t block_x,
                                uint64_t block_y, uint64_t block_z)
{
    return hami_cost_class(grid_x * grid_y * grid_z * block_x * block_y * block_z);
}

static inline unsigned class_of_config(const CUlaunchConfig *config)
{
    return config == NULL ? 0
                          : class_of(config->gridDimX, config->gridDimY, config->gridDimZ,
                                     config->blockDimX, config->blockDimY, config->blockDimZ);
}

static inline CUstream stream_of_config(const CUlaunchConfig *config)
{
    return config == NULL ? NULL : config->hStream;
}

/* Two functions for each hook, so that the one which is called has nothing to save and jumps to the
 * driver's own. `handle`, `size_class` and `on_stream` (as functions without _ptsz name it) say what is
 * launched. */
#define LAUNCH_HOOK(name, parameters, arguments, launched, size, on_stream)                        \
    static __attribute__((noinline)) CUresult paced_##name parameters                              \
    {                                                                                              \
        struct hami_launch launch = {.handle = (launched), .size_class = (size)};                  \
        if (HAMI_REAL(name) == NULL)                                                               \
            return CUDA_ERROR_NOT_SUPPORTED;                                                       \
        if (hami_gate_pays(launch.handle, launch.size_class))                                      \
            return HAMI_REAL(name) arguments;                                                      \
        launch.stream = (on_stream);                                                               \
        hami_launch_begin(&launch);                                                                \
        const CUresult result = HAMI_REAL(name) arguments;                                         \
        hami_launch_end(&launch, result);                                                          \
        return result;                                                                             \
    }                                                                                              \
    HAMI_EXPORT CUresult name parameters                                                           \
    {                                                                                              \
        void *real = atomic_load_explicit(&hami_real_functions[HAMI_ROW_##name], memory_order_acquire); \
        if (__builtin_expect(real != NULL && hami_gate_is_calm(), 1))                              \
            return ((hami_type_##name *)real)arguments;                                            \
        return paced_##name arguments;                                                             \
    }

LAUNCH_HOOK(cuLaunchKernel, (CUfunction function, SHAPE, void **parameters, void **extra),
            (function, SHAPE_ARGUMENTS, parameters, extra), function, SHAPE_CLASS, stream)
LAUNCH_HOOK(cuLaunchKernel_ptsz, (CUfunction function, SHAPE, void **parameters, void **extra),
            (function, SHAPE_ARGUMENTS, parameters, extra), function, SHAPE_CLASS,
            hami_stream_per_thread(stream))

LAUNCH_HOOK(cuLaunchKernelEx,
            (const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra),
            (config, function, parameters, extra), function, class_of_config(config),
            stream_of_config(config))
LAUNCH_HOOK(cuLaunchKernelEx_ptsz,
            (const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra),
            (config, function, parameters, extra), function, class_of_config(config),
            hami_stream_per_thread(stream_of_config(config)))

LAUNCH_HOOK(cuLaunchCooperativeKernel, (CUfunction function, SHAPE, void **parameters),
            (function, SHAPE_ARGUMENTS, parameters), function, SHAPE_CLASS, stream)
LAUNCH_HOOK(cuLaunchCooperativeKernel_ptsz, (CUfunction function, SHAPE, void **parameters),
            (function, SHAPE_ARGUMENTS, parameters), function, SHAPE_CLASS,
            hami_stream_per_thread(stream))

/* The old forms: what a block is was set beforehand. */
LAUNCH_HOOK(cuLaunch, (CUfunction function), (function), function, 0, HAMI_LEGACY_STREAM)
LAUNCH_HOOK(cuLaunchGrid, (CUfunction function, int width, int height), (function, width, height), function,
            class_of((unsigned)width, (unsigned)height, 1, 1, 1, 1), HAMI_LEGACY_STREAM)
LAUNCH_HOOK(cuLaunchGridAsync, (CUfunction function, int width, int height, CUstream stream),
            (function, width, height, stream), function,
            class_of((unsigned)width, (unsigned)height, 1, 1, 1, 1), stream)

LAUNCH_HOOK(cuGraphLaunch, (CUgraphExec graph, CUstream stream), (graph, stream), graph, HAMI_COST_GRAPH,
            stream)
LAUNCH_HOOK(cuGraphLaunch_ptsz, (CUgraphExec graph, CUstream stream), (graph, stream), graph,
            HAMI_COST_GRAPH, hami_stream_per_thread(stream))

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
            .size_class = class_of(one->gridDimX, one->gridDimY, one->gridDimZ, one->blockDimX,
                                   one->blockDimY, one->blockDimZ),
            .stream = one->hStream};
        if (hami_start() == HAMI_ENFORCING)
            hami_launch_pay(&launch, device_of_stream(one->hStream));
    }
    return HAMI_CUDA(cuLaunchCooperativeKernelMultiDevice, list, count, flags);
}
