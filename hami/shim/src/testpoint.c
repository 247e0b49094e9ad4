/* testpoint.c: dying and stopping where a test says. Empty but in test builds. */
#define _GNU_SOURCE
#include "testpoint.h"

#ifdef HAMI_TEST_POINTS

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_armed(const char *variable, const char *name)
{
    const char *armed = getenv(variable);
    return armed != NULL && strcmp(armed, name) == 0;
}

void hami_test_point(const char *name)
{
    static atomic_flag stopped = ATOMIC_FLAG_INIT;
    if (is_armed("HAMI_KILL_AT", name))
        kill(getpid(), SIGKILL);
    if (is_armed("HAMI_STOP_AT", name) && !atomic_flag_test_and_set(&stopped))
        kill(getpid(), SIGSTOP);
}

#endif
