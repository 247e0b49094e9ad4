/* start.c: the lazy start at the first hooked call, once a process and again in a forked child. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#include "limits.h"
#include "pointers.h"
#include "shim.h"

/* What pthread_atfork calls; asked of libc directly, for pthread_atfork itself would pull an old
 * glibc's libpthread into programs that have no threads. */
int __register_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void), void *library);
extern void *__dso_handle;

/* 0: not started; enum hami_attachment: done; -pid: being started by a thread of that process. A
 * child forked meanwhile finds its parent's pid here and starts afresh. */
static _Atomic int phase;
static struct hami_region the_region;

static void after_fork_in_child(void)
{
    if (atomic_load(&phase) >= HAMI_REFUSING)
        hami_region_detach(&the_region);
    hami_pointers_after_fork();
    hami_limits_after_fork();
    hami_devices_after_fork();
    atomic_store(&phase, 0);
}

static enum hami_attachment start(void)
{
    static _Atomic int fork_handled;
    const int starting = -(int)getpid();
    for (;;) {
        int seen = atomic_load(&phase);
        if (seen > 0)
            return (enum hami_attachment)seen;
        if (seen == starting) {
            sched_yield();
            continue;
        }
        if (atomic_compare_exchange_strong(&phase, &seen, starting))
            break;
    }
    if (atomic_exchange(&fork_handled, 1) == 0)
        __register_atfork(NULL, NULL, after_fork_in_child, __dso_handle);
    const enum hami_attachment result = hami_region_attach(&the_region);
    atomic_store(&phase, (int)result);
    return result;
}

enum hami_attachment hami_start(void)
{
    const int seen = atomic_load_explicit(&phase, memory_order_acquire);
    return __builtin_expect(seen > 0, 1) ? (enum hami_attachment)seen : start();
}

struct hami_region *hami_region(void)
{
    return &the_region;
}
