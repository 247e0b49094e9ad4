/* arrays.c: arrays, mipmapped arrays, and memory of other interfaces: known by a handle, charged like
 * any other allocation.
 *
 * How an array lies in memory is the driver's secret. It tells what one will take, if its memory is to
 * be mapped later: so an array of the same form without memory is made first, and asked. Drivers
 * before CUDA 11.6 do not tell; there it is estimated, and what is missing the agent will see.
 */
#include "hooks.h"
#include "memory.h"
#include "shim.h"

#define ROW_BYTES 512
#define ROWS 8
#define STEP_BYTES (UINT64_C(64) << 10)
#define MOST_LEVELS 32

/* Of one element and channel; of formats with channels of their own the most that any takes. */
static uint64_t element_bytes(const CUDA_ARRAY3D_DESCRIPTOR *wanted)
{
    switch (wanted->format) {
    case 0x01: /* unsigned and signed 8 bits */
    case 0x08:
        return wanted->channels;
    case 0x02: /* 16 bits, half */
    case 0x09:
    case 0x10:
        return UINT64_C(2) * wanted->channels;
    case 0x03: /* 32 bits, float */
    case 0x0a:
    case 0x20:
        return UINT64_C(4) * wanted->channels;
    default:
        return 8;
    }
}

static uint64_t at_least_1(uint64_t value)
{
    return value != 0 ? value : 1;
}

static uint64_t level_bytes(const CUDA_ARRAY3D_DESCRIPTOR *wanted, unsigned level)
{
    const bool layered = (wanted->flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP)) != 0;
    const uint64_t rows = (at_least_1(wanted->height >> level) + ROWS - 1) / ROWS * ROWS;
    const uint64_t depth = at_least_1(layered ? wanted->depth : wanted->depth >> level);
    uint64_t bytes;
    if (__builtin_mul_overflow(at_least_1(wanted->width >> level), element_bytes(wanted), &bytes) ||
        bytes > UINT64_MAX - ROW_BYTES ||
        __builtin_mul_overflow((bytes + ROW_BYTES - 1) / ROW_BYTES * ROW_BYTES, rows, &bytes) ||
        __builtin_mul_overflow(bytes, depth, &bytes))
        return UINT64_MAX;
    return bytes;
}

static uint64_t estimate(const CUDA_ARRAY3D_DESCRIPTOR *wanted, unsigned levels)
{
    uint64_t bytes = 0;
    for (unsigned level = 0; level < levels && level < MOST_LEVELS; level++)
        if (__builtin_add_overflow(bytes, level_bytes(wanted, level), &bytes))
            return UINT64_MAX;
    return bytes < UINT64_MAX - STEP_BYTES ? (bytes + STEP_BYTES - 1) / STEP_BYTES * STEP_BYTES : UINT64_MAX;
}

/* As the driver tells it. False: it does not. */
static bool ask_array(const CUDA_ARRAY3D_DESCRIPTOR *hollow, CUdevice ordinal,
                      CUDA_ARRAY_MEMORY_REQUIREMENTS *required)
{
    CUarray array = NULL;
    if (HAMI_CUDA(cuArray3DCreate_v2, &array, hollow) != CUDA_SUCCESS)
        return false;
    const CUresult result = HAMI_CUDA(cuArrayGetMemoryRequirements, required, array, ordinal);
    HAMI_CUDA(cuArrayDestroy, array);
    return result == CUDA_SUCCESS;
}

static bool ask_mipmap(const CUDA_ARRAY3D_DESCRIPTOR *hollow, unsigned levels, CUdevice ordinal,
                       CUDA_ARRAY_MEMORY_REQUIREMENTS *required)
{
    CUmipmappedArray array = NULL;
    if (HAMI_CUDA(cuMipmappedArrayCreate, &array, hollow, levels) != CUDA_SUCCESS)
        return false;
    const CUresult result = HAMI_CUDA(cuMipmappedArrayGetMemoryRequirements, required, array, ordinal);
    HAMI_CUDA(cuMipmappedArrayDestroy, array);
    return result == CUDA_SUCCESS;
}

/* What an array will take; `levels` is 0 for one that is no mipmap. */
static uint64_t bytes_of(const CUDA_ARRAY3D_DESCRIPTOR *wanted, unsigned levels)
{
    CUdevice ordinal = 0;
    CUDA_ARRAY_MEMORY_REQUIREMENTS required = {.bytes = 0};
    CUDA_ARRAY3D_DESCRIPTOR hollow = *wanted;
    if (hami_start() == HAMI_INERT || (wanted->flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING)) != 0)
        return 0; /* memory is mapped to it later, from cuMemCreate */
    hollow.flags |= CUDA_ARRAY3D_DEFERRED_MAPPING;
    const bool told = HAMI_REAL(cuArrayGetMemoryRequirements) != NULL &&
                      HAMI_CUDA(cuCtxGetDevice, &ordinal) == CUDA_SUCCESS &&
                      (levels == 0 ? ask_array(&hollow, ordinal, &required)
                                   : ask_mipmap(&hollow, levels, ordinal, &required));
    return told ? required.bytes : estimate(wanted, levels != 0 ? levels : 1);
}

static CUresult destroy_array(uint64_t key)
{
    return HAMI_CUDA(cuArrayDestroy, (CUarray)key);
}

static CUresult destroy_mipmap(uint64_t key)
{
    return HAMI_CUDA(cuMipmappedArrayDestroy, (CUmipmappedArray)key);
}

static CUresult destroy_external(uint64_t key)
{
    return HAMI_CUDA(cuDestroyExternalMemory, (CUexternalMemory)key);
}

static CUresult finish(const struct hami_allocation *charge, CUresult result, void *const *handle,
                       CUresult (*destroy)(uint64_t key))
{
    if (charge->bytes == 0) /* nothing to remember */
        return result;
    return hami_allocation_finish(charge, result, result == CUDA_SUCCESS ? (uint64_t)*handle : 0,
                                  charge->bytes, destroy);
}

HAMI_EXPORT CUresult cuArray3DCreate_v2(CUarray *handle, const CUDA_ARRAY3D_DESCRIPTOR *wanted)
{
    struct hami_allocation charge;
    const CUresult result = hami_allocation_begin(&charge, wanted != NULL ? bytes_of(wanted, 0) : 0);
    if (result != CUDA_SUCCESS)
        return result;
    return finish(&charge, HAMI_CUDA(cuArray3DCreate_v2, handle, wanted), handle, destroy_array);
}

HAMI_EXPORT CUresult cuArray3DCreate(CUarray *handle, const CUDA_ARRAY3D_DESCRIPTOR_v1 *wanted)
{
    struct hami_allocation charge;
    CUDA_ARRAY3D_DESCRIPTOR wide = {.width = 0};
    if (wanted != NULL)
        wide = (CUDA_ARRAY3D_DESCRIPTOR){wanted->width,  wanted->height,   wanted->depth,
                                         wanted->format, wanted->channels, wanted->flags};
    const CUresult result = hami_allocation_begin(&charge, wanted != NULL ? bytes_of(&wide, 0) : 0);
    if (result != CUDA_SUCCESS)
        return result;
    return finish(&charge, HAMI_CUDA(cuArray3DCreate, handle, wanted), handle, destroy_array);
}

HAMI_EXPORT CUresult cuArrayCreate_v2(CUarray *handle, const CUDA_ARRAY_DESCRIPTOR *wanted)
{
    struct hami_allocation charge;
    CUDA_ARRAY3D_DESCRIPTOR solid = {.width = 0};
    if (wanted != NULL)
        solid = (CUDA_ARRAY3D_DESCRIPTOR){wanted->width, wanted->height, 0, wanted->format, wanted->channels, 0};
    const CUresult result = hami_allocation_begin(&charge, wanted != NULL ? bytes_of(&solid, 0) : 0);
    if (result != CUDA_SUCCESS)
        return result;
    return finish(&charge, HAMI_CUDA(cuArrayCreate_v2, handle, wanted), handle, destroy_array);
}

HAMI_EXPORT CUresult cuArrayCreate(CUarray *handle, const CUDA_ARRAY_DESCRIPTOR_v1 *wanted)
{
    struct hami_allocation charge;
    CUDA_ARRAY3D_DESCRIPTOR solid = {.width = 0};
    if (wanted != NULL)
        solid = (CUDA_ARRAY3D_DESCRIPTOR){wanted->width, wanted->height, 0, wanted->format, wanted->channels, 0};
    const CUresult result = hami_allocation_begin(&charge, wanted != NULL ? bytes_of(&solid, 0) : 0);
    if (result != CUDA_SUCCESS)
        return result;
    return finish(&charge, HAMI_CUDA(cuArrayCreate, handle, wanted), handle, destroy_array);
}

HAMI_EXPORT CUresult cuMipmappedArrayCreate(CUmipmappedArray *handle, const CUDA_ARRAY3D_DESCRIPTOR *wanted,
                                            unsigned int levels)
{
    struct hami_allocation charge;
    const uint64_t bytes = wanted != NULL && levels != 0 ? bytes_of(wanted, levels) : 0;
    const CUresult result = hami_allocation_begin(&charge, bytes);
    if (result != CUDA_SUCCESS)
        return result;
    return finish(&charge, HAMI_CUDA(cuMipmappedArrayCreate, handle, wanted, levels), handle, destroy_mipmap);
}

/* Another interface has allocated it, where no hook is: it counts from here on. */
HAMI_EXPORT CUresult cuImportExternalMemory(CUexternalMemory *handle,
                                            const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *wanted)
{
    struct hami_allocation charge;
    const CUresult result = hami_allocation_begin(&charge, wanted != NULL ? wanted->bytes : 0);
    if (result != CUDA_SUCCESS)
        return result;
    return finish(&charge, HAMI_CUDA(cuImportExternalMemory, handle, wanted), handle, destroy_external);
}

static CUresult destroyed(void *handle, CUresult (*destroy)(uint64_t key))
{
    const struct hami_release release = hami_free_begin((uint64_t)handle);
    return hami_free_finish(&release, destroy((uint64_t)handle));
}

HAMI_EXPORT CUresult cuArrayDestroy(CUarray handle)
{
    return destroyed(handle, destroy_array);
}

HAMI_EXPORT CUresult cuMipmappedArrayDestroy(CUmipmappedArray handle)
{
    return destroyed(handle, destroy_mipmap);
}

HAMI_EXPORT CUresult cuDestroyExternalMemory(CUexternalMemory handle)
{
    return destroyed(handle, destroy_external);
}
