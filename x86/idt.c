/*
 * Vectors to handlers.
 *
 * All gates are interrupt gates: a handler runs with interrupts off and is not nested, so it needs a bounded piece of
 * whatever stack was running. The table of handlers has no lock; an entry goes from free to reserved to used by atomic
 * steps, its argument written before its function.
 */
#include "x86/idt.h"
#include "x86/apic.h"
#include "x86/cpu.h"
#include "x86/gdt.h"
#include "x86/percpu.h"

#define STUB_BYTES 16
#define GATE_INTERRUPT 0x8e /* present, DPL 0, 64-bit interrupt gate */
#define STRAY_REPORTS 8

extern const uint8_t trap_stubs[]; /* traps.asm */
extern const struct fixup fixups_start[], fixups_end[]; /* linker.ld */

struct idt_gate { /* APM 2, figure 4-24 */
    uint16_t offset_low, selector;
    uint8_t ist, type;
    uint16_t offset_mid;
    uint32_t offset_high, reserved;
};
_Static_assert(sizeof(struct idt_gate) == 16, "IDT gate");

static struct idt_gate idt[256] __attribute__((aligned(16)));
static struct { irq_handler_fn *fn; void *arg; } handlers[256];
static struct trap_hooks hooks;
static unsigned stray_count;

static void reserved_vector(void *arg UNUSED) {}

void trap_set_hooks(const struct trap_hooks *h) { hooks = *h; }

void idt_load(void) { lidt(&(struct descriptor_ptr){sizeof(idt) - 1, (uintptr_t)idt}); }

void idt_init(void)
{
    gdt_init_boot();
    for (unsigned i = 0; i < 256; i++) {
        uint64_t entry = (uintptr_t)trap_stubs + i * STUB_BYTES;
        idt[i] = (struct idt_gate){
            .offset_low = (uint16_t)entry, .offset_mid = (uint16_t)(entry >> 16), .offset_high = (uint32_t)(entry >> 32),
            .selector = SELECTOR_CODE, .type = GATE_INTERRUPT,
            .ist = i == X86_NMI ? IST_NMI : i == X86_DF ? IST_DF : i == X86_MC ? IST_MC : 0,
        };
    }
    idt_load();
}

bool irq_register(uint8_t vector, irq_handler_fn *handler, void *arg)
{
    if (vector < VECTOR_DYNAMIC_FIRST || vector == VECTOR_LAPIC_SPURIOUS)
        return false;
    irq_handler_fn *old = __atomic_load_n(&handlers[vector].fn, __ATOMIC_RELAXED);
    if (old && old != reserved_vector)
        return false;
    handlers[vector].arg = arg;
    __atomic_store_n(&handlers[vector].fn, handler, __ATOMIC_RELEASE);
    return true;
}

int irq_alloc_vector(void)
{
    for (int v = VECTOR_DYNAMIC_FIRST; v <= VECTOR_DYNAMIC_LAST; v++) {
        irq_handler_fn *expected = NULL;
        if (__atomic_compare_exchange_n(&handlers[v].fn, &expected, reserved_vector, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED))
            return v;
    }
    return -1;
}

const char *exception_name(unsigned vector)
{
    static const char *const names[32] = {
        "#DE divide error", "#DB debug", "NMI", "#BP breakpoint", "#OF overflow", "#BR bound range", "#UD invalid opcode",
        "#NM device not available", "#DF double fault", "coprocessor overrun", "#TS invalid TSS", "#NP segment not present",
        "#SS stack fault", "#GP general protection", "#PF page fault", "vector 15", "#MF x87 error", "#AC alignment check",
        "#MC machine check", "#XM SIMD error", "#VE virtualization", "#CP control protection", "vector 22", "vector 23",
        "vector 24", "vector 25", "vector 26", "vector 27", "#HV hypervisor injection", "#VC VMM communication",
        "#SX security", "vector 31",
    };
    return vector < 32 ? names[vector] : "interrupt";
}

/* A handful of entries: a linear search will do. */
static bool apply_fixup(struct trap_frame *f)
{
    for (const struct fixup *x = fixups_start; x < fixups_end; x++)
        if (x->rip == f->rip) {
            f->rip = x->resume;
            return true;
        }
    return false;
}

static void exception(struct trap_frame *f)
{
    if (f->vector == X86_NMI) {
        this_cpu()->nmi_count++;
        if (hooks.nmi)
            hooks.nmi(f);
        return;
    }
    if (f->vector != X86_DF && f->vector != X86_MC && apply_fixup(f))
        return;
    if (hooks.fatal)
        hooks.fatal(f);
    for (;;) {
        cli();
        hlt();
    }
}

static void stray(uint8_t vector)
{
    this_cpu()->spurious_count++;
    if (hooks.stray && __atomic_add_fetch(&stray_count, 1, __ATOMIC_RELAXED) <= STRAY_REPORTS)
        hooks.stray(vector);
}

static void interrupt(struct trap_frame *f)
{
    struct percpu *cpu = this_cpu();
    uint8_t vector = (uint8_t)f->vector;

    cpu->irq_nesting++;
    cpu->irq_frame = f;
    cpu->irq_count++;
    irq_handler_fn *fn = __atomic_load_n(&handlers[vector].fn, __ATOMIC_ACQUIRE);
    uint64_t begun = hooks.done ? rdtsc() : 0;
    if (fn)
        fn(handlers[vector].arg);
    else
        stray(vector);
    if (hooks.done)
        hooks.done(fn, rdtsc() - begun);
    /* Neither the LAPIC's spurious vector nor what the masked 8259s send is in service (APM 2, 16.4.7). */
    if (vector >= VECTOR_DYNAMIC_FIRST && vector != VECTOR_LAPIC_SPURIOUS)
        lapic_eoi();
    cpu->irq_frame = NULL;
    cpu->irq_nesting--;
}

void trap_dispatch(struct trap_frame *f)
{
    if (f->vector < 32)
        exception(f);
    else
        interrupt(f);
}
