/* sim_graph_memory.h: graphs that allocate. */
#ifndef SIM_GRAPH_MEMORY_H
#define SIM_GRAPH_MEMORY_H

#include "sim_graph.h"

/* Capture an allocation; the address is known at once, the memory is there when the graph runs. */
CUresult sim_graph_capture_allocation(struct sim_stream *stream, CUdeviceptr *address, size_t bytes,
                                      unsigned gpu);

/* Complete what a program asks of an allocation node: gives it its address. */
CUresult sim_graph_prepare_allocation(CUDA_MEM_ALLOC_NODE_PARAMS *wanted);

/* Whether the graph or a child of it has nodes of memory. */
bool sim_graph_has_memory(CUgraph graph);

/* Have all the memory ready that a launch needs. `auto_free`: what an earlier launch left is freed. */
CUresult sim_graph_memory_reserve(CUgraph graph, bool auto_free);

/* A node of memory runs. */
CUresult sim_graph_run_allocation(CUgraphNode node);
CUresult sim_graph_run_free(CUgraphNode node);

void sim_graph_memory_after_fork(void);

#endif
