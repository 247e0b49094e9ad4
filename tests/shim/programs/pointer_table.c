/* pointer_table: the table of pointers against a plain array, over addresses of every kind.
 *
 *   pointer_table SEED STEPS
 */
#include <stdio.h>
#include <stdlib.h>

#include "pointers.h"

#define KNOWN 4096

static struct hami_pointer known[KNOWN]; /* what must be in the table; address 0: nothing */
static uint64_t state;

static uint64_t draw(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

/* Dense runs, whole blocks, neighbours that no driver gives out, and anything. */
static uint64_t address_of(unsigned kind, uint64_t number)
{
    switch (kind) {
    case 0:
        return UINT64_C(0x7f0000000000) + number * 512;
    case 1:
        return UINT64_C(0x7e0000000000) + (number << 21);
    case 2:
        return UINT64_C(0x550000000010) + number * 48;
    default:
        return (number + 1) * UINT64_C(0x9e3779b97f4a7c15) | 1;
    }
}

static void expect(int holds, const char *what, uint64_t address)
{
    if (holds)
        return;
    printf("%s: %llx\n", what, (unsigned long long)address);
    exit(1);
}

static int same(const struct hami_pointer *left, const struct hami_pointer *right)
{
    return left->address == right->address && left->bytes == right->bytes &&
           left->device == right->device && left->context == right->context;
}

static void step(void)
{
    const uint64_t number = draw(KNOWN);
    const uint64_t address = address_of(number % 4, number);
    struct hami_pointer *entry = &known[number];
    struct hami_pointer met = {.address = 0};
    if (draw(3) == 0) {
        const int taken = hami_pointers_take(address, &met);
        expect(taken == (entry->address != 0), "take", address);
        expect(!taken || same(&met, entry), "taken is another", address);
        entry->address = 0;
        return;
    }
    const struct hami_pointer put = {address, draw(UINT64_C(1) << 40), (unsigned)draw(16),
                                     (void *)(uintptr_t)(draw(3) + 1)};
    expect(hami_pointers_put(&put, &met), "put", address);
    expect(entry->address == 0 ? met.address == 0 : same(&met, entry), "stale", address);
    *entry = put;
}

static void visit(const struct hami_pointer *pointer, void *argument)
{
    uint64_t number = 0;
    while (number < KNOWN && known[number].address != pointer->address)
        number++;
    expect(number < KNOWN && same(pointer, &known[number]), "visited", pointer->address);
    known[number].address = 0;
    ++*(unsigned *)argument;
}

int main(int argc, char **argv)
{
    unsigned visited = 0, expected = 0;
    state = argc > 1 ? strtoull(argv[1], NULL, 10) * 2 + 1 : 1;
    for (unsigned long steps = argc > 2 ? strtoul(argv[2], NULL, 10) : 100000; steps != 0; steps--)
        step();
    for (unsigned i = 0; i < KNOWN; i++)
        expected += known[i].address != 0 && known[i].context == (void *)(uintptr_t)2;
    hami_pointers_take_context((void *)(uintptr_t)2, visit, &visited);
    expect(visited == expected, "visits", visited);
    for (unsigned i = 0; i < KNOWN; i++) {
        struct hami_pointer met;
        expect(hami_pointers_take(address_of(i % 4, i), &met) == (known[i].address != 0), "left", i);
    }
    puts("same");
    return 0;
}
