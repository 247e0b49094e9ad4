/* taker PROCESSES THREADS TAKES [held]: computing time's policy alone, without a driver.
 *
 * Threads of several processes take device time of very different lengths while a governor changes
 * the rate, and the mode if they are to be held now and then: what is granted meanwhile is lost, and makes
 * the count less strict. What went on is counted in a word of its own, which must never pass what was
 * granted. The table of costs is used from all threads meanwhile.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bucket.h"
#include "cost.h"

#define BURST_NS UINT64_C(2000000)
#define SECOND_NS UINT64_C(1000000000)
#define TURN_NS 3000000

static struct hami_region region;
static struct hami_control *control;
static struct shared {
    _Atomic uint64_t taken, takes, violations;
    _Atomic int done;
} *shared;
static unsigned long wanted;
static bool held;

static void *map(size_t size)
{
    return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void use_costs(unsigned int *state)
{
    static char handles[2000];
    const void *handle = &handles[rand_r(state) % 2000];
    struct hami_cost *cost = hami_cost_enter(handle, rand_r(state) % 8 == 0 ? HAMI_COST_GRAPH : 5, 0);
    hami_cost_learn(cost, 1 + (uint64_t)rand_r(state) % 1000000);
    if (hami_cost_ns(cost) == 0 || hami_cost_ns(cost) > HAMI_COST_MAX_NS)
        atomic_fetch_add(&shared->violations, 1);
    if (rand_r(state) % 16 == 0)
        hami_cost_forget(handle);
}

static void *take(void *number)
{
    static const uint64_t needs[] = {1000, 50000, 700000, 2000000, 9000000};
    unsigned int state = (unsigned)(uintptr_t)number + 1;
    for (unsigned long i = 0; i < wanted; i++) {
        const uint64_t need = needs[(uintptr_t)number % 5];
        const uint64_t taken = hami_bucket_take(&region, 0, need, need * 100);
        if (taken == 0)
            continue; /* the limit was lifted */
        const uint64_t sum = atomic_fetch_add(&shared->taken, taken) + taken;
        if (taken < need || sum > hami_bucket_granted(&region, 0, hami_bucket_now_ns()) + 2 * BURST_NS)
            atomic_fetch_add(&shared->violations, 1);
        atomic_fetch_add(&shared->takes, 1);
        use_costs(&state);
    }
    return NULL;
}

static void set_pace(uint64_t rate)
{
    struct hami_device_control *device = &control->devices[0];
    const uint64_t now = hami_bucket_now_ns();
    const uint64_t granted = hami_bucket_granted(&region, 0, now);
    const uint32_t sequence = atomic_load(&device->grant_sequence);
    struct hami_grant *line = &device->grants[(sequence + 1) & 1];
    atomic_store(&line->granted_ns, granted);
    atomic_store(&line->since_ns, now);
    atomic_store(&line->rate_ns_per_second, rate);
    atomic_store(&device->grant_sequence, sequence + 1);
}

static void *govern(void *argument)
{
    static const uint32_t modes[] = {HAMI_CORE_LIMIT, HAMI_CORE_BLOCK, HAMI_CORE_LIMIT, HAMI_CORE_LIMIT,
                                     HAMI_CORE_SUSPEND, HAMI_CORE_LIMIT};
    for (unsigned turn = 0; !atomic_load(&shared->done); turn++) {
        set_pace(SECOND_NS * (1 + turn % 9) / 5);
        atomic_store(&control->heartbeat_ns, hami_bucket_now_ns());
        if (held)
            atomic_store(&control->devices[0].core_mode, modes[turn % 6]);
        nanosleep(&(struct timespec){.tv_nsec = TURN_NS}, NULL);
    }
    atomic_store(&control->devices[0].core_mode, HAMI_CORE_LIMIT);
    return argument;
}

static void run_process(int slot, unsigned long threads)
{
    pthread_t ids[64];
    region.slot = slot;
    for (uintptr_t i = 0; i < threads; i++)
        pthread_create(&ids[i], NULL, take, (void *)(i + (uintptr_t)slot * threads));
    for (uintptr_t i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
}

int main(int count, char **words)
{
    pthread_t governor;
    if (count < 4)
        return 2;
    held = count == 5;
    const int processes = atoi(words[1]);
    const unsigned long threads = strtoul(words[2], NULL, 10);
    wanted = strtoul(words[3], NULL, 10);
    shared = map(sizeof *shared);
    control = map(sizeof *control);
    region.control = control;
    region.usage = map(sizeof *region.usage);
    control->devices[0].burst_ns = BURST_NS;
    control->devices[0].core_mode = HAMI_CORE_LIMIT;
    set_pace(SECOND_NS / 5);
    for (int i = 1; i < processes; i++)
        if (fork() == 0) {
            run_process(i, threads);
            return 0;
        }
    pthread_create(&governor, NULL, govern, NULL);
    run_process(0, threads);
    int failed = 0;
    for (int i = 1, status; i < processes; i++)
        failed |= wait(&status) < 0 || status != 0;
    atomic_store(&shared->done, 1);
    pthread_join(governor, NULL);
    uint64_t spent = 0;
    for (int i = 0; i < processes; i++)
        spent += region.usage->slots[i].rows[0].spent_ns;
    printf("%llu takes, %llu violations, %lld unaccounted\n", (unsigned long long)shared->takes,
           (unsigned long long)shared->violations, (long long)(spent - shared->taken));
    return failed;
}
