/* sim_pool.c: memory pools and allocation in stream order.
 *
 * A pool takes physical memory in steps of 32 MiB, hands it out in multiples of 512 bytes, and keeps
 * what is freed until a synchronisation finds more than the release threshold unused. What is freed
 * can be had again at once, whatever the stream. Contents are kept as of all memory (sim_memory.c).
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>

#include "sim_memory.h"

#define STEP_BYTES (UINT64_C(32) << 20)

enum { ALLOCATION_PINNED = 1, HANDLE_POSIX_FD = 1 };
enum { LOCATION_DEVICE = 1, LOCATION_LAST = 4 };
enum { ACCESS_NONE = 0, ACCESS_READ_WRITE = 3 };

enum attribute {
    REUSE_FOLLOW_EVENTS = 1,
    REUSE_OPPORTUNISTIC = 2,
    REUSE_DEPENDENCIES = 3,
    RELEASE_THRESHOLD = 4,
    RESERVED = 5,
    RESERVED_HIGH = 6,
    USED = 7,
    USED_HIGH = 8,
    ATTRIBUTES
};

struct sim_pool {
    enum { ABSENT = 0, ALIVE, DYING /* destroyed, but not all of its memory is freed */ } state;
    bool on_device; /* else it is host memory and takes nothing of any GPU */
    unsigned gpu;
    uint64_t max_bytes; /* 0: no maximum */
    uint64_t values[ATTRIBUTES];
    size_t allocations;
    int access[SIM_GPUS];
};

static pthread_mutex_t pools_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sim_pool pools[SIM_POOLS];
static unsigned pools_high; /* pools at and above it were never used */
static CUmemoryPool default_pools[SIM_GPUS];
static CUmemoryPool current_pools[SIM_GPUS]; /* NULL: the default one */

void sim_pools_after_fork(void)
{
    pthread_mutex_init(&pools_lock, NULL);
    memset(pools, 0, sizeof pools);
    pools_high = 0;
    memset(default_pools, 0, sizeof default_pools);
    memset(current_pools, 0, sizeof current_pools);
}

static uint64_t larger(uint64_t left, uint64_t right)
{
    return left > right ? left : right;
}

static bool is_alive(CUmemoryPool pool)
{
    return pool >= pools && pool < pools + SIM_POOLS && pool->state == ALIVE;
}

static uint64_t step_bytes(void)
{
    const uint64_t asked = sim_node()->pool_step_bytes;
    return asked != 0 ? asked : STEP_BYTES;
}

/* Called with the lock held, as all below it that change a pool. */
static CUmemoryPool add_pool(const struct sim_pool *content)
{
    for (CUmemoryPool pool = pools; pool < pools + SIM_POOLS; pool++)
        if (pool->state == ABSENT) {
            if (pool == pools + pools_high)
                pools_high++;
            *pool = *content;
            pool->state = ALIVE;
            for (int reuse = REUSE_FOLLOW_EVENTS; reuse <= REUSE_DEPENDENCIES; reuse++)
                pool->values[reuse] = 1;
            if (pool->on_device)
                pool->access[pool->gpu] = ACCESS_READ_WRITE;
            return pool;
        }
    return NULL;
}

static CUmemoryPool default_pool(unsigned gpu)
{
    const struct sim_pool content = {.on_device = true, .gpu = gpu};
    if (default_pools[gpu] == NULL)
        default_pools[gpu] = add_pool(&content);
    return default_pools[gpu];
}

static CUmemoryPool current_pool(unsigned gpu)
{
    return current_pools[gpu] != NULL ? current_pools[gpu] : default_pool(gpu);
}

static bool grow_to(CUmemoryPool pool, uint64_t used)
{
    if (used <= pool->values[RESERVED])
        return true;
    const uint64_t reserved = pool->values[RESERVED];
    uint64_t wanted = reserved + sim_round_up(used - reserved, step_bytes());
    if (pool->max_bytes != 0 && wanted > pool->max_bytes)
        wanted = pool->max_bytes;
    if (wanted < used || (pool->on_device && !sim_node_take(pool->gpu, wanted - reserved)))
        return false;
    pool->values[RESERVED] = wanted;
    pool->values[RESERVED_HIGH] = larger(pool->values[RESERVED_HIGH], wanted);
    return true;
}

/* Let unused memory go, but keep so many bytes. */
static void trim(CUmemoryPool pool, uint64_t keep)
{
    if (larger(keep, pool->values[USED]) >= pool->values[RESERVED])
        return; /* and rounding up cannot overflow below */
    keep = sim_round_up(larger(keep, pool->values[USED]), step_bytes());
    if (keep >= pool->values[RESERVED])
        return;
    if (pool->on_device)
        sim_node_give(pool->gpu, pool->values[RESERVED] - keep);
    pool->values[RESERVED] = keep;
}

static void bury_if_empty(CUmemoryPool pool)
{
    if (pool->state != DYING || pool->allocations > 0)
        return;
    trim(pool, 0);
    pool->state = ABSENT;
}

void sim_pools_synchronized(void)
{
    sim_late_frees_run(NULL);
    pthread_mutex_lock(&pools_lock);
    for (CUmemoryPool pool = pools; pool < pools + pools_high; pool++)
        if (pool->state != ABSENT)
            trim(pool, pool->values[RELEASE_THRESHOLD]);
    pthread_mutex_unlock(&pools_lock);
}

void sim_pools_drop_unused(unsigned gpu)
{
    pthread_mutex_lock(&pools_lock);
    for (CUmemoryPool pool = pools; pool < pools + pools_high; pool++)
        if (pool->state != ABSENT && pool->on_device && pool->gpu == gpu)
            trim(pool, 0);
    pthread_mutex_unlock(&pools_lock);
}

void sim_pool_release(const struct hami_pointer *pointer)
{
    CUmemoryPool pool = &pools[pointer->device - SIM_POOL_DEVICE];
    sim_give_address(pointer->address, pointer->bytes);
    pthread_mutex_lock(&pools_lock);
    pool->values[USED] -= pointer->bytes;
    pool->allocations--;
    bury_if_empty(pool);
    pthread_mutex_unlock(&pools_lock);
}

static CUresult take(CUmemoryPool pool, uint64_t bytes)
{
    if (!grow_to(pool, pool->values[USED] + bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    pool->values[USED] += bytes;
    pool->values[USED_HIGH] = larger(pool->values[USED_HIGH], pool->values[USED]);
    pool->allocations++;
    return CUDA_SUCCESS;
}

bool sim_pool_device(CUmemoryPool pool, CUcontext context, unsigned *gpu)
{
    pthread_mutex_lock(&pools_lock);
    if (pool == NULL)
        pool = current_pool(context->gpu);
    const bool valid = pool != NULL && is_alive(pool) && pool->on_device;
    if (valid)
        *gpu = pool->gpu;
    pthread_mutex_unlock(&pools_lock);
    return valid;
}

CUresult sim_pool_allocate(CUdeviceptr *address, size_t bytes, CUmemoryPool pool, CUcontext context)
{
    struct hami_pointer stale;
    const uint64_t size = sim_round_up(bytes, SIM_SMALL_BYTES);
    if (address == NULL || bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (bytes > UINT64_C(1) << 46)
        return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&pools_lock);
    if (pool == NULL)
        pool = current_pool(context->gpu);
    const CUresult result = is_alive(pool) ? take(pool, size) : CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_unlock(&pools_lock);
    if (result != CUDA_SUCCESS)
        return result;
    struct hami_pointer pointer = {sim_take_address(size), size,
                                   SIM_POOL_DEVICE + (unsigned)(pool - pools), context};
    if (pointer.address == 0 || !hami_pointers_put(&pointer, &stale)) {
        sim_pool_release(&pointer);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *address = pointer.address;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device)
{
    const int gpu = sim_gpu_of(device);
    if (gpu < 0)
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&pools_lock);
    *pool = default_pool((unsigned)gpu);
    pthread_mutex_unlock(&pools_lock);
    return *pool != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice device)
{
    const int gpu = sim_gpu_of(device);
    if (gpu < 0)
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&pools_lock);
    *pool = current_pool((unsigned)gpu);
    pthread_mutex_unlock(&pools_lock);
    return *pool != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuDeviceSetMemPool(CUdevice device, CUmemoryPool pool)
{
    const int gpu = sim_gpu_of(device);
    if (gpu < 0)
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&pools_lock);
    const bool fits = is_alive(pool) && pool->on_device && pool->gpu == (unsigned)gpu;
    if (fits)
        current_pools[gpu] = pool;
    pthread_mutex_unlock(&pools_lock);
    return fits ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *wanted)
{
    if (pool == NULL || wanted == NULL || wanted->allocation_type != ALLOCATION_PINNED ||
        wanted->handle_types > HANDLE_POSIX_FD || wanted->location.type < LOCATION_DEVICE ||
        wanted->location.type > LOCATION_LAST)
        return CUDA_ERROR_INVALID_VALUE;
    _Static_assert(sizeof *wanted == 88, "the driver's layout");
    const bool on_device = wanted->location.type == LOCATION_DEVICE;
    const int gpu = on_device ? sim_gpu_of(wanted->location.id) : 0;
    if (gpu < 0)
        return CUDA_ERROR_INVALID_DEVICE;
    const struct sim_pool content = {
        .on_device = on_device, .gpu = (unsigned)gpu, .max_bytes = wanted->max_bytes};
    pthread_mutex_lock(&pools_lock);
    *pool = add_pool(&content);
    pthread_mutex_unlock(&pools_lock);
    return *pool != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* What is not yet freed lives on, and its memory with it. */
CUresult cuMemPoolDestroy(CUmemoryPool pool)
{
    pthread_mutex_lock(&pools_lock);
    const bool valid = is_alive(pool) && pool != default_pools[pool->gpu];
    if (valid) {
        for (unsigned gpu = 0; gpu < SIM_GPUS; gpu++)
            if (current_pools[gpu] == pool)
                current_pools[gpu] = NULL;
        pool->state = DYING;
        pool->values[RELEASE_THRESHOLD] = 0;
        trim(pool, 0);
        bury_if_empty(pool);
    }
    pthread_mutex_unlock(&pools_lock);
    return valid ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t keep)
{
    pthread_mutex_lock(&pools_lock);
    const bool valid = is_alive(pool);
    if (valid)
        trim(pool, keep);
    pthread_mutex_unlock(&pools_lock);
    return valid ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult set_attribute(CUmemoryPool pool, int attribute, const void *value)
{
    switch (attribute) {
    case REUSE_FOLLOW_EVENTS:
    case REUSE_OPPORTUNISTIC:
    case REUSE_DEPENDENCIES:
        pool->values[attribute] = *(const int *)value != 0;
        return CUDA_SUCCESS;
    case RELEASE_THRESHOLD:
        pool->values[attribute] = *(const uint64_t *)value;
        return CUDA_SUCCESS;
    case RESERVED_HIGH:
    case USED_HIGH: /* can only be set back to what is */
        if (*(const uint64_t *)value != 0)
            return CUDA_ERROR_INVALID_VALUE;
        pool->values[attribute] = pool->values[attribute == USED_HIGH ? USED : RESERVED];
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

static CUresult get_attribute(const struct sim_pool *pool, int attribute, void *value)
{
    if (attribute < REUSE_FOLLOW_EVENTS || attribute >= ATTRIBUTES)
        return CUDA_ERROR_INVALID_VALUE;
    if (attribute < RELEASE_THRESHOLD)
        *(int *)value = (int)pool->values[attribute];
    else
        *(uint64_t *)value = pool->values[attribute];
    return CUDA_SUCCESS;
}

CUresult cuMemPoolSetAttribute(CUmemoryPool pool, int attribute, void *value)
{
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&pools_lock);
    if (is_alive(pool) && value != NULL)
        result = set_attribute(pool, attribute, value);
    pthread_mutex_unlock(&pools_lock);
    return result;
}

CUresult cuMemPoolGetAttribute(CUmemoryPool pool, int attribute, void *value)
{
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&pools_lock);
    if (is_alive(pool) && value != NULL)
        result = get_attribute(pool, attribute, value);
    pthread_mutex_unlock(&pools_lock);
    return result;
}

static bool can_be_set(const struct sim_pool *pool, const CUmemAccessDesc *wanted)
{
    const int gpu = wanted->location.type == LOCATION_DEVICE ? sim_gpu_of(wanted->location.id) : -1;
    const bool own = pool->on_device && pool->gpu == (unsigned)gpu;
    return gpu >= 0 && (wanted->flags == ACCESS_READ_WRITE || (wanted->flags == ACCESS_NONE && !own));
}

CUresult cuMemPoolSetAccess(CUmemoryPool pool, const CUmemAccessDesc *map, size_t count)
{
    pthread_mutex_lock(&pools_lock);
    bool valid = is_alive(pool) && (map != NULL || count == 0);
    for (size_t i = 0; valid && i < count; i++)
        valid = can_be_set(pool, &map[i]);
    for (size_t i = 0; valid && i < count; i++)
        pool->access[sim_gpu_of(map[i].location.id)] = map[i].flags;
    pthread_mutex_unlock(&pools_lock);
    return valid ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemPoolGetAccess(int *flags, CUmemoryPool pool, CUmemLocation *location)
{
    const bool device = location != NULL && location->type == LOCATION_DEVICE;
    const int gpu = device ? sim_gpu_of(location->id) : -1;
    pthread_mutex_lock(&pools_lock);
    const bool valid = is_alive(pool) && gpu >= 0 && flags != NULL;
    if (valid)
        *flags = pool->access[gpu];
    pthread_mutex_unlock(&pools_lock);
    return valid ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
