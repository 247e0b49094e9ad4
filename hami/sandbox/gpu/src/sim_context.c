/* sim_context.c: primary contexts with reference counts, own contexts, each thread's stack of them. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "sim_cuda.h"
#include "sim_timeline.h"

#define DEPTH 32
#define CONTEXTS 1024

static pthread_mutex_t contexts_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sim_context primaries[SIM_GPUS];
static CUcontext created[CONTEXTS]; /* handles are checked against it: stale ones are an error */
static _Thread_local CUcontext stack[DEPTH];
static _Thread_local int depth;

void sim_context_after_fork(void)
{
    pthread_mutex_init(&contexts_lock, NULL);
    memset(primaries, 0, sizeof primaries);
    memset(created, 0, sizeof created);
    depth = 0;
}

static bool is_alive(CUcontext context)
{
    if (context >= primaries && context < primaries + SIM_GPUS)
        return context->references > 0;
    for (int i = 0; i < CONTEXTS; i++)
        if (created[i] == context)
            return context != NULL;
    return false;
}

CUresult sim_current(CUcontext *context)
{
    if (depth == 0 || stack[depth - 1] == NULL)
        return CUDA_ERROR_INVALID_CONTEXT;
    *context = stack[depth - 1];
    const bool primary = *context >= primaries && *context < primaries + SIM_GPUS;
    if (primary && (*context)->references == 0)
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (!primary && !is_alive(*context))
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    const CUresult result = sim_check_gpu((*context)->gpu);
    return result == CUDA_SUCCESS ? sim_context_error(*context) : result;
}

CUresult sim_context_error(CUcontext context)
{
    const uint64_t tag = atomic_load(&context->crash_tag);
    if (tag == 0 || !sim_timeline_reached(context->gpu, tag))
        return CUDA_SUCCESS;
    return atomic_load(&context->crash_error);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    const int gpu = sim_gpu_of(device);
    if (gpu < 0)
        return CUDA_ERROR_INVALID_DEVICE;
    CUresult result = sim_check_gpu((unsigned)gpu);
    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&contexts_lock);
    struct sim_context *primary = &primaries[gpu];
    if (primary->references == 0 && !sim_node_take((unsigned)gpu, sim_node()->context_bytes)) {
        result = CUDA_ERROR_OUT_OF_MEMORY;
    } else {
        if (primary->references == 0) {
            primary->gpu = (unsigned)gpu;
            primary->ordinal = device;
        }
        primary->references++;
        *context = primary;
    }
    pthread_mutex_unlock(&contexts_lock);
    return result;
}

static CUresult drop_primary(CUdevice device, bool all)
{
    const int gpu = sim_gpu_of(device);
    if (gpu < 0)
        return CUDA_ERROR_INVALID_DEVICE;
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&contexts_lock);
    struct sim_context *primary = &primaries[gpu];
    if (primary->references == 0) {
        result = all ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
    } else if (all || --primary->references == 0) {
        sim_free_context_memory(primary);
        atomic_store(&primary->crash_tag, 0);
        if (primary->references == 0) /* a reset keeps the references of its holders */
            sim_node_give((unsigned)gpu, sim_node()->context_bytes);
    }
    pthread_mutex_unlock(&contexts_lock);
    return result;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
    return drop_primary(device, false);
}

CUresult cuDevicePrimaryCtxReset_v2(CUdevice device)
{
    return drop_primary(device, true);
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active)
{
    const int gpu = sim_gpu_of(device);
    if (gpu < 0)
        return CUDA_ERROR_INVALID_DEVICE;
    *flags = 0;
    *active = primaries[gpu].references > 0;
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent_v2(CUcontext context)
{
    if (!is_alive(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (depth == DEPTH)
        return CUDA_ERROR_INVALID_VALUE;
    stack[depth++] = context;
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext *context)
{
    if (depth == 0)
        return CUDA_ERROR_INVALID_CONTEXT;
    depth--;
    if (context != NULL)
        *context = stack[depth];
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context)
{
    if (context != NULL && !is_alive(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (depth == 0)
        depth = 1;
    stack[depth - 1] = context;
    if (context == NULL)
        depth--;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context)
{
    *context = depth > 0 ? stack[depth - 1] : NULL;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device)
{
    CUcontext context;
    const CUresult result = sim_current(&context);
    if (result == CUDA_SUCCESS)
        *device = context->ordinal;
    return result;
}

CUresult cuCtxCreate_v2(CUcontext *context, unsigned int flags, CUdevice device)
{
    const int gpu = sim_gpu_of(device);
    (void)flags; /* scheduling hints */
    if (gpu < 0)
        return CUDA_ERROR_INVALID_DEVICE;
    const CUresult result = sim_check_gpu((unsigned)gpu);
    if (result != CUDA_SUCCESS)
        return result;
    if (!sim_node_take((unsigned)gpu, sim_node()->context_bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct sim_context *fresh = malloc(sizeof *fresh);
    int place = -1;
    pthread_mutex_lock(&contexts_lock);
    for (int i = 0; fresh != NULL && i < CONTEXTS && place < 0; i++)
        if (created[i] == NULL) {
            *fresh = (struct sim_context){.gpu = (unsigned)gpu, .ordinal = device, .references = 1};
            created[i] = fresh;
            place = i;
        }
    pthread_mutex_unlock(&contexts_lock);
    if (place < 0) {
        free(fresh);
        sim_node_give((unsigned)gpu, sim_node()->context_bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *context = fresh;
    return cuCtxPushCurrent_v2(fresh);
}

CUresult cuCtxCreate_v3(CUcontext *context, void *affinity, int count, unsigned int flags, CUdevice device)
{
    if (affinity != NULL || count != 0) /* execution affinity is MPS's */
        return CUDA_ERROR_NOT_SUPPORTED;
    return cuCtxCreate_v2(context, flags, device);
}

CUresult cuCtxCreate_v4(CUcontext *context, void *wanted, unsigned int flags, CUdevice device)
{
    if (wanted != NULL)
        return CUDA_ERROR_NOT_SUPPORTED;
    return cuCtxCreate_v2(context, flags, device);
}

CUresult cuCtxDestroy_v2(CUcontext context)
{
    bool found = false;
    pthread_mutex_lock(&contexts_lock);
    for (int i = 0; context != NULL && i < CONTEXTS; i++)
        if (created[i] == context) {
            created[i] = NULL;
            found = true;
        }
    pthread_mutex_unlock(&contexts_lock);
    if (!found)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (depth > 0 && stack[depth - 1] == context)
        depth--;
    sim_free_context_memory(context);
    sim_node_give(context->gpu, sim_node()->context_bytes);
    free(context->legacy);
    free(context);
    return CUDA_SUCCESS;
}
