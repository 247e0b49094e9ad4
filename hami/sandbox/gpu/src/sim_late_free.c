/* sim_late_free.c: plain memory that is freed in stream order is there until the stream has come so far.
 *
 * Whoever allocates, frees or has waited looks whether it has.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>

#include "sim_memory.h"
#include "sim_stream.h"
#include "sim_timeline.h"

struct late {
    struct late *next;
    struct hami_pointer pointer;
    unsigned gpu; /* of the stream */
    uint64_t tag;
};

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static struct late *_Atomic list;

void sim_late_frees_after_fork(void)
{
    pthread_mutex_init(&list_lock, NULL);
    atomic_store(&list, NULL);
}

void sim_late_frees_run(CUcontext ended)
{
    struct late *done = NULL, *kept = NULL;
    if (atomic_load(&list) == NULL)
        return;
    pthread_mutex_lock(&list_lock);
    for (struct late *late = atomic_load(&list), *next; late != NULL; late = next) {
        const bool gone = (ended != NULL && late->pointer.context == ended) ||
                          sim_timeline_reached(late->gpu, late->tag);
        next = late->next;
        late->next = gone ? done : kept;
        *(gone ? &done : &kept) = late;
    }
    atomic_store(&list, kept);
    pthread_mutex_unlock(&list_lock);
    for (struct late *late = done, *next; late != NULL; late = next) {
        next = late->next;
        sim_release(&late->pointer);
        free(late);
    }
}

CUresult sim_free_in_order(CUdeviceptr address, struct sim_stream *stream)
{
    struct hami_pointer pointer;
    struct late *late = malloc(sizeof *late);
    if (late == NULL || !hami_pointers_take(address, &pointer)) {
        free(late);
        return late == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
    }
    if (pointer.device >= SIM_GRAPH_DEVICE) { /* memory of pools and graphs goes back at once */
        free(late);
        sim_release(&pointer);
        return CUDA_SUCCESS;
    }
    *late = (struct late){.pointer = pointer, .gpu = stream->gpu, .tag = sim_stream_tail(stream)};
    pthread_mutex_lock(&list_lock);
    late->next = atomic_load(&list);
    atomic_store(&list, late);
    pthread_mutex_unlock(&list_lock);
    sim_late_frees_run(NULL);
    return CUDA_SUCCESS;
}
