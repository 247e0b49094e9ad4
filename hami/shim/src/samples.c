/* samples.c: a ring of event pairs for each device.
 *
 * A sample is owned by the thread that moved its state on: FREE -> HELD while the launch is made,
 * PENDING until the device has done it, HELD again by whoever looks. Its events stay for the next
 * launch of the same context. The thread is in relaxed capture mode meanwhile: a query is then allowed
 * even if another thread begins to capture at that very moment.
 */
#include "samples.h"

#include <string.h>

#include "bucket.h"
#include "capture.h"
#include "hooks.h"
#include "shim.h"

#define RING 32
#define OF_A_CONTEXT 8               /* samples at most, so that one leaves room for others */
#define UNKNOWN_OUTSTANDING 2        /* launches of what was never measured, before one must be done */
#define QUEUE_NS UINT64_C(200000000) /* estimated work behind the oldest sample */
#define CATCH_UP_NS UINT64_C(250000000)
#define NAP_MIN_NS UINT64_C(50000)
#define NAP_MAX_NS UINT64_C(2000000)
#define GAP_NS UINT64_C(30000) /* a launch that takes the host longer tells little of a short kernel */
#define DOUBTS 3               /* in a row: then what is doubtful is all there is */
#define RELAXED 2              /* CU_STREAM_CAPTURE_MODE_RELAXED */

enum state { FREE, HELD, PENDING };

struct hami_sample {
    _Atomic int state;
    _Atomic(CUcontext) context; /* that made the events; NULL: there are none */
    _Atomic uint64_t key;
    _Atomic uint64_t submitted_ns;
    CUevent start, end;
    struct hami_work work;
    uint32_t epoch;
    bool idle;       /* the stream was: what the host took between is no work */
    uint64_t gap_ns; /* from the first event until the launch returned */
};

static struct hami_sample rings[HAMI_DEVICES][RING];
static _Atomic uint64_t submitted[HAMI_DEVICES];
static _Atomic int pending[HAMI_DEVICES]; /* about how many; spares a search */
static _Atomic bool used;

uint64_t hami_samples_submitted_ns(unsigned device)
{
    return atomic_load_explicit(&submitted[device], memory_order_relaxed);
}

void hami_samples_submit(unsigned device, uint64_t ns)
{
    atomic_fetch_add_explicit(&submitted[device], ns, memory_order_relaxed);
}

static CUcontext current_context(void)
{
    CUcontext context = NULL;
    return HAMI_CUDA(cuCtxGetCurrent, &context) == CUDA_SUCCESS ? context : NULL;
}

static bool hold(struct hami_sample *sample, int from)
{
    int seen = from;
    return atomic_compare_exchange_strong_explicit(&sample->state, &seen, HELD, memory_order_acquire,
                                                   memory_order_relaxed);
}

static void leave(struct hami_sample *sample, int state)
{
    atomic_store_explicit(&sample->state, state, memory_order_release);
}

static int count_pending(unsigned device, int more)
{
    return atomic_fetch_add_explicit(&pending[device], more, memory_order_relaxed);
}

static bool has_events(struct hami_sample *sample, CUcontext context)
{
    if (atomic_load(&sample->context) == context)
        return true;
    if (HAMI_CUDA(cuEventCreate, &sample->start, 0) != CUDA_SUCCESS)
        return false;
    if (HAMI_CUDA(cuEventCreate, &sample->end, 0) != CUDA_SUCCESS) {
        HAMI_CUDA(cuEventDestroy_v2, sample->start);
        return false;
    }
    atomic_store(&sample->context, context);
    return true;
}

/* A free sample with events of this context, or none yet. */
static struct hami_sample *hold_free(unsigned device, CUcontext context)
{
    struct hami_sample *ring = rings[device];
    int own = 0;
    for (int i = 0; i < RING; i++) {
        const CUcontext owner = atomic_load(&ring[i].context);
        own += owner == context;
        if (owner == context && hold(&ring[i], FREE)) {
            if (atomic_load(&ring[i].context) == context)
                return &ring[i];
            leave(&ring[i], FREE);
        }
    }
    for (int i = 0; own < OF_A_CONTEXT && i < RING; i++)
        if (atomic_load(&ring[i].context) == NULL && hold(&ring[i], FREE)) {
            if (atomic_load(&ring[i].context) == NULL)
                return &ring[i];
            leave(&ring[i], FREE);
        }
    return NULL;
}

/* The program's mode comes back by a second call. */
static void exchange_mode(int *mode)
{
    HAMI_CUDA(cuThreadExchangeStreamCaptureMode, mode);
}

static bool record_start(struct hami_sample *sample, const struct hami_work *work, CUcontext context)
{
    int mode = RELAXED;
    exchange_mode(&mode);
    bool recorded = has_events(sample, context);
    sample->idle = recorded && HAMI_CUDA(cuStreamQuery, work->stream) == CUDA_SUCCESS;
    recorded = recorded && HAMI_CUDA(cuEventRecord, sample->start, work->stream) == CUDA_SUCCESS;
    sample->gap_ns = hami_bucket_now_ns();
    exchange_mode(&mode);
    return recorded;
}

struct hami_sample *hami_sample_begin(const struct hami_work *work)
{
    const CUcontext context = current_context();
    if (context == NULL || hami_capture_is_active())
        return NULL;
    struct hami_sample *sample = hold_free(work->device, context);
    if (sample == NULL)
        return NULL;
    atomic_store_explicit(&used, true, memory_order_relaxed);
    if (!record_start(sample, work, context)) {
        leave(sample, FREE);
        return NULL;
    }
    sample->work = *work;
    sample->epoch = atomic_load_explicit(&work->cost->epoch, memory_order_relaxed);
    atomic_store(&sample->key, work->key);
    atomic_store(&sample->submitted_ns, hami_samples_submitted_ns(work->device));
    atomic_store_explicit(&work->cost->timed_at_ns, hami_samples_submitted_ns(work->device),
                          memory_order_relaxed);
    return sample;
}

void hami_sample_end(struct hami_sample *sample, CUstream stream, bool launched)
{
    sample->gap_ns = hami_bucket_now_ns() - sample->gap_ns;
    if (launched && !hami_capture_is_active() &&
        HAMI_CUDA(cuEventRecord, sample->end, stream) == CUDA_SUCCESS) {
        count_pending(sample->work.device, 1);
        leave(sample, PENDING);
    } else
        leave(sample, FREE);
}

/* On an idle stream the first event is over at once, and the host's own time counts as the kernel's.
 * Where that is much, what is left is doubtful; but a driver that launches synchronously never tells
 * more. Returns what the launch is to be paid for. */
static uint64_t learn(const struct hami_sample *sample, uint64_t elapsed)
{
    struct hami_cost *cost = sample->work.cost;
    const uint64_t gap = !sample->idle ? 0 : sample->gap_ns < elapsed ? sample->gap_ns : elapsed;
    const uint64_t least = elapsed - gap > HAMI_COST_MIN_NS ? elapsed - gap : HAMI_COST_MIN_NS;
    if (atomic_load_explicit(&cost->key, memory_order_relaxed) != sample->work.key ||
        atomic_load_explicit(&cost->epoch, memory_order_relaxed) != sample->epoch)
        return least;
    if (gap < GAP_NS || gap < elapsed / 4) {
        atomic_store_explicit(&cost->doubts, 0, memory_order_relaxed);
        return hami_cost_learn(cost, least);
    }
    if (atomic_fetch_add_explicit(&cost->doubts, 1, memory_order_relaxed) < DOUBTS)
        return least;
    return hami_cost_learn(cost, elapsed);
}

static void settle(const struct hami_sample *sample, float milliseconds)
{
    const double ns = (double)milliseconds * 1e6;
    const uint64_t elapsed = ns < 0 ? 0 : ns > (double)HAMI_COST_MAX_NS ? HAMI_COST_MAX_NS : (uint64_t)ns;
    const int64_t more = (int64_t)learn(sample, elapsed) - (int64_t)sample->work.charged_ns;
    hami_bucket_settle(hami_region(), sample->work.device, more);
}

/* The sample is held. The state to leave it in. */
static int judge(struct hami_sample *sample)
{
    float milliseconds = 0;
    const CUresult done = HAMI_CUDA(cuEventQuery, sample->end);
    if (done == CUDA_ERROR_NOT_READY)
        return PENDING;
    if (done == CUDA_SUCCESS &&
        HAMI_CUDA(cuEventElapsedTime, &milliseconds, sample->start, sample->end) == CUDA_SUCCESS)
        settle(sample, milliseconds);
    count_pending(sample->work.device, -1);
    return FREE;
}

void hami_samples_harvest(unsigned device)
{
    if (count_pending(device, 0) <= 0 || hami_capture_is_active())
        return;
    const CUcontext context = current_context();
    int mode = RELAXED;
    bool exchanged = false;
    for (int i = 0; context != NULL && i < RING; i++) {
        struct hami_sample *sample = &rings[device][i];
        if (atomic_load(&sample->context) != context || !hold(sample, PENDING))
            continue;
        if (atomic_load(&sample->context) != context) {
            leave(sample, PENDING);
            continue;
        }
        if (!exchanged)
            exchange_mode(&mode);
        exchanged = true;
        leave(sample, judge(sample));
    }
    if (exchanged)
        exchange_mode(&mode);
}

/* How many launches of that key are pending, and how much was submitted since the oldest of any. */
static int outstanding(const struct hami_work *work, uint64_t *behind_ns)
{
    const CUcontext context = current_context();
    const uint64_t now = hami_samples_submitted_ns(work->device);
    int count = 0;
    *behind_ns = 0;
    for (int i = 0; i < RING; i++) {
        struct hami_sample *sample = &rings[work->device][i];
        if (atomic_load(&sample->state) != PENDING || atomic_load(&sample->context) != context)
            continue;
        const uint64_t behind = now - atomic_load(&sample->submitted_ns);
        count += atomic_load(&sample->key) == work->key;
        *behind_ns = behind > *behind_ns ? behind : *behind_ns;
    }
    return count;
}

static bool is_ahead(const struct hami_work *work)
{
    uint64_t behind;
    if (count_pending(work->device, 0) <= 0)
        return false;
    const int count = outstanding(work, &behind);
    return behind > QUEUE_NS || (count >= UNKNOWN_OUTSTANDING && hami_cost_is_unknown(work->cost));
}

void hami_samples_catch_up(const struct hami_work *work)
{
    if (hami_capture_is_active() || !is_ahead(work))
        return;
    const uint64_t start = hami_bucket_now_ns();
    uint64_t nap = NAP_MIN_NS;
    while (!hami_capture_is_active() && is_ahead(work) &&
           hami_bucket_now_ns() - start < CATCH_UP_NS &&
           hami_bucket_mode(hami_region(), work->device) == HAMI_CORE_LIMIT) {
        hami_bucket_nap(nap);
        nap = nap * 2 < NAP_MAX_NS ? nap * 2 : NAP_MAX_NS;
        hami_samples_harvest(work->device);
    }
}

bool hami_samples_are_used(void)
{
    return atomic_load_explicit(&used, memory_order_relaxed);
}

void hami_samples_forget_context(CUcontext context)
{
    if (!hami_samples_are_used() || context == NULL)
        return;
    for (int i = 0; i < HAMI_DEVICES * RING; i++) {
        struct hami_sample *sample = &rings[i / RING][i % RING];
        if (atomic_load(&sample->context) != context)
            continue;
        const bool was_pending = hold(sample, PENDING);
        if (!was_pending && !hold(sample, FREE))
            continue;
        count_pending((unsigned)(i / RING), was_pending ? -1 : 0);
        if (atomic_load(&sample->context) == context) {
            HAMI_CUDA(cuEventDestroy_v2, sample->start); /* a green context would leave them behind */
            HAMI_CUDA(cuEventDestroy_v2, sample->end);
            atomic_store(&sample->context, NULL);
        }
        leave(sample, FREE);
    }
}

void hami_samples_after_fork(void)
{
    if (atomic_exchange(&used, false))
        memset(rings, 0, sizeof rings);
    memset((void *)pending, 0, sizeof pending);
    memset((void *)submitted, 0, sizeof submitted);
}
