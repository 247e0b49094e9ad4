/* sim_memory.h: addresses of device memory, for the files that hand some out. */
#ifndef SIM_MEMORY_H
#define SIM_MEMORY_H

#include "pointers.h"
#include "sim_cuda.h"

#define SIM_BLOCK_BYTES (UINT64_C(2) << 20) /* what physical memory comes in */
#define SIM_SMALL_BYTES UINT64_C(512)

/* hami_pointer.device from this on: managed memory of that GPU; its entry's bytes are a multiple of
 * SIM_SMALL_BYTES, plus its enum sim_home. */
#define SIM_MANAGED_DEVICE SIM_GPUS

/* From this on: memory of a graph on that GPU (sim_graph_memory.c). */
#define SIM_GRAPH_DEVICE (2 * SIM_GPUS)

/* From this on: an allocation of the pool with that number (sim_pool.c). */
#define SIM_POOL_DEVICE (3 * SIM_GPUS)
#define SIM_POOLS 208

static inline uint64_t sim_round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

/* An unused range of addresses, 0: there is none. It has no physical memory by itself. */
uint64_t sim_take_address(uint64_t bytes);
void sim_give_address(uint64_t address, uint64_t bytes);

/* Managed memory whose entry was taken out of the table of pointers is gone. */
void sim_managed_release(const struct hami_pointer *pointer);

/* Graph memory whose entry was taken out of the table of pointers is no longer in use. */
void sim_graph_memory_release(const struct hami_pointer *pointer);

/* Pool memory whose entry was taken out of the table of pointers goes back to its pool. */
void sim_pool_release(const struct hami_pointer *pointer);

/* Take memory from a pool; NULL: from the current one of the context's GPU. */
CUresult sim_pool_allocate(CUdeviceptr *address, size_t bytes, CUmemoryPool pool, CUcontext context);

/* The GPU of such a pool. False: it is none, or has host memory. */
bool sim_pool_device(CUmemoryPool pool, CUcontext context, unsigned *gpu);

/* Free a device pointer once the stream has come so far (sim_late_free.c). */
CUresult sim_free_in_order(CUdeviceptr address, struct sim_stream *stream);

/* Free what streams have come to by now, and all that is of a context that ends (NULL: none does). */
void sim_late_frees_run(CUcontext ended);

/* The memory of an entry that was taken out of the table of pointers goes back where it is from. */
void sim_release(const struct hami_pointer *pointer);

/* The pools of a GPU let go of what they do not use: their context is gone. */
void sim_pools_drop_unused(unsigned gpu);
void sim_graph_memory_drop_unused(unsigned gpu);

#endif
