/* pointers.h: what each live device pointer was charged: a sharded open-addressing table.
 *
 * Flat cost to millions of entries; storage comes from mmap, never from the host's allocator. A
 * caller of free takes the entry out before it calls the driver: the driver may hand the address
 * out again at once, and the new owner's entry must not be the one that is removed.
 */
#ifndef HAMI_POINTERS_H
#define HAMI_POINTERS_H

#include <stdbool.h>
#include <stdint.h>

struct hami_pointer {
    uint64_t address; /* never 0 */
    uint64_t bytes;   /* charged; below 2^56 */
    unsigned device;  /* region index; below 256 */
    void *context;    /* the driver's handle; the memory dies with it */
};

/* An entry of what a context takes itself has the context's handle for an address: it goes with all
 * that dies with the context. */
static inline bool hami_pointer_is_context(const struct hami_pointer *pointer)
{
    return pointer->address == (uint64_t)pointer->context;
}

/* Remember the pointer. If the address was known (its memory went away unseen), the old entry is
 * replaced and returned in *stale, else stale->address is 0. False: no memory to remember it in. */
bool hami_pointers_put(const struct hami_pointer *pointer, struct hami_pointer *stale);

/* Put an entry that was taken out back. False: the address was given out anew meanwhile. The newer entry
 * stays, and the caller discharges the old one. Without memory to remember it in it stays charged. */
bool hami_pointers_put_back(const struct hami_pointer *pointer);

/* Take the entry of an address out. False: not known. */
bool hami_pointers_take(uint64_t address, struct hami_pointer *pointer);

/* Take all entries of a context out and give each to `visit`, which must not call back in here. */
void hami_pointers_take_context(const void *context, void (*visit)(const struct hami_pointer *, void *),
                                void *argument);

/* After fork, in the child: forget everything, locks included. */
void hami_pointers_after_fork(void);

#endif
