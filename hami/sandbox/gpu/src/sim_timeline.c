/* sim_timeline.c: how long kernels take. No work is done; time is kept.
 *
 * Each process has its own queue on each GPU. The GPU is shared evenly by the processes that have
 * kernels queued: a kernel queued while n of them are busy takes n times its duration. The share is
 * fixed at the moment of queueing, so the queue is kept short.
 */
#define _GNU_SOURCE
#include "sim_node.h"

#define QUEUE_NS UINT64_C(100000000) /* most that may be queued before a launch blocks */

static unsigned busy_others(const struct sim_node *node, const struct sim_process *own, unsigned gpu,
                            uint64_t now)
{
    unsigned busy = 0;
    for (uint32_t i = 0; i < atomic_load(&node->process_high); i++) {
        const struct sim_process *process = &node->processes[i];
        busy += process != own && atomic_load(&process->token) != 0 &&
                atomic_load(&process->rows[gpu].until_ns) > now;
    }
    return busy;
}

uint64_t sim_queue_kernel(unsigned gpu, uint64_t duration_ns)
{
    struct sim_process *process = sim_process();
    struct sim_row *row = &process->rows[gpu];
    uint64_t until = atomic_load(&row->until_ns);
    for (;;) {
        const uint64_t now = sim_now_ns();
        if (until > now + QUEUE_NS) {
            sim_sleep_until(until - QUEUE_NS);
            until = atomic_load(&row->until_ns);
            continue;
        }
        const unsigned sharers = 1 + busy_others(sim_node(), process, gpu, now);
        const uint64_t end = (until > now ? until : now) + duration_ns * sharers;
        if (atomic_compare_exchange_weak(&row->until_ns, &until, end)) {
            atomic_fetch_add(&row->busy_ns, duration_ns);
            return end;
        }
    }
}

uint64_t sim_executed_ns(const struct sim_node *node, const struct sim_process *process, unsigned gpu)
{
    const uint64_t now = sim_now_ns();
    const uint64_t until = atomic_load(&process->rows[gpu].until_ns);
    const uint64_t busy = atomic_load(&process->rows[gpu].busy_ns);
    const uint64_t left = until > now ? (until - now) / (1 + busy_others(node, process, gpu, now)) : 0;
    return busy > left ? busy - left : 0;
}
