/* bystander: a program that has nothing to do with GPUs tells all that a library might disturb. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
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
    void *libm = dlopen("libm.so.6", RTLD_NOW);
    const mode_t mask = umask(022);
    umask(mask);
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
    printf("umask: %o\n", (unsigned)mask);
    for (int number = 1; number < NSIG; number++)
        if (sigaction(number, NULL, &action) == 0 && action.sa_handler != SIG_DFL)
            printf("signal %d is handled\n", number);
    printf("errno: %d\n", errno);
    for (int i = 1; i < count; i++) /* hooked names, which no loaded library has */
        printf("%s: %d\n", words[i], dlsym(RTLD_DEFAULT, words[i]) == NULL && dlerror() != NULL);
    return 0;
}
