/* sim_proc_address.c: cuGetProcAddress over sim_driver.def, and the export tables that are not there. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "sim_gate.h"

enum { FOUND = 0, SYMBOL_NOT_FOUND = 1, VERSION_NOT_SUFFICIENT = 2 };
enum { ANY_STREAM = 0, LEGACY_STREAM = 1, PER_THREAD_STREAM = 2 };

/* The newest form that the caller's version knows; the per-thread form if that is asked for. */
static const struct sim_row_of_driver *find(const char *symbol, int version, int flags, int *status)
{
    const struct sim_row_of_driver *best = NULL;
    *status = SYMBOL_NOT_FOUND;
    for (size_t i = 0; i < sim_row_count; i++) {
        const struct sim_row_of_driver *row = &sim_rows[i];
        if (strcmp(row->symbol, symbol) != 0 || sim_is_missing(row))
            continue;
        if (*status == SYMBOL_NOT_FOUND)
            *status = VERSION_NOT_SUFFICIENT;
        if (row->version > version || (row->flags == PER_THREAD_STREAM && flags != PER_THREAD_STREAM))
            continue;
        if (best == NULL || row->version >= best->version)
            best = row;
    }
    if (best != NULL)
        *status = FOUND;
    return best;
}

static CUresult get(const char *symbol, void **function, int version, uint64_t flags, int *status)
{
    int outcome;
    if (symbol == NULL || function == NULL || flags > PER_THREAD_STREAM)
        return CUDA_ERROR_INVALID_VALUE;
    const struct sim_row_of_driver *row = find(symbol, version, (int)flags, &outcome);
    const char *others = getenv("HAMI_SIM_THUNKS");
    *function = NULL;
    if (row != NULL)
        *function = (void *)(others != NULL && *others == '1' ? row->other : row->exported);
    if (status != NULL)
        *status = outcome;
    return row != NULL || status != NULL ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags,
                             int *status)
{
    return get(symbol, function, version, flags, status);
}

CUresult cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags)
{
    return get(symbol, function, version, flags, NULL);
}

CUresult cuGetExportTable(const void **table, const CUuuid *id)
{
    (void)id;
    if (table != NULL)
        *table = NULL;
    return CUDA_ERROR_NOT_FOUND;
}
