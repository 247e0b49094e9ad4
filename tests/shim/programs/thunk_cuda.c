/* thunk_cuda: a driver whose cuGetProcAddress gives out other functions than dlsym finds, and another
 * for each flag: 0 any stream, 1 the legacy stream, 2 the calling thread's. */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define THUNK(type, name, number, parameters, arguments)                                           \
    static type thunk_##number##_of_##name parameters { return name arguments + (number) * 0; }
#define THUNKS(name, parameters, arguments)                                                        \
    THUNK(int, name, 0, parameters, arguments)                                                     \
    THUNK(int, name, 1, parameters, arguments)                                                     \
    THUNK(int, name, 2, parameters, arguments)

int cuInit(unsigned flags)
{
    return (int)flags;
}

int cuMemAlloc(unsigned *address, unsigned bytes)
{
    *address = 4096;
    return bytes == 0;
}

int cuMemAlloc_v2(uint64_t *address, size_t bytes)
{
    *address = 4096;
    return bytes == 0;
}

int cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status);

int cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags)
{
    return cuGetProcAddress_v2(symbol, function, version, flags, NULL);
}

int cuGetProcAddress_v2_ptsz(const char *symbol, void **function, int version, uint64_t flags, int *status)
{
    return cuGetProcAddress_v2(symbol, function, version, flags != 1 ? 2 : 1, status);
}

THUNKS(cuInit, (unsigned flags), (flags))
THUNKS(cuMemAlloc, (unsigned *address, unsigned bytes), (address, bytes))
THUNKS(cuMemAlloc_v2, (uint64_t *address, size_t bytes), (address, bytes))
THUNKS(cuGetProcAddress, (const char *symbol, void **function, int version, uint64_t flags),
       (symbol, function, version, flags))
THUNK(int, cuGetProcAddress_v2, 0,
      (const char *symbol, void **function, int version, uint64_t flags, int *status),
      (symbol, function, version, flags, status))
THUNK(int, cuGetProcAddress_v2, 1,
      (const char *symbol, void **function, int version, uint64_t flags, int *status),
      (symbol, function, version, flags, status))
THUNK(int, cuGetProcAddress_v2_ptsz, 2,
      (const char *symbol, void **function, int version, uint64_t flags, int *status),
      (symbol, function, version, flags, status))

#define ROW(symbol, version, name)                                                                 \
    {symbol, version, {(void *)thunk_0_of_##name, (void *)thunk_1_of_##name, (void *)thunk_2_of_##name}}

static const struct {
    const char *symbol;
    int version;
    void *functions[3];
} table[] = {
    ROW("cuInit", 2000, cuInit),
    ROW("cuMemAlloc", 2000, cuMemAlloc),
    ROW("cuMemAlloc", 3020, cuMemAlloc_v2),
    ROW("cuGetProcAddress", 11030, cuGetProcAddress),
    {"cuGetProcAddress", 12000, {(void *)thunk_0_of_cuGetProcAddress_v2,
      (void *)thunk_1_of_cuGetProcAddress_v2, (void *)thunk_2_of_cuGetProcAddress_v2_ptsz}},
};

int cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status)
{
    *function = NULL;
    for (size_t i = 0; flags <= 2 && i < sizeof table / sizeof *table; i++)
        if (strcmp(table[i].symbol, symbol) == 0 && table[i].version <= version)
            *function = table[i].functions[flags];
    if (status != NULL)
        *status = *function != NULL ? 40 : 41; /* as no driver says it: to be told apart */
    return *function != NULL || status != NULL ? 0 : 500;
}
