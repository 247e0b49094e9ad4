/* forker COUNT: forks while other threads allocate; each child allocates too, then ends. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static int (*cuInit)(unsigned);
static int (*cuDevicePrimaryCtxRetain)(void **, int);
static int (*cuCtxSetCurrent)(void *);
static int (*cuMemAlloc_v2)(uint64_t *, size_t);
static int (*cuMemFree_v2)(uint64_t);

static void *context;
static atomic_bool stop;

static int allocate_and_free(void)
{
    uint64_t address;
    return cuMemAlloc_v2(&address, 4096) != 0 || cuMemFree_v2(address) != 0;
}

static void *churn(void *unused)
{
    (void)unused;
    cuCtxSetCurrent(context);
    while (!atomic_load(&stop))
        if (allocate_and_free() != 0)
            abort();
    return NULL;
}

static int live_as_child(void)
{
    void *own;
    if (cuInit(0) != 0 || cuDevicePrimaryCtxRetain(&own, 0) != 0 || cuCtxSetCurrent(own) != 0)
        return 3;
    return allocate_and_free();
}

int main(int count, char **words)
{
    pthread_t threads[4];
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    int children = 0;
    if (count != 2 || cuda == NULL)
        return 2;
    cuInit = (int (*)(unsigned))dlsym(cuda, "cuInit");
    cuDevicePrimaryCtxRetain = (int (*)(void **, int))dlsym(cuda, "cuDevicePrimaryCtxRetain");
    cuCtxSetCurrent = (int (*)(void *))dlsym(cuda, "cuCtxSetCurrent");
    cuMemAlloc_v2 = (int (*)(uint64_t *, size_t))dlsym(cuda, "cuMemAlloc_v2");
    cuMemFree_v2 = (int (*)(uint64_t))dlsym(cuda, "cuMemFree_v2");
    if (cuInit(0) != 0 || cuDevicePrimaryCtxRetain(&context, 0) != 0)
        return 2;
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, churn, NULL);
    for (int i = 0; i < atoi(words[1]); i++) {
        int status = -1;
        const pid_t child = fork();
        if (child == 0)
            _exit(live_as_child());
        if (waitpid(child, &status, 0) == child && status == 0)
            children++;
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    printf("%d children\n", children);
    return 0;
}
