/* sim_host.c: host functions in streams, run by one thread that is started with the first of them. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "sim_graph.h"
#include "sim_timeline.h"

#define POLL_NS 500000 /* while some function waits for its turn */

struct item {
    struct item *next;
    uint64_t ticket, stream_id, tag;
    unsigned gpu;
    CUhostFn function;         /* either this */
    CUstreamCallback callback; /* or this */
    CUstream handle;
    void *argument;
};

static pthread_mutex_t host_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t host_changed = PTHREAD_COND_INITIALIZER;
static struct item *items; /* oldest first; one that runs is still in it */
static uint64_t last_ticket;
static _Atomic uint64_t pending;
static bool started;

void sim_host_after_fork(void)
{
    pthread_mutex_init(&host_lock, NULL);
    pthread_cond_init(&host_changed, NULL);
    items = NULL;
    started = false;
    atomic_store(&pending, 0);
}

/* The first whose tag is past, unless an older one of its stream is still there. */
static struct item *find_due(void)
{
    for (struct item *item = items; item != NULL; item = item->next) {
        bool first = true;
        for (struct item *older = items; older != item; older = older->next)
            first = first && older->stream_id != item->stream_id;
        if (first && sim_timeline_reached(item->gpu, item->tag))
            return item;
    }
    return NULL;
}

static void unlink_item(struct item *item)
{
    struct item **link = &items;
    while (*link != item)
        link = &(*link)->next;
    *link = item->next;
}

static void run(struct item *item)
{
    pthread_mutex_unlock(&host_lock);
    if (item->callback != NULL)
        item->callback(item->handle, CUDA_SUCCESS, item->argument);
    else
        item->function(item->argument);
    pthread_mutex_lock(&host_lock);
    unlink_item(item);
    free(item);
    atomic_fetch_sub(&pending, 1);
    pthread_cond_broadcast(&host_changed);
}

static void *work(void *argument)
{
    (void)argument;
    pthread_mutex_lock(&host_lock);
    for (;;) {
        struct item *due = find_due();
        if (due != NULL) {
            run(due);
        } else if (items == NULL) {
            pthread_cond_wait(&host_changed, &host_lock);
        } else {
            pthread_mutex_unlock(&host_lock);
            nanosleep(&(struct timespec){.tv_nsec = POLL_NS}, NULL);
            pthread_mutex_lock(&host_lock);
        }
    }
    return NULL;
}

static bool start_thread(void)
{
    pthread_t thread;
    if (!started && pthread_create(&thread, NULL, work, NULL) == 0) {
        pthread_detach(thread);
        started = true;
    }
    return started;
}

uint64_t sim_host_queue(struct sim_stream *stream, CUhostFn fn, CUstreamCallback callback, void *argument,
                        CUstream handle)
{
    struct item *item = malloc(sizeof *item);
    struct item **end = &items;
    if (item == NULL)
        return 0;
    *item = (struct item){.stream_id = stream->id, .tag = sim_stream_tail(stream), .gpu = stream->gpu,
                          .function = fn, .callback = callback, .argument = argument, .handle = handle};
    pthread_mutex_lock(&host_lock);
    if (!start_thread()) {
        pthread_mutex_unlock(&host_lock);
        free(item);
        return 0;
    }
    const uint64_t ticket = item->ticket = ++last_ticket;
    while (*end != NULL)
        end = &(*end)->next;
    *end = item;
    atomic_fetch_add(&pending, 1);
    atomic_store(&stream->host_ticket, ticket);
    pthread_cond_broadcast(&host_changed);
    pthread_mutex_unlock(&host_lock);
    return ticket;
}

static bool is_there(uint64_t ticket)
{
    for (const struct item *item = items; item != NULL; item = item->next)
        if (item->ticket == ticket)
            return true;
    return false;
}

bool sim_host_done(uint64_t ticket)
{
    if (ticket == 0 || atomic_load(&pending) == 0)
        return true;
    pthread_mutex_lock(&host_lock);
    const bool there = is_there(ticket);
    pthread_mutex_unlock(&host_lock);
    return !there;
}

void sim_host_wait(uint64_t ticket)
{
    if (ticket == 0 || atomic_load(&pending) == 0)
        return;
    pthread_mutex_lock(&host_lock);
    while (is_there(ticket))
        pthread_cond_wait(&host_changed, &host_lock);
    pthread_mutex_unlock(&host_lock);
}

void sim_host_wait_all(void)
{
    if (atomic_load(&pending) == 0)
        return;
    pthread_mutex_lock(&host_lock);
    while (items != NULL)
        pthread_cond_wait(&host_changed, &host_lock);
    pthread_mutex_unlock(&host_lock);
}

static CUresult launch(CUstream handle, bool per_thread, CUhostFn fn, CUstreamCallback callback,
                       void *argument)
{
    struct sim_stream *stream;
    const CUresult result = sim_stream_for_work(handle, per_thread, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (fn == NULL && callback == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (sim_is_captured(stream)) {
        const union sim_node_params params = {.host = {fn, argument}};
        return callback == NULL ? sim_capture_node(stream, NODE_HOST, &params)
                                : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return sim_host_queue(stream, fn, callback, argument, handle) != 0 ? CUDA_SUCCESS
                                                                       : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn fn, void *argument)
{
    return launch(stream, false, fn, NULL, argument);
}

CUresult cuLaunchHostFunc_ptsz(CUstream stream, CUhostFn fn, void *argument)
{
    return launch(stream, true, fn, NULL, argument);
}

CUresult cuStreamAddCallback(CUstream stream, CUstreamCallback callback, void *argument, unsigned int flags)
{
    return flags == 0 ? launch(stream, false, NULL, callback, argument) : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuStreamAddCallback_ptsz(CUstream stream, CUstreamCallback callback, void *argument,
                                  unsigned int flags)
{
    return flags == 0 ? launch(stream, true, NULL, callback, argument) : CUDA_ERROR_INVALID_VALUE;
}
