/* sim_module.h: what a kernel is. */
#ifndef SIM_MODULE_H
#define SIM_MODULE_H

#include "sim_cuda.h"

#define SIM_KERNELS 64

struct sim_function {
    char name[64];
    CUmodule module;
    uint64_t wave_ns;       /* that one wave of blocks takes */
    unsigned block_threads; /* of the old launch calls (cuFuncSetBlockShape) */
    int failure;            /* CUresult with which it ends; 0: well */
};

struct sim_module {
    size_t count;
    struct sim_function functions[SIM_KERNELS];
};

#endif
