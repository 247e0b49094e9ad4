/* place.c: the fixed places of a container, and copies of this library beside each other.
 *
 * Limits reach the shim by path. Where the node agent mounted the library is therefore part of what
 * it says: nothing in a container's environment can change it, and a container that loads a copy of
 * its own still has the mounted one loaded, by /etc/ld.so.preload.
 */
#define _GNU_SOURCE
#include "place.h"

#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "elf.h"

#define LIBRARY "libvgpu.so" /* its name on disk in a container, and its soname everywhere */
#define FIXED HAMI_CONTAINER_DIR "/" LIBRARY
#define FAIL_OPEN HAMI_CONTAINER_DIR "/fail-open/" LIBRARY

static bool is_file(const char *path, const char *other)
{
    struct stat left, right;
    return strcmp(path, other) == 0 || (stat(path, &left) == 0 && stat(other, &right) == 0 &&
                                        left.st_dev == right.st_dev && left.st_ino == right.st_ino);
}

static enum hami_place place_of(const char *path)
{
    if (is_file(path, FIXED))
        return HAMI_PLACE_FIXED;
    return is_file(path, FAIL_OPEN) ? HAMI_PLACE_FAIL_OPEN : HAMI_PLACE_ELSEWHERE;
}

enum hami_place hami_place_of_us(void)
{
    char path[PATH_MAX];
    return hami_elf_path_of_us(path, sizeof path) ? place_of(path) : HAMI_PLACE_FIXED;
}

struct copies {
    bool passed_us;
    bool any_before_us;
    bool any_in_container;
};

static void look_at(const struct hami_loaded *object, void *argument)
{
    struct copies *copies = argument;
    if (object->is_us) {
        copies->passed_us = true;
        return;
    }
    if (object->soname == NULL || strcmp(object->soname, LIBRARY) != 0)
        return;
    copies->any_before_us |= !copies->passed_us;
    copies->any_in_container |= place_of(object->path) != HAMI_PLACE_ELSEWHERE;
}

bool hami_place_has_other_keeper(void)
{
    struct copies copies = {.passed_us = false};
    if (hami_place_of_us() == HAMI_PLACE_FIXED)
        return false; /* whatever else says that it is a copy of us */
    hami_elf_visit(look_at, &copies);
    return copies.any_before_us || copies.any_in_container;
}
