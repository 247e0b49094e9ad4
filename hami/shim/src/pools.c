/* pools.c: what each reserve is charged. Measure, announce, settle.
 *
 * Always true of a reserve: what the driver holds is at most `charged + left`, and both are in the
 * region, as used and as pending. `announced` is the sum of all calls in flight; `left` is what of it
 * no measurement has found allocated yet. A lock of its own for the bookkeeping of each reserve, never
 * held across a driver's allocation: whoever measures first settles the growth for all.
 */
#define _GNU_SOURCE
#include "pools.h"

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "late_frees.h"
#include "limits.h"
#include "shim.h"

#define FIRST_STEP_BYTES (UINT64_C(32) << 20) /* by which a pool grows, as far as is known at first */
#define LEAST_STEP_BYTES (UINT64_C(2) << 20)

struct hami_pool {
    _Atomic(const void *) handle; /* NULL: destroyed; nobody may be amid a measurement then */
    struct hami_pool *next;
    const struct hami_pool_kind *kind;
    int device;
    bool counted;
    uint64_t max_bytes;
    _Atomic size_t pointers; /* live ones */
    atomic_flag lock;        /* of what follows */
    bool idle;               /* may become another pool */
    uint64_t step;           /* the driver's unit of growth, as learnt */
    uint64_t announced;
    uint64_t left;
    _Atomic uint64_t charged; /* read without the lock as well */
    _Atomic unsigned calls;   /* in flight; likewise */
};

_Atomic int hami_pools_known;
static struct hami_pool *_Atomic first;
static atomic_flag list_lock = ATOMIC_FLAG_INIT;

static void lock(atomic_flag *flag)
{
    for (int spins = 0; atomic_flag_test_and_set_explicit(flag, memory_order_acquire); spins++)
        if (spins >= 64)
            sched_yield();
}

static void unlock(atomic_flag *flag)
{
    atomic_flag_clear_explicit(flag, memory_order_release);
}

static uint64_t smaller(uint64_t left, uint64_t right)
{
    return left < right ? left : right;
}

static uint64_t round_up(uint64_t value, uint64_t unit)
{
    return value > UINT64_MAX - unit ? UINT64_MAX : (value + unit - 1) / unit * unit;
}

struct hami_pool *hami_pool_find(const void *handle)
{
    struct hami_pool *pool = handle != NULL ? atomic_load(&first) : NULL;
    while (pool != NULL && atomic_load(&pool->handle) != handle)
        pool = pool->next;
    return pool;
}

/* One that is done with, or a new one at the end of nothing else's use. */
static struct hami_pool *idle_pool(void)
{
    for (struct hami_pool *pool = atomic_load(&first); pool != NULL; pool = pool->next) {
        lock(&pool->lock);
        const bool usable = pool->idle && pool->calls == 0;
        if (usable)
            pool->idle = false;
        unlock(&pool->lock);
        if (usable)
            return pool;
    }
    struct hami_pool *pool = calloc(1, sizeof *pool);
    if (pool != NULL) {
        atomic_flag_clear(&pool->lock);
        pool->next = atomic_load(&first);
        atomic_store(&first, pool);
    }
    return pool;
}

struct hami_pool *hami_pool_add(const void *handle, const struct hami_pool_kind *kind, int device,
                                bool counted, uint64_t max_bytes)
{
    lock(&list_lock);
    struct hami_pool *pool = hami_pool_find(handle); /* another thread may have been faster */
    if (pool == NULL && (pool = idle_pool()) != NULL) {
        pool->kind = kind;
        pool->device = device;
        pool->counted = counted;
        pool->max_bytes = max_bytes;
        pool->step = FIRST_STEP_BYTES;
        atomic_store(&pool->handle, handle);
        atomic_fetch_add(&hami_pools_known, 1);
    }
    unlock(&list_lock);
    return pool;
}

/* A driver that grows by less than we thought, or by more. One with a maximum may stop anywhere. */
static void learn_step(struct hami_pool *pool, uint64_t growth, bool surprising)
{
    const uint64_t unit = growth & -growth;
    if (pool->max_bytes != 0 || pool->calls != 1 || unit < LEAST_STEP_BYTES)
        return;
    if (surprising ? unit > pool->step : unit < pool->step)
        pool->step = unit;
}

static void trim(struct hami_pool *pool)
{
    lock(&pool->lock);
    const void *handle = atomic_load(&pool->handle);
    if (handle != NULL)
        pool->kind->trim(handle);
    unlock(&pool->lock);
}

/* Charge what the driver holds now, as far as it was announced. Returns the rest. `learn`: this is what
 * a call in flight has done. */
static uint64_t reconcile(struct hami_pool *pool, bool learn)
{
    struct hami_region *region = hami_region();
    const unsigned device = (unsigned)pool->device;
    uint64_t reserved = 0, excess = 0;
    lock(&pool->lock);
    const void *handle = atomic_load(&pool->handle);
    if (handle != NULL && pool->kind->reserved(handle, &reserved)) {
        if (reserved < pool->charged) {
            hami_limits_discharge(region, device, pool->charged - reserved);
            pool->charged = reserved;
        }
        const uint64_t growth = reserved - pool->charged;
        const uint64_t covered = smaller(growth, pool->left);
        if (covered != 0)
            hami_limits_commit(region, device, covered);
        pool->charged += covered;
        pool->left -= covered;
        excess = growth - covered;
        if (learn && growth != 0)
            learn_step(pool, growth, excess != 0);
    }
    unlock(&pool->lock);
    return excess;
}

/* Charge what is there, come what may: nothing else will be admitted until it fits again. */
static void impose(struct hami_pool *pool)
{
    const uint64_t excess = reconcile(pool, false);
    if (excess == 0)
        return;
    lock(&pool->lock);
    hami_limits_impose(hami_region(), (unsigned)pool->device, excess);
    pool->charged += excess;
    unlock(&pool->lock);
}

static int announce(struct hami_pool *pool, uint64_t bytes, struct hami_growth *growth)
{
    if (bytes != 0 && hami_limits_charge(hami_region(), (unsigned)pool->device, bytes) != 0)
        return -ENOMEM;
    lock(&pool->lock);
    pool->announced += bytes;
    pool->left += bytes;
    pool->calls++;
    unlock(&pool->lock);
    *growth = (struct hami_growth){pool, bytes};
    return 0;
}

static uint64_t worst_growth(struct hami_pool *pool, uint64_t bytes)
{
    lock(&pool->lock);
    const uint64_t room = pool->max_bytes > pool->charged ? pool->max_bytes - pool->charged : 0;
    const uint64_t worst = round_up(bytes, pool->step);
    unlock(&pool->lock);
    return pool->max_bytes != 0 ? smaller(worst, room) : worst;
}

/* The growth if everything unused in the reserve serves the request. */
static uint64_t least_growth(struct hami_pool *pool, uint64_t bytes)
{
    uint64_t reserved = 0, used = 0;
    lock(&pool->lock);
    const void *handle = atomic_load(&pool->handle);
    const bool known = handle != NULL && pool->kind->reserved(handle, &reserved) &&
                       pool->kind->used(handle, &used) && used <= reserved;
    unlock(&pool->lock);
    const uint64_t spare = known ? reserved - used : 0;
    return bytes <= spare ? 0 : worst_growth(pool, bytes - spare);
}

bool hami_pools_relieve(unsigned device)
{
    uint64_t before = 0, after = 0;
    const bool freed = hami_late_frees_settle(false);
    for (struct hami_pool *pool = atomic_load(&first); pool != NULL; pool = pool->next) {
        if (!pool->counted || pool->device != (int)device)
            continue;
        before += pool->charged;
        trim(pool);
        hami_pool_measure(pool);
        after += pool->charged;
    }
    return freed || after < before;
}

int hami_charge(unsigned device, uint64_t bytes)
{
    if (__builtin_expect(hami_limits_charge(hami_region(), device, bytes) == 0, 1))
        return 0;
    if (atomic_load(&hami_pools_known) == 0 || !hami_pools_relieve(device))
        return -ENOMEM;
    return hami_limits_charge(hami_region(), device, bytes);
}

static int try_to_announce(struct hami_pool *pool, uint64_t bytes, struct hami_growth *growth)
{
    const uint64_t worst = worst_growth(pool, bytes);
    if (announce(pool, worst, growth) == 0)
        return 0;
    const uint64_t least = least_growth(pool, bytes);
    return least < worst ? announce(pool, least, growth) : -ENOMEM;
}

int hami_pool_admit_likely(struct hami_pool *pool, uint64_t bytes, uint64_t likely,
                           struct hami_growth *growth)
{
    *growth = (struct hami_growth){.pool = NULL};
    if (!pool->counted)
        return 0;
    if (pool->device == HAMI_UNLISTED)
        return -ENOMEM;
    for (bool relieved = false;; relieved = true) {
        if (try_to_announce(pool, bytes, growth) == 0)
            return 0;
        if (likely < bytes && try_to_announce(pool, likely, growth) == 0)
            return 0;
        if (relieved || !hami_pools_relieve((unsigned)pool->device))
            return -ENOMEM;
    }
}

int hami_pool_admit(struct hami_pool *pool, uint64_t bytes, struct hami_growth *growth)
{
    return hami_pool_admit_likely(pool, bytes, bytes, growth);
}

uint64_t hami_pool_charged(const struct hami_pool *pool)
{
    return pool->charged;
}

/* Only what others in flight announced may stay announced. */
static void withdraw(const struct hami_growth *growth)
{
    struct hami_pool *pool = growth->pool;
    lock(&pool->lock);
    pool->calls--;
    pool->announced -= growth->bytes;
    if (pool->left > pool->announced) {
        hami_limits_withdraw(hami_region(), (unsigned)pool->device, pool->left - pool->announced);
        pool->left = pool->announced;
    }
    unlock(&pool->lock);
}

int hami_pool_settle(const struct hami_growth *growth)
{
    struct hami_pool *pool = growth->pool;
    int result = 0;
    if (pool == NULL)
        return 0;
    for (uint64_t excess = reconcile(pool, true); excess != 0; excess = reconcile(pool, false)) {
        result = hami_limits_charge(hami_region(), (unsigned)pool->device, excess);
        if (result != 0)
            break;
        lock(&pool->lock);
        pool->left += excess;
        unlock(&pool->lock);
    }
    withdraw(growth);
    return result;
}

void hami_pool_shrink(struct hami_pool *pool)
{
    trim(pool);
    impose(pool);
}

void hami_pool_measure(struct hami_pool *pool)
{
    if (!pool->counted || pool->device == HAMI_UNLISTED)
        return;
    if (pool->calls != 0) /* whoever is amid an allocation answers for an excess */
        reconcile(pool, false);
    else
        impose(pool);
}

void hami_pools_measure(void)
{
    hami_late_frees_settle(true);
    for (struct hami_pool *pool = atomic_load(&first); pool != NULL; pool = pool->next)
        if (pool->charged != 0 && atomic_load(&pool->handle) != NULL)
            hami_pool_measure(pool);
}

static void discharge_all(struct hami_pool *pool)
{
    lock(&pool->lock);
    if (pool->charged != 0)
        hami_limits_discharge(hami_region(), (unsigned)pool->device, pool->charged);
    pool->charged = 0;
    pool->idle = true;
    unlock(&pool->lock);
}

struct hami_pool *hami_pool_begin_destroy(const void *handle)
{
    struct hami_pool *pool = hami_pool_find(handle);
    if (pool == NULL)
        return NULL;
    if (pool->counted && pool->device != HAMI_UNLISTED)
        hami_pool_shrink(pool); /* once it is destroyed nobody can ask what it holds */
    lock(&pool->lock);
    atomic_store(&pool->handle, NULL); /* first: the driver may give the handle out again at once */
    unlock(&pool->lock);
    return pool;
}

void hami_pool_finish_destroy(struct hami_pool *pool, const void *handle, bool destroyed)
{
    if (pool == NULL)
        return;
    if (!destroyed) {
        atomic_store(&pool->handle, handle);
        return;
    }
    atomic_fetch_sub(&hami_pools_known, 1);
    if (atomic_load(&pool->pointers) == 0)
        discharge_all(pool);
}

struct hami_pointer hami_pool_pointer(struct hami_pool *pool, uint64_t address)
{
    atomic_fetch_add(&pool->pointers, 1);
    return (struct hami_pointer){.address = address, .device = (unsigned)pool->device, .context = pool};
}

static struct hami_pool *pool_of(const struct hami_pointer *pointer)
{
    struct hami_pool *pool = pointer->bytes == 0 ? atomic_load(&first) : NULL;
    while (pool != NULL && pool != pointer->context)
        pool = pool->next;
    return pool;
}

bool hami_pointer_is_pooled(const struct hami_pointer *pointer)
{
    return pool_of(pointer) != NULL;
}

void hami_pointer_gone(const struct hami_pointer *pointer)
{
    struct hami_pool *pool = pool_of(pointer);
    if (pool == NULL) {
        hami_limits_discharge(hami_region(), pointer->device, pointer->bytes);
        if (hami_pointer_is_context(pointer))
            hami_limits_note_context(hami_region(), pointer->device, -pointer->bytes);
        return;
    }
    const bool last = atomic_fetch_sub(&pool->pointers, 1) == 1;
    if (atomic_load(&pool->handle) != NULL)
        hami_pool_measure(pool);
    else if (last) /* of a pool that was destroyed before: it goes now */
        discharge_all(pool);
}

void hami_pools_after_fork(void)
{
    hami_late_frees_after_fork();
    atomic_store(&first, NULL); /* not freed: another thread may have been amid a change */
    atomic_store(&hami_pools_known, 0);
    atomic_flag_clear(&list_lock);
}
