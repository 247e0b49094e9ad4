/* vmm.h: physical memory that is mapped by the program itself (vmm.c). */
#ifndef HAMI_VMM_H
#define HAMI_VMM_H

/* After fork, in the child: forget everything. */
void hami_vmm_after_fork(void);

#endif
