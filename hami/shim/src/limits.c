/* limits.c: announce, sum, decide. No lock: a process may be killed between any two lines.
 *
 * Every atomic here is sequentially consistent: of two processes that announce and then sum, at
 * least one must see the other. A reader takes pending before used, and a writer raises used before
 * it lowers pending: bytes on their way from one to the other are seen once or twice, never missed.
 */
#define _GNU_SOURCE
#include "limits.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "testpoint.h"

#define CONTENTION_NS UINT64_C(2000000000) /* longest wait on others' announcements */
#define RECLAIM_NS UINT64_C(50000000)      /* least time between two looks for the dead */
#define BACKOFF_MIN_NS UINT64_C(10000)
#define BACKOFF_DOUBLINGS 10
#define STABLE_TRIES 64
#define WORDS_MASK ((UINT32_C(2) << (HAMI_ANONYMOUS_SLOT / 64)) - 1) /* hostile bits point nowhere */

struct tally {
    uint64_t used;    /* committed, and untracked */
    uint64_t pending; /* announced, our own among it */
    uint64_t digest;  /* of every counter seen: two equal ones in a row make a snapshot */
    int first;        /* lowest slot that announces anything */
    int slots;        /* how many were summed */
};

/* The usual case needs no more of a tally than a sum: inlined, the rest of it costs nothing there. */
#define INLINE static inline __attribute__((always_inline))
#define SELDOM static __attribute__((noinline, cold))

static _Atomic int turn; /* one thread of this process at a time may insist; see contend() */

static uint64_t now_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static struct hami_usage_row *row_of(struct hami_region *region, unsigned device)
{
    return &region->usage->slots[region->slot].rows[device];
}

/* The usage file is writable by all of the container: sums saturate rather than wrap. */
static uint64_t add(uint64_t left, uint64_t right)
{
    return left + right < left ? UINT64_MAX : left + right;
}

INLINE void add_row(struct tally *tally, const struct hami_usage *usage, int slot, unsigned device)
{
    const struct hami_usage_row *row = &usage->slots[slot].rows[device];
    const uint64_t pending = atomic_load(&row->pending_bytes); /* before used: see above */
    const uint64_t used = atomic_load(&row->used_bytes);
    if (pending != 0 && tally->first > slot)
        tally->first = slot;
    tally->pending = add(tally->pending, pending);
    tally->used = add(tally->used, used);
    tally->digest = (tally->digest * 31 + pending) * 31 + used;
    tally->slots++;
}

INLINE struct tally take_tally(const struct hami_region *region, unsigned device)
{
    const struct hami_usage *usage = region->usage;
    struct tally tally = {
        .used = atomic_load(&region->control->devices[device].untracked_bytes),
        .first = HAMI_ANONYMOUS_SLOT,
    };
    uint32_t words = atomic_load(&usage->active_words) & WORDS_MASK;
    for (; words != 0; words &= words - 1) {
        const int word = __builtin_ctz(words);
        if (word == HAMI_ANONYMOUS_SLOT / 64) {
            add_row(&tally, usage, HAMI_ANONYMOUS_SLOT, device);
            continue;
        }
        for (uint64_t bits = atomic_load(&usage->active[word]); bits != 0; bits &= bits - 1)
            add_row(&tally, usage, word * 64 + __builtin_ctzll(bits), device);
    }
    return tally;
}

/* A sum taken while others move may mix two moments. Refusal needs one that is true of a moment: one
 * that a second look confirms. `tally` is the first look. */
static bool make_stable(const struct hami_region *region, unsigned device, struct tally *tally)
{
    for (int tries = 0; tries < STABLE_TRIES; tries++) {
        const uint64_t digest = tally->digest;
        *tally = take_tally(region, device);
        if (tally->digest == digest)
            return true;
    }
    return false;
}

/* One process of the container at a time, and not too often: it costs some 10 us a process. */
static void reclaim_now_and_then(struct hami_region *region)
{
    const uint64_t now = now_ns(CLOCK_MONOTONIC_COARSE);
    uint64_t last = atomic_load(&region->usage->reclaimed_ns);
    if (now - last >= RECLAIM_NS &&
        atomic_compare_exchange_strong(&region->usage->reclaimed_ns, &last, now))
        hami_slots_reclaim(region);
}

static void pause_with_jitter(unsigned round)
{
    const uint64_t span = BACKOFF_MIN_NS << (round < BACKOFF_DOUBLINGS ? round : BACKOFF_DOUBLINGS);
    const uint64_t now = now_ns(CLOCK_MONOTONIC);
    const uint64_t jitter = (now * UINT64_C(0x9e3779b97f4a7c15)) >> 32;
    nanosleep(&(struct timespec){.tv_nsec = (long)(span / 2 + jitter % span)}, NULL);
}

static void announce(struct hami_region *region, unsigned device, uint64_t bytes)
{
    atomic_fetch_add(&row_of(region, device)->pending_bytes, bytes);
    hami_test_point("charge.announced");
}

static bool fits(const struct tally *tally, uint64_t extra, uint64_t limit)
{
    return add(add(tally->used, tally->pending), extra) <= limit;
}

enum verdict { FITS, TOO_MUCH, CONTENDED };

/* Judge announced bytes: `pending` holds them. Looks for dead owners before it says TOO_MUCH. */
static enum verdict judge(struct hami_region *region, unsigned device, uint64_t bytes,
                          struct tally *tally)
{
    const uint64_t limit = hami_limits_memory(region, device);
    for (bool reclaimed = false;; reclaimed = true) {
        *tally = take_tally(region, device);
        const bool stable = make_stable(region, device, tally);
        if (fits(tally, 0, limit))
            return FITS;
        if (!stable || add(tally->used, bytes) <= limit)
            return CONTENDED;
        if (reclaimed || hami_slots_reclaim(region) == 0)
            return TOO_MUCH;
    }
}

/* Wait, without announcing, until the bytes would fit, the used memory alone forbids it, or time
 * is up. */
static void wait_for_room(struct hami_region *region, unsigned device, uint64_t bytes,
                          uint64_t deadline_ns)
{
    const uint64_t limit = hami_limits_memory(region, device);
    for (unsigned round = 0; now_ns(CLOCK_MONOTONIC) < deadline_ns; round++) {
        pause_with_jitter(round);
        reclaim_now_and_then(region);
        const struct tally tally = take_tally(region, device);
        if (fits(&tally, bytes, limit) || add(tally.used, bytes) > limit)
            return;
    }
}

/* The bytes would fit but for what others announce. If all backed out and came again, all might
 * fail for ever: so the lowest announcing slot, and in it the thread whose turn it is, insists; the
 * others back out and wait. The anonymous slot has many owners and never insists. */
static int contend_to_the_end(struct hami_region *region, unsigned device, uint64_t bytes)
{
    const uint64_t deadline_ns = now_ns(CLOCK_MONOTONIC) + CONTENTION_NS;
    struct tally tally;
    enum verdict verdict;
    bool my_turn = false;
    while ((verdict = judge(region, device, bytes, &tally)) == CONTENDED &&
           now_ns(CLOCK_MONOTONIC) < deadline_ns) {
        if (!my_turn && region->slot != HAMI_ANONYMOUS_SLOT)
            my_turn = atomic_compare_exchange_strong(&turn, &(int){0}, 1);
        if (my_turn && tally.first >= region->slot) {
            pause_with_jitter(0);
            reclaim_now_and_then(region);
            continue;
        }
        hami_limits_withdraw(region, device, bytes);
        wait_for_room(region, device, bytes, deadline_ns);
        announce(region, device, bytes);
    }
    if (my_turn)
        atomic_store(&turn, 0);
    if (verdict == FITS)
        return 0;
    hami_limits_withdraw(region, device, bytes);
    hami_test_point("charge.refused");
    return -ENOMEM;
}

/* A thread that were cancelled while it waits would leave its announcement behind. */
SELDOM int contend(struct hami_region *region, unsigned device, uint64_t bytes)
{
    int cancelable;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancelable);
    const int result = contend_to_the_end(region, device, bytes);
    pthread_setcancelstate(cancelable, &cancelable);
    return result;
}

int hami_limits_charge(struct hami_region *region, unsigned device, uint64_t bytes)
{
    const uint64_t limit = hami_limits_memory(region, device);
    if (bytes > limit)
        return -ENOMEM; /* also keeps absurd sizes out of everyone's sums */
    announce(region, device, bytes);
    const struct tally tally = take_tally(region, device);
    if (__builtin_expect(fits(&tally, 0, limit), 1))
        return 0;
    return contend(region, device, bytes);
}

void hami_limits_commit(struct hami_region *region, unsigned device, uint64_t bytes)
{
    hami_test_point("commit.begun");
    atomic_fetch_add(&row_of(region, device)->used_bytes, bytes); /* first: see above */
    hami_test_point("commit.counted");
    atomic_fetch_sub(&row_of(region, device)->pending_bytes, bytes);
}

void hami_limits_withdraw(struct hami_region *region, unsigned device, uint64_t bytes)
{
    hami_test_point("withdraw.begun");
    atomic_fetch_sub(&row_of(region, device)->pending_bytes, bytes);
}

void hami_limits_impose(struct hami_region *region, unsigned device, uint64_t bytes)
{
    atomic_fetch_add(&row_of(region, device)->used_bytes, bytes);
}

void hami_limits_discharge(struct hami_region *region, unsigned device, uint64_t bytes)
{
    hami_test_point("discharge.begun");
    atomic_fetch_sub(&row_of(region, device)->used_bytes, bytes);
}

void hami_limits_note_context(struct hami_region *region, unsigned device, uint64_t change)
{
    atomic_fetch_add(&row_of(region, device)->context_bytes, change);
}

uint64_t hami_limits_memory(const struct hami_region *region, unsigned device)
{
    return atomic_load_explicit(&region->control->devices[device].memory_limit_bytes,
                                memory_order_relaxed);
}

uint64_t hami_limits_used(struct hami_region *region, unsigned device)
{
    reclaim_now_and_then(region);
    struct tally tally = take_tally(region, device);
    if (tally.slots > 1) /* what is used of one slot is a single word */
        make_stable(region, device, &tally);
    return tally.used;
}

void hami_limits_after_fork(void)
{
    atomic_store(&turn, 0);
}
