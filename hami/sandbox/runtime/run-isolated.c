/*
 * run-isolated: becomes a program that sees some files at places where this machine has others.
 *
 *   run-isolated [--probe] [--mount-ro SOURCE TARGET]... [--mount-rw SOURCE TARGET]... -- COMMAND...
 *
 * In a mount namespace of its own, and a user namespace where that takes one; ids stay themselves.
 * It becomes the program: pid, terminal, signals and exit status are the program's. With --probe it
 * only tries. Exit status 125: not possible, in one line on stderr; 126, 127: as a shell's.
 */
#define _GNU_SOURCE
#include "sandbox-run.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EXIT_NOT_POSSIBLE = 125, EXIT_NOT_EXECUTABLE = 126, EXIT_NOT_FOUND = 127 };

__attribute__((noreturn)) static void refuse(int code)
{
    fprintf(stderr, "%s\n", failure);
    exit(code);
}

static struct options parse(int argc, char **argv)
{
    struct options options = {.socket = -1};
    options.binds = calloc((size_t)argc, sizeof *options.binds);
    int i = 1;
    for (; options.binds != NULL && i < argc && strcmp(argv[i], "--") != 0; i++) {
        const bool read_only = strcmp(argv[i], "--mount-ro") == 0;
        if (strcmp(argv[i], "--probe") == 0) {
            options.probe = true;
        } else if ((read_only || strcmp(argv[i], "--mount-rw") == 0) && i + 2 < argc) {
            options.binds[options.bind_count++] =
                (struct bind){.source = argv[i + 1], .target = argv[i + 2], .read_only = read_only};
            i += 2;
        } else {
            errno = 0;
            fail("unexpected argument %s", argv[i]);
            refuse(EXIT_NOT_POSSIBLE);
        }
    }
    options.command = argv + (i < argc ? i + 1 : argc);
    if (options.binds == NULL || (options.command[0] == NULL && !options.probe)) {
        fail("no command");
        refuse(EXIT_NOT_POSSIBLE);
    }
    qsort(options.binds, options.bind_count, sizeof *options.binds, by_target);
    return options;
}

int main(int argc, char **argv)
{
    struct options options = parse(argc, argv);
    char *directory = getcwd(NULL, 0);
    if (enter_namespaces() != 0 || make_mounts(&options) != 0)
        refuse(EXIT_NOT_POSSIBLE);
    if (directory != NULL && chdir(directory) != 0) { /* the same place, as the mounts show it now */
        fail("working directory %.200s", directory);
        refuse(EXIT_NOT_POSSIBLE);
    }
    if (options.probe)
        return 0;
    execvp(options.command[0], options.command);
    const int code = errno == ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE;
    fail("%.200s", options.command[0]);
    refuse(code);
}
