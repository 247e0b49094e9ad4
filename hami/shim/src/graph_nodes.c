/* graph_nodes.c: what the memory nodes of a graph add up to.
 *
 * The sum of the allocation nodes is the most that a graph can take. Graphs that were captured free
 * and allocate over and over, though, and a driver lets later nodes have the memory of earlier ones.
 * So the nodes are also gone through in an order in which they may run, and the most that is live at
 * once is noted: all there is to know of a chain, an estimate for others.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "graph_memory.h"
#include "hooks.h"

#define CHILD_DEPTH 8

enum { NODE_GRAPH = 4, NODE_MEM_ALLOC = 10, NODE_MEM_FREE = 11 };

struct walk { /* through a graph and its children */
    struct hami_graph_demands *demands;
    uint64_t live[HAMI_DEVICES]; /* beside demands->of */
    struct allocation {
        CUdeviceptr address;
        uint64_t bytes;
        unsigned index; /* into demands->of */
    } *allocations;
    size_t count, capacity;
};

static void note_allocation(struct walk *walk, CUdevice ordinal, CUdeviceptr address, uint64_t bytes)
{
    struct hami_graph_demands *demands = walk->demands;
    unsigned index = 0;
    while (index < demands->count && demands->of[index].ordinal != ordinal)
        index++;
    if (index == HAMI_DEVICES)
        return; /* more devices than a container can have */
    if (index == demands->count)
        demands->of[demands->count++] = (struct hami_graph_demand){.ordinal = ordinal};
    struct hami_graph_demand *demand = &demands->of[index];
    walk->live[index] += bytes;
    demand->sum += bytes;
    if (demand->peak < walk->live[index])
        demand->peak = walk->live[index];
    if (walk->count == walk->capacity) {
        const size_t capacity = walk->capacity != 0 ? walk->capacity * 2 : 16;
        struct allocation *grown = realloc(walk->allocations, capacity * sizeof *grown);
        if (grown == NULL)
            return; /* it is taken to live for ever */
        walk->allocations = grown;
        walk->capacity = capacity;
    }
    walk->allocations[walk->count++] = (struct allocation){address, bytes, index};
}

/* The newest one first: captured code frees what it has just allocated. */
static void note_free(struct walk *walk, CUdeviceptr address)
{
    for (size_t i = walk->count; i-- > 0;) {
        struct allocation *allocation = &walk->allocations[i];
        if (allocation->address != address)
            continue;
        walk->live[allocation->index] -= allocation->bytes;
        *allocation = walk->allocations[--walk->count];
        return;
    }
}

static bool walk_graph(struct walk *walk, CUgraph graph, int depth);

/* Returns whether the node has to do with memory. */
static bool visit(struct walk *walk, CUgraphNode node, int depth)
{
    CUDA_MEM_ALLOC_NODE_PARAMS wanted;
    CUgraph child = NULL;
    CUdeviceptr address = 0;
    int type = -1;
    if (HAMI_CUDA(cuGraphNodeGetType, node, &type) != CUDA_SUCCESS)
        return false;
    switch (type) {
    case NODE_MEM_ALLOC:
        if (HAMI_CUDA(cuGraphMemAllocNodeGetParams, node, &wanted) == CUDA_SUCCESS &&
            wanted.pool.location.type == CU_MEM_LOCATION_TYPE_DEVICE)
            note_allocation(walk, wanted.pool.location.id, wanted.address, wanted.bytes);
        return true;
    case NODE_MEM_FREE:
        if (HAMI_CUDA(cuGraphMemFreeNodeGetParams, node, &address) == CUDA_SUCCESS)
            note_free(walk, address);
        return true;
    case NODE_GRAPH:
        return depth < CHILD_DEPTH &&
               HAMI_CUDA(cuGraphChildGraphNodeGetGraph, node, &child) == CUDA_SUCCESS &&
               walk_graph(walk, child, depth + 1);
    default:
        return false;
    }
}

struct order { /* of a graph's nodes */
    size_t nodes, edges;
    CUgraphNode *node; /* sorted by address, then in an order in which they may run */
    CUgraphNode *from, *to;
};

static int compare(const void *left, const void *right)
{
    const uintptr_t a = (uintptr_t)*(CUgraphNode const *)left, b = (uintptr_t)*(CUgraphNode const *)right;
    return (a > b) - (a < b);
}

static size_t index_of(const struct order *order, CUgraphNode node)
{
    const CUgraphNode *found = bsearch(&node, order->node, order->nodes, sizeof node, compare);
    return found != NULL ? (size_t)(found - order->node) : order->nodes;
}

/* Sort edges by their origin, so that those of a node are together. */
static int compare_pairs(const void *left, const void *right)
{
    const size_t *a = left, *b = right;
    return (a[0] > b[0]) - (a[0] < b[0]);
}

/* Kahn's algorithm, depth first: what has just become ready goes next, as captured chains do. */
static void sort_nodes(struct order *order)
{
    const size_t nodes = order->nodes, edges = order->edges;
    size_t(*pairs)[2] = calloc(edges + 1, sizeof *pairs);
    size_t *waits = calloc(nodes + 1, sizeof *waits);  /* for so many others */
    size_t *first = calloc(nodes + 2, sizeof *first);  /* edge of a node */
    size_t *ready = calloc(nodes + 1, sizeof *ready);
    CUgraphNode *sorted = calloc(nodes + 1, sizeof *sorted);
    size_t depth = 0, done = 0;
    if (pairs != NULL && waits != NULL && first != NULL && ready != NULL && sorted != NULL) {
        qsort(order->node, nodes, sizeof *order->node, compare);
        for (size_t i = 0; i < edges; i++) {
            pairs[i][0] = index_of(order, order->from[i]);
            pairs[i][1] = index_of(order, order->to[i]);
            waits[pairs[i][1]]++;
            first[pairs[i][0] + 1]++;
        }
        qsort(pairs, edges, sizeof *pairs, compare_pairs);
        for (size_t i = 0; i < nodes; i++)
            first[i + 1] += first[i];
        for (size_t i = nodes; i-- > 0;)
            if (waits[i] == 0)
                ready[depth++] = i;
        while (depth > 0) {
            const size_t node = ready[--depth];
            sorted[done++] = order->node[node];
            for (size_t i = first[node]; i < first[node + 1]; i++)
                if (--waits[pairs[i][1]] == 0)
                    ready[depth++] = pairs[i][1];
        }
        if (done == nodes)
            memcpy(order->node, sorted, nodes * sizeof *sorted);
    }
    free(pairs), free(waits), free(first), free(ready), free(sorted);
}

static bool read_edges(struct order *order, CUgraph graph)
{
    if (HAMI_CUDA(cuGraphGetEdges, graph, NULL, NULL, &order->edges) != CUDA_SUCCESS)
        return false;
    order->from = calloc(order->edges + 1, sizeof *order->from);
    order->to = calloc(order->edges + 1, sizeof *order->to);
    return order->from != NULL && order->to != NULL &&
           HAMI_CUDA(cuGraphGetEdges, graph, order->from, order->to, &order->edges) == CUDA_SUCCESS;
}

static bool has_memory(const struct order *order)
{
    for (size_t i = 0; i < order->nodes; i++) {
        int type = -1;
        if (HAMI_CUDA(cuGraphNodeGetType, order->node[i], &type) == CUDA_SUCCESS &&
            (type == NODE_MEM_ALLOC || type == NODE_MEM_FREE || type == NODE_GRAPH))
            return true;
    }
    return false;
}

static bool walk_graph(struct walk *walk, CUgraph graph, int depth)
{
    struct order order = {.nodes = 0};
    bool memory = false;
    if (HAMI_CUDA(cuGraphGetNodes, graph, NULL, &order.nodes) != CUDA_SUCCESS || order.nodes == 0)
        return false;
    order.node = calloc(order.nodes, sizeof *order.node);
    if (order.node != NULL &&
        HAMI_CUDA(cuGraphGetNodes, graph, order.node, &order.nodes) == CUDA_SUCCESS &&
        has_memory(&order)) {
        if (read_edges(&order, graph))
            sort_nodes(&order);
        for (size_t i = 0; i < order.nodes; i++)
            memory |= visit(walk, order.node[i], depth);
    }
    free(order.node), free(order.from), free(order.to);
    return memory;
}

void hami_graph_demand(CUgraph graph, struct hami_graph_demands *demands)
{
    struct walk walk = {.demands = demands};
    demands->count = 0;
    walk_graph(&walk, graph, 0);
    free(walk.allocations);
}
