/* cost.h: what a launch is expected to cost: device time per function, size of launch and device.
 *
 * A table of this process, without locks and of fixed size. It only ever holds estimates: what one
 * thread overwrites of another's is learnt again. Why the key and the tracker are as they are is in
 * docs/decisions/0011-the-cost-of-a-launch-is-measured.md.
 */
#ifndef HAMI_COST_H
#define HAMI_COST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HAMI_COST_MIN_NS UINT64_C(500)
#define HAMI_COST_GUESS_NS UINT64_C(20000) /* of what was never measured */
#define HAMI_COST_GRAPH 255                /* the size class of an executable graph */
#define HAMI_COST_ENTRIES 4096
#define HAMI_COST_PROBES 8

struct hami_cost { /* a cache line */
    _Atomic uint64_t key;         /* 0: free */
    _Atomic uint64_t settled_ns;  /* the estimate, once it needs no closer look; else 0 */
    _Atomic uint64_t estimate_ns; /* 0: never measured, and nothing like it either */
    _Atomic uint64_t timed_at_ns; /* what the process had submitted when it was last timed */
    _Atomic uint64_t highest_ns;  /* smallest of the surprisingly long ones in a row */
    _Atomic uint32_t measured;    /* how often, since it was last forgotten */
    _Atomic uint32_t surprises;   /* in a row */
    _Atomic uint32_t epoch;       /* raised when it is forgotten */
    _Atomic uint32_t doubts;      /* measurements in a row that told little */
    uint32_t reserved[2];
};

extern struct hami_cost hami_costs[HAMI_COST_ENTRIES];

/* Two classes an octave of the number of threads: sizes of a class differ by half at most. */
static inline unsigned hami_cost_class(uint64_t threads)
{
    const unsigned octave = 63 - (unsigned)__builtin_clzll(threads | 1);
    return octave == 0 ? 0 : octave * 2 + (unsigned)(threads >> (octave - 1) & 1);
}

/* One word for all three; two things share it once in 2^64. */
static inline uint64_t hami_cost_key(const void *handle, unsigned size_class, unsigned device)
{
    uint64_t key = (uint64_t)(uintptr_t)handle + (((uint64_t)size_class << 8 | device) << 48);
    key *= UINT64_C(0x9e3779b97f4a7c15);
    return (key ^ key >> 32) | 1;
}

static inline unsigned hami_cost_place(uint64_t key, unsigned probe)
{
    return (unsigned)((key >> 20) + probe) % HAMI_COST_ENTRIES;
}

/* The entry of a key, or NULL. */
static inline struct hami_cost *hami_cost_look(uint64_t key)
{
    for (unsigned probe = 0; probe < HAMI_COST_PROBES; probe++) {
        struct hami_cost *cost = &hami_costs[hami_cost_place(key, probe)];
        const uint64_t seen = atomic_load_explicit(&cost->key, memory_order_relaxed);
        if (seen == key)
            return cost;
        if (seen == 0)
            break;
    }
    return NULL;
}

/* The entry of a launch, made if there is none: an old one gives way where there is no room. A new
 * one begins with what is known of the nearest other size. */
struct hami_cost *hami_cost_enter(const void *handle, unsigned size_class, unsigned device);

/* The estimate, or the guess. */
uint64_t hami_cost_ns(const struct hami_cost *cost);

/* Neither measured nor like anything that was. */
bool hami_cost_is_unknown(const struct hami_cost *cost);

/* Measured, if at all, too seldom to go by. */
static inline bool hami_cost_is_unsettled(const struct hami_cost *cost)
{
    return atomic_load_explicit(&cost->settled_ns, memory_order_relaxed) == 0;
}

/* True if it is time to time a launch. `submitted_ns` is what the process has submitted so far. */
bool hami_cost_wants_timing(const struct hami_cost *cost, uint64_t submitted_ns);

/* Learn from a timed launch; returns the device time that it is to be paid for. */
uint64_t hami_cost_learn(struct hami_cost *cost, uint64_t measured_ns);

/* An executable graph is gone: its handle may come to mean another one. */
void hami_cost_forget(const void *graph);

/* An executable graph was changed: measure it anew, and go by the old estimate until then. */
void hami_cost_relearn(const void *graph);

/* After fork, in the child: nothing is known. */
void hami_cost_after_fork(void);

#endif
