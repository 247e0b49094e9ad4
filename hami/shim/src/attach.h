/* attach.h: one process's hold on the region: the mappings, its slot, and its share of housekeeping.
 *
 *     struct hami_region region;
 *     if (hami_region_attach(&region) == HAMI_ENFORCING)
 *         ... hami_limits_charge(&region, device, bytes) ...
 */
#ifndef HAMI_ATTACH_H
#define HAMI_ATTACH_H

#include "process.h"
#include "region.h"

struct hami_region {
    const struct hami_control *control; /* mapped read-only */
    struct hami_usage *usage;           /* mapped shared */
    int slot;                           /* index of our slot, or HAMI_ANONYMOUS_SLOT */
    struct hami_process self;
};

enum hami_attachment {
    HAMI_INERT = 1, /* nothing asks for limits: stand aside */
    HAMI_REFUSING,  /* limits are asked for but cannot be known or kept: grant no memory */
    HAMI_ENFORCING,
};

/* Find the files, map them and claim a slot. Prints one line where they are unusable. */
enum hami_attachment hami_region_attach(struct hami_region *region);

/* Drop the mappings. The slot stays as it is: memory may still be held (docs/region.md). */
void hami_region_detach(struct hami_region *region);

/* Devices listed in control, clamped to HAMI_DEVICES. */
unsigned hami_region_device_count(const struct hami_region *region);

/* Claim a slot for region->self and set region->slot. Reclaims what processes left that are gone. The
 * slot is the anonymous one where none is free, or /proc did not tell who we are: two processes that
 * are nobody could not tell their slots apart. */
void hami_slot_claim(struct hami_region *region);

/* Whether a living slot's owner has that pid, as it sees itself or as the host does. */
bool hami_slots_know(const struct hami_region *region, int32_t pid);

/* Take over and empty the slots of dead processes that hold charges. Returns how many. */
int hami_slots_reclaim(struct hami_region *region);

/* Free the slot if `token` still owns it: the caller knows that its process is dead. */
bool hami_slot_reclaim(struct hami_region *region, int index, uint64_t token);

#endif
