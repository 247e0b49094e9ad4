/* sim_addresses.c: reserved ranges of addresses, and what physical memory is mapped in them. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "sim_vmm.h"

struct range { /* reserved; `taken` is what it was cut from */
    uint64_t start, bytes, taken, taken_bytes;
};

struct map {
    uint64_t start, bytes;
    struct sim_allocation *allocation;
    uint32_t readable; /* bit i: GPU i may use it */
};

struct list { /* sorted by start; either kind, for both begin with it */
    char *items;
    size_t size, count, capacity;
};

static struct list ranges = {.size = sizeof(struct range)};
static struct list maps = {.size = sizeof(struct map)};
static _Atomic bool ever_reserved;

void sim_addresses_after_fork(void)
{
    ranges.count = maps.count = 0;
}

static uint64_t *start_at(const struct list *list, size_t index)
{
    return (uint64_t *)(list->items + index * list->size);
}

/* How many begin at the address or before it. */
static size_t up_to(const struct list *list, uint64_t address)
{
    size_t low = 0, high = list->count;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (*start_at(list, middle) <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The one that the address is in, or NULL. The bytes stand behind the start. */
static void *covering(const struct list *list, uint64_t address)
{
    const size_t index = up_to(list, address);
    uint64_t *found = index > 0 ? start_at(list, index - 1) : NULL;
    return found != NULL && address - found[0] < found[1] ? found : NULL;
}

static bool insert(struct list *list, const void *item, uint64_t start)
{
    if (list->count == list->capacity) {
        const size_t capacity = list->capacity != 0 ? list->capacity * 2 : 64;
        char *grown = realloc(list->items, capacity * list->size);
        if (grown == NULL)
            return false;
        list->items = grown;
        list->capacity = capacity;
    }
    char *at = list->items + up_to(list, start) * list->size;
    memmove(at + list->size, at, (size_t)(list->items + list->count * list->size - at));
    memcpy(at, item, list->size);
    list->count++;
    return true;
}

static void erase(struct list *list, void *item)
{
    char *next = (char *)item + list->size;
    memmove(item, next, (size_t)(list->items + list->count * list->size - next));
    list->count--;
}

static bool is_whole(uint64_t value)
{
    return value % SIM_BLOCK_BYTES == 0;
}

CUresult cuMemAddressReserve(CUdeviceptr *address, size_t bytes, size_t alignment, CUdeviceptr hint,
                             uint64_t flags)
{
    const uint64_t step = alignment > SIM_BLOCK_BYTES ? alignment : SIM_BLOCK_BYTES;
    (void)hint; /* a wish */
    if (address == NULL || bytes == 0 || !is_whole(bytes) || flags != 0 || (step & (step - 1)) != 0)
        return CUDA_ERROR_INVALID_VALUE;
    struct range fresh = {.bytes = bytes, .taken_bytes = bytes + step};
    if (fresh.taken_bytes < bytes || (fresh.taken = sim_take_address(fresh.taken_bytes)) == 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    fresh.start = sim_round_up(fresh.taken, step);
    sim_vmm_lock();
    const bool kept = insert(&ranges, &fresh, fresh.start);
    atomic_store(&ever_reserved, true);
    sim_vmm_unlock();
    if (!kept) {
        sim_give_address(fresh.taken, fresh.taken_bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *address = fresh.start;
    return CUDA_SUCCESS;
}

/* The first mapping that begins in the range, or NULL. */
static struct map *first_map(uint64_t address, uint64_t bytes)
{
    const size_t index = address > 0 ? up_to(&maps, address - 1) : 0;
    struct map *map = index < maps.count ? (struct map *)start_at(&maps, index) : NULL;
    return map != NULL && map->start - address < bytes ? map : NULL;
}

CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes)
{
    sim_vmm_lock();
    struct range *range = covering(&ranges, address);
    const bool exact = range != NULL && range->start == address && range->bytes == bytes &&
                       first_map(address, bytes) == NULL;
    const struct range gone = exact ? *range : (struct range){0};
    if (exact)
        erase(&ranges, range);
    sim_vmm_unlock();
    if (exact)
        sim_give_address(gone.taken, gone.taken_bytes);
    return exact ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static bool is_reserved_and_free(uint64_t address, uint64_t bytes)
{
    const struct range *range = covering(&ranges, address);
    return range != NULL && bytes <= range->bytes - (address - range->start) &&
           covering(&maps, address) == NULL && first_map(address, bytes) == NULL;
}

CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                  uint64_t flags)
{
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    sim_vmm_lock();
    struct sim_allocation *allocation = sim_vmm_find(handle);
    const struct map map = {address, bytes, allocation, 0};
    if (allocation != NULL && flags == 0 && offset == 0 && bytes != 0 && is_whole(address) &&
        is_whole(bytes) && bytes <= allocation->bytes && is_reserved_and_free(address, bytes)) {
        /* A mapping of length 0 that is moved stays, and there is another one of the same pages. */
        const bool mapped =
            sim_vmm_store(allocation) &&
            mremap(allocation->store, 0, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)address) != MAP_FAILED;
        result = mapped && insert(&maps, &map, address) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
        allocation->maps += result == CUDA_SUCCESS;
    }
    sim_vmm_unlock();
    return result;
}

/* Whether mappings, and whole ones, fill the range. */
static bool is_filled(uint64_t address, uint64_t bytes)
{
    uint64_t at = address;
    while (at < address + bytes) {
        const struct map *map = covering(&maps, at);
        if (map == NULL || map->start != at)
            return false;
        at += map->bytes;
    }
    return at == address + bytes && bytes != 0;
}

CUresult cuMemUnmap(CUdeviceptr address, size_t bytes)
{
    sim_vmm_lock();
    const bool whole = is_filled(address, bytes);
    for (struct map *map; whole && (map = first_map(address, bytes)) != NULL;) {
        struct sim_allocation *allocation = map->allocation;
        mmap((void *)map->start, map->bytes, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        erase(&maps, map);
        allocation->maps--;
        sim_vmm_drop(allocation);
    }
    sim_vmm_unlock();
    return whole ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address)
{
    sim_vmm_lock();
    const struct map *map = handle != NULL ? covering(&maps, (uint64_t)address) : NULL;
    if (map != NULL) {
        map->allocation->handles++;
        *handle = map->allocation->handle;
    }
    sim_vmm_unlock();
    return map != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

enum { LOCATION_DEVICE = 1, ACCESS_NONE = 0, ACCESS_READ = 1, ACCESS_READ_WRITE = 3 };

static bool is_access(const CUmemAccessDesc *wanted)
{
    const bool known = wanted->flags == ACCESS_NONE || wanted->flags == ACCESS_READ ||
                       wanted->flags == ACCESS_READ_WRITE;
    return known && (wanted->location.type != LOCATION_DEVICE || sim_gpu_of(wanted->location.id) >= 0);
}

CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *wanted, size_t count)
{
    sim_vmm_lock();
    bool valid = wanted != NULL && count != 0 && is_filled(address, bytes);
    for (size_t i = 0; valid && i < count; i++)
        valid = is_access(&wanted[i]);
    for (uint64_t at = address; valid && at < address + bytes;) {
        struct map *map = covering(&maps, at);
        for (size_t i = 0; i < count; i++) {
            const uint32_t bit = wanted[i].location.type == LOCATION_DEVICE
                                     ? UINT32_C(1) << sim_gpu_of(wanted[i].location.id)
                                     : 0;
            map->readable = wanted[i].flags != ACCESS_NONE ? map->readable | bit : map->readable & ~bit;
        }
        at += map->bytes;
    }
    sim_vmm_unlock();
    return valid ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr address)
{
    sim_vmm_lock();
    const int gpu = location != NULL && location->type == LOCATION_DEVICE ? sim_gpu_of(location->id) : -1;
    const struct map *map = flags != NULL && gpu >= 0 ? covering(&maps, address) : NULL;
    if (map != NULL)
        *flags = map->readable >> gpu & 1 ? ACCESS_READ_WRITE : ACCESS_NONE;
    sim_vmm_unlock();
    return map != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

bool sim_vmm_allows(uint64_t address, uint64_t bytes)
{
    if (!atomic_load(&ever_reserved))
        return true;
    sim_vmm_lock();
    bool allowed = true;
    const bool reserved = covering(&ranges, address) != NULL;
    for (uint64_t at = address; reserved && allowed && at - address < bytes;) {
        const struct map *map = covering(&maps, at);
        allowed = map != NULL && map->readable != 0;
        at = allowed ? map->start + map->bytes : at;
    }
    sim_vmm_unlock();
    return allowed;
}

bool sim_vmm_gpu(uint64_t address, unsigned *gpu)
{
    if (!atomic_load(&ever_reserved))
        return false;
    sim_vmm_lock();
    const struct map *map = covering(&maps, address);
    if (map != NULL)
        *gpu = map->allocation->gpu;
    sim_vmm_unlock();
    return map != NULL;
}
