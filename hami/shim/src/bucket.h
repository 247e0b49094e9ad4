/* bucket.h: the computing-time policy. Knows the region, no driver and no CUDA type.
 *
 *     credit = hami_bucket_take(&region, device, need, most);   waits until that much was granted
 *     ... work worth `need` is submitted, the rest of the credit pays for what comes next ...
 *     hami_bucket_settle(&region, device, measured - charged);
 *
 * Device time is handed out along the line that the agent writes into control; all processes of the
 * container draw from one counter in usage. The argument is in docs/region.md.
 */
#ifndef HAMI_BUCKET_H
#define HAMI_BUCKET_H

#include "attach.h"

#define HAMI_COST_MAX_NS UINT64_C(10000000000)       /* nothing is taken to cost more */
#define HAMI_RATE_MIN_NS UINT64_C(1000000)           /* a second: who is limited to nothing still moves */
#define HAMI_HEARTBEAT_MAX_NS UINT64_C(10000000000)  /* an older heartbeat is that of a dead agent */

/* CLOCK_MONOTONIC. */
uint64_t hami_bucket_now_ns(void);

/* What holds for the device now: BLOCK of a dead agent is LIMIT, what is no mode is LIMIT too, and LIMIT
 * without a grant that ever began is OFF. */
enum hami_core_mode hami_bucket_mode(const struct hami_region *region, unsigned device);

/* Device time granted to the container up to that moment. */
uint64_t hami_bucket_granted(const struct hami_region *region, unsigned device, uint64_t now_ns);

/* Take device time: `need_ns`, or a whole piece if that is more but not more than `most_ns`. Returns how
 * much, once it has been granted; 0 if the limit was lifted meanwhile: nothing is taken then, and nothing
 * needs to be paid. Waits while the device is blocked or suspended. Holds no lock. */
uint64_t hami_bucket_take(struct hami_region *region, unsigned device, uint64_t need_ns, uint64_t most_ns);

/* Work that was paid for took so much more device time (or less, if negative). Never waits. */
void hami_bucket_settle(struct hami_region *region, unsigned device, int64_t more_ns);

/* Sleep so long, at most 10 ms. */
void hami_bucket_nap(uint64_t ns);

#endif
