/* grapher: captures, replays and launches in every way, on order, one a line; answers with a CUresult.
 *
 *   init ORDINAL | kernel MICROSECONDS | sync
 *   capture COUNT      so many launches into a stream in global capture mode; then instantiate
 *   beside COUNT       the same while another thread launches so many into a stream of its own
 *   abandon            begin to capture, and destroy the stream
 *   replay COUNT       launches of the graph
 *   swap               update the executable graph with what was captured last
 *   path NAME COUNT    launches by the function of that name
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NON_BLOCKING 1

struct config {
    unsigned grid[3], block[3], shared;
    void *stream, *attributes;
    unsigned count;
};

struct parameters {
    void *function;
    unsigned grid[3], block[3], shared;
    void *stream, **arguments;
};

#define FUNCTIONS(X)                                                                               \
    X(cuInit, (unsigned))                                                                          \
    X(cuDevicePrimaryCtxRetain, (void **, int))                                                    \
    X(cuCtxSetCurrent, (void *))                                                                   \
    X(cuCtxSynchronize, (void))                                                                    \
    X(cuModuleLoadData, (void **, const void *))                                                   \
    X(cuModuleGetFunction, (void **, void *, const char *))                                        \
    X(cuLaunchKernel, (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **)) \
    X(cuStreamCreate, (void **, unsigned))                                                         \
    X(cuStreamDestroy_v2, (void *))                                                                \
    X(cuStreamBeginCapture_v2, (void *, int))                                                      \
    X(cuStreamEndCapture, (void *, void **))                                                       \
    X(cuGraphInstantiateWithFlags, (void **, void *, unsigned long long))                          \
    X(cuGraphExecUpdate_v2, (void *, void *, void *))                                              \
    X(cuGraphLaunch, (void *, void *))

#define X(name, parameters) static int(*name) parameters;
FUNCTIONS(X)
#undef X

static void *cuda, *context, *function, *graph, *executable;

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
    snprintf(image, sizeof image, "hami-sim kernels\nkernel %s\n", microseconds);
    const int result = cuModuleLoadData(&module, image);
    return result != 0 ? result : cuModuleGetFunction(&function, module, "kernel");
}

static int launch(void *stream, long count)
{
    int result = 0;
    for (long i = 0; i < count && result == 0; i++)
        result = cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, NULL, NULL);
    return result;
}

static void *launch_elsewhere(void *count)
{
    void *stream;
    int result = cuCtxSetCurrent(context);
    if (result == 0)
        result = cuStreamCreate(&stream, NON_BLOCKING);
    return (void *)(intptr_t)(result != 0 ? result : launch(stream, *(long *)count));
}

static int launch_in_thread(long count)
{
    pthread_t thread;
    void *result;
    pthread_create(&thread, NULL, launch_elsewhere, &count);
    pthread_join(thread, &result);
    return (int)(intptr_t)result;
}

static int capture(long count, int beside)
{
    void *stream;
    int result = cuStreamCreate(&stream, NON_BLOCKING);
    if (result == 0)
        result = cuStreamBeginCapture_v2(stream, 0);
    if (result == 0)
        result = launch(stream, count);
    if (result == 0 && beside)
        result = launch_in_thread(count);
    if (result == 0)
        result = cuStreamEndCapture(stream, &graph);
    if (result == 0 && executable == NULL)
        result = cuGraphInstantiateWithFlags(&executable, graph, 0);
    return result;
}

static int abandon(void)
{
    void *stream;
    int result = cuStreamCreate(&stream, NON_BLOCKING);
    if (result == 0)
        result = cuStreamBeginCapture_v2(stream, 0);
    return result != 0 ? result : cuStreamDestroy_v2(stream);
}

static int replay(long count)
{
    int result = 0;
    for (long i = 0; i < count && result == 0; i++)
        result = cuGraphLaunch(executable, NULL);
    return result != 0 ? result : cuCtxSynchronize();
}

static int swap(void)
{
    struct {
        int result;
        void *from, *to;
    } info;
    return cuGraphExecUpdate_v2(executable, graph, &info);
}

static int by_path(const char *name, long count)
{
    struct config config = {.grid = {1, 1, 1}, .block = {1, 1, 1}};
    struct parameters parameters = {.function = function, .grid = {1, 1, 1}, .block = {1, 1, 1}};
    void *address = dlsym(cuda, name);
    int result = address == NULL ? 500 : 0;
    if (strstr(name, "MultiDevice") != NULL && result == 0)
        result = cuStreamCreate(&parameters.stream, NON_BLOCKING);
    for (long i = 0; i < count && result == 0; i++)
        if (strstr(name, "KernelEx") != NULL)
            result = ((int (*)(struct config *, void *, void **, void **))address)(&config, function, NULL, NULL);
        else if (strstr(name, "MultiDevice") != NULL)
            result = ((int (*)(struct parameters *, unsigned, unsigned))address)(&parameters, 1, 0);
        else if (strstr(name, "GridAsync") != NULL)
            result = ((int (*)(void *, int, int, void *))address)(function, 1, 1, NULL);
        else if (strstr(name, "Grid") != NULL)
            result = ((int (*)(void *, int, int))address)(function, 1, 1);
        else if (strcmp(name, "cuLaunch") == 0)
            result = ((int (*)(void *))address)(function);
        else if (strstr(name, "Graph") != NULL)
            result = ((int (*)(void *, void *))address)(executable, NULL);
        else
            result = ((int (*)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                               void *, void **, void **))address)(function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL);
    return result != 0 ? result : cuCtxSynchronize();
}

static int obey(const char *order, const char *word, long more)
{
    if (strcmp(order, "init") == 0)
        return init(atoi(word));
    if (strcmp(order, "kernel") == 0)
        return load(word);
    if (strcmp(order, "capture") == 0)
        return capture(atol(word), 0);
    if (strcmp(order, "beside") == 0)
        return capture(atol(word), 1);
    if (strcmp(order, "abandon") == 0)
        return abandon();
    if (strcmp(order, "replay") == 0)
        return replay(atol(word));
    if (strcmp(order, "swap") == 0)
        return swap();
    if (strcmp(order, "path") == 0)
        return by_path(word, more);
    return cuCtxSynchronize();
}

int main(void)
{
    char line[256], order[32], word[64];
    cuda = dlopen("libcuda.so.1", RTLD_NOW);
#define X(name, parameters) *(void **)&name = dlsym(cuda, #name);
    FUNCTIONS(X)
#undef X
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        long more = 0;
        word[0] = '\0';
        if (sscanf(line, "%31s %63s %ld", order, word, &more) < 1)
            return 2;
        printf("%d\n", obey(order, word, more));
        fflush(stdout);
    }
    return 0;
}
