/* linked BYTES: calls the driver as a program does that was linked with -lcuda. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int cuInit(unsigned flags);
int cuDevicePrimaryCtxRetain(void **context, int device);
int cuCtxSetCurrent(void *context);
int cuMemAlloc_v2(uint64_t *address, size_t bytes);
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total);

int main(int count, char **words)
{
    void *context;
    uint64_t address;
    size_t free_bytes, total;
    if (count != 2 || cuInit(0) != 0 || cuDevicePrimaryCtxRetain(&context, 0) != 0 ||
        cuCtxSetCurrent(context) != 0 || cuMemGetInfo_v2(&free_bytes, &total) != 0)
        return 1;
    printf("%zu %d\n", total, cuMemAlloc_v2(&address, strtoull(words[1], NULL, 10)));
    return 0;
}
