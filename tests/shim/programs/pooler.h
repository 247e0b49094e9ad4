/* pooler.h: the driver's functions that pooler.c calls, and how it finds them. */
#ifndef POOLER_H
#define POOLER_H

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    int type, id;
} location;
typedef struct {
    int allocation_type, handle_types;
    location location;
    void *security;
    size_t max_bytes;
    unsigned char reserved[56];
} pool_properties;

typedef struct {
    pool_properties pool;
    const void *access;
    size_t access_count;
    size_t bytes;
    uint64_t address;
} allocation_node;
typedef struct {
    int type;
    int reserved0[3];
    union {
        long long reserved1[29];
        struct {
            void *graph;
            int ownership;
        } child;
    };
    long long reserved2;
} node_parameters;
typedef struct {
    uint64_t flags;
    void *stream, *culprit;
    int result;
} instantiation;

#define FUNCTIONS(X)                                                                               \
    X(cuInit, cuInit, 2000, (unsigned))                                                            \
    X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, 7000, (void **, int))                    \
    X(cuDevicePrimaryCtxReset_v2, cuDevicePrimaryCtxReset, 11000, (int))                           \
    X(cuCtxSetCurrent, cuCtxSetCurrent, 4000, (void *))                                            \
    X(cuCtxGetCurrent, cuCtxGetCurrent, 4000, (void **))                                           \
    X(cuMemAlloc_v2, cuMemAlloc, 3020, (uint64_t *, size_t))                                       \
    X(cuMemFree_v2, cuMemFree, 3020, (uint64_t))                                                   \
    X(cuMemGetInfo_v2, cuMemGetInfo, 3020, (size_t *, size_t *))                                   \
    X(cuMemAllocAsync, cuMemAllocAsync, 11020, (uint64_t *, size_t, void *))                       \
    X(cuMemAllocFromPoolAsync, cuMemAllocFromPoolAsync, 11020, (uint64_t *, size_t, void *, void *)) \
    X(cuMemFreeAsync, cuMemFreeAsync, 11020, (uint64_t, void *))                                   \
    X(cuDeviceGetDefaultMemPool, cuDeviceGetDefaultMemPool, 11020, (void **, int))                 \
    X(cuDeviceGetMemPool, cuDeviceGetMemPool, 11020, (void **, int))                               \
    X(cuDeviceSetMemPool, cuDeviceSetMemPool, 11020, (int, void *))                                \
    X(cuMemPoolCreate, cuMemPoolCreate, 11020, (void **, const pool_properties *))                 \
    X(cuMemPoolDestroy, cuMemPoolDestroy, 11020, (void *))                                         \
    X(cuMemPoolTrimTo, cuMemPoolTrimTo, 11020, (void *, size_t))                                   \
    X(cuMemPoolGetAttribute, cuMemPoolGetAttribute, 11020, (void *, int, void *))                  \
    X(cuMemPoolSetAttribute, cuMemPoolSetAttribute, 11020, (void *, int, void *))                  \
    X(cuMemAllocManaged, cuMemAllocManaged, 6000, (uint64_t *, size_t, unsigned))                  \
    X(cuMemAllocPitch_v2, cuMemAllocPitch, 3020, (uint64_t *, size_t *, size_t, size_t, unsigned)) \
    X(cuMemAdvise, cuMemAdvise, 8000, (uint64_t, size_t, int, int))                                \
    X(cuMemPrefetchAsync, cuMemPrefetchAsync, 8000, (uint64_t, size_t, int, void *))               \
    X(cuPointerGetAttribute, cuPointerGetAttribute, 4000, (void *, int, uint64_t))                 \
    X(cuModuleLoadData, cuModuleLoadData, 2000, (void **, const void *))                           \
    X(cuModuleGetFunction, cuModuleGetFunction, 2000, (void **, void *, const char *))             \
    X(cuLaunchKernel, cuLaunchKernel, 7000,                                                        \
      (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, \
       void **))                                                                                   \
    X(cuStreamCreate, cuStreamCreate, 2000, (void **, unsigned))                                   \
    X(cuStreamBeginCapture_v2, cuStreamBeginCapture, 10010, (void *, int))                         \
    X(cuStreamEndCapture, cuStreamEndCapture, 10000, (void *, void **))                            \
    X(cuGraphCreate, cuGraphCreate, 10000, (void **, unsigned))                                    \
    X(cuGraphAddNode, cuGraphAddNode, 12020, (void **, void *, void **, size_t, node_parameters *)) \
    X(cuGraphAddMemAllocNode, cuGraphAddMemAllocNode, 11040,                                       \
      (void **, void *, void **, size_t, allocation_node *))                                       \
    X(cuGraphAddMemFreeNode, cuGraphAddMemFreeNode, 11040,                                         \
      (void **, void *, void **, size_t, uint64_t))                                                \
    X(cuGraphInstantiate, cuGraphInstantiate, 10000, (void **, void *, void **, char *, size_t))   \
    X(cuGraphInstantiate_v2, cuGraphInstantiate, 11000, (void **, void *, void **, char *, size_t)) \
    X(cuGraphInstantiateWithFlags, cuGraphInstantiateWithFlags, 11040, (void **, void *, uint64_t)) \
    X(cuGraphInstantiateWithParams, cuGraphInstantiateWithParams, 12000,                           \
      (void **, void *, instantiation *))                                                          \
    X(cuGraphExecDestroy, cuGraphExecDestroy, 10000, (void *))                                     \
    X(cuGraphLaunch, cuGraphLaunch, 10000, (void *, void *))                                       \
    X(cuGraphUpload, cuGraphUpload, 11010, (void *, void *))                                       \
    X(cuDeviceGraphMemTrim, cuDeviceGraphMemTrim, 11040, (int))                                    \
    X(cuDeviceGetGraphMemAttribute, cuDeviceGetGraphMemAttribute, 11040, (int, int, void *))       \
    X(cuStreamSynchronize, cuStreamSynchronize, 7000, (void *))                                    \
    X(cuCtxSynchronize, cuCtxSynchronize, 2000, (void))                                            \
    X(cuEventCreate, cuEventCreate, 2000, (void **, unsigned))                                     \
    X(cuEventRecord, cuEventRecord, 7000, (void *, void *))                                        \
    X(cuEventSynchronize, cuEventSynchronize, 2000, (void *))

#define X(name, symbol, version, parameters) static int(*name) parameters;
FUNCTIONS(X)
#undef X

typedef struct {
    unsigned long long total, free, used;
} nvml_memory;
static int (*nvml_init)(void);
static int (*nvml_handle)(const char *, void **);
static int (*nvml_memory_info)(void *, nvml_memory *);

static void load_by_name(void *cuda)
{
#define X(name, symbol, version, parameters) name = (int(*) parameters)dlsym(cuda, #name);
    FUNCTIONS(X)
#undef X
}

static void load_by_address(void *cuda, uint64_t flags)
{
    int (*ask)(const char *, void **, int, uint64_t, int *);
    int status = 0;
    ask = (int (*)(const char *, void **, int, uint64_t, int *))dlsym(cuda, "cuGetProcAddress_v2");
#define X(name, symbol, version, parameters)                                                       \
    ask(#symbol, (void **)&name, version, flags, &status);
    FUNCTIONS(X)
#undef X
}

static void load(void)
{
    const char *resolve = getenv("RESOLVE");
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (cuda == NULL || nvml == NULL) {
        fprintf(stderr, "pooler: %s\n", dlerror());
        exit(3);
    }
    if (resolve != NULL)
        load_by_address(cuda, strtoull(resolve, NULL, 10));
    else
        load_by_name(cuda);
    nvml_init = (int (*)(void))dlsym(nvml, "nvmlInit_v2");
    nvml_handle = (int (*)(const char *, void **))dlsym(nvml, "nvmlDeviceGetHandleByUUID");
    nvml_memory_info = (int (*)(void *, nvml_memory *))dlsym(nvml, "nvmlDeviceGetMemoryInfo");
}

#endif
