/* region.h: the wire format of the two files that a container shares with the node agent.
 *
 *   control   written by the agent, read-only inside the container: identity, limits, rates
 *   usage     written by the shim's processes: one slot a process, counters a device
 *
 * Little-endian, fixed width, explicit padding, no pointers, no size_t. Append into reserved space
 * only; anything else is a new HAMI_REGION_VERSION. layout.c prints every offset, a test compares
 * them with region-layout.txt beside this file and with the mirror in nodeagent/region_layout.py.
 * The rules by which the fields change are in docs/region.md.
 */
#ifndef HAMI_REGION_H
#define HAMI_REGION_H

#include <stdatomic.h>
#include <stdint.h>

#define HAMI_CONTROL_MAGIC UINT64_C(0x4c52544e4f434d48) /* "HMCONTRL" */
#define HAMI_USAGE_MAGIC UINT64_C(0x4547415355494d48)   /* "HMIUSAGE" */
#define HAMI_REGION_VERSION 1
#define HAMI_DEVICES 16
#define HAMI_SLOTS 1024
#define HAMI_ANONYMOUS_SLOT HAMI_SLOTS /* for those without a slot of their own */
#define HAMI_UUID_BYTES 96
#define HAMI_MEMORY_UNLIMITED UINT64_MAX /* 0 is a limit like any other: no memory at all */

/* hami_control.flags */
#define HAMI_FLAG_FAIL_OPEN UINT32_C(1) /* an unusable usage file lifts the limits instead of refusing memory */
#define HAMI_FLAG_OVERSUBSCRIBE UINT32_C(2) /* where device memory is short, managed memory may take its place */

/* hami_control.policy: when core limits apply */
enum hami_policy { HAMI_POLICY_DEFAULT = 0, HAMI_POLICY_FORCE = 1, HAMI_POLICY_DISABLE = 2 };

/* hami_device_control.core_mode: what happens to a submission of work */
enum hami_core_mode {
    HAMI_CORE_OFF = 0,     /* goes to the driver */
    HAMI_CORE_LIMIT = 1,   /* is paced by the grant */
    HAMI_CORE_BLOCK = 2,   /* waits; is paced instead once the agent's heartbeat has stopped */
    HAMI_CORE_SUSPEND = 3, /* waits until the agent says otherwise */
};

/* Device time granted so far is a line over CLOCK_MONOTONIC: granted_ns at since_ns, and
 * rate_ns_per_second more a second. Two of them, so that a writer killed amid a change harms nobody. */
struct hami_grant {
    _Atomic uint64_t granted_ns;
    _Atomic uint64_t since_ns;
    _Atomic uint64_t rate_ns_per_second;
};

struct hami_device_control {
    char uuid[HAMI_UUID_BYTES];                /* as NVML spells it, NUL padded; fixed for the file's life */
    _Atomic uint64_t memory_limit_bytes;       /* or HAMI_MEMORY_UNLIMITED */
    _Atomic uint64_t physical_bytes;           /* of the whole device, for readers; 0: not known */
    _Atomic uint64_t untracked_bytes;          /* what the agent measured beyond the tracked sum */
    _Atomic uint32_t core_limit_permille;      /* 0 or 1000: no limit */
    _Atomic uint32_t core_mode;                /* enum hami_core_mode */
    _Atomic uint64_t context_bytes;            /* what a context takes, as the agent learnt; charged for each */
    _Atomic uint64_t burst_ns;                 /* most device time that may be saved up */
    _Atomic uint32_t grant_sequence;           /* raised after each change; its low bit says which grant holds */
    uint32_t reserved0;
    struct hami_grant grants[2];
    uint8_t reserved1[56];
};

struct hami_control {
    uint64_t magic;
    uint32_t version;
    uint32_t size; /* of the whole file, bytes */
    _Atomic uint64_t generation; /* raised by the agent after every change */
    uint32_t device_count;
    _Atomic int32_t priority; /* 0 is the highest */
    _Atomic uint32_t policy;  /* enum hami_policy */
    uint32_t flags;
    _Atomic uint64_t pulse; /* low 16 bits: devices whose core_mode is not OFF; the rest: ticks of the governor */
    _Atomic uint64_t heartbeat_ns; /* CLOCK_MONOTONIC of the governor's last tick */
    _Atomic uint32_t weight; /* of this container where a device is contended; 0: the usual one */
    uint32_t reserved0;
    char pod_uid[64];
    char pod_namespace[64];
    char pod_name[256];
    char container_name[64];
    struct hami_device_control devices[HAMI_DEVICES];
    uint8_t reserved1[3584];
};

struct hami_usage_row { /* one device of one process; a cache line */
    _Atomic uint64_t used_bytes;    /* allocated and not yet freed */
    _Atomic uint64_t pending_bytes; /* announced: asked of the driver, or about to be */
    _Atomic uint64_t spent_ns;      /* device time debited to the bucket */
    _Atomic uint64_t waited_ns;     /* time that its threads waited for the bucket */
    _Atomic uint64_t context_bytes; /* of used_bytes: what was charged for contexts */
    uint64_t reserved[3];
};

struct hami_slot {
    _Atomic uint64_t owner; /* 0: free; else a process token (process.h); claimed by compare-and-swap */
    _Atomic int32_t pid;    /* as the owner sees itself */
    _Atomic int32_t host_pid;         /* filled in by the agent */
    _Atomic uint64_t start_ticks;     /* field 22 of /proc/PID/stat */
    _Atomic uint32_t pid_namespace;   /* inode number */
    uint32_t reserved0;
    _Atomic uint64_t last_submit_ns;  /* CLOCK_MONOTONIC of about the last launch (once a tick); 0: none */
    uint64_t reserved1[3];
    struct hami_usage_row rows[HAMI_DEVICES];
};

struct hami_bucket { /* shared pacing state of one device; a cache line */
    _Atomic uint64_t debited_ns; /* device time taken so far by all processes; see docs/region.md */
    uint64_t reserved[7];
};

struct hami_usage {
    uint64_t magic;
    uint32_t version;
    uint32_t size; /* of the whole file, bytes */
    uint32_t slot_count;
    uint32_t device_count; /* rows a slot */
    _Atomic uint64_t reclaimed_ns; /* CLOCK_MONOTONIC of the last look for dead owners */
    _Atomic uint32_t active_words; /* bit i: active[i] was ever used; bit 16: the anonymous slot was */
    uint8_t reserved0[28];
    _Atomic uint64_t active[HAMI_SLOTS / 64]; /* bit i: slot i may hold charges; changed by its owner only */
    uint8_t reserved1[64];
    struct hami_bucket buckets[HAMI_DEVICES];
    uint8_t reserved2[768];
    struct hami_slot slots[HAMI_SLOTS + 1]; /* the last is the anonymous one; slots never move */
};

_Static_assert(sizeof(struct hami_grant) == 24, "wire format");
_Static_assert(sizeof(struct hami_device_control) == 256, "wire format");
_Static_assert(sizeof(struct hami_control) == 8192, "wire format");
_Static_assert(sizeof(struct hami_usage_row) == 64, "wire format");
_Static_assert(sizeof(struct hami_slot) == 1088, "wire format");
_Static_assert(sizeof(struct hami_usage) == 2048 + 1088 * (HAMI_SLOTS + 1), "wire format");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "no locks across processes");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "wire format");

#define HAMI_REGION_FIELDS(X)                                                                      \
    X(hami_grant, granted_ns)                                                                      \
    X(hami_grant, since_ns)                                                                        \
    X(hami_grant, rate_ns_per_second)                                                              \
    X(hami_device_control, uuid)                                                                   \
    X(hami_device_control, memory_limit_bytes)                                                     \
    X(hami_device_control, physical_bytes)                                                         \
    X(hami_device_control, untracked_bytes)                                                        \
    X(hami_device_control, core_limit_permille)                                                    \
    X(hami_device_control, core_mode)                                                              \
    X(hami_device_control, context_bytes)                                                          \
    X(hami_device_control, burst_ns)                                                               \
    X(hami_device_control, grant_sequence)                                                         \
    X(hami_device_control, reserved0)                                                              \
    X(hami_device_control, grants)                                                                 \
    X(hami_device_control, reserved1)                                                              \
    X(hami_control, magic)                                                                         \
    X(hami_control, version)                                                                       \
    X(hami_control, size)                                                                          \
    X(hami_control, generation)                                                                    \
    X(hami_control, device_count)                                                                  \
    X(hami_control, priority)                                                                      \
    X(hami_control, policy)                                                                        \
    X(hami_control, flags)                                                                         \
    X(hami_control, pulse)                                                                         \
    X(hami_control, heartbeat_ns)                                                                  \
    X(hami_control, weight)                                                                        \
    X(hami_control, reserved0)                                                                     \
    X(hami_control, pod_uid)                                                                       \
    X(hami_control, pod_namespace)                                                                 \
    X(hami_control, pod_name)                                                                      \
    X(hami_control, container_name)                                                                \
    X(hami_control, devices)                                                                       \
    X(hami_control, reserved1)                                                                     \
    X(hami_usage_row, used_bytes)                                                                  \
    X(hami_usage_row, pending_bytes)                                                               \
    X(hami_usage_row, spent_ns)                                                                    \
    X(hami_usage_row, waited_ns)                                                                   \
    X(hami_usage_row, context_bytes)                                                               \
    X(hami_usage_row, reserved)                                                                    \
    X(hami_slot, owner)                                                                            \
    X(hami_slot, pid)                                                                              \
    X(hami_slot, host_pid)                                                                         \
    X(hami_slot, start_ticks)                                                                      \
    X(hami_slot, pid_namespace)                                                                    \
    X(hami_slot, reserved0)                                                                        \
    X(hami_slot, last_submit_ns)                                                                   \
    X(hami_slot, reserved1)                                                                        \
    X(hami_slot, rows)                                                                             \
    X(hami_bucket, debited_ns)                                                                     \
    X(hami_bucket, reserved)                                                                       \
    X(hami_usage, magic)                                                                           \
    X(hami_usage, version)                                                                         \
    X(hami_usage, size)                                                                            \
    X(hami_usage, slot_count)                                                                      \
    X(hami_usage, device_count)                                                                    \
    X(hami_usage, reclaimed_ns)                                                                    \
    X(hami_usage, active_words)                                                                    \
    X(hami_usage, reserved0)                                                                       \
    X(hami_usage, active)                                                                          \
    X(hami_usage, reserved1)                                                                       \
    X(hami_usage, buckets)                                                                         \
    X(hami_usage, reserved2)                                                                       \
    X(hami_usage, slots)

#define HAMI_REGION_STRUCTS(X)                                                                     \
    X(hami_grant) X(hami_device_control) X(hami_control) X(hami_usage_row) X(hami_slot) X(hami_bucket) X(hami_usage)

#endif
