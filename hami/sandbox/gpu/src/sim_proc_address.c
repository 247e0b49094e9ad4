/* sim_proc_address.c: cuGetProcAddress over sim_driver.def, and the export tables that are not there. */
#define _GNU_SOURCE
#include <string.h>

#include "sim_cuda.h"

enum { FOUND = 0, SYMBOL_NOT_FOUND = 1, VERSION_NOT_SUFFICIENT = 2 };
enum { ANY_STREAM = 0, LEGACY_STREAM = 1, PER_THREAD_STREAM = 2 };

struct entry {
    const char *symbol;
    int version;
    int flags;
    void *function;
};

static const struct entry entries[] = {
#define SIM_FUNCTION(symbol, version, flags, name, parameters) {symbol, version, flags, (void *)name},
#include "sim_driver.def"
};

/* The newest form that the caller's version knows; the per-thread form if that is asked for. */
static const struct entry *find(const char *symbol, int version, int flags, int *status)
{
    const struct entry *best = NULL;
    *status = SYMBOL_NOT_FOUND;
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
        const struct entry *entry = &entries[i];
        if (strcmp(entry->symbol, symbol) != 0)
            continue;
        if (*status == SYMBOL_NOT_FOUND)
            *status = VERSION_NOT_SUFFICIENT;
        if (entry->version > version || (entry->flags == PER_THREAD_STREAM && flags != PER_THREAD_STREAM))
            continue;
        if (best == NULL || entry->version >= best->version)
            best = entry;
    }
    if (best != NULL)
        *status = FOUND;
    return best;
}

CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags,
                             int *status)
{
    int outcome;
    if (symbol == NULL || function == NULL || flags > PER_THREAD_STREAM)
        return CUDA_ERROR_INVALID_VALUE;
    const struct entry *entry = find(symbol, version, (int)flags, &outcome);
    *function = entry != NULL ? entry->function : NULL;
    if (status != NULL)
        *status = outcome;
    return entry != NULL || status != NULL ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags)
{
    return cuGetProcAddress_v2(symbol, function, version, flags, NULL);
}

CUresult cuGetExportTable(const void **table, const CUuuid *id)
{
    (void)id;
    if (table != NULL)
        *table = NULL;
    return CUDA_ERROR_NOT_FOUND;
}
