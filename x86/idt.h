/* Exceptions and interrupts of this machine: vectors, handlers, the trap frame. */
#ifndef HV_X86_IDT_H
#define HV_X86_IDT_H

#include "include/hv/types.h"

enum exception_vector {
    X86_DE = 0, X86_DB = 1, X86_NMI = 2, X86_BP = 3, X86_OF = 4, X86_BR = 5, X86_UD = 6, X86_NM = 7, X86_DF = 8, X86_TS = 10,
    X86_NP = 11, X86_SS = 12, X86_GP = 13, X86_PF = 14, X86_MF = 16, X86_AC = 17, X86_MC = 18, X86_XM = 19, X86_VE = 20,
    X86_CP = 21, X86_HV = 28, X86_VC = 29, X86_SX = 30,
};

/* 0x20..0x2f belong to the masked 8259s, whose spurious interrupts cannot be masked. */
#define VECTOR_PIC_FIRST 0x20
#define VECTOR_DYNAMIC_FIRST 0x30
#define VECTOR_DYNAMIC_LAST 0xef
#define VECTOR_LAPIC_TIMER 0xf0
#define VECTOR_IPI_KICK 0xf1     /* ends a guest's run or a halt: look around */
#define VECTOR_IPI_CALL 0xf2     /* core/ipi.c */
#define VECTOR_LAPIC_ERROR 0xfe
#define VECTOR_LAPIC_SPURIOUS 0xff

/* As traps.asm pushes it. */
struct trap_frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    uint64_t vector, error;      /* error code, 0 where the CPU pushes none */
    uint64_t rip, cs, rflags, rsp, ss;
};
_Static_assert(offsetof(struct trap_frame, rax) == 14 * 8 && offsetof(struct trap_frame, vector) == 15 * 8 &&
               offsetof(struct trap_frame, rip) == 17 * 8 && sizeof(struct trap_frame) == 22 * 8, "traps.asm");

/* Interrupts off. Only posts and wakes; the end-of-interrupt is sent for it afterwards. */
typedef void irq_handler_fn(void *arg);

/* Builds the IDT (once) and loads it on this CPU. */
void idt_init(void);
void idt_load(void);
/* False: the vector is outside 0x30..0xfe or taken. */
bool irq_register(uint8_t vector, irq_handler_fn *handler, void *arg);
/* A free vector of the dynamic range, reserved for the caller; -1: none left. */
int irq_alloc_vector(void);
const char *exception_name(unsigned vector);

/*
 * What happens to exceptions that no fixup covers, and to NMIs: core supplies it (core/panic.c). Without: halt.
 * `fatal` must not return.
 */
struct trap_hooks {
    void (*fatal)(const struct trap_frame *f);
    void (*nmi)(const struct trap_frame *f);
    void (*stray)(uint8_t vector);  /* interrupt with no handler; first few only */
    void (*done)(const void *handler, uint64_t tsc_ticks); /* an interrupt has been handled; NULL: nobody wants to know */
};
void trap_set_hooks(const struct trap_hooks *hooks);

/* Called by traps.asm. */
void trap_dispatch(struct trap_frame *f);

#endif
