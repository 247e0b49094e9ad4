/* gate.c: the slow half of the gate: new pulses, refills of credit, launches that are timed. */
#include "gate.h"

#include <time.h>

#include "bucket.h"
#include "hooks.h"
#include "shim.h"

#define LONG_NS UINT64_C(200000) /* a kernel whose time does not depend on what the host does meanwhile */
#define LAUNCHES_A_REFILL 128 /* and up to 31 more */
#define MASK ((UINT64_C(1) << HAMI_DEVICES) - 1)

static const _Atomic uint64_t no_limits = 0;
static const _Atomic uint64_t not_started = UINT64_MAX;

const _Atomic uint64_t *_Atomic hami_pulse = &not_started;
#define NOTHING ((const void *)UINTPTR_MAX) /* no handle */

_Thread_local struct hami_thread hami_thread __attribute__((tls_model("initial-exec"))) = {.handle = NOTHING};
static _Atomic bool single; /* control lists one device: no need to ask which */

static __attribute__((noinline)) int ask_for_device(void)
{
    CUdevice ordinal = 0;
    if (HAMI_CUDA(cuCtxGetDevice, &ordinal) != CUDA_SUCCESS)
        return HAMI_UNLISTED;
    return hami_device_of_ordinal(ordinal);
}

/* The device that the thread's current context is on. */
static inline int current_device(void)
{
    return atomic_load_explicit(&single, memory_order_relaxed) ? 0 : ask_for_device();
}

static bool is_limited(uint64_t pulse, int device)
{
    return device != HAMI_UNLISTED && (pulse >> device & 1) != 0;
}

static unsigned class_of(uint64_t threads)
{
    return threads == HAMI_GRAPH ? HAMI_COST_GRAPH : hami_cost_class(threads);
}

bool hami_gate_pays_for(const void *handle, uint64_t threads)
{
    struct hami_thread *thread = &hami_thread;
    const int device = current_device();
    if (!is_limited(thread->paced_pulse, device))
        return true;
    if (thread->time_next)
        return false;
    struct hami_cost *cost = hami_cost_look(hami_cost_key(handle, class_of(threads), (unsigned)device));
    if (cost == NULL)
        return false;
    if (atomic_load_explicit(&single, memory_order_relaxed)) {
        thread->handle = handle;
        thread->threads = threads;
        thread->cost = cost;
    }
    const uint64_t ns = atomic_load_explicit(&cost->settled_ns, memory_order_relaxed);
    if (ns == 0 || ns > thread->credit_ns[device])
        return false;
    thread->credit_ns[device] -= ns;
    return true;
}

static uint64_t coarse_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* A pulse that this thread has not seen: it submits work, and modes may have changed. Credit is for
 * devices that are paced: where they are held, it would be a way around. */
static void note(uint64_t pulse)
{
    struct hami_thread *thread = &hami_thread;
    struct hami_region *region = hami_region();
    atomic_store_explicit(&region->usage->slots[region->slot].last_submit_ns, coarse_now_ns(),
                          memory_order_relaxed);
    for (unsigned device = 0; device < HAMI_DEVICES; device++)
        if ((pulse >> device & 1) != 0 && hami_bucket_mode(region, device) != HAMI_CORE_LIMIT)
            thread->credit_ns[device] = 0;
    if ((pulse & MASK) == 0)
        thread->calm_pulse = pulse;
    else
        thread->paced_pulse = pulse;
}

/* The pulse of now, noted. 0 where nothing is limited. */
static uint64_t take_pulse(void)
{
    if (hami_start() != HAMI_ENFORCING)
        return 0;
    const uint64_t pulse = atomic_load_explicit(atomic_load(&hami_pulse), memory_order_acquire);
    if (pulse != hami_thread.calm_pulse && pulse != hami_thread.paced_pulse)
        note(pulse);
    return pulse & MASK;
}

/* True once the thread has paid; false if the limit was lifted meanwhile. It takes no more than some
 * 140 launches' worth: only a refill can time one, and an estimate that is far too low ends there. Not
 * always as many, for then one of two kernels in turn would never be the one that refills. */
static bool pay(unsigned device, uint64_t cost)
{
    uint64_t *credit = &hami_thread.credit_ns[device];
    const bool held = hami_bucket_mode(hami_region(), device) != HAMI_CORE_LIMIT;
    const uint64_t had = held ? 0 : *credit;
    if (held || had < cost) {
        const uint64_t jitter = hami_samples_submitted_ns(device) * UINT64_C(0x9e3779b97f4a7c15) >> 59;
        const uint64_t taken =
            hami_bucket_take(hami_region(), device, cost - had, cost * (LAUNCHES_A_REFILL + jitter));
        *credit = 0;
        if (taken == 0)
            return false;
        hami_samples_submit(device, taken);
        *credit = had + taken;
    }
    *credit = *credit > cost ? *credit - cost : 0;
    return true;
}

/* After a wait the stream is idle, and what the host takes between event and kernel is hard to tell
 * from a short kernel. The launch after it finds the stream busy, and is timed instead. */
static bool is_to_be_timed(const struct hami_work *work)
{
    struct hami_thread *thread = &hami_thread;
    const bool due = hami_cost_wants_timing(work->cost, hami_samples_submitted_ns(work->device));
    const bool postponed = thread->time_next;
    thread->time_next = false;
    if (!due || postponed || work->charged_ns >= LONG_NS || hami_cost_is_unsettled(work->cost))
        return due || postponed;
    thread->time_next = true;
    thread->handle = NOTHING;
    return false;
}

static void begin_on(struct hami_launch *launch, unsigned device, bool timed)
{
    struct hami_work work = {.device = device, .stream = launch->stream};
    work.cost = hami_cost_enter(launch->handle, class_of(launch->threads), device);
    work.key = hami_cost_key(launch->handle, class_of(launch->threads), device);
    hami_samples_harvest(device);
    hami_samples_catch_up(&work);
    const uint64_t cost = hami_cost_ns(work.cost);
    work.charged_ns = cost < HAMI_COST_MAX_NS ? cost : HAMI_COST_MAX_NS;
    if (pay(device, work.charged_ns) && timed && is_to_be_timed(&work))
        launch->sample = hami_sample_begin(&work);
}

void hami_launch_begin(struct hami_launch *launch)
{
    launch->sample = NULL;
    const uint64_t limited = take_pulse();
    if (limited == 0 || (hami_capture_is_active() && hami_capture_covers(launch->stream)))
        return;
    const int device = current_device();
    if (is_limited(limited, device))
        begin_on(launch, (unsigned)device, true);
}

void hami_launch_pay(const struct hami_launch *launch, int device)
{
    struct hami_launch own = *launch;
    if (is_limited(take_pulse(), device))
        begin_on(&own, (unsigned)device, false);
}

void hami_launch_end(struct hami_launch *launch, CUresult result)
{
    if (launch->sample != NULL)
        hami_sample_end(launch->sample, launch->stream, result == CUDA_SUCCESS);
}

void hami_gate_attached(enum hami_attachment attachment)
{
    const bool enforcing = attachment == HAMI_ENFORCING;
    atomic_store(&single, enforcing && hami_region_device_count(hami_region()) == 1);
    atomic_store(&hami_pulse, enforcing ? &hami_region()->control->pulse : &no_limits);
}

void hami_gate_after_fork(void)
{
    atomic_store(&hami_pulse, &not_started);
    hami_thread = (struct hami_thread){.handle = NOTHING};
}
