/* launcher MICROSECONDS COUNT BLOCKS: that many launches, then a wait; prints two times in ms.
 *
 * The first is what the events around the launches say, the second what the clock says.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void *cuda;

static void *find(const char *name)
{
    return dlsym(cuda, name);
}

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

int main(int count, char **words)
{
    char image[128];
    void *context, *module, *function, *start, *end;
    float measured = 0;
    cuda = dlopen("libcuda.so.1", RTLD_NOW);
    if (count != 4 || cuda == NULL)
        return 2;
    int (*record)(void *, void *) = (int (*)(void *, void *))find("cuEventRecord");
    int (*create)(void **, unsigned) = (int (*)(void **, unsigned))find("cuEventCreate");
    int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                  void *, void **, void **) =
        (int (*)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                 void *, void **, void **))find("cuLaunchKernel");
    snprintf(image, sizeof image, "hami-sim kernels\nother 1\nkernel %s\n", words[1]);
    int failed = ((int (*)(unsigned))find("cuInit"))(0);
    failed |= ((int (*)(void **, int))find("cuDevicePrimaryCtxRetain"))(&context, 0);
    failed |= ((int (*)(void *))find("cuCtxSetCurrent"))(context);
    failed |= ((int (*)(void **, const void *))find("cuModuleLoadData"))(&module, image);
    failed |= ((int (*)(void **, void *, const char *))find("cuModuleGetFunction"))(&function, module,
                                                                                    "kernel");
    failed |= create(&start, 0) | create(&end, 0);
    const double began = now_ms();
    failed |= record(start, NULL);
    for (int i = 0; i < atoi(words[2]); i++)
        failed |= launch(function, (unsigned)atoi(words[3]), 1, 1, 1024, 1, 1, 0, NULL, NULL, NULL);
    failed |= record(end, NULL);
    failed |= ((int (*)(void *))find("cuEventSynchronize"))(end);
    const double took = now_ms() - began;
    failed |= ((int (*)(float *, void *, void *))find("cuEventElapsedTime"))(&measured, start, end);
    printf("%.3f %.3f\n", measured, took);
    return failed;
}
