/* sim_stream.h: streams and events, and the little that launches, graphs and capture share. */
#ifndef SIM_STREAM_H
#define SIM_STREAM_H

#include "sim_cuda.h"

enum { STREAM_NON_BLOCKING = 1 };
enum { EVENT_DISABLE_TIMING = 2, EVENT_EXTERNAL = 1 };

struct sim_capture; /* sim_capture.c */

struct sim_stream {
    CUcontext context;
    unsigned gpu;
    unsigned flags;
    int priority;
    enum { CREATED_STREAM, LEGACY_STREAM_KIND, THREAD_STREAM_KIND } kind;
    uint64_t id;
    _Atomic uint64_t tail;             /* tag of the end of its last work */
    _Atomic uint64_t host_ticket;      /* of its last host function (sim_host.c) */
    struct sim_capture *_Atomic capture; /* that its work goes to, instead of to the device */
    CUgraphNode *leaves;               /* what the next captured node depends on */
    size_t leaf_count;
};

struct sim_cuda_event {
    unsigned flags;
    _Atomic unsigned gpu;
    _Atomic uint64_t tag;      /* 0: not recorded */
    _Atomic uint64_t time_ns;  /* of the clock at that tag; 0: not looked up yet */
    _Atomic uint64_t host_ticket;
    _Atomic uint64_t capture_id; /* of the capture that it was recorded in; 0: none */
    CUgraphNode *leaves;
    size_t leaf_count;
};

/* The stream behind a handle: 0 and 1 are the context's legacy one, 2 (and 0 in the per-thread
 * forms) the calling thread's own. */
CUresult sim_stream_of(CUstream handle, bool per_thread, struct sim_stream **stream);

/* The same for putting work into it: also tells capture, which may forbid it. */
CUresult sim_stream_for_work(CUstream handle, bool per_thread, struct sim_stream **stream);

/* A new stream of a context that need not be current. */
CUresult sim_stream_create_in(CUstream *handle, CUcontext context, unsigned flags, int priority);

/* Device time at the end of the stream. Blocks while the process's queue is full. */
void sim_stream_queue(struct sim_stream *stream, uint64_t duration_ns);

/* The tag at which all work of the stream so far is done, and that of others it waits for. */
uint64_t sim_stream_tail(struct sim_stream *stream);

/* Wait for all that is in the stream. */
CUresult sim_stream_wait(struct sim_stream *stream);

/* Wait for the legacy default stream of the calling thread's context, as synchronous calls do.
 * Forbidden while a stream that it would wait for is captured. */
CUresult sim_wait_as_legacy(void);

/* Record the event at the end of a stream that is not captured. */
void sim_event_mark(CUevent event, struct sim_stream *stream);

/* Let the stream go on only when the event is past. */
void sim_event_hold(CUevent event, struct sim_stream *stream);

/* Run fn once the tag is past, after the earlier ones of the stream; the ticket to wait with. */
uint64_t sim_host_queue(struct sim_stream *stream, CUhostFn fn, CUstreamCallback callback, void *argument,
                        CUstream handle);
bool sim_host_done(uint64_t ticket);
void sim_host_wait(uint64_t ticket);
void sim_host_wait_all(void);
void sim_host_after_fork(void);

/* How long a launch takes. CUDA_SUCCESS if it can be launched at all. */
CUresult sim_kernel_time(const struct sim_context *context, const CUDA_KERNEL_NODE_PARAMS_v2 *launch,
                         uint64_t *duration_ns);

/* The kernel of a launch, and whether it is one that fails. */
CUfunction sim_kernel_of(const CUDA_KERNEL_NODE_PARAMS_v2 *launch);
bool sim_kernel_fails(const CUDA_KERNEL_NODE_PARAMS_v2 *launch);

/* After a kernel was queued up to the tag: if it is one that fails, its context fails then. */
void sim_kernel_queued(struct sim_stream *stream, CUfunction function);

#endif
