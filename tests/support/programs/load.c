/* load: keeps a GPU as busy as it is let, until its stdin is closed.
 *
 *   load MICROSECONDS eager|graph|memory [BYTES] [ORDINAL]
 *
 * eager launches kernels of that length one by one, graph launches graphs of them; both wait for the
 * device after 10 ms of work at the most, as programs do that want results. memory only allocates
 * BYTES and then waits. Prints "ready" once it is set up.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WORK_US 10000 /* between two waits */
#define NODES 20      /* kernels of a graph */

typedef struct {
    void *function;
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    void **parameters, **extra;
    void *kernel, *context;
} kernel_node;

static void *cuda;

static void *find(const char *name)
{
    void *found = dlsym(cuda, name);
    if (found == NULL) {
        fprintf(stderr, "load: no %s\n", name);
        exit(3);
    }
    return found;
}

#define CALL(name, types, ...)                                                                     \
    do {                                                                                           \
        const int code = ((int(*) types)find(#name))(__VA_ARGS__);                                 \
        if (code != 0) {                                                                           \
            fprintf(stderr, "load: %s: %d\n", #name, code);                                        \
            exit(4);                                                                               \
        }                                                                                          \
    } while (0)

static void *make_graph(void *function)
{
    void *graph, *node, *before = NULL, *executable;
    kernel_node parameters = {.function = function, .grid_x = 1, .grid_y = 1, .grid_z = 1,
                              .block_x = 32, .block_y = 1, .block_z = 1};
    CALL(cuGraphCreate, (void **, unsigned), &graph, 0);
    for (int i = 0; i < NODES; i++) {
        CALL(cuGraphAddKernelNode_v2, (void **, void *, void **, size_t, kernel_node *), &node, graph,
             &before, before != NULL, &parameters);
        before = node;
    }
    CALL(cuGraphInstantiateWithFlags, (void **, void *, unsigned long long), &executable, graph, 0);
    return executable;
}

static int is_over(void)
{
    struct pollfd input = {.fd = 0, .events = POLLIN};
    char byte;
    return poll(&input, 1, 0) != 0 && read(0, &byte, 1) <= 0;
}

int main(int count, char **words)
{
    char image[128];
    void *context, *module, *function, *graph = NULL;
    uint64_t address;
    cuda = dlopen("libcuda.so.1", RTLD_NOW);
    if (count < 3 || cuda == NULL)
        return 2;
    const unsigned long microseconds = strtoul(words[1], NULL, 10);
    const size_t bytes = count > 3 ? strtoull(words[3], NULL, 10) : 0;
    CALL(cuInit, (unsigned), 0);
    CALL(cuDevicePrimaryCtxRetain, (void **, int), &context, count > 4 ? atoi(words[4]) : 0);
    CALL(cuCtxSetCurrent, (void *), context);
    if (bytes != 0)
        CALL(cuMemAlloc_v2, (uint64_t *, size_t), &address, bytes);
    snprintf(image, sizeof image, "hami-sim kernels\nwave %lu\n", microseconds);
    CALL(cuModuleLoadData, (void **, const void *), &module, image);
    CALL(cuModuleGetFunction, (void **, void *, const char *), &function, module, "wave");
    if (strcmp(words[2], "graph") == 0)
        graph = make_graph(function);
    puts("ready");
    fflush(stdout);
    int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                  void *, void **, void **) =
        (int (*)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                 void *, void **, void **))find("cuLaunchKernel");
    int (*replay)(void *, void *) = graph ? (int (*)(void *, void *))find("cuGraphLaunch") : NULL;
    int (*wait)(void) = (int (*)(void))find("cuCtxSynchronize");
    const unsigned long one = graph != NULL ? microseconds * NODES : microseconds;
    const unsigned long at_once = one >= WORK_US ? 1 : WORK_US / one;
    while (!is_over()) {
        if (strcmp(words[2], "memory") == 0) {
            usleep(10000);
            continue;
        }
        for (unsigned long i = 0; i < at_once; i++)
            if ((graph != NULL ? replay(graph, NULL)
                               : launch(function, 1, 1, 1, 32, 1, 1, 0, NULL, NULL, NULL)) != 0)
                return 5;
        if (wait() != 0)
            return 6;
    }
    return 0;
}
