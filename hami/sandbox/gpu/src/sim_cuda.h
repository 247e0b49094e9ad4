/* sim_cuda.h: the types of the CUDA driver API that the simulated driver speaks, and its own state. */
#ifndef SIM_CUDA_H
#define SIM_CUDA_H

#include <stddef.h>
#include <stdint.h>

#include "sim_node.h"

#define SIM_EXPORT __attribute__((visibility("default")))

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct sim_context *CUcontext;
typedef struct sim_stream *CUstream;
typedef struct sim_cuda_event *CUevent;
typedef struct sim_module *CUmodule;
typedef struct sim_function *CUfunction;
typedef struct sim_pool *CUmemoryPool;
typedef struct {
    int type, id;
} CUmemLocation;
typedef struct {
    CUmemLocation location;
    int flags;
} CUmemAccessDesc;
typedef struct {
    int allocation_type, handle_types;
    CUmemLocation location;
    void *security;
    size_t max_bytes;
    unsigned char reserved[56];
} CUmemPoolProps;
typedef uint64_t CUmemGenericAllocationHandle;
typedef struct {
    int type, requestedHandleTypes;
    CUmemLocation location;
    void *win32HandleMetaData;
    unsigned char allocFlags[8];
} CUmemAllocationProp;
typedef struct sim_function *CUkernel; /* one handle does for both */
typedef struct sim_module *CUlibrary;
typedef struct sim_graph *CUgraph;
typedef struct sim_graph_node *CUgraphNode;
typedef struct sim_graph_exec *CUgraphExec;
typedef struct sim_green *CUgreenCtx;
typedef struct sim_resource_desc *CUdevResourceDesc;
typedef struct {
    char bytes[16];
} CUuuid;

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_FILE_NOT_FOUND = 301,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_CONTEXT_IS_DESTROYED = 709,
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE = 720,
    CUDA_ERROR_NOT_PERMITTED = 800,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
    CUDA_ERROR_STREAM_CAPTURE_MERGE = 902,
    CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903,
    CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904,
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905,
    CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906,
    CUDA_ERROR_CAPTURED_EVENT = 907,
    CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD = 908,
    CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE = 910,
};

struct sim_context {
    unsigned gpu; /* index on the node */
    CUdevice ordinal;
    _Atomic int references; /* of a primary context; 1 for others */
    unsigned multiprocessors; /* that it may use; 0: all */
    CUstream legacy;          /* its legacy default stream, once used */
    _Atomic uint64_t legacy_tail;   /* tag of the last work in it */
    _Atomic uint64_t blocking_tail; /* the same for all streams that wait for it */
    _Atomic uint64_t crash_tag;     /* when a kernel fails; 0: none will */
    _Atomic int crash_error;        /* with which error */
};

#include "sim_types.h"

/* Declared for each other, and for the table of cuGetProcAddress. */
#define SIM_FUNCTION(symbol, version, flags, name, parameters)                                     \
    CUresult name parameters __asm__("sim_do_" #name); /* see sim_gate.c */
#include "sim_driver.def"

/* The GPU behind an ordinal, or -1. */
int sim_gpu_of(CUdevice ordinal);

/* The ordinal by which this process knows a GPU, or -1. */
CUdevice sim_ordinal_of(unsigned gpu);

/* CUDA_SUCCESS if cuInit was called in this process and the device is still there. */
CUresult sim_check_gpu(unsigned gpu);

/* The calling thread's context. CUDA_SUCCESS only if it can be used. */
CUresult sim_current(CUcontext *context);

/* After fork, in the child: no context, no memory. */
void sim_context_after_fork(void);
void sim_memory_after_fork(void);
void sim_pools_after_fork(void);
void sim_vmm_after_fork(void);
void sim_arrays_after_fork(void);
void sim_addresses_after_fork(void);
void sim_late_frees_after_fork(void);

/* Something was waited for: pools let go of what they have too much of. */
void sim_pools_synchronized(void);

/* Whether a kernel has failed in the context, and how. It is no use any more until it is reset. */
CUresult sim_context_error(CUcontext context);

/* CUDA_SUCCESS if the calling thread may now call what is unsafe while a stream is captured: what
 * may wait for or change work outside of the capture. Else the captures are invalidated. */
CUresult sim_check_unsafe_call(void);

/* Whether so many bytes at the address are device memory that copies may touch. */
bool sim_on_device(uint64_t address, uint64_t bytes);

/* Some copy writes to device memory: what is freed from now on must be cleared. */
void sim_memory_touched(void);

/* Free all memory of a context that is being destroyed. */
void sim_free_context_memory(CUcontext context);

#endif
