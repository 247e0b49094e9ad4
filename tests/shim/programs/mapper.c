/* mapper.c THREADS ROUNDS: threads that create, map, retain, release and unmap memory, and make arrays
 * and contexts. Exit status 1 if a call fails other than for want of memory. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define BLOCK ((size_t)2 << 20)
#define OUT_OF_MEMORY 2

typedef struct {
    int type, handle_types, location_type, location_id;
    void *win32;
    unsigned char flags[8];
} Wanted;
typedef struct {
    size_t width, height, depth;
    int format;
    unsigned int channels, flags;
} Described;

int cuInit(unsigned int);
int cuDevicePrimaryCtxRetain(void **, int);
int cuDevicePrimaryCtxRelease_v2(int);
int cuCtxSetCurrent(void *);
int cuMemCreate(uint64_t *, size_t, const Wanted *, unsigned long long);
int cuMemRelease(uint64_t);
int cuMemAddressReserve(uint64_t *, size_t, size_t, uint64_t, unsigned long long);
int cuMemAddressFree(uint64_t, size_t);
int cuMemMap(uint64_t, size_t, size_t, uint64_t, unsigned long long);
int cuMemUnmap(uint64_t, size_t);
int cuMemRetainAllocationHandle(uint64_t *, void *);
int cuArray3DCreate_v2(void **, const Described *);
int cuArrayDestroy(void *);

static int rounds;
static _Atomic int failed;

static void must(int result, const char *what)
{
    if (result == 0)
        return;
    fprintf(stderr, "%s: %d\n", what, result);
    failed = 1;
}

static void map_and_unmap(unsigned *seed)
{
    const Wanted wanted = {.type = 1, .location_type = 1};
    const size_t bytes = BLOCK * (1 + rand_r(seed) % 4);
    uint64_t handle, again, address;
    const int result = cuMemCreate(&handle, bytes, &wanted, 0);
    if (result == OUT_OF_MEMORY)
        return;
    must(result, "create");
    must(cuMemAddressReserve(&address, bytes, 0, 0, 0), "reserve");
    must(cuMemMap(address, bytes, 0, handle, 0), "map");
    if (rand_r(seed) % 2) {
        must(cuMemRetainAllocationHandle(&again, (void *)address), "retain");
        must(cuMemRelease(again), "release of what was retained");
    }
    if (rand_r(seed) % 2) {
        must(cuMemRelease(handle), "release");
        must(cuMemUnmap(address, bytes), "unmap");
    } else {
        must(cuMemUnmap(address, bytes), "unmap");
        must(cuMemRelease(handle), "release");
    }
    must(cuMemAddressFree(address, bytes), "free");
}

static void make_array(void)
{
    const Described described = {100, 37, 0, 0x20, 4, 0};
    void *array;
    const int result = cuArray3DCreate_v2(&array, &described);
    if (result == 0)
        must(cuArrayDestroy(array), "destruction of an array");
    else if (result != OUT_OF_MEMORY)
        must(result, "array");
}

static void *work(void *argument)
{
    unsigned seed = (unsigned)(uintptr_t)argument;
    void *context;
    must(cuDevicePrimaryCtxRetain(&context, 0), "context");
    must(cuCtxSetCurrent(context), "current");
    for (int i = 0; i < rounds; i++) {
        map_and_unmap(&seed);
        make_array();
        must(cuDevicePrimaryCtxRetain(&context, 0), "context");
        must(cuDevicePrimaryCtxRelease_v2(0), "release of a context");
    }
    return NULL;
}

int main(int count, char **words)
{
    pthread_t threads[64];
    const int wanted = count > 2 ? atoi(words[1]) : 0;
    rounds = count > 2 ? atoi(words[2]) : 0;
    must(cuInit(0), "init");
    for (int i = 0; i < wanted; i++)
        pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)(i + 1));
    for (int i = 0; i < wanted; i++)
        pthread_join(threads[i], NULL);
    return failed;
}
