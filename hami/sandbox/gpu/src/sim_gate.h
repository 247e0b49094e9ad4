/* sim_gate.h: the rows of sim_driver.def, as data. */
#ifndef SIM_GATE_H
#define SIM_GATE_H

#include "sim_cuda.h"

struct sim_row_of_driver {
    const char *symbol; /* as cuGetProcAddress knows it */
    const char *name;   /* as dlsym knows it */
    int version, flags;
    const void *exported;
    const void *other; /* another address that does the same */
    const void *implementation;
};

extern const struct sim_row_of_driver sim_rows[];
extern const size_t sim_row_count;

/* Whether this driver is to be one that has no such function: it is too old, or told to be. */
bool sim_is_missing(const struct sim_row_of_driver *row);

#endif
