/* pointers.c: 64 shards, each a spin lock and a linear-probing array of a power of two. */
#define _GNU_SOURCE
#include "pointers.h"

#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#define SHARDS 64
#define FIRST_CAPACITY 64
#define DEVICE_BITS 8
#define SELDOM static __attribute__((noinline, cold)) /* keeps the usual path short */

struct entry {
    uint64_t address; /* 0: empty */
    uint64_t bytes_and_device;
    void *context;
};

struct shard {
    _Alignas(64) atomic_flag lock;
    size_t capacity; /* 0 or a power of two */
    size_t count;
    struct entry *entries;
};

static struct shard shards[SHARDS];

/* Well mixed, or runs of neighbouring addresses would make long walks of the linear probing. */
static uint64_t hash(uint64_t address)
{
    address = (address >> 8) * UINT64_C(0x9e3779b97f4a7c15);
    return address ^ address >> 32;
}

static bool try_lock(struct shard *shard)
{
    return !atomic_flag_test_and_set_explicit(&shard->lock, memory_order_acquire);
}

SELDOM void wait_for_lock(struct shard *shard)
{
    for (int spins = 0; !try_lock(shard); spins++)
        if (spins >= 64)
            sched_yield();
}

static struct shard *lock_shard(uint64_t address)
{
    struct shard *shard = &shards[hash(address) % SHARDS];
    if (!try_lock(shard))
        wait_for_lock(shard);
    return shard;
}

static void unlock(struct shard *shard)
{
    atomic_flag_clear_explicit(&shard->lock, memory_order_release);
}

static size_t home(const struct shard *shard, uint64_t address)
{
    return (hash(address) / SHARDS) & (shard->capacity - 1);
}

/* The entry of the address, or the empty one where it would go. Needs capacity > count. */
static struct entry *probe(const struct shard *shard, uint64_t address)
{
    size_t index = home(shard, address);
    while (shard->entries[index].address != 0 && shard->entries[index].address != address)
        index = (index + 1) & (shard->capacity - 1);
    return &shard->entries[index];
}

SELDOM bool grow(struct shard *shard)
{
    const struct shard old = {.capacity = shard->capacity, .entries = shard->entries};
    const size_t capacity = old.capacity != 0 ? old.capacity * 2 : FIRST_CAPACITY;
    void *map = mmap(NULL, capacity * sizeof(struct entry), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return false;
    shard->capacity = capacity;
    shard->entries = map;
    for (size_t index = 0; index < old.capacity; index++)
        if (old.entries[index].address != 0)
            *probe(shard, old.entries[index].address) = old.entries[index];
    if (old.capacity != 0)
        munmap(old.entries, old.capacity * sizeof(struct entry));
    return true;
}

/* Empty the entry and close the gap, so that every probe still ends at the first empty one. */
static void erase(struct shard *shard, struct entry *entry)
{
    const size_t mask = shard->capacity - 1;
    size_t gap = (size_t)(entry - shard->entries);
    for (size_t index = (gap + 1) & mask; shard->entries[index].address != 0;
         index = (index + 1) & mask) {
        const size_t wanted = home(shard, shard->entries[index].address);
        if (((index - wanted) & mask) >= ((index - gap) & mask)) {
            shard->entries[gap] = shard->entries[index];
            gap = index;
        }
    }
    shard->entries[gap].address = 0;
    shard->count--;
}

static struct hami_pointer unpack(const struct entry *entry)
{
    return (struct hami_pointer){
        .address = entry->address,
        .bytes = entry->bytes_and_device >> DEVICE_BITS,
        .device = (unsigned)(entry->bytes_and_device & ((1U << DEVICE_BITS) - 1)),
        .context = entry->context,
    };
}

bool hami_pointers_put(const struct hami_pointer *pointer, struct hami_pointer *stale)
{
    struct shard *shard = lock_shard(pointer->address);
    const bool room = shard->count * 4 < shard->capacity * 3 || grow(shard);
    if (room) {
        struct entry *entry = probe(shard, pointer->address);
        *stale = unpack(entry);
        shard->count += entry->address == 0;
        *entry = (struct entry){pointer->address, pointer->bytes << DEVICE_BITS | pointer->device,
                                pointer->context};
    }
    unlock(shard);
    return room;
}

bool hami_pointers_take(uint64_t address, struct hami_pointer *pointer)
{
    struct shard *shard = lock_shard(address);
    struct entry *entry = shard->capacity != 0 ? probe(shard, address) : NULL;
    const bool known = address != 0 && entry != NULL && entry->address != 0;
    if (known) {
        *pointer = unpack(entry);
        erase(shard, entry);
    }
    unlock(shard);
    return known;
}

/* erase() may move a later entry into the place just emptied: look there again. */
static void take_context_of_shard(struct shard *shard, const void *context,
                                  void (*visit)(const struct hami_pointer *, void *), void *argument)
{
    for (size_t index = 0; index < shard->capacity;) {
        struct entry *entry = &shard->entries[index];
        if (entry->address == 0 || entry->context != context) {
            index++;
            continue;
        }
        const struct hami_pointer pointer = unpack(entry);
        erase(shard, entry);
        visit(&pointer, argument);
    }
}

void hami_pointers_take_context(const void *context, void (*visit)(const struct hami_pointer *, void *),
                                void *argument)
{
    for (size_t index = 0; index < SHARDS; index++) {
        struct shard *shard = &shards[index];
        wait_for_lock(shard);
        take_context_of_shard(shard, context, visit, argument);
        unlock(shard);
    }
}

void hami_pointers_after_fork(void)
{
    /* The arrays stay mapped: another thread may have been amid a change, and they cost nothing. */
    memset(shards, 0, sizeof shards);
}
