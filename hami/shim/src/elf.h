/* elf.h: look a name up in the loaded objects without dlsym, which we replace. */
#ifndef HAMI_ELF_H
#define HAMI_ELF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Runs within dlsym, perhaps before the program's own runtime (a sanitizer, an allocator) is up: no
 * instrumentation, and no call of a libc function that such a runtime replaces. */
#define HAMI_EARLY __attribute__((no_sanitize("address", "thread", "undefined")))

/* strcmp(left, right) == 0, without strcmp. */
HAMI_EARLY static inline bool hami_same_name(const char *left, const char *right)
{
    while (*left != '\0' && *left == *right) {
        left++;
        right++;
    }
    return *left == *right;
}

/* The hash that GNU hash tables use; native.py computes it too, for the table of hooked names. */
HAMI_EARLY static inline uint32_t hami_name_hash(const char *name)
{
    uint32_t hash = 5381;
    for (; *name != '\0'; name++)
        hash = hash * 33 + (unsigned char)*name;
    return hash;
}

/* The first definition of `name` in an object loaded after the one that contains `address`, in load
 * order: what dlsym(RTLD_NEXT) tells a caller at that address. NULL: none. Allocates nothing. */
void *hami_elf_next(const char *name, const void *address);

/* The first definition of `name` in load order after this library; after the last object comes the
 * first (we were not preloaded then: libc came before us). Does without dl_iterate_phdr: a program
 * may have one of its own that asks dlsym, hence us, for the real one. */
void *hami_elf_after_us(const char *name);

struct hami_loaded {
    const char *path;   /* as the dynamic linker was asked for it */
    const char *soname; /* NULL: none */
    bool is_us;
};

/* Show every loaded object, in load order. */
void hami_elf_visit(void (*visit)(const struct hami_loaded *object, void *argument), void *argument);

/* The file that this library was loaded from, absolute; false: not to be told. */
bool hami_elf_path_of_us(char *path, size_t capacity);

#endif
