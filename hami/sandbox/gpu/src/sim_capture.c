/* sim_capture.c: stream capture: work becomes nodes of a graph instead of running.
 *
 * A capture begins in one stream and spreads to others that wait for its events; it must be joined
 * again before it ends. What would make captured work depend on other work, or the program wait for
 * work that does not run, is an error and makes the capture invalid. All state is under one lock.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>

#include "sim_graph.h"

enum { MODE_GLOBAL = 0, MODE_THREAD_LOCAL = 1, MODE_RELAXED = 2 };
enum { STATUS_NONE = 0, STATUS_ACTIVE = 1, STATUS_INVALIDATED = 2 };

struct sim_capture {
    struct sim_capture *next;
    uint64_t id;
    int mode;
    bool invalid;
    bool own_graph; /* made by the capture, not given by the program */
    const void *thread;
    CUgraph graph;
    struct sim_stream *origin;
    struct sim_stream **streams; /* that take part, the origin too */
    size_t stream_count;
};

static pthread_mutex_t captures_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sim_capture *captures;
static _Atomic unsigned capture_count; /* spares those who capture nothing the lock */
static uint64_t last_id;
static _Thread_local int thread_mode = MODE_GLOBAL;
static _Thread_local char this_thread; /* its address names the thread */

void sim_capture_after_fork(void)
{
    pthread_mutex_init(&captures_lock, NULL);
    captures = NULL;
    atomic_store(&capture_count, 0);
}

bool sim_is_captured(const struct sim_stream *stream)
{
    return atomic_load(&stream->capture) != NULL;
}

/* What the calling thread's mode keeps it from endangering. */
static bool forbids(const struct sim_capture *capture)
{
    const bool own = capture->thread == &this_thread;
    if (thread_mode == MODE_RELAXED)
        return false;
    return own ? capture->mode != MODE_RELAXED
               : thread_mode == MODE_GLOBAL && capture->mode == MODE_GLOBAL;
}

CUresult sim_check_unsafe_call(void)
{
    CUresult result = CUDA_SUCCESS;
    if (atomic_load(&capture_count) == 0)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&captures_lock);
    for (struct sim_capture *capture = captures; capture != NULL; capture = capture->next)
        if (forbids(capture)) {
            capture->invalid = true;
            result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    pthread_mutex_unlock(&captures_lock);
    return result;
}

/* The legacy default stream waits for every blocking stream of its context, captured ones too. */
static CUresult check_legacy(const struct sim_stream *stream, CUresult error)
{
    CUresult result = CUDA_SUCCESS;
    if (stream->kind != LEGACY_STREAM_KIND || atomic_load(&capture_count) == 0)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&captures_lock);
    for (struct sim_capture *capture = captures; capture != NULL; capture = capture->next)
        for (size_t i = 0; i < capture->stream_count; i++)
            if (capture->streams[i]->context == stream->context &&
                (capture->streams[i]->flags & STREAM_NON_BLOCKING) == 0) {
                capture->invalid = true;
                result = error;
            }
    pthread_mutex_unlock(&captures_lock);
    return result;
}

CUresult sim_capture_check_work(struct sim_stream *stream)
{
    const struct sim_capture *capture = atomic_load(&stream->capture);
    if (capture != NULL)
        return capture->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
    return check_legacy(stream, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
}

CUresult sim_capture_check_wait(struct sim_stream *stream)
{
    struct sim_capture *capture = atomic_load(&stream->capture);
    if (capture != NULL) {
        capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return check_legacy(stream, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
}

static bool set_leaves(CUgraphNode **leaves, size_t *leaf_count, const CUgraphNode *nodes, size_t count)
{
    CUgraphNode *copy = malloc((count + 1) * sizeof *copy);
    if (copy == NULL)
        return false;
    for (size_t i = 0; i < count; i++)
        copy[i] = nodes[i];
    free(*leaves);
    *leaves = copy;
    *leaf_count = count;
    return true;
}

static bool add_leaves(struct sim_stream *stream, const CUgraphNode *nodes, size_t count)
{
    CUgraphNode *grown = realloc(stream->leaves, (stream->leaf_count + count + 1) * sizeof *grown);
    if (grown == NULL)
        return false;
    stream->leaves = grown;
    for (size_t i = 0; i < count; i++) {
        bool known = false;
        for (size_t l = 0; l < stream->leaf_count; l++)
            known = known || stream->leaves[l] == nodes[i];
        if (!known)
            stream->leaves[stream->leaf_count++] = nodes[i];
    }
    return true;
}

/* Let the stream take part in the capture. */
static bool join(struct sim_capture *capture, struct sim_stream *stream, const CUgraphNode *nodes,
                 size_t count)
{
    struct sim_stream **grown =
        realloc(capture->streams, (capture->stream_count + 1) * sizeof(struct sim_stream *));
    if (grown == NULL)
        return false;
    capture->streams = grown;
    if (!set_leaves(&stream->leaves, &stream->leaf_count, nodes, count))
        return false;
    capture->streams[capture->stream_count++] = stream;
    atomic_store(&stream->capture, capture);
    return true;
}

CUresult sim_capture_node(struct sim_stream *stream, enum sim_node_type type,
                          const union sim_node_params *params)
{
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&captures_lock);
    struct sim_capture *capture = atomic_load(&stream->capture);
    CUgraphNode node = sim_graph_add(capture->graph, type, params, stream->leaves, stream->leaf_count);
    if (node != NULL && set_leaves(&stream->leaves, &stream->leaf_count, &node, 1))
        result = CUDA_SUCCESS;
    pthread_mutex_unlock(&captures_lock);
    return result;
}

CUresult sim_capture_record(CUevent event, struct sim_stream *stream, unsigned flags, bool *handled)
{
    *handled = sim_is_captured(stream);
    if (!*handled)
        return CUDA_SUCCESS;
    if ((flags & EVENT_EXTERNAL) != 0) {
        const union sim_node_params params = {.event = event};
        return sim_capture_node(stream, NODE_EVENT_RECORD, &params);
    }
    pthread_mutex_lock(&captures_lock);
    const bool kept = set_leaves(&event->leaves, &event->leaf_count, stream->leaves, stream->leaf_count);
    const struct sim_capture *capture = atomic_load(&stream->capture);
    atomic_store(&event->capture_id, capture->id);
    pthread_mutex_unlock(&captures_lock);
    return kept ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static struct sim_capture *find(uint64_t id)
{
    struct sim_capture *capture = captures;
    while (capture != NULL && capture->id != id)
        capture = capture->next;
    return id != 0 ? capture : NULL;
}

static CUresult wait_locked(struct sim_stream *stream, CUevent event, bool *handled)
{
    struct sim_capture *own = atomic_load(&stream->capture);
    const uint64_t id = atomic_load(&event->capture_id);
    struct sim_capture *other = find(id);
    *handled = own != NULL || id != 0;
    if (!*handled)
        return CUDA_SUCCESS;
    if (own != NULL && id == 0) { /* on work outside of the capture */
        own->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (own != NULL && own != other) {
        own->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    if (other == NULL) /* its capture has ended: it was never really recorded */
        return CUDA_ERROR_INVALID_VALUE;
    if (other->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (stream->kind == LEGACY_STREAM_KIND)
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    const bool done = own != NULL ? add_leaves(stream, event->leaves, event->leaf_count)
                                  : join(other, stream, event->leaves, event->leaf_count);
    return done ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult sim_capture_wait(struct sim_stream *stream, CUevent event, unsigned flags, bool *handled)
{
    *handled = false;
    if (sim_is_captured(stream) && (flags & EVENT_EXTERNAL) != 0) {
        const union sim_node_params params = {.event = event};
        *handled = true;
        return sim_capture_node(stream, NODE_WAIT_EVENT, &params);
    }
    if (atomic_load(&capture_count) == 0 && atomic_load(&event->capture_id) == 0)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&captures_lock);
    const CUresult result = wait_locked(stream, event, handled);
    pthread_mutex_unlock(&captures_lock);
    return result;
}

static CUresult begin(CUstream handle, bool per_thread, int mode, CUgraph graph,
                      const CUgraphNode *dependencies, size_t count)
{
    struct sim_stream *stream;
    const CUresult result = sim_stream_of(handle, per_thread, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (mode < MODE_GLOBAL || mode > MODE_RELAXED || (count != 0 && dependencies == NULL))
        return CUDA_ERROR_INVALID_VALUE;
    if (stream->kind == LEGACY_STREAM_KIND)
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (sim_is_captured(stream))
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_capture *capture = calloc(1, sizeof *capture);
    if (capture == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *capture = (struct sim_capture){.mode = mode, .own_graph = graph == NULL, .thread = &this_thread,
                                    .graph = graph != NULL ? graph : sim_graph_new(), .origin = stream};
    pthread_mutex_lock(&captures_lock);
    const bool joined = capture->graph != NULL && join(capture, stream, dependencies, count);
    if (joined) {
        capture->id = ++last_id;
        capture->next = captures;
        captures = capture;
        atomic_fetch_add(&capture_count, 1);
    }
    pthread_mutex_unlock(&captures_lock);
    if (!joined)
        free(capture);
    return joined ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Whether all that other streams captured is waited for by the origin. */
static bool is_joined(const struct sim_capture *capture)
{
    for (size_t i = 0; i < capture->graph->count; i++)
        capture->graph->nodes[i]->mark = false;
    for (size_t i = 0; i < capture->origin->leaf_count; i++)
        sim_graph_mark(capture->origin->leaves[i]);
    for (size_t s = 0; s < capture->stream_count; s++)
        for (size_t i = 0; i < capture->streams[s]->leaf_count; i++)
            if (!capture->streams[s]->leaves[i]->mark)
                return false;
    return true;
}

static void leave(struct sim_capture *capture)
{
    struct sim_capture **link = &captures;
    while (*link != capture)
        link = &(*link)->next;
    *link = capture->next;
    for (size_t i = 0; i < capture->stream_count; i++) {
        capture->streams[i]->leaf_count = 0;
        atomic_store(&capture->streams[i]->capture, NULL);
    }
    atomic_fetch_sub(&capture_count, 1);
    free(capture->streams);
    free(capture);
}

static CUresult end_locked(struct sim_stream *stream, CUgraph *graph)
{
    struct sim_capture *capture = atomic_load(&stream->capture);
    if (capture == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (capture->origin != stream) {
        capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    }
    if (capture->mode != MODE_RELAXED && capture->thread != &this_thread)
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    CUresult result = CUDA_SUCCESS;
    if (capture->invalid)
        result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    else if (!is_joined(capture))
        result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    if (result == CUDA_SUCCESS)
        *graph = capture->graph;
    else if (capture->own_graph)
        sim_graph_free(capture->graph);
    leave(capture);
    return result;
}

static CUresult end(CUstream handle, bool per_thread, CUgraph *graph)
{
    struct sim_stream *stream;
    CUgraph unused;
    const CUresult result = sim_stream_of(handle, per_thread, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    CUgraph *target = graph != NULL ? graph : &unused;
    *target = NULL;
    pthread_mutex_lock(&captures_lock);
    const CUresult outcome = end_locked(stream, target);
    pthread_mutex_unlock(&captures_lock);
    return outcome;
}

struct info {
    int status;
    cuuint64_t id;
    CUgraph graph;
    const CUgraphNode *dependencies;
    size_t count;
};

static CUresult look(CUstream handle, bool per_thread, struct info *info)
{
    struct sim_stream *stream;
    *info = (struct info){.status = STATUS_NONE};
    const CUresult result = sim_stream_of(handle, per_thread, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (stream->kind == LEGACY_STREAM_KIND && !sim_is_captured(stream)) {
        const CUresult allowed = check_legacy(stream, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        if (allowed != CUDA_SUCCESS)
            return allowed;
    }
    pthread_mutex_lock(&captures_lock);
    const struct sim_capture *capture = atomic_load(&stream->capture);
    if (capture != NULL)
        *info = (struct info){capture->invalid ? STATUS_INVALIDATED : STATUS_ACTIVE, capture->id,
                              capture->graph, stream->leaves, stream->leaf_count};
    pthread_mutex_unlock(&captures_lock);
    return CUDA_SUCCESS;
}

static CUresult get_info(CUstream handle, bool per_thread, int *status, cuuint64_t *id, CUgraph *graph,
                         const CUgraphNode **dependencies, size_t *count)
{
    struct info info;
    const CUresult result = look(handle, per_thread, &info);
    if (result != CUDA_SUCCESS)
        return result;
    if (status == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *status = info.status;
    if (id != NULL)
        *id = info.id;
    if (graph != NULL)
        *graph = info.graph;
    if (dependencies != NULL)
        *dependencies = info.dependencies;
    if (count != NULL)
        *count = info.count;
    return CUDA_SUCCESS;
}

static CUresult change_dependencies(CUstream handle, bool per_thread, const CUgraphNode *nodes,
                                    size_t count, unsigned flags)
{
    enum { ADD = 0, SET = 1 };
    struct sim_stream *stream;
    const CUresult result = sim_stream_of(handle, per_thread, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (!sim_is_captured(stream) || flags > SET || (count != 0 && nodes == NULL))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&captures_lock);
    const bool done = flags == ADD ? add_leaves(stream, nodes, count)
                                   : set_leaves(&stream->leaves, &stream->leaf_count, nodes, count);
    pthread_mutex_unlock(&captures_lock);
    return done ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuThreadExchangeStreamCaptureMode(int *mode)
{
    if (mode == NULL || *mode < MODE_GLOBAL || *mode > MODE_RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    const int old = thread_mode;
    thread_mode = *mode;
    *mode = old;
    return CUDA_SUCCESS;
}

/* Each call for the legacy and for the per-thread default stream. */
#define BOTH(name, suffix, parameters, call)                                                       \
    CUresult name##suffix parameters                                                               \
    {                                                                                              \
        const bool per_thread = false;                                                             \
        return call;                                                                               \
    }                                                                                              \
    CUresult name##suffix##_ptsz parameters                                                        \
    {                                                                                              \
        const bool per_thread = true;                                                              \
        return call;                                                                               \
    }

BOTH(cuStreamBeginCapture, , (CUstream stream), begin(stream, per_thread, MODE_GLOBAL, NULL, NULL, 0))
BOTH(cuStreamBeginCapture, _v2, (CUstream stream, int mode), begin(stream, per_thread, mode, NULL, NULL, 0))
BOTH(cuStreamBeginCaptureToGraph, ,
     (CUstream stream, CUgraph graph, const CUgraphNode *dependencies, const CUgraphEdgeData *data,
      size_t count, int mode),
     ((void)data, graph == NULL ? CUDA_ERROR_INVALID_VALUE
                                : begin(stream, per_thread, mode, graph, dependencies, count)))
BOTH(cuStreamEndCapture, , (CUstream stream, CUgraph *graph), end(stream, per_thread, graph))
BOTH(cuStreamIsCapturing, , (CUstream stream, int *status),
     get_info(stream, per_thread, status, NULL, NULL, NULL, NULL))
BOTH(cuStreamGetCaptureInfo, , (CUstream stream, int *status, cuuint64_t *id),
     get_info(stream, per_thread, status, id, NULL, NULL, NULL))
BOTH(cuStreamGetCaptureInfo, _v2,
     (CUstream stream, int *status, cuuint64_t *id, CUgraph *graph, const CUgraphNode **dependencies,
      size_t *count),
     get_info(stream, per_thread, status, id, graph, dependencies, count))
BOTH(cuStreamGetCaptureInfo, _v3,
     (CUstream stream, int *status, cuuint64_t *id, CUgraph *graph, const CUgraphNode **dependencies,
      const CUgraphEdgeData **data, size_t *count),
     (data != NULL ? (void)(*data = NULL) : (void)0,
      get_info(stream, per_thread, status, id, graph, dependencies, count)))
BOTH(cuStreamUpdateCaptureDependencies, ,
     (CUstream stream, CUgraphNode *nodes, size_t count, unsigned int flags),
     change_dependencies(stream, per_thread, nodes, count, flags))
BOTH(cuStreamUpdateCaptureDependencies, _v2,
     (CUstream stream, CUgraphNode *nodes, const CUgraphEdgeData *data, size_t count, unsigned int flags),
     ((void)data, change_dependencies(stream, per_thread, nodes, count, flags)))
