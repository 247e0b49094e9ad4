/* sim_nvml_process.c: who runs on a device, and how busy they keep it. */
#define _GNU_SOURCE
#include <pthread.h>

#include "sim_nvml.h"

#define NS_PER_US UINT64_C(1000)

struct sample {
    uint64_t token;
    uint64_t time_ns;
    uint64_t executed_ns;
};

static pthread_mutex_t samples_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sample samples[SIM_GPUS][SIM_PROCESSES]; /* of this caller's previous look */
static struct sample device_samples[SIM_GPUS];

static bool runs_on(const struct sim_process *process, unsigned gpu)
{
    return atomic_load(&process->token) != 0 && (atomic_load(&process->rows[gpu].bytes) != 0 ||
                                                 atomic_load(&process->rows[gpu].busy_ns) != 0);
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
        (unsigned)atomic_load(&process->pid), atomic_load(&process->rows[gpu].bytes)};
}

static void emit_v2(void *infos, unsigned place, const struct sim_process *process, unsigned gpu)
{
    const unsigned none = 0xffffffff; /* no MIG instance */
    ((nvmlProcessInfo_v2_t *)infos)[place] = (nvmlProcessInfo_v2_t){
        (unsigned)atomic_load(&process->pid), atomic_load(&process->rows[gpu].bytes), none, none};
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

/* Percent of the time since the previous look that the device worked for this one. */
static unsigned percent_since(struct sample *sample, uint64_t token, uint64_t executed_ns)
{
    const uint64_t now = sim_now_ns();
    const bool known = sample->token == token && token != 0;
    const uint64_t elapsed = known ? now - sample->time_ns : 0;
    const uint64_t worked =
        known && executed_ns > sample->executed_ns ? executed_ns - sample->executed_ns : 0;
    *sample = (struct sample){token, now, executed_ns};
    const uint64_t percent = elapsed != 0 ? worked * 100 / elapsed : 0;
    return percent < 100 ? (unsigned)percent : 100;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates)
{
    unsigned gpu = 0;
    uint64_t executed = 0;
    const nvmlReturn_t result = sim_nvml_gpu(device, &gpu);
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_node *node = sim_node();
    for (uint32_t i = 0; i < atomic_load(&node->process_high); i++)
        executed += sim_executed_ns(node, &node->processes[i], gpu);
    pthread_mutex_lock(&samples_lock);
    *rates = (nvmlUtilization_t){.gpu = percent_since(&device_samples[gpu], 1, executed)};
    pthread_mutex_unlock(&samples_lock);
    return NVML_SUCCESS;
}

/* One sample a process: its share since this caller's previous look at the device. */
SIM_EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
                                                        nvmlProcessUtilizationSample_t *utilization,
                                                        unsigned int *count,
                                                        unsigned long long last_seen_us)
{
    unsigned gpu = 0;
    unsigned found = 0;
    const nvmlReturn_t result = sim_nvml_gpu(device, &gpu);
    (void)last_seen_us; /* every sample is new: it is made now */
    if (result != NVML_SUCCESS)
        return result;
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    const struct sim_node *node = sim_node();
    if (utilization == NULL) {
        for (uint32_t i = 0; i < atomic_load(&node->process_high); i++)
            found += runs_on(&node->processes[i], gpu);
        *count = found;
        return NVML_ERROR_INSUFFICIENT_SIZE;
    }
    pthread_mutex_lock(&samples_lock);
    for (uint32_t i = 0; i < atomic_load(&node->process_high) && found < *count; i++) {
        const struct sim_process *process = &node->processes[i];
        if (!runs_on(process, gpu))
            continue;
        utilization[found++] = (nvmlProcessUtilizationSample_t){
            .pid = (unsigned)atomic_load(&process->pid),
            .timeStamp = sim_now_ns() / NS_PER_US,
            .smUtil = percent_since(&samples[gpu][i], atomic_load(&process->token),
                                    sim_executed_ns(node, process, gpu))};
    }
    pthread_mutex_unlock(&samples_lock);
    *count = found;
    return found != 0 ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}
