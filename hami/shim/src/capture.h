/* capture.h: which streams are being captured. What is launched into one runs later, or never. */
#ifndef HAMI_CAPTURE_H
#define HAMI_CAPTURE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "driver.h"

#define HAMI_LEGACY_STREAM ((CUstream)1)
#define HAMI_PER_THREAD_STREAM ((CUstream)2)

extern _Atomic int hami_captures; /* begun in this process and not ended */

/* The handle that means the same stream to functions without _ptsz. */
static inline CUstream hami_stream_per_thread(CUstream stream)
{
    return stream == NULL ? HAMI_PER_THREAD_STREAM : stream;
}

static inline bool hami_capture_is_active(void)
{
    return __builtin_expect(atomic_load_explicit(&hami_captures, memory_order_relaxed) != 0, 0);
}

/* True if what is launched into the stream now is recorded rather than run. */
bool hami_capture_covers(CUstream stream);

/* A context, and with it its captures, is about to be destroyed. */
void hami_capture_forget_context(CUcontext context);

/* After fork, in the child: nothing is captured. */
void hami_capture_after_fork(void);

#endif
