/* crowd COUNT BYTES: that many processes allocate BYTES each and hold them until stdin ends.
 *
 * Prints how many were granted and refused once all have tried. The children share one signal to
 * go: the end of a pipe.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int allocate(size_t bytes)
{
    void *context;
    uint64_t address;
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    int (*init)(unsigned) = (int (*)(unsigned))dlsym(cuda, "cuInit");
    int (*retain)(void **, int) = (int (*)(void **, int))dlsym(cuda, "cuDevicePrimaryCtxRetain");
    int (*set)(void *) = (int (*)(void *))dlsym(cuda, "cuCtxSetCurrent");
    int (*alloc)(uint64_t *, size_t) = (int (*)(uint64_t *, size_t))dlsym(cuda, "cuMemAlloc_v2");
    if (init(0) != 0 || retain(&context, 0) != 0 || set(context) != 0)
        return 99;
    return alloc(&address, bytes);
}

int main(int count, char **words)
{
    int results[2], go[2];
    if (count != 3 || pipe(results) != 0 || pipe(go) != 0)
        return 2;
    const int wanted = atoi(words[1]);
    for (int i = 0; i < wanted; i++) {
        if (fork() != 0)
            continue;
        char byte;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(go[1]);
        const char result = (char)allocate(strtoull(words[2], NULL, 10));
        if (write(results[1], &result, 1) != 1 || read(go[0], &byte, 1) != 0)
            _exit(1);
        _exit(0);
    }
    int granted = 0, refused = 0;
    for (int i = 0; i < wanted; i++) {
        char result = 99;
        if (read(results[0], &result, 1) != 1)
            return 1;
        granted += result == 0;
        refused += result == 2;
    }
    printf("%d %d\n", granted, refused);
    fflush(stdout);
    while (getchar() != EOF)
        ;
    close(go[1]);
    while (wait(NULL) > 0)
        ;
    return 0;
}
