/* view.c: what a container sees of a device's memory, the same through CUDA and through NVML. */
#include "hooks.h"
#include "limits.h"
#include "oversubscribe.h"
#include "shim.h"

static uint64_t least(uint64_t left, uint64_t right)
{
    return left < right ? left : right;
}

void hami_view_narrow(struct hami_view *view, int device)
{
    const bool known = device != HAMI_UNLISTED && hami_start() == HAMI_ENFORCING;
    const uint64_t limit = known ? hami_limits_memory(hami_region(), (unsigned)device) : 0;
    if (limit == HAMI_MEMORY_UNLIMITED)
        return;
    if (known && hami_may_oversubscribe()) { /* what the device has says nothing then */
        view->total_bytes = limit;
        view->free_bytes = limit;
    }
    view->total_bytes = least(limit, view->total_bytes);
    view->used_bytes = known ? hami_limits_used(hami_region(), (unsigned)device) : 0;
    view->used_bytes = least(view->used_bytes, view->total_bytes);
    view->free_bytes = least(view->total_bytes - view->used_bytes, view->free_bytes);
}

static CUresult narrow_current(struct hami_view *view)
{
    CUdevice ordinal = 0;
    const enum hami_attachment attachment = hami_start();
    if (attachment == HAMI_INERT)
        return CUDA_SUCCESS;
    const CUresult result = HAMI_CUDA(cuCtxGetDevice, &ordinal);
    if (result != CUDA_SUCCESS)
        return result;
    hami_view_narrow(view, attachment == HAMI_ENFORCING ? hami_device_of_ordinal(ordinal)
                                                        : HAMI_UNLISTED);
    return CUDA_SUCCESS;
}

HAMI_EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
    size_t driver_free = 0;
    size_t driver_total = 0;
    CUresult result = HAMI_CUDA(cuMemGetInfo_v2, &driver_free, &driver_total);
    struct hami_view view = {.total_bytes = driver_total, .free_bytes = driver_free};
    if (result == CUDA_SUCCESS)
        result = narrow_current(&view);
    if (result == CUDA_SUCCESS && free_bytes != NULL)
        *free_bytes = view.free_bytes;
    if (result == CUDA_SUCCESS && total_bytes != NULL)
        *total_bytes = view.total_bytes;
    return result;
}

HAMI_EXPORT CUresult cuMemGetInfo(unsigned int *free_bytes, unsigned int *total_bytes)
{
    unsigned int driver_free = 0;
    unsigned int driver_total = 0;
    CUresult result = HAMI_CUDA(cuMemGetInfo, &driver_free, &driver_total);
    struct hami_view view = {.total_bytes = driver_total, .free_bytes = driver_free};
    if (result == CUDA_SUCCESS)
        result = narrow_current(&view);
    if (result == CUDA_SUCCESS && free_bytes != NULL)
        *free_bytes = (unsigned int)least(view.free_bytes, UINT32_MAX);
    if (result == CUDA_SUCCESS && total_bytes != NULL)
        *total_bytes = (unsigned int)least(view.total_bytes, UINT32_MAX);
    return result;
}

static void narrow_total(struct hami_view *view, CUdevice ordinal)
{
    const enum hami_attachment attachment = hami_start();
    if (attachment != HAMI_INERT)
        hami_view_narrow(view, attachment == HAMI_ENFORCING ? hami_device_of_ordinal(ordinal)
                                                            : HAMI_UNLISTED);
}

HAMI_EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice ordinal)
{
    const CUresult result = HAMI_CUDA(cuDeviceTotalMem_v2, bytes, ordinal);
    if (result == CUDA_SUCCESS && bytes != NULL) {
        struct hami_view view = {.total_bytes = *bytes};
        narrow_total(&view, ordinal);
        *bytes = view.total_bytes;
    }
    return result;
}

HAMI_EXPORT CUresult cuDeviceTotalMem(unsigned int *bytes, CUdevice ordinal)
{
    const CUresult result = HAMI_CUDA(cuDeviceTotalMem, bytes, ordinal);
    if (result == CUDA_SUCCESS && bytes != NULL) {
        struct hami_view view = {.total_bytes = *bytes};
        narrow_total(&view, ordinal);
        *bytes = (unsigned int)least(view.total_bytes, UINT32_MAX);
    }
    return result;
}
