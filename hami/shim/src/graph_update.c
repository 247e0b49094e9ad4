/* graph_update.c: an executable graph that was changed is measured anew. */
#include "cost.h"
#include "hooks.h"

static CUresult changed(CUgraphExec graph, CUresult result)
{
    if (result == CUDA_SUCCESS)
        hami_cost_relearn(graph);
    return result;
}

HAMI_EXPORT CUresult cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode *node, int *status)
{
    return changed(exec, HAMI_CUDA(cuGraphExecUpdate, exec, graph, node, status));
}

HAMI_EXPORT CUresult cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph, void *status)
{
    return changed(exec, HAMI_CUDA(cuGraphExecUpdate_v2, exec, graph, status));
}

HAMI_EXPORT CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node, const void *parameters)
{
    return changed(exec, HAMI_CUDA(cuGraphExecKernelNodeSetParams, exec, node, parameters));
}

HAMI_EXPORT CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                                       const void *parameters)
{
    return changed(exec, HAMI_CUDA(cuGraphExecKernelNodeSetParams_v2, exec, node, parameters));
}

HAMI_EXPORT CUresult cuGraphExecChildGraphNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraph child)
{
    return changed(exec, HAMI_CUDA(cuGraphExecChildGraphNodeSetParams, exec, node, child));
}

HAMI_EXPORT CUresult cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, void *parameters)
{
    return changed(exec, HAMI_CUDA(cuGraphExecNodeSetParams, exec, node, parameters));
}

HAMI_EXPORT CUresult cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned int enabled)
{
    return changed(exec, HAMI_CUDA(cuGraphNodeSetEnabled, exec, node, enabled));
}
