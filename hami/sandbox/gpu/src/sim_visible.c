/* sim_visible.c: which devices a process sees, by the rules of the container runtime and of CUDA. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "sim_node.h"

#define NONE (-1)

/* The candidate that a number or a UUID (or, for CUDA, an unambiguous beginning of one) names. */
static int find(const char *item, const unsigned *candidates, int count, bool prefix_allowed)
{
    char *end;
    const long number = strtol(item, &end, 10);
    if (end != item && *end == '\0')
        return number >= 0 && number < count ? (int)candidates[number] : NONE;
    int found = NONE;
    for (int i = 0; i < count; i++) {
        const char *uuid = sim_node()->gpus[candidates[i]].uuid;
        const bool matches = prefix_allowed ? strncasecmp(uuid, item, strlen(item)) == 0
                                            : strcasecmp(uuid, item) == 0;
        if (matches && found != NONE)
            return NONE;
        if (matches)
            found = (int)candidates[i];
    }
    return found;
}

static bool contains(const unsigned *gpus, int count, int gpu)
{
    for (int i = 0; i < count; i++)
        if ((int)gpus[i] == gpu)
            return true;
    return false;
}

static char *next_item(char **rest)
{
    char *item = strsep(rest, ",");
    while (item != NULL && *item == ' ')
        item++;
    if (item != NULL)
        item[strcspn(item, " ")] = '\0';
    return item;
}

int sim_visible_to_container(unsigned gpus[SIM_GPUS])
{
    unsigned all[SIM_GPUS];
    const int total = sim_node() != NULL ? (int)sim_node()->gpu_count : 0;
    const char *wish = getenv("NVIDIA_VISIBLE_DEVICES");
    for (int i = 0; i < total; i++)
        all[i] = (unsigned)i;
    if (wish == NULL || strcmp(wish, "all") == 0) {
        memcpy(gpus, all, sizeof all);
        return total;
    }
    int count = 0; /* "none", "void" and "" name no device, and so show none */
    char *text = strdup(wish);
    char *rest = text;
    for (char *item = next_item(&rest); item != NULL; item = next_item(&rest)) {
        const int gpu = *item != '\0' ? find(item, all, total, false) : NONE;
        if (gpu != NONE && !contains(gpus, count, gpu))
            gpus[count++] = (unsigned)gpu;
    }
    free(text);
    return count;
}

int sim_visible_to_cuda(unsigned gpus[SIM_GPUS])
{
    unsigned candidates[SIM_GPUS];
    const int total = sim_visible_to_container(candidates);
    const char *wish = getenv("CUDA_VISIBLE_DEVICES");
    if (wish == NULL) {
        memcpy(gpus, candidates, sizeof candidates);
        return total;
    }
    int count = 0;
    char *text = strdup(wish);
    char *rest = text;
    for (char *item = next_item(&rest); item != NULL; item = next_item(&rest)) {
        const int gpu = *item != '\0' ? find(item, candidates, total, true) : NONE;
        if (gpu == NONE)
            break; /* the first invalid item hides all that follow */
        if (contains(gpus, count, gpu)) {
            count = 0; /* a device named twice: none is visible */
            break;
        }
        gpus[count++] = (unsigned)gpu;
    }
    free(text);
    return count;
}
