/* sim_module.c: modules, libraries and their kernels.
 *
 * A module is a text: the line "hami-sim kernels", then a line for each kernel: its name and the
 * microseconds that one wave of blocks takes. $HAMI_SIM_KERNELS ("name=250,other=10") goes before the
 * text. A kernel whose name begins with "crash" fails when it ends, with error 719 or, named
 * "crash_700", with that one.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim_module.h"

#define HEADING "hami-sim kernels\n"

static void override_from_environment(struct sim_function *function)
{
    const char *text = getenv("HAMI_SIM_KERNELS");
    const size_t length = strlen(function->name);
    for (; text != NULL && *text != '\0'; text += strcspn(text, ","), text += *text == ',')
        if (strncmp(text, function->name, length) == 0 && text[length] == '=')
            function->wave_ns = (uint64_t)(strtod(text + length + 1, NULL) * 1000);
}

static int failure_of(const char *name)
{
    if (strncmp(name, "crash", 5) != 0)
        return CUDA_SUCCESS;
    const int error = name[5] == '_' ? atoi(name + 6) : 0;
    return error != 0 ? error : CUDA_ERROR_LAUNCH_FAILED;
}

static CUresult load(CUmodule *module, const void *image)
{
    const char *text = image;
    if (module == NULL || image == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    if (strncmp(text, HEADING, strlen(HEADING)) != 0)
        return CUDA_ERROR_INVALID_IMAGE;
    struct sim_module *loaded = calloc(1, sizeof *loaded);
    if (loaded == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    text += strlen(HEADING);
    for (int length = 0; loaded->count < SIM_KERNELS; text += length) {
        struct sim_function *function = &loaded->functions[loaded->count];
        double microseconds;
        if (sscanf(text, "%63s %lf\n%n", function->name, &microseconds, &length) != 2)
            break;
        function->module = loaded;
        function->wave_ns = (uint64_t)(microseconds * 1000);
        function->block_threads = 1;
        function->failure = failure_of(function->name);
        override_from_environment(function);
        loaded->count++;
    }
    *module = loaded;
    return CUDA_SUCCESS;
}

static CUresult load_file(CUmodule *module, const char *path)
{
    char text[8192] = {0};
    FILE *file = path != NULL ? fopen(path, "re") : NULL;
    if (file == NULL)
        return CUDA_ERROR_FILE_NOT_FOUND;
    const size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    return length > 0 ? load(module, text) : CUDA_ERROR_INVALID_IMAGE;
}

static CUresult find(CUfunction *function, CUmodule module, const char *name)
{
    if (module == NULL || name == NULL || function == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < module->count; i++)
        if (strcmp(module->functions[i].name, name) == 0) {
            *function = &module->functions[i];
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_NOT_FOUND;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    CUcontext context;
    const CUresult result = sim_current(&context);
    return result == CUDA_SUCCESS ? load(module, image) : result;
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int count, int *options,
                            void **values)
{
    (void)count, (void)options, (void)values; /* nothing is compiled */
    return cuModuleLoadData(module, image);
}

CUresult cuModuleLoadFatBinary(CUmodule *module, const void *image)
{
    return cuModuleLoadData(module, image);
}

CUresult cuModuleLoad(CUmodule *module, const char *path)
{
    CUcontext context;
    const CUresult result = sim_current(&context);
    return result == CUDA_SUCCESS ? load_file(module, path) : result;
}

CUresult cuModuleUnload(CUmodule module)
{
    CUcontext context;
    const CUresult result = sim_current(&context);
    if (result == CUDA_SUCCESS)
        free(module);
    return result;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    return find(function, module, name);
}

CUresult cuModuleGetFunctionCount(unsigned int *count, CUmodule module)
{
    *count = (unsigned)module->count;
    return CUDA_SUCCESS;
}

CUresult cuModuleGetLoadingMode(int *mode)
{
    *mode = 1; /* eager */
    return CUDA_SUCCESS;
}

/* A library needs no context; its kernels are launched as functions are. */
CUresult cuLibraryLoadData(CUlibrary *library, const void *code, int *jit_options, void **jit_values,
                           unsigned int jit_count, int *options, void **values, unsigned int count)
{
    (void)jit_options, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    return load(library, code);
}

CUresult cuLibraryLoadFromFile(CUlibrary *library, const char *path, int *jit_options, void **jit_values,
                               unsigned int jit_count, int *options, void **values, unsigned int count)
{
    (void)jit_options, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    return load_file(library, path);
}

CUresult cuLibraryUnload(CUlibrary library)
{
    if (library == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    free(library);
    return CUDA_SUCCESS;
}

CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name)
{
    return find(kernel, library, name);
}

CUresult cuLibraryGetKernelCount(unsigned int *count, CUlibrary library)
{
    return cuModuleGetFunctionCount(count, library);
}

CUresult cuLibraryEnumerateKernels(CUkernel *kernels, unsigned int count, CUlibrary library)
{
    for (unsigned i = 0; i < count && i < library->count; i++)
        kernels[i] = &library->functions[i];
    return CUDA_SUCCESS;
}

CUresult cuLibraryGetModule(CUmodule *module, CUlibrary library)
{
    *module = library;
    return CUDA_SUCCESS;
}

CUresult cuKernelGetFunction(CUfunction *function, CUkernel kernel)
{
    CUcontext context;
    const CUresult result = sim_current(&context);
    if (result == CUDA_SUCCESS)
        *function = kernel;
    return result;
}

CUresult cuKernelGetLibrary(CUlibrary *library, CUkernel kernel)
{
    *library = kernel->module;
    return CUDA_SUCCESS;
}

CUresult cuKernelGetName(const char **name, CUkernel kernel)
{
    *name = kernel->name;
    return CUDA_SUCCESS;
}

CUresult cuFuncGetName(const char **name, CUfunction function)
{
    *name = function->name;
    return CUDA_SUCCESS;
}

CUresult cuFuncGetModule(CUmodule *module, CUfunction function)
{
    if (module == NULL || function == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *module = function->module;
    return CUDA_SUCCESS;
}

CUresult cuFuncIsLoaded(int *state, CUfunction function)
{
    (void)function;
    *state = 1;
    return CUDA_SUCCESS;
}

CUresult cuFuncLoad(CUfunction function)
{
    return function != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuFuncGetAttribute(int *value, int attribute, CUfunction function)
{
    enum { MAX_THREADS = 0, REGISTERS = 4, BINARY = 6, LAST = 16 };
    if (value == NULL || function == NULL || attribute < 0 || attribute > LAST)
        return CUDA_ERROR_INVALID_VALUE;
    *value = attribute == MAX_THREADS ? 1024 : attribute == REGISTERS ? 32 : attribute == BINARY ? 90 : 0;
    return CUDA_SUCCESS;
}

CUresult cuKernelGetAttribute(int *value, int attribute, CUkernel kernel, CUdevice device)
{
    (void)device;
    return cuFuncGetAttribute(value, attribute, kernel);
}

CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value)
{
    (void)attribute, (void)value;
    return function != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuKernelSetAttribute(int attribute, int value, CUkernel kernel, CUdevice device)
{
    (void)device;
    return cuFuncSetAttribute(kernel, attribute, value);
}

CUresult cuFuncSetCacheConfig(CUfunction function, int config)
{
    return cuFuncSetAttribute(function, 0, config);
}

CUresult cuFuncSetSharedSize(CUfunction function, unsigned int bytes)
{
    return cuFuncSetAttribute(function, 0, (int)bytes);
}

CUresult cuFuncSetBlockShape(CUfunction function, int x, int y, int z)
{
    if (function == NULL || x < 1 || y < 1 || z < 1)
        return CUDA_ERROR_INVALID_VALUE;
    function->block_threads = (unsigned)x * (unsigned)y * (unsigned)z;
    return CUDA_SUCCESS;
}
