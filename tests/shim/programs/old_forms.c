/* old_forms: the 32-bit forms of before CUDA 3.2, on the fake driver. */
#include <dlfcn.h>
#include <stdio.h>

static void *cuda;

static unsigned info(void)
{
    unsigned free_bytes = 0, total = 0;
    ((int (*)(unsigned *, unsigned *))dlsym(cuda, "cuMemGetInfo"))(&free_bytes, &total);
    return free_bytes;
}

static int allocate(unsigned bytes)
{
    unsigned address;
    return ((int (*)(unsigned *, unsigned))dlsym(cuda, "cuMemAlloc"))(&address, bytes);
}

static int allocate_pitch(unsigned width, unsigned height)
{
    unsigned address, pitch;
    return ((int (*)(unsigned *, unsigned *, unsigned, unsigned, unsigned))dlsym(
        cuda, "cuMemAllocPitch"))(&address, &pitch, width, height, 4);
}

int main(void)
{
    unsigned total = 0;
    cuda = dlopen("libcuda.so.1", RTLD_NOW);
    ((int (*)(unsigned *, int))dlsym(cuda, "cuDeviceTotalMem"))(&total, 0);
    printf("total %u\n", total);
    printf("free %u\n", info());
    printf("alloc 700: %d\n", allocate(700));
    printf("free %u\n", info());
    printf("alloc 1: %d\n", allocate(1));
    printf("free 4096: %d\n", ((int (*)(unsigned))dlsym(cuda, "cuMemFree"))(4096));
    printf("free %u\n", info());
    printf("pitch 100 x 8, aligned as nobody expects: %d\n", allocate_pitch(100, 8));
    printf("pitch 100 x 1: %d\n", allocate_pitch(100, 1));
    printf("free %u\n", info());
    return 0;
}
