/* sim_pool_async.c: allocation and free in stream order. Allocation happens at once; in a stream that is
 * captured both become nodes of its graph.
 */
#define _GNU_SOURCE
#include "sim_graph_memory.h"
#include "sim_memory.h"

static CUresult allocate(CUdeviceptr *address, size_t bytes, CUmemoryPool pool, CUstream handle,
                         bool per_thread)
{
    struct sim_stream *stream;
    unsigned gpu;
    const CUresult result = sim_stream_for_work(handle, per_thread, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (!sim_is_captured(stream))
        return sim_pool_allocate(address, bytes, pool, stream->context);
    if (address == NULL || !sim_pool_device(pool, stream->context, &gpu))
        return CUDA_ERROR_INVALID_VALUE;
    return sim_graph_capture_allocation(stream, address, bytes, gpu);
}

static CUresult release(CUdeviceptr address, CUstream handle, bool per_thread)
{
    struct sim_stream *stream;
    const CUresult result = sim_stream_for_work(handle, per_thread, &stream);
    if (result != CUDA_SUCCESS || address == 0)
        return result;
    const union sim_node_params params = {.freed = address};
    return sim_is_captured(stream) ? sim_capture_node(stream, NODE_MEM_FREE, &params)
                                   : sim_free_in_order(address, stream);
}

CUresult cuMemAllocAsync(CUdeviceptr *address, size_t bytes, CUstream stream)
{
    return allocate(address, bytes, NULL, stream, false);
}

CUresult cuMemAllocAsync_ptsz(CUdeviceptr *address, size_t bytes, CUstream stream)
{
    return allocate(address, bytes, NULL, stream, true);
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr *address, size_t bytes, CUmemoryPool pool, CUstream stream)
{
    return pool != NULL ? allocate(address, bytes, pool, stream, false) : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *address, size_t bytes, CUmemoryPool pool,
                                      CUstream stream)
{
    return pool != NULL ? allocate(address, bytes, pool, stream, true) : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream)
{
    return release(address, stream, false);
}

CUresult cuMemFreeAsync_ptsz(CUdeviceptr address, CUstream stream)
{
    return release(address, stream, true);
}
