/* sim_managed_calls.c: managed memory as programs see it: allocation, advice, prefetch.
 *
 * Advice is kept for whole allocations: one that names a part of one means all of it.
 */
#define _GNU_SOURCE
#include "sim_managed.h"
#include "sim_memory.h"

enum { ATTACH_GLOBAL = 1, ATTACH_HOST = 2 };
enum { LOCATION_DEVICE = 1, LOCATION_HOST = 2 };
enum advice { SET_PREFERRED_LOCATION = 3, UNSET_PREFERRED_LOCATION = 4, ADVICE_LAST = 6 };

static enum sim_home home_of(const struct hami_pointer *pointer)
{
    return (enum sim_home)(pointer->bytes % SIM_SMALL_BYTES);
}

static uint64_t bytes_of(const struct hami_pointer *pointer)
{
    return pointer->bytes - home_of(pointer);
}

CUresult cuMemAllocManaged(CUdeviceptr *address, size_t bytes, unsigned int flags)
{
    CUcontext context;
    struct hami_pointer stale;
    CUresult result = sim_current(&context);
    if (result == CUDA_SUCCESS)
        result = sim_check_unsafe_call();
    if (result != CUDA_SUCCESS)
        return result;
    if (address == NULL || bytes == 0 || (flags != ATTACH_GLOBAL && flags != ATTACH_HOST))
        return CUDA_ERROR_INVALID_VALUE;
    if (bytes > UINT64_C(1) << 42)
        return CUDA_ERROR_OUT_OF_MEMORY; /* of the host */
    const uint64_t size = sim_round_up(bytes, SIM_SMALL_BYTES);
    const struct hami_pointer pointer = {sim_take_address(size), size + SIM_HOME_ANYWHERE,
                                         SIM_MANAGED_DEVICE + context->gpu, context};
    if (pointer.address == 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_managed_add(context->gpu, SIM_HOME_ANYWHERE, size);
    if (!hami_pointers_put(&pointer, &stale)) {
        sim_managed_release(&pointer);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *address = pointer.address;
    return CUDA_SUCCESS;
}

void sim_managed_release(const struct hami_pointer *pointer)
{
    sim_give_address(pointer->address, bytes_of(pointer));
    sim_managed_remove(pointer->device - SIM_MANAGED_DEVICE, home_of(pointer), bytes_of(pointer));
}

/* Take the entry of managed memory out. It has to be put back. */
static bool take(CUdeviceptr address, struct hami_pointer *pointer)
{
    struct hami_pointer stale;
    if (!hami_pointers_take(address, pointer))
        return false;
    if (pointer->device >= SIM_MANAGED_DEVICE && pointer->device < SIM_GRAPH_DEVICE)
        return true;
    hami_pointers_put(pointer, &stale);
    return false;
}

static CUresult advise(CUdeviceptr address, size_t bytes, int advice, CUmemLocation location)
{
    CUcontext context;
    struct hami_pointer pointer, stale;
    const CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (bytes == 0 || advice < 1 || advice > ADVICE_LAST)
        return CUDA_ERROR_INVALID_VALUE;
    if (location.type == LOCATION_DEVICE && sim_gpu_of(location.id) < 0)
        return CUDA_ERROR_INVALID_DEVICE;
    if (!take(address, &pointer))
        return CUDA_ERROR_INVALID_VALUE;
    enum sim_home home = home_of(&pointer);
    if (advice == SET_PREFERRED_LOCATION)
        home = location.type == LOCATION_DEVICE ? SIM_HOME_DEVICE : SIM_HOME_HOST;
    if (advice == UNSET_PREFERRED_LOCATION)
        home = SIM_HOME_ANYWHERE;
    sim_managed_change(pointer.device - SIM_MANAGED_DEVICE, home_of(&pointer), home, bytes_of(&pointer));
    pointer.bytes = bytes_of(&pointer) + home;
    hami_pointers_put(&pointer, &stale);
    return CUDA_SUCCESS;
}

static CUmemLocation location_of(CUdevice device)
{
    return device < 0 ? (CUmemLocation){LOCATION_HOST, 0} : (CUmemLocation){LOCATION_DEVICE, device};
}

CUresult cuMemAdvise(CUdeviceptr address, size_t bytes, int advice, CUdevice device)
{
    return advise(address, bytes, advice, location_of(device));
}

CUresult cuMemAdvise_v2(CUdeviceptr address, size_t bytes, int advice, CUmemLocation location)
{
    return advise(address, bytes, advice, location);
}

static CUresult prefetch(CUdeviceptr address, size_t bytes, CUmemLocation location)
{
    CUcontext context;
    struct hami_pointer pointer, stale;
    const CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    const int gpu = location.type == LOCATION_DEVICE ? sim_gpu_of(location.id) : -1;
    if (location.type == LOCATION_DEVICE && gpu < 0)
        return CUDA_ERROR_INVALID_DEVICE;
    if (bytes == 0 || !take(address, &pointer))
        return CUDA_ERROR_INVALID_VALUE;
    const unsigned own = pointer.device - SIM_MANAGED_DEVICE;
    const uint64_t most = bytes < bytes_of(&pointer) ? bytes : bytes_of(&pointer);
    sim_managed_prefetch(own, home_of(&pointer), most, gpu == (int)own);
    hami_pointers_put(&pointer, &stale);
    return CUDA_SUCCESS;
}

CUresult cuMemPrefetchAsync(CUdeviceptr address, size_t bytes, CUdevice device, CUstream stream)
{
    (void)stream;
    return prefetch(address, bytes, location_of(device));
}

CUresult cuMemPrefetchAsync_ptsz(CUdeviceptr address, size_t bytes, CUdevice device, CUstream stream)
{
    (void)stream;
    return prefetch(address, bytes, location_of(device));
}
