/* addresses.c: the hook that stands for a function which cuGetProcAddress gave out.
 *
 * Nearly always the driver gives out what dlsym finds too: one table holds those addresses. A driver
 * may give out others (thunks). They are learnt when they turn up, by asking the driver for each form
 * of the symbol in question that is hooked: what it answers twice is the same function.
 */
#include <stdatomic.h>
#include <stdbool.h>

#include "elf.h"
#include "hooks.h"
#include "resolve.h"

#include "hook-symbols.h"

#define PLACES 1024 /* a power of two */
#define MOST_KNOWN (PLACES / 2) /* beyond that nothing more is remembered; it is asked for each time */

enum { ANY_STREAM, LEGACY_STREAM, PER_THREAD_STREAM }; /* flags of cuGetProcAddress */

struct form {
    const char *name;
    enum hami_library library;
    const char *symbol; /* "": not to be had from cuGetProcAddress */
    int version;
    void *hook;
};

static const struct form forms[HAMI_HOOKS] = {
#define HAMI_HOOK(library, name, symbol, version, parameters)                                      \
    [HAMI_ROW_##name] = {#name, HAMI_LIBRARY_##library, symbol, version, (void *)name},
#include "hooks.def"
};

/* Written by address first, then by row: a reader that comes in between takes it for unknown. */
static struct {
    void *_Atomic address;
    _Atomic int row; /* its number + 1 */
} known[PLACES];

static _Atomic int known_count;
static _Atomic bool exports_known;

_Static_assert(HAMI_HOOKS < MOST_KNOWN, "room for every exported address");

static unsigned place_of(const void *address)
{
    return (unsigned)(((uintptr_t)address * UINT64_C(0x9e3779b97f4a7c15)) >> 54) % PLACES;
}

/* Of two rows with one address the first stays. All threads that learn do so in the same order. */
static void remember(void *address, int row)
{
    if (address == NULL || atomic_load(&known_count) >= MOST_KNOWN)
        return;
    for (unsigned place = place_of(address);; place = (place + 1) % PLACES) {
        void *seen = atomic_load(&known[place].address);
        if (seen == NULL && atomic_compare_exchange_strong(&known[place].address, &seen, address)) {
            atomic_fetch_add(&known_count, 1);
            seen = address;
        }
        if (seen == address) {
            atomic_compare_exchange_strong(&known[place].row, &(int){0}, row + 1);
            return;
        }
    }
}

/* -1: not known. */
static int recall(const void *address)
{
    for (unsigned place = place_of(address);; place = (place + 1) % PLACES) {
        const void *seen = atomic_load_explicit(&known[place].address, memory_order_acquire);
        if (seen == address)
            return atomic_load_explicit(&known[place].row, memory_order_acquire) - 1;
        if (seen == NULL)
            return -1;
    }
}

/* cuGetProcAddress is asked of a driver that is loaded, so all of its exports can be found. */
static void learn_exports(void)
{
    if (atomic_load_explicit(&exports_known, memory_order_acquire))
        return;
    for (int row = 0; row < HAMI_HOOKS; row++)
        if (forms[row].library == HAMI_LIBRARY_CUDA)
            remember(hami_real((enum hami_row)row), row);
    atomic_store_explicit(&exports_known, true, memory_order_release);
}

static bool is_per_thread(const char *name)
{
    const char *end = name;
    while (*end != '\0')
        end++;
    return end - name > 5 && (hami_same_name(end - 5, "_ptsz") || hami_same_name(end - 5, "_ptds"));
}

/* A form of the same symbol that the driver would rather give out for PER_THREAD_STREAM. */
static bool has_per_thread_twin(const struct form *form)
{
    for (int row = 0; row < HAMI_HOOKS; row++)
        if (hami_same_name(forms[row].symbol, form->symbol) && is_per_thread(forms[row].name) &&
            forms[row].version <= form->version && hami_real((enum hami_row)row) != NULL)
            return true;
    return false;
}

static bool gives(const struct form *form, uint64_t flags, const void *wanted)
{
    void *function = NULL;
    int status = 0;
    if (HAMI_REAL(cuGetProcAddress_v2) != NULL)
        HAMI_REAL(cuGetProcAddress_v2)(form->symbol, &function, form->version, flags, &status);
    else if (HAMI_REAL(cuGetProcAddress) != NULL)
        HAMI_REAL(cuGetProcAddress)(form->symbol, &function, form->version, flags);
    return function == wanted;
}

static bool is_form(const struct form *form, const void *wanted)
{
    if (is_per_thread(form->name))
        return gives(form, PER_THREAD_STREAM, wanted);
    return gives(form, ANY_STREAM, wanted) || gives(form, LEGACY_STREAM, wanted) ||
           (!has_per_thread_twin(form) && gives(form, PER_THREAD_STREAM, wanted));
}

static bool is_hooked(const char *symbol)
{
    const uint32_t place = (hami_name_hash(symbol) * SYMBOL_FACTOR) >> (32 - SYMBOL_BITS);
    const unsigned row = symbol_places[place];
    return row != 0 && hami_same_name(symbol, forms[row - 1].symbol);
}

static int ask_for(void *function, const char *symbol)
{
    if (symbol == NULL || !is_hooked(symbol))
        return -1;
    for (int row = 0; row < HAMI_HOOKS; row++) {
        if (!hami_same_name(symbol, forms[row].symbol) || hami_real((enum hami_row)row) == NULL ||
            !is_form(&forms[row], function))
            continue;
        remember(function, row);
        return row;
    }
    return -1;
}

void *hami_hook_of(void *function, const char *symbol)
{
    learn_exports();
    int row = recall(function);
    if (row < 0)
        row = ask_for(function, symbol);
    return row >= 0 ? forms[row].hook : NULL;
}
