/* Local APIC, I/O APIC, the pair of 8259s: what a line or a timer leads to, and when. */
#include "platform/platform.h"

/* ---- interrupts ------------------------------------------------------------------------------------------------------------------- */

enum { REG_ID = 0x20, REG_TPR = 0x80, REG_EOI = 0xb0, REG_SVR = 0xf0, REG_IRR = 0x200, REG_ESR = 0x280, REG_ICR = 0x300, REG_LVT_TIMER = 0x320,
    REG_LVT_LINT0 = 0x350, REG_INITIAL = 0x380, REG_CURRENT = 0x390, REG_DIVIDE = 0x3e0 };
enum { MASKED = 1 << 16, PERIODIC = 1 << 17, DEADLINE = 2 << 17, MSR_TSC = 0x10, MSR_DEADLINE = 0x6e0, BUS_HZ = 1000000000 };
enum { V_PIC = 0x20, V_TIMER = 0x61, V_IPI = 0x62, V_PIT = 0x63, V_RTC = 0x64, V_UART = 0x65 };

static bool x2apic;
static volatile uint64_t hits[256], hit_tsc;

static uint32_t apic(uint32_t reg) { return x2apic ? (uint32_t)rdmsr(0x800 + reg / 16) : *(volatile uint32_t *)(uint64_t)(0xfee00000 + reg); }
static void apic_set(uint32_t reg, uint32_t v)
{
    if (x2apic)
        wrmsr(0x800 + reg / 16, v);
    else
        *(volatile uint32_t *)(uint64_t)(0xfee00000 + reg) = v;
}

static void interrupt(unsigned vector)
{
    hit_tsc = rdtsc();
    hits[vector]++;
    if (vector == V_RTC)
        cmos(0xc); /* or its line stays up */
    if (vector == V_UART)
        outb(0x3f9, 0);
    if (vector >= V_PIC && vector < V_PIC + 16)
        outb(0x20, 0x20);
    else if (vector != 0xff)
        apic_set(REG_EOI, 0);
}

/* Until the vector has come so often, or for two seconds. Leaves interrupts off. */
static bool wait_hits(unsigned vector, uint64_t n)
{
    uint64_t begin = rdtsc();
    asm volatile("sti");
    while (hits[vector] < n && rdtsc() - begin < 2 * tsc_hz)
        asm volatile("pause");
    asm volatile("cli");
    return hits[vector] >= n;
}

/* Takes what may be pending, for 5 ms: how many times the vector came. */
static uint64_t linger(unsigned vector)
{
    uint64_t before = hits[vector];
    asm volatile("sti");
    wait_tsc(tsc_hz / 200);
    asm volatile("cli");
    return hits[vector] - before;
}

static uint64_t read_apic_timer(void) { return (uint32_t)-apic(REG_CURRENT); }

/* Microseconds to the nth interrupt, the least of some tries: a busy host delays interrupts but never hurries one. 0: it did not come. */
static uint64_t shortest(unsigned tries, uint32_t lvt, uint32_t count, uint64_t n)
{
    uint64_t least = UINT64_MAX;
    apic_set(REG_LVT_TIMER, lvt);
    while (tries--) {
        hits[V_TIMER] = 0;
        uint64_t begin = rdtsc();
        apic_set(REG_INITIAL, count);
        if (!wait_hits(V_TIMER, n))
            return 0;
        uint64_t us = (hit_tsc - begin) * 1000000 / tsc_hz;
        least = us < least ? us : least;
        if (lvt & PERIODIC) {
            apic_set(REG_INITIAL, 0);
            linger(V_TIMER); /* one may have been under way */
        }
    }
    return least;
}

static void check_apic_timer(const char *one_shot, const char *periodic, const char *rate)
{
    enum { MS = BUS_HZ / 1000 };
    apic_set(REG_DIVIDE, 0xb); /* by one */
    apic_set(REG_LVT_TIMER, MASKED | V_TIMER);
    apic_set(REG_INITIAL, UINT32_MAX);
    check_rate(rate, read_apic_timer, BUS_HZ, 32);
    uint64_t us = shortest(20, V_TIMER, 2 * MS, 1), more = linger(V_TIMER);
    CHECK(one_shot, us >= 1980 && !more && !apic(REG_CURRENT), "%lu us for 2000, and %lu more came", us, more);
    us = shortest(4, PERIODIC | V_TIMER, 4 * MS, 8);
    more = linger(V_TIMER);
    CHECK(periodic, us >= 31680 && !more, "%lu us for 8 times 4000, and %lu more came when stopped", us, more);
    apic_set(REG_LVT_TIMER, MASKED);
}

static void check_deadline(void)
{
    hits[V_TIMER] = 0;
    apic_set(REG_LVT_TIMER, DEADLINE | V_TIMER);
    asm volatile("mfence");
    uint64_t due = rdtsc() + tsc_hz / 500;
    wrmsr(MSR_DEADLINE, due);
    bool kept = rdmsr(MSR_DEADLINE) == due || rdtsc() >= due, came = wait_hits(V_TIMER, 1);
    CHECK("tsc-deadline", kept && came && hit_tsc >= due && !rdmsr(MSR_DEADLINE), "kept %u came %u, %ld ticks late", kept, came, hit_tsc - due);
    wrmsr(MSR_DEADLINE, 1);
    CHECK("tsc-deadline-past", wait_hits(V_TIMER, 2), "it never came");
    bool in_time = false;
    for (unsigned n = 0; n < 10 && !in_time; n++) { /* whether the change of mind came before the deadline is not ours to say */
        wrmsr(MSR_DEADLINE, due = rdtsc() + tsc_hz / 50);
        wrmsr(MSR_DEADLINE, 0);
        in_time = rdtsc() < due;
        hits[V_TIMER] = 0;
        while (rdtsc() < due)
            linger(V_TIMER);
    }
    CHECK("tsc-deadline-disarm", in_time && !hits[V_TIMER], "in time %u, it came %lu times", in_time, hits[V_TIMER]);
    uint64_t late = 0;
    for (unsigned n = 0; n < 8 && came; n++) {
        wrmsr(MSR_DEADLINE, due = rdtsc() + tsc_hz / 1000);
        asm volatile("sti\n hlt\n cli"); /* nothing else is on: only the timer ends it */
        late += hit_tsc < due;
    }
    CHECK("hlt-until-deadline", came && !late && hits[V_TIMER] == 8, "%lu interrupts, %lu of them early", hits[V_TIMER], late);
    if (bare) {
        apic_set(REG_LVT_TIMER, MASKED);
        return;
    }
    hits[V_TIMER] = 0; /* a minute ahead; and then the TSC is set to just before that */
    wrmsr(MSR_DEADLINE, due = rdtsc() + 60 * tsc_hz);
    wrmsr(MSR_TSC, due - tsc_hz / 500);
    bool leapt = wait_hits(V_TIMER, 1), early = hit_tsc < due;
    wrmsr(MSR_TSC, rdtsc() - 60 * tsc_hz);
    CHECK("tsc-deadline-set-tsc", leapt && !early, "came %u, early %u", leapt, early);
    apic_set(REG_LVT_TIMER, MASKED);
}

/* Interrupts are on and one is held back: lower CR8, look a thousand instructions later. */
static void check_lowering(const char *name)
{
    enum { ROUNDS = 20 };
    hits[V_IPI] = 0;
    uint64_t early = 0;
    for (unsigned n = 0; n < ROUNDS; n++) {
        WRITE_CR(8, n % 2 ? V_IPI >> 4 : 15);
        apic_set(REG_ICR, 0x44000 | V_IPI);
        asm volatile("sti\n nop\n nop\n cli");
        early += hits[V_IPI] != n;
        asm volatile("sti\n nop\n mov %0, %%cr8\n mov $500, %%ecx\n 1: loop 1b\n cli" :: "r"((V_IPI >> 4) - UINT64_C(1)) : "rcx", "memory");
    }
    WRITE_CR(8, 0);
    CHECK(name, hits[V_IPI] == ROUNDS && !early, "%lu of %u came when CR8 was lowered, %lu rounds began with a wrong count", hits[V_IPI], ROUNDS,
          early);
}

static void check_ipi(const char *self, const char *priority, const char *nmi)
{
    hits[V_IPI] = 0;
    apic_set(REG_ICR, 0x44000 | V_IPI);
    CHECK(self, wait_hits(V_IPI, 1) && !linger(V_IPI), "came %lu times", hits[V_IPI]);
    WRITE_CR(8, V_IPI >> 4);
    apic_set(REG_ICR, 0x44000 | V_IPI);
    bool held = !linger(V_IPI) && (apic(REG_IRR + (V_IPI / 32) * 16) & 1u << V_IPI % 32) && apic(REG_TPR) == (V_IPI >> 4) << 4;
    WRITE_CR(8, 0);
    CHECK(priority, held && wait_hits(V_IPI, 2), "held back %u, came %lu times", held, hits[V_IPI]);
    uint64_t at = x2apic ? 0x830 : 0xfee00300; /* physical destination 0, the only one there is */
    int r = x2apic ? TRY("wrmsr\n mov $100000, %%ecx\n 2: loop 2b", :: "c"(at), "a"(0x400), "d"(0) : "r15", "memory")
                   : TRY("movl $0x400, (%0)\n mov $100000, %%ecx\n 2: loop 2b", :: "r"(at) : "rcx", "r15", "memory");
    CHECK(nmi, r == 2, "vector %d came", r);
}

static void ioapic_set(unsigned reg, uint32_t v)
{
    *(volatile uint32_t *)UINT64_C(0xfec00000) = reg;
    *(volatile uint32_t *)UINT64_C(0xfec00010) = v;
}

/* An edge to vector at this CPU through one pin, or the pin masked. */
static void route(unsigned pin, unsigned vector)
{
    ioapic_set(0x11 + 2 * pin, 0);
    ioapic_set(0x10 + 2 * pin, vector ? vector : MASKED);
}

static void check_lines(void)
{
    enum { RELOAD = 1193182 / 500 };
    static const uint8_t icw[][2] = {{0x20, 0x11}, {0x21, V_PIC}, {0x21, 4}, {0x21, 1}, {0xa0, 0x11}, {0xa1, V_PIC + 8}, {0xa1, 2}, {0xa1, 1}, {0xa1, 0xff}};
    for (unsigned n = 0; n < sizeof(icw) / 2; n++)
        outb(icw[n][0], icw[n][1]);
    outb(0x21, 0xfe);
    CHECK("pic-mask", inb(0x21) == 0xfe && inb(0xa1) == 0xff, "%02x %02x", inb(0x21), inb(0xa1));
    apic_set(REG_LVT_LINT0, 0x700); /* ExtINT */
    outb(0x43, 0x34);
    outb(0x40, RELOAD & 0xff);
    uint64_t begin = rdtsc();
    outb(0x40, RELOAD >> 8);
    bool came = wait_hits(V_PIC, 20);
    uint64_t us = (hit_tsc - begin) * 1000000 / tsc_hz;
    CHECK("pit-irq-by-pic", came && us >= 19 * 1980, "%lu in %lu us, one in 2000 was wanted", hits[V_PIC], us);
    outb(0x21, 0xff);
    linger(V_PIC);
    uint64_t more = linger(V_PIC);
    route(2, V_PIT);
    came = wait_hits(V_PIT, 5);
    route(2, 0);
    linger(V_PIT);
    CHECK("pit-irq-by-ioapic", came && !more && !linger(V_PIT), "came %lu times; through the masked PIC %lu", hits[V_PIT], more);
    uint8_t a = cmos(0xa), b = cmos(0xb);
    cmos(0xc);
    route(8, V_RTC);
    outb(0x70, 0xa), outb(0x71, (a & 0x70) | 7); /* 512 a second */
    outb(0x70, 0xb), outb(0x71, b | 0x40);
    CHECK("rtc-irq", wait_hits(V_RTC, 5), "came %lu times", hits[V_RTC]);
    outb(0x70, 0xb), outb(0x71, b);
    outb(0x70, 0xa), outb(0x71, a);
    linger(V_RTC);
    route(8, 0);
    uint8_t mcr = inb(0x3fc);
    outb(0x3fc, 0x0b); /* OUT2 opens the line */
    route(4, V_UART);
    outb(0x3f9, 2);
    came = wait_hits(V_UART, 1);
    route(4, 0);
    outb(0x3f9, 0);
    CHECK("uart-irq", came, "transmitter empty, but no interrupt");
    while (!(inb(0x3fd) & 0x40))
        asm volatile("pause"); /* what is on its way out must not come back in */
    outb(0x3fc, 0x1b);
    uint8_t lines = inb(0x3fe) & 0xf0;
    outb(0x3f8, 0x5a);
    for (begin = rdtsc(); !(inb(0x3fd) & 1) && rdtsc() - begin < tsc_hz;)
        asm volatile("pause");
    uint8_t back = inb(0x3f8), empty = !(inb(0x3fd) & 1);
    outb(0x3fc, mcr);
    outb(0x3ff, 0xa5);
    CHECK("uart-loopback", lines == 0xb0 && back == 0x5a && empty && inb(0x3ff) == 0xa5, "lines %02x, byte %02x, then empty %u", lines, back, empty);
}

void check_interrupts(void)
{
    on_interrupt = interrupt;
    CHECK("apic-base", rdmsr(MSR_APIC_BASE) == 0xfee00900 && apic(REG_ID) == 0, "%lx, id %x", rdmsr(MSR_APIC_BASE), apic(REG_ID));
    apic_set(REG_SVR, 0x1ff);
    check_lines();
    check_apic_timer("xapic-one-shot", "xapic-periodic", "xapic-timer-rate");
    check_lowering("xapic-priority-lowered");
    check_ipi("xapic-self-ipi", "xapic-priority", "xapic-nmi");
    if (shown("x2apic")) {
        wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | BIT(10));
        x2apic = true;
        check_apic_timer("x2apic-one-shot", "x2apic-periodic", "x2apic-timer-rate");
        check_lowering("x2apic-priority-lowered");
        check_ipi("x2apic-self-ipi", "x2apic-priority", "x2apic-nmi");
        wrmsr(0x83f, V_IPI);
        CHECK("x2apic-self-ipi-register", wait_hits(V_IPI, 3), "came %lu times", hits[V_IPI]);
        uint64_t v;
        CHECK("x2apic-refuses", try_wrmsr(MSR_APIC_BASE, 0xfee00900) == 13 && try_rdmsr(0x831, &v) == 13 && try_wrmsr(0x80b, 1) == 13, "no #GP");
    }
    if (shown("tsc-deadline"))
        check_deadline();
    apic_set(REG_ESR, 0);
    CHECK("apic-errors", !apic(REG_ESR), "ESR %x", apic(REG_ESR));
}
