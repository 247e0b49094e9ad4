/* clocked_cuda: a driver whose device runs at once, in a time of its own; what it was asked is counted.
 *
 * A function is a pointer to the nanoseconds that it takes. Its own exports beside the driver's:
 *   clocked_set(what, value)   see enum setting
 *   clocked_get(what)          see enum counter
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum setting { NOT_READY_QUERIES, LAUNCH_HOST_NS, STREAM_IS_BUSY };
enum counter { DEVICE_NS, LAUNCHES, EVENTS_MADE, RECORDS, QUERIES, QUERIES_IN_CAPTURE, CLOCK };

static _Atomic uint64_t settings[8], counters[8];
static _Atomic int capturing;
static _Thread_local int mode; /* of capture; 2: relaxed */
static int context;

struct event {
    uint64_t at;
};

int clocked_set(int what, uint64_t value)
{
    settings[what] = value;
    return 0;
}

uint64_t clocked_get(int what)
{
    return counters[what];
}

int cuInit(unsigned flags)
{
    return (int)flags;
}

int cuDevicePrimaryCtxRetain(void **result, int device)
{
    *result = &context;
    return device;
}

int cuCtxDestroy_v2(void *which)
{
    return which != &context;
}

int cuCtxSetCurrent(void *wanted)
{
    return wanted != &context;
}

int cuCtxGetCurrent(void **result)
{
    *result = &context;
    return 0;
}

int cuCtxGetDevice(int *device)
{
    *device = 0;
    return 0;
}

int cuDeviceGetUuid(unsigned char *uuid, int device)
{
    memset(uuid, 0x11, 16);
    return device;
}

int cuThreadExchangeStreamCaptureMode(int *wanted)
{
    const int before = mode;
    mode = *wanted;
    *wanted = before;
    return 0;
}

int cuStreamBeginCapture_v2(void *stream, int wanted)
{
    (void)stream, (void)wanted;
    capturing = 1;
    return 0;
}

int cuStreamIsCapturing(void *stream, int *status)
{
    *status = stream != NULL && capturing;
    return 0;
}

int cuStreamEndCapture(void *stream, void **graph)
{
    (void)stream;
    *graph = &context;
    capturing = 0;
    return 0;
}

int cuStreamQuery(void *stream)
{
    (void)stream;
    return settings[STREAM_IS_BUSY] ? 600 : 0;
}

int cuEventCreate(struct event **event, unsigned flags)
{
    counters[EVENTS_MADE]++;
    *event = calloc(1, sizeof **event);
    return (int)flags;
}

int cuEventDestroy_v2(struct event *event)
{
    free(event);
    return 0;
}

int cuEventRecord(struct event *event, void *stream)
{
    (void)stream;
    counters[RECORDS]++;
    event->at = counters[CLOCK];
    return 0;
}

int cuEventQuery(struct event *event)
{
    counters[QUERIES]++;
    if (capturing && mode != 2)
        counters[QUERIES_IN_CAPTURE]++;
    if (settings[NOT_READY_QUERIES] == 0)
        return event == NULL;
    settings[NOT_READY_QUERIES]--;
    return 600;
}

int cuEventElapsedTime(float *milliseconds, struct event *start, struct event *end)
{
    *milliseconds = (float)((double)(end->at - start->at) / 1e6);
    return 0;
}

static int run(const uint64_t *function)
{
    const uint64_t host = settings[LAUNCH_HOST_NS];
    counters[LAUNCHES]++;
    if (host != 0) {
        nanosleep(&(struct timespec){.tv_nsec = (long)host}, NULL);
        counters[CLOCK] += settings[STREAM_IS_BUSY] ? 0 : host;
    }
    counters[DEVICE_NS] += *function;
    counters[CLOCK] += *function;
    return 0;
}

int cuLaunchKernel(const uint64_t *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **parameters, void **extra)
{
    (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared, (void)parameters, (void)extra;
    if (stream != NULL && capturing) {
        counters[LAUNCHES]++;
        return 0;
    }
    return run(function);
}

int cuGraphLaunch(const uint64_t *graph, void *stream)
{
    (void)stream;
    return run(graph);
}

int cuGraphExecUpdate_v2(void *exec, void *graph, void *status)
{
    return exec == NULL || graph == NULL || status == NULL;
}

int cuGraphExecDestroy(void *exec)
{
    return exec == NULL;
}
