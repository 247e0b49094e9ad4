/* sim_copy.c: copies and fills. They really move bytes, at once, and take no device time.
 *
 * Synchronous copies first wait as the legacy default stream does. Asynchronous ones wait for the
 * host functions of their stream, which may write what is copied, and for nothing else: kernels
 * write nothing. Captured ones become nodes.
 */
#define _GNU_SOURCE
#include <string.h>

#include "sim_graph.h"

enum { TYPE_HOST = 1, TYPE_DEVICE = 2, TYPE_UNIFIED = 4 };

/* Where a side of a copy begins; false: it is not valid. */
static bool begin_of(int type, const void *host, CUdeviceptr device, size_t offset, size_t extent,
                     char **begin)
{
    if (type == TYPE_HOST) {
        *begin = (char *)host + offset;
        return host != NULL;
    }
    *begin = (char *)device + offset;
    return type == TYPE_UNIFIED || (type == TYPE_DEVICE && sim_on_device(device + offset, extent));
}

static size_t extent_of(const CUDA_MEMCPY3D *copy, size_t pitch, size_t height)
{
    return ((copy->Depth - 1) * height + copy->Height - 1) * pitch + copy->WidthInBytes;
}

CUresult sim_copy_3d(const CUDA_MEMCPY3D *copy)
{
    char *source, *target;
    if (copy->WidthInBytes == 0 || copy->Height == 0 || copy->Depth == 0)
        return CUDA_SUCCESS;
    const size_t source_pitch = copy->srcPitch != 0 ? copy->srcPitch : copy->WidthInBytes;
    const size_t target_pitch = copy->dstPitch != 0 ? copy->dstPitch : copy->WidthInBytes;
    const size_t source_height = copy->srcHeight != 0 ? copy->srcHeight : copy->Height;
    const size_t target_height = copy->dstHeight != 0 ? copy->dstHeight : copy->Height;
    if (source_pitch < copy->WidthInBytes || target_pitch < copy->WidthInBytes ||
        !begin_of(copy->srcMemoryType, copy->srcHost, copy->srcDevice,
                  (copy->srcZ * source_height + copy->srcY) * source_pitch + copy->srcXInBytes,
                  extent_of(copy, source_pitch, source_height), &source) ||
        !begin_of(copy->dstMemoryType, copy->dstHost, copy->dstDevice,
                  (copy->dstZ * target_height + copy->dstY) * target_pitch + copy->dstXInBytes,
                  extent_of(copy, target_pitch, target_height), &target))
        return CUDA_ERROR_INVALID_VALUE;
    sim_memory_touched();
    for (size_t z = 0; z < copy->Depth; z++)
        for (size_t y = 0; y < copy->Height; y++)
            memmove(target + (z * target_height + y) * target_pitch,
                    source + (z * source_height + y) * source_pitch, copy->WidthInBytes);
    return CUDA_SUCCESS;
}

CUresult sim_fill_2d(const CUDA_MEMSET_NODE_PARAMS_v2 *fill)
{
    const size_t row = fill->width * fill->elementSize;
    const size_t pitch = fill->height > 1 ? fill->pitch : row;
    if (fill->width == 0 || fill->height == 0)
        return CUDA_SUCCESS;
    if ((fill->elementSize != 1 && fill->elementSize != 2 && fill->elementSize != 4) ||
        fill->width > SIZE_MAX / fill->elementSize || pitch < row || fill->dst % fill->elementSize != 0 ||
        !sim_on_device(fill->dst, (fill->height - 1) * pitch + row))
        return CUDA_ERROR_INVALID_VALUE;
    sim_memory_touched();
    for (size_t y = 0; y < fill->height; y++)
        for (size_t x = 0; x < fill->width; x++)
            memcpy((char *)fill->dst + y * pitch + x * fill->elementSize, &fill->value, fill->elementSize);
    return CUDA_SUCCESS;
}

static CUDA_MEMCPY3D linear(int target_type, uint64_t target, int source_type, uint64_t source, size_t bytes)
{
    return (CUDA_MEMCPY3D){.srcMemoryType = source_type, .srcHost = (const void *)source,
                           .srcDevice = source, .dstMemoryType = target_type,
                           .dstHost = (void *)target, .dstDevice = target, .WidthInBytes = bytes,
                           .Height = 1, .Depth = 1};
}

static CUDA_MEMCPY3D from_2d(const CUDA_MEMCPY2D *copy)
{
    return (CUDA_MEMCPY3D){
        .srcXInBytes = copy->srcXInBytes, .srcY = copy->srcY, .srcMemoryType = copy->srcMemoryType,
        .srcHost = copy->srcHost, .srcDevice = copy->srcDevice, .srcPitch = copy->srcPitch,
        .dstXInBytes = copy->dstXInBytes, .dstY = copy->dstY, .dstMemoryType = copy->dstMemoryType,
        .dstHost = copy->dstHost, .dstDevice = copy->dstDevice, .dstPitch = copy->dstPitch,
        .WidthInBytes = copy->WidthInBytes, .Height = copy->Height, .Depth = 1};
}

static CUresult copy_now(const CUDA_MEMCPY3D *copy)
{
    const CUresult result = sim_wait_as_legacy();
    return result == CUDA_SUCCESS ? sim_copy_3d(copy) : result;
}

static CUresult copy_in(CUstream handle, bool per_thread, const CUDA_MEMCPY3D *copy)
{
    struct sim_stream *stream;
    const CUresult result = sim_stream_for_work(handle, per_thread, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (sim_is_captured(stream)) {
        const union sim_node_params params = {.memcpy = *copy};
        return sim_capture_node(stream, NODE_MEMCPY, &params);
    }
    sim_host_wait(atomic_load(&stream->host_ticket));
    return sim_copy_3d(copy);
}

static CUresult fill_in(CUstream handle, bool per_thread, CUDA_MEMSET_NODE_PARAMS_v2 fill)
{
    struct sim_stream *stream;
    const CUresult result = sim_stream_for_work(handle, per_thread, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (sim_is_captured(stream)) {
        const union sim_node_params params = {.memset = fill};
        return sim_capture_node(stream, NODE_MEMSET, &params);
    }
    return sim_fill_2d(&fill);
}

/* For cuMemcpy: each side is device memory if it is known as such. */
static int side(uint64_t address, size_t bytes)
{
    return sim_on_device(address, bytes) ? TYPE_DEVICE : TYPE_HOST;
}

/* Each copy in its four forms: NAME, NAME_ptds, NAMEAsync, NAMEAsync_ptsz. */
#define COPIES(name, version, parameters, arguments, value)                                        \
    CUresult name##version parameters                                                              \
    {                                                                                              \
        const CUDA_MEMCPY3D copy = value;                                                          \
        return copy_now(&copy);                                                                    \
    }                                                                                              \
    CUresult name##version##_ptds parameters                                                       \
    {                                                                                              \
        return name##version arguments;                                                            \
    }
#define COPIES_ASYNC(name, version, parameters, value)                                             \
    CUresult name##Async##version parameters                                                       \
    {                                                                                              \
        const CUDA_MEMCPY3D copy = value;                                                          \
        return copy_in(stream, false, &copy);                                                      \
    }                                                                                              \
    CUresult name##Async##version##_ptsz parameters                                                \
    {                                                                                              \
        const CUDA_MEMCPY3D copy = value;                                                          \
        return copy_in(stream, true, &copy);                                                       \
    }
#define UNIFIED linear(side(target, bytes), target, side(source, bytes), source, bytes)
#define H_TO_D linear(TYPE_DEVICE, target, TYPE_HOST, (uint64_t)source, bytes)
#define D_TO_H linear(TYPE_HOST, (uint64_t)target, TYPE_DEVICE, source, bytes)
#define D_TO_D linear(TYPE_DEVICE, target, TYPE_DEVICE, source, bytes)

COPIES(cuMemcpy, , (CUdeviceptr target, CUdeviceptr source, size_t bytes), (target, source, bytes), UNIFIED)
COPIES(cuMemcpyHtoD, _v2, (CUdeviceptr target, const void *source, size_t bytes), (target, source, bytes),
       H_TO_D)
COPIES(cuMemcpyDtoH, _v2, (void *target, CUdeviceptr source, size_t bytes), (target, source, bytes), D_TO_H)
COPIES(cuMemcpyDtoD, _v2, (CUdeviceptr target, CUdeviceptr source, size_t bytes), (target, source, bytes),
       D_TO_D)
COPIES(cuMemcpy2D, _v2, (const CUDA_MEMCPY2D *request), (request), from_2d(request))
COPIES(cuMemcpy2DUnaligned, _v2, (const CUDA_MEMCPY2D *request), (request), from_2d(request))
COPIES(cuMemcpy3D, _v2, (const CUDA_MEMCPY3D *request), (request), *request)
COPIES_ASYNC(cuMemcpy, , (CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream stream), UNIFIED)
COPIES_ASYNC(cuMemcpyHtoD, _v2, (CUdeviceptr target, const void *source, size_t bytes, CUstream stream),
             H_TO_D)
COPIES_ASYNC(cuMemcpyDtoH, _v2, (void *target, CUdeviceptr source, size_t bytes, CUstream stream), D_TO_H)
COPIES_ASYNC(cuMemcpyDtoD, _v2, (CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream stream),
             D_TO_D)
COPIES_ASYNC(cuMemcpy2D, _v2, (const CUDA_MEMCPY2D *request, CUstream stream), from_2d(request))
COPIES_ASYNC(cuMemcpy3D, _v2, (const CUDA_MEMCPY3D *request, CUstream stream), *request)

/* Each fill in its eight forms: D8, D16, D32 in one and two dimensions. */
#define FILLS(bits, type)                                                                          \
    CUresult cuMemsetD##bits##Async(CUdeviceptr target, type value, size_t count, CUstream stream) \
    {                                                                                              \
        return fill_in(stream, false,                                                              \
                       (CUDA_MEMSET_NODE_PARAMS_v2){target, 0, value, bits / 8, count, 1, NULL});  \
    }                                                                                              \
    CUresult cuMemsetD##bits##Async_ptsz(CUdeviceptr target, type value, size_t count,             \
                                         CUstream stream)                                          \
    {                                                                                              \
        return fill_in(stream, true,                                                               \
                       (CUDA_MEMSET_NODE_PARAMS_v2){target, 0, value, bits / 8, count, 1, NULL});  \
    }                                                                                              \
    CUresult cuMemsetD##bits##_v2(CUdeviceptr target, type value, size_t count)                    \
    {                                                                                              \
        return cuMemsetD##bits##Async(target, value, count, NULL);                                 \
    }                                                                                              \
    CUresult cuMemsetD##bits##_v2_ptds(CUdeviceptr target, type value, size_t count)               \
    {                                                                                              \
        return cuMemsetD##bits##Async_ptsz(target, value, count, NULL);                            \
    }                                                                                              \
    CUresult cuMemsetD2D##bits##Async(CUdeviceptr target, size_t pitch, type value, size_t width,  \
                                      size_t height, CUstream stream)                              \
    {                                                                                              \
        return fill_in(stream, false,                                                              \
                       (CUDA_MEMSET_NODE_PARAMS_v2){target, pitch, value, bits / 8, width, height, \
                                                    NULL});                                        \
    }                                                                                              \
    CUresult cuMemsetD2D##bits##Async_ptsz(CUdeviceptr target, size_t pitch, type value,           \
                                           size_t width, size_t height, CUstream stream)           \
    {                                                                                              \
        return fill_in(stream, true,                                                               \
                       (CUDA_MEMSET_NODE_PARAMS_v2){target, pitch, value, bits / 8, width, height, \
                                                    NULL});                                        \
    }                                                                                              \
    CUresult cuMemsetD2D##bits##_v2(CUdeviceptr target, size_t pitch, type value, size_t width,    \
                                    size_t height)                                                 \
    {                                                                                              \
        return cuMemsetD2D##bits##Async(target, pitch, value, width, height, NULL);                \
    }                                                                                              \
    CUresult cuMemsetD2D##bits##_v2_ptds(CUdeviceptr target, size_t pitch, type value,             \
                                         size_t width, size_t height)                              \
    {                                                                                              \
        return cuMemsetD2D##bits##Async_ptsz(target, pitch, value, width, height, NULL);           \
    }
FILLS(8, unsigned char)
FILLS(16, unsigned short)
FILLS(32, unsigned int)
