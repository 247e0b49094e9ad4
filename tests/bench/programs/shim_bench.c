/* shim_bench: times driver calls on order; one order a line, answered with nanoseconds a call.
 *
 *   live COUNT    hold that many allocations of 512 bytes from now on
 *   alloc COUNT   cuMemAlloc and cuMemFree, as one pair
 *   info COUNT    cuMemGetInfo
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int (*cuMemAlloc_v2)(uint64_t *, size_t);
static int (*cuMemFree_v2)(uint64_t);
static int (*cuMemGetInfo_v2)(size_t *, size_t *);

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
    cuMemGetInfo_v2 = (int (*)(size_t *, size_t *))dlsym(cuda, "cuMemGetInfo_v2");
    check(((int (*)(unsigned))dlsym(cuda, "cuInit"))(0), "cuInit");
    check(((int (*)(void **, int))dlsym(cuda, "cuDevicePrimaryCtxRetain"))(&context, 0), "context");
    check(((int (*)(void *))dlsym(cuda, "cuCtxSetCurrent"))(context), "cuCtxSetCurrent");
}

static void run(const char *order, long count)
{
    uint64_t address;
    size_t free_bytes, total;
    if (strcmp(order, "live") == 0)
        for (long i = 0; i < count; i++)
            check(cuMemAlloc_v2(&address, 512), "cuMemAlloc");
    else if (strcmp(order, "alloc") == 0)
        for (long i = 0; i < count; i++) {
            check(cuMemAlloc_v2(&address, 512), "cuMemAlloc");
            check(cuMemFree_v2(address), "cuMemFree");
        }
    else if (strcmp(order, "info") == 0)
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
