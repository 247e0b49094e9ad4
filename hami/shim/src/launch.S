/* launch.S: the first instructions of every way to submit work, as stubs that move no argument.
 *
 * A launch has up to eleven arguments; C that may come to wait would store and load them all. So:
 *
 *   the pulse is the thread's calm one: jump to hami_target_NAME, the driver's own function
 *   else: keep the arguments, and jump to where hami_credit_NAME says: there, or to the hook in C that
 *   waits
 *
 * Both are launch.c's. Rows are in the order of hooks.def.
 */
    .text

#if defined(__x86_64__)

#define PUSH(register) pushq register; .cfi_adjust_cfa_offset 8
#define POP(register) popq register; .cfi_adjust_cfa_offset -8

#define STUB(name)                                                                                 \
    .globl name;                                                                                   \
    .type name, @function;                                                                         \
    .p2align 4;                                                                                    \
name:                                                                                              \
    .cfi_startproc;                                                                                \
    endbr64;                                                                                       \
    movq hami_pulse(%rip), %rax;                                                                   \
    movq hami_thread@gottpoff(%rip), %r11;                                                         \
    movq (%rax), %rax;                                                                             \
    cmpq %fs:(%r11), %rax;                                                                         \
    jne 1f;                                                                                        \
    jmpq *hami_target_##name(%rip);                                                                \
1:  PUSH(%rdi);                                                                                    \
    PUSH(%rsi);                                                                                    \
    PUSH(%rdx);                                                                                    \
    PUSH(%rcx);                                                                                    \
    PUSH(%r8);                                                                                     \
    PUSH(%r9);                                                                                     \
    subq $8, %rsp;                                                                                 \
    .cfi_adjust_cfa_offset 8;                                                                      \
    call hami_credit_##name;                                                                       \
    addq $8, %rsp;                                                                                 \
    .cfi_adjust_cfa_offset -8;                                                                     \
    POP(%r9);                                                                                      \
    POP(%r8);                                                                                      \
    POP(%rcx);                                                                                     \
    POP(%rdx);                                                                                     \
    POP(%rsi);                                                                                     \
    POP(%rdi);                                                                                     \
    jmpq *%rax;                                                                                    \
    .cfi_endproc;                                                                                  \
    .size name, .-name

#elif defined(__aarch64__)

#define STUB(name)                                                                                 \
    .globl name;                                                                                   \
    .type name, %function;                                                                         \
    .p2align 4;                                                                                    \
name:                                                                                              \
    .cfi_startproc;                                                                                \
    hint 34; /* bti c */                                                                           \
    adrp x16, hami_pulse;                                                                          \
    ldr x16, [x16, :lo12:hami_pulse];                                                              \
    mrs x17, tpidr_el0;                                                                            \
    adrp x9, :gottprel:hami_thread;                                                                \
    ldr x9, [x9, :gottprel_lo12:hami_thread];                                                      \
    ldr x16, [x16];                                                                                \
    ldr x9, [x17, x9];                                                                             \
    cmp x16, x9;                                                                                   \
    b.ne 1f;                                                                                       \
    adrp x16, hami_target_##name;                                                                  \
    ldr x16, [x16, :lo12:hami_target_##name];                                                      \
    br x16;                                                                                        \
1:  stp x29, x30, [sp, -80]!;                                                                      \
    .cfi_def_cfa_offset 80;                                                                        \
    .cfi_offset 29, -80;                                                                           \
    .cfi_offset 30, -72;                                                                           \
    stp x0, x1, [sp, 16];                                                                          \
    stp x2, x3, [sp, 32];                                                                          \
    stp x4, x5, [sp, 48];                                                                          \
    stp x6, x7, [sp, 64];                                                                          \
    bl hami_credit_##name;                                                                         \
    mov x16, x0;                                                                                   \
    ldp x0, x1, [sp, 16];                                                                          \
    ldp x2, x3, [sp, 32];                                                                          \
    ldp x4, x5, [sp, 48];                                                                          \
    ldp x6, x7, [sp, 64];                                                                          \
    ldp x29, x30, [sp], 80;                                                                        \
    .cfi_restore 29;                                                                               \
    .cfi_restore 30;                                                                               \
    .cfi_def_cfa_offset 0;                                                                         \
    br x16;                                                                                        \
    .cfi_endproc;                                                                                  \
    .size name, .-name

#else
#error "no launch stub for this machine"
#endif

    STUB(cuLaunchKernel)
    STUB(cuLaunchKernel_ptsz)
    STUB(cuLaunchKernelEx)
    STUB(cuLaunchKernelEx_ptsz)
    STUB(cuLaunchCooperativeKernel)
    STUB(cuLaunchCooperativeKernel_ptsz)
    STUB(cuLaunch)
    STUB(cuLaunchGrid)
    STUB(cuLaunchGridAsync)
    STUB(cuGraphLaunch)
    STUB(cuGraphLaunch_ptsz)

#if defined(__CET__) /* asked of the compiler: do not be the one object without the mark */
#include <cet.h>
#endif

    .section .note.GNU-stack, "", %progbits
