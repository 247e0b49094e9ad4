/* hooks.h: hooks.def as declarations, row numbers, and typed access to the driver's own functions. */
#ifndef HAMI_HOOKS_H
#define HAMI_HOOKS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "driver.h"

#define HAMI_EXPORT __attribute__((visibility("default")))

enum hami_library { HAMI_LIBRARY_CUDA, HAMI_LIBRARY_NVML, HAMI_LIBRARIES };

#define HAMI_HOOK(library, name, symbol, version, parameters) HAMI_EXPORT int name parameters;
#define HAMI_CALL(library, name, parameters) typedef int hami_type_##name parameters;
#include "hooks.def"

#define HAMI_HOOK(library, name, symbol, version, parameters) typedef int hami_type_##name parameters;
#include "hooks.def"

enum hami_row {
#define HAMI_HOOK(library, name, symbol, version, parameters) HAMI_ROW_##name,
#include "hooks.def"
    HAMI_HOOKS, /* rows before this one are intercepted */
    HAMI_LAST_HOOK = HAMI_HOOKS - 1,
#define HAMI_HOOK(library, name, symbol, version, parameters)
#define HAMI_CALL(library, name, parameters) HAMI_ROW_##name,
#include "hooks.def"
    HAMI_ROWS
};

extern void *_Atomic hami_real_functions[HAMI_ROWS]; /* as far as they were needed */

/* Look the driver's own function up and remember it. Loads the driver if need be. */
void *hami_find_real(enum hami_row row);

/* The driver's own function, NULL where the driver has none. */
static inline void *hami_real(enum hami_row row)
{
    void *function = atomic_load_explicit(&hami_real_functions[row], memory_order_acquire);
    return __builtin_expect(function != NULL, 1) ? function : hami_find_real(row);
}

/* The same, typed: HAMI_REAL(cuMemFree_v2)(address). */
#define HAMI_REAL(name) ((hami_type_##name *)hami_real(HAMI_ROW_##name))

/* Call the driver's own function, or return `missing` where there is none. */
#define HAMI_CALL_REAL(name, missing, ...) (HAMI_REAL(name) != NULL ? HAMI_REAL(name)(__VA_ARGS__) : (missing))
#define HAMI_CUDA(name, ...) HAMI_CALL_REAL(name, CUDA_ERROR_NOT_SUPPORTED, __VA_ARGS__)
#define HAMI_NVML(name, ...) HAMI_CALL_REAL(name, NVML_ERROR_FUNCTION_NOT_FOUND, __VA_ARGS__)

#endif
