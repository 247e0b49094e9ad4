/* sim_node.c: mapping, the process table and device memory.
 *
 * One lock for the whole node, held for a few stores, never across a wait. Its word is the holder's
 * token; if the holder is dead, whoever waits takes it over and sums everything up anew, so a
 * process may be killed between any two stores.
 */
#define _GNU_SOURCE
#include "sim_node.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "process.h"
#include "sim_managed.h"
#include "sim_timeline.h"

#define TRIES_BEFORE_DOUBT 20 /* then sleep between tries, and now and then look at the holder */
#define WAIT_NS 50000

static pthread_mutex_t local_lock = PTHREAD_MUTEX_INITIALIZER; /* threads of a process share a token */
static struct sim_node *_Atomic mapped;
static struct sim_process *_Atomic own_entry;
static struct hami_process self;
static int self_host_pid;

static void after_fork_in_child(void)
{
    pthread_mutex_init(&local_lock, NULL);
    atomic_store(&own_entry, NULL);
    self.pid = 0;
}

static struct sim_node *map_node(void)
{
    struct stat status;
    const char *path = getenv("HAMI_SIM_NODE");
    const int fd = path != NULL ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return NULL;
    void *map = MAP_FAILED;
    if (fstat(fd, &status) == 0 && status.st_size >= (off_t)sizeof(struct sim_node))
        map = mmap(NULL, sizeof(struct sim_node), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return NULL;
    const struct sim_node *node = map;
    if (node->magic == SIM_MAGIC && node->version == SIM_VERSION && node->gpu_count <= SIM_GPUS)
        return map;
    munmap(map, sizeof(struct sim_node));
    return NULL;
}

struct sim_node *sim_node(void)
{
    struct sim_node *node = atomic_load(&mapped);
    if (node != NULL)
        return node;
    pthread_mutex_lock(&local_lock);
    node = atomic_load(&mapped);
    if (node == NULL && (node = map_node()) != NULL) {
        pthread_atfork(NULL, NULL, after_fork_in_child);
        atomic_store(&mapped, node);
    }
    pthread_mutex_unlock(&local_lock);
    return node;
}

static void sum_up(struct sim_node *node)
{
    for (unsigned gpu = 0; gpu < node->gpu_count; gpu++) {
        uint64_t used = 0;
        for (uint32_t i = 0; i < atomic_load(&node->process_high); i++)
            used += atomic_load(&node->processes[i].rows[gpu].bytes);
        atomic_store(&node->gpus[gpu].used_bytes, used);
    }
}

/* The first of the pids that /proc/self/status lists: of the namespace of that /proc. */
static int read_host_pid(void)
{
    char line[256];
    int pid = 0;
    FILE *status = fopen("/proc/self/status", "re");
    while (status != NULL && fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "NSpid: %d", &pid) == 1)
            break;
    if (status != NULL)
        fclose(status);
    return pid;
}

void sim_node_lock(struct sim_node *node)
{
    pthread_mutex_lock(&local_lock);
    if (self.pid == 0) {
        hami_process_identify(&self);
        self_host_pid = read_host_pid();
    }
    for (int tries = 1;; tries++) {
        uint64_t holder = 0;
        if (atomic_compare_exchange_strong(&node->lock, &holder, self.token))
            return;
        if (tries < TRIES_BEFORE_DOUBT) {
            sched_yield();
            continue;
        }
        if (tries % TRIES_BEFORE_DOUBT == 0 && hami_process_is_dead(holder, &self) &&
            atomic_compare_exchange_strong(&node->lock, &holder, self.token)) {
            sum_up(node);
            return;
        }
        nanosleep(&(struct timespec){.tv_nsec = WAIT_NS}, NULL);
    }
}

void sim_node_unlock(struct sim_node *node)
{
    atomic_store(&node->lock, 0);
    pthread_mutex_unlock(&local_lock);
}

bool sim_is_dead_locked(const struct sim_process *process)
{
    const uint64_t token = atomic_load(&process->token);
    return token != 0 && hami_process_is_dead(token, &self);
}

void sim_forget_locked(struct sim_node *node, struct sim_process *process)
{
    sim_timeline_forget_locked(node, (unsigned)(process - node->processes));
    for (unsigned gpu = 0; gpu < SIM_GPUS; gpu++)
        process->rows[gpu] = (struct sim_row){0};
    memset(process->managed, 0, sizeof process->managed);
}

void sim_node_reap_locked(struct sim_node *node)
{
    for (uint32_t i = 0; i < atomic_load(&node->process_high); i++) {
        struct sim_process *process = &node->processes[i];
        if (!sim_is_dead_locked(process))
            continue;
        sim_forget_locked(node, process);
        atomic_store(&process->pid, 0);
        atomic_store(&process->token, 0);
    }
    sum_up(node);
}

void sim_node_reap(void)
{
    struct sim_node *node = sim_node();
    if (node == NULL)
        return;
    sim_node_lock(node);
    sim_node_reap_locked(node);
    sim_node_unlock(node);
}

/* An entry of our own from before an exec counts as free: exec ended its contexts. */
static struct sim_process *find_entry_locked(struct sim_node *node)
{
    for (uint32_t i = 0; i < SIM_PROCESSES; i++) {
        struct sim_process *process = &node->processes[i];
        const uint64_t token = atomic_load(&process->token);
        if (token != 0 && token != self.token)
            continue;
        if (i >= atomic_load(&node->process_high))
            atomic_store(&node->process_high, i + 1);
        return process;
    }
    return NULL;
}

static struct sim_process *claim_locked(struct sim_node *node)
{
    struct sim_process *process = find_entry_locked(node);
    if (process == NULL) {
        sim_node_reap_locked(node);
        process = find_entry_locked(node);
    }
    if (process != NULL) {
        atomic_store(&process->token, self.token);
        sim_forget_locked(node, process);
        atomic_store(&process->pid, self.pid);
        atomic_store(&process->host_pid, self_host_pid);
    }
    return process;
}

struct sim_process *sim_process(void)
{
    struct sim_process *entry = atomic_load(&own_entry);
    struct sim_node *node = entry == NULL ? sim_node() : NULL;
    if (node == NULL)
        return entry;
    sim_node_lock(node);
    entry = atomic_load(&own_entry);
    if (entry == NULL) {
        entry = claim_locked(node);
        atomic_store(&own_entry, entry);
    }
    sim_node_unlock(node);
    return entry;
}

bool sim_node_take(unsigned gpu, uint64_t bytes)
{
    struct sim_process *process = sim_process();
    if (process == NULL)
        return false;
    struct sim_node *node = sim_node();
    struct sim_gpu *device = &node->gpus[gpu];
    const uint64_t capacity = device->memory_bytes - device->reserved_bytes;
    sim_node_lock(node);
    uint64_t used = atomic_load(&device->used_bytes) + bytes;
    if (used > capacity || (node->exact_peaks && used > atomic_load(&device->peak_bytes))) {
        sim_node_reap_locked(node);
        used = atomic_load(&device->used_bytes) + bytes;
    }
    if (bytes <= capacity && used > capacity &&
        used - capacity <= sim_managed_evictable_locked(node, gpu))
        used -= sim_managed_evict_locked(node, gpu, used - capacity, SIM_HOME_DEVICE, NULL);
    const bool fits = bytes <= capacity && used <= capacity;
    if (fits) {
        atomic_fetch_add(&process->rows[gpu].bytes, bytes);
        atomic_store(&device->used_bytes, used);
        if (used > atomic_load(&device->peak_bytes))
            atomic_store(&device->peak_bytes, used);
    }
    sim_node_unlock(node);
    return fits;
}

void sim_node_give(unsigned gpu, uint64_t bytes)
{
    struct sim_process *process = sim_process();
    struct sim_node *node = sim_node();
    if (process == NULL)
        return;
    sim_node_lock(node);
    atomic_fetch_sub(&process->rows[gpu].bytes, bytes);
    atomic_fetch_sub(&node->gpus[gpu].used_bytes, bytes);
    sim_node_unlock(node);
}

uint64_t sim_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

void sim_sleep_until(uint64_t until_ns)
{
    const struct timespec until = {.tv_sec = (time_t)(until_ns / UINT64_C(1000000000)),
                                   .tv_nsec = (long)(until_ns % UINT64_C(1000000000))};
    while (sim_now_ns() < until_ns)
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}
