/* region-reclaim FILE SLOT:TOKEN...: empty slots whose owners the caller knows to be dead.
 *
 * A program of its own for two reasons: a slot changes hands by compare-and-swap, which the agent's
 * language has not; and the file may be cut short by the container at any moment, which ends
 * whoever has it mapped. Prints how many slots it emptied. A slot that has a new owner stays.
 * The anonymous slot has no owner: for it TOKEN is 0, and the charges read now are taken off.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "attach.h"

static struct hami_usage *map_usage(const char *path)
{
    struct stat status;
    const int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK; /* a container may hold a lease */
    const int fd = open(path, flags);
    if (fd < 0 || fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) ||
        status.st_size < (off_t)sizeof(struct hami_usage))
        return NULL;
    struct hami_usage *usage =
        mmap(NULL, sizeof *usage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (usage == MAP_FAILED || usage->magic != HAMI_USAGE_MAGIC || usage->version != HAMI_REGION_VERSION)
        return NULL;
    return usage;
}

int main(int count, char **words)
{
    struct hami_region region = {.slot = -1};
    int reclaimed = 0;
    if (count < 2 || (region.usage = map_usage(words[1])) == NULL) {
        fprintf(stderr, "%s: expected a usage file of version %d and SLOT:TOKEN...\n", words[0],
                HAMI_REGION_VERSION);
        return 2;
    }
    hami_process_identify(&region.self);
    for (int i = 2; i < count; i++) {
        int slot;
        uint64_t token;
        if (sscanf(words[i], "%d:%" SCNu64, &slot, &token) != 2 || slot < 0 || slot > HAMI_ANONYMOUS_SLOT)
            return 2;
        reclaimed += hami_slot_reclaim(&region, slot, token);
    }
    printf("%d\n", reclaimed);
    return 0;
}
