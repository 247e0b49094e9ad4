/* memory.h: what every kind of allocation and of free does around the driver's call. */
#ifndef HAMI_MEMORY_H
#define HAMI_MEMORY_H

#include <stdbool.h>

#include "driver.h"
#include "pointers.h"

struct hami_allocation { /* under way */
    int device; /* region index; HAMI_UNLISTED: nothing is charged */
    uint64_t bytes;
    CUcontext context;
    CUdevice ordinal;
};

/* Announce `bytes` on the current context's device. Not CUDA_SUCCESS: give that to the program. */
CUresult hami_allocation_begin(struct hami_allocation *charge, uint64_t bytes);

/* Settle by what the driver did: `bytes` were really allocated, and are known by `key` from now on, an
 * address or a handle. Returns what the program gets. `undo` frees what does not fit after all. */
CUresult hami_allocation_finish(const struct hami_allocation *charge, CUresult result, uint64_t key,
                                uint64_t bytes, CUresult (*undo)(uint64_t key));

/* A pointer's entry is out of the table while the driver frees it: see pointers.h. */
struct hami_release {
    bool known;
    struct hami_pointer pointer;
};

struct hami_release hami_free_begin(CUdeviceptr address);

/* Discharge if the driver freed it, else put the entry back. Returns the driver's result. */
CUresult hami_free_finish(const struct hami_release *release, CUresult result);

#endif
