/* sim_graph_node.c: adding nodes of each kind, and what they are made of. */
#define _GNU_SOURCE
#include <string.h>

#include "sim_graph_memory.h"

static CUresult add(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                    enum sim_node_type type, const union sim_node_params *params)
{
    uint64_t duration;
    if (node == NULL || graph == NULL || (count != 0 && dependencies == NULL))
        return CUDA_ERROR_INVALID_VALUE;
    if (type == NODE_KERNEL) {
        CUcontext context = params->kernel.ctx;
        CUresult result = context == NULL ? sim_current(&context) : CUDA_SUCCESS;
        if (result == CUDA_SUCCESS)
            result = sim_kernel_time(context, &params->kernel, &duration);
        if (result != CUDA_SUCCESS)
            return result;
    }
    for (size_t i = 0; i < count; i++)
        if (dependencies[i] == NULL || dependencies[i]->graph != graph)
            return CUDA_ERROR_INVALID_VALUE;
    *node = sim_graph_add(graph, type, params, dependencies, count);
    return *node != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUDA_KERNEL_NODE_PARAMS_v2 from_v1(const CUDA_KERNEL_NODE_PARAMS_v1 *old)
{
    CUDA_KERNEL_NODE_PARAMS_v2 kernel = {0};
    memcpy(&kernel, old, sizeof *old);
    return kernel;
}

CUresult cuGraphAddKernelNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                                 size_t count, const CUDA_KERNEL_NODE_PARAMS_v2 *kernel)
{
    if (kernel == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    const union sim_node_params params = {.kernel = *kernel};
    return add(node, graph, dependencies, count, NODE_KERNEL, &params);
}

CUresult cuGraphAddKernelNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                              size_t count, const CUDA_KERNEL_NODE_PARAMS_v1 *kernel)
{
    if (kernel == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    const CUDA_KERNEL_NODE_PARAMS_v2 whole = from_v1(kernel);
    return cuGraphAddKernelNode_v2(node, graph, dependencies, count, &whole);
}

CUresult cuGraphAddMemcpyNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                              size_t count, const CUDA_MEMCPY3D *copy, CUcontext context)
{
    (void)context;
    if (copy == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    const union sim_node_params params = {.memcpy = *copy};
    return add(node, graph, dependencies, count, NODE_MEMCPY, &params);
}

CUresult cuGraphAddMemsetNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                              size_t count, const CUDA_MEMSET_NODE_PARAMS_v2 *fill, CUcontext context)
{
    union sim_node_params params = {0};
    if (fill == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(&params.memset, fill, offsetof(CUDA_MEMSET_NODE_PARAMS_v2, ctx)); /* the caller's is v1 */
    params.memset.ctx = context;
    return add(node, graph, dependencies, count, NODE_MEMSET, &params);
}

CUresult cuGraphAddHostNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                            size_t count, const CUDA_HOST_NODE_PARAMS *host)
{
    if (host == NULL || host->fn == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    const union sim_node_params params = {.host = *host};
    return add(node, graph, dependencies, count, NODE_HOST, &params);
}

CUresult cuGraphAddChildGraphNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                                  size_t count, CUgraph child)
{
    if (child == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (sim_graph_has_memory(child))
        return CUDA_ERROR_NOT_SUPPORTED;
    const union sim_node_params params = {.child = child};
    return add(node, graph, dependencies, count, NODE_GRAPH, &params);
}

/* The graph itself becomes the child, and belongs to the node from now on. */
static CUresult add_moved_child(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                                size_t count, CUgraph child)
{
    const union sim_node_params params = {.child = child};
    if (child == NULL || child == graph)
        return CUDA_ERROR_INVALID_VALUE;
    const CUresult result = add(node, graph, dependencies, count, NODE_GRAPH, &params);
    if (result != CUDA_SUCCESS)
        return result;
    sim_graph_free((*node)->params.child);
    (*node)->params.child = child;
    return CUDA_SUCCESS;
}

CUresult cuGraphAddMemAllocNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                                size_t count, CUDA_MEM_ALLOC_NODE_PARAMS *wanted)
{
    const CUresult result = sim_graph_prepare_allocation(wanted);
    if (result != CUDA_SUCCESS)
        return result;
    const union sim_node_params params = {.allocation = *wanted};
    return add(node, graph, dependencies, count, NODE_MEM_ALLOC, &params);
}

CUresult cuGraphAddMemFreeNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                               size_t count, CUdeviceptr address)
{
    const union sim_node_params params = {.freed = address};
    return address != 0 ? add(node, graph, dependencies, count, NODE_MEM_FREE, &params)
                        : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphAddEmptyNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count)
{
    return add(node, graph, dependencies, count, NODE_EMPTY, NULL);
}

static CUresult add_event(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                          enum sim_node_type type, CUevent event)
{
    if (event == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    const union sim_node_params params = {.event = event};
    return add(node, graph, dependencies, count, type, &params);
}

CUresult cuGraphAddEventRecordNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                                   size_t count, CUevent event)
{
    return add_event(node, graph, dependencies, count, NODE_EVENT_RECORD, event);
}

CUresult cuGraphAddEventWaitNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                                 size_t count, CUevent event)
{
    return add_event(node, graph, dependencies, count, NODE_WAIT_EVENT, event);
}

/* What CUgraphNodeParams holds of a node of that type. */
static CUresult from_general(const CUgraphNodeParams *general, union sim_node_params *params)
{
    memset(params, 0, sizeof *params);
    switch (general->type) {
    case NODE_KERNEL: params->kernel = general->kernel; return CUDA_SUCCESS;
    case NODE_MEMCPY: params->memcpy = general->memcpy.copyParams; return CUDA_SUCCESS;
    case NODE_MEMSET: params->memset = general->memset; return CUDA_SUCCESS;
    case NODE_HOST: params->host = general->host; return CUDA_SUCCESS;
    case NODE_MEM_FREE: params->freed = general->freed; return CUDA_SUCCESS;
    case NODE_EMPTY: return CUDA_SUCCESS;
    case NODE_WAIT_EVENT:
    case NODE_EVENT_RECORD: params->event = general->event; return CUDA_SUCCESS;
    default: return CUDA_ERROR_NOT_SUPPORTED;
    }
}

CUresult cuGraphAddNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                        CUgraphNodeParams *general)
{
    union sim_node_params params;
    if (general == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (general->type == NODE_GRAPH)
        return (general->graph.ownership == 1 ? add_moved_child : cuGraphAddChildGraphNode)(
            node, graph, dependencies, count, general->graph.graph);
    if (general->type == NODE_MEM_ALLOC)
        return cuGraphAddMemAllocNode(node, graph, dependencies, count, &general->allocation);
    const CUresult result = from_general(general, &params);
    if (result != CUDA_SUCCESS)
        return result;
    return add(node, graph, dependencies, count, (enum sim_node_type)general->type, &params);
}

CUresult cuGraphAddNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies,
                           const CUgraphEdgeData *data, size_t count, CUgraphNodeParams *general)
{
    (void)data;
    return cuGraphAddNode(node, graph, dependencies, count, general);
}

CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v2 *kernel)
{
    if (node == NULL || kernel == NULL || node->type != NODE_KERNEL)
        return CUDA_ERROR_INVALID_VALUE;
    *kernel = node->params.kernel;
    return CUDA_SUCCESS;
}

CUresult cuGraphKernelNodeGetParams(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v1 *kernel)
{
    if (node == NULL || kernel == NULL || node->type != NODE_KERNEL)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(kernel, &node->params.kernel, sizeof *kernel);
    if (kernel->func == NULL)
        kernel->func = node->params.kernel.kern;
    return CUDA_SUCCESS;
}

CUresult cuGraphKernelNodeSetParams_v2(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v2 *kernel)
{
    if (node == NULL || kernel == NULL || node->type != NODE_KERNEL)
        return CUDA_ERROR_INVALID_VALUE;
    node->params.kernel = *kernel;
    return CUDA_SUCCESS;
}

CUresult cuGraphKernelNodeSetParams(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v1 *kernel)
{
    if (kernel == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    const CUDA_KERNEL_NODE_PARAMS_v2 whole = from_v1(kernel);
    return cuGraphKernelNodeSetParams_v2(node, &whole);
}

CUresult cuGraphChildGraphNodeGetGraph(CUgraphNode node, CUgraph *graph)
{
    if (node == NULL || graph == NULL || node->type != NODE_GRAPH)
        return CUDA_ERROR_INVALID_VALUE;
    *graph = node->params.child;
    return CUDA_SUCCESS;
}

CUresult cuGraphNodeSetParams(CUgraphNode node, CUgraphNodeParams *general)
{
    union sim_node_params params;
    if (node == NULL || general == NULL || (int)node->type != general->type || node->type == NODE_GRAPH ||
        node->type == NODE_MEM_ALLOC || node->type == NODE_MEM_FREE)
        return CUDA_ERROR_INVALID_VALUE;
    const CUresult result = from_general(general, &params);
    if (result == CUDA_SUCCESS)
        node->params = params;
    return result;
}
