/* sim_vmm.c: physical memory of the virtual memory management: made, passed on, let go.
 *
 * It is gone when the last handle and the last mapping are. Contents are shared memory, so that all
 * its mappings show the same; what may be exported is a file of its own, and its handle names it.
 */
#define _GNU_SOURCE
#include "sim_vmm.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define ALLOCATIONS 65536
#define MOST_BYTES (UINT64_C(1) << 46)
#define FILE_MAGIC UINT64_C(0x4d4d56494d415348) /* "HSAMIVMM" */
#define TRAILER_BYTES 4096                       /* of a file, behind the contents */

enum { PINNED = 1 };
enum { HANDLE_NONE = 0, HANDLE_POSIX_FD = 1 };
enum { LOCATION_DEVICE = 1, LOCATION_LAST = 4 };

struct trailer { /* what an importer has to know */
    uint64_t magic;
    uint64_t bytes;
    uint32_t gpu;
    uint32_t on_device;
    CUmemAllocationProp wanted;
};

static pthread_mutex_t vmm_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sim_allocation *allocations[ALLOCATIONS];
static size_t lowest; /* none is free below it */

void sim_vmm_lock(void)
{
    pthread_mutex_lock(&vmm_lock);
}

void sim_vmm_unlock(void)
{
    pthread_mutex_unlock(&vmm_lock);
}

void sim_vmm_after_fork(void)
{
    pthread_mutex_init(&vmm_lock, NULL);
    memset(allocations, 0, sizeof allocations);
    lowest = 0;
    sim_addresses_after_fork();
}

struct sim_allocation *sim_vmm_find(CUmemGenericAllocationHandle handle)
{
    struct sim_allocation *found = handle >= 1 && handle <= ALLOCATIONS ? allocations[handle - 1] : NULL;
    return found != NULL && found->handles != 0 ? found : NULL;
}

/* The lowest number is given out first: what was released is soon somebody else's. */
static CUmemGenericAllocationHandle add(const struct sim_allocation *content)
{
    struct sim_allocation *fresh = malloc(sizeof *fresh);
    while (lowest < ALLOCATIONS && allocations[lowest] != NULL)
        lowest++;
    if (fresh == NULL || lowest == ALLOCATIONS) {
        free(fresh);
        return 0;
    }
    *fresh = *content;
    allocations[lowest] = fresh;
    return fresh->handle = lowest + 1;
}

bool sim_vmm_store(struct sim_allocation *allocation)
{
    const int flags = allocation->file < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED;
    if (allocation->store != NULL)
        return true;
    void *map = mmap(NULL, allocation->bytes, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE,
                     allocation->file, 0);
    allocation->store = map != MAP_FAILED ? map : NULL;
    return allocation->store != NULL;
}

void sim_vmm_drop(struct sim_allocation *allocation)
{
    if (allocation->handles != 0 || allocation->maps != 0)
        return;
    if (allocation->on_device && !allocation->imported)
        sim_node_give(allocation->gpu, allocation->bytes);
    if (allocation->store != NULL)
        munmap(allocation->store, allocation->bytes);
    if (allocation->file >= 0)
        close(allocation->file);
    const size_t place = allocation->handle - 1;
    allocations[place] = NULL;
    lowest = place < lowest ? place : lowest;
    free(allocation);
}

static CUresult check_wanted(const CUmemAllocationProp *wanted, unsigned *gpu, bool *on_device)
{
    if (wanted == NULL || wanted->type != PINNED || wanted->location.type < LOCATION_DEVICE ||
        wanted->location.type > LOCATION_LAST)
        return CUDA_ERROR_INVALID_VALUE;
    if (wanted->requestedHandleTypes != HANDLE_NONE && wanted->requestedHandleTypes != HANDLE_POSIX_FD)
        return CUDA_ERROR_NOT_SUPPORTED;
    *on_device = wanted->location.type == LOCATION_DEVICE;
    const int found = *on_device ? sim_gpu_of(wanted->location.id) : 0;
    *gpu = (unsigned)found;
    return found < 0 ? CUDA_ERROR_INVALID_DEVICE : sim_check_gpu(*gpu);
}

static int make_file(const struct sim_allocation *allocation)
{
    const struct trailer trailer = {FILE_MAGIC, allocation->bytes, allocation->gpu, allocation->on_device,
                                    allocation->wanted};
    const int file = memfd_create("sim-gpu-memory", MFD_CLOEXEC);
    if (file >= 0 && ftruncate(file, (off_t)(allocation->bytes + TRAILER_BYTES)) == 0 &&
        pwrite(file, &trailer, sizeof trailer, (off_t)allocation->bytes) == sizeof trailer)
        return file;
    if (file >= 0)
        close(file);
    return -1;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *wanted,
                     uint64_t flags)
{
    struct sim_allocation fresh = {.bytes = bytes, .handles = 1, .file = -1};
    const CUresult result = check_wanted(wanted, &fresh.gpu, &fresh.on_device);
    if (result != CUDA_SUCCESS)
        return result;
    if (handle == NULL || bytes == 0 || bytes % SIM_BLOCK_BYTES != 0 || flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    sim_late_frees_run(NULL);
    if (bytes > MOST_BYTES || (fresh.on_device && !sim_node_take(fresh.gpu, bytes)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    fresh.wanted = *wanted;
    if (wanted->requestedHandleTypes == HANDLE_POSIX_FD)
        fresh.file = make_file(&fresh);
    sim_vmm_lock();
    const bool usable = fresh.file >= 0 || wanted->requestedHandleTypes == HANDLE_NONE;
    const CUmemGenericAllocationHandle given = usable ? add(&fresh) : 0;
    sim_vmm_unlock();
    if (given == 0) {
        if (fresh.file >= 0)
            close(fresh.file);
        if (fresh.on_device)
            sim_node_give(fresh.gpu, bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = given;
    return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
    sim_vmm_lock();
    struct sim_allocation *allocation = sim_vmm_find(handle);
    if (allocation != NULL) {
        allocation->handles--;
        sim_vmm_drop(allocation);
    }
    sim_vmm_unlock();
    return allocation != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *wanted, int option)
{
    unsigned gpu;
    bool on_device;
    const CUresult result = check_wanted(wanted, &gpu, &on_device);
    if (result != CUDA_SUCCESS)
        return result;
    if (bytes == NULL || option < 0 || option > 1)
        return CUDA_ERROR_INVALID_VALUE;
    *bytes = SIM_BLOCK_BYTES;
    return CUDA_SUCCESS;
}

CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *wanted,
                                                CUmemGenericAllocationHandle handle)
{
    sim_vmm_lock();
    const struct sim_allocation *allocation = wanted != NULL ? sim_vmm_find(handle) : NULL;
    if (allocation != NULL)
        *wanted = allocation->wanted;
    sim_vmm_unlock();
    return allocation != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle, int type,
                                      uint64_t flags)
{
    if (shareable == NULL || type != HANDLE_POSIX_FD || flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    sim_vmm_lock();
    const struct sim_allocation *allocation = sim_vmm_find(handle);
    const int file = allocation != NULL && allocation->file >= 0
                         ? fcntl(allocation->file, F_DUPFD_CLOEXEC, 0)
                         : -1;
    sim_vmm_unlock();
    if (file < 0)
        return CUDA_ERROR_INVALID_VALUE;
    *(int *)shareable = file;
    return CUDA_SUCCESS;
}

static bool read_trailer(int file, struct trailer *trailer)
{
    struct stat status;
    return fstat(file, &status) == 0 && status.st_size > TRAILER_BYTES &&
           pread(file, trailer, sizeof *trailer, status.st_size - TRAILER_BYTES) == sizeof *trailer &&
           trailer->magic == FILE_MAGIC && trailer->bytes == (uint64_t)status.st_size - TRAILER_BYTES;
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shareable, int type)
{
    struct trailer trailer;
    const int file = (int)(intptr_t)shareable;
    if (handle == NULL || type != HANDLE_POSIX_FD || !read_trailer(file, &trailer))
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_allocation fresh = {
        .wanted = trailer.wanted, .on_device = trailer.on_device != 0, .imported = true, .gpu = trailer.gpu,
        .bytes = trailer.bytes, .handles = 1, .file = fcntl(file, F_DUPFD_CLOEXEC, 0)};
    if (fresh.on_device && (fresh.wanted.location.id = sim_ordinal_of(trailer.gpu)) < 0) {
        close(fresh.file);
        return CUDA_ERROR_INVALID_DEVICE;
    }
    sim_vmm_lock();
    const CUmemGenericAllocationHandle given = fresh.file >= 0 ? add(&fresh) : 0;
    sim_vmm_unlock();
    if (given == 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *handle = given;
    return CUDA_SUCCESS;
}
