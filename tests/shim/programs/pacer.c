/* pacer: launches kernels on order, one a line; answers with one line that begins with a CUresult.
 *
 *   init ORDINAL               its primary context
 *   kernel MICROSECONDS        the kernel that is launched from now on
 *   launch COUNT               that many, then wait for the last
 *   queue COUNT                that many, without waiting
 *   sync                       wait
 *   reset ORDINAL              destroy the primary context, and begin anew with the last kernel
 *   threads THREADS COUNT      from so many threads, each so many; then wait
 *   loop                       answers, then launches and never ends
 *   fork                       continue in a child that begins anew; the parent answers later orders
 *                              only once the child has ended
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int (*cuInit)(unsigned);
static int (*cuDevicePrimaryCtxRetain)(void **, int);
static int (*cuCtxSetCurrent)(void *);
static int (*cuCtxSynchronize)(void);
static int (*cuDevicePrimaryCtxReset_v2)(int);
static int (*cuModuleLoadData)(void **, const void *);
static int (*cuModuleGetFunction)(void **, void *, const char *);
static int (*cuLaunchKernel)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                             void *, void **, void **);
static void *context, *function;
static char length[64];

static int init(int ordinal)
{
    int result = cuInit(0);
    if (result == 0)
        result = cuDevicePrimaryCtxRetain(&context, ordinal);
    return result != 0 ? result : cuCtxSetCurrent(context);
}

static int load(const char *microseconds)
{
    char image[128];
    void *module;
    snprintf(length, sizeof length, "%s", microseconds);
    snprintf(image, sizeof image, "hami-sim kernels\nkernel %s\n", length);
    const int result = cuModuleLoadData(&module, image);
    return result != 0 ? result : cuModuleGetFunction(&function, module, "kernel");
}

static int launch(long count)
{
    int result = 0;
    for (long i = 0; i < count && result == 0; i++)
        result = cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL);
    return result;
}

static int reset(int ordinal)
{
    char again[64];
    snprintf(again, sizeof again, "%s", length);
    int result = cuDevicePrimaryCtxReset_v2(ordinal);
    if (result == 0)
        result = cuDevicePrimaryCtxRetain(&context, ordinal);
    if (result == 0)
        result = cuCtxSetCurrent(context);
    return result != 0 ? result : load(again);
}

static void *launch_in_thread(void *count)
{
    const int result = cuCtxSetCurrent(context);
    return (void *)(intptr_t)(result != 0 ? result : launch(*(long *)count));
}

static int launch_in_threads(int threads, long count)
{
    pthread_t ids[64];
    int failed = 0;
    for (int i = 0; i < threads; i++)
        pthread_create(&ids[i], NULL, launch_in_thread, &count);
    for (int i = 0; i < threads; i++) {
        void *result;
        pthread_join(ids[i], &result);
        failed |= (int)(intptr_t)result;
    }
    return failed != 0 ? failed : cuCtxSynchronize();
}

static void answer(int result)
{
    printf("%d\n", result);
    fflush(stdout);
}

static void go_on_in_child(void)
{
    const pid_t child = fork();
    if (child == 0) {
        answer(0);
        return;
    }
    int status = 0;
    waitpid(child, &status, 0);
    answer(status);
}

int main(void)
{
    char line[256], order[32], word[64];
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
#define FIND(name) *(void **)&name = dlsym(cuda, #name)
    FIND(cuInit);
    FIND(cuDevicePrimaryCtxRetain);
    FIND(cuCtxSetCurrent);
    FIND(cuCtxSynchronize);
    FIND(cuDevicePrimaryCtxReset_v2);
    FIND(cuModuleLoadData);
    FIND(cuModuleGetFunction);
    FIND(cuLaunchKernel);
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        long more = 0;
        word[0] = '\0';
        if (sscanf(line, "%31s %63s %ld", order, word, &more) < 1)
            return 2;
        if (strcmp(order, "init") == 0)
            answer(init(atoi(word)));
        else if (strcmp(order, "kernel") == 0)
            answer(load(word));
        else if (strcmp(order, "launch") == 0)
            answer(launch(atol(word)) | cuCtxSynchronize());
        else if (strcmp(order, "queue") == 0)
            answer(launch(atol(word)));
        else if (strcmp(order, "reset") == 0)
            answer(reset(atoi(word)));
        else if (strcmp(order, "sync") == 0)
            answer(cuCtxSynchronize());
        else if (strcmp(order, "threads") == 0)
            answer(launch_in_threads(atoi(word), more));
        else if (strcmp(order, "fork") == 0)
            go_on_in_child();
        else if (strcmp(order, "end") == 0)
            return 0;
        else if (strcmp(order, "loop") == 0) {
            answer(0);
            while (launch(1) == 0)
                ;
            return 1;
        }
    }
    return 0;
}
