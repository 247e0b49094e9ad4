/* memory.h: what every kind of free does around the driver's call. */
#ifndef HAMI_MEMORY_H
#define HAMI_MEMORY_H

#include <stdbool.h>

#include "driver.h"
#include "pointers.h"

/* A pointer's entry is out of the table while the driver frees it: see pointers.h. */
struct hami_release {
    bool known;
    struct hami_pointer pointer;
};

struct hami_release hami_free_begin(CUdeviceptr address);

/* Discharge if the driver freed it, else put the entry back. Returns the driver's result. */
CUresult hami_free_finish(const struct hami_release *release, CUresult result);

#endif
