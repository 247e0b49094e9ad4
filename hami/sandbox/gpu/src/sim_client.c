/* sim_client.c: what some clients look up before they begin, and seldom use. */
#include "sim_cuda.h"

CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device)
{
    const CUresult result = cuDeviceGetAttribute(major, 75, device);
    return result == CUDA_SUCCESS ? cuDeviceGetAttribute(minor, 76, device) : result;
}

/* Memory passes between processes by files alone (sim_vmm.c), and that is said: as drivers do where they
 * cannot. */
CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr address)
{
    (void)handle;
    (void)address;
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuIpcOpenMemHandle(CUdeviceptr *address, CUipcMemHandle handle, unsigned int flags)
{
    (void)address;
    (void)handle;
    (void)flags;
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *address, CUipcMemHandle handle, unsigned int flags)
{
    return cuIpcOpenMemHandle(address, handle, flags);
}

CUresult cuIpcCloseMemHandle(CUdeviceptr address)
{
    (void)address;
    return CUDA_ERROR_NOT_SUPPORTED;
}
