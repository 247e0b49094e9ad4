/* spinner: launches kernels of a millisecond until it is killed; some wait, so that the GPU never does. */
#include <dlfcn.h>
#include <stdio.h>

typedef int launch_function(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                            unsigned, void *, void **, void **);

int main(void)
{
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    void *context, *module, *function;
    launch_function *launch = (launch_function *)dlsym(cuda, "cuLaunchKernel");
    int (*synchronize)(void) = (int (*)(void))dlsym(cuda, "cuCtxSynchronize");
    if (((int (*)(unsigned))dlsym(cuda, "cuInit"))(0) != 0 ||
        ((int (*)(void **, int))dlsym(cuda, "cuDevicePrimaryCtxRetain"))(&context, 0) != 0 ||
        ((int (*)(void *))dlsym(cuda, "cuCtxSetCurrent"))(context) != 0 ||
        ((int (*)(void **, const void *))dlsym(cuda, "cuModuleLoadData"))(
            &module, "hami-sim kernels\nspin 1000\n") != 0 ||
        ((int (*)(void **, void *, const char *))dlsym(cuda, "cuModuleGetFunction"))(
            &function, module, "spin") != 0)
        return 1;
    puts("ready");
    fflush(stdout);
    for (unsigned i = 1; launch(function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL) == 0; i++)
        if (i % 16 == 0 && synchronize() != 0)
            break;
    return 1;
}
