/* shim.h: what the hook files share: the started shim, and devices by region index. */
#ifndef HAMI_SHIM_H
#define HAMI_SHIM_H

#include "attach.h"
#include "driver.h"

#define HAMI_UNLISTED (-1) /* a device that control does not list: its limit is 0 */

extern struct hami_region hami_the_region;
extern _Atomic int hami_phase; /* start.c; above 0: an enum hami_attachment */

/* The slow half of hami_start. */
enum hami_attachment hami_start_now(void);

/* Start at the first hooked call, then only look. The region may be used if HAMI_ENFORCING. */
static inline enum hami_attachment hami_start(void)
{
    const int seen = atomic_load_explicit(&hami_phase, memory_order_acquire);
    return __builtin_expect(seen > 0, 1) ? (enum hami_attachment)seen : hami_start_now();
}

/* The region of this process. */
static inline struct hami_region *hami_region(void)
{
    return &hami_the_region;
}

/* Region index of a CUDA ordinal or an NVML handle, by device UUID, or HAMI_UNLISTED. */
int hami_device_of_ordinal(CUdevice ordinal);
int hami_device_of_handle(nvmlDevice_t handle);

/* After fork, in the child: ordinals may come to mean other devices. */
void hami_devices_after_fork(void);

struct hami_view { /* of one device's memory, as this container may see it */
    uint64_t total_bytes;
    uint64_t free_bytes;
    uint64_t used_bytes;
};

/* Narrow what the driver said (total, free, used) to the device's limit and our usage. Leaves it as
 * it is while there is no limit. Needs HAMI_ENFORCING or HAMI_REFUSING. */
void hami_view_narrow(struct hami_view *view, int device);

#endif
