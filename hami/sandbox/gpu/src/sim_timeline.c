/* sim_timeline.c: the time of each GPU, shared exactly by the processes that have work queued.
 *
 * Each process has one queue on each GPU, whatever its streams. While n processes have work, each
 * gets 1/n of the device, as if it were cut into infinitely thin slices (generalised processor
 * sharing). That is kept by one number for each GPU, its virtual time: what a process would have had
 * if it had always had work. It passes at 1/n of the pace of the clock. A kernel queued at virtual time v behind
 * nothing ends at v + duration, and nothing that is queued later, by whomever, changes that. So
 * queueing is a few stores, no thread is needed, and the device time that processes have had adds up
 * to the time that the device was busy, to the nanosecond.
 *
 * Virtual time moves only when someone queues or asks. It is then advanced in steps, from one
 * process's last kernel to the next, and from one NVML period to the next. All under the node's
 * lock. The clock is kept twice and switched by one store, so that a kill between any two stores
 * loses no time and counts none twice.
 */
#define _GNU_SOURCE
#include "sim_timeline.h"

#include <sched.h>
#include <time.h>

#define REAP_NS UINT64_C(4000000)       /* how often to look whether those with work are dead */
#define SHARED_NAP_NS UINT64_C(4000000) /* longest sleep while others may die and speed us up */
#define LONE_NAP_NS UINT64_C(20000000)
#define SPIN_NS UINT64_C(60000)  /* shorter than a sleep can be */
#define MERGE_NS UINT64_C(10000) /* changes of pace closer than this become one point */

static _Atomic uint64_t seen[SIM_GPUS]; /* virtual time as last seen here: it never goes back */

static bool bit(const uint64_t *words, unsigned place)
{
    return words[place / 64] >> place % 64 & 1;
}

static void set_bit(uint64_t *words, unsigned place)
{
    words[place / 64] |= UINT64_C(1) << place % 64;
}

static void clear_bit(uint64_t *words, unsigned place)
{
    words[place / 64] &= ~(UINT64_C(1) << place % 64);
}

/* The first set bit at or after `place`, or SIM_PROCESSES. */
static unsigned next_bit(const uint64_t *words, unsigned place)
{
    for (unsigned word = place / 64; word < SIM_WORDS; word++) {
        const uint64_t rest = words[word] & (word == place / 64 ? ~UINT64_C(0) << place % 64 : ~UINT64_C(0));
        if (rest != 0)
            return word * 64 + (unsigned)__builtin_ctzll(rest);
    }
    return SIM_PROCESSES;
}

#define FOR_EACH(place, words)                                                                     \
    for (unsigned place = next_bit(words, 0); place < SIM_PROCESSES; place = next_bit(words, place + 1))

static const struct sim_clock *clock_of(const struct sim_timeline *timeline)
{
    return &timeline->clocks[atomic_load(&timeline->current) & 1];
}

static void set_clock(struct sim_timeline *timeline, const struct sim_clock *clock)
{
    const uint32_t other = (atomic_load(&timeline->current) & 1) ^ 1;
    timeline->clocks[other] = *clock;
    atomic_store(&timeline->current, other);
}

static uint64_t executed(const struct sim_row *row, uint64_t virtual_ns)
{
    const uint64_t left = row->finish_ns > virtual_ns ? row->finish_ns - virtual_ns : 0;
    const uint64_t queued = atomic_load(&row->busy_ns);
    return queued > left ? queued - left : 0;
}

uint64_t sim_timeline_executed_locked(const struct sim_node *node, unsigned place, unsigned gpu)
{
    return executed(&node->processes[place].rows[gpu], clock_of(&node->timelines[gpu])->virtual_ns);
}

/* Remember the pace's change, for sim_timeline_when. */
static void add_point(struct sim_timeline *timeline, const struct sim_clock *clock)
{
    const uint64_t count = timeline->point_count;
    const struct sim_point *last = count != 0 ? &timeline->points[(count - 1) % SIM_POINTS] : NULL;
    const bool merge = count > 1 && clock->time_ns - last->time_ns < MERGE_NS;
    timeline->points[(merge ? count - 1 : count) % SIM_POINTS] =
        (struct sim_point){clock->time_ns, clock->virtual_ns};
    if (!merge)
        timeline->point_count = count + 1;
}

static void keep_sample(struct sim_sample *samples, uint64_t period, uint64_t busy_ns)
{
    samples[period % SIM_SAMPLES] = (struct sim_sample){period, busy_ns};
}

/* A period has ended: keep what everyone had of it. */
static void take_samples(struct sim_node *node, unsigned gpu, const struct sim_clock *clock)
{
    struct sim_timeline *timeline = &node->timelines[gpu];
    const uint64_t period = timeline->period_end_ns / node->nvml_period_ns - 1;
    FOR_EACH (place, timeline->touched) {
        struct sim_row *row = &node->processes[place].rows[gpu];
        const uint64_t had = executed(row, clock->virtual_ns);
        keep_sample(row->samples, period, had - row->sampled_ns);
        row->sampled_ns = had;
        if (!bit(timeline->active, place))
            clear_bit(timeline->touched, place);
    }
    keep_sample(timeline->samples, period, clock->busy_ns - timeline->sampled_ns);
    timeline->sampled_ns = clock->busy_ns;
    timeline->period_end_ns += node->nvml_period_ns;
}

/* How many have work, and when by virtual time the first of them is done. */
static uint64_t count_active(const struct sim_node *node, unsigned gpu, uint64_t *first_ns)
{
    uint64_t count = 0;
    *first_ns = UINT64_MAX;
    FOR_EACH (place, node->timelines[gpu].active) {
        const uint64_t finish = node->processes[place].rows[gpu].finish_ns;
        *first_ns = finish < *first_ns ? finish : *first_ns;
        count++;
    }
    return count;
}

/* Move the clock to `limit` or to the next process's last kernel, whichever is first. What cannot be
 * shared evenly, less than a nanosecond each, is left for the next time: false. */
static bool step(struct sim_node *node, unsigned gpu, struct sim_clock *clock, uint64_t limit_ns)
{
    struct sim_timeline *timeline = &node->timelines[gpu];
    uint64_t first;
    const uint64_t sharers = count_active(node, gpu, &first);
    if (sharers != clock->sharers) {
        if ((sharers > 1 ? sharers : 1) != (clock->sharers > 1 ? clock->sharers : 1))
            add_point(timeline, clock);
        clock->sharers = sharers;
    }
    if (sharers == 0) {
        clock->virtual_ns += limit_ns - clock->time_ns;
        clock->time_ns = limit_ns;
        return false;
    }
    uint64_t each = (limit_ns - clock->time_ns) / sharers;
    const bool ends = first <= clock->virtual_ns + each;
    if (ends)
        each = first > clock->virtual_ns ? first - clock->virtual_ns : 0;
    clock->virtual_ns += each;
    clock->time_ns += each * sharers;
    clock->busy_ns += each * sharers;
    if (ends)
        FOR_EACH (place, timeline->active)
            if (node->processes[place].rows[gpu].finish_ns <= clock->virtual_ns)
                clear_bit(timeline->active, place);
    return ends;
}

static void start_clock(struct sim_node *node, unsigned gpu, uint64_t now)
{
    const struct sim_clock clock = {.time_ns = now, .virtual_ns = now};
    node->timelines[gpu].period_end_ns = (now / node->nvml_period_ns + 1) * node->nvml_period_ns;
    set_clock(&node->timelines[gpu], &clock);
}

static void advance_to(struct sim_node *node, unsigned gpu, uint64_t now)
{
    struct sim_timeline *timeline = &node->timelines[gpu];
    if (clock_of(timeline)->time_ns == 0)
        start_clock(node, gpu, now);
    struct sim_clock clock = *clock_of(timeline);
    while (timeline->period_end_ns <= now) {
        while (step(node, gpu, &clock, timeline->period_end_ns))
            ;
        set_clock(timeline, &clock);
        take_samples(node, gpu, &clock);
        if (clock.sharers == 0 && next_bit(timeline->touched, 0) == SIM_PROCESSES &&
            now > timeline->period_end_ns + node->nvml_period_ns)
            timeline->period_end_ns = now / node->nvml_period_ns * node->nvml_period_ns;
    }
    while (clock.time_ns < now && step(node, gpu, &clock, now))
        ;
    set_clock(timeline, &clock);
    atomic_store(&seen[gpu], clock.virtual_ns);
}

static void drop(struct sim_node *node, unsigned place, unsigned gpu)
{
    struct sim_timeline *timeline = &node->timelines[gpu];
    struct sim_row *row = &node->processes[place].rows[gpu];
    atomic_store(&row->busy_ns, executed(row, clock_of(timeline)->virtual_ns));
    row->finish_ns = 0;
    clear_bit(timeline->active, place);
    clear_bit(timeline->touched, place);
}

void sim_timeline_advance_locked(struct sim_node *node, unsigned gpu)
{
    struct sim_timeline *timeline = &node->timelines[gpu];
    const uint64_t now = sim_now_ns();
    advance_to(node, gpu, now);
    if (clock_of(timeline)->sharers == 0 || now < timeline->reaped_ns + REAP_NS)
        return;
    timeline->reaped_ns = now;
    FOR_EACH (place, timeline->active)
        if (sim_is_dead_locked(&node->processes[place]))
            drop(node, place, gpu);
}

void sim_timeline_forget_locked(struct sim_node *node, unsigned place)
{
    for (unsigned gpu = 0; gpu < node->gpu_count; gpu++)
        if (clock_of(&node->timelines[gpu])->time_ns != 0) {
            advance_to(node, gpu, sim_now_ns());
            drop(node, place, gpu);
        }
}

uint64_t sim_timeline_queue(unsigned gpu, uint64_t duration_ns)
{
    struct sim_process *process = sim_process();
    struct sim_node *node = sim_node();
    if (process == NULL)
        return 0;
    struct sim_row *row = &process->rows[gpu];
    const unsigned place = (unsigned)(process - node->processes);
    sim_node_lock(node);
    sim_timeline_advance_locked(node, gpu);
    struct sim_timeline *timeline = &node->timelines[gpu];
    const uint64_t now = clock_of(timeline)->virtual_ns;
    const uint64_t tag = (row->finish_ns > now ? row->finish_ns : now) + duration_ns;
    if (tag > now) {
        row->finish_ns = tag;
        atomic_fetch_add(&row->busy_ns, duration_ns);
        set_bit(timeline->touched, place);
        set_bit(timeline->active, place);
    }
    sim_node_unlock(node);
    return tag;
}

uint64_t sim_timeline_now(unsigned gpu)
{
    struct sim_node *node = sim_node();
    sim_node_lock(node);
    sim_timeline_advance_locked(node, gpu);
    const uint64_t now = clock_of(&node->timelines[gpu])->virtual_ns;
    sim_node_unlock(node);
    return now;
}

bool sim_timeline_reached(unsigned gpu, uint64_t tag)
{
    return tag <= atomic_load(&seen[gpu]) || tag <= sim_timeline_now(gpu);
}

/* How long it takes until the tag is past if nobody queues anything more; 0: it is past. */
static uint64_t time_until(unsigned gpu, uint64_t tag, bool *shared)
{
    struct sim_node *node = sim_node();
    uint64_t sum = 0;
    sim_node_lock(node);
    sim_timeline_advance_locked(node, gpu);
    const struct sim_timeline *timeline = &node->timelines[gpu];
    const uint64_t now = clock_of(timeline)->virtual_ns;
    unsigned count = 0;
    FOR_EACH (place, timeline->active) {
        const uint64_t finish = node->processes[place].rows[gpu].finish_ns;
        sum += tag > now ? (finish < tag ? finish : tag) - now : 0;
        count++;
    }
    *shared = count > 1;
    if (tag > now && sum < tag - now)
        sum = tag - now;
    sim_node_unlock(node);
    return sum;
}

void sim_timeline_wait(unsigned gpu, uint64_t tag, bool (*give_up)(unsigned gpu))
{
    while (tag > atomic_load(&seen[gpu])) {
        bool shared;
        uint64_t left = time_until(gpu, tag, &shared);
        const uint64_t nap = shared ? SHARED_NAP_NS : LONE_NAP_NS;
        if (left == 0 || (give_up != NULL && give_up(gpu)))
            return;
        left = left < nap ? left : nap;
        const uint64_t until = sim_now_ns() + left;
        if (left > SPIN_NS)
            sim_sleep_until(until - SPIN_NS);
        while (sim_now_ns() < until)
            sched_yield();
    }
}

/* Where between two points of the past the tag lies. */
static uint64_t between(const struct sim_point *from, const struct sim_point *to, uint64_t tag)
{
    const uint64_t passed = to->virtual_ns - from->virtual_ns;
    const double part = passed != 0 ? (double)(tag - from->virtual_ns) / (double)passed : 0;
    return from->time_ns + (uint64_t)(part * (double)(to->time_ns - from->time_ns));
}

static uint64_t look_back(const struct sim_timeline *timeline, uint64_t tag)
{
    struct sim_point later = {clock_of(timeline)->time_ns, clock_of(timeline)->virtual_ns};
    const uint64_t count = timeline->point_count;
    for (uint64_t i = count; i > 0 && count - i < SIM_POINTS; i--) {
        const struct sim_point *point = &timeline->points[(i - 1) % SIM_POINTS];
        if (point->virtual_ns <= tag)
            return between(point, &later, tag);
        later = *point;
    }
    return later.time_ns - (later.virtual_ns - tag); /* before the first change there was but one */
}

uint64_t sim_timeline_when(unsigned gpu, uint64_t tag)
{
    struct sim_node *node = sim_node();
    uint64_t time = 0;
    sim_node_lock(node);
    sim_timeline_advance_locked(node, gpu);
    if (tag <= clock_of(&node->timelines[gpu])->virtual_ns)
        time = look_back(&node->timelines[gpu], tag);
    sim_node_unlock(node);
    return time;
}
