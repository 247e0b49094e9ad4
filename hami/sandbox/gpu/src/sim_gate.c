/* sim_gate.c: the exported functions: a gate before each, where faults are injected and symbols missing.
 *
 * Every function of sim_driver.def is compiled under a name of its own (sim_do_NAME); NAME is a few
 * instructions that go there at once while there is nothing to inject. So calls within the library
 * do not count as calls. sim_other_NAME is a second address of the same, for $HAMI_SIM_THUNKS.
 */
#define _GNU_SOURCE
#include "sim_gate.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FAULTS 32

struct fault {
    char name[64];
    uint64_t nth; /* call that fails; 0: none */
    bool onwards; /* the later ones as well */
    CUresult code;
    uint64_t delay_ns; /* of every call */
    _Atomic uint64_t calls;
};

struct fault_list {
    size_t count;
    struct fault faults[FAULTS];
};

/* The gate is open while *live == seen. */
static const _Atomic uint32_t closed = 1;
static const _Atomic uint32_t open_for_good = 0;
const _Atomic uint32_t *_Atomic sim_gate_live = &closed;
_Atomic uint32_t sim_gate_seen = 0;

static pthread_mutex_t gate_lock = PTHREAD_MUTEX_INITIALIZER;
static struct fault_list of_environment, of_node;
static _Atomic bool configured;
static bool missing_any;

static void configure(void);

#if defined(__x86_64__)
#define GATE(index, name)                                                                          \
    __asm__(".text\n.globl " name "\n.type " name ",@function\n" name ":\n"                        \
            "    movl sim_gate_seen(%rip), %eax\n"                                                 \
            "    movq sim_gate_live(%rip), %r11\n"                                                 \
            "    cmpl (%r11), %eax\n"                                                              \
            "    je sim_do_" name "\n"                                                             \
            "    movl $" index ", %eax\n"                                                          \
            "    jmp sim_gate_enter\n"                                                             \
            ".size " name ", . - " name "\n"                                                       \
            "sim_other_" name ":\n"                                                                \
            "    jmp " name "\n");
/* What arrives is passed on; no function takes floating point by value. */
__asm__(".text\n"
        "sim_gate_enter:\n"
        "    pushq %rdi\n    pushq %rsi\n    pushq %rdx\n    pushq %rcx\n"
        "    pushq %r8\n    pushq %r9\n    pushq %rax\n"
        "    movl %eax, %edi\n"
        "    call sim_gate_check\n"
        "    movq %rax, %r11\n"
        "    movq %rdx, %rax\n"
        "    popq %r10\n    popq %r9\n    popq %r8\n"
        "    popq %rcx\n    popq %rdx\n    popq %rsi\n    popq %rdi\n"
        "    testq %r11, %r11\n"
        "    je 1f\n"
        "    jmp *%r11\n"
        "1:  ret\n");
#elif defined(__aarch64__)
#define GATE(index, name)                                                                          \
    __asm__(".text\n.globl " name "\n.type " name ",%function\n" name ":\n"                        \
            "    adrp x16, sim_gate_seen\n"                                                        \
            "    ldr w17, [x16, :lo12:sim_gate_seen]\n"                                            \
            "    adrp x16, sim_gate_live\n"                                                        \
            "    ldr x16, [x16, :lo12:sim_gate_live]\n"                                            \
            "    ldr w16, [x16]\n"                                                                 \
            "    cmp w16, w17\n"                                                                   \
            "    b.ne 1f\n"                                                                        \
            "    b sim_do_" name "\n"                                                              \
            "1:  mov w17, #" index "\n"                                                            \
            "    b sim_gate_enter\n"                                                               \
            ".size " name ", . - " name "\n"                                                       \
            "sim_other_" name ":\n"                                                                \
            "    b " name "\n");
__asm__(".text\n"
        "sim_gate_enter:\n"
        "    stp x29, x30, [sp, #-80]!\n"
        "    mov x29, sp\n"
        "    stp x0, x1, [sp, #16]\n    stp x2, x3, [sp, #32]\n"
        "    stp x4, x5, [sp, #48]\n    stp x6, x7, [sp, #64]\n"
        "    mov w0, w17\n"
        "    bl sim_gate_check\n"
        "    mov x16, x0\n    mov x17, x1\n"
        "    ldp x0, x1, [sp, #16]\n    ldp x2, x3, [sp, #32]\n"
        "    ldp x4, x5, [sp, #48]\n    ldp x6, x7, [sp, #64]\n"
        "    ldp x29, x30, [sp], #80\n"
        "    cbz x16, 1f\n"
        "    br x16\n"
        "1:  mov w0, w17\n"
        "    ret\n");
#else
#error "there are no gates for this machine"
#endif

#define TEXT_OF(value) #value
#define GATE_OF(index, name) GATE(TEXT_OF(index), #name)
#define SIM_FUNCTION(symbol, version, flags, name, parameters) GATE_OF(__COUNTER__, name)
#include "sim_driver.def"

#define SIM_FUNCTION(symbol, version, flags, name, parameters)                                     \
    extern SIM_EXPORT const char exported_##name[] __asm__(#name);                                 \
    extern const char other_##name[] __asm__("sim_other_" #name);
#include "sim_driver.def"

const struct sim_row_of_driver sim_rows[] = {
#define SIM_FUNCTION(symbol, version, flags, name, parameters)                                     \
    {symbol, #name, version, flags, exported_##name, other_##name, (const void *)name},
#include "sim_driver.def"
};
const size_t sim_row_count = sizeof sim_rows / sizeof *sim_rows;
static bool missing[sizeof sim_rows / sizeof *sim_rows];

/* Whether a comma list holds the name. */
static bool lists(const char *list, const char *name)
{
    const size_t length = strlen(name);
    for (; list != NULL && *list != '\0'; list += strcspn(list, ","), list += *list == ',')
        if (strcspn(list, ",") == length && strncmp(list, name, length) == 0)
            return true;
    return false;
}

static bool look_whether_missing(const struct sim_row_of_driver *row)
{
    const char *dropped = getenv("HAMI_SIM_DROP");
    const struct sim_node *node = sim_node();
    return (node != NULL && row->version > (int)node->cuda_version) || lists(dropped, row->symbol) ||
           lists(dropped, row->name);
}

static void find_missing(void)
{
    for (size_t i = 0; i < sim_row_count; i++) {
        missing[i] = look_whether_missing(&sim_rows[i]);
        missing_any = missing_any || missing[i];
    }
}

bool sim_is_missing(const struct sim_row_of_driver *row)
{
    if (!atomic_load(&configured))
        configure();
    return missing[row - sim_rows];
}

static uint64_t parse_time(const char *text)
{
    char *unit;
    const double value = strtod(text, &unit);
    const double ns = strncmp(unit, "us", 2) == 0 ? 1e3 : strncmp(unit, "ms", 2) == 0 ? 1e6 : 1e9;
    return (uint64_t)(value * ns);
}

/* One "NAME:3=2", "NAME:3+=2" or "NAME:delay=5ms"; anything else is left out. */
static void parse_fault(const char *text, size_t length, struct fault_list *list)
{
    char copy[128] = {0};
    if (length >= sizeof copy || list->count == FAULTS)
        return;
    memcpy(copy, text, length);
    char *rule = strchr(copy, ':');
    char *value = rule != NULL ? strchr(rule, '=') : NULL;
    struct fault *fault = &list->faults[list->count];
    if (value == NULL || rule - copy >= (ptrdiff_t)sizeof fault->name)
        return;
    *rule++ = '\0';
    *value++ = '\0';
    memset(fault, 0, sizeof *fault);
    strcpy(fault->name, copy);
    if (strcmp(rule, "delay") == 0) {
        fault->delay_ns = parse_time(value);
    } else {
        fault->nth = strtoull(rule, NULL, 10);
        fault->onwards = strchr(rule, '+') != NULL;
        fault->code = atoi(value);
    }
    list->count++;
}

static void parse_faults(const char *text, struct fault_list *list)
{
    list->count = 0;
    while (text != NULL && *text != '\0') {
        const size_t length = strcspn(text, ",");
        parse_fault(text, length, list);
        text += length + (text[length] == ',');
    }
}

/* Look at the settings: once, and again when the node's faults change. */
static void configure(void)
{
    struct sim_node *node = sim_node();
    char text[sizeof node->faults + 1] = {0};
    pthread_mutex_lock(&gate_lock);
    const uint32_t version = node != NULL ? atomic_load(&node->faults_version) : 0;
    const bool first = !atomic_load(&configured);
    if (first || version != atomic_load(&sim_gate_seen)) {
        if (first) {
            parse_faults(getenv("HAMI_SIM_FAULTS"), &of_environment);
            find_missing();
        }
        if (node != NULL)
            memcpy(text, node->faults, sizeof node->faults);
        parse_faults(text, &of_node);
        atomic_store(&sim_gate_seen, version);
        if (missing_any || of_environment.count != 0 || of_node.count != 0)
            atomic_store(&sim_gate_live, &closed);
        else
            atomic_store(&sim_gate_live, node != NULL ? &node->faults_version : &open_for_good);
        atomic_store(&configured, true);
    }
    pthread_mutex_unlock(&gate_lock);
}

static CUresult inject(struct fault_list *list, const char *name)
{
    for (size_t i = 0; i < list->count; i++) {
        struct fault *fault = &list->faults[i];
        if (strcmp(fault->name, name) != 0)
            continue;
        if (fault->delay_ns != 0)
            sim_sleep_until(sim_now_ns() + fault->delay_ns);
        const uint64_t call = atomic_fetch_add(&fault->calls, 1) + 1;
        if (fault->nth != 0 && (call == fault->nth || (fault->onwards && call > fault->nth)))
            return fault->code;
    }
    return CUDA_SUCCESS;
}

/* Where the call goes on, or NULL and what it returns. */
struct way {
    const void *target;
    intptr_t code;
};

__attribute__((used)) struct way sim_gate_check(unsigned index)
{
    const struct sim_row_of_driver *row = &sim_rows[index];
    const struct sim_node *node = sim_node();
    if (!atomic_load(&configured) ||
        (node != NULL && atomic_load(&node->faults_version) != atomic_load(&sim_gate_seen)))
        configure();
    if (missing[index])
        return (struct way){NULL, CUDA_ERROR_NOT_SUPPORTED};
    CUresult code = inject(&of_environment, row->name);
    if (code == CUDA_SUCCESS)
        code = inject(&of_node, row->name);
    return (struct way){code == CUDA_SUCCESS ? row->implementation : NULL, code};
}
