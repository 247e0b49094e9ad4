/* pools.h: device memory that the driver keeps in reserve: memory pools, and memory of graphs.
 *
 * What such a reserve is charged is what the driver says that it holds of the device, not what the
 * program has taken from it. It is measured after every call that may change it. Growth is announced
 * before the call that may cause it:
 *
 *     struct hami_growth growth;
 *     if (hami_pool_admit(pool, bytes, &growth) != 0)
 *         return "out of memory";
 *     call the driver
 *     if (hami_pool_settle(&growth) != 0)
 *         free again, hami_pool_shrink(pool), return "out of memory";
 */
#ifndef HAMI_POOLS_H
#define HAMI_POOLS_H

#include <stdbool.h>
#include <stdint.h>

#include "driver.h"
#include "pointers.h"

struct hami_pool; /* a reserve; lives as long as the process */

struct hami_pool_kind {
    /* What the driver has reserved, and what of it is in use. False: it does not say. */
    bool (*reserved)(const void *handle, uint64_t *bytes);
    bool (*used)(const void *handle, uint64_t *bytes);
    void (*trim)(const void *handle); /* let go of what is unused */
};

struct hami_growth { /* of one call in flight */
    struct hami_pool *pool; /* NULL: nothing is charged */
    uint64_t bytes;         /* announced */
};

/* Known reserves, and frees under way (late_frees.c); 0 is the usual case and costs one load. */
extern _Atomic int hami_pools_known;

/* The reserve with that handle, or NULL. */
struct hami_pool *hami_pool_find(const void *handle);

/* Make one known. `device`: region index or HAMI_UNLISTED; `counted`: false if it is no device memory;
 * `max_bytes`: 0 if it has no maximum. NULL: no memory to remember it in. */
struct hami_pool *hami_pool_add(const void *handle, const struct hami_pool_kind *kind, int device,
                                bool counted, uint64_t max_bytes);

/* Announce the growth that `bytes` more may cause. -ENOMEM: it does not fit. */
int hami_pool_admit(struct hami_pool *pool, uint64_t bytes, struct hami_growth *growth);

/* The same where less than `bytes` will do if we are right: where `bytes` do not fit, `likely` must. */
int hami_pool_admit_likely(struct hami_pool *pool, uint64_t bytes, uint64_t likely,
                           struct hami_growth *growth);

/* What it is charged. */
uint64_t hami_pool_charged(const struct hami_pool *pool);

/* After the driver's call, whatever came of it. -ENOMEM: the reserve has grown by more than was
 * announced, and that does not fit. */
int hami_pool_settle(const struct hami_growth *growth);

/* Trim the reserve and charge what is left of it, whether it fits or not. */
void hami_pool_shrink(struct hami_pool *pool);

/* Measure it again: something may have changed. */
void hami_pool_measure(struct hami_pool *pool);
void hami_pools_measure(void); /* all of them */

/* Let unused reserve of this process on the device go. Returns whether that made room. */
bool hami_pools_relieve(unsigned device);

/* Around the driver's destruction of a pool. */
struct hami_pool *hami_pool_begin_destroy(const void *handle);
void hami_pool_finish_destroy(struct hami_pool *pool, const void *handle, bool destroyed);

/* An entry for the table of pointers, of memory that was taken from the pool. */
struct hami_pointer hami_pool_pointer(struct hami_pool *pool, uint64_t address);

/* Whether an entry is of memory that was taken from a pool. */
bool hami_pointer_is_pooled(const struct hami_pointer *pointer);

/* The memory behind an entry that was taken out is gone: discharge it. For entries of every kind. */
void hami_pointer_gone(const struct hami_pointer *pointer);

/* Announce bytes as hami_limits_charge does; before it refuses, unused reserve of this process goes. */
int hami_charge(unsigned device, uint64_t bytes);

/* After fork, in the child: forget everything. */
void hami_pools_after_fork(void);

#endif
