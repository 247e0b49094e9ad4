/* memory.c: allocation and free. Charge, call the driver, commit or withdraw.
 *
 * The driver is the authority: it is always asked, and its code is what the program gets. Only
 * memory that does not fit is refused before, with the driver's own code for it.
 */
#include <errno.h>

#include "hooks.h"
#include "limits.h"
#include "memory.h"
#include "oversubscribe.h"
#include "pointers.h"
#include "pools.h"
#include "shim.h"

#define PITCH_ALIGNMENT 512 /* what drivers round a row up to; a coarser one is charged afterwards */

CUresult hami_allocation_begin(struct hami_allocation *charge, uint64_t bytes)
{
    const enum hami_attachment attachment = hami_start();
    CUdevice ordinal = 0;
    *charge = (struct hami_allocation){.device = HAMI_UNLISTED, .bytes = bytes};
    if (attachment == HAMI_INERT)
        return CUDA_SUCCESS;
    const CUresult result = HAMI_CUDA(cuCtxGetDevice, &ordinal);
    if (result != CUDA_SUCCESS)
        return result; /* no current context: the driver would refuse in the same words */
    if (attachment == HAMI_REFUSING)
        return CUDA_ERROR_OUT_OF_MEMORY;
    HAMI_CUDA(cuCtxGetCurrent, &charge->context);
    const int device = hami_device_of_ordinal(ordinal);
    if (device == HAMI_UNLISTED || hami_charge((unsigned)device, bytes) != 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    charge->device = device;
    charge->ordinal = ordinal;
    return CUDA_SUCCESS;
}

/* Whether device memory is short within the limit, and something else may take its place. */
static bool is_short(const struct hami_allocation *charge, CUresult result)
{
    return __builtin_expect(result == CUDA_ERROR_OUT_OF_MEMORY, 0) && charge->device != HAMI_UNLISTED &&
           hami_may_oversubscribe();
}

/* The memory does not fit after all, or could not be remembered: free it, and only then let its charge
 * of `announced` bytes go. What the driver does not take back stays charged. */
static CUresult give_back(const struct hami_allocation *charge, uint64_t key, uint64_t announced,
                          CUresult (*undo)(uint64_t key))
{
    if (undo(key) == CUDA_SUCCESS)
        hami_limits_withdraw(hami_region(), (unsigned)charge->device, announced);
    else
        hami_limits_commit(hami_region(), (unsigned)charge->device, announced);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult hami_allocation_finish(const struct hami_allocation *charge, CUresult result, uint64_t key,
                                uint64_t bytes, CUresult (*undo)(uint64_t key))
{
    struct hami_pointer stale;
    if (charge->device == HAMI_UNLISTED)
        return result;
    struct hami_region *region = hami_region();
    const unsigned device = (unsigned)charge->device;
    const uint64_t more = bytes > charge->bytes ? bytes - charge->bytes : 0;
    const struct hami_pointer pointer = {key, bytes, device, charge->context};
    if (result != CUDA_SUCCESS) {
        hami_limits_withdraw(region, device, charge->bytes);
        return result;
    }
    if (more != 0 && hami_limits_charge(region, device, more) != 0)
        return give_back(charge, key, charge->bytes, undo);
    if (!hami_pointers_put(&pointer, &stale))
        return give_back(charge, key, charge->bytes + more, undo);
    hami_limits_commit(region, device, bytes);
    if (charge->bytes + more != bytes)
        hami_limits_withdraw(region, device, charge->bytes + more - bytes);
    if (stale.address != 0) /* the driver gives the address anew, so its old memory is gone */
        hami_pointer_gone(&stale);
    return CUDA_SUCCESS;
}

static CUresult free_again(uint64_t address)
{
    return HAMI_CUDA(cuMemFree_v2, address);
}

static CUresult finish(const struct hami_allocation *charge, CUresult result, CUdeviceptr address,
                       uint64_t bytes)
{
    return hami_allocation_finish(charge, result, address, bytes, free_again);
}

static uint64_t pitched_bytes(uint64_t width, uint64_t height)
{
    uint64_t bytes;
    if (width > UINT64_MAX - PITCH_ALIGNMENT ||
        __builtin_mul_overflow((width + PITCH_ALIGNMENT - 1) / PITCH_ALIGNMENT * PITCH_ALIGNMENT,
                               height, &bytes))
        return UINT64_MAX;
    return bytes;
}

struct hami_release hami_free_begin(CUdeviceptr address)
{
    struct hami_release release = {.known = false};
    if (address != 0 && hami_start() == HAMI_ENFORCING)
        release.known = hami_pointers_take(address, &release.pointer);
    return release;
}

CUresult hami_free_finish(const struct hami_release *release, CUresult result)
{
    if (release->known && (result == CUDA_SUCCESS || !hami_pointers_put_back(&release->pointer)))
        hami_pointer_gone(&release->pointer);
    return result;
}

HAMI_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes)
{
    struct hami_allocation charge;
    CUresult result = hami_allocation_begin(&charge, bytes);
    if (result != CUDA_SUCCESS)
        return result;
    result = HAMI_CUDA(cuMemAlloc_v2, address, bytes);
    if (is_short(&charge, result) && hami_pools_relieve((unsigned)charge.device))
        result = HAMI_CUDA(cuMemAlloc_v2, address, bytes);
    if (is_short(&charge, result))
        result = hami_allocate_managed(address, bytes, charge.ordinal);
    return finish(&charge, result, result == CUDA_SUCCESS ? *address : 0, bytes);
}

HAMI_EXPORT CUresult cuMemAlloc(CUdeviceptr_v1 *address, unsigned int bytes)
{
    struct hami_allocation charge;
    CUresult result = hami_allocation_begin(&charge, bytes);
    if (result != CUDA_SUCCESS)
        return result;
    result = HAMI_CUDA(cuMemAlloc, address, bytes);
    return finish(&charge, result, result == CUDA_SUCCESS ? *address : 0, bytes);
}

HAMI_EXPORT CUresult cuMemAllocManaged(CUdeviceptr *address, size_t bytes, unsigned int flags)
{
    struct hami_allocation charge;
    CUresult result = hami_allocation_begin(&charge, bytes);
    if (result != CUDA_SUCCESS)
        return result;
    result = HAMI_CUDA(cuMemAllocManaged, address, bytes, flags);
    return finish(&charge, result, result == CUDA_SUCCESS ? *address : 0, bytes);
}

HAMI_EXPORT CUresult cuMemAllocPitch_v2(CUdeviceptr *address, size_t *pitch, size_t width,
                                        size_t height, unsigned int element)
{
    struct hami_allocation charge;
    CUresult result = hami_allocation_begin(&charge, pitched_bytes(width, height));
    if (result != CUDA_SUCCESS)
        return result;
    result = HAMI_CUDA(cuMemAllocPitch_v2, address, pitch, width, height, element);
    if (is_short(&charge, result)) {
        result = hami_allocate_managed(address, charge.bytes, charge.ordinal);
        *pitch = result == CUDA_SUCCESS ? charge.bytes / height : *pitch;
    }
    return finish(&charge, result, result == CUDA_SUCCESS ? *address : 0,
                  result == CUDA_SUCCESS ? (uint64_t)*pitch * height : 0);
}

HAMI_EXPORT CUresult cuMemAllocPitch(CUdeviceptr_v1 *address, unsigned int *pitch, unsigned int width,
                                     unsigned int height, unsigned int element)
{
    struct hami_allocation charge;
    CUresult result = hami_allocation_begin(&charge, pitched_bytes(width, height));
    if (result != CUDA_SUCCESS)
        return result;
    result = HAMI_CUDA(cuMemAllocPitch, address, pitch, width, height, element);
    return finish(&charge, result, result == CUDA_SUCCESS ? *address : 0,
                  result == CUDA_SUCCESS ? (uint64_t)*pitch * height : 0);
}

HAMI_EXPORT CUresult cuMemFree_v2(CUdeviceptr address)
{
    const struct hami_release release = hami_free_begin(address);
    return hami_free_finish(&release, HAMI_CUDA(cuMemFree_v2, address));
}

HAMI_EXPORT CUresult cuMemFree(CUdeviceptr_v1 address)
{
    const struct hami_release release = hami_free_begin(address);
    return hami_free_finish(&release, HAMI_CUDA(cuMemFree, address));
}
