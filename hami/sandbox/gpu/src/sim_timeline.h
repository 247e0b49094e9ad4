/* sim_timeline.h: how long kernels take, and who has had how much of a GPU's time.
 *
 * A tag is a point of a GPU's virtual time. What is queued ends at a tag; when that is by the clock
 * depends on what others queue meanwhile, and so is known only once it is past.
 */
#ifndef SIM_TIMELINE_H
#define SIM_TIMELINE_H

#include "sim_node.h"

/* Queue so much device time behind what this process has queued on the GPU; the tag of its end. */
uint64_t sim_timeline_queue(unsigned gpu, uint64_t duration_ns);

/* The GPU's virtual time now. */
uint64_t sim_timeline_now(unsigned gpu);

/* Whether the tag is past. */
bool sim_timeline_reached(unsigned gpu, uint64_t tag);

/* Return once the tag is past, or `give_up` says so (NULL: never); it is asked every few ms. */
void sim_timeline_wait(unsigned gpu, uint64_t tag, bool (*give_up)(unsigned gpu));

/* When by the clock the GPU was at the tag; 0: not yet. */
uint64_t sim_timeline_when(unsigned gpu, uint64_t tag);

/* Bring the GPU's clock up to date; the node's lock is held. */
void sim_timeline_advance_locked(struct sim_node *node, unsigned gpu);

/* Drop all that the entry has queued, on every GPU; the node's lock is held. */
void sim_timeline_forget_locked(struct sim_node *node, unsigned place);

/* Device time that an entry has really had: queued, less what is still to run. Lock held. */
uint64_t sim_timeline_executed_locked(const struct sim_node *node, unsigned place, unsigned gpu);

#endif
