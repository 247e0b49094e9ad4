/* pool_calls.c: allocation in stream order, and the pools it comes from.
 *
 * While a stream is captured nothing is allocated: the call becomes a node of a graph, whose memory is
 * charged when the graph is launched (graph_memory.c).
 */
#include <errno.h>

#include "capture.h"
#include "hooks.h"
#include "late_frees.h"
#include "memory.h"
#include "pools.h"
#include "shim.h"

static bool read_reserved(const void *handle, uint64_t *bytes)
{
    return HAMI_CUDA(cuMemPoolGetAttribute, (CUmemoryPool)handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT,
                     bytes) == CUDA_SUCCESS;
}

static bool read_used(const void *handle, uint64_t *bytes)
{
    return HAMI_CUDA(cuMemPoolGetAttribute, (CUmemoryPool)handle, CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
                     bytes) == CUDA_SUCCESS;
}

static void trim_pool(const void *handle)
{
    HAMI_CUDA(cuMemPoolTrimTo, (CUmemoryPool)handle, 0);
}

static const struct hami_pool_kind pool_kind = {read_reserved, read_used, trim_pool};

static struct hami_pool *device_pool(CUmemoryPool handle, CUdevice ordinal)
{
    struct hami_pool *pool = hami_pool_find(handle);
    return pool != NULL ? pool
                        : hami_pool_add(handle, &pool_kind, hami_device_of_ordinal(ordinal), true, 0);
}

/* The record of any pool: those not created by the program are the devices' own. */
static struct hami_pool *pool_of(CUmemoryPool handle)
{
    int count = 0;
    struct hami_pool *pool = hami_pool_find(handle);
    if (pool != NULL || handle == NULL || HAMI_CUDA(cuDeviceGetCount, &count) != CUDA_SUCCESS)
        return pool;
    for (CUdevice ordinal = 0; ordinal < count; ordinal++) {
        CUmemoryPool candidate = NULL;
        if (HAMI_CUDA(cuDeviceGetDefaultMemPool, &candidate, ordinal) == CUDA_SUCCESS &&
            candidate == handle)
            return device_pool(handle, ordinal);
    }
    return NULL; /* imported: whoever created it is charged */
}

/* The device whose memory a stream's allocations come from. */
static CUresult stream_device(CUstream stream, CUdevice *ordinal)
{
    CUcontext current = NULL, own = NULL;
    if (stream == NULL || HAMI_REAL(cuStreamGetCtx) == NULL ||
        HAMI_REAL(cuStreamGetCtx)(stream, &own) != CUDA_SUCCESS ||
        HAMI_CUDA(cuCtxGetCurrent, &current) != CUDA_SUCCESS || own == current ||
        HAMI_CUDA(cuCtxPushCurrent_v2, own) != CUDA_SUCCESS)
        return HAMI_CUDA(cuCtxGetDevice, ordinal);
    const CUresult result = HAMI_CUDA(cuCtxGetDevice, ordinal);
    HAMI_CUDA(cuCtxPopCurrent_v2, &own);
    return result;
}

static CUresult current_pool(CUstream stream, CUmemoryPool *handle)
{
    CUdevice ordinal = 0;
    CUresult result = stream_device(stream, &ordinal);
    if (result == CUDA_SUCCESS)
        result = HAMI_CUDA(cuDeviceGetMemPool, handle, ordinal);
    if (result == CUDA_SUCCESS && hami_start() == HAMI_ENFORCING)
        device_pool(*handle, ordinal);
    return result;
}

enum form { LEGACY, PER_THREAD }; /* which stream a NULL stands for */

static bool is_recorded(CUstream stream, enum form form)
{
    return hami_capture_is_active() &&
           hami_capture_covers(form == PER_THREAD ? hami_stream_per_thread(stream) : stream);
}

/* Announce an allocation of `bytes` from a pool, NULL: the stream's own. Not CUDA_SUCCESS: give that to
 * the program. */
static CUresult begin(struct hami_growth *growth, uint64_t bytes, CUmemoryPool handle, CUstream stream,
                      enum form form)
{
    const enum hami_attachment attachment = hami_start();
    *growth = (struct hami_growth){.pool = NULL};
    if (attachment == HAMI_INERT || is_recorded(stream, form))
        return CUDA_SUCCESS;
    const CUresult result = handle == NULL ? current_pool(stream, &handle) : CUDA_SUCCESS;
    if (result != CUDA_SUCCESS)
        return result;
    if (attachment == HAMI_REFUSING)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct hami_pool *pool = pool_of(handle);
    if (pool == NULL)
        return CUDA_SUCCESS;
    return hami_pool_admit(pool, bytes, growth) == 0 ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult free_on(CUdeviceptr address, CUstream stream, enum form form)
{
    return form == PER_THREAD ? HAMI_CUDA(cuMemFreeAsync_ptsz, address, stream)
                              : HAMI_CUDA(cuMemFreeAsync, address, stream);
}

static CUresult finish(const struct hami_growth *growth, CUresult result, const CUdeviceptr *address,
                       CUstream stream, enum form form)
{
    struct hami_pool *pool = growth->pool;
    if (pool == NULL)
        return result;
    const bool fits = hami_pool_settle(growth) == 0;
    if (result != CUDA_SUCCESS)
        return result;
    const struct hami_pointer pointer = hami_pool_pointer(pool, *address);
    struct hami_pointer stale;
    if (fits && hami_pointers_put(&pointer, &stale)) {
        if (stale.address != 0)
            hami_pointer_gone(&stale);
        return CUDA_SUCCESS;
    }
    free_on(*address, stream, form);
    hami_pointer_gone(&pointer);
    hami_pool_shrink(pool);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

HAMI_EXPORT CUresult cuMemAllocAsync(CUdeviceptr *address, size_t bytes, CUstream stream)
{
    struct hami_growth growth;
    const CUresult result = begin(&growth, bytes, NULL, stream, LEGACY);
    if (result != CUDA_SUCCESS)
        return result;
    return finish(&growth, HAMI_CUDA(cuMemAllocAsync, address, bytes, stream), address, stream, LEGACY);
}

HAMI_EXPORT CUresult cuMemAllocAsync_ptsz(CUdeviceptr *address, size_t bytes, CUstream stream)
{
    struct hami_growth growth;
    const CUresult result = begin(&growth, bytes, NULL, stream, PER_THREAD);
    if (result != CUDA_SUCCESS)
        return result;
    return finish(&growth, HAMI_CUDA(cuMemAllocAsync_ptsz, address, bytes, stream), address, stream,
                  PER_THREAD);
}

HAMI_EXPORT CUresult cuMemAllocFromPoolAsync(CUdeviceptr *address, size_t bytes, CUmemoryPool handle,
                                             CUstream stream)
{
    struct hami_growth growth = {.pool = NULL};
    CUresult result = CUDA_SUCCESS;
    if (handle != NULL) /* of nothing, the driver says what it thinks of it */
        result = begin(&growth, bytes, handle, stream, LEGACY);
    if (result != CUDA_SUCCESS)
        return result;
    return finish(&growth, HAMI_CUDA(cuMemAllocFromPoolAsync, address, bytes, handle, stream), address,
                  stream, LEGACY);
}

HAMI_EXPORT CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *address, size_t bytes,
                                                  CUmemoryPool handle, CUstream stream)
{
    struct hami_growth growth = {.pool = NULL};
    CUresult result = CUDA_SUCCESS;
    if (handle != NULL)
        result = begin(&growth, bytes, handle, stream, PER_THREAD);
    if (result != CUDA_SUCCESS)
        return result;
    return finish(&growth, HAMI_CUDA(cuMemAllocFromPoolAsync_ptsz, address, bytes, handle, stream),
                  address, stream, PER_THREAD);
}

/* What comes from a pool goes back there. Plain memory is gone only when the stream has come so far. */
static CUresult freed(const struct hami_release *release, CUresult result, CUstream stream)
{
    if (result != CUDA_SUCCESS || !release->known || hami_pointer_is_pooled(&release->pointer))
        return hami_free_finish(release, result);
    hami_free_late(&release->pointer, stream);
    return result;
}

HAMI_EXPORT CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream)
{
    const struct hami_release release = hami_free_begin(address);
    return freed(&release, HAMI_CUDA(cuMemFreeAsync, address, stream), stream);
}

HAMI_EXPORT CUresult cuMemFreeAsync_ptsz(CUdeviceptr address, CUstream stream)
{
    const struct hami_release release = hami_free_begin(address);
    return freed(&release, HAMI_CUDA(cuMemFreeAsync_ptsz, address, stream), hami_stream_per_thread(stream));
}

HAMI_EXPORT CUresult cuMemPoolCreate(CUmemoryPool *handle, const CUmemPoolProps *wanted)
{
    const CUresult result = HAMI_CUDA(cuMemPoolCreate, handle, wanted);
    if (result != CUDA_SUCCESS || hami_start() != HAMI_ENFORCING)
        return result;
    struct hami_pool *gone = hami_pool_find(*handle); /* one that went away unseen */
    if (gone != NULL)
        hami_pool_finish_destroy(hami_pool_begin_destroy(*handle), *handle, true);
    const bool on_device = wanted->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
    const int device = on_device ? hami_device_of_ordinal(wanted->location.id) : HAMI_UNLISTED;
    if (hami_pool_add(*handle, &pool_kind, device, on_device, wanted->max_bytes) != NULL)
        return CUDA_SUCCESS;
    HAMI_CUDA(cuMemPoolDestroy, *handle);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

HAMI_EXPORT CUresult cuMemPoolDestroy(CUmemoryPool handle)
{
    struct hami_pool *pool = hami_start() == HAMI_ENFORCING ? hami_pool_begin_destroy(handle) : NULL;
    const CUresult result = HAMI_CUDA(cuMemPoolDestroy, handle);
    hami_pool_finish_destroy(pool, handle, result == CUDA_SUCCESS);
    return result;
}

static CUresult measure_after(CUmemoryPool handle, CUresult result)
{
    struct hami_pool *pool = hami_pool_find(handle);
    if (pool != NULL)
        hami_pool_measure(pool);
    return result;
}

HAMI_EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool handle, size_t keep)
{
    return measure_after(handle, HAMI_CUDA(cuMemPoolTrimTo, handle, keep));
}

HAMI_EXPORT CUresult cuMemPoolSetAttribute(CUmemoryPool handle, int attribute, void *value)
{
    return measure_after(handle, HAMI_CUDA(cuMemPoolSetAttribute, handle, attribute, value));
}
