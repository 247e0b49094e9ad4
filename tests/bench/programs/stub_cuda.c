/* stub_cuda: a driver whose calls cost next to nothing, so that what remains is the shim.
 *
 * It gives out again first what was freed last, as drivers do; with STUB_FRESH always new addresses.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FREED (1 << 20)

static uint64_t next_address = UINT64_C(0x7f0000000000);
static uint64_t freed[FREED];
static unsigned freed_count;
static bool fresh;
static int context;

int cuInit(unsigned flags)
{
    fresh = getenv("STUB_FRESH") != NULL;
    return (int)flags;
}

int cuDevicePrimaryCtxRetain(void **result, int device)
{
    *result = &context;
    return device;
}

int cuCtxSetCurrent(void *wanted)
{
    return wanted != &context;
}

int cuCtxGetCurrent(void **result)
{
    *result = &context;
    return 0;
}

int cuCtxGetDevice(int *device)
{
    *device = 0;
    return 0;
}

int cuDeviceGetUuid(unsigned char *uuid, int device)
{
    memset(uuid, 0x11, 16);
    return device;
}

int cuModuleLoadData(void **module, const void *image)
{
    *module = &context;
    return image == NULL;
}

int cuModuleGetFunction(void **function, void *module, const char *name)
{
    *function = module;
    return name == NULL;
}

int cuMemAlloc_v2(uint64_t *address, size_t bytes)
{
    if (freed_count != 0) {
        *address = freed[--freed_count];
        return 0;
    }
    *address = next_address;
    next_address += bytes;
    return 0;
}

int cuMemFree_v2(uint64_t address)
{
    if (!fresh && freed_count < FREED)
        freed[freed_count++] = address;
    return address == 0;
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    *free_bytes = *total = (size_t)1 << 40;
    return 0;
}

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **parameters, void **extra)
{
    (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz;
    (void)shared, (void)stream, (void)parameters, (void)extra;
    return function == NULL;
}

struct config {
    unsigned grid[3], block[3], shared;
    void *stream, *attributes;
    unsigned count;
};

int cuLaunchKernelEx(const struct config *config, void *function, void **parameters, void **extra)
{
    (void)parameters, (void)extra;
    return config == NULL || function == NULL;
}

int cuGraphLaunch(void *graph, void *stream)
{
    (void)stream;
    return graph == NULL;
}

int cuEventCreate(void **event, unsigned flags)
{
    *event = &context;
    return (int)flags;
}

int cuEventDestroy_v2(void *event)
{
    return event == NULL;
}

int cuEventRecord(void *event, void *stream)
{
    (void)stream;
    return event == NULL;
}

int cuEventQuery(void *event)
{
    return event == NULL;
}

int cuEventElapsedTime(float *milliseconds, void *start, void *end)
{
    *milliseconds = 0.001f;
    return start == NULL || end == NULL;
}

int cuStreamQuery(void *stream)
{
    (void)stream;
    return 0;
}

int cuThreadExchangeStreamCaptureMode(int *mode)
{
    return mode == NULL;
}

int cuStreamIsCapturing(void *stream, int *status)
{
    (void)stream;
    *status = 0;
    return 0;
}

/* One pool, which has all that it needs. */
int cuDeviceGetMemPool(void **pool, int device)
{
    *pool = &context;
    return device;
}

int cuDeviceGetDefaultMemPool(void **pool, int device)
{
    *pool = &context;
    return device;
}

int cuMemPoolGetAttribute(void *pool, int attribute, void *value)
{
    (void)attribute;
    *(uint64_t *)value = (uint64_t)32 << 20;
    return pool == NULL;
}

int cuMemAllocAsync(uint64_t *address, size_t bytes, void *stream)
{
    (void)stream;
    return cuMemAlloc_v2(address, bytes);
}

int cuMemFreeAsync(uint64_t address, void *stream)
{
    (void)stream;
    return cuMemFree_v2(address);
}
