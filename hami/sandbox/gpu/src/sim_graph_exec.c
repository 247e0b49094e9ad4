/* sim_graph_exec.c: executable graphs: made of a graph, updated from another, launched.
 *
 * An executable graph holds a copy of its graph in an order that fits the edges. A launch goes
 * through it: kernels between two nodes of other kinds become one piece of device time, their sum;
 * none overlap. It counts as one launch in the process's queue for each such piece.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "sim_graph_memory.h"
#include "sim_managed.h"

enum { FLAG_AUTO_FREE = 1, FLAG_UPLOAD = 2, FLAG_DEVICE_LAUNCH = 4, FLAGS_ALL = 15 };
enum { INSTANTIATE_SUCCESS = 0, INSTANTIATE_ERROR = 1, INSTANTIATE_INVALID_STRUCTURE = 2 };
enum { UPDATE_SUCCESS = 0, UPDATE_TOPOLOGY_CHANGED = 2, UPDATE_TYPE_CHANGED = 3 };

struct sim_graph_exec {
    CUgraph graph;
    uint64_t flags;
};

static CUresult instantiate(CUgraphExec *exec, CUgraph graph, uint64_t flags, int *outcome)
{
    CUcontext context;
    *outcome = INSTANTIATE_ERROR;
    const CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (exec == NULL || graph == NULL || flags > FLAGS_ALL)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_graph_sort(graph)) {
        *outcome = INSTANTIATE_INVALID_STRUCTURE;
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct sim_graph_exec *made = calloc(1, sizeof *made);
    if (made == NULL || (made->graph = sim_graph_copy(graph)) == NULL) {
        free(made);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    made->flags = flags;
    const CUresult outcome_of_upload =
        (flags & FLAG_UPLOAD) != 0 ? sim_graph_memory_reserve(made->graph, false) : CUDA_SUCCESS;
    if (outcome_of_upload != CUDA_SUCCESS) {
        sim_graph_free(made->graph);
        free(made);
        return outcome_of_upload;
    }
    *exec = made;
    *outcome = INSTANTIATE_SUCCESS;
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags)
{
    int outcome;
    return instantiate(exec, graph, flags, &outcome);
}

static CUresult instantiate_old(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log,
                                size_t log_size)
{
    if (error_node != NULL)
        *error_node = NULL;
    if (log != NULL && log_size > 0)
        *log = '\0';
    return cuGraphInstantiateWithFlags(exec, graph, 0);
}

CUresult cuGraphInstantiate(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log,
                            size_t log_size)
{
    return instantiate_old(exec, graph, error_node, log, log_size);
}

CUresult cuGraphInstantiate_v2(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log,
                               size_t log_size)
{
    return instantiate_old(exec, graph, error_node, log, log_size);
}

CUresult cuGraphInstantiateWithParams(CUgraphExec *exec, CUgraph graph,
                                      CUDA_GRAPH_INSTANTIATE_PARAMS *params)
{
    if (params == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    params->hErrNode_out = NULL;
    return instantiate(exec, graph, params->flags, &params->result_out);
}

CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec *exec, CUgraph graph,
                                           CUDA_GRAPH_INSTANTIATE_PARAMS *params)
{
    return cuGraphInstantiateWithParams(exec, graph, params);
}

CUresult cuGraphExecDestroy(CUgraphExec exec)
{
    if (exec == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    sim_graph_free(exec->graph);
    free(exec);
    return CUDA_SUCCESS;
}

CUresult cuGraphExecGetFlags(CUgraphExec exec, cuuint64_t *flags)
{
    if (exec == NULL || flags == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = exec->flags;
    return CUDA_SUCCESS;
}

/* The executable's own node for one of the graph that it was made of. */
static CUgraphNode own_node(CUgraphExec exec, CUgraphNode node)
{
    for (size_t i = 0; exec != NULL && node != NULL && i < exec->graph->count; i++)
        if (exec->graph->nodes[i]->original == node)
            return exec->graph->nodes[i];
    return NULL;
}

CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                           const CUDA_KERNEL_NODE_PARAMS_v2 *kernel)
{
    return cuGraphKernelNodeSetParams_v2(own_node(exec, node), kernel);
}

CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                        const CUDA_KERNEL_NODE_PARAMS_v1 *kernel)
{
    return cuGraphKernelNodeSetParams(own_node(exec, node), kernel);
}

CUresult cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraphNodeParams *params)
{
    return cuGraphNodeSetParams(own_node(exec, node), params);
}

CUresult cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned int enabled)
{
    CUgraphNode own = own_node(exec, node);
    if (own == NULL || own->type > NODE_MEMSET)
        return CUDA_ERROR_INVALID_VALUE;
    own->disabled = enabled == 0;
    return CUDA_SUCCESS;
}

CUresult cuGraphNodeGetEnabled(CUgraphExec exec, CUgraphNode node, unsigned int *enabled)
{
    CUgraphNode own = own_node(exec, node);
    if (own == NULL || enabled == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *enabled = !own->disabled;
    return CUDA_SUCCESS;
}

static size_t place_of(CUgraph graph, CUgraphNode node)
{
    size_t place = 0;
    while (place < graph->count && graph->nodes[place] != node)
        place++;
    return place;
}

/* Nodes are paired by their order; *at is where the graphs differ. */
static int compare(CUgraph old, CUgraph fresh, CUgraphNode *at)
{
    *at = NULL;
    if (old->count != fresh->count)
        return UPDATE_TOPOLOGY_CHANGED;
    for (size_t i = 0; i < old->count; i++) {
        CUgraphNode left = old->nodes[i], right = fresh->nodes[i];
        *at = right;
        if (left->type != right->type)
            return UPDATE_TYPE_CHANGED;
        if (left->dependency_count != right->dependency_count)
            return UPDATE_TOPOLOGY_CHANGED;
        for (size_t d = 0; d < left->dependency_count; d++)
            if (place_of(old, left->dependencies[d]) != place_of(fresh, right->dependencies[d]))
                return UPDATE_TOPOLOGY_CHANGED;
    }
    *at = NULL;
    return UPDATE_SUCCESS;
}

static CUresult update(CUgraphExec exec, CUgraph graph, CUgraphNode *at, int *outcome)
{
    if (exec == NULL || graph == NULL || outcome == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_graph_sort(graph))
        return CUDA_ERROR_INVALID_VALUE;
    *outcome = compare(exec->graph, graph, at);
    if (*outcome != UPDATE_SUCCESS)
        return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
    CUgraph copy = sim_graph_copy(graph);
    if (copy == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    for (size_t i = 0; i < copy->count; i++) /* handles of the first graph's nodes stay valid */
        copy->nodes[i]->original = exec->graph->nodes[i]->original;
    sim_graph_free(exec->graph);
    exec->graph = copy;
    return CUDA_SUCCESS;
}

CUresult cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode *error_node, int *outcome)
{
    CUgraphNode at = NULL;
    const CUresult result = update(exec, graph, &at, outcome);
    if (error_node != NULL)
        *error_node = at;
    return result;
}

CUresult cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph, CUgraphExecUpdateResultInfo *info)
{
    if (info == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    info->errorFromNode = NULL;
    return update(exec, graph, &info->errorNode, &info->result);
}

/* Kernels that were met and not queued yet. */
struct run {
    struct sim_stream *stream;
    uint64_t duration_ns;
    CUfunction failing;
};

static void flush(struct run *run)
{
    if (run->duration_ns != 0 || run->failing != NULL)
        sim_stream_queue(run->stream, run->duration_ns);
    if (run->failing != NULL)
        sim_kernel_queued(run->stream, run->failing);
    run->duration_ns = 0;
    run->failing = NULL;
}

static CUresult run_kernel(CUgraphNode node, struct run *run)
{
    const CUDA_KERNEL_NODE_PARAMS_v2 *kernel = &node->params.kernel;
    uint64_t duration;
    const CUresult result = sim_kernel_time(run->stream->context, kernel, &duration);
    if (result != CUDA_SUCCESS)
        return result;
    run->duration_ns += duration + sim_managed_fetch_ns(run->stream->gpu);
    run->failing = sim_kernel_fails(kernel) && run->failing == NULL ? sim_kernel_of(kernel) : run->failing;
    return CUDA_SUCCESS;
}

static CUresult run_graph(CUgraph graph, struct run *run);

static CUresult run_node(CUgraphNode node, struct run *run)
{
    if (node->disabled)
        return CUDA_SUCCESS;
    if (node->type == NODE_KERNEL)
        return run_kernel(node, run);
    if (node->type == NODE_GRAPH)
        return run_graph(node->params.child, run);
    if (node->type == NODE_EMPTY)
        return CUDA_SUCCESS;
    if (node->type == NODE_MEM_ALLOC)
        return sim_graph_run_allocation(node);
    if (node->type == NODE_MEM_FREE)
        return sim_graph_run_free(node);
    flush(run);
    switch (node->type) {
    case NODE_MEMCPY:
        sim_host_wait(atomic_load(&run->stream->host_ticket));
        return sim_copy_3d(&node->params.memcpy);
    case NODE_MEMSET: return sim_fill_2d(&node->params.memset);
    case NODE_HOST:
        return sim_host_queue(run->stream, node->params.host.fn, NULL, node->params.host.userData, NULL) != 0
                   ? CUDA_SUCCESS
                   : CUDA_ERROR_OUT_OF_MEMORY;
    case NODE_WAIT_EVENT: sim_event_hold(node->params.event, run->stream); return CUDA_SUCCESS;
    case NODE_EVENT_RECORD: sim_event_mark(node->params.event, run->stream); return CUDA_SUCCESS;
    default: return CUDA_ERROR_NOT_SUPPORTED;
    }
}

static CUresult run_graph(CUgraph graph, struct run *run)
{
    CUresult result = CUDA_SUCCESS;
    for (size_t i = 0; result == CUDA_SUCCESS && i < graph->count; i++)
        result = run_node(graph->nodes[i], run);
    return result;
}

static CUresult launch(CUgraphExec exec, CUstream handle, bool per_thread)
{
    struct sim_stream *stream;
    const CUresult result = sim_stream_for_work(handle, per_thread, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (exec == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (sim_is_captured(stream) && sim_graph_has_memory(exec->graph))
        return CUDA_ERROR_NOT_SUPPORTED;
    if (sim_is_captured(stream)) {
        const union sim_node_params params = {.child = exec->graph};
        return sim_capture_node(stream, NODE_GRAPH, &params);
    }
    struct run run = {.stream = stream};
    const CUresult reserved = sim_graph_memory_reserve(exec->graph, (exec->flags & FLAG_AUTO_FREE) != 0);
    if (reserved != CUDA_SUCCESS)
        return reserved;
    const CUresult outcome = run_graph(exec->graph, &run);
    flush(&run);
    return outcome;
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream)
{
    return launch(exec, stream, false);
}

CUresult cuGraphLaunch_ptsz(CUgraphExec exec, CUstream stream)
{
    return launch(exec, stream, true);
}

static CUresult upload(CUgraphExec exec, CUstream handle, bool per_thread)
{
    struct sim_stream *stream;
    const CUresult result = sim_stream_for_work(handle, per_thread, &stream);
    if (exec == NULL || result != CUDA_SUCCESS)
        return exec == NULL ? CUDA_ERROR_INVALID_VALUE : result;
    return sim_graph_memory_reserve(exec->graph, (exec->flags & FLAG_AUTO_FREE) != 0);
}

CUresult cuGraphUpload(CUgraphExec exec, CUstream stream)
{
    return upload(exec, stream, false);
}

CUresult cuGraphUpload_ptsz(CUgraphExec exec, CUstream stream)
{
    return upload(exec, stream, true);
}
