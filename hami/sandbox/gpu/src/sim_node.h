/* sim_node.h: the state of one simulated node, a file that all its processes map.
 *
 * Python writes the file before anything runs (hami/sandbox/gpu/node.py mirrors this layout) and may
 * change the fault fields and the events while it runs. The library owns the rest.
 */
#ifndef SIM_NODE_H
#define SIM_NODE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SIM_MAGIC UINT64_C(0x31305553474d4948) /* "HIMGSU01" */
#define SIM_VERSION 1
#define SIM_GPUS 16
#define SIM_PROCESSES 4096
#define SIM_EVENTS 64

struct sim_gpu {
    char name[96];
    char uuid[48];   /* "GPU-…" */
    char bus_id[16]; /* "0000:17:00.0" */
    uint32_t pci_domain, pci_bus, pci_device, pci_device_id, pci_subsystem_id;
    int32_t numa_node;
    uint32_t capability_major, capability_minor;
    uint32_t multiprocessors, threads_per_multiprocessor;
    uint32_t architecture;    /* as NVML counts them */
    _Atomic uint32_t lost;    /* fault: the device has fallen off the bus */
    uint64_t memory_bytes;    /* as NVML's total */
    uint64_t reserved_bytes;  /* the driver's own share of it */
    _Atomic uint64_t used_bytes; /* by processes; under the node's lock */
    _Atomic uint64_t peak_bytes; /* most that living processes ever held at once */
    uint8_t reserved[272];
};

struct sim_row { /* one process on one GPU */
    _Atomic uint64_t bytes;
    _Atomic uint64_t until_ns; /* CLOCK_MONOTONIC: when its queued kernels end */
    _Atomic uint64_t busy_ns;  /* device time of all it ever queued */
    uint64_t reserved;
};

struct sim_process {
    _Atomic uint64_t token; /* 0: free (see the shim's process.h) */
    _Atomic int32_t pid;
    uint32_t reserved;
    struct sim_row rows[SIM_GPUS];
};

struct sim_event {
    _Atomic uint64_t sequence; /* 0: none; written last */
    uint32_t gpu;
    uint32_t reserved;
    uint64_t type; /* nvmlEventType bits */
    uint64_t data; /* the XID */
};

struct sim_node {
    uint64_t magic;
    uint32_t version;
    uint32_t size;
    uint32_t gpu_count;
    uint32_t cuda_version; /* 12080 */
    char node_name[64];
    char driver_version[32];
    uint64_t context_bytes; /* device memory that each context takes */
    _Atomic uint64_t lock;  /* token of the holder */
    _Atomic uint32_t process_high; /* entries at and above it were never used */
    uint32_t exact_peaks; /* look for the dead before each new peak: costs time a process */
    _Atomic uint64_t last_event; /* sequence of the newest */
    uint8_t reserved1[104];
    struct sim_gpu gpus[SIM_GPUS];
    struct sim_event events[SIM_EVENTS]; /* event s is at s % SIM_EVENTS */
    struct sim_process processes[SIM_PROCESSES];
};

_Static_assert(sizeof(struct sim_gpu) == 512, "layout");
_Static_assert(sizeof(struct sim_row) == 32, "layout");
_Static_assert(sizeof(struct sim_process) == 528, "layout");
_Static_assert(sizeof(struct sim_event) == 32, "layout");
_Static_assert(sizeof(struct sim_node) == 256 + 512 * SIM_GPUS + 32 * SIM_EVENTS + 528 * SIM_PROCESSES,
               "layout");

/* Map the file of $HAMI_SIM_NODE once. NULL: not set, or not such a file. */
struct sim_node *sim_node(void);

/* This process's entry, claimed at the first call. NULL: no node, or the table is full. */
struct sim_process *sim_process(void);

/* Take device memory. False: the device has not that much left, dead processes' share included. */
bool sim_node_take(unsigned gpu, uint64_t bytes);

/* Give it back. */
void sim_node_give(unsigned gpu, uint64_t bytes);

/* Free what dead processes held. */
void sim_node_reap(void);

/* GPU indices that $NVIDIA_VISIBLE_DEVICES shows, in its order; returns the count. Unset: all. */
int sim_visible_to_container(unsigned gpus[SIM_GPUS]);

/* Of those, what $CUDA_VISIBLE_DEVICES leaves to CUDA. */
int sim_visible_to_cuda(unsigned gpus[SIM_GPUS]);

/* Nanoseconds of CLOCK_MONOTONIC. */
uint64_t sim_now_ns(void);

/* Sleep until that time; returns at once if it is past. */
void sim_sleep_until(uint64_t until_ns);

/* Queue a kernel of that duration on the GPU; returns when it will end. Blocks while this process's
 * queue is full. */
uint64_t sim_queue_kernel(unsigned gpu, uint64_t duration_ns);

/* Device time that the process has really had so far: queued, less what is still to run. */
uint64_t sim_executed_ns(const struct sim_node *node, const struct sim_process *process, unsigned gpu);

#endif
