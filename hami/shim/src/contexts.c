/* contexts.c: a context takes its memory with it. Discharge what was charged to a destroyed one.
 *
 * The entries are out of the table while the driver works: should another thread get an address of
 * the dying context anew, its entry is not among them. If the context lives on they are put back.
 */
#include "capture.h"
#include "hooks.h"
#include "late_frees.h"
#include "limits.h"
#include "pointers.h"
#include "pools.h"
#include "samples.h"
#include "shim.h"

#include <stdlib.h>

struct taken {
    struct hami_pointer *pointers;
    size_t count;
    size_t capacity;
    struct hami_late_free *late;
};

/* No memory to hold an entry: leave it charged. Too much is safe, too little is not. */
static void hold(const struct hami_pointer *pointer, void *argument)
{
    struct taken *taken = argument;
    if (taken->count == taken->capacity) {
        const size_t capacity = taken->capacity != 0 ? taken->capacity * 2 : 64;
        struct hami_pointer *grown = realloc(taken->pointers, capacity * sizeof *grown);
        if (grown == NULL)
            return;
        taken->pointers = grown;
        taken->capacity = capacity;
    }
    taken->pointers[taken->count++] = *pointer;
}

static struct taken take(CUcontext context)
{
    struct taken taken = {.count = 0};
    if (context != NULL && hami_start() == HAMI_ENFORCING) {
        hami_pointers_take_context(context, hold, &taken);
        taken.late = hami_late_frees_take_context(context);
        hami_samples_forget_context(context);
        hami_capture_forget_context(context);
    }
    return taken;
}

static void settle(struct taken *taken, bool destroyed)
{
    struct hami_pointer stale;
    for (size_t i = 0; i < taken->count; i++)
        if (destroyed)
            hami_pointer_gone(&taken->pointers[i]);
        else
            hami_pointers_put(&taken->pointers[i], &stale);
    free(taken->pointers);
    hami_late_frees_finish_context(taken->late, destroyed);
    if (destroyed)
        hami_pools_measure();
}

static bool primary_is_active(CUdevice ordinal)
{
    unsigned int flags = 0;
    int active = 0;
    return HAMI_CUDA(cuDevicePrimaryCtxGetState, ordinal, &flags, &active) == CUDA_SUCCESS && active;
}

static CUresult release_primary(CUdevice ordinal)
{
    if (HAMI_REAL(cuDevicePrimaryCtxRelease_v2) != NULL)
        return HAMI_REAL(cuDevicePrimaryCtxRelease_v2)(ordinal);
    return HAMI_CUDA(cuDevicePrimaryCtxRelease, ordinal);
}

/* The handle of the device's primary context, without keeping it. NULL while it is not active. */
static CUcontext primary_of(CUdevice ordinal)
{
    CUcontext context = NULL;
    if (hami_start() != HAMI_ENFORCING || !primary_is_active(ordinal))
        return NULL;
    if (HAMI_CUDA(cuDevicePrimaryCtxRetain, &context, ordinal) != CUDA_SUCCESS)
        return NULL;
    release_primary(ordinal);
    return context;
}

HAMI_EXPORT CUresult cuCtxDestroy_v2(CUcontext context)
{
    struct taken taken = take(context);
    const CUresult result = HAMI_CUDA(cuCtxDestroy_v2, context);
    settle(&taken, result == CUDA_SUCCESS);
    return result;
}

HAMI_EXPORT CUresult cuCtxDestroy(CUcontext context)
{
    struct taken taken = take(context);
    const CUresult result = HAMI_CUDA(cuCtxDestroy, context);
    settle(&taken, result == CUDA_SUCCESS);
    return result;
}

HAMI_EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice ordinal)
{
    struct taken taken = take(primary_of(ordinal));
    const CUresult result = HAMI_CUDA(cuDevicePrimaryCtxRelease_v2, ordinal);
    settle(&taken, result == CUDA_SUCCESS && !primary_is_active(ordinal));
    return result;
}

HAMI_EXPORT CUresult cuDevicePrimaryCtxRelease(CUdevice ordinal)
{
    struct taken taken = take(primary_of(ordinal));
    const CUresult result = HAMI_CUDA(cuDevicePrimaryCtxRelease, ordinal);
    settle(&taken, result == CUDA_SUCCESS && !primary_is_active(ordinal));
    return result;
}

HAMI_EXPORT CUresult cuDevicePrimaryCtxReset_v2(CUdevice ordinal)
{
    struct taken taken = take(primary_of(ordinal));
    const CUresult result = HAMI_CUDA(cuDevicePrimaryCtxReset_v2, ordinal);
    settle(&taken, result == CUDA_SUCCESS);
    return result;
}

HAMI_EXPORT CUresult cuDevicePrimaryCtxReset(CUdevice ordinal)
{
    struct taken taken = take(primary_of(ordinal));
    const CUresult result = HAMI_CUDA(cuDevicePrimaryCtxReset, ordinal);
    settle(&taken, result == CUDA_SUCCESS);
    return result;
}
