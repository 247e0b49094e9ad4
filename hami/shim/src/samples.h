/* samples.h: launches that are timed, by a pair of the driver's events around them.
 *
 * A few a device and process; nothing is made before the first launch that is timed. An event is only
 * touched by a thread whose current context made it. */
#ifndef HAMI_SAMPLES_H
#define HAMI_SAMPLES_H

#include "cost.h"
#include "driver.h"

struct hami_sample;

/* One launch that is to be paid for. */
struct hami_work {
    unsigned device;
    CUstream stream;
    struct hami_cost *cost;
    uint64_t key;        /* of the cost: its entry may become another's */
    uint64_t charged_ns;
};

/* Begin to time the launch that comes next. NULL: not now. */
struct hami_sample *hami_sample_begin(const struct hami_work *work);

/* It was launched, or was not. */
void hami_sample_end(struct hami_sample *sample, CUstream stream, bool launched);

/* Learn from what is done, and settle the difference with the bucket. */
void hami_samples_harvest(unsigned device);

/* Wait until the device has caught up with what we know nothing of, or with a queue that is far longer
 * than was estimated; 250 ms at most. */
void hami_samples_catch_up(const struct hami_work *work);

/* Device time that this process has taken so far. */
uint64_t hami_samples_submitted_ns(unsigned device);
void hami_samples_submit(unsigned device, uint64_t ns);

/* False: nothing was ever timed. */
bool hami_samples_are_used(void);

/* A context, and with it its events, is about to be destroyed. */
void hami_samples_forget_context(CUcontext context);

/* After fork, in the child: there are no events. */
void hami_samples_after_fork(void);

#endif
