/* green.c: the end of a green context, whose launches were timed like all others. */
#include "capture.h"
#include "hooks.h"
#include "samples.h"

HAMI_EXPORT CUresult cuGreenCtxDestroy(CUgreenCtx green)
{
    CUcontext context = NULL;
    if (hami_samples_are_used() && HAMI_CUDA(cuCtxFromGreenCtx, &context, green) == CUDA_SUCCESS) {
        hami_samples_forget_context(context);
        hami_capture_forget_context(context);
    }
    return HAMI_CUDA(cuGreenCtxDestroy, green);
}
