/* racer THREADS STEPS SEED MAX_MIB: allocates and frees at random from several threads.
 *
 * Prints how many allocations were granted and refused. Exit code 1: an unexpected CUresult.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define HELD 8
#define MIB (UINT64_C(1) << 20)

static int (*cuInit)(unsigned);
static int (*cuDevicePrimaryCtxRetain)(void **, int);
static int (*cuCtxSetCurrent)(void *);
static int (*cuMemAlloc_v2)(uint64_t *, size_t);
static int (*cuMemFree_v2)(uint64_t);

static void *context;
static unsigned long steps, seed, max_mib;
static atomic_ulong granted, refused, failures;

static void *race(void *number)
{
    unsigned int state = (unsigned)(seed * 7919 + (uintptr_t)number);
    uint64_t held[HELD] = {0};
    cuCtxSetCurrent(context);
    for (unsigned long step = 0; step < steps; step++) {
        uint64_t *place = &held[rand_r(&state) % HELD];
        if (*place != 0) {
            atomic_fetch_add(&failures, cuMemFree_v2(*place) != 0);
            *place = 0;
            continue;
        }
        const uint64_t bytes = (1 + rand_r(&state) % (max_mib / 2)) * 2 * MIB;
        const int result = cuMemAlloc_v2(place, bytes);
        atomic_fetch_add(&granted, result == 0);
        atomic_fetch_add(&refused, result == 2);
        atomic_fetch_add(&failures, result != 0 && result != 2);
        if (result != 0)
            *place = 0;
    }
    for (int i = 0; i < HELD; i++)
        if (held[i] != 0)
            atomic_fetch_add(&failures, cuMemFree_v2(held[i]) != 0);
    return NULL;
}

int main(int count, char **words)
{
    pthread_t threads[64];
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    if (count != 5 || cuda == NULL)
        return 2;
    cuInit = (int (*)(unsigned))dlsym(cuda, "cuInit");
    cuDevicePrimaryCtxRetain = (int (*)(void **, int))dlsym(cuda, "cuDevicePrimaryCtxRetain");
    cuCtxSetCurrent = (int (*)(void *))dlsym(cuda, "cuCtxSetCurrent");
    cuMemAlloc_v2 = (int (*)(uint64_t *, size_t))dlsym(cuda, "cuMemAlloc_v2");
    cuMemFree_v2 = (int (*)(uint64_t))dlsym(cuda, "cuMemFree_v2");
    const unsigned long thread_count = strtoul(words[1], NULL, 10);
    steps = strtoul(words[2], NULL, 10);
    seed = strtoul(words[3], NULL, 10);
    max_mib = strtoul(words[4], NULL, 10);
    if (cuInit(0) != 0 || cuDevicePrimaryCtxRetain(&context, 0) != 0)
        return 2;
    for (uintptr_t i = 0; i < thread_count; i++)
        pthread_create(&threads[i], NULL, race, (void *)i);
    for (uintptr_t i = 0; i < thread_count; i++)
        pthread_join(threads[i], NULL);
    printf("%lu %lu\n", atomic_load(&granted), atomic_load(&refused));
    return atomic_load(&failures) != 0;
}
