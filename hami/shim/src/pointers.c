/* pointers.c: 16 shards, each a spin lock and a table of buckets.
 *
 * A bucket holds five entries, and a word with a byte for each: a look-up compares all of them at
 * once, and seldom looks further. Addresses that lie together have buckets that lie together, since
 * programs allocate and free in runs: of a million pointers the next one is mostly in the cache. An
 * entry that found its bucket full stands in a later one, and each full bucket that it passed counts
 * it: where none has passed, no search goes on. So nothing moves but when the table grows.
 */
#define _GNU_SOURCE
#include "pointers.h"

#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#define SHARDS 16
#define ENTRIES 5 /* of a bucket */
#define RUN 8     /* buckets that lie together */
#define FIRST_BUCKETS 16
#define DEVICE_BITS 8
#define GRAIN_BITS 9   /* drivers give out addresses in steps of 512 */
#define BUCKET_BITS 10 /* two steps to a bucket, so that a dense run does not fill it */
#define RUN_BITS 13
#define HUGE_PAGE ((size_t)2 << 20)
#define INLINE static inline __attribute__((always_inline))
#define SELDOM static __attribute__((noinline, cold)) /* keeps the usual path short */

struct entry {
    uint64_t address;
    uint64_t bytes_and_device;
    void *context;
};

struct bucket {
    uint64_t tags; /* byte i: of entry i, with its top bit; 0: empty. The last one: how many passed */
    struct entry entry[ENTRIES];
};
_Static_assert(sizeof(struct bucket) == 128, "whole cache lines");

#define EACH UINT64_C(0x0000000101010101)
#define TOP (EACH << 7)
#define PASSED_BITS 56
#define PASSED_MOST 255 /* more than that are not counted down: the search goes on for nothing */

struct shard {
    _Alignas(64) atomic_flag lock;
    size_t buckets; /* 0 or a power of two, a multiple of RUN */
    size_t count;
    struct bucket *table;
};

struct place {
    struct bucket *bucket;
    int index;
};

static struct shard shards[SHARDS];

/* The same for addresses of one run, but for odd ones: what is no driver's address spreads. */
INLINE uint64_t hash(uint64_t address)
{
    const uint64_t odd = address & ((UINT64_C(1) << GRAIN_BITS) - 1);
    const uint64_t mixed = (address >> RUN_BITS ^ odd << 40) * UINT64_C(0x9e3779b97f4a7c15);
    return mixed ^ mixed >> 32;
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

static struct shard *lock_shard(uint64_t hashed)
{
    struct shard *shard = &shards[hashed % SHARDS];
    if (!try_lock(shard))
        wait_for_lock(shard);
    return shard;
}

static void unlock(struct shard *shard)
{
    atomic_flag_clear_explicit(&shard->lock, memory_order_release);
}

/* The top bits turn the order within a run: addresses that begin runs do not share first buckets. */
static size_t home(const struct shard *shard, uint64_t address, uint64_t hashed)
{
    const uint64_t within = (address >> BUCKET_BITS ^ hashed >> 61) % RUN;
    return (hashed / SHARDS * RUN + within) & (shard->buckets - 1);
}

static struct bucket *after(const struct shard *shard, const struct bucket *bucket)
{
    return &shard->table[((size_t)(bucket - shard->table) + 1) & (shard->buckets - 1)];
}

static uint64_t tag_of(uint64_t address, uint64_t hashed)
{
    return 0x80 | ((address >> GRAIN_BITS ^ hashed >> 54) & 0x7f);
}

/* The entry with that address, or -1. */
INLINE int find(const struct bucket *bucket, uint64_t address, uint64_t tag)
{
    const uint64_t differs = bucket->tags ^ tag * EACH;
    for (uint64_t same = (differs - EACH) & ~differs & TOP; same != 0; same &= same - 1) {
        const int index = __builtin_ctzll(same) / 8;
        if (bucket->entry[index].address == address)
            return index;
    }
    return -1;
}

static int find_empty(const struct bucket *bucket)
{
    const uint64_t empty = ~bucket->tags & TOP;
    return empty != 0 ? __builtin_ctzll(empty) / 8 : -1;
}

static uint64_t passed(const struct bucket *bucket)
{
    return bucket->tags >> PASSED_BITS;
}

static void count_passed(struct bucket *bucket, int64_t change)
{
    if (passed(bucket) != PASSED_MOST)
        bucket->tags += (uint64_t)change << PASSED_BITS;
}

INLINE struct place search(const struct shard *shard, struct bucket *first, uint64_t address,
                           uint64_t tag)
{
    struct bucket *bucket = first;
    int index = find(bucket, address, tag);
    while (__builtin_expect(index < 0 && passed(bucket) != 0, 0)) {
        bucket = after(shard, bucket);
        if (bucket == first)
            break;
        index = find(bucket, address, tag);
    }
    return (struct place){bucket, index};
}

/* Put the entry into the first bucket that has room, and let the full ones know. Needs room. */
INLINE void insert(const struct shard *shard, struct bucket *bucket, uint64_t tag,
                   struct entry entry)
{
    int index = find_empty(bucket);
    while (__builtin_expect(index < 0, 0)) {
        count_passed(bucket, 1);
        bucket = after(shard, bucket);
        index = find_empty(bucket);
    }
    bucket->tags |= tag << index * 8;
    bucket->entry[index] = entry;
}

INLINE void erase(struct shard *shard, struct bucket *first, struct place place)
{
    place.bucket->tags &= ~(UINT64_C(0xff) << place.index * 8);
    shard->count--;
    for (struct bucket *bucket = first; bucket != place.bucket; bucket = after(shard, bucket))
        count_passed(bucket, -1);
}

/* Where the search for an address begins; its second line is on the way, for it may be far. */
static struct bucket *bucket_of(const struct shard *shard, uint64_t address, uint64_t hashed)
{
    struct bucket *bucket = &shard->table[home(shard, address, hashed)];
    __builtin_prefetch(&bucket->entry[3], 1);
    return bucket;
}

static struct bucket *map_table(size_t bytes)
{
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    if (bytes >= 2 * HUGE_PAGE)
        madvise(map, bytes, MADV_HUGEPAGE);
    return map;
}

static bool is_used(const struct bucket *bucket, int index)
{
    return bucket->tags >> index * 8 & 0x80;
}

SELDOM bool grow(struct shard *shard)
{
    const struct shard old = {.buckets = shard->buckets, .table = shard->table};
    const size_t buckets = old.buckets != 0 ? old.buckets * 2 : FIRST_BUCKETS;
    struct bucket *table = map_table(buckets * sizeof *table);
    if (table == NULL)
        return false;
    shard->buckets = buckets;
    shard->table = table;
    for (size_t from = 0; from < old.buckets; from++)
        for (int i = 0; i < ENTRIES; i++) {
            const struct entry entry = old.table[from].entry[i];
            const uint64_t hashed = hash(entry.address);
            if (is_used(&old.table[from], i))
                insert(shard, &table[home(shard, entry.address, hashed)],
                       tag_of(entry.address, hashed), entry);
        }
    if (old.buckets != 0)
        munmap(old.table, old.buckets * sizeof *table);
    return true;
}

INLINE struct hami_pointer unpack(struct place place)
{
    const struct entry *entry = &place.bucket->entry[place.index];
    return (struct hami_pointer){
        .address = entry->address,
        .bytes = entry->bytes_and_device >> DEVICE_BITS,
        .device = (unsigned)(entry->bytes_and_device & ((1U << DEVICE_BITS) - 1)),
        .context = entry->context,
    };
}

/* `known` is what the table has at that address, if it has anything: it is replaced, or stays. */
INLINE bool put(const struct hami_pointer *pointer, struct hami_pointer *known, bool replace)
{
    const uint64_t hashed = hash(pointer->address);
    const uint64_t tag = tag_of(pointer->address, hashed);
    const struct entry entry = {pointer->address, pointer->bytes << DEVICE_BITS | pointer->device,
                                pointer->context};
    struct shard *shard = lock_shard(hashed);
    const bool room = shard->count * 2 < shard->buckets * ENTRIES || grow(shard);
    if (room) {
        struct bucket *first = bucket_of(shard, pointer->address, hashed);
        const struct place place = search(shard, first, pointer->address, tag);
        known->address = 0;
        if (__builtin_expect(place.index < 0, 1)) {
            insert(shard, first, tag, entry);
            shard->count++;
        } else {
            *known = unpack(place);
            if (replace)
                place.bucket->entry[place.index] = entry;
        }
    }
    unlock(shard);
    return room;
}

bool hami_pointers_put(const struct hami_pointer *pointer, struct hami_pointer *stale)
{
    return put(pointer, stale, true);
}

bool hami_pointers_put_back(const struct hami_pointer *pointer)
{
    struct hami_pointer newer = {.address = 0};
    return !put(pointer, &newer, false) || newer.address == 0;
}

bool hami_pointers_take(uint64_t address, struct hami_pointer *pointer)
{
    const uint64_t hashed = hash(address);
    struct shard *shard = lock_shard(hashed);
    bool known = false;
    if (shard->count != 0) {
        struct bucket *first = bucket_of(shard, address, hashed);
        const struct place place = search(shard, first, address, tag_of(address, hashed));
        known = place.index >= 0;
        if (known) {
            *pointer = unpack(place);
            erase(shard, first, place);
        }
    }
    unlock(shard);
    return known;
}

static void take_context_of_shard(struct shard *shard, const void *context,
                                  void (*visit)(const struct hami_pointer *, void *), void *argument)
{
    for (size_t at = 0; at < shard->buckets; at++)
        for (int i = 0; i < ENTRIES; i++) {
            const struct place place = {&shard->table[at], i};
            if (!is_used(place.bucket, i) || place.bucket->entry[i].context != context)
                continue;
            const struct hami_pointer pointer = unpack(place);
            const uint64_t hashed = hash(pointer.address);
            erase(shard, &shard->table[home(shard, pointer.address, hashed)], place);
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
    /* The tables stay mapped: another thread may have been amid a change, and they cost nothing. */
    memset(shards, 0, sizeof shards);
}
