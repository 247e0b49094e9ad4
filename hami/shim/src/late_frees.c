/* late_frees.c: an event in the stream behind each free says when the memory is gone. Until then it
 * stays charged. Nobody waits for it: whoever synchronises, frees or is about to be refused looks.
 */
#include "late_frees.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "capture.h"
#include "hooks.h"
#include "pools.h"

#define LOOKS 4 /* at the oldest, at each further free: so many more go than come */

enum { EVENT_DISABLE_TIMING = 2 };

struct hami_late_free {
    struct hami_late_free *next;
    struct hami_pointer pointer;
    CUevent event; /* NULL: there is none; the next wait has to do */
};

static struct hami_late_free *oldest;
static struct hami_late_free **end = &oldest;
static atomic_flag list_lock = ATOMIC_FLAG_INIT;

static void lock(void)
{
    while (atomic_flag_test_and_set_explicit(&list_lock, memory_order_acquire))
        sched_yield();
}

static void unlock(void)
{
    atomic_flag_clear_explicit(&list_lock, memory_order_release);
}

static void append(struct hami_late_free *late)
{
    late->next = NULL;
    lock();
    *end = late;
    end = &late->next;
    unlock();
}

static struct hami_late_free *take_oldest(void)
{
    lock();
    struct hami_late_free *late = oldest;
    if (late != NULL && (oldest = late->next) == NULL)
        end = &oldest;
    unlock();
    return late;
}

static CUevent mark(CUstream stream)
{
    CUevent event = NULL;
    if (HAMI_CUDA(cuEventCreate, &event, EVENT_DISABLE_TIMING) != CUDA_SUCCESS)
        return NULL;
    if (HAMI_CUDA(cuEventRecord, event, stream) == CUDA_SUCCESS)
        return event;
    HAMI_CUDA(cuEventDestroy_v2, event);
    return NULL;
}

/* An event that fails is of work that failed, and that is over as well. */
static bool is_gone(const struct hami_late_free *late, bool waited)
{
    return late->event == NULL ? waited : HAMI_CUDA(cuEventQuery, late->event) != CUDA_ERROR_NOT_READY;
}

static void discharge(struct hami_late_free *late)
{
    hami_pointer_gone(&late->pointer);
    atomic_fetch_sub(&hami_pools_known, 1);
    free(late);
}

/* Look at so many of the oldest; those that are not gone become the youngest. */
static bool look(size_t count, bool waited)
{
    bool any = false;
    if (hami_capture_is_active()) /* a question could spoil it */
        return false;
    for (struct hami_late_free *late; count-- > 0 && (late = take_oldest()) != NULL;) {
        if (!is_gone(late, waited)) {
            append(late);
            continue;
        }
        if (late->event != NULL)
            HAMI_CUDA(cuEventDestroy_v2, late->event);
        discharge(late);
        any = true;
    }
    return any;
}

void hami_free_late(const struct hami_pointer *pointer, CUstream stream)
{
    struct hami_late_free *late = malloc(sizeof *late);
    if (late == NULL)
        return; /* it stays charged: too much is safe */
    *late = (struct hami_late_free){.pointer = *pointer, .event = mark(stream)};
    append(late);
    atomic_fetch_add(&hami_pools_known, 1);
    look(LOOKS, false);
}

bool hami_late_frees_settle(bool waited)
{
    size_t count = 0;
    lock();
    for (const struct hami_late_free *late = oldest; late != NULL; late = late->next)
        count++;
    unlock();
    return count != 0 && look(count, waited);
}

struct hami_late_free *hami_late_frees_take_context(CUcontext context)
{
    struct hami_late_free *taken = NULL;
    lock();
    for (struct hami_late_free **place = &oldest; *place != NULL;) {
        struct hami_late_free *late = *place;
        if (late->pointer.context != context) {
            place = &late->next;
            continue;
        }
        *place = late->next;
        late->next = taken;
        taken = late;
    }
    for (end = &oldest; *end != NULL; end = &(*end)->next)
        ;
    unlock();
    return taken;
}

void hami_late_frees_finish_context(struct hami_late_free *taken, bool destroyed)
{
    for (struct hami_late_free *next; taken != NULL; taken = next) {
        next = taken->next;
        if (destroyed)
            discharge(taken);
        else
            append(taken);
    }
}

void hami_late_frees_after_fork(void)
{
    oldest = NULL;
    end = &oldest;
    atomic_flag_clear(&list_lock);
}
