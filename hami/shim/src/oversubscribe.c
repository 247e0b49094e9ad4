/* oversubscribe.c: where the driver has no device memory left, but the container's limit has, managed
 * memory is given instead: slower, but it runs. Only where the agent allows it.
 *
 * The container's priority says whose memory gives way. That of priority 0 prefers the device and is
 * brought there as far as there is room. That of all others prefers the host: the device reads it over
 * the bus, and it takes no device memory away from anybody.
 */
#include "oversubscribe.h"

#include "capture.h"
#include "hooks.h"
#include "shim.h"

#define MARGIN_BYTES (UINT64_C(64) << 20) /* of free memory that a prefetch leaves alone */
#define BLOCK_BYTES (UINT64_C(2) << 20)

enum { ATTACH_GLOBAL = 1 };
enum { SET_PREFERRED_LOCATION = 3, SET_ACCESSED_BY = 5 };
enum { HOST = -1 };

bool hami_may_oversubscribe(void)
{
    return (hami_region()->control->flags & HAMI_FLAG_OVERSUBSCRIBE) != 0;
}

/* What fails is advice that is not taken: the memory is as good as without. */
static void advise(CUdeviceptr address, uint64_t bytes, int advice, CUdevice device)
{
    const CUmemLocation location = device == HOST
                                       ? (CUmemLocation){CU_MEM_LOCATION_TYPE_HOST, 0}
                                       : (CUmemLocation){CU_MEM_LOCATION_TYPE_DEVICE, device};
    if (HAMI_REAL(cuMemAdvise) != NULL)
        HAMI_REAL(cuMemAdvise)(address, bytes, advice, device);
    else
        HAMI_CUDA(cuMemAdvise_v2, address, bytes, advice, location);
}

/* On a stream that nobody else waits for; not while anything is captured. */
static void prefetch(CUdeviceptr address, uint64_t bytes, CUdevice ordinal)
{
    size_t free_bytes = 0, total = 0;
    if (HAMI_CUDA(cuMemGetInfo_v2, &free_bytes, &total) != CUDA_SUCCESS || free_bytes <= MARGIN_BYTES)
        return;
    const uint64_t room = (free_bytes - MARGIN_BYTES) / BLOCK_BYTES * BLOCK_BYTES;
    if (room != 0 && !hami_capture_is_active())
        HAMI_CUDA(cuMemPrefetchAsync, address, bytes < room ? bytes : room, ordinal,
                  HAMI_PER_THREAD_STREAM);
}

CUresult hami_allocate_managed(CUdeviceptr *address, uint64_t bytes, CUdevice ordinal)
{
    const bool first = atomic_load(&hami_region()->control->priority) == 0;
    if (HAMI_CUDA(cuMemAllocManaged, address, bytes, ATTACH_GLOBAL) != CUDA_SUCCESS)
        return CUDA_ERROR_OUT_OF_MEMORY;
    advise(*address, bytes, SET_PREFERRED_LOCATION, first ? ordinal : HOST);
    advise(*address, bytes, SET_ACCESSED_BY, ordinal);
    if (first)
        prefetch(*address, bytes, ordinal);
    return CUDA_SUCCESS;
}
