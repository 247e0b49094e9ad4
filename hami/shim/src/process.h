/* process.h: who a process is, in one word that a compare-and-swap can claim a slot with.
 *
 * A token packs the pid (22 bits: Linux has no larger ones), the low 20 bits of the pid namespace's
 * inode number (the kernel hands these out densely, lowest free first) and the low 22 bits of the
 * start time in clock ticks. Two processes that live at the same time never share a token. A dead
 * one's token returns only if its pid is recycled at the same tick of an 11-hour cycle, which makes
 * the dead look alive for a while: never the living look dead.
 */
#ifndef HAMI_PROCESS_H
#define HAMI_PROCESS_H

#include <stdbool.h>
#include <stdint.h>

struct hami_process {
    int32_t pid;
    uint32_t pid_namespace; /* inode number; 0: /proc did not tell */
    uint64_t start_ticks;   /* 0: /proc did not tell */
    uint64_t token;
    bool proc_is_ours; /* /proc shows the pids of our own namespace */
};

/* Fill in who the calling process is. Never fails: what cannot be learnt is 0. */
void hami_process_identify(struct hami_process *self);

/* True if the token's process has surely ended and the kernel has closed its files. Only a process
 * of the same pid namespace can tell; for others the answer is false. Costs a system call or four. */
bool hami_process_is_dead(uint64_t token, const struct hami_process *self);

/* True if the pid no longer exists. Weaker and cheaper than hami_process_is_dead: one system call. */
bool hami_process_is_gone(uint64_t token, const struct hami_process *self);

/* The pid within a token. */
int32_t hami_process_pid(uint64_t token);

#endif
