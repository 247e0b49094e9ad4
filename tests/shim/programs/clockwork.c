/* clockwork: obeys one order a line over clocked_cuda; the answer is one line of numbers.
 *
 *   launch INDEX COUNT [THREADS]   kernels; INDEX names one of 16 functions
 *   length INDEX NS                how long that function (and graph) takes from now on
 *   replay INDEX COUNT             graph launches
 *   update INDEX                   cuGraphExecUpdate
 *   destroy INDEX                  cuGraphExecDestroy; the next graph gets the same handle
 *   captured INDEX COUNT           kernels into a stream that is captured, begun and ended here
 *   beside INDEX COUNT             kernels into another stream while one is captured
 *   set WHAT VALUE | get WHAT      of the driver
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static int (*cuLaunchKernel)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                             void *, void **, void **);
static int (*cuGraphLaunch)(void *, void *);
static int (*cuGraphExecUpdate_v2)(void *, void *, void *);
static int (*cuGraphExecDestroy)(void *);
static int (*cuStreamBeginCapture_v2)(void *, int);
static int (*cuStreamEndCapture)(void *, void **);
static int (*clocked_set)(int, uint64_t);
static uint64_t (*clocked_get)(int);
static uint64_t functions[16];

static int launch(unsigned long index, unsigned long count, unsigned long threads, void *stream)
{
    int failed = 0;
    for (unsigned long i = 0; i < count; i++)
        failed += cuLaunchKernel(&functions[index], (unsigned)threads, 1, 1, 1, 1, 1, 0, stream, NULL, NULL);
    return failed;
}

static unsigned long long obey(const char *order, unsigned long one, unsigned long two, unsigned long three)
{
    void *stream = &functions, *graph;
    int failed = 0;
    if (strcmp(order, "launch") == 0)
        return (unsigned)launch(one, two, three, NULL);
    if (strcmp(order, "length") == 0)
        functions[one] = two;
    else if (strcmp(order, "replay") == 0)
        for (unsigned long i = 0; i < two; i++)
            failed += cuGraphLaunch(&functions[one], NULL);
    else if (strcmp(order, "update") == 0)
        return (unsigned)cuGraphExecUpdate_v2(&functions[one], stream, stream);
    else if (strcmp(order, "destroy") == 0)
        return (unsigned)cuGraphExecDestroy(&functions[one]);
    else if (strcmp(order, "captured") == 0 || strcmp(order, "beside") == 0) {
        failed += cuStreamBeginCapture_v2(stream, 0);
        failed += launch(one, two, 1, strcmp(order, "captured") == 0 ? stream : NULL);
        failed += cuStreamEndCapture(stream, &graph);
    } else if (strcmp(order, "set") == 0)
        return (unsigned)clocked_set((int)one, two);
    else if (strcmp(order, "get") == 0)
        return clocked_get((int)one);
    return (unsigned)failed;
}

int main(void)
{
    char line[256], order[32];
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
#define FIND(name) *(void **)&name = dlsym(cuda, #name)
    FIND(cuLaunchKernel);
    FIND(cuGraphLaunch);
    FIND(cuGraphExecUpdate_v2);
    FIND(cuGraphExecDestroy);
    FIND(cuStreamBeginCapture_v2);
    FIND(cuStreamEndCapture);
    FIND(clocked_set);
    FIND(clocked_get);
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        unsigned long one = 0, two = 0, three = 1;
        if (sscanf(line, "%31s %lu %lu %lu", order, &one, &two, &three) < 1)
            return 2;
        printf("%llu\n", obey(order, one, two, three));
        fflush(stdout);
    }
    return 0;
}
