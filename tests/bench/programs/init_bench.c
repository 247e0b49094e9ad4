/* init_bench: how long a program takes from cuInit to its first answer about memory.
 *
 * Says "ready", begins when its standard input ends, and prints microseconds: of the clock, and of
 * the processor. Then it stays, as a program would that goes on, until it is killed.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static double now_us(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

int main(void)
{
    void *context;
    size_t free_bytes, total;
    char byte;
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    int (*init)(unsigned) = (int (*)(unsigned))dlsym(cuda, "cuInit");
    int (*retain)(void **, int) = (int (*)(void **, int))dlsym(cuda, "cuDevicePrimaryCtxRetain");
    int (*set_current)(void *) = (int (*)(void *))dlsym(cuda, "cuCtxSetCurrent");
    int (*info)(size_t *, size_t *) = (int (*)(size_t *, size_t *))dlsym(cuda, "cuMemGetInfo_v2");
    puts("ready");
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
    const double wall = now_us(CLOCK_MONOTONIC);
    const double cpu = now_us(CLOCK_PROCESS_CPUTIME_ID);
    if (init(0) != 0 || retain(&context, 0) != 0 || set_current(context) != 0 ||
        info(&free_bytes, &total) != 0)
        return 1;
    printf("%.1f %.1f\n", now_us(CLOCK_MONOTONIC) - wall, now_us(CLOCK_PROCESS_CPUTIME_ID) - cpu);
    fflush(stdout);
    pause();
    return 0;
}
