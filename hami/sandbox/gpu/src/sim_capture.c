/* sim_capture.c: stream capture: work becomes nodes of a graph instead of running.
 *
 * A capture begins in one stream and spreads to others that wait for its events; it must be joined
 * again before it ends. What would make captured work depend on other work, or the program wait for
 * work that does not run, is an error and makes the capture invalid. All state is under one lock.
 */
#define _GNU_SOURCE
#include "sim_capture.h"

#include <stdlib.h>

pthread_mutex_t sim_captures_lock = PTHREAD_MUTEX_INITIALIZER;
struct sim_capture *sim_captures;
_Atomic unsigned sim_capture_count;
_Thread_local int sim_capture_mode = MODE_GLOBAL;
_Thread_local char sim_capture_thread;

void sim_capture_after_fork(void)
{
    pthread_mutex_init(&sim_captures_lock, NULL);
    sim_captures = NULL;
    atomic_store(&sim_capture_count, 0);
}

bool sim_is_captured(const struct sim_stream *stream)
{
    return atomic_load(&stream->capture) != NULL;
}

/* What the calling thread's mode keeps it from endangering. */
static bool forbids(const struct sim_capture *capture)
{
    const bool own = capture->thread == &sim_capture_thread;
    if (sim_capture_mode == MODE_RELAXED)
        return false;
    return own ? capture->mode != MODE_RELAXED
               : sim_capture_mode == MODE_GLOBAL && capture->mode == MODE_GLOBAL;
}

CUresult sim_check_unsafe_call(void)
{
    CUresult result = CUDA_SUCCESS;
    if (atomic_load(&sim_capture_count) == 0)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&sim_captures_lock);
    for (struct sim_capture *capture = sim_captures; capture != NULL; capture = capture->next)
        if (forbids(capture)) {
            capture->invalid = true;
            result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    pthread_mutex_unlock(&sim_captures_lock);
    return result;
}

CUresult sim_capture_check_legacy(const struct sim_stream *stream, bool invalidate)
{
    CUresult result = CUDA_SUCCESS;
    if (stream->kind != LEGACY_STREAM_KIND || atomic_load(&sim_capture_count) == 0)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&sim_captures_lock);
    for (struct sim_capture *capture = sim_captures; capture != NULL; capture = capture->next)
        for (size_t i = 0; i < capture->stream_count; i++)
            if (capture->streams[i]->context == stream->context &&
                (capture->streams[i]->flags & STREAM_NON_BLOCKING) == 0) {
                capture->invalid = capture->invalid || invalidate;
                result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
            }
    pthread_mutex_unlock(&sim_captures_lock);
    return result;
}

CUresult sim_capture_check_work(struct sim_stream *stream)
{
    const struct sim_capture *capture = atomic_load(&stream->capture);
    if (capture != NULL)
        return capture->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
    return sim_capture_check_legacy(stream, true);
}

CUresult sim_capture_check_wait(struct sim_stream *stream)
{
    struct sim_capture *capture = atomic_load(&stream->capture);
    if (capture != NULL) {
        capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return sim_capture_check_legacy(stream, true);
}

bool sim_set_leaves(CUgraphNode **leaves, size_t *leaf_count, const CUgraphNode *nodes, size_t count)
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

bool sim_add_leaves(struct sim_stream *stream, const CUgraphNode *nodes, size_t count)
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

bool sim_capture_join(struct sim_capture *capture, struct sim_stream *stream, const CUgraphNode *nodes,
                 size_t count)
{
    struct sim_stream **grown =
        realloc(capture->streams, (capture->stream_count + 1) * sizeof(struct sim_stream *));
    if (grown == NULL)
        return false;
    capture->streams = grown;
    if (!sim_set_leaves(&stream->leaves, &stream->leaf_count, nodes, count))
        return false;
    capture->streams[capture->stream_count++] = stream;
    atomic_store(&stream->capture, capture);
    return true;
}

CUresult sim_capture_node(struct sim_stream *stream, enum sim_node_type type,
                          const union sim_node_params *params)
{
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&sim_captures_lock);
    struct sim_capture *capture = atomic_load(&stream->capture);
    CUgraphNode node = sim_graph_add(capture->graph, type, params, stream->leaves, stream->leaf_count);
    if (node != NULL && sim_set_leaves(&stream->leaves, &stream->leaf_count, &node, 1))
        result = CUDA_SUCCESS;
    pthread_mutex_unlock(&sim_captures_lock);
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
    pthread_mutex_lock(&sim_captures_lock);
    const bool kept = sim_set_leaves(&event->leaves, &event->leaf_count, stream->leaves, stream->leaf_count);
    const struct sim_capture *capture = atomic_load(&stream->capture);
    atomic_store(&event->capture_id, capture->id);
    pthread_mutex_unlock(&sim_captures_lock);
    return kept ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static struct sim_capture *find(uint64_t id)
{
    struct sim_capture *capture = sim_captures;
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
    const bool done = own != NULL ? sim_add_leaves(stream, event->leaves, event->leaf_count)
                                  : sim_capture_join(other, stream, event->leaves, event->leaf_count);
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
    if (atomic_load(&sim_capture_count) == 0 && atomic_load(&event->capture_id) == 0)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&sim_captures_lock);
    const CUresult result = wait_locked(stream, event, handled);
    pthread_mutex_unlock(&sim_captures_lock);
    return result;
}
