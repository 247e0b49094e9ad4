/* sim_graph.c: graphs as structures: nodes, edges, copies, order. */
#define _GNU_SOURCE
#include "sim_graph_memory.h"

#include <stdlib.h>
#include <string.h>

CUgraph sim_graph_new(void)
{
    return calloc(1, sizeof(struct sim_graph));
}

static void free_node(CUgraphNode node)
{
    if (node->type == NODE_GRAPH)
        sim_graph_free(node->params.child);
    free(node->dependencies);
    free(node);
}

void sim_graph_free(CUgraph graph)
{
    for (size_t i = 0; graph != NULL && i < graph->count; i++)
        free_node(graph->nodes[i]);
    if (graph != NULL)
        free(graph->nodes);
    free(graph);
}

bool sim_graph_depend(CUgraphNode node, CUgraphNode on)
{
    for (size_t i = 0; i < node->dependency_count; i++)
        if (node->dependencies[i] == on)
            return true;
    CUgraphNode *grown =
        realloc(node->dependencies, (node->dependency_count + 1) * sizeof *grown);
    if (grown == NULL)
        return false;
    node->dependencies = grown;
    node->dependencies[node->dependency_count++] = on;
    return true;
}

static bool make_room(CUgraph graph)
{
    if (graph->count < graph->capacity)
        return true;
    const size_t capacity = graph->capacity != 0 ? graph->capacity * 2 : 16;
    CUgraphNode *grown = realloc(graph->nodes, capacity * sizeof *grown);
    if (grown == NULL)
        return false;
    graph->nodes = grown;
    graph->capacity = capacity;
    return true;
}

CUgraphNode sim_graph_add(CUgraph graph, enum sim_node_type type, const union sim_node_params *params,
                          const CUgraphNode *dependencies, size_t count)
{
    CUgraphNode node = make_room(graph) ? calloc(1, sizeof *node) : NULL;
    bool complete = node != NULL;
    if (node == NULL)
        return NULL;
    node->graph = graph;
    node->type = type;
    cuCtxGetCurrent(&node->context);
    if (params != NULL)
        node->params = *params;
    if (type == NODE_GRAPH)
        complete = (node->params.child = sim_graph_copy(params->child)) != NULL;
    for (size_t i = 0; complete && i < count; i++)
        complete = sim_graph_depend(node, dependencies[i]);
    if (!complete) {
        free_node(node);
        return NULL;
    }
    return graph->nodes[graph->count++] = node;
}

static CUgraphNode find_copy(CUgraph copy, CUgraphNode original)
{
    for (size_t i = copy->count; i > 0; i--)
        if (copy->nodes[i - 1]->original == original)
            return copy->nodes[i - 1];
    return NULL;
}

CUgraph sim_graph_copy(CUgraph graph)
{
    CUgraph copy = sim_graph_sort(graph) ? sim_graph_new() : NULL;
    bool complete = copy != NULL;
    for (size_t i = 0; complete && i < graph->count; i++) {
        CUgraphNode from = graph->nodes[i];
        CUgraphNode to = sim_graph_add(copy, from->type, &from->params, NULL, 0);
        complete = to != NULL;
        if (!complete)
            break;
        to->original = from;
        to->context = from->context;
        to->disabled = from->disabled;
        for (size_t d = 0; complete && d < from->dependency_count; d++)
            complete = sim_graph_depend(to, find_copy(copy, from->dependencies[d]));
    }
    if (!complete) {
        sim_graph_free(copy);
        return NULL;
    }
    return copy;
}

void sim_graph_mark(CUgraphNode node)
{
    if (node->mark)
        return;
    node->mark = true;
    for (size_t i = 0; i < node->dependency_count; i++)
        sim_graph_mark(node->dependencies[i]);
}

static bool is_free(const struct sim_graph_node *node)
{
    for (size_t i = 0; i < node->dependency_count; i++)
        if (!node->dependencies[i]->mark)
            return false;
    return !node->mark;
}

bool sim_graph_sort(CUgraph graph)
{
    size_t done = 0;
    for (size_t i = 0; i < graph->count; i++)
        graph->nodes[i]->mark = false;
    while (done < graph->count) {
        size_t next = done;
        while (next < graph->count && !is_free(graph->nodes[next]))
            next++;
        if (next == graph->count)
            return false;
        CUgraphNode node = graph->nodes[next];
        memmove(&graph->nodes[done + 1], &graph->nodes[done], (next - done) * sizeof(CUgraphNode));
        graph->nodes[done++] = node;
        node->mark = true;
    }
    return true;
}

CUresult cuGraphCreate(CUgraph *graph, unsigned int flags)
{
    if (graph == NULL || flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    *graph = sim_graph_new();
    return *graph != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuGraphDestroy(CUgraph graph)
{
    if (graph == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    sim_graph_free(graph);
    return CUDA_SUCCESS;
}

CUresult cuGraphClone(CUgraph *copy, CUgraph graph)
{
    if (copy == NULL || graph == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (sim_graph_has_memory(graph)) /* an address cannot be that of two nodes */
        return CUDA_ERROR_NOT_SUPPORTED;
    *copy = sim_graph_copy(graph);
    return *copy != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuGraphNodeFindInClone(CUgraphNode *node, CUgraphNode original, CUgraph copy)
{
    if (node == NULL || original == NULL || copy == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *node = find_copy(copy, original);
    return *node != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphDestroyNode(CUgraphNode node)
{
    if (node == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    CUgraph graph = node->graph;
    size_t kept = 0;
    for (size_t i = 0; i < graph->count; i++) {
        CUgraphNode other = graph->nodes[i];
        size_t edges = 0;
        for (size_t d = 0; d < other->dependency_count; d++)
            if (other->dependencies[d] != node)
                other->dependencies[edges++] = other->dependencies[d];
        other->dependency_count = edges;
        if (other != node)
            graph->nodes[kept++] = other;
    }
    graph->count = kept;
    free_node(node);
    return CUDA_SUCCESS;
}

/* Give out a list the way the API does: with no place for it, only its length. */
static CUresult give(CUgraphNode *target, size_t *room, const CUgraphNode *nodes, size_t count)
{
    for (size_t i = 0; target != NULL && i < *room; i++)
        target[i] = i < count ? nodes[i] : NULL;
    if (target == NULL || *room > count)
        *room = count;
    return CUDA_SUCCESS;
}

CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count)
{
    return graph != NULL && count != NULL ? give(nodes, count, graph->nodes, graph->count)
                                          : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphGetRootNodes(CUgraph graph, CUgraphNode *nodes, size_t *count)
{
    size_t found = 0;
    if (graph == NULL || count == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    CUgraphNode *roots = malloc((graph->count + 1) * sizeof *roots);
    if (roots == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    for (size_t i = 0; i < graph->count; i++)
        if (graph->nodes[i]->dependency_count == 0)
            roots[found++] = graph->nodes[i];
    give(nodes, count, roots, found);
    free(roots);
    return CUDA_SUCCESS;
}

CUresult cuGraphGetEdges(CUgraph graph, CUgraphNode *from, CUgraphNode *to, size_t *count)
{
    size_t found = 0;
    if (graph == NULL || count == NULL || (from == NULL) != (to == NULL))
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < graph->count; i++)
        for (size_t d = 0; d < graph->nodes[i]->dependency_count; d++, found++)
            if (from != NULL && found < *count) {
                from[found] = graph->nodes[i]->dependencies[d];
                to[found] = graph->nodes[i];
            }
    if (from == NULL || *count > found)
        *count = found;
    return CUDA_SUCCESS;
}

CUresult cuGraphGetEdges_v2(CUgraph graph, CUgraphNode *from, CUgraphNode *to, CUgraphEdgeData *data,
                            size_t *count)
{
    const CUresult result = cuGraphGetEdges(graph, from, to, count);
    if (result == CUDA_SUCCESS && data != NULL && from != NULL)
        memset(data, 0, *count * sizeof *data);
    return result;
}

CUresult cuGraphNodeGetDependencies(CUgraphNode node, CUgraphNode *dependencies, size_t *count)
{
    return node != NULL && count != NULL
               ? give(dependencies, count, node->dependencies, node->dependency_count)
               : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphNodeGetDependencies_v2(CUgraphNode node, CUgraphNode *dependencies, CUgraphEdgeData *data,
                                       size_t *count)
{
    const CUresult result = cuGraphNodeGetDependencies(node, dependencies, count);
    if (result == CUDA_SUCCESS && data != NULL && dependencies != NULL)
        memset(data, 0, *count * sizeof *data);
    return result;
}

CUresult cuGraphAddDependencies(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to, size_t count)
{
    if (graph == NULL || (count != 0 && (from == NULL || to == NULL)))
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++)
        if (from[i]->graph != graph || to[i]->graph != graph || !sim_graph_depend(to[i], from[i]))
            return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

CUresult cuGraphAddDependencies_v2(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
                                   const CUgraphEdgeData *data, size_t count)
{
    (void)data;
    return cuGraphAddDependencies(graph, from, to, count);
}

CUresult cuGraphRemoveDependencies(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
                                   size_t count)
{
    if (graph == NULL || (count != 0 && (from == NULL || to == NULL)))
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        size_t kept = 0;
        for (size_t d = 0; d < to[i]->dependency_count; d++)
            if (to[i]->dependencies[d] != from[i])
                to[i]->dependencies[kept++] = to[i]->dependencies[d];
        to[i]->dependency_count = kept;
    }
    return CUDA_SUCCESS;
}

CUresult cuGraphRemoveDependencies_v2(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
                                      const CUgraphEdgeData *data, size_t count)
{
    (void)data;
    return cuGraphRemoveDependencies(graph, from, to, count);
}

CUresult cuGraphNodeGetType(CUgraphNode node, int *type)
{
    if (node == NULL || type == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *type = (int)node->type;
    return CUDA_SUCCESS;
}
