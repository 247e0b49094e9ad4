/* resolve.c: the table of hooks, the driver's own functions, and what dlsym answers.
 *
 * Rule: a hook is offered only in the place of the driver's own function. The real look-up runs
 * first, with the caller's handle; only if it yields the driver's address (or our exported hook
 * while the driver has the function) the hook is the answer. Nothing here starts the shim.
 */
#define _GNU_SOURCE
#include "resolve.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "elf.h"
#include "hooks.h"

#include "hook-names.h"

struct row {
    const char *name;
    enum hami_library library;
    void *hook; /* NULL: only called by us */
};

static const struct row rows[HAMI_ROWS] = {
#define HAMI_HOOK(library, name, symbol, version, parameters)                                      \
    [HAMI_ROW_##name] = {#name, HAMI_LIBRARY_##library, (void *)name},
#define HAMI_CALL(library, name, parameters)                                                       \
    [HAMI_ROW_##name] = {#name, HAMI_LIBRARY_##library, NULL},
#include "hooks.def"
};

static const char *const library_names[HAMI_LIBRARIES] = {"libcuda.so.1", "libnvidia-ml.so.1"};

void *_Atomic hami_real_functions[HAMI_ROWS];
static void *_Atomic libraries[HAMI_LIBRARIES];
static _Atomic bool missing[HAMI_ROWS]; /* the driver that is loaded has it not, and never will */

typedef void *dlsym_type(void *handle, const char *name);
typedef void *dlvsym_type(void *handle, const char *name, const char *version);

/* The next definition after ours: libc's, or that of another interposer, which must not be skipped. */
HAMI_EARLY static void *next_function(void *_Atomic *cached, const char *name)
{
    void *function = atomic_load_explicit(cached, memory_order_acquire);
    if (function == NULL) {
        function = hami_elf_after_us(name);
        atomic_store_explicit(cached, function, memory_order_release);
    }
    return function;
}

HAMI_EARLY static dlsym_type *real_dlsym(void)
{
    static void *_Atomic cached;
    return (dlsym_type *)next_function(&cached, "dlsym");
}

HAMI_EARLY static dlvsym_type *real_dlvsym(void)
{
    static void *_Atomic cached;
    return (dlvsym_type *)next_function(&cached, "dlvsym");
}

/* A handle of the driver's library if the program has loaded it. RTLD_NODELETE: we keep addresses. */
static void *loaded_library(enum hami_library library, int flags)
{
    void *handle = atomic_load_explicit(&libraries[library], memory_order_acquire);
    if (handle == NULL) {
        handle = dlopen(library_names[library], RTLD_LAZY | RTLD_NODELETE | flags);
        atomic_store_explicit(&libraries[library], handle, memory_order_release);
    }
    return handle;
}

static void *find_real(enum hami_row row, int flags)
{
    void *function = atomic_load_explicit(&hami_real_functions[row], memory_order_acquire);
    if (function != NULL || atomic_load_explicit(&missing[row], memory_order_relaxed))
        return function;
    void *handle = loaded_library(rows[row].library, flags);
    if (handle != NULL)
        function = real_dlsym()(handle, rows[row].name);
    if (function == rows[row].hook)
        function = NULL;
    if (function != NULL) {
        atomic_store_explicit(&hami_real_functions[row], function, memory_order_release);
        return function;
    }
    dlerror(); /* the error of our own look-up is none of the program's */
    if (handle != NULL)
        atomic_store_explicit(&missing[row], true, memory_order_relaxed);
    return NULL;
}

void *hami_find_real(enum hami_row row)
{
    return find_real(row, 0);
}

/* The number of the hook of that exact name, or HAMI_HOOKS. A name has one place in the table. */
HAMI_EARLY static enum hami_row find_row(const char *name)
{
    if (name == NULL || (name[0] != 'c' && name[0] != 'n'))
        return HAMI_HOOKS;
    const uint32_t place = (hami_name_hash(name) * EXPORT_FACTOR) >> (32 - EXPORT_BITS);
    const unsigned row = export_places[place];
    return row != 0 && hami_same_name(name, rows[row - 1].name) ? (enum hami_row)(row - 1) : HAMI_HOOKS;
}

/* What to answer where the program's own look-up yielded `found`. */
static void *choose(enum hami_row row, void *found)
{
    void *hook = rows[row].hook;
    if (found == NULL)
        return NULL;
    void *real = find_real(row, RTLD_NOLOAD);
    if (found == hook && real == NULL) /* nobody but us has it, or somebody behind us; sets dlerror */
        return real_dlsym()(RTLD_NEXT, rows[row].name);
    return found == real ? hook : found;
}

/* RTLD_NEXT as the caller means it; if there is nothing, the real function is to say so. */
static struct hami_route next_of(enum hami_row row, const void *caller, void *real_function)
{
    void *found = hami_elf_next(rows[row].name, caller);
    if (found == NULL)
        return (struct hami_route){.jump = real_function};
    return (struct hami_route){.answer = choose(row, found)};
}

HAMI_EARLY struct hami_route hami_route_dlsym(void *handle, const char *name, const void *caller)
{
    const enum hami_row row = find_row(name);
    if (row == HAMI_HOOKS)
        return (struct hami_route){.jump = (void *)real_dlsym()};
    if (handle == RTLD_NEXT)
        return next_of(row, caller, (void *)real_dlsym());
    return (struct hami_route){.answer = choose(row, real_dlsym()(handle, name))};
}

HAMI_EARLY struct hami_route hami_route_dlvsym(void *handle, const char *name, const char *version,
                                    const void *caller)
{
    const enum hami_row row = find_row(name);
    if (row == HAMI_HOOKS)
        return (struct hami_route){.jump = (void *)real_dlvsym()};
    if (handle == RTLD_NEXT)
        return next_of(row, caller, (void *)real_dlvsym());
    return (struct hami_route){.answer = choose(row, real_dlvsym()(handle, name, version))};
}

