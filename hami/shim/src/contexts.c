/* contexts.c: a context takes memory itself, and takes with it what was charged to it.
 *
 * What it takes itself the agent has learnt from the driver and written into the control file. It is
 * announced before the driver makes the context, and stands in the table of pointers like the rest.
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

/* Into the table. Another thread may have activated the context meanwhile, and have been charged for it
 * as well: once is enough. Or it has freed the memory and been given the address anew: what it was
 * charged for that holds, not what was there before. */
static void enter(const struct hami_pointer *pointer)
{
    if (!hami_pointers_put_back(pointer))
        hami_pointer_gone(pointer);
}

/* `alive`: its memory is gone, but the context itself is not. */
static void settle(struct taken *taken, bool destroyed, bool alive)
{
    for (size_t i = 0; i < taken->count; i++)
        if (destroyed && !(alive && hami_pointer_is_context(&taken->pointers[i])))
            hami_pointer_gone(&taken->pointers[i]);
        else
            enter(&taken->pointers[i]);
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

struct charge {
    int device; /* region index; HAMI_UNLISTED: nothing is charged */
    uint64_t bytes;
};

/* Announce a context. Not CUDA_SUCCESS: give that to the program. */
static CUresult begin(struct charge *charge, CUdevice ordinal)
{
    *charge = (struct charge){.device = HAMI_UNLISTED};
    const int device = hami_start() == HAMI_ENFORCING ? hami_device_of_ordinal(ordinal) : HAMI_UNLISTED;
    if (device == HAMI_UNLISTED)
        return CUDA_SUCCESS;
    charge->bytes = atomic_load(&hami_region()->control->devices[device].context_bytes);
    if (charge->bytes == 0) /* not known yet; the agent will see what it takes */
        return CUDA_SUCCESS;
    if (hami_charge((unsigned)device, charge->bytes) != 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    charge->device = device;
    return CUDA_SUCCESS;
}

/* Where it cannot be remembered it stays charged. */
static CUresult finish(const struct charge *charge, CUresult result, const CUcontext *context)
{
    if (charge->device == HAMI_UNLISTED)
        return result;
    const unsigned device = (unsigned)charge->device;
    if (result != CUDA_SUCCESS) {
        hami_limits_withdraw(hami_region(), device, charge->bytes);
        return result;
    }
    const struct hami_pointer pointer = {(uint64_t)*context, charge->bytes, device, *context};
    hami_limits_commit(hami_region(), device, charge->bytes);
    hami_limits_note_context(hami_region(), device, charge->bytes);
    enter(&pointer); /* of a primary context two threads may have been the first */
    return CUDA_SUCCESS;
}

HAMI_EXPORT CUresult cuCtxCreate(CUcontext *context, unsigned int flags, CUdevice ordinal)
{
    struct charge charge;
    const CUresult result = begin(&charge, ordinal);
    if (result != CUDA_SUCCESS)
        return result;
    return finish(&charge, HAMI_CUDA(cuCtxCreate, context, flags, ordinal), context);
}

HAMI_EXPORT CUresult cuCtxCreate_v2(CUcontext *context, unsigned int flags, CUdevice ordinal)
{
    struct charge charge;
    const CUresult result = begin(&charge, ordinal);
    if (result != CUDA_SUCCESS)
        return result;
    return finish(&charge, HAMI_CUDA(cuCtxCreate_v2, context, flags, ordinal), context);
}

HAMI_EXPORT CUresult cuCtxCreate_v3(CUcontext *context, CUexecAffinityParam *affinity, int count,
                                    unsigned int flags, CUdevice ordinal)
{
    struct charge charge;
    const CUresult result = begin(&charge, ordinal);
    if (result != CUDA_SUCCESS)
        return result;
    return finish(&charge, HAMI_CUDA(cuCtxCreate_v3, context, affinity, count, flags, ordinal), context);
}

HAMI_EXPORT CUresult cuCtxCreate_v4(CUcontext *context, CUctxCreateParams *wanted, unsigned int flags,
                                    CUdevice ordinal)
{
    struct charge charge;
    const CUresult result = begin(&charge, ordinal);
    if (result != CUDA_SUCCESS)
        return result;
    return finish(&charge, HAMI_CUDA(cuCtxCreate_v4, context, wanted, flags, ordinal), context);
}

HAMI_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice ordinal)
{
    struct charge charge = {.device = HAMI_UNLISTED};
    CUresult result = CUDA_SUCCESS;
    if (hami_start() == HAMI_ENFORCING && !primary_is_active(ordinal))
        result = begin(&charge, ordinal);
    if (result != CUDA_SUCCESS)
        return result;
    return finish(&charge, HAMI_CUDA(cuDevicePrimaryCtxRetain, context, ordinal), context);
}

HAMI_EXPORT CUresult cuCtxDestroy_v2(CUcontext context)
{
    struct taken taken = take(context);
    const CUresult result = HAMI_CUDA(cuCtxDestroy_v2, context);
    settle(&taken, result == CUDA_SUCCESS, false);
    return result;
}

HAMI_EXPORT CUresult cuCtxDestroy(CUcontext context)
{
    struct taken taken = take(context);
    const CUresult result = HAMI_CUDA(cuCtxDestroy, context);
    settle(&taken, result == CUDA_SUCCESS, false);
    return result;
}

HAMI_EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice ordinal)
{
    struct taken taken = take(primary_of(ordinal));
    const CUresult result = HAMI_CUDA(cuDevicePrimaryCtxRelease_v2, ordinal);
    settle(&taken, result == CUDA_SUCCESS && !primary_is_active(ordinal), false);
    return result;
}

HAMI_EXPORT CUresult cuDevicePrimaryCtxRelease(CUdevice ordinal)
{
    struct taken taken = take(primary_of(ordinal));
    const CUresult result = HAMI_CUDA(cuDevicePrimaryCtxRelease, ordinal);
    settle(&taken, result == CUDA_SUCCESS && !primary_is_active(ordinal), false);
    return result;
}

HAMI_EXPORT CUresult cuDevicePrimaryCtxReset_v2(CUdevice ordinal)
{
    struct taken taken = take(primary_of(ordinal));
    const CUresult result = HAMI_CUDA(cuDevicePrimaryCtxReset_v2, ordinal);
    settle(&taken, result == CUDA_SUCCESS, primary_is_active(ordinal));
    return result;
}

HAMI_EXPORT CUresult cuDevicePrimaryCtxReset(CUdevice ordinal)
{
    struct taken taken = take(primary_of(ordinal));
    const CUresult result = HAMI_CUDA(cuDevicePrimaryCtxReset, ordinal);
    settle(&taken, result == CUDA_SUCCESS, primary_is_active(ordinal));
    return result;
}
