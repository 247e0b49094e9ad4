/* resolve.h: between names, the driver's addresses and our hooks. */
#ifndef HAMI_RESOLVE_H
#define HAMI_RESOLVE_H

#include <stdint.h>

struct hami_route { /* two registers wide: dlsym.S takes it apart */
    void *answer;
    void *jump; /* the function to jump to instead, NULL: return the answer */
};

/* The decisions behind the exported dlsym and dlvsym; `caller` is their return address. */
struct hami_route hami_route_dlsym(void *handle, const char *name, const void *caller);
struct hami_route hami_route_dlvsym(void *handle, const char *name, const char *version,
                                    const void *caller);

/* The hook that stands for a function that cuGetProcAddress gave out for `symbol`, or NULL. */
void *hami_hook_of(void *function, const char *symbol);

#endif
