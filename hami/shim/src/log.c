/* log.c: one write(2) a line, so that lines of many processes do not mix. */
#define _GNU_SOURCE
#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static enum hami_log_level wanted_level(void)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    const char *name = getenv("HAMI_SHIM_LOG");
    for (int i = 0; name != NULL && i < 4; i++)
        if (strcmp(name, names[i]) == 0)
            return (enum hami_log_level)(i + 1);
    return HAMI_LOG_ERROR;
}

void hami_log(enum hami_log_level level, const char *format, ...)
{
    const int saved_errno = errno;
    char line[512];
    if (level <= wanted_level()) {
        int length = snprintf(line, sizeof line, "hami[%d]: ", (int)getpid());
        va_list arguments;
        va_start(arguments, format);
        length += vsnprintf(line + length, sizeof line - (size_t)length - 1, format, arguments);
        va_end(arguments);
        if (length > (int)sizeof line - 2)
            length = (int)sizeof line - 2;
        line[length] = '\n';
        if (write(STDERR_FILENO, line, (size_t)length + 1) < 0)
            errno = 0; /* nowhere to complain to */
    }
    errno = saved_errno;
}
