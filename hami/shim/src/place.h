/* place.h: from where this library was loaded, and what follows from that. */
#ifndef HAMI_PLACE_H
#define HAMI_PLACE_H

#include <stdbool.h>

#define HAMI_CONTAINER_DIR "/usr/local/vgpu"

enum hami_place {
    HAMI_PLACE_ELSEWHERE, /* outside of containers: limits are asked for by HAMI_REGION_DIR */
    HAMI_PLACE_FIXED,     /* in a container: without readable limits no device memory */
    HAMI_PLACE_FAIL_OPEN, /* in a container of a node that wants no limits in that case */
};

/* Goes by the very file that the dynamic linker loaded, whatever name it was given. */
enum hami_place hami_place_of_us(void);

/* True if another copy of this library in this process keeps the limits, so that this one must stand
 * aside: the one from the fixed place, or where there is none the first in load order. */
bool hami_place_has_other_keeper(void);

#endif
