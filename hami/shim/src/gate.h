/* gate.h: what stands before every submission of work.
 *
 * The usual answer is one load of the pulse and one comparison with what this thread saw last: go on.
 * Where a limit holds and the thread has credit it is a look into a table and a subtraction.
 */
#ifndef HAMI_GATE_H
#define HAMI_GATE_H

#include "attach.h"
#include "capture.h"
#include "cost.h"
#include "driver.h"
#include "samples.h"

struct hami_thread { /* what a thread knows; small, for it takes from every thread's static block */
    uint64_t calm_pulse;  /* with this one there is nothing to do */
    uint64_t paced_pulse; /* with this one credit may be used */
    const void *handle;   /* what was launched last, ... */
    uint64_t threads;     /* ... of that size, ... */
    struct hami_cost *cost; /* ... at that cost; only where there is but one device */
    bool time_next;         /* the next launch is to be timed */
    uint64_t credit_ns[HAMI_DEVICES];
};

extern _Thread_local struct hami_thread hami_thread __attribute__((tls_model("initial-exec")));

/* control's pulse; a word of ours that is always 0 where no limit can hold, and one that is no pulse
 * before the start. */
extern const _Atomic uint64_t *_Atomic hami_pulse;

#define HAMI_GRAPH UINT64_MAX

/* A submission: what is launched, how large, into which stream. */
struct hami_launch {
    const void *handle;
    uint64_t threads; /* HAMI_GRAPH: of an executable graph */
    CUstream stream; /* as functions without _ptsz name it */
    struct hami_sample *sample; /* if it is timed */
};

/* No limit holds, and nothing has changed since this thread looked: submit. */
static inline bool hami_gate_is_calm(void)
{
    const uint64_t pulse = atomic_load_explicit(
        atomic_load_explicit(&hami_pulse, memory_order_relaxed), memory_order_relaxed);
    return pulse == hami_thread.calm_pulse;
}

/* The same for what is not the thread's last launch again. */
bool hami_gate_pays_for(const void *handle, uint64_t threads);

/* Else: credit pays for it, or its device has no limit: submit. */
static inline bool hami_gate_pays(const void *handle, uint64_t threads)
{
    struct hami_thread *thread = &hami_thread;
    const uint64_t pulse = atomic_load_explicit(
        atomic_load_explicit(&hami_pulse, memory_order_relaxed), memory_order_relaxed);
    if (__builtin_expect(pulse != thread->paced_pulse || hami_capture_is_active(), 0))
        return false;
    if (handle != thread->handle || threads != thread->threads)
        return hami_gate_pays_for(handle, threads);
    const uint64_t cost = atomic_load_explicit(&thread->cost->settled_ns, memory_order_relaxed);
    const uint64_t credit = thread->credit_ns[0];
    if (__builtin_expect(cost - 1 >= credit, 0)) /* not enough, or a cost that is not settled: 0 */
        return false;
    thread->credit_ns[0] = credit - cost;
    return true;
}

/* Else: between these two. Waits until it may be submitted; not for what is captured: that is neither delayed nor debited. */
void hami_launch_begin(struct hami_launch *launch);

/* The driver's answer to it. */
void hami_launch_end(struct hami_launch *launch, CUresult result);

/* Wait for this device alone: for launches that name theirs. Never timed. */
void hami_launch_pay(const struct hami_launch *launch, int device);

/* The region is attached, or is not to be. */
void hami_gate_attached(enum hami_attachment attachment);

/* After fork, in the child. */
void hami_gate_after_fork(void);

#endif
