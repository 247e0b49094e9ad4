/* sim_array.c: arrays, mipmapped arrays, and memory that another interface has allocated.
 *
 * They take device memory and have no contents: copies from and to them are refused. An array lies in
 * tiles of 128 bytes and 8 rows and begins a step of 64 KiB, so that its size is not what the
 * description alone would say.
 */
#define _GNU_SOURCE
#include "sim_array.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sim_memory.h"

#define TILE_BYTES 128
#define TILE_ROWS 8
#define STEP_BYTES (UINT64_C(64) << 10)
#define MOST_BYTES (UINT64_C(1) << 46)

enum { LAYERED = 0x01, CUBEMAP = 0x04, SPARSE = 0x40, DEFERRED = 0x80 };
enum { OPAQUE_FD = 1, DMABUF_FD = 9 };

struct sim_array {
    enum { ARRAY, MIPMAP, EXTERNAL } kind;
    CUDA_ARRAY3D_DESCRIPTOR described;
    CUcontext context;
    uint64_t required; /* what it takes, or would take */
    uint64_t bytes;    /* what it has taken */
    struct sim_array *next;
};

static pthread_mutex_t arrays_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sim_array *arrays;

void sim_arrays_after_fork(void)
{
    pthread_mutex_init(&arrays_lock, NULL);
    arrays = NULL;
}

static unsigned bytes_of_format(int format)
{
    switch (format) {
    case 0x01: case 0x08: return 1;
    case 0x02: case 0x09: case 0x10: return 2;
    case 0x03: case 0x0a: case 0x20: return 4;
    default: return 0;
    }
}

static bool is_valid(const CUDA_ARRAY3D_DESCRIPTOR *described)
{
    return described != NULL && described->Width != 0 && bytes_of_format(described->Format) != 0 &&
           (described->NumChannels == 1 || described->NumChannels == 2 || described->NumChannels == 4) &&
           described->Width < UINT32_MAX && described->Height < UINT32_MAX && described->Depth < UINT32_MAX;
}

static uint64_t at_least_1(uint64_t value)
{
    return value != 0 ? value : 1;
}

/* Of one level. */
static uint64_t level_bytes(const CUDA_ARRAY3D_DESCRIPTOR *described, unsigned level)
{
    const bool layered = (described->Flags & (LAYERED | CUBEMAP)) != 0;
    const uint64_t element = bytes_of_format(described->Format) * described->NumChannels;
    const uint64_t row = sim_round_up(at_least_1(described->Width >> level) * element, TILE_BYTES);
    const uint64_t rows = sim_round_up(at_least_1(described->Height >> level), TILE_ROWS);
    const uint64_t depth = at_least_1(layered ? described->Depth : described->Depth >> level);
    uint64_t bytes;
    if (__builtin_mul_overflow(row, rows, &bytes) || __builtin_mul_overflow(bytes, depth, &bytes))
        return MOST_BYTES;
    return bytes < MOST_BYTES ? bytes : MOST_BYTES;
}

static CUresult add(struct sim_array **handle, const struct sim_array *content, bool takes)
{
    struct sim_array *fresh = malloc(sizeof *fresh);
    if (fresh == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *fresh = *content;
    fresh->bytes = takes ? content->required : 0;
    sim_late_frees_run(NULL);
    if (fresh->bytes >= MOST_BYTES || !sim_node_take(content->context->gpu, fresh->bytes)) {
        free(fresh);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    pthread_mutex_lock(&arrays_lock);
    fresh->next = arrays;
    arrays = fresh;
    pthread_mutex_unlock(&arrays_lock);
    *handle = fresh;
    return CUDA_SUCCESS;
}

static CUresult create(struct sim_array **handle, const CUDA_ARRAY3D_DESCRIPTOR *described, int kind,
                       unsigned levels)
{
    struct sim_array fresh = {.kind = kind};
    CUresult result = sim_current(&fresh.context);
    if (result == CUDA_SUCCESS)
        result = sim_check_unsafe_call();
    if (result != CUDA_SUCCESS)
        return result;
    if (handle == NULL || !is_valid(described) || levels == 0 || levels > 32)
        return CUDA_ERROR_INVALID_VALUE;
    fresh.described = *described;
    for (unsigned level = 0; level < levels; level++)
        fresh.required += level_bytes(described, level);
    fresh.required = sim_round_up(fresh.required, STEP_BYTES);
    return add(handle, &fresh, (described->Flags & (SPARSE | DEFERRED)) == 0);
}

/* The link to a handle's record, with the lock held. NULL: there is none of that kind. */
static struct sim_array **find(const struct sim_array *handle, int kind)
{
    struct sim_array **link = &arrays;
    while (*link != NULL && *link != handle)
        link = &(*link)->next;
    return *link != NULL && (*link)->kind == (unsigned)kind ? link : NULL;
}

static void release(struct sim_array *array)
{
    sim_node_give(array->context->gpu, array->bytes);
    free(array);
}

static CUresult destroy(const struct sim_array *handle, int kind)
{
    CUcontext context;
    CUresult result = sim_current(&context);
    if (result == CUDA_SUCCESS)
        result = sim_check_unsafe_call();
    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&arrays_lock);
    struct sim_array **link = find(handle, kind);
    struct sim_array *gone = link != NULL ? *link : NULL;
    if (gone != NULL)
        *link = gone->next;
    pthread_mutex_unlock(&arrays_lock);
    if (gone == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    release(gone);
    return CUDA_SUCCESS;
}

void sim_arrays_drop(CUcontext context)
{
    pthread_mutex_lock(&arrays_lock);
    for (struct sim_array **link = &arrays; *link != NULL;) {
        struct sim_array *array = *link;
        if (array->context != context) {
            link = &array->next;
            continue;
        }
        *link = array->next;
        release(array);
    }
    pthread_mutex_unlock(&arrays_lock);
}

CUresult cuArrayCreate_v2(CUarray *handle, const CUDA_ARRAY_DESCRIPTOR *described)
{
    if (described == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    const CUDA_ARRAY3D_DESCRIPTOR solid = {described->Width, described->Height, 0, described->Format,
                                           described->NumChannels, 0};
    return create(handle, &solid, ARRAY, 1);
}

CUresult cuArray3DCreate_v2(CUarray *handle, const CUDA_ARRAY3D_DESCRIPTOR *described)
{
    return create(handle, described, ARRAY, 1);
}

CUresult cuMipmappedArrayCreate(CUmipmappedArray *handle, const CUDA_ARRAY3D_DESCRIPTOR *described,
                                unsigned int levels)
{
    return create(handle, described, MIPMAP, levels);
}

CUresult cuArrayDestroy(CUarray handle)
{
    return destroy(handle, ARRAY);
}

CUresult cuMipmappedArrayDestroy(CUmipmappedArray handle)
{
    return destroy(handle, MIPMAP);
}

CUresult cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR *described, CUarray handle)
{
    pthread_mutex_lock(&arrays_lock);
    struct sim_array **link = described != NULL ? find(handle, ARRAY) : NULL;
    if (link != NULL)
        *described = (*link)->described;
    pthread_mutex_unlock(&arrays_lock);
    return link != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* Only an array whose memory is mapped later tells what it will need. */
static CUresult requirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *required, const struct sim_array *handle, int kind,
                             CUdevice device)
{
    if (required == NULL || sim_gpu_of(device) < 0)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&arrays_lock);
    struct sim_array **link = find(handle, kind);
    const bool told = link != NULL && ((*link)->described.Flags & DEFERRED) != 0;
    if (told)
        *required = (CUDA_ARRAY_MEMORY_REQUIREMENTS){.size = (*link)->required, .alignment = STEP_BYTES};
    pthread_mutex_unlock(&arrays_lock);
    return told ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *required, CUarray handle, CUdevice device)
{
    return requirements(required, handle, ARRAY, device);
}

CUresult cuMipmappedArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *required,
                                               CUmipmappedArray handle, CUdevice device)
{
    return requirements(required, handle, MIPMAP, device);
}

/* The file stands for what another interface has allocated: importing is what takes it here, since
 * nobody else does. */
CUresult cuImportExternalMemory(CUexternalMemory *handle, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *wanted)
{
    struct stat status;
    struct sim_array fresh = {.kind = EXTERNAL};
    const CUresult result = sim_current(&fresh.context);
    if (result != CUDA_SUCCESS)
        return result;
    if (handle == NULL || wanted == NULL || wanted->size == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (wanted->type != OPAQUE_FD && wanted->type != DMABUF_FD)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (fstat(wanted->handle.fd, &status) != 0 || (uint64_t)status.st_size < wanted->size)
        return CUDA_ERROR_INVALID_HANDLE;
    fresh.required = sim_round_up(wanted->size, STEP_BYTES);
    const CUresult added = add(handle, &fresh, true);
    if (added == CUDA_SUCCESS && wanted->type == OPAQUE_FD)
        close(wanted->handle.fd); /* it is the driver's from now on */
    return added;
}

CUresult cuDestroyExternalMemory(CUexternalMemory handle)
{
    return destroy(handle, EXTERNAL);
}
