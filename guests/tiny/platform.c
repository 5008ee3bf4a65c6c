/*
 * Looks at the virtual PC as an operating system would, and says for each thing whether it is as it should be: `platform: NAME ok` or
 * `platform: NAME FAILED why`, at the end `platform: N ok, M failed`; the exit code is 1 if anything failed.
 *
 * A CPU feature that is shown and faults when used is the worst kind of lie, so each one shown is used; one that is shown and not
 * known here fails too, so that nobody can show a feature without teaching this guest to use it. All waiting has a limit in TSC ticks,
 * and no check demands that something comes soon: only that it comes, not before its time, and as often as it should. But what CR8 alone
 * has held back comes at once when the guest lowers it: nothing outside the CPU has a part in that.
 *
 * `bare`: on a machine that is not ours (an emulator started by hand): what only our platform promises is left out.
 * `real`: on a real AMD CPU. Some wrong values never reach the hypervisor there, because the CPU refuses them by itself; software CPUs
 * take them (or leave the guest as if its state were impossible), so without `real` these are tried on Intel only.
 */
#include "platform/platform.h"

unsigned good, bad;
bool bare, exact;
uint64_t tsc_hz = 1000000000;

/* ---- ACPI ----------------------------------------------------------------------------------------------------------------------- */

struct acpi_table { char signature[4]; uint32_t length; uint8_t rest[]; } __attribute__((packed));

static uint16_t pm_timer_port;

static uint64_t get(const void *at, unsigned bytes)
{
    uint64_t v = 0;
    for (unsigned n = bytes; n--;)
        v = v << 8 | ((const uint8_t *)at)[n];
    return v;
}

static uint8_t sum(const void *at, uint32_t n)
{
    uint8_t s = 0;
    while (n--)
        s += ((const uint8_t *)at)[n];
    return s;
}

static const uint8_t *find_rsdp(void)
{
    for (uint64_t at = 0xe0000; at < 0x100000; at += 16)
        if (get((void *)at, 8) == 0x2052545020445352 /* "RSD PTR " */)
            return (const uint8_t *)at;
    return NULL;
}

static const struct acpi_table *find_table(const uint8_t *rsdp, uint32_t signature)
{
    bool wide = rsdp[15] >= 2 && get(rsdp + 24, 8);
    const struct acpi_table *root = (const void *)(wide ? get(rsdp + 24, 8) : get(rsdp + 16, 4));
    if (sum(root, root->length))
        return NULL;
    for (uint32_t at = 36; at + (wide ? 8 : 4) <= root->length; at += wide ? 8 : 4) {
        const struct acpi_table *t = (const void *)get((const uint8_t *)root + at, wide ? 8 : 4);
        if (get(t, 4) == signature)
            return t;
    }
    return NULL;
}

static bool table_good(const struct acpi_table *t) { return t && t->length >= 36 && !sum(t, t->length); }

static void check_acpi(void)
{
    const uint8_t *rsdp = find_rsdp();
    CHECK("acpi-rsdp", rsdp && !sum(rsdp, 20) && (rsdp[15] < 2 || !sum(rsdp, (uint32_t)get(rsdp + 20, 4))), "at %lx", (uint64_t)rsdp);
    if (!rsdp)
        return;
    const struct acpi_table *fadt = find_table(rsdp, 0x50434146), *madt = find_table(rsdp, 0x43495041);
    CHECK("acpi-fadt", table_good(fadt), "at %lx", (uint64_t)fadt);
    CHECK("acpi-madt", table_good(madt) && get((const uint8_t *)madt + 36, 4) == 0xfee00000, "at %lx", (uint64_t)madt);
    if (!table_good(fadt))
        return;
    const uint8_t *f = (const uint8_t *)fadt;
    const struct acpi_table *dsdt = (const void *)get(f + 40, 4);
    CHECK("acpi-dsdt", table_good(dsdt) && get(dsdt, 4) == 0x54445344, "at %lx", (uint64_t)dsdt);
    pm_timer_port = (uint16_t)get(f + 76, 4);
    if (!bare)
        CHECK("acpi-mode", !get(f + 48, 4) && (inw((uint16_t)get(f + 64, 4)) & 1), "no SMI command port and SCI_EN were expected");
}

/* ---- clocks --------------------------------------------------------------------------------------------------------------------- */

struct moment { uint64_t tsc, value, width; };

/* A clock together with the TSC: the narrowest of some readings, so that an interruption between the two does not count. */
static struct moment moment_of(uint64_t (*read)(void))
{
    struct moment best = {0, 0, UINT64_MAX};
    for (unsigned n = 0; n < 16; n++) {
        uint64_t before = rdtsc(), value = read(), width = rdtsc() - before;
        if (width < best.width)
            best = (struct moment){before + width / 2, value, width};
    }
    return best;
}

/* a * b / c by way of 128 bits. */
static uint64_t scale(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t high;
    asm("mul %2\n div %3" : "+&a"(a), "=&d"(high) : "r"(b), "r"(c) : "cc");
    return a;
}

void wait_tsc(uint64_t ticks)
{
    for (uint64_t begin = rdtsc(); rdtsc() - begin < ticks;)
        asm volatile("pause");
}

/* Over 40 ms of TSC the clock, of so many bits, has moved as it should to two percent and what the readings themselves are unsure of. */
void check_rate(const char *name, uint64_t (*read)(void), uint64_t hz, unsigned bits)
{
    struct moment a = moment_of(read);
    wait_tsc(tsc_hz / 25);
    struct moment b = moment_of(read);
    uint64_t expected = scale(b.tsc - a.tsc, hz, tsc_hz);
    int64_t off = (int64_t)((b.value - a.value - expected) << (64 - bits)) >> (64 - bits);
    uint64_t allowed = expected / 50 + 2 + scale(a.width + b.width, hz, tsc_hz);
    CHECK(name, (uint64_t)(off < 0 ? -off : off) <= allowed, "%lu ticks more than the %lu expected", (uint64_t)off, expected);
}

static uint64_t read_pm(void) { return inl(pm_timer_port) & 0xffffff; }

static uint64_t read_pit0(void)
{
    outb(0x43, 0);
    uint64_t low = inb(0x40);
    return 0x10000 - (low | (uint64_t)inb(0x40) << 8);
}

/* The first clock, by which the others are judged: the PM timer's rate is the only one that is written down and never programmed. */
static void check_pm_timer(void)
{
    enum { HZ = 3579545 };
    if (!pm_timer_port) {
        CHECK("pm-timer", false, "the FADT names no port");
        return;
    }
    struct moment a = moment_of(read_pm), b;
    uint64_t limit = rdtsc() + BIT(35);
    do
        b = moment_of(read_pm);
    while (((b.value - a.value) & 0xffffff) < HZ / 20 && rdtsc() < limit);
    uint64_t ticks = (b.value - a.value) & 0xffffff;
    CHECK("pm-timer", ticks >= HZ / 20, "%lu ticks in %lu of the TSC", ticks, b.tsc - a.tsc);
    if (ticks >= HZ / 20)
        tsc_hz = scale(b.tsc - a.tsc, HZ, ticks);
    print("platform: TSC at %lu kHz by the PM timer\n", tsc_hz / 1000);
    check_rate("pm-timer-steady", read_pm, HZ, 24);
}

static void check_pit(void)
{
    enum { HZ = 1193182, COUNT = HZ / 100 };
    outb(0x43, 0x34); /* counter 0: both bytes, mode 2 */
    outb(0x40, 0);
    outb(0x40, 0);
    check_rate("pit-counts", read_pit0, HZ, 16);
    outb(0x61, (inb(0x61) & 0xc) | 1); /* gate of counter 2, no speaker */
    outb(0x43, 0xb0);                  /* mode 0: OUT rises at the end of the count */
    outb(0x42, COUNT & 0xff);
    uint64_t begin = rdtsc();
    outb(0x42, COUNT >> 8);
    bool low = !(inb(0x61) & 0x20) || rdtsc() - begin > tsc_hz / 105;
    while (!(inb(0x61) & 0x20) && rdtsc() - begin < tsc_hz)
        asm volatile("pause");
    uint64_t ticks = rdtsc() - begin;
    CHECK("pit-counter-2", low && ticks > tsc_hz / 105 && ticks < tsc_hz, "low %u, %lu us for 10000", low, ticks * 1000000 / tsc_hz);
    outb(0x61, inb(0x61) & 0xc);
}

uint8_t cmos(uint8_t reg) { outb(0x70, reg); return inb(0x71); }
static unsigned rtc_field(uint8_t reg) { uint8_t v = cmos(reg); return cmos(0xb) & 4 ? v : (v >> 4) * 10u + (v & 15); }

/* Seconds since 1970; read until two readings agree, as the seconds may move on meanwhile. 0: they never do. */
static uint64_t rtc_time(void)
{
    unsigned a[6] = {0}, b[6];
    static const uint8_t reg[6] = {9, 8, 7, 4, 2, 0};
    for (unsigned tries = 0; tries < 1000; tries++) {
        bool same = !(cmos(0xa) & 0x80);
        for (unsigned n = 0; n < 6; n++) {
            b[n] = rtc_field(reg[n]);
            same &= b[n] == a[n];
            a[n] = b[n];
        }
        if (!same)
            continue;
        uint64_t y = 2000 + a[0] - (a[1] <= 2), m = (a[1] + 9) % 12; /* years begin in March: the leap day is the last */
        return ((y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + a[2] - 1 - 719468) * 24 + a[3]) * 3600 + a[4] * 60 + a[5];
    }
    return 0;
}

static void check_rtc(void)
{
    CHECK("rtc-battery", cmos(0xd) & 0x80, "register D is %02x", cmos(0xd));
    CHECK("rtc-date", rtc_time() > UINT64_C(1700000000), "%lu", rtc_time());
    /* Each change of the second falls between two readings of the TSC, however far apart an interruption may put them. */
    uint64_t limit = rdtsc() + 5 * tsc_hz, begin = rtc_time(), now = begin, before[2] = {0}, after[2] = {0};
    for (unsigned n = 0; n < 2; n++)
        for (uint64_t second = now; now == second && rdtsc() < limit; after[n] = rdtsc()) {
            before[n] = rdtsc();
            now = rtc_time();
        }
    uint64_t least = before[1] - after[0], most = after[1] - before[0], seconds = now - begin;
    CHECK("rtc-second", seconds >= 2 && least < (seconds - 1) * (tsc_hz + tsc_hz / 50) && most > tsc_hz - tsc_hz / 50, "%lu to %lu us for %lu seconds",
          least * 1000000 / tsc_hz, most * 1000000 / tsc_hz, seconds - 1);
}

/* ---- what a guest of KVM expects ------------------------------------------------------------------------------------------------ */

enum { MSR_WALL_CLOCK = 0x4b564d00, MSR_SYSTEM_TIME = 0x4b564d01 };

static volatile struct { uint32_t version, pad; uint64_t tsc, ns; uint32_t mul; int8_t shift; uint8_t flags, pad2[2]; }
    kvm_time __attribute__((aligned(64)));
static volatile struct { uint32_t version, sec, nsec; } kvm_wall __attribute__((aligned(16)));

static uint64_t read_kvmclock(void)
{
    uint64_t ticks = rdtsc() - kvm_time.tsc;
    ticks = kvm_time.shift < 0 ? ticks >> -kvm_time.shift : ticks << kvm_time.shift;
    return kvm_time.ns + scale(ticks, kvm_time.mul, BIT(32));
}

static void check_kvm(void)
{
    struct cpuid c = cpuid(0x40000000, 0), f = cpuid(0x40000001, 0);
    CHECK("kvm-signature", c.b == 0x4b4d564b && c.c == 0x564b4d56 && c.d == 0x4d && c.a >= 0x40000001, "%08x %08x %08x", c.b, c.c, c.d);
    CHECK("kvm-features", (f.a & (BIT(3) | BIT(24))) == (BIT(3) | BIT(24)), "%08x", f.a);
    uint64_t back = 0;
    int w = try_wrmsr(MSR_SYSTEM_TIME, (uint64_t)&kvm_time | 1), r = try_rdmsr(MSR_SYSTEM_TIME, &back);
    CHECK("kvmclock", w < 0 && r < 0 && back == ((uint64_t)&kvm_time | 1) && kvm_time.version && !(kvm_time.version & 1) && (kvm_time.flags & 1),
          "wrmsr %d rdmsr %d %lx version %u flags %u", w, r, back, kvm_time.version, kvm_time.flags);
    if (w >= 0 || !kvm_time.mul)
        return;
    uint64_t hz = scale(1000000000, BIT(32), kvm_time.mul);
    hz = kvm_time.shift < 0 ? hz << -kvm_time.shift : hz >> kvm_time.shift;
    CHECK("kvmclock-frequency", hz > tsc_hz / 100 * 99 && hz < tsc_hz / 100 * 101, "%lu Hz, but %lu by the PM timer", hz, tsc_hz);
    check_rate("kvmclock-rate", read_kvmclock, 1000000000, 64);
    uint64_t before = read_kvmclock(), tsc = rdtsc();
    wrmsr(0x10, tsc + BIT(40));
    uint64_t moved = rdtsc() - tsc, after = read_kvmclock();
    CHECK("tsc-write", moved >= BIT(40) && moved < BIT(40) + tsc_hz, "moved by %lu", moved);
    CHECK("kvmclock-survives-tsc-write", after >= before && after < before + 1000000000, "from %lu to %lu ns", before, after);
    w = try_wrmsr(MSR_WALL_CLOCK, (uint64_t)&kvm_wall);
    uint64_t now = kvm_wall.sec + (kvm_wall.nsec + read_kvmclock()) / 1000000000, rtc = rtc_time();
    CHECK("kvm-wall-clock", w < 0 && now + 2 >= rtc && now <= rtc + 2, "vector %d, %lu, but the RTC says %lu", w, now, rtc);
    CHECK("kvmclock-refuses-hole", try_wrmsr(MSR_SYSTEM_TIME, 0xd0000001) == 13 && try_wrmsr(MSR_WALL_CLOCK, 0xd0000000) == 13, "no #GP");
    wrmsr(MSR_SYSTEM_TIME, 0);
    int64_t a = 99;
    r = on_amd() ? TRY("vmmcall", : "+a"(a) :: "r15", "memory") : TRY("vmcall", : "+a"(a) :: "r15", "memory");
    CHECK("hypercall-unknown", r < 0 && a == -1000, "vector %d, result %ld", r, a);
}

/* ---- MSRs, control registers, CPUID's other leaves -------------------------------------------------------------------------------- */

/* Linux (Xen: machine checks' capabilities) reads these without a net, and writes back what it read. */
static bool msr_kept(uint32_t msr, bool writable)
{
    uint64_t v, again;
    int r = try_rdmsr(msr, &v);
    int w = r < 0 && writable ? try_wrmsr(msr, v) : -1;
    bool ok = r < 0 && w < 0 && try_rdmsr(msr, &again) < 0 && again == v;
    if (!ok)
        print("platform: msr %x: rdmsr %d, wrmsr %d, first %lx then %lx\n", msr, r, w, v, again);
    return ok;
}

static void check_msrs(void)
{
    static const uint32_t common[] = {0x1b, 0x174, 0x175, 0x176, 0x17a, 0x1d9, 0x250, 0x258, 0x259, 0x268, 0x26f, 0x277, 0x2ff, 0x200, 0x201, 0x20e, 0x20f,
        0xc0000080, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102};
    static const uint32_t amd[] = {0xc0010010, 0xc0010015, 0xc001001f, 0xc0011020, 0xc0011029}, intel[] = {0x1a0};
    /* A Pentium's machine check, its successors' banks and control, speculation control, VMX, KVM's and SVM's hidden ones, and none at all. */
    static const uint32_t absent[] = {0x0, 0x17b, 0x400, 0x48, 0x49, 0x3a, 0x480, 0x38f, 0x3ff, 0x1234, 0x40000000,
        0x4b564dff, 0xc0000105, 0xc0010117, 0xffffffff};
    bool ok = msr_kept(0xfe, false) & msr_kept(0x8b, false) & msr_kept(0x179, false), gp = true;
    for (unsigned n = 0; n < sizeof(common) / 4; n++)
        ok &= msr_kept(common[n], true);
    for (unsigned n = 0; n < (on_amd() ? sizeof(amd) : sizeof(intel)) / 4; n++)
        ok &= msr_kept(on_amd() ? amd[n] : intel[n], true);
    CHECK("msrs-of-linux", ok, "see above");
    if (bare)
        return;
    for (unsigned n = 0; n < sizeof(absent) / 4; n++) {
        uint64_t v = 0;
        int r = try_rdmsr(absent[n], &v), w = try_wrmsr(absent[n], v);
        if (r != 13 || w != 13 || fault_error)
            print("platform: msr %x: rdmsr %d, wrmsr %d error %lx\n", absent[n], r, w, fault_error);
        gp &= r == 13 && w == 13 && !fault_error;
    }
    CHECK("msrs-unknown", gp, "no #GP");
    static const struct { uint32_t msr; uint64_t value; } refused[] = {{0x277, 2}, {0x17a, 4}, {0x2ff, 2}, {0xc0000080, 0xd03},
        {MSR_APIC_BASE, BIT(45) | 0xfee00900}, {0x201, BIT(60)}, {0xc0000082, BIT(47)} /* the last: if exact */};
    gp = true;
    for (unsigned n = 0; n < sizeof(refused) / sizeof(refused[0]) - !exact; n++) {
        uint64_t old = rdmsr(refused[n].msr);
        if (try_wrmsr(refused[n].msr, refused[n].value) == 13)
            continue;
        print("platform: msr %x took %lx and is %lx\n", refused[n].msr, refused[n].value, rdmsr(refused[n].msr));
        wrmsr(refused[n].msr, old);
        gp = false;
    }
    CHECK("msrs-refuse", gp, "see above");
}

static int try_cr(unsigned cr, uint64_t v)
{
    switch (cr) {
    case 0: return TRY("mov %0, %%cr0", :: "r"(v) : "r15", "memory");
    case 3: return TRY("mov %0, %%cr3", :: "r"(v) : "r15", "memory");
    case 4: return TRY("mov %0, %%cr4", :: "r"(v) : "r15", "memory");
    default: return TRY("mov %0, %%cr8", :: "r"(v) : "r15", "memory");
    }
}

static void check_control_registers(void)
{
    uint64_t cr0 = READ_CR(0), cr3 = READ_CR(3), cr4 = READ_CR(4);
    bool cached = try_cr(0, cr0 | BIT(30)) < 0 && (READ_CR(0) & BIT(30)) && try_cr(0, cr0) < 0 && READ_CR(0) == cr0;
    CHECK("cr0-cache-disable", cached, "CR0 %lx", READ_CR(0));
    CHECK("cr0-refuses", try_cr(0, cr0 | BIT(32)) == 13 && try_cr(0, cr0 & ~BIT(0)) == 13 && try_cr(0, cr0 | BIT(29)) == 13, "CR0 %lx", READ_CR(0));
    if (exact)
        CHECK("cr3-refuses", try_cr(3, cr3 | BIT(60)) == 13 && try_cr(3, cr3 | BIT(52)) == 13, "CR3 %lx", READ_CR(3));
    CHECK("cr4-refuses", try_cr(4, cr4 | BIT(15)) == 13 && try_cr(4, cr4 | BIT(31)) == 13 && try_cr(4, cr4 | BIT(40)) == 13 &&
          try_cr(4, cr4 & ~BIT(5)) == 13, "CR4 %lx", READ_CR(4));
    CHECK("cr8", (!exact || try_cr(8, 16) == 13) && try_cr(8, 15) < 0 && READ_CR(8) == 15 && try_cr(8, 0) < 0, "CR8 %lx", READ_CR(8));
}

static void check_cpuid(void)
{
    struct cpuid z = cpuid(0, 0), x = cpuid(0x80000000, 0), one = cpuid(1, 0), topology = cpuid(0xb, 0), past = cpuid(0x40000010, 0);
    CHECK("cpuid-leaves", z.a >= 0xd && x.a >= 0x80000008 && (!on_amd() || (z.b == x.b && z.c == x.c && z.d == x.d)), "%x %x", z.a, x.a);
    CHECK("cpuid-apic-id", one.b >> 24 == topology.d && topology.d == 0, "%u, leaf b says %u", one.b >> 24, topology.d);
    CHECK("cpuid-beyond", !past.a && !past.b && !past.c && !past.d, "%08x %08x %08x %08x", past.a, past.b, past.c, past.d);
    CHECK("cpuid-required", shown("x2apic") && shown("tsc-deadline") && shown("hypervisor") && shown("arat") && shown("syscall") && shown("nx"),
          "a feature that we always have is not shown");
}

static void check_absent(void)
{
    static const uint16_t port[] = {0x80, 0x2f8, 0x300, 0x510, 0x1234, 0xb004, 0xfffc};
    bool ones = true;
    for (unsigned n = 0; n < sizeof(port) / 2; n++) {
        outl(port[n], 0x12345678);
        ones &= inb(port[n]) == 0xff && inw(port[n]) == 0xffff && inl(port[n]) == 0xffffffff;
    }
    CHECK("absent-ports", ones, "not all ones");
    outl(0xcf8, 0x80000000);
    CHECK("absent-pci", inl(0xcf8) == 0xffffffff && inl(0xcfc) == 0xffffffff, "%x %x", inl(0xcf8), inl(0xcfc));
    volatile uint64_t *hole = (volatile uint64_t *)UINT64_C(0xd0000000);
    *hole = 0;
    CHECK("absent-memory", *hole == UINT64_MAX && *(volatile uint8_t *)hole == 0xff, "%lx", *hole);
}

/* Exits of all kinds, and the vector registers are what they were. */
static void check_vector_registers(void)
{
    uint64_t in[2] = {UINT64_C(0x0123456789abcdef), UINT64_C(0xfedcba9876543210)}, out[2] = {0};
    asm volatile("movdqu %0, %%xmm3\n movdqu %0, %%xmm15" :: "m"(in));
    for (unsigned n = 0; n < 1000; n++) {
        cpuid(0, 0);
        inb(0x80);
        cmos(0xd);
        rdmsr(MSR_APIC_BASE);
    }
    wait_tsc(tsc_hz / 20); /* and some slices */
    asm volatile("pxor %%xmm15, %%xmm3\n movdqu %%xmm15, %0\n movq %%xmm3, %%rax\n or %%rax, %0" : "+m"(out) :: "rax");
    CHECK("vector-registers-stay", out[0] == in[0] && out[1] == in[1], "%lx %lx", out[0], out[1]);
}

int tiny_main(void)
{
    bare = arg("bare");
    exact = !on_amd() || arg("real");
    check_features();
    check_acpi();
    check_pm_timer();
    check_pit();
    check_rtc();
    check_msrs();
    if (!bare) {
        check_kvm();
        check_control_registers();
        check_cpuid();
        check_absent();
    }
    check_interrupts();
    check_vector_registers();
    print("platform: %u ok, %u failed\n", good, bad);
    return bad ? 1 : 0;
}
