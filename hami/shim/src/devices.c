/* devices.c: one index space, that of the control file, reached by UUID from CUDA and from NVML. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <string.h>

#include "hooks.h"
#include "shim.h"

#define ORDINALS 64
#define HANDLES 64
#define UUID_BYTES 16

/* 0: not known yet; else the index + 2, so that HAMI_UNLISTED is 1. */
static _Atomic int by_ordinal[ORDINALS];

static struct {
    _Atomic(nvmlDevice_t) handle;
    _Atomic int index;
} by_handle[HANDLES];

static int hex(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    if (digit >= 'a' && digit <= 'f')
        return digit - 'a' + 10;
    return digit >= 'A' && digit <= 'F' ? digit - 'A' + 10 : -1;
}

/* "GPU-" or "MIG-", then 32 hexadecimal digits with dashes anywhere. */
static bool parse_uuid(const char *text, unsigned char uuid[UUID_BYTES])
{
    int digits = 0;
    if (strncmp(text, "GPU-", 4) != 0 && strncmp(text, "MIG-", 4) != 0)
        return false;
    for (const char *cursor = text + 4; *cursor != '\0'; cursor++) {
        if (*cursor == '-')
            continue;
        if (hex(*cursor) < 0 || digits == 2 * UUID_BYTES)
            return false;
        const int low = hex(*cursor);
        uuid[digits / 2] = (unsigned char)(digits % 2 == 0 ? low << 4 : uuid[digits / 2] | low);
        digits++;
    }
    return digits == 2 * UUID_BYTES;
}

static int find_uuid(const unsigned char uuid[UUID_BYTES])
{
    const struct hami_control *control = hami_region()->control;
    for (unsigned index = 0; index < hami_region_device_count(hami_region()); index++) {
        char text[HAMI_UUID_BYTES + 1] = {0};
        unsigned char listed[UUID_BYTES] = {0};
        memcpy(text, control->devices[index].uuid, HAMI_UUID_BYTES);
        if (parse_uuid(text, listed) && memcmp(listed, uuid, UUID_BYTES) == 0)
            return (int)index;
    }
    return HAMI_UNLISTED;
}

int hami_device_of_ordinal(CUdevice ordinal)
{
    CUuuid uuid = {{0}};
    const bool cached = ordinal >= 0 && ordinal < ORDINALS;
    const int known = cached ? atomic_load_explicit(&by_ordinal[ordinal], memory_order_relaxed) : 0;
    if (known != 0)
        return known - 2;
    if (HAMI_CUDA(cuDeviceGetUuid_v2, &uuid, ordinal) != CUDA_SUCCESS &&
        HAMI_CUDA(cuDeviceGetUuid, &uuid, ordinal) != CUDA_SUCCESS)
        return HAMI_UNLISTED;
    const int index = find_uuid(uuid.bytes);
    if (cached)
        atomic_store_explicit(&by_ordinal[ordinal], index + 2, memory_order_relaxed);
    return index;
}

static int look_handle_up(nvmlDevice_t handle)
{
    char text[HAMI_UUID_BYTES + 1] = {0};
    unsigned char uuid[UUID_BYTES];
    if (HAMI_NVML(nvmlDeviceGetUUID, handle, text, HAMI_UUID_BYTES) != NVML_SUCCESS ||
        !parse_uuid(text, uuid))
        return HAMI_UNLISTED;
    return find_uuid(uuid);
}

int hami_device_of_handle(nvmlDevice_t handle)
{
    for (int i = 0; i < HANDLES; i++) {
        nvmlDevice_t seen = atomic_load(&by_handle[i].handle);
        if (seen == NULL && atomic_compare_exchange_strong(&by_handle[i].handle, &seen, handle))
            seen = handle;
        if (seen != handle)
            continue;
        const int known = atomic_load(&by_handle[i].index);
        const int index = known != 0 ? known - 2 : look_handle_up(handle);
        if (index != HAMI_UNLISTED)
            atomic_store(&by_handle[i].index, index + 2);
        return index;
    }
    return look_handle_up(handle);
}

void hami_devices_after_fork(void)
{
    memset(by_ordinal, 0, sizeof by_ordinal);
    memset(by_handle, 0, sizeof by_handle);
}
