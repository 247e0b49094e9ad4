/* sim_nvml_event.c: event sets, fed from the node's ring of injected events. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "sim_nvml.h"

#define POLL_NS UINT64_C(5000000)

struct sim_event_set {
    uint64_t seen; /* sequence of the last event given out or passed over */
    unsigned long long types[SIM_GPUS];
};

SIM_EXPORT nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
    if (sim_node() == NULL)
        return NVML_ERROR_UNINITIALIZED;
    *set = calloc(1, sizeof **set);
    if (*set == NULL)
        return NVML_ERROR_MEMORY;
    (*set)->seen = atomic_load(&sim_node()->last_event);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set)
{
    free(set);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types)
{
    enum { SINGLE_BIT_ECC = 1, DOUBLE_BIT_ECC = 2, XID = 8 };
    unsigned gpu = 0;
    const nvmlReturn_t result = sim_nvml_gpu(device, &gpu);
    if (result == NVML_SUCCESS)
        *types = SINGLE_BIT_ECC | DOUBLE_BIT_ECC | XID;
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types,
                                                 nvmlEventSet_t set)
{
    unsigned gpu = 0;
    const nvmlReturn_t result = sim_nvml_gpu(device, &gpu);
    if (result == NVML_SUCCESS)
        set->types[gpu] |= types;
    return result;
}

/* The next event that the set wants, if there is one. */
static bool take_event(nvmlEventSet_t set, nvmlEventData_t *data)
{
    struct sim_node *node = sim_node();
    const uint64_t last = atomic_load(&node->last_event);
    if (last > SIM_EVENTS && set->seen < last - SIM_EVENTS)
        set->seen = last - SIM_EVENTS; /* older ones were overwritten */
    while (set->seen < last) {
        const struct sim_event *event = &node->events[++set->seen % SIM_EVENTS];
        if (event->gpu >= SIM_GPUS || (set->types[event->gpu] & event->type) == 0)
            continue;
        *data = (nvmlEventData_t){.device = sim_nvml_handle(event->gpu),
                                  .eventType = event->type,
                                  .eventData = event->data,
                                  .gpuInstanceId = 0xffffffff,
                                  .computeInstanceId = 0xffffffff};
        return true;
    }
    return false;
}

SIM_EXPORT nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data,
                                            unsigned int timeout_ms)
{
    const uint64_t deadline_ns = sim_now_ns() + timeout_ms * UINT64_C(1000000);
    while (!take_event(set, data)) {
        const uint64_t now = sim_now_ns();
        if (now >= deadline_ns)
            return NVML_ERROR_TIMEOUT;
        sim_sleep_until(now + POLL_NS < deadline_ns ? now + POLL_NS : deadline_ns);
    }
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data,
                                         unsigned int timeout_ms)
{
    return nvmlEventSetWait_v2(set, data, timeout_ms);
}
