/* sim_nvml.c: life-time, handles and what a device is. */
#define _GNU_SOURCE
#include "sim_nvml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct sim_handle {
    char unused;
};

static struct sim_handle handles[SIM_GPUS];
static unsigned visible[SIM_GPUS];
static int visible_count;
static _Atomic int references;

nvmlDevice_t sim_nvml_handle(unsigned gpu)
{
    return &handles[gpu];
}

nvmlReturn_t sim_nvml_gpu_even_if_lost(nvmlDevice_t device, unsigned *gpu)
{
    if (atomic_load(&references) == 0)
        return NVML_ERROR_UNINITIALIZED;
    const uint64_t delay = atomic_load(&sim_node()->nvml_delay_ns);
    if (delay != 0)
        sim_sleep_until(sim_now_ns() + delay);
    for (int i = 0; i < visible_count; i++)
        if (device == &handles[visible[i]]) {
            *gpu = visible[i];
            return NVML_SUCCESS;
        }
    return NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t sim_nvml_gpu(nvmlDevice_t device, unsigned *gpu)
{
    const nvmlReturn_t result = sim_nvml_gpu_even_if_lost(device, gpu);
    if (result == NVML_SUCCESS && atomic_load(&sim_node()->gpus[*gpu].lost))
        return NVML_ERROR_GPU_IS_LOST;
    return result;
}

/* Look the device up, or return why not from the calling function. */
#define GPU_OR_RETURN(device, gpu)                                                                 \
    unsigned gpu##_index = 0;                                                                      \
    do {                                                                                           \
        const nvmlReturn_t found = sim_nvml_gpu(device, &gpu##_index);                             \
        if (found != NVML_SUCCESS)                                                                 \
            return found;                                                                          \
    } while (0);                                                                                   \
    const struct sim_gpu *gpu = &sim_node()->gpus[gpu##_index]

static nvmlReturn_t copy_text(char *target, unsigned int length, const char *source)
{
    if (target == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (length < strlen(source) + 1)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(target, source, strlen(source) + 1);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    (void)flags; /* none changes what this library does */
    if (sim_node() == NULL)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    visible_count = sim_visible_to_container(visible);
    atomic_fetch_add(&references, 1);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

SIM_EXPORT nvmlReturn_t nvmlInit(void)
{
    return nvmlInitWithFlags(0);
}

SIM_EXPORT nvmlReturn_t nvmlShutdown(void)
{
    int count = atomic_load(&references);
    while (count > 0 && !atomic_compare_exchange_weak(&references, &count, count - 1))
        ;
    return count > 0 ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

SIM_EXPORT const char *nvmlErrorString(nvmlReturn_t result)
{
    switch (result) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case NVML_ERROR_TIMEOUT: return "Timeout";
    case NVML_ERROR_FUNCTION_NOT_FOUND: return "Function Not Found";
    case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
    case NVML_ERROR_MEMORY: return "Insufficient Memory";
    case NVML_ERROR_ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
    default: return "Unknown Error";
    }
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    return atomic_load(&references) == 0 ? NVML_ERROR_UNINITIALIZED
                                         : copy_text(version, length, sim_node()->driver_version);
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
    char text[48];
    if (atomic_load(&references) == 0)
        return NVML_ERROR_UNINITIALIZED;
    snprintf(text, sizeof text, "%u.%s", sim_node()->cuda_version / 1000, sim_node()->driver_version);
    return copy_text(version, length, text);
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    if (sim_node() == NULL || version == NULL)
        return version == NULL ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_DRIVER_NOT_LOADED;
    *version = (int)sim_node()->cuda_version;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
    return nvmlSystemGetCudaDriverVersion_v2(version);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
    if (atomic_load(&references) == 0)
        return NVML_ERROR_UNINITIALIZED;
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = (unsigned)visible_count;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCount(unsigned int *count)
{
    return nvmlDeviceGetCount_v2(count);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    if (atomic_load(&references) == 0)
        return NVML_ERROR_UNINITIALIZED;
    if (device == NULL || (int)index >= visible_count)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (atomic_load(&sim_node()->gpus[visible[index]].lost))
        return NVML_ERROR_GPU_IS_LOST;
    *device = &handles[visible[index]];
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device)
{
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

static nvmlReturn_t find_handle(nvmlDevice_t *device, const char *wanted, bool by_uuid)
{
    if (atomic_load(&references) == 0)
        return NVML_ERROR_UNINITIALIZED;
    if (device == NULL || wanted == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < visible_count; i++) {
        const struct sim_gpu *gpu = &sim_node()->gpus[visible[i]];
        char long_bus_id[32];
        snprintf(long_bus_id, sizeof long_bus_id, "0000%.16s", gpu->bus_id);
        if (by_uuid ? strcmp(gpu->uuid, wanted) == 0
                    : strcasecmp(gpu->bus_id, wanted) == 0 || strcasecmp(long_bus_id, wanted) == 0)
            return nvmlDeviceGetHandleByIndex_v2((unsigned)i, device);
    }
    return NVML_ERROR_NOT_FOUND;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    return find_handle(device, uuid, true);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device)
{
    return find_handle(device, bus_id, false);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
    unsigned gpu = 0;
    const nvmlReturn_t result = sim_nvml_gpu(device, &gpu);
    for (int i = 0; result == NVML_SUCCESS && i < visible_count; i++)
        if (visible[i] == gpu)
            *index = (unsigned)i;
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor)
{
    return sim_nvml_gpu(device, minor); /* /dev/nvidiaN counts the node's devices */
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    GPU_OR_RETURN(device, gpu);
    return copy_text(name, length, gpu->name);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    GPU_OR_RETURN(device, gpu);
    return copy_text(uuid, length, gpu->uuid);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    GPU_OR_RETURN(device, gpu);
    *pci = (nvmlPciInfo_t){
        .domain = gpu->pci_domain, .bus = gpu->pci_bus, .device = gpu->pci_device,
        .pciDeviceId = gpu->pci_device_id, .pciSubSystemId = gpu->pci_subsystem_id};
    memcpy(pci->busIdLegacy, gpu->bus_id, sizeof pci->busIdLegacy);
    snprintf(pci->busId, sizeof pci->busId, "0000%.16s", gpu->bus_id);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetNumaNodeId(nvmlDevice_t device, unsigned int *numa_node)
{
    GPU_OR_RETURN(device, gpu);
    if (gpu->numa_node < 0)
        return NVML_ERROR_NOT_SUPPORTED;
    *numa_node = (unsigned)gpu->numa_node;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t first, nvmlDevice_t second,
                                                            int *level)
{
    enum { INTERNAL = 0, NODE = 40, SYSTEM = 50 };
    GPU_OR_RETURN(first, one);
    GPU_OR_RETURN(second, other);
    *level = one == other ? INTERNAL : one->numa_node == other->numa_node ? NODE : SYSTEM;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    GPU_OR_RETURN(device, gpu);
    *major = (int)gpu->capability_major;
    *minor = (int)gpu->capability_minor;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, unsigned int *architecture)
{
    GPU_OR_RETURN(device, gpu);
    *architecture = gpu->architecture;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current,
                                             unsigned int *pending)
{
    (void)current, (void)pending;
    GPU_OR_RETURN(device, gpu);
    (void)gpu;
    return NVML_ERROR_NOT_SUPPORTED;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is_mig)
{
    GPU_OR_RETURN(device, gpu);
    (void)gpu;
    *is_mig = 0;
    return NVML_SUCCESS;
}

static uint64_t used_now(unsigned gpu)
{
    sim_node_reap();
    return atomic_load(&sim_node()->gpus[gpu].used_bytes);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    GPU_OR_RETURN(device, gpu);
    const uint64_t used = used_now(gpu_index);
    if (memory == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    memory->total = gpu->memory_bytes;
    memory->used = gpu->reserved_bytes + used;
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    GPU_OR_RETURN(device, gpu);
    const uint64_t used = used_now(gpu_index);
    if (memory == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (memory->version != (sizeof *memory | 2U << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    memory->total = gpu->memory_bytes;
    memory->reserved = gpu->reserved_bytes;
    memory->used = used;
    memory->free = memory->total - memory->reserved - used;
    return NVML_SUCCESS;
}
