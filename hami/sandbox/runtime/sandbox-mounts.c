/*
 * The container's mounts, at their container paths.
 *
 * A target whose directories do not exist here is made in memory: the deepest directory that does
 * exist is covered by a file system in memory that shows its entries, and the rest is created there.
 * This machine's directories are never written.
 */
#define _GNU_SOURCE
#include "sandbox-run.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { MAX_COVERS = 64 };

static dev_t covers[MAX_COVERS]; /* the file systems made here: in them, creating is free */
static size_t cover_count;

int by_target(const void *left, const void *right)
{
    return strcmp(((const struct bind *)left)->target, ((const struct bind *)right)->target);
}

static bool is_cover(dev_t device)
{
    for (size_t i = 0; i < cover_count; i++)
        if (covers[i] == device)
            return true;
    return false;
}

/* Bind one entry of the directory open at `from` to the same name below `onto`. */
static int bind_child(int from, const char *onto, const char *name)
{
    char target[4096], source[512];
    struct stat status;
    if (snprintf(target, sizeof target, "%s/%s", onto, name) >= (int)sizeof target)
        return 0; /* a name that no path can hold: the container lives without it */
    if (fstatat(from, name, &status, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? 0 : fail("stat %s", target); /* it vanished meanwhile */
    if (S_ISLNK(status.st_mode)) {
        char link[4096];
        ssize_t length = readlinkat(from, name, link, sizeof link - 1);
        if (length < 0)
            return errno == ENOENT ? 0 : fail("read link %s", target);
        link[length] = '\0';
        return symlink(link, target) == 0 ? 0 : fail("link %s", target);
    }
    if (S_ISDIR(status.st_mode)) {
        if (mkdir(target, 0755) != 0)
            return fail("create directory %s", target);
    } else {
        int file = open(target, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
        if (file < 0)
            return fail("create file %s", target);
        close(file);
    }
    snprintf(source, sizeof source, "/proc/self/fd/%d/%s", from, name);
    if (mount(source, target, NULL, MS_BIND | MS_REC, NULL) != 0 && errno != ENOENT)
        return fail("bind %s", target);
    return 0;
}

/* Put a file system in memory onto `where` that shows the entries of `directory`. */
static int cover(const char *directory, const char *where)
{
    struct stat status;
    char mode[32];
    if (cover_count == MAX_COVERS) {
        errno = 0;
        return fail("more than %d directories to cover for the mounts", MAX_COVERS);
    }
    int from = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (from < 0 || fstat(from, &status) != 0)
        return fail("open %s", directory);
    snprintf(mode, sizeof mode, "mode=%o", (unsigned)(status.st_mode & 07777));
    if (mount("sandbox", where, "tmpfs", MS_NOSUID, mode) != 0)
        return fail("mount a file system in memory on %s", where);
    /* a recursive bind of a directory that contains it must not copy it into itself */
    if (mount(NULL, where, NULL, MS_UNBINDABLE, NULL) != 0)
        return fail("mark %s unbindable", where);
    if (stat(where, &status) != 0)
        return fail("stat %s", where);
    covers[cover_count++] = status.st_dev;

    DIR *entries = fdopendir(from);
    if (entries == NULL)
        return fail("list %s", directory);
    struct dirent *entry;
    int result = 0;
    while (result == 0 && (entry = readdir(entries)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            result = bind_child(from, where, entry->d_name);
    closedir(entries);
    return result;
}

/* Whether `path` shows one of the first `count` binds, or something below it. */
static bool is_bound(const struct bind *binds, size_t count, const char *path)
{
    for (size_t i = 0; i < count; i++) {
        size_t length = strlen(binds[i].target);
        if (strncmp(path, binds[i].target, length) == 0 &&
            (path[length] == '/' || path[length] == '\0'))
            return true;
    }
    return false;
}

/* Make `target` exist as a directory or a file: inside a cover, or inside the source of an earlier
 * mount, as container runtimes do. */
static int make_target(const struct bind *binds, size_t count, bool directory)
{
    const char *target = binds[count].target;
    char path[4096];
    struct stat status;
    if (target[0] != '/' || strlen(target) >= sizeof path) {
        errno = 0;
        return fail("mount target %.200s is not a usable absolute path", target);
    }
    if (stat(target, &status) == 0) {
        if (S_ISDIR(status.st_mode) == directory)
            return 0;
        errno = directory ? ENOTDIR : EISDIR;
        return fail("mount target %s", target);
    }
    /* the deepest ancestor that exists, then downwards from there */
    strcpy(path, target);
    size_t end = strlen(path);
    while (end > 1) {
        while (end > 1 && path[end - 1] != '/')
            end--;
        path[end > 1 ? end - 1 : 1] = '\0';
        end = end > 1 ? end - 1 : 1;
        if (stat(path, &status) == 0)
            break;
    }
    if (!S_ISDIR(status.st_mode)) {
        errno = ENOTDIR;
        return fail("parent %s of mount target %s", path, target);
    }
    if (!is_cover(status.st_dev) && !is_bound(binds, count, path) && cover(path, path) != 0)
        return -1;
    for (const char *next = target + end; *next != '\0';) {
        next += strspn(next, "/");
        next += strcspn(next, "/");
        size_t length = (size_t)(next - target);
        bool last = next[strspn(next, "/")] == '\0';
        memcpy(path, target, length);
        path[length] = '\0';
        if (!last || directory) {
            if (mkdir(path, 0755) != 0 && errno != EEXIST)
                return fail("create directory %s", path);
        } else {
            int file = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
            if (file < 0)
                return fail("create file %s", path);
            close(file);
        }
        if (last)
            break;
    }
    return 0;
}

/* Flags that a mount has already and that a remount in a user namespace may not take away. */
static unsigned long locked_flags(const char *target)
{
    struct statvfs status;
    if (statvfs(target, &status) != 0)
        return 0;
    return ((status.f_flag & ST_NOSUID) ? MS_NOSUID : 0) |
           ((status.f_flag & ST_NODEV) ? MS_NODEV : 0) |
           ((status.f_flag & ST_NOEXEC) ? MS_NOEXEC : 0) |
           ((status.f_flag & ST_NOATIME) ? MS_NOATIME : 0) |
           ((status.f_flag & ST_NODIRATIME) ? MS_NODIRATIME : 0) |
           ((status.f_flag & ST_RELATIME) ? MS_RELATIME : 0);
}

static int apply_bind(const struct bind *bind, int source)
{
    char from[64];
    snprintf(from, sizeof from, "/proc/self/fd/%d", source);
    if (mount(from, bind->target, NULL, MS_BIND | MS_REC, NULL) != 0)
        return fail("mount %s on %s", bind->source, bind->target);
    if (bind->read_only && mount(NULL, bind->target, NULL,
                                 MS_BIND | MS_REMOUNT | MS_RDONLY | locked_flags(bind->target),
                                 NULL) != 0)
        return fail("make %s read-only", bind->target);
    return 0;
}

/* A target whose first directory is missing needs a root of our own. */
static bool needs_root(const struct options *options)
{
    for (size_t i = 0; i < options->bind_count; i++) {
        char first[4096];
        struct stat status;
        const char *target = options->binds[i].target;
        size_t length = 1 + strcspn(target + 1, "/");
        if (target[0] != '/' || length >= sizeof first)
            continue; /* make_target says what is wrong with it */
        memcpy(first, target, length);
        first[length] = '\0';
        if (stat(first, &status) != 0)
            return true;
    }
    return false;
}

int make_mounts(const struct options *options)
{
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        return fail("make the mounts private");
    /* the sources are this machine's paths: open them before anything is covered */
    int *sources = calloc(options->bind_count + 1, sizeof *sources);
    if (sources == NULL)
        return fail("allocate memory");
    for (size_t i = 0; i < options->bind_count; i++)
        if ((sources[i] = open(options->binds[i].source, O_PATH | O_CLOEXEC)) < 0)
            return fail("mount source %s", options->binds[i].source);
    if (needs_root(options)) {
        if (options->root == NULL) {
            errno = 0;
            return fail("a mount needs a new directory in /, and no --root was given");
        }
        if (cover("/", options->root) != 0)
            return -1;
        if (chroot(options->root) != 0 || chdir("/") != 0)
            return fail("enter the new root");
    }
    for (size_t i = 0; i < options->bind_count; i++) {
        struct stat status;
        if (fstat(sources[i], &status) != 0)
            return fail("stat %s", options->binds[i].source);
        if (make_target(options->binds, i, S_ISDIR(status.st_mode)) != 0 ||
            apply_bind(&options->binds[i], sources[i]) != 0)
            return -1;
        close(sources[i]);
    }
    free(sources);
    return 0;
}
