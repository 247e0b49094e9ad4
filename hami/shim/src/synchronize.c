/* synchronize.c: after a program has waited, drivers let unused reserve go: measure what is left.
 *
 * One load, while the process has no pool and no graph with memory of its own.
 */
#include <stdatomic.h>

#include "hooks.h"
#include "pools.h"

static inline CUresult waited(CUresult result)
{
    if (__builtin_expect(atomic_load_explicit(&hami_pools_known, memory_order_relaxed) != 0, 0))
        hami_pools_measure();
    return result;
}

HAMI_EXPORT CUresult cuStreamSynchronize(CUstream stream)
{
    return waited(HAMI_CUDA(cuStreamSynchronize, stream));
}

HAMI_EXPORT CUresult cuStreamSynchronize_ptsz(CUstream stream)
{
    return waited(HAMI_CUDA(cuStreamSynchronize_ptsz, stream));
}

HAMI_EXPORT CUresult cuEventSynchronize(CUevent event)
{
    return waited(HAMI_CUDA(cuEventSynchronize, event));
}

HAMI_EXPORT CUresult cuCtxSynchronize(void)
{
    return waited(HAMI_CALL_REAL(cuCtxSynchronize, CUDA_ERROR_NOT_SUPPORTED));
}

HAMI_EXPORT CUresult cuCtxSynchronize_v2(CUcontext context)
{
    return waited(HAMI_CUDA(cuCtxSynchronize_v2, context));
}
