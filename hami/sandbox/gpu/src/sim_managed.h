/* sim_managed.h: managed memory: more than the device has, as much of it there as there is room for. */
#ifndef SIM_MANAGED_H
#define SIM_MANAGED_H

#include "sim_node.h"

/* This process has so many more bytes of that kind on the GPU, none of them resident yet. */
void sim_managed_add(unsigned gpu, enum sim_home home, uint64_t bytes);
void sim_managed_remove(unsigned gpu, enum sim_home home, uint64_t bytes);

/* Bytes of that kind that are resident become another kind. */
void sim_managed_change(unsigned gpu, enum sim_home from, enum sim_home to, uint64_t bytes);

/* Bring up to so many bytes to the device, or send them to the host. */
void sim_managed_prefetch(unsigned gpu, enum sim_home home, uint64_t bytes, bool to_device);

/* A kernel uses all managed memory of this process: fetch it. Returns how long that takes. */
uint64_t sim_managed_fetch_ns(unsigned gpu);

/* Most that could leave. The node's lock is held. */
uint64_t sim_managed_evictable_locked(const struct sim_node *node, unsigned gpu);

/* Make room: so many bytes of others (`but` excepted; NULL: of all), of that kind and those before it,
 * leave the device. Returns how many did. The node's lock is held. */
uint64_t sim_managed_evict_locked(struct sim_node *node, unsigned gpu, uint64_t bytes,
                                  enum sim_home last, const struct sim_process *but);

#endif
