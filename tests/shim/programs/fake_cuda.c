/* fake_cuda: a driver with few and odd symbols: old 32-bit forms, some functions missing, and other
 * addresses from cuGetProcAddress than from dlsym. Every allocation is at address 4096. */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TWINS(type, name, parameters, body)                                                        \
    type name parameters body static type twin_of_##name parameters body

static unsigned fake_free = 900;

TWINS(int, cuInit, (unsigned flags), { return (int)flags; })
TWINS(int, cuCtxGetCurrent, (void **context), {
    *context = &fake_free;
    return 0;
})
TWINS(int, cuCtxGetDevice, (int *device), {
    *device = 0;
    return 0;
})
TWINS(int, cuDeviceGetUuid, (unsigned char *uuid, int device), {
    memset(uuid, device + 0x11, 16);
    return 0;
})
TWINS(int, cuMemAlloc, (unsigned *address, unsigned bytes), {
    *address = 4096;
    return bytes > fake_free ? 2 : 0;
})
TWINS(int, cuMemAlloc_v2, (uint64_t *address, size_t bytes), {
    *address = 4096;
    return bytes > fake_free ? 2 : 0;
})
TWINS(int, cuMemAllocPitch, (unsigned *address, unsigned *pitch, unsigned width, unsigned height, unsigned element), {
    *address = 4096;
    *pitch = width + element; /* an alignment that nobody expects */
    return height == 0;
})
TWINS(int, cuMemFree, (unsigned address), { return address != 4096; })
TWINS(int, cuMemFree_v2, (uint64_t address), { return address != 4096; })
TWINS(int, cuMemGetInfo, (unsigned *free_bytes, unsigned *total), {
    *free_bytes = fake_free;
    *total = 1000;
    return 0;
})
TWINS(int, cuDeviceTotalMem, (unsigned *bytes, int device), {
    *bytes = 1000;
    return device;
})

static const struct {
    const char *symbol;
    int version;
    void *function;
} table[] = {
    {"cuInit", 2000, (void *)twin_of_cuInit},
    {"cuMemAlloc", 2000, (void *)twin_of_cuMemAlloc},
    {"cuMemAlloc", 3020, (void *)twin_of_cuMemAlloc_v2},
    {"cuMemAllocPitch", 2000, (void *)twin_of_cuMemAllocPitch},
    {"cuMemFree", 2000, (void *)twin_of_cuMemFree},
    {"cuMemFree", 3020, (void *)twin_of_cuMemFree_v2},
    {"cuMemGetInfo", 2000, (void *)twin_of_cuMemGetInfo},
    {"cuDeviceTotalMem", 2000, (void *)twin_of_cuDeviceTotalMem},
    {"cuCtxGetDevice", 2000, (void *)twin_of_cuCtxGetDevice},
    {"cuCtxGetCurrent", 4000, (void *)twin_of_cuCtxGetCurrent},
    {"cuDeviceGetUuid", 9020, (void *)twin_of_cuDeviceGetUuid},
};

/* Only the first form, as a driver of CUDA 11.3 has it. */
int cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags)
{
    *function = NULL;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(table[i].symbol, symbol) == 0 && table[i].version <= version)
            *function = table[i].function;
    return *function != NULL && flags <= 2 ? 0 : 500;
}
