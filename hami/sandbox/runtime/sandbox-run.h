/* What sandbox-run and run-isolated share: options, and the one line that says what failed. */
#ifndef HAMI_SANDBOX_RUN_H
#define HAMI_SANDBOX_RUN_H

#include <stdbool.h>
#include <stddef.h>

enum { MESSAGE_BYTES = 512 };

struct bind {
    const char *source;
    const char *target;
    bool read_only;
};

struct options {
    bool probe;
    bool namespaces;
    bool keep_capabilities;
    int socket;
    const char *root;
    const char *cwd;
    const char *log;
    long long log_bytes;
    struct bind *binds;
    size_t bind_count;
    char **env;
    size_t env_count;
    char **command;
};

/* The last failure, kept until somebody can be told. */
extern char failure[MESSAGE_BYTES];

/* Note a failure, with the text of errno where that is set; always -1. */
__attribute__((format(printf, 1, 2))) int fail(const char *format, ...);

/* Give this process a mount namespace of its own, and where it is not root a user namespace in which
 * ids are themselves; 0, or -1 with `failure` set. */
int enter_namespaces(void);

/* Parents before what lies below them: for qsort, over struct bind. */
int by_target(const void *left, const void *right);

/* Make the container's mounts in the mount namespace of this process; 0, or -1 with `failure` set. */
int make_mounts(const struct options *options);

#endif
