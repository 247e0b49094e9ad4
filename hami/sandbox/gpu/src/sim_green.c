/* sim_green.c: green contexts: contexts that have some of a device's multiprocessors.
 *
 * Kernels in them have fewer blocks at once, and so more waves. Like all work of a process they run
 * one after the other, those of other green contexts included.
 */
#define _GNU_SOURCE
#include <stdlib.h>

#include "sim_stream.h"

#define TYPE_SM 1
#define SMALLEST 8 /* multiprocessors that belong together, as on current devices */

struct sim_resource_desc {
    unsigned multiprocessors;
};

struct sim_green {
    CUcontext context;
};

static CUdevResource resource_of(unsigned multiprocessors)
{
    return (CUdevResource){.type = TYPE_SM, .sm = {multiprocessors, SMALLEST, SMALLEST, 0}};
}

CUresult cuDeviceGetDevResource(CUdevice device, CUdevResource *resource, int type)
{
    const int gpu = sim_gpu_of(device);
    if (gpu < 0)
        return CUDA_ERROR_INVALID_DEVICE;
    if (resource == NULL || type != TYPE_SM)
        return CUDA_ERROR_INVALID_VALUE;
    *resource = resource_of(sim_node()->gpus[gpu].multiprocessors);
    return CUDA_SUCCESS;
}

CUresult cuDevSmResourceSplitByCount(CUdevResource *result, unsigned int *groups, const CUdevResource *input,
                                     CUdevResource *remainder, unsigned int flags, unsigned int least)
{
    (void)flags;
    if (groups == NULL || input == NULL || input->type != TYPE_SM)
        return CUDA_ERROR_INVALID_VALUE;
    const unsigned each = least > SMALLEST ? (least + SMALLEST - 1) / SMALLEST * SMALLEST : SMALLEST;
    const unsigned possible = input->sm.smCount / each;
    if (possible == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (result == NULL) {
        *groups = possible;
        return CUDA_SUCCESS;
    }
    *groups = *groups < possible ? *groups : possible;
    for (unsigned i = 0; i < *groups; i++)
        result[i] = resource_of(each);
    if (remainder != NULL)
        *remainder = resource_of(input->sm.smCount - *groups * each);
    return CUDA_SUCCESS;
}

CUresult cuDevResourceGenerateDesc(CUdevResourceDesc *desc, CUdevResource *resources, unsigned int count)
{
    unsigned sum = 0;
    for (unsigned i = 0; resources != NULL && i < count; i++)
        sum += resources[i].type == TYPE_SM ? resources[i].sm.smCount : 0;
    if (desc == NULL || sum == 0)
        return CUDA_ERROR_INVALID_VALUE;
    *desc = malloc(sizeof **desc);
    if (*desc == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    (*desc)->multiprocessors = sum;
    return CUDA_SUCCESS;
}

/* The context is one of its own, next to the primary one. */
CUresult cuGreenCtxCreate(CUgreenCtx *green, CUdevResourceDesc desc, CUdevice device, unsigned int flags)
{
    enum { DEFAULT_STREAM = 1 };
    if (green == NULL || desc == NULL || flags != DEFAULT_STREAM)
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_green *made = malloc(sizeof *made);
    if (made == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = cuCtxCreate_v2(&made->context, 0, device);
    if (result != CUDA_SUCCESS) {
        free(made);
        return result;
    }
    made->context->multiprocessors = desc->multiprocessors;
    *green = made;
    return cuCtxPopCurrent_v2(NULL);
}

CUresult cuGreenCtxDestroy(CUgreenCtx green)
{
    if (green == NULL)
        return CUDA_ERROR_INVALID_CONTEXT;
    const CUresult result = cuCtxDestroy_v2(green->context);
    free(green);
    return result;
}

CUresult cuCtxFromGreenCtx(CUcontext *context, CUgreenCtx green)
{
    if (context == NULL || green == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *context = green->context;
    return CUDA_SUCCESS;
}

CUresult cuGreenCtxGetDevResource(CUgreenCtx green, CUdevResource *resource, int type)
{
    if (green == NULL || resource == NULL || type != TYPE_SM)
        return CUDA_ERROR_INVALID_VALUE;
    *resource = resource_of(green->context->multiprocessors);
    return CUDA_SUCCESS;
}

CUresult cuGreenCtxStreamCreate(CUstream *stream, CUgreenCtx green, unsigned int flags, int priority)
{
    if (green == NULL || flags != STREAM_NON_BLOCKING)
        return CUDA_ERROR_INVALID_VALUE;
    return sim_stream_create_in(stream, green->context, flags, priority);
}
