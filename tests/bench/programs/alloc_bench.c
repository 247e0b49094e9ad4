/* alloc_bench: times memory calls on order; one order a line, answered with nanoseconds a call.
 *
 *   live COUNT    hold that many allocations of 512 bytes more from now on
 *   pair COUNT    cuMemAlloc and cuMemFree, as one pair
 *   churn COUNT   cuMemFree of any of those that are held, and cuMemAlloc in its place
 *   async COUNT   cuMemAllocAsync and cuMemFreeAsync, as one pair
 *   query COUNT   cuMemGetInfo
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int (*cuMemAlloc_v2)(uint64_t *, size_t);
static int (*cuMemFree_v2)(uint64_t);
static int (*cuMemAllocAsync)(uint64_t *, size_t, void *);
static int (*cuMemFreeAsync)(uint64_t, void *);
static int (*cuMemGetInfo_v2)(size_t *, size_t *);
static uint64_t *held;
static size_t held_count;

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static void check(int result, const char *what)
{
    if (result != 0) {
        fprintf(stderr, "%s: CUresult %d\n", what, result);
        exit(1);
    }
}

static void set_up(void)
{
    void *context;
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    cuMemAlloc_v2 = (int (*)(uint64_t *, size_t))dlsym(cuda, "cuMemAlloc_v2");
    cuMemFree_v2 = (int (*)(uint64_t))dlsym(cuda, "cuMemFree_v2");
    cuMemAllocAsync = (int (*)(uint64_t *, size_t, void *))dlsym(cuda, "cuMemAllocAsync");
    cuMemFreeAsync = (int (*)(uint64_t, void *))dlsym(cuda, "cuMemFreeAsync");
    cuMemGetInfo_v2 = (int (*)(size_t *, size_t *))dlsym(cuda, "cuMemGetInfo_v2");
    check(((int (*)(unsigned))dlsym(cuda, "cuInit"))(0), "cuInit");
    check(((int (*)(void **, int))dlsym(cuda, "cuDevicePrimaryCtxRetain"))(&context, 0), "context");
    check(((int (*)(void *))dlsym(cuda, "cuCtxSetCurrent"))(context), "cuCtxSetCurrent");
}

static void hold(size_t count)
{
    held = realloc(held, (held_count + count + 1) * sizeof *held);
    for (; count != 0; count--)
        check(cuMemAlloc_v2(&held[held_count++], 512), "cuMemAlloc");
}

static void churn(long count)
{
    uint64_t state = UINT64_C(88172645463325252);
    for (long i = 0; i < count; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        uint64_t *any = &held[state % held_count];
        check(cuMemFree_v2(*any), "cuMemFree");
        check(cuMemAlloc_v2(any, 512), "cuMemAlloc");
    }
}

static void run(const char *order, long count)
{
    uint64_t address;
    size_t free_bytes, total;
    if (strcmp(order, "live") == 0)
        hold((size_t)count);
    else if (strcmp(order, "churn") == 0 && held_count != 0)
        churn(count);
    else if (strcmp(order, "pair") == 0)
        for (long i = 0; i < count; i++) {
            check(cuMemAlloc_v2(&address, 512), "cuMemAlloc");
            check(cuMemFree_v2(address), "cuMemFree");
        }
    else if (strcmp(order, "async") == 0)
        for (long i = 0; i < count; i++) {
            check(cuMemAllocAsync(&address, 512, NULL), "cuMemAllocAsync");
            check(cuMemFreeAsync(address, NULL), "cuMemFreeAsync");
        }
    else if (strcmp(order, "query") == 0)
        for (long i = 0; i < count; i++)
            check(cuMemGetInfo_v2(&free_bytes, &total), "cuMemGetInfo");
}

int main(void)
{
    char line[128], order[32];
    long count;
    set_up();
    while (fgets(line, sizeof line, stdin) != NULL && sscanf(line, "%31s %ld", order, &count) == 2) {
        const double start = now_ns();
        run(order, count);
        printf("%.2f\n", (now_ns() - start) / (double)(count > 0 ? count : 1));
        fflush(stdout);
    }
    return 0;
}
