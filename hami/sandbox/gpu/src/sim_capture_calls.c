/* sim_capture_calls.c: beginning and ending a capture, and asking about it. */
#define _GNU_SOURCE
#include "sim_capture.h"

#include <stdlib.h>

static uint64_t last_id;

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
    *capture = (struct sim_capture){.mode = mode, .own_graph = graph == NULL, .thread = &sim_capture_thread,
                                    .graph = graph != NULL ? graph : sim_graph_new(), .origin = stream};
    pthread_mutex_lock(&sim_captures_lock);
    const bool joined = capture->graph != NULL && sim_capture_join(capture, stream, dependencies, count);
    if (joined) {
        capture->id = ++last_id;
        capture->next = sim_captures;
        sim_captures = capture;
        atomic_fetch_add(&sim_capture_count, 1);
    }
    pthread_mutex_unlock(&sim_captures_lock);
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
    struct sim_capture **link = &sim_captures;
    while (*link != capture)
        link = &(*link)->next;
    *link = capture->next;
    for (size_t i = 0; i < capture->stream_count; i++) {
        capture->streams[i]->leaf_count = 0;
        atomic_store(&capture->streams[i]->capture, NULL);
    }
    atomic_fetch_sub(&sim_capture_count, 1);
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
    if (capture->mode != MODE_RELAXED && capture->thread != &sim_capture_thread)
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

/* The origin takes its capture along; another stream leaves one that cannot be ended well. */
void sim_capture_drop_stream(struct sim_stream *stream)
{
    if (!sim_is_captured(stream))
        return;
    pthread_mutex_lock(&sim_captures_lock);
    struct sim_capture *capture = atomic_load(&stream->capture);
    if (capture != NULL && capture->origin == stream) {
        if (capture->own_graph)
            sim_graph_free(capture->graph);
        leave(capture);
    } else if (capture != NULL) {
        capture->invalid = true;
        for (size_t i = 0; i < capture->stream_count; i++)
            if (capture->streams[i] == stream)
                capture->streams[i--] = capture->streams[--capture->stream_count];
    }
    pthread_mutex_unlock(&sim_captures_lock);
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
    pthread_mutex_lock(&sim_captures_lock);
    const CUresult outcome = end_locked(stream, target);
    pthread_mutex_unlock(&sim_captures_lock);
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
        const CUresult allowed = sim_capture_check_legacy(stream, false);
        if (allowed != CUDA_SUCCESS)
            return allowed;
    }
    pthread_mutex_lock(&sim_captures_lock);
    const struct sim_capture *capture = atomic_load(&stream->capture);
    if (capture != NULL)
        *info = (struct info){capture->invalid ? STATUS_INVALIDATED : STATUS_ACTIVE, capture->id,
                              capture->graph, stream->leaves, stream->leaf_count};
    pthread_mutex_unlock(&sim_captures_lock);
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
    pthread_mutex_lock(&sim_captures_lock);
    const bool done = flags == ADD ? sim_add_leaves(stream, nodes, count)
                                   : sim_set_leaves(&stream->leaves, &stream->leaf_count, nodes, count);
    pthread_mutex_unlock(&sim_captures_lock);
    return done ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuThreadExchangeStreamCaptureMode(int *mode)
{
    if (mode == NULL || *mode < MODE_GLOBAL || *mode > MODE_RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    const int old = sim_capture_mode;
    sim_capture_mode = *mode;
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
