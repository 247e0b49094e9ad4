/* region.c: find, check and map the two files. */
#define _GNU_SOURCE
#include "attach.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"
#include "place.h"

#define FIXED_CONTROL HAMI_CONTAINER_DIR "/control"
#define FIXED_USAGE HAMI_CONTAINER_DIR "/usage"

struct header { /* what both files begin with */
    uint64_t magic;
    uint32_t version;
    uint32_t size;
};

struct expectation {
    const char *path;
    uint64_t magic;
    size_t size;
    int open_flags;
    int protection;
};

/* The fixed place wins whenever it exists, and in a container there is no other: its environment
 * cannot point elsewhere. */
static bool find_files(enum hami_place place, char *control, char *usage, size_t capacity)
{
    struct stat status;
    if (place != HAMI_PLACE_ELSEWHERE || stat(FIXED_CONTROL, &status) == 0 ||
        (errno != ENOENT && errno != ENOTDIR)) {
        snprintf(control, capacity, "%s", FIXED_CONTROL);
        snprintf(usage, capacity, "%s", FIXED_USAGE);
        return true;
    }
    const char *directory = secure_getenv("HAMI_REGION_DIR");
    if (directory == NULL || directory[0] == '\0')
        return false;
    snprintf(control, capacity, "%s/control", directory);
    snprintf(usage, capacity, "%s/usage", directory);
    return true;
}

/* NULL, and a line that says why, unless the file is exactly what this build understands. */
static void *map_checked(const struct expectation *want)
{
    struct header header = {0};
    struct stat status;
    const int fd = open(want->path, want->open_flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0) {
        hami_log(HAMI_LOG_ERROR, "%s: cannot be opened: errno %d", want->path, errno);
        return NULL;
    }
    void *map = MAP_FAILED;
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size < (off_t)want->size)
        hami_log(HAMI_LOG_ERROR, "%s: expected a file of %zu bytes, met %lld", want->path, want->size,
                 (long long)status.st_size);
    else if (pread(fd, &header, sizeof header, 0) != (ssize_t)sizeof header ||
             header.magic != want->magic || header.size != want->size)
        hami_log(HAMI_LOG_ERROR, "%s: not a region file: magic %016llx, size %u", want->path,
                 (unsigned long long)header.magic, header.size);
    else if (header.version != HAMI_REGION_VERSION)
        hami_log(HAMI_LOG_ERROR, "%s: expected format version %d, met %u", want->path,
                 HAMI_REGION_VERSION, header.version);
    else
        map = mmap(NULL, want->size, want->protection, MAP_SHARED, fd, 0);
    close(fd);
    return map == MAP_FAILED ? NULL : map;
}

/* What is wrong was said by map_checked(); this says what comes of it. */
static enum hami_attachment without(bool open, const char *what)
{
    hami_log(HAMI_LOG_ERROR, open ? "limits are off: %s" : "no device memory will be granted: %s", what);
    return open ? HAMI_INERT : HAMI_REFUSING;
}

enum hami_attachment hami_region_attach(struct hami_region *region)
{
    const enum hami_place place = hami_place_of_us();
    char control_path[4096];
    char usage_path[4096];
    *region = (struct hami_region){.slot = -1};
    if (hami_place_has_other_keeper() ||
        !find_files(place, control_path, usage_path, sizeof control_path))
        return HAMI_INERT;
    region->control = map_checked(&(struct expectation){
        .path = control_path, .magic = HAMI_CONTROL_MAGIC, .size = sizeof(struct hami_control),
        .open_flags = O_RDONLY, .protection = PROT_READ});
    if (region->control == NULL)
        return without(place == HAMI_PLACE_FAIL_OPEN, "the limits cannot be read");
    region->usage = map_checked(&(struct expectation){
        .path = usage_path, .magic = HAMI_USAGE_MAGIC, .size = sizeof(struct hami_usage),
        .open_flags = O_RDWR, .protection = PROT_READ | PROT_WRITE});
    if (region->usage == NULL)
        return without(region->control->flags & HAMI_FLAG_FAIL_OPEN, "usage cannot be recorded");
    hami_process_identify(&region->self);
    hami_slot_claim(region);
    hami_log(HAMI_LOG_INFO, "attached to %s, slot %d", control_path, region->slot);
    return HAMI_ENFORCING;
}

void hami_region_detach(struct hami_region *region)
{
    if (region->usage != NULL)
        munmap(region->usage, sizeof *region->usage);
    if (region->control != NULL)
        munmap((void *)(uintptr_t)region->control, sizeof *region->control);
    *region = (struct hami_region){.slot = -1};
}

unsigned hami_region_device_count(const struct hami_region *region)
{
    const uint32_t count = region->control->device_count;
    return count < HAMI_DEVICES ? count : HAMI_DEVICES;
}
