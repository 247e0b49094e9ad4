/* nvml_processes.c: who runs on a device, as far as it is this container's business.
 *
 * The driver lists the processes of all containers. Ours are those that have a slot; the others' pids
 * and memory are nobody's business here. Figures stay the driver's.
 */
#include <stdlib.h>
#include <string.h>

#include "hooks.h"
#include "shim.h"

#define SPARE 16 /* processes may come between two questions */
#define TRIES 8
#define MOST 65536

typedef nvmlReturn_t lister(nvmlDevice_t device, unsigned int *count, void *infos);

/* The driver's whole list, to be freed. Entries are of `bytes` each and begin with the pid. */
static nvmlReturn_t list_all(lister *driver, nvmlDevice_t device, size_t bytes, char **all, unsigned *count)
{
    unsigned capacity = 0;
    nvmlReturn_t result = NVML_ERROR_INSUFFICIENT_SIZE;
    *all = NULL;
    for (int tries = 0; tries < TRIES && result == NVML_ERROR_INSUFFICIENT_SIZE; tries++) {
        *count = capacity;
        result = driver(device, count, *all);
        if (result != NVML_ERROR_INSUFFICIENT_SIZE)
            break;
        capacity = *count < MOST ? *count + SPARE : MOST;
        free(*all);
        if ((*all = calloc(capacity, bytes)) == NULL)
            return NVML_ERROR_MEMORY;
    }
    return result;
}

static bool is_ours(const char *entry)
{
    unsigned pid = 0;
    memcpy(&pid, entry, sizeof pid);
    return hami_start() == HAMI_ENFORCING && hami_slots_know(hami_region(), (int32_t)pid);
}

static nvmlReturn_t list_ours(lister *driver, nvmlDevice_t device, unsigned *count, char *infos, size_t bytes)
{
    char *all = NULL;
    unsigned listed = 0, ours = 0;
    if (driver == NULL)
        return NVML_ERROR_FUNCTION_NOT_FOUND;
    if (count == NULL || (infos == NULL && *count != 0) || hami_start() == HAMI_INERT)
        return driver(device, count, infos);
    nvmlReturn_t result = list_all(driver, device, bytes, &all, &listed);
    for (unsigned i = 0; result == NVML_SUCCESS && i < listed; i++) {
        if (!is_ours(all + i * bytes))
            continue;
        if (ours < *count)
            memcpy(infos + ours * bytes, all + i * bytes, bytes);
        ours++;
    }
    free(all);
    if (result != NVML_SUCCESS)
        return result;
    result = ours <= *count ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
    *count = ours;
    return result;
}

#define PROCESSES(name, type)                                                                      \
    HAMI_EXPORT nvmlReturn_t name(nvmlDevice_t device, unsigned int *count, type *infos)           \
    {                                                                                              \
        return list_ours((lister *)hami_real(HAMI_ROW_##name), device, count, (char *)infos,       \
                         sizeof *infos);                                                           \
    }

PROCESSES(nvmlDeviceGetComputeRunningProcesses, nvmlProcessInfo_v1_t)
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, nvmlProcessInfo_v2_t)
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, nvmlProcessInfo_v2_t)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses, nvmlProcessInfo_v1_t)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlProcessInfo_v2_t)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, nvmlProcessInfo_v2_t)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses, nvmlProcessInfo_v1_t)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2, nvmlProcessInfo_v2_t)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlProcessInfo_v2_t)
