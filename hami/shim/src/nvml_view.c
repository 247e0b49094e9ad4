/* nvml_view.c: NVML's memory figures, narrowed to the same view that CUDA gives. */
#include "hooks.h"
#include "shim.h"

static struct hami_view narrowed(nvmlDevice_t device, struct hami_view view)
{
    const enum hami_attachment attachment = hami_start();
    if (attachment != HAMI_INERT)
        hami_view_narrow(&view, attachment == HAMI_ENFORCING ? hami_device_of_handle(device)
                                                             : HAMI_UNLISTED);
    return view;
}

HAMI_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    const nvmlReturn_t result = HAMI_NVML(nvmlDeviceGetMemoryInfo, device, memory);
    if (result != NVML_SUCCESS || memory == NULL)
        return result;
    const struct hami_view view =
        narrowed(device, (struct hami_view){memory->total, memory->free, memory->used});
    *memory = (nvmlMemory_t){.total = view.total_bytes, .free = view.free_bytes, .used = view.used_bytes};
    return result;
}

HAMI_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    const nvmlReturn_t result = HAMI_NVML(nvmlDeviceGetMemoryInfo_v2, device, memory);
    if (result != NVML_SUCCESS || memory == NULL)
        return result;
    const struct hami_view view =
        narrowed(device, (struct hami_view){memory->total, memory->free, memory->used});
    if (view.total_bytes != memory->total)
        memory->reserved = 0; /* what the driver keeps for itself is outside of the share */
    memory->total = view.total_bytes;
    memory->free = view.free_bytes;
    memory->used = view.used_bytes;
    return result;
}
