/* sim_nvml_process.c: who runs on a device, and how busy they keep it. */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdlib.h>

#include "sim_nvml.h"
#include "sim_timeline.h"

#define NS_PER_US UINT64_C(1000)

static bool runs_on(const struct sim_process *process, unsigned gpu)
{
    return atomic_load(&process->token) != 0 && (atomic_load(&process->rows[gpu].bytes) != 0 ||
                                                 atomic_load(&process->rows[gpu].busy_ns) != 0);
}

static unsigned pid_of(const struct sim_process *process)
{
    const int32_t host = atomic_load(&process->host_pid);
    const bool asked = (atomic_load(&sim_node()->nvml_flags) & SIM_NVML_HOST_PIDS) != 0;
    return (unsigned)(asked && host != 0 ? host : atomic_load(&process->pid));
}

/* Give each process to `emit`; the caller's capacity is *count. */
static nvmlReturn_t list(nvmlDevice_t device, unsigned int *count, void *infos,
                         void (*emit)(void *infos, unsigned place, const struct sim_process *, unsigned gpu))
{
    unsigned gpu = 0;
    unsigned found = 0;
    const nvmlReturn_t result = sim_nvml_gpu(device, &gpu);
    if (result != NVML_SUCCESS)
        return result;
    if (count == NULL || (infos == NULL && *count != 0))
        return NVML_ERROR_INVALID_ARGUMENT;
    sim_node_reap();
    const struct sim_node *node = sim_node();
    for (uint32_t i = 0; i < atomic_load(&node->process_high); i++) {
        if (!runs_on(&node->processes[i], gpu))
            continue;
        if (found < *count)
            emit(infos, found, &node->processes[i], gpu);
        found++;
    }
    const bool fits = found <= *count;
    *count = found;
    return fits ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

static void emit_v1(void *infos, unsigned place, const struct sim_process *process, unsigned gpu)
{
    ((nvmlProcessInfo_v1_t *)infos)[place] = (nvmlProcessInfo_v1_t){
        pid_of(process), atomic_load(&process->rows[gpu].bytes)};
}

static void emit_v2(void *infos, unsigned place, const struct sim_process *process, unsigned gpu)
{
    const unsigned none = 0xffffffff; /* no MIG instance */
    ((nvmlProcessInfo_v2_t *)infos)[place] = (nvmlProcessInfo_v2_t){
        pid_of(process), atomic_load(&process->rows[gpu].bytes), none, none};
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *count,
                                                             nvmlProcessInfo_v1_t *infos)
{
    return list(device, count, infos, emit_v1);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device,
                                                                unsigned int *count,
                                                                nvmlProcessInfo_v2_t *infos)
{
    return list(device, count, infos, emit_v2);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device,
                                                                unsigned int *count,
                                                                nvmlProcessInfo_v2_t *infos)
{
    return list(device, count, infos, emit_v2);
}

/* Nobody draws, and there is no MPS server. */
static nvmlReturn_t list_none(nvmlDevice_t device, unsigned int *count)
{
    unsigned gpu = 0;
    const nvmlReturn_t result = sim_nvml_gpu(device, &gpu);
    if (result == NVML_SUCCESS && count != NULL)
        *count = 0;
    return count != NULL ? result : NVML_ERROR_INVALID_ARGUMENT;
}

#define NOBODY(name, type)                                                                         \
    SIM_EXPORT nvmlReturn_t name(nvmlDevice_t device, unsigned int *count, type *infos)            \
    {                                                                                              \
        (void)infos;                                                                               \
        return list_none(device, count);                                                           \
    }

NOBODY(nvmlDeviceGetGraphicsRunningProcesses, nvmlProcessInfo_v1_t)
NOBODY(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlProcessInfo_v2_t)
NOBODY(nvmlDeviceGetGraphicsRunningProcesses_v3, nvmlProcessInfo_v2_t)
NOBODY(nvmlDeviceGetMPSComputeRunningProcesses, nvmlProcessInfo_v1_t)
NOBODY(nvmlDeviceGetMPSComputeRunningProcesses_v2, nvmlProcessInfo_v2_t)
NOBODY(nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlProcessInfo_v2_t)

/* The newest period whose sample may be seen. Brings the GPU's clock up to date: lock held. */
static uint64_t last_period_locked(struct sim_node *node, unsigned gpu)
{
    sim_timeline_advance_locked(node, gpu);
    const uint64_t now = sim_now_ns();
    return now > node->nvml_lag_ns ? (now - node->nvml_lag_ns) / node->nvml_period_ns - 1 : 0;
}

static unsigned percent_of(const struct sim_node *node, const struct sim_sample *samples, uint64_t period)
{
    const struct sim_sample *sample = &samples[period % SIM_SAMPLES];
    const uint64_t busy = sample->period == period ? sample->busy_ns : 0;
    const uint64_t percent = (busy * 100 + node->nvml_period_ns / 2) / node->nvml_period_ns;
    return percent < 100 ? (unsigned)percent : 100;
}

/* Microseconds since 1970 at the end of a period. */
static unsigned long long end_of(const struct sim_node *node, uint64_t period)
{
    return (unsigned long long)((int64_t)((period + 1) * node->nvml_period_ns) +
                                node->realtime_offset_ns) /
           NS_PER_US;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates)
{
    unsigned gpu = 0;
    const nvmlReturn_t result = sim_nvml_gpu(device, &gpu);
    if (result != NVML_SUCCESS)
        return result;
    if (rates == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    struct sim_node *node = sim_node();
    sim_node_lock(node);
    const uint64_t period = last_period_locked(node, gpu);
    *rates = (nvmlUtilization_t){.gpu = percent_of(node, node->timelines[gpu].samples, period)};
    sim_node_unlock(node);
    return NVML_SUCCESS;
}

struct found {
    unsigned pid, percent;
};

/* Samples of the newest period, one for each process that worked in it, unless the caller has seen
 * them. Only the count, and INSUFFICIENT_SIZE, where there is no room for them. */
static nvmlReturn_t sample(unsigned gpu, unsigned long long last_seen_us, struct found *target,
                           unsigned int *count, unsigned long long *time_us)
{
    struct sim_node *node = sim_node();
    unsigned found = 0;
    sim_node_lock(node);
    const uint64_t period = last_period_locked(node, gpu);
    *time_us = end_of(node, period);
    for (uint32_t i = 0; *time_us > last_seen_us && i < atomic_load(&node->process_high); i++) {
        const struct sim_process *process = &node->processes[i];
        const struct sim_sample *samples = process->rows[gpu].samples;
        const struct sim_sample *newest = &samples[period % SIM_SAMPLES];
        if (atomic_load(&process->token) == 0 || newest->period != period || newest->busy_ns == 0)
            continue;
        if (target != NULL && found < *count)
            target[found] =
                (struct found){pid_of(process), percent_of(node, samples, period)};
        found++;
    }
    sim_node_unlock(node);
    const bool fits = target != NULL && found <= *count;
    *count = found;
    return found == 0 ? NVML_ERROR_NOT_FOUND : fits ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

static nvmlReturn_t check_supported(nvmlDevice_t device, unsigned *gpu)
{
    const nvmlReturn_t result = sim_nvml_gpu(device, gpu);
    if (result == NVML_SUCCESS &&
        (atomic_load(&sim_node()->nvml_flags) & SIM_NVML_NO_PROCESS_UTILIZATION) != 0)
        return NVML_ERROR_NOT_SUPPORTED;
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
                                                        nvmlProcessUtilizationSample_t *utilization,
                                                        unsigned int *count,
                                                        unsigned long long last_seen_us)
{
    unsigned gpu = 0;
    unsigned long long time_us;
    nvmlReturn_t result = check_supported(device, &gpu);
    if (result != NVML_SUCCESS)
        return result;
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    struct found *room = utilization != NULL ? malloc((*count + 1) * sizeof *room) : NULL;
    result = sample(gpu, last_seen_us, room, count, &time_us);
    for (unsigned i = 0; result == NVML_SUCCESS && i < *count; i++)
        utilization[i] = (nvmlProcessUtilizationSample_t){
            .pid = room[i].pid, .timeStamp = time_us, .smUtil = room[i].percent};
    free(room);
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t device,
                                                              nvmlProcessesUtilizationInfo_v1_t *info)
{
    unsigned gpu = 0;
    unsigned long long time_us;
    nvmlReturn_t result = check_supported(device, &gpu);
    if (result != NVML_SUCCESS)
        return result;
    if (info == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (info->version != (sizeof *info | 1U << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    struct found *room =
        info->procUtilArray != NULL ? malloc((info->processSamplesCount + 1) * sizeof *room) : NULL;
    result = sample(gpu, info->lastSeenTimeStamp, room, &info->processSamplesCount, &time_us);
    for (unsigned i = 0; result == NVML_SUCCESS && i < info->processSamplesCount; i++)
        info->procUtilArray[i] = (nvmlProcessUtilizationInfo_v1_t){
            .timeStamp = time_us, .pid = room[i].pid, .smUtil = room[i].percent};
    free(room);
    return result;
}
