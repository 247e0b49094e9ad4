/* sim_array.h: arrays and external memory: device memory that has a handle and no address. */
#ifndef SIM_ARRAY_H
#define SIM_ARRAY_H

#include "sim_cuda.h"

/* All of them that belong to a context that ends. */
void sim_arrays_drop(CUcontext context);

#endif
