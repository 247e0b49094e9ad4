/* sim_vmm.h: physical memory and addresses apart, for the files that do something with either. */
#ifndef SIM_VMM_H
#define SIM_VMM_H

#include "sim_memory.h"

struct sim_allocation { /* physical memory */
    CUmemGenericAllocationHandle handle; /* from 1 */
    CUmemAllocationProp wanted;
    bool on_device; /* else it is host memory and takes nothing of any GPU */
    bool imported;  /* taken by another process, and charged there */
    unsigned gpu;
    uint64_t bytes;
    unsigned handles; /* references by handle */
    unsigned maps;
    char *store; /* where the contents are; NULL: nobody has mapped it yet */
    int file;    /* -1: cannot be exported */
};

/* Called with the lock held, all of them. */
void sim_vmm_lock(void);
void sim_vmm_unlock(void);

/* NULL: there is no such handle, or nobody has a reference to it. */
struct sim_allocation *sim_vmm_find(CUmemGenericAllocationHandle handle);

/* The contents, mapped once. False: the host has no memory for that. */
bool sim_vmm_store(struct sim_allocation *allocation);

/* One holder less: the memory goes with the last. */
void sim_vmm_drop(struct sim_allocation *allocation);

/* Where an address was reserved, everything is mapped and accessible. True elsewhere. */
bool sim_vmm_allows(uint64_t address, uint64_t bytes);

/* The GPU that a mapped address is of. False: nothing is mapped there. */
bool sim_vmm_gpu(uint64_t address, unsigned *gpu);

#endif
