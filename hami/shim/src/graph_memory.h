/* graph_memory.h: what the memory nodes of a graph may take when it is launched.
 *
 *     struct hami_graph_growth growth;
 *     CUresult result = hami_graph_memory_admit(exec, &growth);
 *     if (result != CUDA_SUCCESS)
 *         return result;
 *     result = the driver's cuGraphLaunch
 *     hami_graph_memory_settle(&growth, result);
 */
#ifndef HAMI_GRAPH_MEMORY_H
#define HAMI_GRAPH_MEMORY_H

#include <stdatomic.h>

#include "driver.h"
#include "pools.h"
#include "region.h"

struct hami_graph_demand { /* of one graph on one device */
    CUdevice ordinal;
    uint64_t sum;  /* of all its allocation nodes: it never takes more */
    uint64_t peak; /* of what is live at once, where its nodes run one after another */
};

struct hami_graph_demands {
    unsigned count;
    struct hami_graph_demand of[HAMI_DEVICES];
};

/* What a graph's memory nodes, and those of its child graphs, ask for (graph_nodes.c). */
void hami_graph_demand(CUgraph graph, struct hami_graph_demands *demands);

struct hami_graph_growth {
    unsigned count;
    struct hami_growth of[HAMI_DEVICES];
    CUgraphExec exec;
};

extern _Atomic int hami_graphs_with_memory; /* 0 is the usual case */

static inline bool hami_graph_memory_is_used(void)
{
    return __builtin_expect(atomic_load_explicit(&hami_graphs_with_memory, memory_order_relaxed) != 0, 0);
}

CUresult hami_graph_memory_admit_now(CUgraphExec exec, struct hami_graph_growth *growth);
void hami_graph_memory_settle_now(const struct hami_graph_growth *growth, CUresult result);

/* Announce what a launch or upload may take. Not CUDA_SUCCESS: give that to the program. */
static inline CUresult hami_graph_memory_admit(CUgraphExec exec, struct hami_graph_growth *growth)
{
    growth->count = 0;
    return hami_graph_memory_is_used() ? hami_graph_memory_admit_now(exec, growth) : CUDA_SUCCESS;
}

/* After the driver's call, whatever came of it. A launch cannot be taken back: it is charged in full. */
static inline void hami_graph_memory_settle(const struct hami_graph_growth *growth, CUresult result)
{
    if (__builtin_expect(growth->count != 0, 0))
        hami_graph_memory_settle_now(growth, result);
}

/* After fork, in the child: forget everything. */
void hami_graph_memory_after_fork(void);

#endif
