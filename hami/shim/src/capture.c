/* capture.c: the hooks that begin and end the capture of a stream, and the list of those begun.
 *
 * While one is active anywhere in the process, calls that are no part of it may spoil it: nothing is
 * timed then. A stream that is destroyed, or whose context is, takes its capture along.
 */
#include "capture.h"

#include "hooks.h"

#define CAPTURES 256 /* at once; as long as any of them is listed, the driver is asked about every stream */

_Atomic int hami_captures;

static struct {
    _Atomic(CUstream) stream; /* NULL: free */
    _Atomic(CUcontext) context;
} origins[CAPTURES];

static void begin(CUstream stream)
{
    CUcontext context = NULL;
    HAMI_CUDA(cuCtxGetCurrent, &context);
    for (int i = 0; i < CAPTURES; i++) {
        CUstream seen = NULL;
        if (!atomic_compare_exchange_strong(&origins[i].stream, &seen, stream))
            continue;
        atomic_store(&origins[i].context, context);
        atomic_fetch_add(&hami_captures, 1);
        return;
    }
}

static bool end(CUstream stream)
{
    for (int i = 0; i < CAPTURES; i++) {
        CUstream seen = stream;
        if (!atomic_compare_exchange_strong(&origins[i].stream, &seen, NULL))
            continue;
        atomic_fetch_sub(&hami_captures, 1);
        return true;
    }
    return false;
}

static bool is_capturing(CUstream stream)
{
    int status = 0;
    return HAMI_CUDA(cuStreamIsCapturing, stream, &status) == CUDA_SUCCESS && status != 0;
}

bool hami_capture_covers(CUstream stream)
{
    int status = 0;
    const CUresult result = HAMI_CUDA(cuStreamIsCapturing, stream, &status);
    return result == CUDA_SUCCESS ? status != 0 : result != CUDA_ERROR_NOT_SUPPORTED;
}

void hami_capture_forget_context(CUcontext context)
{
    if (!hami_capture_is_active())
        return;
    for (int i = 0; i < CAPTURES; i++) {
        CUstream seen = atomic_load(&origins[i].stream);
        if (seen != NULL && atomic_load(&origins[i].context) == context &&
            atomic_compare_exchange_strong(&origins[i].stream, &seen, NULL))
            atomic_fetch_sub(&hami_captures, 1);
    }
}

void hami_capture_after_fork(void)
{
    for (int i = 0; i < CAPTURES; i++)
        atomic_store(&origins[i].stream, NULL);
    atomic_store(&hami_captures, 0);
}

/* Listed before the driver begins, so that no other thread times a launch while it does. */
static CUresult begun(CUstream stream, CUresult result)
{
    if (result != CUDA_SUCCESS)
        end(stream);
    return result;
}

static CUresult ended(CUstream stream, CUresult result)
{
    if (hami_capture_is_active() && !is_capturing(stream))
        end(stream);
    return result;
}

HAMI_EXPORT CUresult cuStreamBeginCapture(CUstream passed)
{
    begin(passed);
    return begun(passed, HAMI_CUDA(cuStreamBeginCapture, passed));
}

HAMI_EXPORT CUresult cuStreamBeginCapture_ptsz(CUstream passed)
{
    const CUstream stream = hami_stream_per_thread(passed);
    begin(stream);
    return begun(stream, HAMI_CUDA(cuStreamBeginCapture_ptsz, passed));
}

HAMI_EXPORT CUresult cuStreamBeginCapture_v2(CUstream passed, int mode)
{
    begin(passed);
    return begun(passed, HAMI_CUDA(cuStreamBeginCapture_v2, passed, mode));
}

HAMI_EXPORT CUresult cuStreamBeginCapture_v2_ptsz(CUstream passed, int mode)
{
    const CUstream stream = hami_stream_per_thread(passed);
    begin(stream);
    return begun(stream, HAMI_CUDA(cuStreamBeginCapture_v2_ptsz, passed, mode));
}

HAMI_EXPORT CUresult cuStreamBeginCaptureToGraph(CUstream passed, CUgraph graph, const CUgraphNode *nodes,
                                                 const void *edges, size_t count, int mode)
{
    begin(passed);
    return begun(passed, HAMI_CUDA(cuStreamBeginCaptureToGraph, passed, graph, nodes, edges, count, mode));
}

HAMI_EXPORT CUresult cuStreamBeginCaptureToGraph_ptsz(CUstream passed, CUgraph graph,
                                                      const CUgraphNode *nodes, const void *edges,
                                                      size_t count, int mode)
{
    const CUstream stream = hami_stream_per_thread(passed);
    begin(stream);
    return begun(stream, HAMI_CUDA(cuStreamBeginCaptureToGraph_ptsz, passed, graph, nodes, edges, count,
                                   mode));
}

HAMI_EXPORT CUresult cuStreamEndCapture(CUstream passed, CUgraph *graph)
{
    return ended(passed, HAMI_CUDA(cuStreamEndCapture, passed, graph));
}

HAMI_EXPORT CUresult cuStreamEndCapture_ptsz(CUstream passed, CUgraph *graph)
{
    return ended(hami_stream_per_thread(passed), HAMI_CUDA(cuStreamEndCapture_ptsz, passed, graph));
}

/* The handle may be another stream's as soon as the driver returns: looked for before. */
HAMI_EXPORT CUresult cuStreamDestroy_v2(CUstream stream)
{
    const bool listed = hami_capture_is_active() && end(stream);
    const CUresult result = HAMI_CUDA(cuStreamDestroy_v2, stream);
    if (listed && result != CUDA_SUCCESS)
        begin(stream);
    return result;
}

HAMI_EXPORT CUresult cuStreamDestroy(CUstream stream)
{
    const bool listed = hami_capture_is_active() && end(stream);
    const CUresult result = HAMI_CUDA(cuStreamDestroy, stream);
    if (listed && result != CUDA_SUCCESS)
        begin(stream);
    return result;
}
