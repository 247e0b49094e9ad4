/* start.c: the lazy start at the first hooked call, once a process and again in a forked child. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#include "gate.h"
#include "graph_memory.h"
#include "limits.h"
#include "pointers.h"
#include "pools.h"
#include "shim.h"
#include "testpoint.h"
#include "vmm.h"

/* What pthread_atfork calls; asked of libc directly, for pthread_atfork itself would pull an old
 * glibc's libpthread into programs that have no threads. */
int __register_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void), void *library);
extern void *__dso_handle;

/* 0: not started; enum hami_attachment: done; -pid: being started by a thread of that process. A
 * child forked meanwhile finds its parent's pid here and starts afresh. */
_Atomic int hami_phase;
struct hami_region hami_the_region;

static void after_fork_in_child(void)
{
    if (atomic_load(&hami_phase) >= HAMI_REFUSING)
        hami_region_detach(&hami_the_region);
    hami_gate_after_fork();
    hami_samples_after_fork();
    hami_cost_after_fork();
    hami_capture_after_fork();
    hami_pointers_after_fork();
    hami_graph_memory_after_fork();
    hami_pools_after_fork();
    hami_vmm_after_fork();
    hami_limits_after_fork();
    hami_devices_after_fork();
    atomic_store(&hami_phase, 0);
}

static enum hami_attachment start_or_wait(void)
{
    static bool fork_handled; /* written only while hami_phase is ours */
    const int starting = -(int)getpid();
    for (;;) {
        int seen = atomic_load(&hami_phase);
        if (seen > 0)
            return (enum hami_attachment)seen;
        if (seen == starting) {
            sched_yield();
            continue;
        }
        if (atomic_compare_exchange_strong(&hami_phase, &seen, starting))
            break;
    }
    if (!fork_handled)
        __register_atfork(NULL, NULL, after_fork_in_child, __dso_handle);
    fork_handled = true; /* afterwards: forked in between, the child registers it twice, not never */
    hami_test_point("start.begun");
    const enum hami_attachment result = hami_region_attach(&hami_the_region);
    hami_test_point("start.attached");
    hami_gate_attached(result);
    atomic_store(&hami_phase, (int)result);
    return result;
}

/* A thread that were cancelled on the way would let all others wait for ever. */
enum hami_attachment hami_start_now(void)
{
    int cancelable;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancelable);
    const enum hami_attachment result = start_or_wait();
    pthread_setcancelstate(cancelable, &cancelable);
    return result;
}
