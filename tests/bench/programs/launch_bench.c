/* launch_bench: times launches of a kernel that takes no time, on order; one order a line.
 *
 *   kernel|ex|graph THREADS BATCHES LAUNCHES
 *
 * Each thread times so many batches of so many launches. The answer is one line: for each batch of each
 * thread the nanoseconds a launch.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define THREADS 16

struct config {
    unsigned grid[3], block[3], shared;
    void *stream, *attributes;
    unsigned count;
};

static int (*cuCtxSetCurrent)(void *);
static int (*cuLaunchKernel)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                             void *, void **, void **);
static int (*cuLaunchKernelEx)(const struct config *, void *, void **, void **);
static int (*cuGraphLaunch)(void *, void *);
static void *context, *function;
static pthread_barrier_t barrier;

struct job {
    const char *call;
    long batches, launches;
    double *times;
};

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

static void launch(const char *call, long count)
{
    const struct config config = {.grid = {1, 1, 1}, .block = {1, 1, 1}};
    int failed = 0;
    if (call[0] == 'k')
        for (long i = 0; i < count; i++)
            failed |= cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL);
    else if (call[0] == 'e')
        for (long i = 0; i < count; i++)
            failed |= cuLaunchKernelEx(&config, function, NULL, NULL);
    else
        for (long i = 0; i < count; i++)
            failed |= cuGraphLaunch(function, NULL);
    check(failed, call);
}

static void *run(void *argument)
{
    struct job *job = argument;
    check(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    launch(job->call, job->launches);
    pthread_barrier_wait(&barrier);
    for (long batch = 0; batch < job->batches; batch++) {
        const double start = now_ns();
        launch(job->call, job->launches);
        job->times[batch] = (now_ns() - start) / (double)job->launches;
    }
    return NULL;
}

static void set_up(void)
{
    void *module;
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
#define FIND(name) *(void **)&name = dlsym(cuda, #name)
    FIND(cuCtxSetCurrent);
    FIND(cuLaunchKernel);
    FIND(cuLaunchKernelEx);
    FIND(cuGraphLaunch);
    check(((int (*)(unsigned))dlsym(cuda, "cuInit"))(0), "cuInit");
    check(((int (*)(void **, int))dlsym(cuda, "cuDevicePrimaryCtxRetain"))(&context, 0), "context");
    check(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    check(((int (*)(void **, const void *))dlsym(cuda, "cuModuleLoadData"))(
              &module, "hami-sim kernels\nnull 0\n"), "cuModuleLoadData");
    check(((int (*)(void **, void *, const char *))dlsym(cuda, "cuModuleGetFunction"))(
              &function, module, "null"), "cuModuleGetFunction");
}

int main(void)
{
    char line[128], call[32];
    long threads, batches, launches;
    set_up();
    while (fgets(line, sizeof line, stdin) != NULL &&
           sscanf(line, "%31s %ld %ld %ld", call, &threads, &batches, &launches) == 4 && threads <= THREADS) {
        struct job jobs[THREADS];
        pthread_t ids[THREADS];
        pthread_barrier_init(&barrier, NULL, (unsigned)threads);
        for (long i = 0; i < threads; i++) {
            jobs[i] = (struct job){call, batches, launches, calloc((size_t)batches, sizeof(double))};
            pthread_create(&ids[i], NULL, run, &jobs[i]);
        }
        for (long i = 0; i < threads; i++) {
            pthread_join(ids[i], NULL);
            for (long batch = 0; batch < batches; batch++)
                printf("%.3f ", jobs[i].times[batch]);
            free(jobs[i].times);
        }
        pthread_barrier_destroy(&barrier);
        puts("");
        fflush(stdout);
    }
    return 0;
}
