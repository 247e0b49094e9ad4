/* sim_capture.h: captures under way, between the rules (sim_capture.c) and the calls. */
#ifndef SIM_CAPTURE_H
#define SIM_CAPTURE_H

#include <pthread.h>

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

/* All captures, and what belongs to them in streams and events, are under this lock. */
extern pthread_mutex_t sim_captures_lock;
extern struct sim_capture *sim_captures;
extern _Atomic unsigned sim_capture_count; /* spares those who capture nothing the lock */
extern _Thread_local int sim_capture_mode;
extern _Thread_local char sim_capture_thread; /* its address names the thread */

/* Let the stream take part in the capture; its next node depends on these. False: no memory. */
bool sim_capture_join(struct sim_capture *capture, struct sim_stream *stream, const CUgraphNode *nodes,
                      size_t count);

/* The legacy default stream waits for every blocking stream of its context: IMPLICIT if one of them
 * is captured. */
CUresult sim_capture_check_legacy(const struct sim_stream *stream, bool invalidate);

/* Replace what the next node depends on, or add to it. False: no memory. */
bool sim_set_leaves(CUgraphNode **leaves, size_t *leaf_count, const CUgraphNode *nodes, size_t count);
bool sim_add_leaves(struct sim_stream *stream, const CUgraphNode *nodes, size_t count);

#endif
