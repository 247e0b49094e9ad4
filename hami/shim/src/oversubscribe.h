/* oversubscribe.h: managed memory in the place of device memory that is short. */
#ifndef HAMI_OVERSUBSCRIBE_H
#define HAMI_OVERSUBSCRIBE_H

#include <stdbool.h>
#include <stdint.h>

#include "driver.h"

/* Whether this container's region allows it. Needs HAMI_ENFORCING. */
bool hami_may_oversubscribe(void);

/* Allocate so many bytes as managed memory of the device, with advice by the container's priority.
 * CUDA_ERROR_OUT_OF_MEMORY: that failed as well. */
CUresult hami_allocate_managed(CUdeviceptr *address, uint64_t bytes, CUdevice ordinal);

#endif
