/* bystander: a program that has nothing to do with GPUs tells all that a library might disturb. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int entries(const char *directory)
{
    int count = 0;
    DIR *handle = opendir(directory);
    while (readdir(handle) != NULL)
        count++;
    closedir(handle);
    return count;
}

static void show_descriptors(void)
{
    char path[64], target[4096];
    for (int descriptor = 0; descriptor < 256; descriptor++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
        const ssize_t length = readlink(path, target, sizeof target - 1);
        if (length >= 0 && strncmp(target, "pipe:", 5) != 0)
            printf("descriptor %d: %.*s\n", descriptor, (int)length, target);
    }
}

static void show_mapped_files(void)
{
    char line[4096];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps) != NULL)
        if (strchr(line, '/') != NULL)
            printf("mapped: %s", strchr(line, '/'));
    fclose(maps);
}

static void show_environment(void)
{
    for (char **entry = environ; *entry != NULL; entry++)
        if (strncmp(*entry, "LD_PRELOAD=", 11) != 0)
            printf("variable %s\n", *entry);
}

static const char *show(void *address)
{
    Dl_info info;
    if (address == NULL) {
        const char *error = dlerror();
        return error != NULL ? error : "NULL without an error";
    }
    return dladdr(address, &info) != 0 ? info.dli_fname : "somewhere";
}

int main(int count, char **words)
{
    struct sigaction action;
    sigset_t blocked;
    pthread_key_t key; /* the next one to be had tells how many are taken */
    void *libm = dlopen("libm.so.6", RTLD_NOW);
    const mode_t mask = umask(022);
    umask(mask);
    sigprocmask(SIG_SETMASK, NULL, &blocked);
    pthread_key_create(&key, NULL);
    printf("thread keys: %u\n", key);
    errno = 0;
    for (int i = 0; i < 3; i++)
        printf("next getpid: %s\n", show(dlsym(RTLD_NEXT, "getpid")));
    printf("cos: %s\n", show(dlsym(libm, "cos")));
    printf("cups: %s\n", show(dlsym(RTLD_DEFAULT, "cupsGetOption")));
    printf("curl: %s\n", show(dlsym(libm, "curl_easy_init")));
    printf("cuInit: %s\n", show(dlsym(RTLD_DEFAULT, "cuInit")));
    printf("no name: %s\n", show(dlsym(RTLD_DEFAULT, "")));
    printf("versioned: %s\n", show(dlvsym(RTLD_DEFAULT, "cos", "GLIBC_2.2.5")));
    printf("descriptors: %d\n", entries("/proc/self/fd"));
    printf("threads: %d\n", entries("/proc/self/task"));
    show_descriptors();
    show_mapped_files();
    show_environment();
    printf("umask: %o\n", (unsigned)mask);
    for (int number = 1; number < NSIG; number++)
        if (sigaction(number, NULL, &action) == 0 &&
            (action.sa_handler != SIG_DFL || sigismember(&blocked, number) != 0))
            printf("signal %d is handled or blocked\n", number);
    printf("errno: %d\n", errno);
    for (int i = 1; i < count; i++) /* hooked names, which no loaded library has */
        printf("%s: %d\n", words[i], dlsym(RTLD_DEFAULT, words[i]) == NULL && dlerror() != NULL);
    return 0;
}
