/*
 * sandbox-run: runs one container of the sandbox as a process of this machine.
 *
 *   sandbox-run --probe
 *   sandbox-run [--namespaces] [--keep-capabilities] [--root DIR] [--cwd DIR]
 *               [--socket FD] [--log FILE] [--log-bytes N] [--env NAME=VALUE]...
 *               [--mount-ro SOURCE TARGET]... [--mount-rw SOURCE TARGET]... -- COMMAND...
 *
 * It stays as the parent of the container, as a container runtime's monitor does, and owns what
 * must not be lost: every process of the container dies with it (it is their subreaper), and the
 * container's output ends in a bounded log file.
 *
 * Over the socket it says "started PID", or "failed TEXT" where the command could not be run, and
 * in the end "exited CODE" or "signaled NUMBER". It obeys two letters: 't' asks the container's
 * first process to end (SIGTERM), 'k' kills all its processes. The socket's end of file means that
 * the sandbox is gone, and kills them too.
 *
 * The container sees this machine's file system. With --namespaces it has a mount namespace of its
 * own, in which the mounts exist at their places; what has to be created for that lives in memory,
 * this machine's directories are never written.
 */
#define _GNU_SOURCE
#include "sandbox-run.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { EXIT_NOT_STARTED = 128 };

/* What the container keeps when this machine's root starts it: the set that container runtimes
 * give by default. Without CAP_SYS_ADMIN it cannot make a read-only mount writable. */
static const int kept_capabilities[] = {
    CAP_CHOWN,  CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID,  CAP_KILL,
    CAP_SETGID, CAP_SETUID,       CAP_SETPCAP, CAP_NET_BIND_SERVICE, CAP_NET_RAW,
    CAP_SYS_CHROOT, CAP_MKNOD, CAP_AUDIT_WRITE, CAP_SETFCAP,
};

/* ---- privileges ----------------------------------------------------------------------------- */

static int drop_capabilities(void)
{
    for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++) {
        bool kept = false;
        for (size_t i = 0; i < sizeof kept_capabilities / sizeof *kept_capabilities; i++)
            kept = kept || kept_capabilities[i] == capability;
        if (!kept && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0)
            return fail("drop capability %d", capability);
    }
    return 0;
}

/* ---- the container's first process ------------------------------------------------------------ */

static int become_container(const struct options *options, pid_t monitor)
{
    sigset_t none;
    sigemptyset(&none);
    setsid();
    if (options->namespaces) {
        if (enter_namespaces() != 0 || make_mounts(options) != 0)
            return -1;
        if (geteuid() == 0 && !options->keep_capabilities && drop_capabilities() != 0)
            return -1;
    }
    /* after the change of credentials, which resets it */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0)
        return fail("tie the container to its monitor");
    if (getppid() != monitor) {
        errno = 0;
        return fail("the monitor is gone");
    }
    if (chdir(options->cwd != NULL ? options->cwd : "/") != 0)
        return fail("working directory %s", options->cwd);
    if (options->probe)
        _exit(0);
    sigprocmask(SIG_SETMASK, &none, NULL);
    extern char **environ;
    environ = options->env;
    execvp(options->command[0], options->command);
    return fail("exec %s", options->command[0]);
}

/* Start it. `log_end` is where its output goes; returns its pid, or -1 with `failure` set. */
static pid_t start(const struct options *options, int log_end)
{
    int report[2];
    pid_t monitor = getpid();
    if (pipe2(report, O_CLOEXEC) != 0)
        return (pid_t)fail("create a pipe");
    pid_t child = fork();
    if (child < 0)
        return (pid_t)fail("fork");
    if (child == 0) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        int output = log_end >= 0 ? log_end : null;
        if (null < 0 || dup2(null, 0) < 0 || dup2(output, 1) < 0 || dup2(output, 2) < 0)
            fail("connect the container's output");
        else
            become_container(options, monitor);
        ssize_t ignored = write(report[1], failure, strlen(failure));
        (void)ignored;
        _exit(EXIT_NOT_STARTED);
    }
    close(report[1]);
    size_t length = 0;
    ssize_t count;
    while (length < sizeof failure - 1 &&
           ((count = read(report[0], failure + length, sizeof failure - 1 - length)) > 0 ||
            (count < 0 && errno == EINTR)))
        length += count > 0 ? (size_t)count : 0;
    close(report[0]);
    if (length == 0)
        return child;
    failure[length] = '\0';
    waitpid(child, NULL, 0);
    return -1;
}

/* ---- the monitor ------------------------------------------------------------------------------ */

struct log_file {
    const char *path;
    long long limit;
    long long size;
    int file;
};

static int open_log(struct log_file *log)
{
    struct stat status;
    log->file = open(log->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (log->file < 0 || fstat(log->file, &status) != 0)
        return fail("open log %s", log->path);
    log->size = status.st_size;
    return 0;
}

/* Two files at most, each of at most `limit` bytes: FILE and, before it, FILE.1. */
static void write_log(struct log_file *log, const char *bytes, size_t count)
{
    if (log->limit > 0 && log->size > 0 && log->size + (long long)count > log->limit) {
        char older[4096];
        snprintf(older, sizeof older, "%s.1", log->path);
        close(log->file);
        if (rename(log->path, older) != 0)
            unlink(log->path);
        if (open_log(log) != 0)
            log->file = -1;
    }
    while (count > 0 && log->file >= 0) {
        ssize_t written = write(log->file, bytes, count);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return; /* a full disk loses output, it does not stop the container */
        log->size += written;
        bytes += written;
        count -= (size_t)written;
    }
}

/* Kill the whole container. A process whose parent dies becomes our child, so that killing our
 * children until none is left reaches every descendant, whatever session it moved to. */
static void kill_children(void)
{
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    FILE *children = fopen(path, "re");
    if (children == NULL)
        return;
    size_t length = fread(text, 1, sizeof text - 1, children);
    fclose(children);
    if (length == sizeof text - 1)
        while (length > 0 && text[length - 1] != ' ')
            length--; /* never half a number: the rest comes next time */
    text[length] = '\0';
    for (char *word = strtok(text, " "); word != NULL; word = strtok(NULL, " "))
        kill((pid_t)atoi(word), SIGKILL);
}

static void kill_all(pid_t first)
{
    if (first > 0)
        kill(-first, SIGKILL);
    kill_children();
}

static void say(int socket, const char *format, ...)
{
    char line[MESSAGE_BYTES + 32];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (socket >= 0 && length > 0 && (size_t)length < sizeof line) {
        ssize_t ignored = send(socket, line, (size_t)length, MSG_NOSIGNAL);
        (void)ignored;
    }
}

/* Reap what has ended; true once the first process is among it. */
static bool reap(pid_t first, int *status)
{
    int ended;
    pid_t pid;
    bool done = false;
    while ((pid = waitpid(-1, &ended, WNOHANG)) > 0)
        if (pid == first) {
            *status = ended;
            done = true;
        }
    return done;
}

static void obey(int socket, pid_t first, short *events)
{
    char letters[64];
    ssize_t count = recv(socket, letters, sizeof letters, MSG_DONTWAIT);
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (count <= 0) {
        *events = 0;
        kill_all(first);
        return;
    }
    for (ssize_t i = 0; i < count; i++)
        if (letters[i] == 't')
            kill(first, SIGTERM);
        else if (letters[i] == 'k')
            kill_all(first);
}

/* Until the first process has ended: pass on its output, obey the socket. */
static int watch(const struct options *options, pid_t first, int signals, int output,
                 struct log_file *log)
{
    char bytes[16384];
    int status = 0;
    struct pollfd waits[3] = {
        {.fd = signals, .events = POLLIN},
        {.fd = output, .events = POLLIN},
        {.fd = options->socket, .events = POLLIN},
    };
    for (;;) {
        if (poll(waits, 3, -1) < 0 && errno != EINTR)
            break;
        if (waits[1].revents != 0) {
            ssize_t count = read(output, bytes, sizeof bytes);
            if (count > 0)
                write_log(log, bytes, (size_t)count);
            else if (count == 0)
                waits[1].fd = -1; /* it closed its output and goes on */
        }
        if (waits[2].revents != 0) {
            obey(options->socket, first, &waits[2].events);
            if (waits[2].events == 0)
                waits[2].fd = -1;
        }
        if (waits[0].revents != 0) {
            struct signalfd_siginfo info;
            while (read(signals, &info, sizeof info) == (ssize_t)sizeof info)
                if (info.ssi_signo != SIGCHLD)
                    kill_all(first);
            if (reap(first, &status))
                break;
        }
    }
    /* as in a pid namespace, nothing outlives the first process */
    kill_all(first);
    for (;;) {
        pid_t pid = waitpid(-1, NULL, 0);
        if (pid < 0 && errno == ECHILD)
            break;
        kill_children();
    }
    if (waits[1].fd >= 0) {
        ssize_t count;
        while ((count = read(output, bytes, sizeof bytes)) > 0)
            write_log(log, bytes, (size_t)count);
    }
    return status;
}

static int monitor(const struct options *options)
{
    struct log_file log = {.path = options->log, .limit = options->log_bytes, .file = -1};
    int output[2] = {-1, -1};
    sigset_t watched;
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    sigaddset(&watched, SIGTERM);
    sigaddset(&watched, SIGINT);
    sigaddset(&watched, SIGHUP);
    sigprocmask(SIG_BLOCK, &watched, NULL);
    int signals = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
    pid_t first = -1;
    if (signals < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0)
        fail("become the container's monitor");
    else if (options->log != NULL &&
             (open_log(&log) != 0 || pipe2(output, O_CLOEXEC) != 0))
        fail("open the log");
    else
        first = start(options, output[1]);
    if (first < 0) {
        say(options->socket, "failed %s\n", failure);
        fprintf(stderr, "sandbox-run: %s\n", failure);
        return EXIT_NOT_STARTED;
    }
    if (output[1] >= 0)
        close(output[1]);
    say(options->socket, "started %d\n", (int)first);
    int status = watch(options, first, signals, output[0], &log);
    if (WIFSIGNALED(status)) {
        say(options->socket, "signaled %d\n", WTERMSIG(status));
        return EXIT_NOT_STARTED + WTERMSIG(status);
    }
    say(options->socket, "exited %d\n", WEXITSTATUS(status));
    return WEXITSTATUS(status);
}

/* ---- command line ----------------------------------------------------------------------------- */

static const char *value_of(int argc, char **argv, int *index)
{
    if (*index + 1 >= argc) {
        fprintf(stderr, "sandbox-run: %s needs a value\n", argv[*index]);
        exit(2);
    }
    return argv[++*index];
}

static struct options parse(int argc, char **argv)
{
    struct options options = {.socket = -1};
    options.binds = calloc((size_t)argc, sizeof *options.binds);
    options.env = calloc((size_t)argc + 1, sizeof *options.env);
    if (options.binds == NULL || options.env == NULL) {
        fprintf(stderr, "sandbox-run: out of memory\n");
        exit(2);
    }
    int i = 1;
    for (; i < argc && strcmp(argv[i], "--") != 0; i++) {
        const char *name = argv[i];
        if (strcmp(name, "--probe") == 0)
            options.probe = options.namespaces = true;
        else if (strcmp(name, "--namespaces") == 0)
            options.namespaces = true;
        else if (strcmp(name, "--keep-capabilities") == 0)
            options.keep_capabilities = true;
        else if (strcmp(name, "--root") == 0)
            options.root = value_of(argc, argv, &i);
        else if (strcmp(name, "--cwd") == 0)
            options.cwd = value_of(argc, argv, &i);
        else if (strcmp(name, "--log") == 0)
            options.log = value_of(argc, argv, &i);
        else if (strcmp(name, "--log-bytes") == 0)
            options.log_bytes = atoll(value_of(argc, argv, &i));
        else if (strcmp(name, "--socket") == 0)
            options.socket = atoi(value_of(argc, argv, &i));
        else if (strcmp(name, "--env") == 0)
            options.env[options.env_count++] = (char *)(uintptr_t)value_of(argc, argv, &i);
        else if (strcmp(name, "--mount-ro") == 0 || strcmp(name, "--mount-rw") == 0) {
            struct bind *bind = &options.binds[options.bind_count++];
            bind->read_only = strcmp(name, "--mount-ro") == 0;
            bind->source = value_of(argc, argv, &i);
            bind->target = value_of(argc, argv, &i);
        } else {
            fprintf(stderr, "sandbox-run: unknown option %s\n", name);
            exit(2);
        }
    }
    options.command = argv + (i < argc ? i + 1 : argc);
    if (options.command[0] == NULL && !options.probe) {
        fprintf(stderr, "sandbox-run: no command\n");
        exit(2);
    }
    /* parents before what is mounted inside them */
    qsort(options.binds, options.bind_count, sizeof *options.binds, by_target);
    return options;
}

int main(int argc, char **argv)
{
    struct options options = parse(argc, argv);
    if (options.socket >= 0)
        fcntl(options.socket, F_SETFD, FD_CLOEXEC);
    int code = monitor(&options);
    free(options.binds);
    free(options.env);
    return code;
}
