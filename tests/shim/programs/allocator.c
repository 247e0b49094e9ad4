/* allocator: a preload library with a malloc of its own, which asks dlsym for libc's as the program
 * starts, before anything else runs; dlsym may allocate in turn, from a small reserve. It also has a
 * dl_iterate_phdr and an open of its own, and asks for all of them again when they are called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

static char reserve[1 << 16] __attribute__((aligned(16)));
static size_t reserved;
static int depth; /* of look-ups: they may come back here */

static int is_reserved(const void *memory)
{
    return (const char *)memory >= reserve && (const char *)memory < reserve + sizeof reserve;
}

static void *next(const char *name)
{
    depth++;
    void *found = dlsym(RTLD_NEXT, name);
    depth--;
    return found;
}

static void *from_reserve(size_t size)
{
    void *memory = reserve + reserved;
    reserved += (size + 15) / 16 * 16;
    return reserved <= sizeof reserve ? memory : NULL;
}

void *malloc(size_t size)
{
    static void *(*real)(size_t);
    if (depth > 0)
        return from_reserve(size);
    if (real == NULL)
        real = (void *(*)(size_t))next("malloc");
    return real(size);
}

void *calloc(size_t count, size_t size)
{
    static void *(*real)(size_t, size_t);
    if (depth > 0)
        return from_reserve(count * size);
    if (real == NULL)
        real = (void *(*)(size_t, size_t))next("calloc");
    return real(count, size);
}

void *realloc(void *memory, size_t size)
{
    static void *(*real)(void *, size_t);
    if (depth > 0 || is_reserved(memory)) {
        void *moved = malloc(size);
        return moved != NULL && memory != NULL ? memcpy(moved, memory, size) : moved;
    }
    if (real == NULL)
        real = (void *(*)(void *, size_t))next("realloc");
    return real(memory, size);
}

void free(void *memory)
{
    static void (*real)(void *);
    if (is_reserved(memory))
        return;
    if (real == NULL)
        real = (void (*)(void *))next("free");
    real(memory);
}

int dl_iterate_phdr(int (*visit)(struct dl_phdr_info *, size_t, void *), void *argument)
{
    int (*real)(int (*)(struct dl_phdr_info *, size_t, void *), void *) =
        (int (*)(int (*)(struct dl_phdr_info *, size_t, void *), void *))next("dl_iterate_phdr");
    return real(visit, argument);
}

int open(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    const int mode = va_arg(arguments, int);
    va_end(arguments);
    return ((int (*)(const char *, int, ...))next("open"))(path, flags, mode);
}
