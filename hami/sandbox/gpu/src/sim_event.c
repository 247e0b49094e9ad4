/* sim_event.c: events: points in a stream, whose time by the clock can be asked once they are past. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "sim_graph.h"
#include "sim_memory.h"
#include "sim_timeline.h"

CUresult cuEventCreate(CUevent *event, unsigned int flags)
{
    CUcontext context;
    const CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (event == NULL || flags > 7)
        return CUDA_ERROR_INVALID_VALUE;
    *event = calloc(1, sizeof **event);
    if (*event == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    (*event)->flags = flags;
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent event)
{
    if (event == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    free(event->leaves);
    free(event);
    return CUDA_SUCCESS;
}

void sim_event_mark(CUevent event, struct sim_stream *stream)
{
    const uint64_t tail = sim_stream_tail(stream);
    const uint64_t now = sim_timeline_now(stream->gpu);
    atomic_store(&event->gpu, stream->gpu);
    atomic_store(&event->time_ns, 0);
    atomic_store(&event->host_ticket, atomic_load(&stream->host_ticket));
    atomic_store(&event->tag, tail > now ? tail : now);
    atomic_store(&event->capture_id, 0);
}

static bool is_past(CUevent event)
{
    const uint64_t tag = atomic_load(&event->tag);
    return tag == 0 || (sim_timeline_reached(atomic_load(&event->gpu), tag) &&
                        sim_host_done(atomic_load(&event->host_ticket)));
}

/* 0: it was not recorded, or is not past. */
static uint64_t time_of(CUevent event)
{
    const uint64_t tag = atomic_load(&event->tag);
    uint64_t time = atomic_load(&event->time_ns);
    if (time == 0 && tag != 0) {
        time = sim_timeline_when(atomic_load(&event->gpu), tag);
        atomic_store(&event->time_ns, time);
    }
    return time;
}

void sim_event_hold(CUevent event, struct sim_stream *stream)
{
    const uint64_t tag = atomic_load(&event->tag);
    if (tag == 0)
        return;
    if (atomic_load(&event->gpu) != stream->gpu) {
        /* The two GPUs' tags cannot be compared: let the caller wait. */
        sim_timeline_wait(atomic_load(&event->gpu), tag, NULL);
        return;
    }
    uint64_t tail = atomic_load(&stream->tail);
    while (tail < tag && !atomic_compare_exchange_weak(&stream->tail, &tail, tag))
        ;
    if (sim_host_done(atomic_load(&stream->host_ticket)))
        atomic_store(&stream->host_ticket, atomic_load(&event->host_ticket));
    else
        sim_host_wait(atomic_load(&event->host_ticket));
}

static CUresult record(CUevent event, CUstream handle, unsigned flags, bool per_thread)
{
    struct sim_stream *stream;
    bool handled = false;
    if (event == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    if (flags > EVENT_EXTERNAL)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = sim_stream_for_work(handle, per_thread, &stream);
    if (result == CUDA_SUCCESS)
        result = sim_capture_record(event, stream, flags, &handled);
    if (result == CUDA_SUCCESS && !handled)
        sim_event_mark(event, stream);
    return result;
}

static CUresult wait_event(CUstream handle, CUevent event, unsigned flags, bool per_thread)
{
    struct sim_stream *stream;
    bool handled = false;
    if (event == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    if (flags > EVENT_EXTERNAL)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = sim_stream_for_work(handle, per_thread, &stream);
    if (result == CUDA_SUCCESS)
        result = sim_capture_wait(stream, event, flags, &handled);
    if (result == CUDA_SUCCESS && !handled)
        sim_event_hold(event, stream);
    return result;
}

/* May the calling thread ask about the event now? */
static CUresult check_question(CUevent event)
{
    CUcontext context;
    if (event == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    if (atomic_load(&event->capture_id) != 0)
        return CUDA_ERROR_CAPTURED_EVENT;
    const CUresult result = sim_check_unsafe_call();
    return result == CUDA_SUCCESS ? sim_current(&context) : result;
}

CUresult cuEventQuery(CUevent event)
{
    const CUresult result = check_question(event);
    if (result != CUDA_SUCCESS)
        return result;
    if (!is_past(event))
        return CUDA_ERROR_NOT_READY;
    sim_late_frees_run(NULL);
    return CUDA_SUCCESS;
}

static bool is_lost(unsigned gpu)
{
    return sim_check_gpu(gpu) != CUDA_SUCCESS;
}

CUresult cuEventSynchronize(CUevent event)
{
    CUcontext context;
    const CUresult result = check_question(event);
    if (result != CUDA_SUCCESS)
        return result;
    sim_timeline_wait(atomic_load(&event->gpu), atomic_load(&event->tag), is_lost);
    sim_host_wait(atomic_load(&event->host_ticket));
    time_of(event);
    sim_pools_synchronized();
    return sim_current(&context);
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end)
{
    CUcontext context;
    const CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (milliseconds == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (start == NULL || end == NULL || ((start->flags | end->flags) & EVENT_DISABLE_TIMING) != 0 ||
        atomic_load(&start->tag) == 0 || atomic_load(&end->tag) == 0)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!is_past(start) || !is_past(end))
        return CUDA_ERROR_NOT_READY;
    *milliseconds = (float)((double)((int64_t)(time_of(end) - time_of(start))) / 1e6);
    return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end)
{
    return cuEventElapsedTime(milliseconds, start, end);
}

CUresult cuEventRecord(CUevent event, CUstream stream) { return record(event, stream, 0, false); }
CUresult cuEventRecord_ptsz(CUevent event, CUstream stream) { return record(event, stream, 0, true); }
CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned int flags)
{
    return record(event, stream, flags, false);
}
CUresult cuEventRecordWithFlags_ptsz(CUevent event, CUstream stream, unsigned int flags)
{
    return record(event, stream, flags, true);
}
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags)
{
    return wait_event(stream, event, flags, false);
}
CUresult cuStreamWaitEvent_ptsz(CUstream stream, CUevent event, unsigned int flags)
{
    return wait_event(stream, event, flags, true);
}
