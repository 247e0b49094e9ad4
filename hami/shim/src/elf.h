/* elf.h: look a name up in the loaded objects without dlsym, which we replace. */
#ifndef HAMI_ELF_H
#define HAMI_ELF_H

/* The first definition of `name` in an object loaded after the one that contains `address`, in load
 * order: what dlsym(RTLD_NEXT) tells a caller at that address. Address NULL: the first definition of
 * all. NULL: none. Allocates nothing. */
void *hami_elf_next(const char *name, const void *address);

#endif
