/* cost.c: the table of estimates and the tracker that keeps them.
 *
 * A measured time is too long far more often than too short: another process had the device in
 * between, another stream's kernel ran first. So an estimate falls fast and rises slowly, and a time
 * that is much too long counts only when it comes three times in a row.
 */
#include "cost.h"

#include <string.h>

#include "region.h"

#define FIRST_TIMES 3 /* measurements of each entry before it is settled */
#define SURPRISES 3   /* in a row make a change */
#define TIMING_NS UINT64_C(5000000) /* submitted between two measurements of an entry, ... */
#define TIMING_LAUNCHES 96 /* ... or that many of it, if they are less */
#define NEIGHBOURS 4  /* size classes up and down that a first estimate is taken from */

struct hami_cost hami_costs[HAMI_COST_ENTRIES];
static _Atomic bool used; /* spares a child the memset */

static uint64_t load(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static void store(_Atomic uint64_t *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

static void reset(struct hami_cost *cost, uint64_t estimate)
{
    store(&cost->settled_ns, 0);
    store(&cost->estimate_ns, estimate);
    atomic_store_explicit(&cost->measured, 0, memory_order_relaxed);
    atomic_store_explicit(&cost->surprises, 0, memory_order_relaxed);
    atomic_fetch_add_explicit(&cost->epoch, 1, memory_order_relaxed);
}

/* What the nearest measured size costs: as it is if that is larger, in proportion if it is smaller. */
static uint64_t estimate_by_neighbours(const void *handle, unsigned size_class, unsigned device)
{
    for (unsigned far = 1; size_class != HAMI_COST_GRAPH && far <= NEIGHBOURS; far++) {
        const struct hami_cost *larger = hami_cost_look(hami_cost_key(handle, size_class + far, device));
        if (larger != NULL && load(&larger->estimate_ns) != 0)
            return load(&larger->estimate_ns);
        if (far > size_class)
            continue;
        const struct hami_cost *smaller = hami_cost_look(hami_cost_key(handle, size_class - far, device));
        if (smaller != NULL && load(&smaller->estimate_ns) != 0)
            return load(&smaller->estimate_ns) << (far + 1) / 2;
    }
    return 0;
}

/* A free place, or the one of another that the key itself picks. */
static struct hami_cost *make_room(uint64_t key)
{
    for (unsigned probe = 0; probe < HAMI_COST_PROBES; probe++) {
        struct hami_cost *cost = &hami_costs[hami_cost_place(key, probe)];
        uint64_t seen = 0;
        if (atomic_compare_exchange_strong(&cost->key, &seen, key) || seen == key)
            return cost;
    }
    struct hami_cost *victim = &hami_costs[hami_cost_place(key, (unsigned)(key >> 60) % HAMI_COST_PROBES)];
    store(&victim->settled_ns, 0);
    store(&victim->key, key);
    return victim;
}

struct hami_cost *hami_cost_enter(const void *handle, unsigned size_class, unsigned device)
{
    const uint64_t key = hami_cost_key(handle, size_class, device);
    struct hami_cost *cost = hami_cost_look(key);
    if (cost != NULL)
        return cost;
    atomic_store_explicit(&used, true, memory_order_relaxed);
    const uint64_t estimate = estimate_by_neighbours(handle, size_class, device);
    cost = make_room(key);
    reset(cost, estimate);
    return cost;
}

uint64_t hami_cost_ns(const struct hami_cost *cost)
{
    const uint64_t estimate = load(&cost->estimate_ns);
    return estimate != 0 ? estimate : HAMI_COST_GUESS_NS;
}

bool hami_cost_is_unknown(const struct hami_cost *cost)
{
    return load(&cost->estimate_ns) == 0;
}

bool hami_cost_wants_timing(const struct hami_cost *cost, uint64_t submitted_ns)
{
    const uint64_t estimate = load(&cost->settled_ns);
    const uint64_t spacing = estimate * TIMING_LAUNCHES < TIMING_NS ? estimate * TIMING_LAUNCHES : TIMING_NS;
    return estimate == 0 || submitted_ns - load(&cost->timed_at_ns) >= spacing;
}

static void set_estimate(struct hami_cost *cost, uint64_t estimate, bool settled)
{
    const uint64_t bounded = estimate < HAMI_COST_MIN_NS ? HAMI_COST_MIN_NS : estimate;
    store(&cost->estimate_ns, bounded);
    store(&cost->settled_ns, settled ? bounded : 0);
}

/* More than twice what was expected. Returns what it is to be paid for. */
static uint64_t learn_surprise(struct hami_cost *cost, uint64_t estimate, uint64_t measured)
{
    const uint32_t surprises = atomic_fetch_add_explicit(&cost->surprises, 1, memory_order_relaxed) + 1;
    if (surprises == 1 || measured < load(&cost->highest_ns))
        store(&cost->highest_ns, measured);
    if (surprises < SURPRISES) {
        store(&cost->settled_ns, 0); /* look closer: the next launches are timed */
        return 2 * estimate;
    }
    set_estimate(cost, load(&cost->highest_ns), true);
    atomic_store_explicit(&cost->surprises, 0, memory_order_relaxed);
    return measured;
}

uint64_t hami_cost_learn(struct hami_cost *cost, uint64_t measured_ns)
{
    const uint64_t estimate = load(&cost->estimate_ns);
    const uint32_t times = atomic_fetch_add_explicit(&cost->measured, 1, memory_order_relaxed) + 1;
    if (times == 1 || estimate == 0) {
        set_estimate(cost, measured_ns, false);
        return measured_ns;
    }
    if (measured_ns > 2 * estimate)
        return learn_surprise(cost, estimate, measured_ns);
    atomic_store_explicit(&cost->surprises, 0, memory_order_relaxed);
    const bool at_once = measured_ns < estimate / 2 || (times <= FIRST_TIMES && measured_ns < estimate);
    const uint64_t next = at_once                  ? measured_ns
                          : measured_ns < estimate ? estimate - (estimate - measured_ns + 1) / 2
                                                   : estimate + (measured_ns - estimate) / 8;
    set_estimate(cost, next, times >= FIRST_TIMES);
    return measured_ns;
}

static void reset_graph(const void *graph, bool keep)
{
    if (!atomic_load_explicit(&used, memory_order_relaxed))
        return;
    for (unsigned device = 0; device < HAMI_DEVICES; device++) {
        struct hami_cost *cost = hami_cost_look(hami_cost_key(graph, HAMI_COST_GRAPH, device));
        if (cost != NULL)
            reset(cost, keep ? load(&cost->estimate_ns) : 0);
    }
}

void hami_cost_forget(const void *graph)
{
    reset_graph(graph, false);
}

void hami_cost_relearn(const void *graph)
{
    reset_graph(graph, true);
}

void hami_cost_after_fork(void)
{
    if (atomic_exchange(&used, false))
        memset(hami_costs, 0, sizeof hami_costs);
}
