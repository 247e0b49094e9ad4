/* elf.c: symbol look-up in the loaded objects, through each object's GNU hash table. */
#define _GNU_SOURCE
#include "elf.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define HIDDEN_VERSION 0x8000

struct object {
    uintptr_t base;
    const ElfW(Sym) *symbols;
    const char *strings;
    const uint32_t *gnu_hash;
    const ElfW(Half) *versions;
    ElfW(Addr) soname; /* offset among the strings; 0: none */
};

struct search {
    const char *name;
    uintptr_t address;
    bool passed; /* the object that contains the address */
    void *found;
};

/* glibc relocates the dynamic section's pointers in place, except in the vDSO and on a few machines. */
HAMI_EARLY static const void *pointer_in(uintptr_t base, ElfW(Addr) value)
{
    return (const void *)(value < base ? base + value : value);
}

HAMI_EARLY static void read_dynamic(struct object *object, const ElfW(Dyn) *dynamic)
{
    for (; dynamic->d_tag != DT_NULL; dynamic++) {
        const void *target = pointer_in(object->base, dynamic->d_un.d_ptr);
        if (dynamic->d_tag == DT_SYMTAB)
            object->symbols = target;
        else if (dynamic->d_tag == DT_STRTAB)
            object->strings = target;
        else if (dynamic->d_tag == DT_GNU_HASH)
            object->gnu_hash = target;
        else if (dynamic->d_tag == DT_VERSYM)
            object->versions = target;
        else if (dynamic->d_tag == DT_SONAME)
            object->soname = dynamic->d_un.d_val;
    }
}

HAMI_EARLY static bool is_definition(const struct object *object, uint32_t index, const char *name)
{
    const ElfW(Sym) *symbol = &object->symbols[index];
    if (symbol->st_shndx == SHN_UNDEF || ELF64_ST_TYPE(symbol->st_info) != STT_FUNC)
        return false;
    if (object->versions != NULL && (object->versions[index] & HIDDEN_VERSION) != 0)
        return false;
    return hami_same_name(object->strings + symbol->st_name, name);
}

HAMI_EARLY static void *find_in(const struct object *object, const char *name)
{
    if (object->symbols == NULL || object->strings == NULL || object->gnu_hash == NULL)
        return NULL;
    const uint32_t hash = hami_name_hash(name);
    const uint32_t bucket_count = object->gnu_hash[0];
    const uint32_t first_hashed = object->gnu_hash[1];
    const uint32_t bloom_words = object->gnu_hash[2];
    const uint32_t *buckets =
        object->gnu_hash + 4 + (size_t)bloom_words * (sizeof(ElfW(Addr)) / sizeof(uint32_t));
    const uint32_t *chains = buckets + bucket_count;
    uint32_t index = bucket_count != 0 ? buckets[hash % bucket_count] : 0;
    for (; index >= first_hashed && index != 0; index++) {
        const uint32_t link = chains[index - first_hashed];
        if ((link | 1) == (hash | 1) && is_definition(object, index, name))
            return (void *)(object->base + object->symbols[index].st_value);
        if ((link & 1) != 0)
            break;
    }
    return NULL;
}

/* Read an object's tables. True if the address is in it. */
HAMI_EARLY static bool read_object(struct object *object, const struct dl_phdr_info *info,
                                   uintptr_t address)
{
    bool contains = false;
    *object = (struct object){.base = info->dlpi_addr};
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        const uintptr_t start = object->base + header->p_vaddr;
        if (header->p_type == PT_LOAD && address - start < header->p_memsz)
            contains = true;
        if (header->p_type == PT_DYNAMIC)
            read_dynamic(object, (const ElfW(Dyn) *)start);
    }
    return contains;
}

HAMI_EARLY static int visit(struct dl_phdr_info *info, size_t size, void *argument)
{
    struct search *search = argument;
    struct object object;
    const bool contains = read_object(&object, info, search->address);
    (void)size;
    if (contains || !search->passed) {
        search->passed |= contains;
        return 0;
    }
    search->found = find_in(&object, search->name);
    return search->found != NULL;
}

HAMI_EARLY void *hami_elf_next(const char *name, const void *address)
{
    struct search search = {.name = name, .address = (uintptr_t)address};
    dl_iterate_phdr(visit, &search);
    return search.found;
}

static const char here; /* in this library */

/* Takes no lock against dlclose. It need not: the walk ends at libc, and what is loaded before libc
 * or with it is never unloaded. */
HAMI_EARLY void *hami_elf_after_us(const char *name)
{
    Dl_info info;
    struct link_map *us = NULL;
    void *found = NULL;
    if (dladdr1(&here, &info, (void **)&us, RTLD_DL_LINKMAP) == 0)
        return NULL;
    struct link_map *first = us;
    while (first->l_prev != NULL)
        first = first->l_prev;
    for (struct link_map *map = us->l_next != NULL ? us->l_next : first; found == NULL && map != us;
         map = map->l_next != NULL ? map->l_next : first) {
        struct object object = {.base = map->l_addr};
        read_dynamic(&object, map->l_ld);
        found = find_in(&object, name);
    }
    return found;
}

struct visitor {
    void (*visit)(const struct hami_loaded *object, void *argument);
    void *argument;
};

static int show(struct dl_phdr_info *info, size_t size, void *argument)
{
    const struct visitor *visitor = argument;
    struct object object;
    const bool is_us = read_object(&object, info, (uintptr_t)&here);
    const bool is_named = object.soname != 0 && object.strings != NULL;
    (void)size;
    visitor->visit(&(struct hami_loaded){.path = info->dlpi_name != NULL ? info->dlpi_name : "",
                                         .soname = is_named ? object.strings + object.soname : NULL,
                                         .is_us = is_us},
                   visitor->argument);
    return 0;
}

void hami_elf_visit(void (*visit)(const struct hami_loaded *object, void *argument), void *argument)
{
    dl_iterate_phdr(show, &(struct visitor){visit, argument});
}

bool hami_elf_path_of_us(char *path, size_t capacity)
{
    Dl_info info;
    struct link_map *us = NULL;
    char origin[4096]; /* its directory as it was when it was loaded: the name may be relative */
    if (dladdr1(&here, &info, (void **)&us, RTLD_DL_LINKMAP) == 0)
        return false;
    if (us->l_name[0] == '/')
        return (size_t)snprintf(path, capacity, "%s", us->l_name) < capacity;
    if (dlinfo(us, RTLD_DI_ORIGIN, origin) != 0)
        return false;
    const char *slash = strrchr(us->l_name, '/');
    return (size_t)snprintf(path, capacity, "%s/%s", origin, slash != NULL ? slash + 1 : us->l_name) <
           capacity;
}
