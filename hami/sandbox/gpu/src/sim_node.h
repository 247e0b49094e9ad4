/* sim_node.h: the state of one simulated node, a file that all its processes map.
 *
 * Python writes the file before anything runs (hami/sandbox/gpu/layout.py mirrors this) and may
 * change the fault fields and the events while it runs. The library owns the rest.
 */
#ifndef SIM_NODE_H
#define SIM_NODE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SIM_MAGIC UINT64_C(0x31305553474d4948) /* "HIMGSU01" */
#define SIM_VERSION 2
#define SIM_GPUS 16
#define SIM_PROCESSES 4096
#define SIM_EVENTS 64
#define SIM_SAMPLES 4   /* periods of utilisation that are kept */
#define SIM_POINTS 4096 /* changes of a GPU's pace that are kept */
#define SIM_WORDS (SIM_PROCESSES / 64)

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
    _Atomic uint64_t evicted_bytes; /* managed memory that had to leave, ever */
    _Atomic uint64_t moved_bytes;   /* managed memory that kernels had to fetch, ever */
    uint8_t reserved[256];
};

struct sim_sample { /* device time within one period */
    uint64_t period; /* time / nvml_period_ns */
    uint64_t busy_ns;
};

struct sim_row { /* one process on one GPU */
    _Atomic uint64_t bytes;
    _Atomic uint64_t busy_ns; /* device time of all it ever queued */
    uint64_t finish_ns;       /* virtual time at which its queue is empty */
    uint64_t sampled_ns;      /* device time that it had had when the last period ended */
    struct sim_sample samples[SIM_SAMPLES];
};

/* A GPU's time (sim_timeline.c). Virtual time passes at 1/n of the pace while n processes have work. */
struct sim_clock {
    uint64_t time_ns; /* CLOCK_MONOTONIC */
    uint64_t virtual_ns;
    uint64_t busy_ns; /* device time given to anyone */
    uint64_t sharers; /* since time_ns */
};

struct sim_point {
    uint64_t time_ns;
    uint64_t virtual_ns;
};

struct sim_timeline {
    _Atomic uint32_t current; /* the clock that counts; the other is written first */
    uint32_t reserved;
    uint64_t period_end_ns; /* when the next sample is due */
    uint64_t sampled_ns;    /* busy_ns when the last period ended */
    uint64_t reaped_ns;     /* when someone last looked for the dead */
    struct sim_clock clocks[2];
    struct sim_sample samples[SIM_SAMPLES];
    uint64_t active[SIM_WORDS];  /* a bit for each process that has work queued */
    uint64_t touched[SIM_WORDS]; /* or had some in this period */
    uint64_t point_count;        /* ever written */
    struct sim_point points[SIM_POINTS];
};

/* Where managed memory wants to be; the first leave first. */
enum sim_home { SIM_HOME_HOST, SIM_HOME_ANYWHERE, SIM_HOME_DEVICE, SIM_HOMES };

struct sim_managed { /* memory of one process on one GPU (sim_managed.c); by enum sim_home */
    uint64_t total[SIM_HOMES];
    uint64_t resident[SIM_HOMES]; /* on the device; also in its row's bytes */
};

struct sim_process {
    _Atomic uint64_t token; /* 0: free (see the shim's process.h) */
    _Atomic int32_t pid;      /* as it sees itself */
    _Atomic int32_t host_pid; /* in the outermost namespace that its /proc shows; 0: not known */
    struct sim_row rows[SIM_GPUS];
    struct sim_managed managed[SIM_GPUS];
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
    int64_t realtime_offset_ns;  /* CLOCK_REALTIME less CLOCK_MONOTONIC */
    uint64_t nvml_period_ns;     /* of utilisation samples */
    uint64_t nvml_lag_ns;        /* from a period's end to the moment its sample is shown */
    _Atomic uint64_t nvml_delay_ns; /* of each NVML call */
    _Atomic uint32_t nvml_flags;    /* SIM_NVML_* */
    uint32_t queue_depth;           /* launches that may be queued before one blocks */
    _Atomic uint32_t faults_version; /* counts the changes of `faults` */
    uint32_t reserved1;
    uint64_t pool_step_bytes; /* by which pools grow; 0: the usual */
    uint8_t reserved2[48];
    char faults[512]; /* as $HAMI_SIM_FAULTS, for all processes */
    struct sim_gpu gpus[SIM_GPUS];
    struct sim_event events[SIM_EVENTS]; /* event s is at s % SIM_EVENTS */
    struct sim_timeline timelines[SIM_GPUS];
    struct sim_process processes[SIM_PROCESSES];
};

_Static_assert(sizeof(struct sim_gpu) == 512, "layout");
_Static_assert(sizeof(struct sim_row) == 96, "layout");
_Static_assert(sizeof(struct sim_process) == 16 + (96 + 48) * SIM_GPUS, "layout");
_Static_assert(sizeof(struct sim_event) == 32, "layout");
_Static_assert(sizeof(struct sim_timeline) == 168 + 16 * SIM_WORDS + 16 * SIM_POINTS, "layout");
_Static_assert(sizeof(struct sim_node) == 768 + 512 * SIM_GPUS + 32 * SIM_EVENTS +
                                              sizeof(struct sim_timeline) * SIM_GPUS +
                                              sizeof(struct sim_process) * SIM_PROCESSES,
               "layout");

enum {
    SIM_NVML_NO_PROCESS_UTILIZATION = 1, /* it is not supported */
    SIM_NVML_HOST_PIDS = 2,              /* processes go by their pids on the host */
};

/* Map the file of $HAMI_SIM_NODE once. NULL: not set, or not such a file. */
struct sim_node *sim_node(void);

/* This process's entry, claimed at the first call. NULL: no node, or the table is full. */
struct sim_process *sim_process(void);

/* Take device memory. False: the device has not that much left, dead processes' share included. */
bool sim_node_take(unsigned gpu, uint64_t bytes);

/* Give it back. */
void sim_node_give(unsigned gpu, uint64_t bytes);

/* The node's lock, held for a few stores and never across a wait. */
void sim_node_lock(struct sim_node *node);
void sim_node_unlock(struct sim_node *node);

/* Free what dead processes held. */
void sim_node_reap(void);
void sim_node_reap_locked(struct sim_node *node);

/* GPU indices that $NVIDIA_VISIBLE_DEVICES shows, in its order; returns the count. Unset: all. */
int sim_visible_to_container(unsigned gpus[SIM_GPUS]);

/* Of those, what $CUDA_VISIBLE_DEVICES leaves to CUDA. */
int sim_visible_to_cuda(unsigned gpus[SIM_GPUS]);

/* Nanoseconds of CLOCK_MONOTONIC. */
uint64_t sim_now_ns(void);

/* Sleep until that time; returns at once if it is past. */
void sim_sleep_until(uint64_t until_ns);

/* True if the process has ended; the node's lock is held. */
bool sim_is_dead_locked(const struct sim_process *process);

/* Forget what the entry held; the node's lock is held. */
void sim_forget_locked(struct sim_node *node, struct sim_process *process);

#endif
