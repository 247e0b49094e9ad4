/* keyed.h: a hash table of structures that carry their own links, by a number of 64 bits.
 *
 * Takes memory for its buckets only, and goes on without more of them where there is none. No locks.
 */
#ifndef HAMI_KEYED_H
#define HAMI_KEYED_H

#include <stddef.h>
#include <stdint.h>

struct hami_keyed { /* the first member of what is put into a table */
    uint64_t key;
    struct hami_keyed *next;
};

struct hami_keyed_table { /* all zeroes: empty */
    struct hami_keyed **buckets;
    size_t capacity; /* 0 or a power of two */
    size_t count;
    struct hami_keyed *only[1]; /* the bucket of a table that has no other */
};

/* The newest with that key, or NULL. */
struct hami_keyed *hami_keyed_find(struct hami_keyed_table *table, uint64_t key);

void hami_keyed_put(struct hami_keyed_table *table, struct hami_keyed *item);

/* Needs an item that is in the table. */
void hami_keyed_remove(struct hami_keyed_table *table, const struct hami_keyed *item);

#endif
