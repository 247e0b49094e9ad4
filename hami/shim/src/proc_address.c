/* proc_address.c: cuGetProcAddress. The driver decides; its answer is then swapped by address. */
#include "hooks.h"
#include "resolve.h"

static CUresult swap(CUresult result, const char *symbol, void **function)
{
    if (result == CUDA_SUCCESS && function != NULL && *function != NULL) {
        void *hook = hami_hook_of(*function, symbol);
        if (hook != NULL)
            *function = hook;
    }
    return result;
}

HAMI_EXPORT CUresult cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags)
{
    return swap(HAMI_CUDA(cuGetProcAddress, symbol, function, version, flags), symbol, function);
}

HAMI_EXPORT CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version,
                                         uint64_t flags, int *status)
{
    return swap(HAMI_CUDA(cuGetProcAddress_v2, symbol, function, version, flags, status), symbol,
                function);
}

HAMI_EXPORT CUresult cuGetProcAddress_v2_ptsz(const char *symbol, void **function, int version,
                                              uint64_t flags, int *status)
{
    return swap(HAMI_CUDA(cuGetProcAddress_v2_ptsz, symbol, function, version, flags, status), symbol,
                function);
}
