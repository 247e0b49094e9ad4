/* sim_graph_memory.c: the memory of graphs: a reserve on each GPU that grows when a graph is launched or
 * uploaded, and keeps what it has until it is trimmed.
 *
 * It grows by what the graph's nodes, one after another, have in use at most. The address of an
 * allocation is its node's for ever: it is not given to anything else, even when the graph is gone.
 */
#define _GNU_SOURCE
#include "sim_graph_memory.h"

#include <pthread.h>
#include <string.h>

#include "sim_memory.h"

#define STEP_BYTES (UINT64_C(32) << 20)

enum { LOCATION_DEVICE = 1, ALLOCATION_PINNED = 1 };
enum attribute { USED = 0, USED_HIGH = 1, RESERVED = 2, RESERVED_HIGH = 3, ATTRIBUTES };

static pthread_mutex_t reserves_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t reserves[SIM_GPUS][ATTRIBUTES];

void sim_graph_memory_after_fork(void)
{
    pthread_mutex_init(&reserves_lock, NULL);
    memset(reserves, 0, sizeof reserves);
}

static void raise_high(unsigned gpu)
{
    uint64_t *values = reserves[gpu];
    for (int kind = USED; kind <= RESERVED; kind += RESERVED - USED)
        if (values[kind + 1] < values[kind])
            values[kind + 1] = values[kind];
}

static bool grow_to(unsigned gpu, uint64_t used)
{
    const uint64_t reserved = reserves[gpu][RESERVED];
    const uint64_t wanted = sim_round_up(used, STEP_BYTES);
    if (wanted > reserved && !sim_node_take(gpu, wanted - reserved))
        return false;
    reserves[gpu][RESERVED] = wanted > reserved ? wanted : reserved;
    raise_high(gpu);
    return true;
}

void sim_graph_memory_drop_unused(unsigned gpu)
{
    pthread_mutex_lock(&reserves_lock);
    const uint64_t kept = sim_round_up(reserves[gpu][USED], STEP_BYTES);
    if (kept < reserves[gpu][RESERVED]) {
        sim_node_give(gpu, reserves[gpu][RESERVED] - kept);
        reserves[gpu][RESERVED] = kept;
    }
    pthread_mutex_unlock(&reserves_lock);
}

void sim_graph_memory_release(const struct hami_pointer *pointer)
{
    pthread_mutex_lock(&reserves_lock);
    reserves[pointer->device - SIM_GRAPH_DEVICE][USED] -= pointer->bytes;
    pthread_mutex_unlock(&reserves_lock);
}

static unsigned gpu_of(const CUDA_MEM_ALLOC_NODE_PARAMS *wanted)
{
    return (unsigned)sim_gpu_of(wanted->pool.location.id);
}

static uint64_t size_of(const CUDA_MEM_ALLOC_NODE_PARAMS *wanted)
{
    return sim_round_up(wanted->bytes, SIM_SMALL_BYTES);
}

bool sim_graph_has_memory(CUgraph graph)
{
    for (size_t i = 0; i < graph->count; i++) {
        const CUgraphNode node = graph->nodes[i];
        if (node->type == NODE_MEM_ALLOC || node->type == NODE_MEM_FREE ||
            (node->type == NODE_GRAPH && sim_graph_has_memory(node->params.child)))
            return true;
    }
    return false;
}

/* The allocation of that address within the nodes before the given one. */
static const CUDA_MEM_ALLOC_NODE_PARAMS *earlier(CUgraph graph, size_t before, CUdeviceptr address)
{
    for (size_t i = 0; i < before; i++)
        if (graph->nodes[i]->type == NODE_MEM_ALLOC &&
            graph->nodes[i]->params.allocation.address == address)
            return &graph->nodes[i]->params.allocation;
    return NULL;
}

/* Go through the graph without running it: *live is in use, *peak the most that ever is. */
static void foresee(CUgraph graph, int64_t live[SIM_GPUS], int64_t peak[SIM_GPUS])
{
    for (size_t i = 0; i < graph->count; i++) {
        const CUgraphNode node = graph->nodes[i];
        const CUDA_MEM_ALLOC_NODE_PARAMS *freed;
        if (node->type == NODE_GRAPH) {
            foresee(node->params.child, live, peak);
        } else if (node->type == NODE_MEM_FREE) {
            if ((freed = earlier(graph, i, node->params.freed)) != NULL)
                live[gpu_of(freed)] -= (int64_t)size_of(freed);
        } else if (node->type == NODE_MEM_ALLOC) {
            const unsigned gpu = gpu_of(&node->params.allocation);
            live[gpu] += (int64_t)size_of(&node->params.allocation);
            peak[gpu] = live[gpu] > peak[gpu] ? live[gpu] : peak[gpu];
        }
    }
}

/* What earlier launches left allocated: freed, or an error. */
static CUresult clear(CUgraph graph, bool auto_free)
{
    CUresult result = CUDA_SUCCESS;
    for (size_t i = 0; result == CUDA_SUCCESS && i < graph->count; i++) {
        const CUgraphNode node = graph->nodes[i];
        struct hami_pointer pointer, stale;
        if (node->type == NODE_GRAPH)
            result = clear(node->params.child, auto_free);
        if (node->type != NODE_MEM_ALLOC ||
            !hami_pointers_take(node->params.allocation.address, &pointer))
            continue;
        if (auto_free)
            sim_graph_memory_release(&pointer);
        else
            result = hami_pointers_put(&pointer, &stale) ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_OUT_OF_MEMORY;
    }
    return result;
}

CUresult sim_graph_memory_reserve(CUgraph graph, bool auto_free)
{
    int64_t live[SIM_GPUS] = {0}, peak[SIM_GPUS] = {0};
    if (!sim_graph_has_memory(graph))
        return CUDA_SUCCESS;
    CUresult result = clear(graph, auto_free);
    foresee(graph, live, peak);
    pthread_mutex_lock(&reserves_lock);
    for (unsigned gpu = 0; result == CUDA_SUCCESS && gpu < SIM_GPUS; gpu++)
        if (peak[gpu] > 0 && !grow_to(gpu, reserves[gpu][USED] + (uint64_t)peak[gpu]))
            result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_unlock(&reserves_lock);
    return result;
}

CUresult sim_graph_run_allocation(CUgraphNode node)
{
    const CUDA_MEM_ALLOC_NODE_PARAMS *wanted = &node->params.allocation;
    const unsigned gpu = gpu_of(wanted);
    struct hami_pointer stale;
    const struct hami_pointer pointer = {wanted->address, size_of(wanted), SIM_GRAPH_DEVICE + gpu,
                                         node->context};
    pthread_mutex_lock(&reserves_lock);
    reserves[gpu][USED] += pointer.bytes;
    const bool there = grow_to(gpu, reserves[gpu][USED]); /* as a rule it was reserved before */
    if (!there)
        reserves[gpu][USED] -= pointer.bytes;
    pthread_mutex_unlock(&reserves_lock);
    return there && hami_pointers_put(&pointer, &stale) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult sim_graph_run_free(CUgraphNode node)
{
    struct hami_pointer pointer;
    if (!hami_pointers_take(node->params.freed, &pointer))
        return CUDA_ERROR_INVALID_VALUE;
    sim_graph_memory_release(&pointer);
    return CUDA_SUCCESS;
}

CUresult sim_graph_prepare_allocation(CUDA_MEM_ALLOC_NODE_PARAMS *wanted)
{
    if (wanted == NULL || wanted->bytes == 0 || wanted->pool.allocation_type != ALLOCATION_PINNED ||
        wanted->pool.location.type != LOCATION_DEVICE)
        return CUDA_ERROR_INVALID_VALUE;
    if (sim_gpu_of(wanted->pool.location.id) < 0)
        return CUDA_ERROR_INVALID_DEVICE;
    wanted->address = wanted->bytes <= UINT64_C(1) << 46 ? sim_take_address(size_of(wanted)) : 0;
    return wanted->address != 0 ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult sim_graph_capture_allocation(struct sim_stream *stream, CUdeviceptr *address, size_t bytes,
                                      unsigned gpu)
{
    int ordinal = 0;
    while (sim_gpu_of(ordinal) != (int)gpu)
        ordinal++;
    union sim_node_params params = {.allocation = {
        .pool = {.allocation_type = ALLOCATION_PINNED, .location = {LOCATION_DEVICE, ordinal}},
        .bytes = bytes,
    }};
    CUresult result = sim_graph_prepare_allocation(&params.allocation);
    if (result == CUDA_SUCCESS)
        result = sim_capture_node(stream, NODE_MEM_ALLOC, &params);
    if (result == CUDA_SUCCESS)
        *address = params.allocation.address;
    return result;
}

CUresult cuGraphMemAllocNodeGetParams(CUgraphNode node, CUDA_MEM_ALLOC_NODE_PARAMS *wanted)
{
    if (node == NULL || wanted == NULL || node->type != NODE_MEM_ALLOC)
        return CUDA_ERROR_INVALID_VALUE;
    *wanted = node->params.allocation;
    return CUDA_SUCCESS;
}

CUresult cuGraphMemFreeNodeGetParams(CUgraphNode node, CUdeviceptr *address)
{
    if (node == NULL || address == NULL || node->type != NODE_MEM_FREE)
        return CUDA_ERROR_INVALID_VALUE;
    *address = node->params.freed;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetGraphMemAttribute(CUdevice device, int attribute, void *value)
{
    const int gpu = sim_gpu_of(device);
    if (gpu < 0)
        return CUDA_ERROR_INVALID_DEVICE;
    if (attribute < USED || attribute >= ATTRIBUTES || value == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&reserves_lock);
    *(uint64_t *)value = reserves[gpu][attribute];
    pthread_mutex_unlock(&reserves_lock);
    return CUDA_SUCCESS;
}

CUresult cuDeviceSetGraphMemAttribute(CUdevice device, int attribute, void *value)
{
    const int gpu = sim_gpu_of(device);
    if (gpu < 0)
        return CUDA_ERROR_INVALID_DEVICE;
    if ((attribute != USED_HIGH && attribute != RESERVED_HIGH) || value == NULL ||
        *(uint64_t *)value != 0)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&reserves_lock);
    reserves[gpu][attribute] = reserves[gpu][attribute - 1];
    pthread_mutex_unlock(&reserves_lock);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGraphMemTrim(CUdevice device)
{
    const int gpu = sim_gpu_of(device);
    if (gpu < 0)
        return CUDA_ERROR_INVALID_DEVICE;
    sim_graph_memory_drop_unused((unsigned)gpu);
    return CUDA_SUCCESS;
}
