/* sim_memory.h: addresses of device memory, for the files that hand some out. */
#ifndef SIM_MEMORY_H
#define SIM_MEMORY_H

#include "pointers.h"
#include "sim_cuda.h"

#define SIM_BLOCK_BYTES (UINT64_C(2) << 20) /* what physical memory comes in */
#define SIM_SMALL_BYTES UINT64_C(512)

/* hami_pointer.device at and above this: an allocation of the pool with that number (sim_pool.c). */
#define SIM_POOL_DEVICE 32
#define SIM_POOLS 224

static inline uint64_t sim_round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

/* An unused range of addresses, 0: there is none. It has no physical memory by itself. */
uint64_t sim_take_address(uint64_t bytes);
void sim_give_address(uint64_t address, uint64_t bytes);

/* Pool memory whose entry was taken out of the table of pointers goes back to its pool. */
void sim_pool_release(const struct hami_pointer *pointer);

/* The pools of a GPU let go of what they do not use: their context is gone. */
void sim_pools_drop_unused(unsigned gpu);

#endif
