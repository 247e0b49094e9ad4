/* process.c: tokens and liveness, from /proc and kill(2). */
#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PID_BITS 22
#define NAMESPACE_BITS 20
#define START_BITS 22
#define LOW(value, bits) ((uint64_t)(value) & ((UINT64_C(1) << (bits)) - 1))

struct stat_line {
    long pid;
    char state;
    long threads;
    uint64_t start_ticks;
};

/* Read /proc/NAME/stat. The command name may hold anything, so fields count from the last ')'. */
static bool read_stat(const char *name, struct stat_line *line)
{
    char path[40];
    char text[1024];
    snprintf(path, sizeof path, "/proc/%s/stat", name);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    const ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return false;
    text[length] = '\0';
    const char *cursor = strrchr(text, ')');
    if (cursor == NULL || cursor[1] != ' ')
        return false;
    line->pid = strtol(text, NULL, 10);
    line->state = cursor[2];
    cursor += 2;
    for (int field = 3; field < 22 && cursor != NULL; field++) { /* field 3 is the state */
        cursor = strchr(cursor + 1, ' ');
        if (cursor != NULL && field + 1 == 20)
            line->threads = strtol(cursor + 1, NULL, 10);
        if (cursor != NULL && field + 1 == 22)
            line->start_ticks = strtoull(cursor + 1, NULL, 10);
    }
    return cursor != NULL;
}

static uint64_t token_start(uint64_t token)
{
    return LOW(token, START_BITS);
}

static uint64_t token_namespace(uint64_t token)
{
    return LOW(token >> START_BITS, NAMESPACE_BITS);
}

int32_t hami_process_pid(uint64_t token)
{
    return (int32_t)LOW(token >> (START_BITS + NAMESPACE_BITS), PID_BITS);
}

void hami_process_identify(struct hami_process *self)
{
    struct stat_line line = {0};
    struct stat namespace;
    *self = (struct hami_process){.pid = (int32_t)getpid()};
    if (read_stat("self", &line)) {
        self->start_ticks = line.start_ticks;
        self->proc_is_ours = line.pid == self->pid;
    }
    if (stat("/proc/self/ns/pid", &namespace) == 0)
        self->pid_namespace = (uint32_t)namespace.st_ino;
    self->token = LOW(self->pid, PID_BITS) << (NAMESPACE_BITS + START_BITS) |
                  LOW(self->pid_namespace, NAMESPACE_BITS) << START_BITS |
                  LOW(self->start_ticks, START_BITS);
}

bool hami_process_is_gone(uint64_t token, const struct hami_process *self)
{
    if (token_namespace(token) != LOW(self->pid_namespace, NAMESPACE_BITS))
        return false;
    return kill(hami_process_pid(token), 0) != 0 && errno == ESRCH;
}

bool hami_process_is_dead(uint64_t token, const struct hami_process *self)
{
    char name[16];
    struct stat_line line = {0};
    if (token == self->token || token_namespace(token) != LOW(self->pid_namespace, NAMESPACE_BITS))
        return false;
    if (hami_process_is_gone(token, self))
        return true;
    snprintf(name, sizeof name, "%d", hami_process_pid(token));
    if (!self->proc_is_ours)
        return false;
    if (!read_stat(name, &line)) /* gone by now, or hidden from us (hidepid): then let it live */
        return hami_process_is_gone(token, self);
    if (token_start(token) != 0 && LOW(line.start_ticks, START_BITS) != token_start(token))
        return true;
    /* A leader that called pthread_exit is a zombie while its threads run on: count them. */
    return (line.state == 'Z' || line.state == 'X') && line.threads <= 1;
}
