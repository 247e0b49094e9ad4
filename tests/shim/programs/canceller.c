/* canceller BYTES: cancels threads that allocate, again and again, then allocates once more.
 *
 * Prints how many threads were ended by it, and the CUresult of the last allocation. A thread can be cancelled from when it asks for memory: the first one
 * as the shim starts, the others, which ask for all of the memory at once, as they wait for room.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int (*cuInit)(unsigned);
static int (*cuDevicePrimaryCtxRetain)(void **, int);
static int (*cuCtxSetCurrent)(void *);
static int (*cuMemAlloc_v2)(uint64_t *, size_t);
static int (*cuMemFree_v2)(uint64_t);
static void *context;
static size_t bytes;

static void *allocate(void *unused)
{
    uint64_t address;
    int state;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    cuCtxSetCurrent(context);
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state);
    if (cuMemAlloc_v2(&address, bytes) == 0)
        cuMemFree_v2(address);
    return unused;
}

int main(int count, char **words)
{
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    uint64_t address;
    int cancelled = 0;
    if (count != 2 || cuda == NULL)
        return 2;
    bytes = strtoull(words[1], NULL, 10);
    cuInit = (int (*)(unsigned))dlsym(cuda, "cuInit");
    cuDevicePrimaryCtxRetain = (int (*)(void **, int))dlsym(cuda, "cuDevicePrimaryCtxRetain");
    cuCtxSetCurrent = (int (*)(void *))dlsym(cuda, "cuCtxSetCurrent");
    cuMemAlloc_v2 = (int (*)(uint64_t *, size_t))dlsym(cuda, "cuMemAlloc_v2");
    cuMemFree_v2 = (int (*)(uint64_t))dlsym(cuda, "cuMemFree_v2");
    if (cuInit(0) != 0 || cuDevicePrimaryCtxRetain(&context, 0) != 0)
        return 2;
    for (int i = 0; i < 50; i++) {
        pthread_t threads[4];
        for (int j = 0; j < 4; j++)
            pthread_create(&threads[j], NULL, allocate, NULL);
        for (int j = 0; j < 4; j++)
            pthread_cancel(threads[j]);
        for (int j = 0; j < 4; j++) {
            void *result;
            pthread_join(threads[j], &result);
            cancelled += result == PTHREAD_CANCELED;
        }
    }
    cuCtxSetCurrent(context);
    printf("%d %d\n", cancelled, cuMemAlloc_v2(&address, bytes));
    fflush(stdout);
    getchar();
    return 0;
}
