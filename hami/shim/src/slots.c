/* slots.c: who owns which slot. The owner word is the only lock, and a dead owner loses it.
 *
 * A slot is changed by its owner alone. To reclaim, a process first becomes the owner, by
 * compare-and-swap from the dead token to its own; killed half-way, it is a dead owner in turn.
 * Order on the way out: charges to zero, active bit off, owner to 0: whoever claims the slot next
 * finds it empty and switches the bit on before the first charge.
 */
#define _GNU_SOURCE
#include "attach.h"

#include <pthread.h>

#include "testpoint.h"

static void set_active(struct hami_usage *usage, int slot)
{
    atomic_fetch_or(&usage->active_words, UINT32_C(1) << (slot / 64)); /* before the first charge */
    if (slot == HAMI_ANONYMOUS_SLOT)
        return;
    atomic_fetch_or(&usage->active[slot / 64], UINT64_C(1) << (slot % 64));
}

static void clear_active(struct hami_usage *usage, int slot)
{
    atomic_fetch_and(&usage->active[slot / 64], ~(UINT64_C(1) << (slot % 64)));
}

static void empty(struct hami_slot *slot)
{
    for (int device = 0; device < HAMI_DEVICES; device++) {
        atomic_store(&slot->rows[device].pending_bytes, 0);
        atomic_store(&slot->rows[device].used_bytes, 0);
        atomic_store(&slot->rows[device].spent_ns, 0);
        atomic_store(&slot->rows[device].waited_ns, 0);
        atomic_store(&slot->rows[device].context_bytes, 0);
    }
    atomic_store(&slot->pid, 0);
    atomic_store(&slot->host_pid, 0);
    atomic_store(&slot->start_ticks, 0);
    atomic_store(&slot->pid_namespace, 0);
    atomic_store(&slot->last_submit_ns, 0);
}

static bool is_charged(const struct hami_slot *slot)
{
    for (int device = 0; device < HAMI_DEVICES; device++)
        if (atomic_load(&slot->rows[device].pending_bytes) != 0 ||
            atomic_load(&slot->rows[device].used_bytes) != 0)
            return true;
    return false;
}

/* Nobody owns the anonymous slot: take off what is charged now, and leave what comes after. */
static bool empty_anonymous(struct hami_slot *slot)
{
    for (int device = 0; device < HAMI_DEVICES; device++) {
        struct hami_usage_row *row = &slot->rows[device];
        atomic_fetch_sub(&row->pending_bytes, atomic_load(&row->pending_bytes));
        atomic_fetch_sub(&row->used_bytes, atomic_load(&row->used_bytes));
    }
    return true;
}

bool hami_slot_reclaim(struct hami_region *region, int index, uint64_t token)
{
    struct hami_slot *slot = &region->usage->slots[index];
    if (index == HAMI_ANONYMOUS_SLOT)
        return empty_anonymous(slot);
    if (!atomic_compare_exchange_strong(&slot->owner, &token, region->self.token))
        return false;
    hami_test_point("reclaim.taken");
    empty(slot);
    hami_test_point("reclaim.emptied");
    clear_active(region->usage, index);
    hami_test_point("reclaim.inactive");
    atomic_store(&slot->owner, 0);
    return true;
}

/* Only active slots are charged. The others are not even looked at: their pages are many. */
static int reclaim_if(struct hami_region *region,
                      bool (*is_dead)(uint64_t token, const struct hami_process *self))
{
    int reclaimed = 0;
    for (int word = 0; word < HAMI_SLOTS / 64; word++) {
        uint64_t bits = atomic_load(&region->usage->active[word]);
        for (; bits != 0; bits &= bits - 1) {
            const int index = word * 64 + __builtin_ctzll(bits);
            const struct hami_slot *slot = &region->usage->slots[index];
            const uint64_t token = atomic_load(&slot->owner);
            if (token != 0 && is_charged(slot) && is_dead(token, &region->self))
                reclaimed += hami_slot_reclaim(region, index, token);
        }
    }
    return reclaimed;
}

bool hami_slots_know(const struct hami_region *region, int32_t pid)
{
    for (int word = 0; word < HAMI_SLOTS / 64; word++) {
        uint64_t bits = atomic_load(&region->usage->active[word]);
        for (; bits != 0; bits &= bits - 1) {
            const struct hami_slot *slot = &region->usage->slots[word * 64 + __builtin_ctzll(bits)];
            if (atomic_load(&slot->owner) != 0 &&
                (atomic_load(&slot->pid) == pid || atomic_load(&slot->host_pid) == pid))
                return pid != 0;
        }
    }
    return false;
}

/* A thread that were cancelled while it reads /proc would leave a file open. */
int hami_slots_reclaim(struct hami_region *region)
{
    int cancelable;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancelable);
    const int reclaimed = reclaim_if(region, hami_process_is_dead);
    pthread_setcancelstate(cancelable, &cancelable);
    return reclaimed;
}

/* Who claims a slot owns none yet: what has our token is from before an exec. Two slots, if another
 * thread was just taking one from a dead process. */
static bool is_left_behind(uint64_t token, const struct hami_process *self)
{
    return token == self->token || hami_process_is_gone(token, self);
}

static bool take(struct hami_region *region, int index)
{
    struct hami_slot *slot = &region->usage->slots[index];
    uint64_t token = atomic_load(&slot->owner);
    if (token != 0 && !is_left_behind(token, &region->self))
        return false;
    return atomic_compare_exchange_strong(&slot->owner, &token, region->self.token);
}

void hami_slot_claim(struct hami_region *region)
{
    struct hami_usage *usage = region->usage;
    const bool known = region->self.pid_namespace != 0 && region->self.start_ticks != 0;
    reclaim_if(region, is_left_behind); /* zombies are found when memory runs short */
    for (int index = 0; known && index < HAMI_SLOTS; index++) {
        if (!take(region, index))
            continue;
        struct hami_slot *slot = &usage->slots[index];
        hami_test_point("claim.taken");
        empty(slot);
        hami_test_point("claim.emptied");
        atomic_store(&slot->pid, region->self.pid);
        atomic_store(&slot->pid_namespace, region->self.pid_namespace);
        atomic_store(&slot->start_ticks, region->self.start_ticks);
        hami_test_point("claim.named");
        set_active(usage, index);
        hami_test_point("claim.active");
        region->slot = index;
        return;
    }
    region->slot = HAMI_ANONYMOUS_SLOT;
    set_active(usage, HAMI_ANONYMOUS_SLOT);
}
