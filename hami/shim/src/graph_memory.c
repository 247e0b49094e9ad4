/* graph_memory.c: graphs that allocate. The driver keeps their memory in a reserve of each device, which
 * grows when such a graph is uploaded or launched; it is charged as a pool is.
 */
#include "graph_memory.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#include "hooks.h"
#include "shim.h"

#define ORDINALS 64
#define BUCKETS 64

struct executable {
    struct executable *next;
    CUgraphExec handle;
    struct hami_graph_demands demands;
    uint64_t reserved[HAMI_DEVICES]; /* after its last launch; 0: there was none */
};

_Atomic int hami_graphs_with_memory;
static struct executable *table[BUCKETS];
static atomic_flag table_lock = ATOMIC_FLAG_INIT;
static const char keys[ORDINALS]; /* handle of a device's reserve: the address of its entry */

static void lock(void)
{
    while (atomic_flag_test_and_set_explicit(&table_lock, memory_order_acquire))
        sched_yield();
}

static void unlock(void)
{
    atomic_flag_clear_explicit(&table_lock, memory_order_release);
}

static CUdevice ordinal_of(const void *handle)
{
    return (CUdevice)((const char *)handle - keys);
}

static bool read_reserved(const void *handle, uint64_t *bytes)
{
    return HAMI_CUDA(cuDeviceGetGraphMemAttribute, ordinal_of(handle),
                     CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, bytes) == CUDA_SUCCESS;
}

static bool read_used(const void *handle, uint64_t *bytes)
{
    return HAMI_CUDA(cuDeviceGetGraphMemAttribute, ordinal_of(handle), CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT,
                     bytes) == CUDA_SUCCESS;
}

static void trim_reserve(const void *handle)
{
    HAMI_CUDA(cuDeviceGraphMemTrim, ordinal_of(handle));
}

static const struct hami_pool_kind reserve_kind = {read_reserved, read_used, trim_reserve};

static struct hami_pool *reserve_of(CUdevice ordinal)
{
    if (ordinal < 0 || ordinal >= ORDINALS)
        return NULL;
    struct hami_pool *pool = hami_pool_find(&keys[ordinal]);
    return pool != NULL ? pool
                        : hami_pool_add(&keys[ordinal], &reserve_kind, hami_device_of_ordinal(ordinal),
                                        true, 0);
}

static struct executable **place_of(CUgraphExec handle)
{
    struct executable **place = &table[((uintptr_t)handle >> 4) % BUCKETS];
    while (*place != NULL && (*place)->handle != handle)
        place = &(*place)->next;
    return place;
}

/* Take the entry out, or NULL. */
static struct executable *take(CUgraphExec handle)
{
    lock();
    struct executable **place = place_of(handle);
    struct executable *found = *place;
    if (found != NULL)
        *place = found->next;
    unlock();
    if (found != NULL)
        atomic_fetch_sub(&hami_graphs_with_memory, 1);
    return found;
}

static void put(struct executable *executable)
{
    lock();
    struct executable **place = &table[((uintptr_t)executable->handle >> 4) % BUCKETS];
    executable->next = *place;
    *place = executable;
    unlock();
    atomic_fetch_add(&hami_graphs_with_memory, 1);
}

static bool look_up(CUgraphExec handle, struct executable *copy)
{
    lock();
    const struct executable *found = *place_of(handle);
    if (found != NULL)
        *copy = *found;
    unlock();
    return found != NULL;
}

/* Announce a graph's demands. `reserved`: what each device's reserve came to when it was last launched. */
static CUresult admit(const struct hami_graph_demands *demands, const uint64_t *reserved,
                      struct hami_graph_growth *growth)
{
    growth->count = 0;
    for (unsigned i = 0; i < demands->count; i++) {
        const struct hami_graph_demand *demand = &demands->of[i];
        struct hami_pool *pool = reserve_of(demand->ordinal);
        const bool again = reserved[i] != 0 && pool != NULL && hami_pool_charged(pool) >= reserved[i];
        if (pool == NULL || hami_pool_admit_likely(pool, demand->sum, again ? 0 : demand->peak,
                                                   &growth->of[growth->count]) != 0) {
            hami_graph_memory_settle(growth, CUDA_ERROR_OUT_OF_MEMORY);
            growth->count = 0;
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        growth->count++;
    }
    return CUDA_SUCCESS;
}

CUresult hami_graph_memory_admit_now(CUgraphExec exec, struct hami_graph_growth *growth)
{
    struct executable executable;
    growth->exec = exec;
    if (!look_up(exec, &executable))
        return CUDA_SUCCESS;
    if (hami_start() == HAMI_REFUSING)
        return CUDA_ERROR_OUT_OF_MEMORY;
    return admit(&executable.demands, executable.reserved, growth);
}

void hami_graph_memory_settle_now(const struct hami_graph_growth *growth, CUresult result)
{
    uint64_t reserved[HAMI_DEVICES] = {0};
    for (unsigned i = 0; i < growth->count; i++) {
        if (hami_pool_settle(&growth->of[i]) != 0)
            hami_pool_measure(growth->of[i].pool);
        reserved[i] = hami_pool_charged(growth->of[i].pool);
    }
    if (result != CUDA_SUCCESS)
        return;
    lock();
    struct executable *executable = growth->exec != NULL ? *place_of(growth->exec) : NULL;
    for (unsigned i = 0; executable != NULL && i < executable->demands.count; i++)
        executable->reserved[i] = reserved[i];
    unlock();
}

/* Around the driver's instantiation. Most graphs have no memory nodes: `demands.count` is 0 then. */
struct instantiation {
    struct hami_graph_demands demands;
    struct hami_graph_growth growth;
};

/* Drivers take the memory at the first launch; should one do so now already, it is announced if it
 * fits. `upload`: it will do so now. */
static CUresult begin(struct instantiation *instantiation, CUgraph graph, bool upload)
{
    const uint64_t reserved[HAMI_DEVICES] = {0};
    instantiation->growth = (struct hami_graph_growth){.count = 0};
    instantiation->demands.count = 0;
    if (hami_start() == HAMI_INERT || graph == NULL)
        return CUDA_SUCCESS;
    hami_graph_demand(graph, &instantiation->demands);
    if (hami_start() == HAMI_REFUSING)
        return upload && instantiation->demands.count != 0 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
    const CUresult result = admit(&instantiation->demands, reserved, &instantiation->growth);
    return upload ? result : CUDA_SUCCESS;
}

static CUresult finish(struct instantiation *instantiation, CUresult result, const CUgraphExec *handle)
{
    hami_graph_memory_settle(&instantiation->growth, result);
    if (result != CUDA_SUCCESS || instantiation->demands.count == 0)
        return result;
    struct executable *executable = calloc(1, sizeof *executable);
    if (executable == NULL) { /* unknown it would be launched uncharged */
        HAMI_CUDA(cuGraphExecDestroy, *handle);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    free(take(*handle)); /* one that went away unseen */
    executable->handle = *handle;
    executable->demands = instantiation->demands;
    put(executable);
    return CUDA_SUCCESS;
}

#define INSTANTIATE(graph, upload, handle, call)                                                   \
    do {                                                                                           \
        struct instantiation instantiation;                                                        \
        const CUresult refusal = begin(&instantiation, graph, upload);                             \
        return refusal != CUDA_SUCCESS ? refusal : finish(&instantiation, call, handle);           \
    } while (0)

HAMI_EXPORT CUresult cuGraphInstantiate(CUgraphExec *handle, CUgraph graph, CUgraphNode *culprit,
                                        char *log, size_t log_bytes)
{
    INSTANTIATE(graph, false, handle,
                HAMI_CUDA(cuGraphInstantiate, handle, graph, culprit, log, log_bytes));
}

HAMI_EXPORT CUresult cuGraphInstantiate_v2(CUgraphExec *handle, CUgraph graph, CUgraphNode *culprit,
                                           char *log, size_t log_bytes)
{
    INSTANTIATE(graph, false, handle,
                HAMI_CUDA(cuGraphInstantiate_v2, handle, graph, culprit, log, log_bytes));
}

HAMI_EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec *handle, CUgraph graph,
                                                 unsigned long long flags)
{
    INSTANTIATE(graph, (flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD) != 0, handle,
                HAMI_CUDA(cuGraphInstantiateWithFlags, handle, graph, flags));
}

static bool uploads(const CUDA_GRAPH_INSTANTIATE_PARAMS *how)
{
    return how != NULL && (how->flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD) != 0;
}

HAMI_EXPORT CUresult cuGraphInstantiateWithParams(CUgraphExec *handle, CUgraph graph,
                                                  CUDA_GRAPH_INSTANTIATE_PARAMS *how)
{
    INSTANTIATE(graph, uploads(how), handle, HAMI_CUDA(cuGraphInstantiateWithParams, handle, graph, how));
}

HAMI_EXPORT CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec *handle, CUgraph graph,
                                                       CUDA_GRAPH_INSTANTIATE_PARAMS *how)
{
    INSTANTIATE(graph, uploads(how), handle,
                HAMI_CUDA(cuGraphInstantiateWithParams_ptsz, handle, graph, how));
}

HAMI_EXPORT CUresult cuGraphExecDestroy(CUgraphExec handle)
{
    struct executable *executable =
        atomic_load(&hami_graphs_with_memory) != 0 ? take(handle) : NULL;
    const CUresult result = HAMI_CUDA(cuGraphExecDestroy, handle);
    if (executable == NULL)
        return result;
    if (result != CUDA_SUCCESS)
        put(executable);
    else
        free(executable);
    hami_pools_measure();
    return result;
}

HAMI_EXPORT CUresult cuGraphUpload(CUgraphExec handle, CUstream stream)
{
    struct hami_graph_growth growth;
    CUresult result = hami_graph_memory_admit(handle, &growth);
    if (result != CUDA_SUCCESS)
        return result;
    result = HAMI_CUDA(cuGraphUpload, handle, stream);
    hami_graph_memory_settle(&growth, result);
    return result;
}

HAMI_EXPORT CUresult cuGraphUpload_ptsz(CUgraphExec handle, CUstream stream)
{
    struct hami_graph_growth growth;
    CUresult result = hami_graph_memory_admit(handle, &growth);
    if (result != CUDA_SUCCESS)
        return result;
    result = HAMI_CUDA(cuGraphUpload_ptsz, handle, stream);
    hami_graph_memory_settle(&growth, result);
    return result;
}

HAMI_EXPORT CUresult cuDeviceGraphMemTrim(CUdevice ordinal)
{
    const CUresult result = HAMI_CUDA(cuDeviceGraphMemTrim, ordinal);
    if (atomic_load(&hami_pools_known) != 0)
        hami_pools_measure();
    return result;
}

void hami_graph_memory_after_fork(void)
{
    for (int i = 0; i < BUCKETS; i++)
        table[i] = NULL;
    atomic_store(&hami_graphs_with_memory, 0);
    atomic_flag_clear(&table_lock);
}
