/* own_iterator: a program with a dl_iterate_phdr of its own, as some database engines have to make
 * exceptions cheaper. It asks dlsym for the real one. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>

typedef int visitor(struct dl_phdr_info *info, size_t size, void *argument);

__attribute__((visibility("default"))) int dl_iterate_phdr(visitor *visit, void *argument)
{
    static int (*real)(visitor *visit, void *argument);
    if (real == NULL)
        real = (int (*)(visitor *, void *))dlsym(RTLD_NEXT, "dl_iterate_phdr");
    return real(visit, argument);
}

int main(void)
{
    puts(dlsym(RTLD_DEFAULT, "getpid") != NULL ? "found" : "missing");
    puts(dlsym(RTLD_NEXT, "cuMemAlloc_v2") != NULL ? "found" : "missing");
    return 0;
}
