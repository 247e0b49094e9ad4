/* layout: prints the offset and size of every field of the wire format, one a line. */
#include <stddef.h>
#include <stdio.h>

#include "region.h"

int main(void)
{
#define X(type, field)                                                                             \
    printf(#type "." #field " %zu %zu\n", offsetof(struct type, field),                            \
           sizeof(((struct type *)0)->field));
    HAMI_REGION_FIELDS(X)
#undef X
#define X(type) printf(#type " size %zu\n", sizeof(struct type));
    HAMI_REGION_STRUCTS(X)
#undef X
    return 0;
}
