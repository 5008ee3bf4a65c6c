/*
 * Doors at interrupts: what arrives, how often and in which order. An interrupt that is lost, doubled or out of order is the usual
 * way in which an interrupt controller in software is wrong, and the guest that it happens to hangs without a word.
 */
#include "hostile/hostile.h"

enum { ICR = 0x300, ICR2 = 0x310, SELF = 1 << 18, EOI_REG = 0xb0, LVT_TIMER = 0x320, TMICT = 0x380, TDCR = 0x3e0 };

static void apic_eoi(void) { mmio_write(LAPIC + EOI_REG, 0); }
static void self_ipi(unsigned vector) { mmio_write(LAPIC + ICR, SELF | vector); }
/* With an exit behind the shadow: on a CPU in software that forgets it the hypervisor waits for one. */
static void sti(void) { asm volatile("sti\n nop\n in $0x80, %%al" ::: "rax", "memory"); }
static void cli(void) { asm volatile("cli" ::: "memory"); }

/* ---- intstorm ------------------------------------------------------------------------------------------------------------------ */

static uint8_t arrived[512];
static unsigned arrivals;

static void note(unsigned vector)
{
    if (arrivals < sizeof(arrived))
        arrived[arrivals] = (uint8_t)vector;
    arrivals++;
    apic_eoi();
}

/* Many at once: each comes once, the highest vector first. */
static bool ordered_round(void)
{
    uint64_t sent[4] = {0};
    unsigned n = 1 + (unsigned)rnd_below(40), expected = 0;
    on_interrupt = note;
    arrivals = 0;
    for (unsigned k = 0; k < n; k++) {
        unsigned vector = 32 + (unsigned)rnd_below(224);
        sent[vector / 64] |= BIT(vector % 64);
        self_ipi(vector);
    }
    sti();
    cli();
    for (int vector = 255; vector >= 32; vector--)
        if (sent[vector / 64] >> vector % 64 & 1) {
            if (expected >= arrivals || arrived[expected] != vector)
                return failed("intstorm: %u of %u was vector %u instead of %u", expected, arrivals, arrived[expected], (unsigned)vector);
            expected++;
        }
    return expected == arrivals || failed("intstorm: %u interrupts for %u vectors", arrivals, expected);
}

static unsigned depth, deepest;

/* Each sends one of the next class up and one of its own class, which must wait, then lets interrupts in. */
static void nest(unsigned vector)
{
    unsigned before = arrivals++;
    depth++;
    deepest = depth > deepest ? depth : deepest;
    if (vector < 0xe0 && (vector & 0xf) != 0xf) {
        self_ipi(vector + 16);
        sti();
        cli();
        if (arrivals == before + 1)
            arrivals += 1000; /* the higher one did not come */
        before = arrivals;
        self_ipi((vector & 0xf0) | 0xf);
        sti();
        cli();
        if (arrivals != before)
            arrivals += 100000; /* the equal one did */
    }
    depth--;
    apic_eoi();
}

static bool nested_round(void)
{
    on_interrupt = nest;
    arrivals = depth = deepest = 0;
    unsigned vector = 0x80 + (unsigned)rnd_below(8);
    self_ipi(vector);
    sti();
    asm volatile("nop");
    cli();
    return (deepest >= 7 && arrivals < 1000) || failed("intstorm: nested from %x: %u deep, %u arrivals", vector, deepest, arrivals);
}

/* INT n: vectors whose exceptions push an error code would find none. */
static bool has_error_code(unsigned n) { return n == 8 || (n >= 10 && n <= 14) || n == 17 || n == 21 || n == 29 || n == 30; }

static uint8_t int_code[256][4] __attribute__((aligned(16)));
static void call_code(void *code) { ((void (*)(void))code)(); }

static bool software_round(void)
{
    unsigned n = (unsigned)rnd_below(256);
    uint8_t *code = int_code[n];
    code[0] = 0xcd, code[1] = (uint8_t)n, code[2] = 0xc3;
    if (has_error_code(n))
        return true;
    on_interrupt = note;
    arrivals = 0;
    uint64_t was_nmis = nmis;
    int vector = attempt(call_code, code);
    bool ok = n == 2 ? nmis == was_nmis + 1 && vector == -1 : n < 32 ? vector == (int)n : vector == -1 && arrivals == 1 && arrived[0] == n;
    if (n < 32 && n != 2 && attempt_frame.rip != (uint64_t)code + 2)
        return failed("intstorm: int %u at %lx pushed %lx", n, (uint64_t)code, attempt_frame.rip);
    return ok || failed("intstorm: int %u: vector %d, %u arrivals", n, vector, arrivals);
}

static bool breakpoint_forms(void)
{
    int a = TRY("int3", ::: "r15"), b = TRY(".byte 0xf1", ::: "r15"); /* INT1: some CPUs in software have none */
    int c = TRY("ud2", ::: "r15"), d = TRY("xor %%edx, %%edx\n div %%edx", ::: "r15", "rax", "rdx");
    return (a == 3 && (b == VEC_DB || b == VEC_UD) && c == VEC_UD && d == 0) || failed("intstorm: int3, int1, ud2, div: vectors %d %d %d %d", a, b, c, d);
}

/* With TF each instruction ends in #DB, whoever executes it. */
static uint64_t steps[64];
static unsigned step_count;
static bool (*previous_trap)(struct trap_frame *f);
static bool step(struct trap_frame *f)
{
    if (f->vector != VEC_DB)
        return previous_trap(f);
    if (step_count < 64)
        steps[step_count] = f->rip;
    step_count++;
    return true;
}

extern char step_at[], step_end[];
extern const uint8_t step_lengths[];
void step_body(uint64_t hole);
asm(".pushsection .text; step_body: push %rbx; push %rdi; pushf; orl $0x100, (%rsp); popf\n"
    "step_at: nop; 1: xor %eax, %eax; 2: cpuid; 3: mov $0x174, %ecx; 4: rdmsr; 5: in $0x80, %al; 6: out %al, $0x80; 7: mov (%rsp), %rdi\n"
    "8: mov (%rdi), %eax; 9: mov %cr0, %rax; 10: mov %rax, %cr0; 11: smsw %eax; 12: mov %dr6, %rax; 13: rdtsc; 14: wbinvd; 15: nop; 16: pushf\n"
    "17: andl $~0x100, (%rsp); 18: popf; step_end: pop %rdi; pop %rbx; ret; .popsection\n"
    ".pushsection .rodata; step_lengths: .byte 1b-step_at, 2b-step_at, 3b-step_at, 4b-step_at, 5b-step_at, 6b-step_at, 7b-step_at, 8b-step_at, 9b-step_at\n"
    ".byte 10b-step_at, 11b-step_at, 12b-step_at, 13b-step_at, 14b-step_at, 15b-step_at, 16b-step_at, 17b-step_at, 18b-step_at, step_end-step_at\n"
    ".popsection");

static bool single_steps(void)
{
    enum { COUNT = 19 };
    step_count = 0;
    previous_trap = on_trap;
    on_trap = step;
    step_body(RAM_END);
    on_trap = previous_trap;
    for (unsigned n = 0; n < COUNT && n < step_count; n++)
        if (steps[n] != (uint64_t)step_at + step_lengths[n])
            return failed("intstorm: step %u of %u stopped at +%lu instead of +%u", n, step_count, steps[n] - (uint64_t)step_at, step_lengths[n]);
    return step_count == COUNT || failed("intstorm: %u steps instead of %u", step_count, COUNT);
}

/* STI holds interrupts back for one instruction, and a HLT there is woken by what was pending; MOV SS holds #DB back too. */
static bool shadows(void)
{
    on_interrupt = note;
    arrivals = 0;
    unsigned before, after;
    self_ipi(0x55);
    asm volatile("sti\n mov %2, %0\n in $0x80, %%al\n mov %2, %1\n cli" : "=&r"(before), "=&r"(after) : "m"(arrivals) : "rax");
    if (before != 0 || after != 1)
        return failed("intstorm: in STI's shadow %u arrivals, behind it %u", before, after);
    self_ipi(0x66);
    asm volatile("sti\n hlt\n cli" ::: "memory");
    mmio_write(LAPIC + LVT_TIMER, 0x77);
    mmio_write(LAPIC + TDCR, 0xb);
    mmio_write(LAPIC + TMICT, 200000);
    asm volatile("sti\n hlt\n cli" ::: "memory");
    return arrivals == 3 || failed("intstorm: %u arrivals after two HLTs", arrivals);
}

static bool intstorm(void)
{
    static bool (*const rounds[])(void) = {ordered_round, software_round, nested_round, software_round, breakpoint_forms, single_steps, shadows};
    bool ok = true;
    for (uint64_t n = 0; n < count && ok; n++)
        ok = rounds[n % (sizeof(rounds) / sizeof(*rounds))]();
    on_interrupt = NULL;
    return ok;
}

/* ---- irqflood -------------------------------------------------------------------------------------------------------------------- */

static volatile uint64_t ticks, pic_ticks;

static void tick(unsigned vector)
{
    ticks++;
    if (vector >= 0x20 && vector < 0x30) {
        pic_ticks++;
        outb(0x70, 12);
        inb(0x71);
        if (vector >= 0x28)
            outb(0xa0, 0x20);
        outb(0x20, 0x20);
    } else {
        apic_eoi();
    }
}

static bool irqflood(void)
{
    on_interrupt = tick;
    outb(0x43, 0x34); /* counter 0, both bytes, rate generator */
    outb(0x40, 1);
    outb(0x40, 0);
    outb(0x70, 10);
    outb(0x71, 0x23); /* 8 kHz */
    outb(0x70, 11);
    outb(0x71, 0x42);
    outb(0x21, 0xfa);
    outb(0xa1, 0xfe);
    mmio_write(LAPIC + 0x350, 0x700); /* LINT0 is the PIC's */
    mmio_write(LAPIC + TDCR, 0xb);
    mmio_write(LAPIC + LVT_TIMER, 0x20080);
    mmio_write(LAPIC + TMICT, 1);
    sti();
    while (ticks < count)
        asm volatile("pause");
    cli();
    outb(0x70, 11);
    outb(0x71, 2);
    outb(0x43, 0x30); /* and stops */
    interrupts_sane();
    on_interrupt = NULL;
    return (pic_ticks && pic_ticks < ticks) || failed("irqflood: %lu of %lu ticks came by the PIC", pic_ticks, ticks);
}

/* ---- apic ------------------------------------------------------------------------------------------------------------------------- */

enum { APIC_BASE = 0x1b, LDR = 0xd0, DFR = 0xe0, SVR = 0xf0, ESR = 0x280, FIXED = 0, LOWEST = 1, SMI = 2, NMI = 4, INIT = 5, SIPI = 6 };
enum { BASE_BSP = 0x100, BASE_EXTD = 0x400, BASE_EN = 0x800 };

static bool in_irr(unsigned vector) { return mmio_read(LAPIC + 0x200 + vector / 32 * 16) >> vector % 32 & 1; }

/* Is this CPU, the only one, meant? */
static bool is_meant(uint32_t icr_low, uint8_t dest, uint8_t ldr, bool flat)
{
    unsigned shorthand = icr_low >> 18 & 3;
    if (shorthand)
        return shorthand != 3;
    if (dest == 0xff)
        return true;
    if (!(icr_low >> 11 & 1))
        return dest == mmio_read(LAPIC + 0x20) >> 24;
    return flat ? dest & ldr : dest >> 4 == ldr >> 4 && (dest & ldr & 15);
}

static bool ipi_round(void)
{
    unsigned mode = (unsigned)rnd_below(8), vector = (unsigned)rnd_below(256);
    uint32_t icr = vector | mode << 8 | (uint32_t)rnd_below(2) << 11 | (uint32_t)rnd_below(4) << 14 | (uint32_t)rnd_below(4) << 18;
    uint8_t dest = rnd_below(3) ? (uint8_t)rnd() : (uint8_t)(rnd_below(2) ? 0 : 0xff), ldr = (uint8_t)rnd();
    bool flat = rnd_below(2), meant;
    mmio_write(LAPIC + DFR, flat ? 0xffffffff : 0x0fffffff);
    mmio_write(LAPIC + LDR, (uint32_t)ldr << 24);
    meant = is_meant(icr, dest, ldr, flat);
    if (mode == INIT && meant)
        return true; /* see mode=init */
    uint64_t was_nmis = nmis;
    on_interrupt = note;
    arrivals = 0;
    mmio_write(LAPIC + ICR2, (uint32_t)dest << 24);
    mmio_write(LAPIC + ICR, icr);
    bool fixed = (mode == FIXED || mode == LOWEST) && vector >= 16 && meant, nmi = mode == NMI && meant;
    bool pending = in_irr(vector);
    if (vector >= 16 && vector < 32 && pending) /* would arrive as an exception: taken away by a reset of the APIC */
        return wrmsr(APIC_BASE, rdmsr(APIC_BASE) & ~(uint64_t)BASE_EN), wrmsr(APIC_BASE, rdmsr(APIC_BASE) | BASE_EN), interrupts_sane(), fixed;
    sti();
    cli();
    if (pending != fixed || arrivals != fixed || (fixed && arrived[0] != vector) || nmis != was_nmis + nmi)
        return failed("apic: ICR %08x to %02x with LDR %02x %s: meant %u, pending %u, %u arrivals, %lu NMIs", icr, dest, ldr,
                      flat ? "flat" : "cluster", meant, pending, arrivals, nmis - was_nmis);
    return true;
}

static void note_x2apic(unsigned vector)
{
    arrivals++;
    if (rdmsr(APIC_BASE) & BASE_EXTD)
        wrmsr(0x80b, 0);
    else
        apic_eoi();
    (void)vector;
}

/* All modes and the forbidden ways between them (SDM 3, 11.12.5). */
static bool base_round(void)
{
    uint64_t base = rdmsr(APIC_BASE), off = base & ~(uint64_t)(BASE_EN | BASE_EXTD), xapic = off | BASE_EN, x2apic = xapic | BASE_EXTD, v;
    int a = try_wrmsr(APIC_BASE, off | BASE_EXTD), b = try_wrmsr(APIC_BASE, x2apic), c = try_wrmsr(APIC_BASE, xapic);
    if (a != VEC_GP || b != -1 || c != VEC_GP || rdmsr(APIC_BASE) != x2apic)
        return failed("apic: base %lx to %lx: vectors %d %d %d", base, rdmsr(APIC_BASE), a, b, c);
    for (unsigned n = 0; n < 40; n++) {
        uint32_t msr = 0x800 + (uint32_t)rnd_below(0x100);
        try_rdmsr(msr, &v);
        if (msr != 0x830 && msr != 0x83f) /* IPIs follow below */
            try_wrmsr(msr, rnd_below(2) ? rnd_value() & 0x1ffff : rnd_value());
    }
    wrmsr(0x80f, 0x1ff);
    wrmsr(0x808, 0);
    on_interrupt = note_x2apic;
    arrivals = 0;
    wrmsr(0x83f, 0x99);
    wrmsr(0x830, UINT64_C(0xffffffff) << 32 | 0x98);           /* broadcast */
    wrmsr(0x830, UINT64_C(1) << 32 | 1 << 11 | 0x97);          /* logical: this one, cluster 0 */
    wrmsr(0x830, UINT64_C(0xabcd0001) << 32 | 1 << 11 | 0x96); /* nobody */
    wrmsr(0x830, UINT64_C(77) << 32 | 0x95);
    sti();
    cli();
    a = try_wrmsr(APIC_BASE, off), b = try_wrmsr(APIC_BASE, x2apic), c = try_wrmsr(APIC_BASE, xapic);
    interrupts_sane();
    if (a != -1 || b != VEC_GP || c != -1)
        return failed("apic: off: vector %d, to x2APIC: %d, to xAPIC: %d", a, b, c);
    return arrivals == 3 || failed("apic: %u arrivals in x2APIC mode instead of 3", arrivals);
}

static bool apic(void)
{
    bool ok = true;
    for (uint64_t n = 0; n < count && ok; n++) {
        ok = ipi_round();
        if (n % 50 == 0 && ok)
            ok = base_round();
    }
    interrupts_sane();
    return ok;
}

/* ---- pic -------------------------------------------------------------------------------------------------------------------------- */

/*
 * With random vectors a PIC's interrupt may come where an exception with an error code is expected; so all gates lead here, to code that
 * knows neither. It quiets every source that it can reach, or a level-triggered line would come back for ever.
 */
extern char pic_gate[];
extern volatile uint64_t pic_arrivals;
asm(".pushsection .data; .globl pic_arrivals; pic_arrivals: .quad 0; .popsection\n"
    ".pushsection .text; pic_gate: push %rax; push %rdx; incq pic_arrivals(%rip)\n"
    "mov $12, %al; out %al, $0x70; in $0x71, %al; mov $0x3fa, %edx; in (%dx), %al; mov $0x3fd, %edx; in (%dx), %al; mov $0x3fe, %edx; in (%dx), %al\n"
    "mov $0x3f8, %edx; in (%dx), %al; testb $63, pic_arrivals(%rip); jnz 1f; mov $0xff, %al; out %al, $0x21; out %al, $0xa1\n"
    "1: mov $0x20, %al; out %al, $0xa0; out %al, $0x20; mov $0xfee000b0, %edx; movl $0, (%rdx); pop %rdx; pop %rax; iretq; .popsection");

static bool pic(void)
{
    static const uint16_t ports[] = {0x20, 0x20, 0x21, 0x21, 0xa0, 0xa0, 0xa1, 0xa1, 0x40, 0x40, 0x41, 0x42, 0x43, 0x43, 0x61, 0x70, 0x71,
                                     0x4d0, 0x4d1, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff};
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) ptr = {4095, 0}, old;
    static struct gate gates[256];
    uint64_t at = (uint64_t)pic_gate;
    for (unsigned n = 0; n < 256; n++)
        gates[n] = (struct gate){(at & 0xffff) | 8 << 16 | UINT64_C(0x8e00) << 32 | (at >> 16 & 0xffff) << 48, at >> 32};
    ptr.base = (uint64_t)gates;
    asm volatile("sidt %0; lidt %1" : "=m"(old) : "m"(ptr));
    for (uint64_t n = 0; n < count; n++) {
        uint16_t port = PICK(ports);
        mmio_write(LAPIC + 0x350, 0x700);
        if (rnd_below(8) == 0) /* a sane beginning now and then, or nothing would ever come */
            interrupts_sane(), mmio_write(LAPIC + 0x350, 0x700), outb(0x21, (uint8_t)rnd()), outb(0xa1, (uint8_t)rnd());
        if (rnd_below(4) == 0)
            inb(port);
        else
            outb(port, (uint8_t)rnd_value());
        if (port == 0x43 || rnd_below(8) == 0)
            outb(0x40, (uint8_t)rnd()), outb(0x40, 0);
        asm volatile("sti\n nop\n in $0x80, %%al\n cli" ::: "rax", "memory");
    }
    outb(0x43, 0x30);
    outb(0x70, 11);
    outb(0x71, 2);
    interrupts_sane();
    asm volatile("lidt %0" :: "m"(old));
    return pic_arrivals > 0 || failed("pic: not one interrupt came");
}

const struct mode interrupt_modes[] = {
    {"intstorm", intstorm, 350}, {"irqflood", irqflood, 2000}, {"apic", apic, 500}, {"pic", pic, 5000}, {}};
