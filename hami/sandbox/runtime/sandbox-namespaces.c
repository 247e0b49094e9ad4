/*
 * A mount namespace of one's own, and the one line that says why there is none.
 */
#define _GNU_SOURCE
#include "sandbox-run.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

char failure[MESSAGE_BYTES];

int fail(const char *format, ...)
{
    int saved = errno;
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(failure, sizeof failure, format, arguments);
    va_end(arguments);
    if (saved != 0 && length >= 0 && (size_t)length < sizeof failure)
        snprintf(failure + length, sizeof failure - (size_t)length, ": %s", strerror(saved));
    for (char *c = failure; *c != '\0'; c++)
        if (*c == '\n')
            *c = ' ';
    return -1;
}

static int write_file(const char *path, const char *text)
{
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0)
        return fail("open %s", path);
    ssize_t written = write(file, text, strlen(text));
    int saved = errno;
    close(file);
    errno = saved;
    return written == (ssize_t)strlen(text) ? 0 : fail("write %s", path);
}

/* Ids are themselves in the user namespace: the program runs as whoever started it. */
int enter_namespaces(void)
{
    char map[64];
    uid_t user = geteuid();
    gid_t group = getegid();
    if (user == 0)
        return unshare(CLONE_NEWNS) == 0 ? 0 : fail("create a mount namespace");
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0)
        return fail("create a user and a mount namespace");
    if (write_file("/proc/self/setgroups", "deny") != 0)
        return -1;
    snprintf(map, sizeof map, "%u %u 1", (unsigned)user, (unsigned)user);
    if (write_file("/proc/self/uid_map", map) != 0)
        return -1;
    snprintf(map, sizeof map, "%u %u 1", (unsigned)group, (unsigned)group);
    return write_file("/proc/self/gid_map", map);
}
