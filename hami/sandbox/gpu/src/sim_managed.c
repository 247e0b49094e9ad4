/* sim_managed.c: where managed memory is. Only sums are kept, of each process and kind of advice.
 *
 * A kernel uses all managed memory of its process on its GPU. What prefers the host is read over the
 * bus each time. The rest moves to the device, into free room first, then into that of other
 * processes' managed memory with no better claim to be there; what finds no room comes over the bus
 * each time as well. Plain memory always gets room from managed memory.
 */
#define _GNU_SOURCE
#include <stddef.h>

#include "sim_managed.h"

#define BUS_BYTES_PER_US 25000

static uint64_t smaller(uint64_t left, uint64_t right)
{
    return left < right ? left : right;
}

static void change_resident(struct sim_node *node, struct sim_process *process, unsigned gpu,
                            enum sim_home home, uint64_t resident)
{
    struct sim_gpu *device = &node->gpus[gpu];
    const uint64_t before = process->managed[gpu].resident[home];
    process->managed[gpu].resident[home] = resident;
    atomic_store(&process->rows[gpu].bytes, atomic_load(&process->rows[gpu].bytes) - before + resident);
    const uint64_t used = atomic_load(&device->used_bytes) - before + resident;
    atomic_store(&device->used_bytes, used);
    if (used > atomic_load(&device->peak_bytes))
        atomic_store(&device->peak_bytes, used);
}

uint64_t sim_managed_evictable_locked(const struct sim_node *node, unsigned gpu)
{
    uint64_t evictable = 0;
    for (uint32_t i = 0; i < atomic_load(&node->process_high); i++)
        for (enum sim_home home = SIM_HOME_HOST; home < SIM_HOMES; home++)
            evictable += node->processes[i].managed[gpu].resident[home];
    return evictable;
}

uint64_t sim_managed_evict_locked(struct sim_node *node, unsigned gpu, uint64_t bytes,
                                  enum sim_home last, const struct sim_process *but)
{
    uint64_t evicted = 0;
    for (enum sim_home home = SIM_HOME_HOST; home <= last; home++)
        for (uint32_t i = 0; i < atomic_load(&node->process_high) && evicted < bytes; i++) {
            struct sim_process *process = &node->processes[i];
            const uint64_t resident = process->managed[gpu].resident[home];
            const uint64_t leaving = process == but ? 0 : smaller(resident, bytes - evicted);
            change_resident(node, process, gpu, home, resident - leaving);
            evicted += leaving;
        }
    atomic_fetch_add(&node->gpus[gpu].evicted_bytes, evicted);
    return evicted;
}

/* Bring bytes in, as many as there is room for. */
static uint64_t bring_in(struct sim_node *node, struct sim_process *process, unsigned gpu,
                         enum sim_home home, uint64_t bytes)
{
    const struct sim_gpu *device = &node->gpus[gpu];
    const uint64_t capacity = device->memory_bytes - device->reserved_bytes;
    if (capacity - atomic_load(&device->used_bytes) < bytes)
        sim_node_reap_locked(node);
    uint64_t room = capacity - atomic_load(&device->used_bytes);
    if (room < bytes)
        room += sim_managed_evict_locked(node, gpu, bytes - room, home, process);
    bytes = smaller(bytes, room);
    change_resident(node, process, gpu, home, process->managed[gpu].resident[home] + bytes);
    return bytes;
}

void sim_managed_add(unsigned gpu, enum sim_home home, uint64_t bytes)
{
    struct sim_process *process = sim_process();
    sim_node_lock(sim_node());
    process->managed[gpu].total[home] += bytes;
    sim_node_unlock(sim_node());
}

void sim_managed_remove(unsigned gpu, enum sim_home home, uint64_t bytes)
{
    struct sim_process *process = sim_process();
    struct sim_managed *managed = &process->managed[gpu];
    sim_node_lock(sim_node());
    managed->total[home] -= bytes;
    change_resident(sim_node(), process, gpu, home, smaller(managed->resident[home], managed->total[home]));
    sim_node_unlock(sim_node());
}

void sim_managed_change(unsigned gpu, enum sim_home from, enum sim_home to, uint64_t bytes)
{
    struct sim_process *process = sim_process();
    struct sim_managed *managed = &process->managed[gpu];
    sim_node_lock(sim_node());
    managed->total[from] -= bytes;
    managed->total[to] += bytes;
    const uint64_t moving = managed->resident[from] - smaller(managed->resident[from], managed->total[from]);
    managed->resident[from] -= moving;
    managed->resident[to] += moving;
    sim_node_unlock(sim_node());
}

void sim_managed_prefetch(unsigned gpu, enum sim_home home, uint64_t bytes, bool to_device)
{
    struct sim_process *process = sim_process();
    struct sim_managed *managed = &process->managed[gpu];
    sim_node_lock(sim_node());
    const uint64_t resident = managed->resident[home];
    if (to_device)
        bring_in(sim_node(), process, gpu, home, smaller(bytes, managed->total[home] - resident));
    else
        change_resident(sim_node(), process, gpu, home, resident - smaller(bytes, resident));
    sim_node_unlock(sim_node());
}

uint64_t sim_managed_fetch_ns(unsigned gpu)
{
    struct sim_process *process = sim_process();
    struct sim_node *node = sim_node();
    uint64_t moved = 0;
    if (process == NULL)
        return 0;
    const struct sim_managed *managed = &process->managed[gpu];
    if (managed->total[SIM_HOME_HOST] + managed->total[SIM_HOME_ANYWHERE] +
            managed->total[SIM_HOME_DEVICE] == 0)
        return 0; /* changed by this process alone: no lock */
    sim_node_lock(node);
    for (enum sim_home home = SIM_HOMES; home-- > SIM_HOME_HOST;) {
        const uint64_t missing = managed->total[home] - managed->resident[home];
        moved += missing;
        if (home != SIM_HOME_HOST)
            bring_in(node, process, gpu, home, missing);
    }
    atomic_fetch_add(&node->gpus[gpu].moved_bytes, moved);
    sim_node_unlock(node);
    return moved * 1000 / BUS_BYTES_PER_US;
}
