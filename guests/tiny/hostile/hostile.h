/* What the modes of the hostile guest share: random numbers, landing after any trap, the verdict. */
#ifndef HV_GUESTS_TINY_HOSTILE_HOSTILE_H
#define HV_GUESTS_TINY_HOSTILE_HOSTILE_H

#include "tiny.h"

struct mode {
    const char *name;
    bool (*run)(void); /* false: a wrong result, told with failed() */
    uint64_t count;    /* rounds unless `count=` says otherwise */
};
/* Each ends with a name of NULL. */
extern const struct mode io_modes[], cpu_modes[], memory_modes[], interrupt_modes[], garbage_modes[], real_modes[], end_modes[];

extern uint64_t seed, count;
uint64_t rnd(void);
static inline uint64_t rnd_below(uint64_t n) { return rnd() % n; }
#define PICK(array) ((array)[rnd_below(sizeof(array) / sizeof(*(array)))])
/* Values at edges are likelier to find a fault than even ones. */
uint64_t rnd_value(void);

/* `lenient=WHAT,WHAT` on the command line names what this CPU is known to do wrong by itself: that alone is not tried. */
bool lenient(const char *what);

/* Says what was wrong and yields false. */
#define failed(...) (uart_sane(), print("hostile: FAILED "), print(__VA_ARGS__), print("\n"), false)
/* Makes COM1 fit to print on, whatever was written to it. */
void uart_sane(void);
/* 0xff at the PICs' masks, both PIC to vectors 0x20 and 0x28, LAPIC enabled with everything masked and no timer running. */
void interrupts_sane(void);
/* MMIO by the widest instruction that all hypervisors must know. */
static inline uint32_t mmio_read(uint64_t at) { return *(volatile uint32_t *)at; }
static inline void mmio_write(uint64_t at, uint32_t v) { *(volatile uint32_t *)at = v; }

/*
 * Calls f(arg); whatever exception ends it is returned as its vector, -1 if none did, with the callee-saved registers and the stack
 * as they were. attempt_frame is what the trap saw. NMIs are counted and forgotten, and so are #DBs outside an attempt: DR7 is cleared.
 */
int attempt(void (*f)(void *arg), void *arg);
extern struct trap_frame attempt_frame;
extern volatile uint64_t nmis, debug_traps;
extern volatile bool nmi_lands; /* an NMI ends an attempt like an exception */

/* REP INS and OUTS of elements of 1, 2 or 4 bytes, in the direction that DF says. */
#define STRING_IO(op, reg, p) asm volatile("rep " op : "+" reg(p), "+c"(n) : "d"(port) : "memory")
static inline void ins(uint16_t port, unsigned size, void *to, uint64_t n)
{
    if (size == 1)
        STRING_IO("insb", "D", to);
    else if (size == 2)
        STRING_IO("insw", "D", to);
    else
        STRING_IO("insl", "D", to);
}
static inline void outs(uint16_t port, unsigned size, const void *from, uint64_t n)
{
    if (size == 1)
        STRING_IO("outsb", "S", from);
    else if (size == 2)
        STRING_IO("outsw", "S", from);
    else
        STRING_IO("outsl", "S", from);
}

/* Runs body with these registers, loaded before and stored after; it may use R8 and R9, and must end in RET. For attempt(). */
struct insn_regs { uint64_t rax, rcx, rdx, rbx, rsi, rdi, rflags, spare; uint64_t xmm0[2]; };
void run_body(void (*body)(void), struct insn_regs *r);
void enable_sse(void); /* run_body needs it */

#define BIT(n) (UINT64_C(1) << (n))
#define RAM_END ({ uint64_t base_, end_; free_memory(&base_, &end_); end_; })
enum { LAPIC = 0xfee00000u, IOAPIC = 0xfec00000u };
enum { VEC_DB = 1, VEC_NMI = 2, VEC_UD = 6, VEC_NM = 7, VEC_GP = 13, VEC_PF = 14 };

#endif
