/* sim_execution.c: modules, streams, events and launches; time is all that passes (sim_timeline.c).
 *
 * A module is a text: the line "hami-sim kernels", then a line for each kernel: its name and the
 * microseconds that one wave of blocks takes.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim_cuda.h"

#define HEADING "hami-sim kernels\n"
#define KERNELS 64

struct sim_stream {
    _Atomic uint64_t until_ns; /* when its last kernel ends */
};

struct sim_cuda_event {
    _Atomic uint64_t time_ns; /* 0: not recorded */
};

struct sim_function {
    char name[64];
    uint64_t wave_ns;
};

struct sim_module {
    size_t count;
    struct sim_function functions[KERNELS];
};

static struct sim_stream legacy_stream;
static _Thread_local struct sim_stream thread_stream;

/* The handles 0 and 1 are the legacy default stream, 2 the thread's own. */
static struct sim_stream *stream_of(CUstream stream, bool per_thread)
{
    const uintptr_t handle = (uintptr_t)stream;
    if (handle == 2 || (handle == 0 && per_thread))
        return &thread_stream;
    return handle <= 1 ? &legacy_stream : stream;
}

static CUresult check(void)
{
    CUcontext context;
    return sim_current(&context);
}

static CUresult wait_for(uint64_t until_ns)
{
    const CUresult result = check();
    if (result == CUDA_SUCCESS)
        sim_sleep_until(until_ns);
    if (result == CUDA_SUCCESS)
        sim_pools_synchronized();
    return result != CUDA_SUCCESS ? result : check();
}

CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    const CUresult result = check();
    const char *text = image;
    if (result != CUDA_SUCCESS)
        return result;
    if (module == NULL || image == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (strncmp(text, HEADING, strlen(HEADING)) != 0)
        return CUDA_ERROR_INVALID_IMAGE;
    struct sim_module *loaded = calloc(1, sizeof *loaded);
    if (loaded == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    text += strlen(HEADING);
    for (int length = 0; loaded->count < KERNELS; text += length) {
        struct sim_function *function = &loaded->functions[loaded->count];
        double microseconds;
        if (sscanf(text, "%63s %lf\n%n", function->name, &microseconds, &length) != 2)
            break;
        function->wave_ns = (uint64_t)(microseconds * 1000);
        loaded->count++;
    }
    *module = loaded;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoad(CUmodule *module, const char *path)
{
    char text[8192] = {0};
    FILE *file = path != NULL ? fopen(path, "re") : NULL;
    if (file == NULL)
        return CUDA_ERROR_FILE_NOT_FOUND;
    const size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    return length > 0 ? cuModuleLoadData(module, text) : CUDA_ERROR_INVALID_IMAGE;
}

CUresult cuModuleUnload(CUmodule module)
{
    const CUresult result = check();
    if (result == CUDA_SUCCESS)
        free(module);
    return result;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    for (size_t i = 0; i < module->count; i++)
        if (strcmp(module->functions[i].name, name) == 0) {
            *function = &module->functions[i];
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_NOT_FOUND;
}

static CUresult launch(CUfunction function, uint64_t blocks, uint64_t block_threads,
                       struct sim_stream *stream)
{
    CUcontext context;
    const CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (function == NULL || blocks == 0 || block_threads == 0 || block_threads > 1024)
        return CUDA_ERROR_INVALID_VALUE;
    const struct sim_gpu *gpu = &sim_node()->gpus[context->gpu];
    const uint64_t at_once =
        gpu->multiprocessors * (gpu->threads_per_multiprocessor / block_threads);
    const uint64_t waves = (blocks + at_once - 1) / at_once;
    atomic_store(&stream->until_ns, sim_queue_kernel(context->gpu, waves * function->wave_ns));
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                        unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                        unsigned int block_z, unsigned int shared_bytes, CUstream stream,
                        void **parameters, void **extra)
{
    (void)shared_bytes, (void)parameters, (void)extra; /* nothing is computed */
    return launch(function, (uint64_t)grid_x * grid_y * grid_z,
                  (uint64_t)block_x * block_y * block_z, stream_of(stream, false));
}

CUresult cuLaunchKernel_ptsz(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                             unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                             unsigned int block_z, unsigned int shared_bytes, CUstream stream,
                             void **parameters, void **extra)
{
    (void)shared_bytes, (void)parameters, (void)extra;
    return launch(function, (uint64_t)grid_x * grid_y * grid_z,
                  (uint64_t)block_x * block_y * block_z, stream_of(stream, true));
}

CUresult cuStreamCreate(CUstream *stream, unsigned int flags)
{
    const CUresult result = check();
    (void)flags;
    if (result != CUDA_SUCCESS)
        return result;
    *stream = calloc(1, sizeof **stream);
    return *stream != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuStreamDestroy_v2(CUstream stream)
{
    if ((uintptr_t)stream <= 2)
        return CUDA_ERROR_INVALID_HANDLE;
    free(stream);
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream)
{
    return wait_for(atomic_load(&stream_of(stream, false)->until_ns));
}

CUresult cuStreamSynchronize_ptsz(CUstream stream)
{
    return wait_for(atomic_load(&stream_of(stream, true)->until_ns));
}

CUresult cuStreamQuery(CUstream stream)
{
    const CUresult result = check();
    if (result != CUDA_SUCCESS)
        return result;
    return atomic_load(&stream_of(stream, false)->until_ns) > sim_now_ns() ? CUDA_ERROR_NOT_READY
                                                                           : CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void)
{
    CUcontext context;
    const CUresult result = sim_current(&context);
    const struct sim_process *process = sim_process();
    if (result != CUDA_SUCCESS || process == NULL)
        return result;
    return wait_for(atomic_load(&process->rows[context->gpu].until_ns));
}

CUresult cuCtxSynchronize_v2(CUcontext context)
{
    CUcontext current;
    CUresult result = cuCtxPushCurrent_v2(context);
    if (result != CUDA_SUCCESS)
        return result;
    result = cuCtxSynchronize();
    cuCtxPopCurrent_v2(&current);
    return result;
}

CUresult cuEventCreate(CUevent *event, unsigned int flags)
{
    const CUresult result = check();
    (void)flags;
    if (result != CUDA_SUCCESS)
        return result;
    *event = calloc(1, sizeof **event);
    return *event != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuEventDestroy_v2(CUevent event)
{
    free(event);
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream)
{
    const CUresult result = check();
    const uint64_t now = sim_now_ns();
    const uint64_t until = atomic_load(&stream_of(stream, false)->until_ns);
    if (result == CUDA_SUCCESS)
        atomic_store(&event->time_ns, until > now ? until : now);
    return result;
}

CUresult cuEventQuery(CUevent event)
{
    const CUresult result = check();
    if (result != CUDA_SUCCESS)
        return result;
    return atomic_load(&event->time_ns) > sim_now_ns() ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

CUresult cuEventSynchronize(CUevent event)
{
    return wait_for(atomic_load(&event->time_ns));
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end)
{
    const uint64_t from = atomic_load(&start->time_ns);
    const uint64_t to = atomic_load(&end->time_ns);
    if (from == 0 || to == 0)
        return CUDA_ERROR_INVALID_HANDLE;
    if (to > sim_now_ns() || from > sim_now_ns())
        return CUDA_ERROR_NOT_READY;
    *milliseconds = (float)((double)((int64_t)(to - from)) / 1e6);
    return CUDA_SUCCESS;
}
