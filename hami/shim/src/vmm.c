/* vmm.c: virtual memory management. Physical memory counts from cuMemCreate on, until the last handle
 * and the last mapping of it are gone.
 *
 * A record lives in the table of handles while the driver knows the handle, and stays valid for the
 * calls that are under way with it. The driver may give a handle out again as soon as it is released,
 * before that call has returned: the newcomer's record then takes the place of the old one, which
 * those calls finish off.
 *
 * Memory of another process has no record here. Its holder is charged for what it maps of it, as the
 * one that made it is: which of them lets go first nobody can know.
 */
#include "vmm.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "hooks.h"
#include "keyed.h"
#include "limits.h"
#include "pools.h"
#include "shim.h"

struct record { /* by handle */
    struct hami_keyed by_handle;
    uint64_t bytes;
    unsigned device; /* region index */
    bool listed;     /* in the table */
    unsigned handles, maps, calls;
};

struct map { /* by address */
    struct hami_keyed by_address;
    uint64_t bytes;
    struct record *record; /* NULL: another process's, and charged by itself */
    int device;            /* then; HAMI_UNLISTED: nothing is charged */
    struct map *next;      /* of those that one call unmaps */
};

static struct hami_keyed_table records, maps;
static atomic_flag table_lock = ATOMIC_FLAG_INIT;

static void lock(void)
{
    for (int spins = 0; atomic_flag_test_and_set_explicit(&table_lock, memory_order_acquire); spins++)
        if (spins >= 64)
            sched_yield();
}

static void unlock(void)
{
    atomic_flag_clear_explicit(&table_lock, memory_order_release);
}

static void unlist(struct record *record)
{
    if (record->listed)
        hami_keyed_remove(&records, &record->by_handle);
    record->listed = false;
}

/* With the lock held: whether the record is done with. The caller discharges and frees it. One whose
 * handle was given out anew is, for the driver has forgotten it. */
static bool is_over(struct record *record)
{
    const bool over = record->calls == 0 && record->maps == 0 && (record->handles == 0 || !record->listed);
    if (over)
        unlist(record);
    return over;
}

static void finish_off(struct record *record)
{
    hami_limits_discharge(hami_region(), record->device, record->bytes);
    free(record);
}

/* A call with the handle begins. NULL: it is not of this process. */
static struct record *begin(CUmemGenericAllocationHandle handle)
{
    if (hami_start() != HAMI_ENFORCING)
        return NULL;
    lock();
    struct record *record = (struct record *)hami_keyed_find(&records, handle);
    if (record != NULL)
        record->calls++;
    unlock();
    return record;
}

/* It ends, and changed the number of holders by so much. */
static void end(struct record *record, int handles, int mapped)
{
    lock();
    record->handles += (unsigned)handles;
    record->maps += (unsigned)mapped;
    record->calls--;
    const bool over = is_over(record);
    unlock();
    if (over)
        finish_off(record);
}

static void list(struct record *record, CUmemGenericAllocationHandle handle)
{
    lock();
    struct record *stale = (struct record *)hami_keyed_find(&records, handle);
    if (stale != NULL)
        unlist(stale);
    const bool over = stale != NULL && is_over(stale);
    record->by_handle.key = handle;
    record->listed = true;
    hami_keyed_put(&records, &record->by_handle);
    unlock();
    if (over)
        finish_off(stale);
}

HAMI_EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes,
                                 const CUmemAllocationProp *wanted, unsigned long long flags)
{
    const enum hami_attachment attachment = hami_start();
    if (attachment == HAMI_INERT || wanted == NULL || wanted->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return HAMI_CUDA(cuMemCreate, handle, bytes, wanted, flags);
    const int device =
        attachment == HAMI_ENFORCING ? hami_device_of_ordinal(wanted->location.id) : HAMI_UNLISTED;
    struct record *record = device != HAMI_UNLISTED ? calloc(1, sizeof *record) : NULL;
    if (record == NULL || hami_charge((unsigned)device, bytes) != 0) {
        free(record);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    record->bytes = bytes;
    record->device = (unsigned)device;
    record->handles = 1;
    const CUresult result = HAMI_CUDA(cuMemCreate, handle, bytes, wanted, flags);
    if (result == CUDA_SUCCESS) {
        hami_limits_commit(hami_region(), record->device, bytes);
        list(record, *handle);
    } else {
        hami_limits_withdraw(hami_region(), record->device, bytes);
        free(record);
    }
    return result;
}

HAMI_EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
    struct record *record = begin(handle);
    const CUresult result = HAMI_CUDA(cuMemRelease, handle);
    if (record != NULL)
        end(record, result == CUDA_SUCCESS ? -1 : 0, 0);
    return result;
}

/* One reference more, if the handle is of this process. */
static CUresult retained(CUresult result, const CUmemGenericAllocationHandle *handle)
{
    struct record *record = result == CUDA_SUCCESS ? begin(*handle) : NULL;
    if (record != NULL)
        end(record, 1, 0);
    return result;
}

HAMI_EXPORT CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address)
{
    return retained(HAMI_CUDA(cuMemRetainAllocationHandle, handle, address), handle);
}

HAMI_EXPORT CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shareable,
                                                    int type)
{
    return retained(HAMI_CUDA(cuMemImportFromShareableHandle, handle, shareable, type), handle);
}

static void drop_map(struct map *map)
{
    if (map->record != NULL) {
        lock();
        map->record->calls++;
        unlock();
        end(map->record, 0, -1);
    } else if (map->device != HAMI_UNLISTED) {
        hami_limits_discharge(hami_region(), (unsigned)map->device, map->bytes);
    }
    free(map);
}

/* What the table still has at that address went away unseen. */
static void put_map(struct map *map)
{
    lock();
    struct hami_keyed *stale = hami_keyed_find(&maps, map->by_address.key);
    if (stale != NULL)
        hami_keyed_remove(&maps, stale);
    hami_keyed_put(&maps, &map->by_address);
    unlock();
    if (stale != NULL)
        drop_map((struct map *)stale);
}

/* Announce a mapping of another process's memory. */
static CUresult admit_stranger(struct map *map, CUmemGenericAllocationHandle handle)
{
    CUmemAllocationProp found = {.type = 0};
    map->device = HAMI_UNLISTED;
    if (HAMI_CUDA(cuMemGetAllocationPropertiesFromHandle, &found, handle) != CUDA_SUCCESS ||
        found.location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_SUCCESS;
    const int device =
        hami_start() == HAMI_ENFORCING ? hami_device_of_ordinal(found.location.id) : HAMI_UNLISTED;
    if (device == HAMI_UNLISTED || hami_charge((unsigned)device, map->bytes) != 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    map->device = device;
    return CUDA_SUCCESS;
}

static CUresult map_stranger(struct map *map, CUdeviceptr address, size_t bytes, size_t offset,
                             CUmemGenericAllocationHandle handle, unsigned long long flags)
{
    CUresult result = admit_stranger(map, handle);
    if (result != CUDA_SUCCESS)
        return result;
    result = HAMI_CUDA(cuMemMap, address, bytes, offset, handle, flags);
    if (map->device == HAMI_UNLISTED)
        return result;
    if (result == CUDA_SUCCESS)
        hami_limits_commit(hami_region(), (unsigned)map->device, bytes);
    else
        hami_limits_withdraw(hami_region(), (unsigned)map->device, bytes);
    return result;
}

HAMI_EXPORT CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset,
                              CUmemGenericAllocationHandle handle, unsigned long long flags)
{
    CUresult result;
    if (hami_start() == HAMI_INERT)
        return HAMI_CUDA(cuMemMap, address, bytes, offset, handle, flags);
    struct map *map = calloc(1, sizeof *map);
    if (map == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    map->by_address.key = address;
    map->bytes = bytes;
    map->record = begin(handle);
    if (map->record != NULL)
        result = HAMI_CUDA(cuMemMap, address, bytes, offset, handle, flags);
    else
        result = map_stranger(map, address, bytes, offset, handle, flags);
    if (result == CUDA_SUCCESS)
        put_map(map);
    if (map->record != NULL)
        end(map->record, 0, result == CUDA_SUCCESS);
    if (result != CUDA_SUCCESS)
        free(map);
    return result;
}

/* Take what is mapped in the range out of the table: another thread may map there before the driver's
 * call has returned. Whole mappings fill the range, else the driver refuses. */
static struct map *take_maps(CUdeviceptr address, size_t bytes)
{
    struct map *taken = NULL;
    lock();
    for (uint64_t at = 0; at < bytes;) {
        struct map *map = (struct map *)hami_keyed_find(&maps, address + at);
        if (map == NULL)
            break;
        hami_keyed_remove(&maps, &map->by_address);
        at += map->bytes;
        map->next = taken;
        taken = map;
    }
    unlock();
    return taken;
}

HAMI_EXPORT CUresult cuMemUnmap(CUdeviceptr address, size_t bytes)
{
    struct map *taken = hami_start() == HAMI_ENFORCING ? take_maps(address, bytes) : NULL;
    const CUresult result = HAMI_CUDA(cuMemUnmap, address, bytes);
    for (struct map *map = taken, *next; map != NULL; map = next) {
        next = map->next;
        if (result == CUDA_SUCCESS)
            drop_map(map);
        else
            put_map(map);
    }
    return result;
}

void hami_vmm_after_fork(void)
{
    /* What was in them stays mapped: another thread may have been amid a change. */
    records = (struct hami_keyed_table){.count = 0};
    maps = (struct hami_keyed_table){.count = 0};
    atomic_flag_clear(&table_lock);
}
