/* sim_memory.c: device memory, as addresses in an arena of host memory that is touched only by copies.
 *
 * Allocations of 1 MiB and more take whole blocks of 2 MiB of the device, smaller ones multiples of
 * 512 bytes. Addresses come from bins of powers of two and are reused, as a driver does.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "sim_array.h"
#include "sim_memory.h"
#include "sim_vmm.h"

#define LARGE_BYTES (UINT64_C(1) << 20)
#define PITCH_BYTES UINT64_C(512)
#define BINS 48

struct bin {
    uint64_t *addresses;
    size_t count;
    size_t capacity;
};

static pthread_mutex_t arena_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t arena_start, arena_next, arena_end;
static struct bin bins[BINS];
static _Atomic bool touched; /* some copy has written to the arena: freed memory must be dropped */

void sim_memory_after_fork(void)
{
    pthread_mutex_init(&arena_lock, NULL);
    hami_pointers_after_fork();
}

static uint64_t physical(uint64_t bytes)
{
    return sim_round_up(bytes, bytes >= LARGE_BYTES ? SIM_BLOCK_BYTES : SIM_SMALL_BYTES);
}

static unsigned bin_of(uint64_t bytes)
{
    return bytes <= SIM_SMALL_BYTES ? 9 : 64 - (unsigned)__builtin_clzll(bytes - 1);
}

static bool reserve_arena(void)
{
    for (uint64_t size = UINT64_C(1) << 44; arena_end == 0 && size >= UINT64_C(1) << 36; size >>= 1) {
        void *map = mmap(NULL, size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED)
            continue;
        arena_start = arena_next = sim_round_up((uint64_t)map, SIM_BLOCK_BYTES);
        arena_end = (uint64_t)map + size;
    }
    return arena_end != 0;
}

uint64_t sim_take_address(uint64_t bytes)
{
    const unsigned index = bin_of(bytes);
    const uint64_t size = UINT64_C(1) << index;
    uint64_t address = 0;
    pthread_mutex_lock(&arena_lock);
    if (index < BINS && bins[index].count > 0) {
        address = bins[index].addresses[--bins[index].count];
    } else if (index < BINS && reserve_arena() && size <= arena_end - arena_next) {
        address = arena_next;
        arena_next += size;
    }
    pthread_mutex_unlock(&arena_lock);
    return address;
}

void sim_give_address(uint64_t address, uint64_t bytes)
{
    struct bin *bin = &bins[bin_of(bytes)];
    if (atomic_load(&touched))
        madvise((void *)(address & ~UINT64_C(4095)), sim_round_up(bytes, 4096),
                bytes >= 4096 ? MADV_DONTNEED : MADV_NORMAL);
    pthread_mutex_lock(&arena_lock);
    if (bin->count == bin->capacity) {
        const size_t capacity = bin->capacity != 0 ? bin->capacity * 2 : 64;
        uint64_t *grown = realloc(bin->addresses, capacity * sizeof *grown);
        if (grown != NULL) {
            bin->addresses = grown;
            bin->capacity = capacity;
        }
    }
    if (bin->count < bin->capacity)
        bin->addresses[bin->count++] = address;
    pthread_mutex_unlock(&arena_lock);
}

static CUresult allocate(CUdeviceptr *address, uint64_t bytes)
{
    CUcontext context;
    struct hami_pointer stale;
    CUresult result = sim_current(&context);
    if (result == CUDA_SUCCESS)
        result = sim_check_unsafe_call();
    if (result != CUDA_SUCCESS)
        return result;
    if (address == NULL || bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    sim_late_frees_run(NULL);
    if (bytes > UINT64_C(1) << 46 || !sim_node_take(context->gpu, physical(bytes)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    const uint64_t taken = sim_take_address(physical(bytes));
    const struct hami_pointer pointer = {taken, physical(bytes), context->gpu, context};
    if (taken == 0 || !hami_pointers_put(&pointer, &stale)) {
        sim_node_give(context->gpu, physical(bytes));
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *address = taken;
    return CUDA_SUCCESS;
}

void sim_release(const struct hami_pointer *pointer)
{
    if (pointer->device >= SIM_POOL_DEVICE) {
        sim_pool_release(pointer);
    } else if (pointer->device >= SIM_GRAPH_DEVICE) {
        sim_graph_memory_release(pointer);
    } else if (pointer->device >= SIM_MANAGED_DEVICE) {
        sim_managed_release(pointer);
    } else {
        sim_give_address(pointer->address, pointer->bytes);
        sim_node_give(pointer->device, pointer->bytes);
    }
}

static void release(const struct hami_pointer *pointer, void *argument)
{
    (void)argument;
    sim_release(pointer);
}

void sim_free_context_memory(CUcontext context)
{
    sim_late_frees_run(context);
    hami_pointers_take_context(context, release, NULL);
    sim_arrays_drop(context);
    sim_pools_drop_unused(context->gpu);
    sim_graph_memory_drop_unused(context->gpu);
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes)
{
    return allocate(address, bytes);
}

CUresult cuMemAllocPitch_v2(CUdeviceptr *address, size_t *pitch, size_t width, size_t height,
                            unsigned int element)
{
    uint64_t bytes;
    if (pitch == NULL || (element != 4 && element != 8 && element != 16))
        return CUDA_ERROR_INVALID_VALUE;
    if (width > UINT64_MAX - PITCH_BYTES ||
        __builtin_mul_overflow(sim_round_up(width, PITCH_BYTES), height, &bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = allocate(address, bytes);
    if (result == CUDA_SUCCESS)
        *pitch = sim_round_up(width, PITCH_BYTES);
    return result;
}

CUresult cuMemFree_v2(CUdeviceptr address)
{
    CUcontext context;
    struct hami_pointer pointer;
    CUresult result = sim_current(&context);
    if (result == CUDA_SUCCESS)
        result = sim_check_unsafe_call();
    if (result != CUDA_SUCCESS || address == 0)
        return result;
    if (!hami_pointers_take(address, &pointer))
        return CUDA_ERROR_INVALID_VALUE;
    sim_release(&pointer);
    return CUDA_SUCCESS;
}

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
    CUcontext context;
    const CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (free_bytes == NULL || total_bytes == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    const struct sim_gpu *gpu = &sim_node()->gpus[context->gpu];
    *total_bytes = gpu->memory_bytes - gpu->reserved_bytes;
    *free_bytes = *total_bytes - atomic_load(&gpu->used_bytes);
    return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void **address, size_t bytes, unsigned int flags)
{
    CUcontext context;
    const CUresult result = sim_current(&context);
    (void)flags; /* all host memory is portable and mapped here */
    if (result != CUDA_SUCCESS)
        return result;
    if (address == NULL || bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    return posix_memalign(address, 4096, bytes) == 0 ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMemAllocHost_v2(void **address, size_t bytes)
{
    return cuMemHostAlloc(address, bytes, 0);
}

CUresult cuMemFreeHost(void *address)
{
    free(address);
    return CUDA_SUCCESS;
}

bool sim_on_device(uint64_t address, uint64_t bytes)
{
    return address >= arena_start && address < arena_next && bytes <= arena_next - address &&
           sim_vmm_allows(address, bytes);
}

void sim_memory_touched(void)
{
    atomic_store(&touched, true);
}
