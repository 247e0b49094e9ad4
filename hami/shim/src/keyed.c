/* keyed.c: chains, of about one item each. */
#include "keyed.h"

#include <stdlib.h>

#define FIRST_CAPACITY 64

static struct hami_keyed **bucket_of(struct hami_keyed_table *table, uint64_t key)
{
    if (table->capacity == 0)
        return table->only;
    const uint64_t mixed = key * UINT64_C(0x9e3779b97f4a7c15);
    return &table->buckets[(mixed ^ mixed >> 32) & (table->capacity - 1)];
}

struct hami_keyed *hami_keyed_find(struct hami_keyed_table *table, uint64_t key)
{
    struct hami_keyed *item = *bucket_of(table, key);
    while (item != NULL && item->key != key)
        item = item->next;
    return item;
}

static void link_to(struct hami_keyed_table *table, struct hami_keyed *item)
{
    struct hami_keyed **bucket = bucket_of(table, item->key);
    item->next = *bucket;
    *bucket = item;
}

static void grow(struct hami_keyed_table *table)
{
    struct hami_keyed_table old = *table;
    const size_t capacity = old.capacity != 0 ? old.capacity * 2 : FIRST_CAPACITY;
    struct hami_keyed **buckets = calloc(capacity, sizeof *buckets);
    if (buckets == NULL)
        return;
    table->buckets = buckets;
    table->capacity = capacity;
    for (size_t i = 0; i < (old.capacity != 0 ? old.capacity : 1); i++)
        for (struct hami_keyed *item = old.capacity != 0 ? old.buckets[i] : old.only[0], *next; item != NULL;
             item = next) {
            next = item->next;
            link_to(table, item);
        }
    table->only[0] = NULL;
    free(old.buckets);
}

void hami_keyed_put(struct hami_keyed_table *table, struct hami_keyed *item)
{
    if (table->count >= table->capacity)
        grow(table);
    link_to(table, item);
    table->count++;
}

void hami_keyed_remove(struct hami_keyed_table *table, const struct hami_keyed *item)
{
    struct hami_keyed **link = bucket_of(table, item->key);
    while (*link != item)
        link = &(*link)->next;
    *link = item->next;
    table->count--;
}
