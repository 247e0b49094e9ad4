/* sim_device.c: initialisation, what the devices are, errors by name. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "sim_graph_memory.h"

static unsigned visible[SIM_GPUS];
static int visible_count;
static _Atomic bool initialised;

int sim_gpu_of(CUdevice ordinal)
{
    return ordinal >= 0 && ordinal < visible_count ? (int)visible[ordinal] : -1;
}

CUdevice sim_ordinal_of(unsigned gpu)
{
    for (CUdevice ordinal = 0; sim_gpu_of(ordinal) >= 0; ordinal++)
        if (sim_gpu_of(ordinal) == (int)gpu)
            return ordinal;
    return -1;
}

CUresult sim_check_gpu(unsigned gpu)
{
    if (!atomic_load(&initialised))
        return CUDA_ERROR_NOT_INITIALIZED;
    return atomic_load(&sim_node()->gpus[gpu].lost) ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
}

/* The GPU record of a device, or NULL with the reason in *result. */
static const struct sim_gpu *look_up(CUdevice device, CUresult *result)
{
    const int gpu = sim_gpu_of(device);
    *result = CUDA_SUCCESS;
    if (!atomic_load(&initialised))
        *result = CUDA_ERROR_NOT_INITIALIZED;
    else if (gpu < 0)
        *result = CUDA_ERROR_INVALID_DEVICE;
    return *result == CUDA_SUCCESS ? &sim_node()->gpus[gpu] : NULL;
}

/* A child may start afresh; a real driver would refuse to serve it at all. */
static void after_fork_in_child(void)
{
    atomic_store(&initialised, false);
    sim_context_after_fork();
    sim_memory_after_fork();
    sim_pools_after_fork();
    sim_vmm_after_fork();
    sim_arrays_after_fork();
    sim_late_frees_after_fork();
    sim_graph_memory_after_fork();
    sim_host_after_fork();
    sim_capture_after_fork();
}

CUresult cuInit(unsigned int flags)
{
    static _Atomic int fork_handled;
    if (flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (sim_node() == NULL)
        return CUDA_ERROR_NO_DEVICE;
    if (atomic_load(&initialised))
        return CUDA_SUCCESS;
    visible_count = sim_visible_to_cuda(visible);
    if (visible_count == 0)
        return CUDA_ERROR_NO_DEVICE;
    if (atomic_exchange(&fork_handled, 1) == 0)
        pthread_atfork(NULL, NULL, after_fork_in_child);
    atomic_store(&initialised, true);
    return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version)
{
    if (version == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *version = sim_node() != NULL ? (int)sim_node()->cuda_version : 0;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count)
{
    if (!atomic_load(&initialised))
        return CUDA_ERROR_NOT_INITIALIZED;
    if (count == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *count = visible_count;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    CUresult result;
    if (look_up(ordinal, &result) != NULL)
        *device = ordinal;
    return result;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device)
{
    CUresult result;
    const struct sim_gpu *gpu = look_up(device, &result);
    if (gpu != NULL)
        snprintf(name, (size_t)length, "%s", gpu->name);
    return result;
}

static int hex(char digit)
{
    return digit <= '9' ? digit - '0' : digit - 'a' + 10;
}

CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
    CUresult result;
    const struct sim_gpu *gpu = look_up(device, &result);
    if (gpu == NULL)
        return result;
    int digits = 0;
    for (const char *text = gpu->uuid + strlen("GPU-"); *text != '\0' && digits < 32; text++) {
        if (*text == '-')
            continue;
        char *byte = &uuid->bytes[digits / 2];
        *byte = (char)(digits % 2 == 0 ? hex(*text) << 4 : *byte | hex(*text));
        digits++;
    }
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device)
{
    return cuDeviceGetUuid_v2(uuid, device);
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    CUresult result;
    const struct sim_gpu *gpu = look_up(device, &result);
    if (gpu != NULL)
        *bytes = gpu->memory_bytes - gpu->reserved_bytes;
    return result;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device)
{
    CUresult result;
    const struct sim_gpu *gpu = look_up(device, &result);
    if (gpu == NULL)
        return result;
    switch (attribute) {
    case 1: /* threads a block */
    case 2: /* block x */
    case 3: /* block y */
        *value = 1024;
        return CUDA_SUCCESS;
    case 4: /* block z */
        *value = 64;
        return CUDA_SUCCESS;
    case 5: /* grid x */
        *value = 0x7fffffff;
        return CUDA_SUCCESS;
    case 6: /* grid y */
    case 7: /* grid z */
        *value = 65535;
        return CUDA_SUCCESS;
    case 10: /* warp */
        *value = 32;
        return CUDA_SUCCESS;
    case 14: /* texture alignment */
        *value = 512;
        return CUDA_SUCCESS;
    case 16:
        *value = (int)gpu->multiprocessors;
        return CUDA_SUCCESS;
    case 33:
        *value = (int)gpu->pci_bus;
        return CUDA_SUCCESS;
    case 34:
        *value = (int)gpu->pci_device;
        return CUDA_SUCCESS;
    case 39:
        *value = (int)gpu->threads_per_multiprocessor;
        return CUDA_SUCCESS;
    case 41: /* unified addressing */
    case 83: /* managed memory */
        *value = 1;
        return CUDA_SUCCESS;
    case 50:
        *value = (int)gpu->pci_domain;
        return CUDA_SUCCESS;
    case 75:
        *value = (int)gpu->capability_major;
        return CUDA_SUCCESS;
    case 76:
        *value = (int)gpu->capability_minor;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult cuDeviceGetPCIBusId(char *text, int length, CUdevice device)
{
    CUresult result;
    const struct sim_gpu *gpu = look_up(device, &result);
    if (gpu != NULL)
        snprintf(text, (size_t)length, "%s", gpu->bus_id);
    return result;
}

CUresult cuDeviceGetByPCIBusId(CUdevice *device, const char *text)
{
    if (!atomic_load(&initialised))
        return CUDA_ERROR_NOT_INITIALIZED;
    for (int ordinal = 0; ordinal < visible_count; ordinal++)
        if (strcmp(sim_node()->gpus[visible[ordinal]].bus_id, text) == 0) {
            *device = ordinal;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_DEVICE;
}

static const struct {
    CUresult error;
    const char *name;
    const char *text;
} errors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_FILE_NOT_FOUND, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE",
     "too many blocks in cooperative launch"},
    {CUDA_ERROR_NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED",
     "operation not permitted"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED",
     "operation not supported"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {CUDA_ERROR_STREAM_CAPTURE_MERGE, "CUDA_ERROR_STREAM_CAPTURE_MERGE",
     "operation would result in a merge of separate capture sequences"},
    {CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
     "capture was not ended in the same stream as it began"},
    {CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
     "capturing stream has unjoined work"},
    {CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
    {CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {CUDA_ERROR_CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
    {CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE, "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE",
     "the graph update was not performed because it included changes which violated constraints specific to instantiated graph update"},
};

CUresult cuGetErrorName(CUresult error, const char **text)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].error == error) {
            *text = errors[i].name;
            return CUDA_SUCCESS;
        }
    *text = NULL;
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].error == error) {
            *text = errors[i].text;
            return CUDA_SUCCESS;
        }
    *text = NULL;
    return CUDA_ERROR_INVALID_VALUE;
}
