/* limits.h: the memory policy. Knows the region, no driver and no CUDA type.
 *
 *     if (hami_limits_charge(&region, device, bytes) != 0)
 *         return "out of memory";
 *     if (driver allocates)
 *         hami_limits_commit(&region, device, bytes);
 *     else
 *         hami_limits_withdraw(&region, device, bytes);
 *
 * Between charge and commit the bytes are announced: every other process counts them already, so
 * the sum of what is really allocated never passes the limit. The proof is in docs/region.md.
 * The core limiter of a launch will stand beside these, on the same region.
 */
#ifndef HAMI_LIMITS_H
#define HAMI_LIMITS_H

#include "attach.h"

/* Announce bytes. 0: they fit, go on to the driver. -ENOMEM: they do not, nothing is announced. */
int hami_limits_charge(struct hami_region *region, unsigned device, uint64_t bytes);

/* The announced bytes are allocated now. */
void hami_limits_commit(struct hami_region *region, unsigned device, uint64_t bytes);

/* The announced bytes were not allocated. */
void hami_limits_withdraw(struct hami_region *region, unsigned device, uint64_t bytes);

/* Bytes are allocated that nobody announced: count them, whether they fit or not. */
void hami_limits_impose(struct hami_region *region, unsigned device, uint64_t bytes);

/* Committed bytes were freed. */
void hami_limits_discharge(struct hami_region *region, unsigned device, uint64_t bytes);

/* Of the committed bytes, so many are a context's, or are no more (wraps: a difference). */
void hami_limits_note_context(struct hami_region *region, unsigned device, uint64_t change);

/* The device's limit now, HAMI_MEMORY_UNLIMITED where there is none. */
uint64_t hami_limits_memory(const struct hami_region *region, unsigned device);

/* Bytes allocated by all processes, and by nobody known (untracked). Drops the dead now and then. */
uint64_t hami_limits_used(struct hami_region *region, unsigned device);

/* After fork, in the child: forget whose turn it was. */
void hami_limits_after_fork(void);

#endif
