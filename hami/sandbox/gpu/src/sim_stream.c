/* sim_stream.c: streams: what order work has, and waiting for it.
 *
 * Work is queued on the device in the order in which it is launched, whatever the stream (see
 * sim_timeline.c). A stream remembers the tag of its last work, so waiting for one stream is not
 * waiting for what others launched later. The legacy default stream waits for all streams of its
 * context that do not say NON_BLOCKING, and they for it. Priorities are kept and change nothing.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>

#include "sim_graph.h"
#include "sim_timeline.h"

#define QUEUE_MOST 4096
#define LOWEST_PRIORITY 0
#define HIGHEST_PRIORITY (-5)

static pthread_mutex_t legacy_lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local struct sim_stream thread_streams[SIM_GPUS];
static _Atomic uint64_t last_id = 2;

static struct {
    _Atomic uint64_t count;
    _Atomic uint64_t tags[QUEUE_MOST];
} queues[SIM_GPUS]; /* the last launches of this process */

static struct sim_stream *legacy_of(CUcontext context)
{
    pthread_mutex_lock(&legacy_lock);
    if (context->legacy == NULL && (context->legacy = calloc(1, sizeof *context->legacy)) != NULL) {
        context->legacy->context = context;
        context->legacy->gpu = context->gpu;
        context->legacy->kind = LEGACY_STREAM_KIND;
        context->legacy->id = 1;
    }
    pthread_mutex_unlock(&legacy_lock);
    return context->legacy;
}

static struct sim_stream *thread_stream_of(CUcontext context)
{
    struct sim_stream *stream = &thread_streams[context->gpu];
    stream->context = context;
    stream->gpu = context->gpu;
    stream->kind = THREAD_STREAM_KIND;
    stream->id = 2;
    return stream;
}

CUresult sim_stream_of(CUstream handle, bool per_thread, struct sim_stream **stream)
{
    CUcontext context;
    const uintptr_t value = (uintptr_t)handle;
    const CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (value == 2 || (value == 0 && per_thread))
        *stream = thread_stream_of(context);
    else
        *stream = value <= 1 ? legacy_of(context) : handle;
    if (*stream == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    return (*stream)->context == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

CUresult sim_stream_for_work(CUstream handle, bool per_thread, struct sim_stream **stream)
{
    const CUresult result = sim_stream_of(handle, per_thread, stream);
    return result == CUDA_SUCCESS ? sim_capture_check_work(*stream) : result;
}

static void raise_to(_Atomic uint64_t *tag, uint64_t value)
{
    uint64_t old = atomic_load(tag);
    while (old < value && !atomic_compare_exchange_weak(tag, &old, value))
        ;
}

static bool is_lost(unsigned gpu)
{
    return sim_check_gpu(gpu) != CUDA_SUCCESS;
}

void sim_stream_queue(struct sim_stream *stream, uint64_t duration_ns)
{
    const uint64_t asked = sim_node()->queue_depth;
    const uint64_t depth = asked >= 1 && asked <= QUEUE_MOST ? asked : QUEUE_MOST;
    const uint64_t place = atomic_fetch_add(&queues[stream->gpu].count, 1) % depth;
    sim_timeline_wait(stream->gpu, atomic_load(&queues[stream->gpu].tags[place]), is_lost);
    const uint64_t tag = sim_timeline_queue(stream->gpu, duration_ns);
    atomic_store(&queues[stream->gpu].tags[place], tag);
    raise_to(&stream->tail, tag);
    if ((stream->flags & STREAM_NON_BLOCKING) == 0)
        raise_to(&stream->context->blocking_tail, tag);
    if (stream->kind == LEGACY_STREAM_KIND)
        raise_to(&stream->context->legacy_tail, tag);
}

uint64_t sim_stream_tail(struct sim_stream *stream)
{
    const uint64_t own = atomic_load(&stream->tail);
    if ((stream->flags & STREAM_NON_BLOCKING) != 0)
        return own;
    const uint64_t others = atomic_load(stream->kind == LEGACY_STREAM_KIND
                                            ? &stream->context->blocking_tail
                                            : &stream->context->legacy_tail);
    return own > others ? own : others;
}

CUresult sim_stream_wait(struct sim_stream *stream)
{
    CUcontext context;
    sim_timeline_wait(stream->gpu, sim_stream_tail(stream), is_lost);
    sim_host_wait(atomic_load(&stream->host_ticket));
    sim_pools_synchronized();
    return sim_current(&context);
}

CUresult sim_wait_as_legacy(void)
{
    struct sim_stream *stream;
    const CUresult result = sim_stream_for_work(NULL, false, &stream);
    return result == CUDA_SUCCESS ? sim_stream_wait(stream) : result;
}

CUresult sim_stream_create_in(CUstream *handle, CUcontext context, unsigned flags, int priority)
{
    if (handle == NULL || flags > STREAM_NON_BLOCKING)
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    stream->context = context;
    stream->gpu = context->gpu;
    stream->flags = flags;
    stream->priority = priority < HIGHEST_PRIORITY  ? HIGHEST_PRIORITY
                       : priority > LOWEST_PRIORITY ? LOWEST_PRIORITY
                                                    : priority;
    stream->id = atomic_fetch_add(&last_id, 1) + 1;
    *handle = stream;
    return CUDA_SUCCESS;
}

CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned int flags, int priority)
{
    CUcontext context;
    const CUresult result = sim_current(&context);
    return result == CUDA_SUCCESS ? sim_stream_create_in(stream, context, flags, priority) : result;
}

CUresult cuStreamCreate(CUstream *stream, unsigned int flags)
{
    return cuStreamCreateWithPriority(stream, flags, LOWEST_PRIORITY);
}

/* What is in the stream goes on; only the handle ends. */
CUresult cuStreamDestroy_v2(CUstream stream)
{
    if ((uintptr_t)stream <= 2 || stream->context == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    sim_capture_drop_stream(stream);
    stream->context = NULL;
    free(stream->leaves);
    free(stream);
    return CUDA_SUCCESS;
}

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    CUcontext context;
    const CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (least != NULL)
        *least = LOWEST_PRIORITY;
    if (greatest != NULL)
        *greatest = HIGHEST_PRIORITY;
    return CUDA_SUCCESS;
}

static CUresult synchronize(CUstream handle, bool per_thread)
{
    struct sim_stream *stream;
    CUresult result = sim_stream_of(handle, per_thread, &stream);
    if (result == CUDA_SUCCESS)
        result = sim_capture_check_wait(stream);
    return result == CUDA_SUCCESS ? sim_stream_wait(stream) : result;
}

static CUresult query(CUstream handle, bool per_thread)
{
    struct sim_stream *stream;
    CUresult result = sim_stream_of(handle, per_thread, &stream);
    if (result == CUDA_SUCCESS)
        result = sim_capture_check_wait(stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (!sim_timeline_reached(stream->gpu, sim_stream_tail(stream)) ||
        !sim_host_done(atomic_load(&stream->host_ticket)))
        return CUDA_ERROR_NOT_READY;
    return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void)
{
    CUcontext context;
    const struct sim_process *process = sim_process();
    CUresult result = sim_current(&context);
    if (result == CUDA_SUCCESS)
        result = sim_capture_check_wait(legacy_of(context));
    if (result != CUDA_SUCCESS || process == NULL)
        return result;
    sim_timeline_wait(context->gpu, process->rows[context->gpu].finish_ns, is_lost);
    sim_host_wait_all();
    sim_pools_synchronized();
    return sim_current(&context);
}

CUresult cuCtxSynchronize_v2(CUcontext context)
{
    CUcontext current;
    CUresult result = cuCtxPushCurrent_v2(context);
    if (result != CUDA_SUCCESS)
        return result;
    result = cuCtxSynchronize();
    cuCtxPopCurrent_v2(&current);
    return result;
}

/* What a stream is, given *stream; nothing may be asked of a destroyed one. */
#define ANSWER(name, type, expression)                                                             \
    static CUresult name(CUstream handle, bool per_thread, type *value)                            \
    {                                                                                              \
        struct sim_stream *stream;                                                                 \
        const CUresult result = sim_stream_of(handle, per_thread, &stream);                        \
        if (result == CUDA_SUCCESS)                                                                \
            *value = expression;                                                                   \
        return result;                                                                             \
    }
ANSWER(get_priority, int, stream->priority)
ANSWER(get_flags, unsigned int, stream->flags)
ANSWER(get_id, unsigned long long, stream->id)
ANSWER(get_context, CUcontext, stream->context)
ANSWER(get_device, CUdevice, stream->context->ordinal)

CUresult cuStreamSynchronize(CUstream stream) { return synchronize(stream, false); }
CUresult cuStreamSynchronize_ptsz(CUstream stream) { return synchronize(stream, true); }
CUresult cuStreamQuery(CUstream stream) { return query(stream, false); }
CUresult cuStreamQuery_ptsz(CUstream stream) { return query(stream, true); }
CUresult cuStreamGetPriority(CUstream stream, int *value) { return get_priority(stream, false, value); }
CUresult cuStreamGetPriority_ptsz(CUstream stream, int *value) { return get_priority(stream, true, value); }
CUresult cuStreamGetFlags(CUstream stream, unsigned int *value) { return get_flags(stream, false, value); }
CUresult cuStreamGetFlags_ptsz(CUstream stream, unsigned int *value) { return get_flags(stream, true, value); }
CUresult cuStreamGetId(CUstream stream, unsigned long long *value) { return get_id(stream, false, value); }
CUresult cuStreamGetId_ptsz(CUstream stream, unsigned long long *value) { return get_id(stream, true, value); }
CUresult cuStreamGetCtx(CUstream stream, CUcontext *value) { return get_context(stream, false, value); }
CUresult cuStreamGetCtx_ptsz(CUstream stream, CUcontext *value) { return get_context(stream, true, value); }
CUresult cuStreamGetDevice(CUstream stream, CUdevice *value) { return get_device(stream, false, value); }
CUresult cuStreamGetDevice_ptsz(CUstream stream, CUdevice *value) { return get_device(stream, true, value); }
