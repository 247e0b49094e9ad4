/* dlsym.S: dlsym and dlvsym as stubs that leave no trace.
 *
 * The real dlsym answers RTLD_NEXT relative to its return address, so whatever is not ours must
 * reach it by a jump, with arguments, stack and return address as the caller left them. hami_route_*
 * (resolve.c) returns two words: an answer, and where to jump; nowhere means: return the answer.
 *
 *   struct hami_route hami_route_dlsym(handle, name, caller)
 *   struct hami_route hami_route_dlvsym(handle, name, version, caller)
 */
    .text

#if defined(__x86_64__)

#define STUB(name, caller_register)                                                                \
    .globl name;                                                                                   \
    .type name, @function;                                                                         \
    .p2align 4;                                                                                    \
name:                                                                                              \
    .cfi_startproc;                                                                                \
    endbr64;                                                                                       \
    pushq %rdi;                                                                                    \
    .cfi_adjust_cfa_offset 8;                                                                      \
    pushq %rsi;                                                                                    \
    .cfi_adjust_cfa_offset 8;                                                                      \
    pushq %rdx;                                                                                    \
    .cfi_adjust_cfa_offset 8;                                                                      \
    movq 24(%rsp), caller_register;                                                                \
    call hami_route_##name;                                                                        \
    movq %rdx, %r11;                                                                               \
    popq %rdx;                                                                                     \
    .cfi_adjust_cfa_offset -8;                                                                     \
    popq %rsi;                                                                                     \
    .cfi_adjust_cfa_offset -8;                                                                     \
    popq %rdi;                                                                                     \
    .cfi_adjust_cfa_offset -8;                                                                     \
    testq %r11, %r11;                                                                              \
    jz 1f;                                                                                         \
    jmpq *%r11;                                                                                    \
1:  ret;                                                                                           \
    .cfi_endproc;                                                                                  \
    .size name, .-name

    STUB(dlsym, %rdx)
    STUB(dlvsym, %rcx)

#elif defined(__aarch64__)

#define STUB(name, caller_register)                                                                \
    .globl name;                                                                                   \
    .type name, %function;                                                                         \
    .p2align 4;                                                                                    \
name:                                                                                              \
    .cfi_startproc;                                                                                \
    hint 34; /* bti c */                                                                          \
    stp x29, x30, [sp, -48]!;                                                                     \
    .cfi_def_cfa_offset 48;                                                                        \
    .cfi_offset 29, -48;                                                                           \
    .cfi_offset 30, -40;                                                                           \
    stp x0, x1, [sp, 16];                                                                         \
    str x2, [sp, 32];                                                                             \
    mov caller_register, x30;                                                                      \
    bl hami_route_##name;                                                                          \
    mov x16, x1;                                                                                   \
    cbz x16, 1f;                                                                                   \
    ldp x0, x1, [sp, 16];                                                                         \
    ldr x2, [sp, 32];                                                                             \
1:  ldp x29, x30, [sp], 48;                                                                       \
    .cfi_restore 29;                                                                               \
    .cfi_restore 30;                                                                               \
    .cfi_def_cfa_offset 0;                                                                         \
    cbz x16, 2f;                                                                                   \
    br x16;                                                                                        \
2:  ret;                                                                                           \
    .cfi_endproc;                                                                                  \
    .size name, .-name

    STUB(dlsym, x2)
    STUB(dlvsym, x3)

#else
#error "no dlsym stub for this machine"
#endif

#if defined(__CET__) /* asked of the compiler: do not be the one object without the mark */
#include <cet.h>
#endif

    .section .note.GNU-stack, "", %progbits
