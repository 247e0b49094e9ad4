/* sim_graph.h: graphs, as sim_graph*.c and sim_capture.c share them. */
#ifndef SIM_GRAPH_H
#define SIM_GRAPH_H

#include "sim_stream.h"

enum sim_node_type { /* as CUgraphNodeType */
    NODE_KERNEL = 0,
    NODE_MEMCPY = 1,
    NODE_MEMSET = 2,
    NODE_HOST = 3,
    NODE_GRAPH = 4,
    NODE_EMPTY = 5,
    NODE_WAIT_EVENT = 6,
    NODE_EVENT_RECORD = 7,
    NODE_MEM_ALLOC = 10,
    NODE_MEM_FREE = 11,
};

union sim_node_params {
    CUDA_KERNEL_NODE_PARAMS_v2 kernel;
    CUDA_MEMCPY3D memcpy;
    CUDA_MEMSET_NODE_PARAMS_v2 memset;
    CUDA_HOST_NODE_PARAMS host;
    CUgraph child; /* its own copy */
    CUDA_MEM_ALLOC_NODE_PARAMS allocation;
    CUdeviceptr freed;
    CUevent event;
};

struct sim_graph_node {
    CUgraph graph;
    CUgraphNode original; /* that it is a copy of, in the graph that was cloned or instantiated */
    enum sim_node_type type;
    bool disabled;
    bool mark; /* of whoever walks the graph */
    CUcontext context; /* current when it was made */
    union sim_node_params params;
    CUgraphNode *dependencies;
    size_t dependency_count;
};

struct sim_graph {
    CUgraphNode *nodes; /* each after those that it depends on, unless edges were added later */
    size_t count;
    size_t capacity;
};

/* A new node; NULL: no memory. A child graph is copied. */
CUgraphNode sim_graph_add(CUgraph graph, enum sim_node_type type, const union sim_node_params *params,
                          const CUgraphNode *dependencies, size_t count);

CUgraph sim_graph_new(void);
CUgraph sim_graph_copy(CUgraph graph);
void sim_graph_free(CUgraph graph);

/* Add a dependency that is not there yet. False: no memory. */
bool sim_graph_depend(CUgraphNode node, CUgraphNode on);

/* Set `mark` in the node and in all that it depends on. */
void sim_graph_mark(CUgraphNode node);

/* Put the nodes into an order in which each follows those it depends on. False: there is a cycle. */
bool sim_graph_sort(CUgraph graph);

/* Capture a node into the stream's graph, in the place of work. */
CUresult sim_capture_node(struct sim_stream *stream, enum sim_node_type type,
                          const union sim_node_params *params);

/* True if the stream is being captured (then use sim_capture_node). */
bool sim_is_captured(const struct sim_stream *stream);

/* Whether capture allows work in, or waiting for, the stream; may invalidate captures. */
CUresult sim_capture_check_work(struct sim_stream *stream);
CUresult sim_capture_check_wait(struct sim_stream *stream);

/* Called before an event is recorded, waited for or queried. *handled: capture did it all. */
CUresult sim_capture_record(CUevent event, struct sim_stream *stream, unsigned flags, bool *handled);
CUresult sim_capture_wait(struct sim_stream *stream, CUevent event, unsigned flags, bool *handled);

/* A stream is about to be destroyed. */
void sim_capture_drop_stream(struct sim_stream *stream);

void sim_capture_after_fork(void);

/* Copies and fills of memory, without waiting for anything. */
CUresult sim_copy_3d(const CUDA_MEMCPY3D *copy);
CUresult sim_fill_2d(const CUDA_MEMSET_NODE_PARAMS_v2 *fill);

#endif
