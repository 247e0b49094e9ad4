/* loader [--global] [--library NAME] QUERY...: who answers for a symbol?
 *
 *   handle:SYMBOL  default:SYMBOL  next:SYMBOL     dlsym with that handle
 *   vsym:SYMBOL:VERSION                            dlvsym on the library's handle
 *   second:SYMBOL                                  dlsym(RTLD_NEXT) as libsecond.so calls it
 *   p1:SYMBOL:VERSION:FLAGS  p2:SYMBOL:VERSION:FLAGS   cuGetProcAddress in its two forms
 * Prints for each the file that holds the answer, or "none" and "error" if dlerror says something;
 * for p1 and p2 the CUresult, and for p2 the status, come first.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <libgen.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int with_names;

static const char *owner(void *address)
{
    static char path[4096], answer[4200];
    Dl_info info;
    if (address == NULL)
        return dlerror() != NULL ? "none error" : "none";
    if (dladdr(address, &info) == 0)
        return "unknown";
    snprintf(path, sizeof path, "%s", info.dli_fname);
    if (dlerror() != NULL)
        return "an answer and an error";
    if (!with_names)
        return basename(path);
    snprintf(answer, sizeof answer, "%s:%s", basename(path), info.dli_sname != NULL ? info.dli_sname : "?");
    return answer;
}

static void ask_proc(void *library, int form, const char *symbol, int version, uint64_t flags)
{
    void *function = NULL;
    int status = -1;
    if (form == 1) {
        int (*get)(const char *, void **, int, uint64_t) =
            (int (*)(const char *, void **, int, uint64_t))dlsym(library, "cuGetProcAddress");
        const int result = get(symbol, &function, version, flags);
        printf("%d %s\n", result, owner(function));
        return;
    }
    int (*get)(const char *, void **, int, uint64_t, int *) =
        (int (*)(const char *, void **, int, uint64_t, int *))dlsym(library, "cuGetProcAddress_v2");
    const int result = get(symbol, &function, version, flags, &status);
    printf("%d %d %s\n", result, status, owner(function));
}

int main(int count, char **words)
{
    const char *name = "libcuda.so.1";
    int flags = RTLD_NOW;
    void *library = NULL;
    for (int i = 1; i < count; i++) {
        char route[32] = "", symbol[96] = "", third[32] = "", fourth[32] = "";
        if (strcmp(words[i], "--global") == 0) {
            flags |= RTLD_GLOBAL;
            continue;
        }
        if (strcmp(words[i], "--names") == 0) {
            with_names = 1;
            continue;
        }
        if (strcmp(words[i], "--library") == 0) {
            name = words[++i];
            continue;
        }
        if (library == NULL)
            library = dlopen(name, flags);
        dlerror();
        sscanf(words[i], "%31[^:]:%95[^:]:%31[^:]:%31[^:]", route, symbol, third, fourth);
        if (strcmp(route, "handle") == 0)
            puts(owner(dlsym(library, symbol)));
        else if (strcmp(route, "default") == 0)
            puts(owner(dlsym(RTLD_DEFAULT, symbol)));
        else if (strcmp(route, "next") == 0)
            puts(owner(dlsym(RTLD_NEXT, symbol)));
        else if (strcmp(route, "vsym") == 0)
            puts(owner(dlvsym(library, symbol, third)));
        else if (strcmp(route, "second") == 0) {
            void *(*ask)(const char *) = (void *(*)(const char *))dlsym(RTLD_DEFAULT, "second_next");
            puts(owner(ask(symbol)));
        } else if (strcmp(route, "p1") == 0)
            ask_proc(library, 1, symbol, atoi(third), strtoull(fourth, NULL, 10));
        else if (strcmp(route, "p2") == 0)
            ask_proc(library, 2, symbol, atoi(third), strtoull(fourth, NULL, 10));
        else
            return 2;
    }
    return 0;
}
