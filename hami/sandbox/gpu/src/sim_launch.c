/* sim_launch.c: all ways to launch a kernel. Nothing is computed; time passes. */
#define _GNU_SOURCE
#include "sim_graph.h"
#include "sim_managed.h"
#include "sim_module.h"

#define THREADS_A_BLOCK 1024

static uint64_t blocks_at_once(const struct sim_context *context, uint64_t block_threads)
{
    const struct sim_gpu *gpu = &sim_node()->gpus[context->gpu];
    const unsigned own = context->multiprocessors;
    return (own != 0 ? own : gpu->multiprocessors) * (gpu->threads_per_multiprocessor / block_threads);
}

CUfunction sim_kernel_of(const CUDA_KERNEL_NODE_PARAMS_v2 *launch)
{
    return launch->func != NULL ? launch->func : launch->kern;
}

bool sim_kernel_fails(const CUDA_KERNEL_NODE_PARAMS_v2 *launch)
{
    return sim_kernel_of(launch)->failure != CUDA_SUCCESS;
}

static uint64_t grid_blocks(const CUDA_KERNEL_NODE_PARAMS_v2 *launch)
{
    return (uint64_t)launch->gridDimX * launch->gridDimY * launch->gridDimZ;
}

static uint64_t block_threads(const CUDA_KERNEL_NODE_PARAMS_v2 *launch)
{
    return (uint64_t)launch->blockDimX * launch->blockDimY * launch->blockDimZ;
}

CUresult sim_kernel_time(const struct sim_context *context, const CUDA_KERNEL_NODE_PARAMS_v2 *launch,
                         uint64_t *duration_ns)
{
    const uint64_t blocks = grid_blocks(launch);
    const uint64_t threads = block_threads(launch);
    if (sim_kernel_of(launch) == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    if (blocks == 0 || threads == 0 || threads > THREADS_A_BLOCK)
        return CUDA_ERROR_INVALID_VALUE;
    const uint64_t at_once = blocks_at_once(context, threads);
    *duration_ns = (blocks + at_once - 1) / at_once * sim_kernel_of(launch)->wave_ns;
    return CUDA_SUCCESS;
}

void sim_kernel_queued(struct sim_stream *stream, CUfunction function)
{
    uint64_t none = 0;
    if (function->failure == CUDA_SUCCESS)
        return;
    atomic_store(&stream->context->crash_error, function->failure);
    atomic_compare_exchange_strong(&stream->context->crash_tag, &none, atomic_load(&stream->tail));
}

static CUresult launch(CUDA_KERNEL_NODE_PARAMS_v2 *kernel, CUstream handle, bool per_thread,
                       bool cooperative)
{
    struct sim_stream *stream;
    uint64_t duration;
    CUresult result = sim_stream_for_work(handle, per_thread, &stream);
    if (result == CUDA_SUCCESS)
        result = sim_kernel_time(stream->context, kernel, &duration);
    if (result != CUDA_SUCCESS)
        return result;
    if (cooperative && grid_blocks(kernel) > blocks_at_once(stream->context, block_threads(kernel)))
        return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    if (sim_is_captured(stream)) {
        kernel->ctx = stream->context;
        const union sim_node_params params = {.kernel = *kernel};
        return sim_capture_node(stream, NODE_KERNEL, &params);
    }
    sim_stream_queue(stream, duration + sim_managed_fetch_ns(stream->gpu));
    sim_kernel_queued(stream, sim_kernel_of(kernel));
    return CUDA_SUCCESS;
}

#define LAUNCH_PARAMETERS                                                                          \
    CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,            \
        unsigned int block_x, unsigned int block_y, unsigned int block_z,                          \
        unsigned int shared_bytes, CUstream stream, void **parameters
#define KERNEL                                                                                     \
    (&(CUDA_KERNEL_NODE_PARAMS_v2){function, grid_x, grid_y, grid_z, block_x, block_y, block_z,    \
                                   shared_bytes, parameters, NULL, NULL, NULL})

CUresult cuLaunchKernel(LAUNCH_PARAMETERS, void **extra)
{
    (void)extra;
    return launch(KERNEL, stream, false, false);
}

CUresult cuLaunchKernel_ptsz(LAUNCH_PARAMETERS, void **extra)
{
    (void)extra;
    return launch(KERNEL, stream, true, false);
}

CUresult cuLaunchCooperativeKernel(LAUNCH_PARAMETERS)
{
    return launch(KERNEL, stream, false, true);
}

CUresult cuLaunchCooperativeKernel_ptsz(LAUNCH_PARAMETERS)
{
    return launch(KERNEL, stream, true, true);
}

static CUresult launch_configured(const CUlaunchConfig *config, CUfunction function, void **parameters,
                                  void **extra, bool per_thread)
{
    enum { COOPERATIVE = 2 };
    bool cooperative = false;
    if (config == NULL || (config->numAttrs != 0 && config->attrs == NULL))
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < config->numAttrs; i++)
        if (config->attrs[i].id == COOPERATIVE)
            cooperative = config->attrs[i].value.cooperative != 0;
    CUDA_KERNEL_NODE_PARAMS_v2 kernel = {
        function,          config->gridDimX,  config->gridDimY,       config->gridDimZ, config->blockDimX,
        config->blockDimY, config->blockDimZ, config->sharedMemBytes, parameters,       extra,
        NULL,              NULL};
    return launch(&kernel, config->hStream, per_thread, cooperative);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra)
{
    return launch_configured(config, function, parameters, extra, false);
}

CUresult cuLaunchKernelEx_ptsz(const CUlaunchConfig *config, CUfunction function, void **parameters,
                               void **extra)
{
    return launch_configured(config, function, parameters, extra, true);
}

CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *list, unsigned int count,
                                              unsigned int flags)
{
    CUresult result = list != NULL && count != 0 && flags < 4 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; result == CUDA_SUCCESS && i < count; i++) {
        const CUDA_LAUNCH_PARAMS *one = &list[i];
        if ((uintptr_t)one->hStream <= 2) /* each device needs a stream of its own */
            return CUDA_ERROR_INVALID_VALUE;
        result = cuLaunchCooperativeKernel(one->function, one->gridDimX, one->gridDimY, one->gridDimZ,
                                           one->blockDimX, one->blockDimY, one->blockDimZ,
                                           one->sharedMemBytes, one->hStream, one->kernelParams);
    }
    return result;
}

/* The calls from before CUDA 4, whose block shape and parameters belong to the function. */
CUresult cuLaunchGridAsync(CUfunction function, int width, int height, CUstream stream)
{
    if (function == NULL || width < 1 || height < 1)
        return CUDA_ERROR_INVALID_VALUE;
    return cuLaunchKernel(function, (unsigned)width, (unsigned)height, 1, function->block_threads, 1, 1, 0,
                          stream, NULL, NULL);
}

CUresult cuLaunchGrid(CUfunction function, int width, int height)
{
    return cuLaunchGridAsync(function, width, height, NULL);
}

CUresult cuLaunch(CUfunction function)
{
    return cuLaunchGrid(function, 1, 1);
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int block_size,
                                                     size_t shared_bytes)
{
    CUcontext context;
    (void)shared_bytes;
    const CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (blocks == NULL || function == NULL || block_size < 1 || block_size > THREADS_A_BLOCK)
        return CUDA_ERROR_INVALID_VALUE;
    *blocks = (int)sim_node()->gpus[context->gpu].threads_per_multiprocessor / block_size;
    return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, CUfunction function,
                                                              int block_size, size_t shared_bytes,
                                                              unsigned int flags)
{
    (void)flags;
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, block_size, shared_bytes);
}

CUresult cuOccupancyMaxPotentialBlockSize(int *grid, int *block, CUfunction function,
                                          CUoccupancyB2DSize shared_of_block, size_t shared_bytes,
                                          int most)
{
    CUcontext context;
    (void)shared_of_block, (void)shared_bytes;
    const CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (grid == NULL || block == NULL || function == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *block = most > 0 && most < THREADS_A_BLOCK ? most : THREADS_A_BLOCK;
    *grid = (int)blocks_at_once(context, (uint64_t)*block);
    return CUDA_SUCCESS;
}
