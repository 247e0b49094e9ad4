/* sim_pointer.c: what a device pointer is. Known are the beginnings of allocations. */
#define _GNU_SOURCE
#include "sim_vmm.h"

enum { MEMORY_TYPE_DEVICE = 2 };
enum attribute { CONTEXT = 1, MEMORY_TYPE = 2, DEVICE_POINTER = 3, IS_MANAGED = 8, DEVICE_ORDINAL = 9 };

/* The entry without taking it out of the table for longer than a moment. */
static bool find(CUdeviceptr address, struct hami_pointer *pointer)
{
    struct hami_pointer stale;
    return hami_pointers_take(address, pointer) && hami_pointers_put(pointer, &stale);
}

/* Mapped memory belongs to no context, and any address of it will do. */
static bool find_mapped(CUdeviceptr address, struct hami_pointer *pointer)
{
    *pointer = (struct hami_pointer){.address = address};
    return sim_vmm_gpu(address, &pointer->device);
}

CUresult cuPointerGetAttribute(void *data, int attribute, CUdeviceptr address)
{
    struct hami_pointer pointer;
    if (data == NULL || (!find(address, &pointer) && !find_mapped(address, &pointer)))
        return CUDA_ERROR_INVALID_VALUE;
    CUcontext context = pointer.context;
    switch (attribute) {
    case CONTEXT:
        *(CUcontext *)data = context;
        return CUDA_SUCCESS;
    case MEMORY_TYPE:
        *(int *)data = MEMORY_TYPE_DEVICE;
        return CUDA_SUCCESS;
    case DEVICE_POINTER:
        *(CUdeviceptr *)data = address;
        return CUDA_SUCCESS;
    case IS_MANAGED:
        *(int *)data = pointer.device >= SIM_MANAGED_DEVICE && pointer.device < SIM_GRAPH_DEVICE;
        return CUDA_SUCCESS;
    case DEVICE_ORDINAL:
        *(int *)data = context != NULL ? context->ordinal : sim_ordinal_of(pointer.device);
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_NOT_SUPPORTED;
    }
}
