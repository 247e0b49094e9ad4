/* accounting THREADS STEPS: the policy alone, without a driver, under a thread sanitizer.
 *
 * Threads charge, commit and discharge against one region. What is granted is also counted in one
 * atomic of its own, which must never pass the limit. Pointers go through the table meanwhile.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "limits.h"
#include "pointers.h"

#define LIMIT 1000
#define HELD 4

static struct hami_region region;
static _Atomic int64_t real;
static _Atomic unsigned long granted, violations;
static unsigned long steps;

static void allocate(uint64_t address, uint64_t bytes)
{
    struct hami_pointer stale;
    if (hami_limits_charge(&region, 0, bytes) != 0)
        return;
    if (atomic_fetch_add(&real, (int64_t)bytes) + (int64_t)bytes > LIMIT)
        atomic_fetch_add(&violations, 1);
    atomic_fetch_add(&granted, 1);
    const struct hami_pointer pointer = {address, bytes, 0, NULL};
    if (!hami_pointers_put(&pointer, &stale) || stale.address != 0)
        atomic_fetch_add(&violations, 1);
    hami_limits_commit(&region, 0, bytes);
}

static void release(uint64_t address)
{
    struct hami_pointer pointer;
    if (!hami_pointers_take(address, &pointer))
        return;
    atomic_fetch_sub(&real, (int64_t)pointer.bytes);
    hami_limits_discharge(&region, 0, pointer.bytes);
}

static void *race(void *number)
{
    unsigned int state = (unsigned)(uintptr_t)number;
    for (unsigned long step = 0; step < steps; step++) {
        const uint64_t address = ((uint64_t)(uintptr_t)number * HELD + step % HELD + 1) * 4096;
        release(address);
        allocate(address, 1 + rand_r(&state) % (LIMIT / 3));
        if (step % 64 == 0 && hami_limits_used(&region, 0) > LIMIT)
            atomic_fetch_add(&violations, 1);
    }
    for (uint64_t i = 1; i <= HELD; i++)
        release(((uint64_t)(uintptr_t)number * HELD + i) * 4096);
    return NULL;
}

int main(int count, char **words)
{
    static struct hami_control control = {.device_count = 1};
    pthread_t threads[64];
    if (count != 3)
        return 2;
    const unsigned long thread_count = strtoul(words[1], NULL, 10);
    steps = strtoul(words[2], NULL, 10);
    control.devices[0].memory_limit_bytes = LIMIT;
    region.control = &control;
    region.usage = mmap(NULL, sizeof *region.usage, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    hami_process_identify(&region.self);
    hami_slot_claim(&region);
    for (uintptr_t i = 0; i < thread_count; i++)
        pthread_create(&threads[i], NULL, race, (void *)i);
    for (uintptr_t i = 0; i < thread_count; i++)
        pthread_join(threads[i], NULL);
    printf("%lu granted, %lu violations, %lld left, %llu charged\n", atomic_load(&granted),
           atomic_load(&violations), (long long)atomic_load(&real),
           (unsigned long long)hami_limits_used(&region, 0));
    return 0;
}
