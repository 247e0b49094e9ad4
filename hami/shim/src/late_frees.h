/* late_frees.h: plain memory that is freed in stream order is there until the stream has come so far. */
#ifndef HAMI_LATE_FREES_H
#define HAMI_LATE_FREES_H

#include <stdbool.h>

#include "driver.h"
#include "pointers.h"

/* The driver has taken the free of this entry, which is out of the table. `stream`: as functions without
 * _ptsz name it. */
void hami_free_late(const struct hami_pointer *pointer, CUstream stream);

/* Discharge what is freed by now. `waited`: the program has just waited for some work of its own.
 * Returns whether anything was. */
bool hami_late_frees_settle(bool waited);

/* Around the driver's destruction of a context, which takes memory and events along. */
struct hami_late_free *hami_late_frees_take_context(CUcontext context);
void hami_late_frees_finish_context(struct hami_late_free *taken, bool destroyed);

/* After fork, in the child: forget everything. */
void hami_late_frees_after_fork(void);

#endif
