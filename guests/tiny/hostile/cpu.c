/* Doors at CPUID, model-specific registers, control registers and instructions. */
#include "hostile/hostile.h"

/* ---- CPUID ---------------------------------------------------------------------------------------------------------------------- */

static bool same_twice(uint32_t leaf, uint32_t sub)
{
    struct cpuid a = cpuid(leaf, sub), b = cpuid(leaf, sub);
    return a.a == b.a && a.b == b.b && a.c == b.c && a.d == b.d;
}

static bool cpuid_mode(void)
{
    static const struct { uint32_t first, last; } ranges[] = {{0, 0x20}, {0x40000000, 0x40000100}, {0x80000000, 0x80000030}, {0xc0000000, 0xc0000010}};
    for (unsigned r = 0; r < sizeof(ranges) / sizeof(*ranges); r++)
        for (uint32_t leaf = ranges[r].first; leaf <= ranges[r].last; leaf++)
            for (uint32_t sub = 0; sub < 70; sub += sub < 8 ? 1 : 31)
                if (!same_twice(leaf, sub))
                    return failed("cpuid: leaf %x.%x changes", leaf, sub);
    for (uint64_t n = 0; n < count; n++) {
        uint32_t leaf = (uint32_t)rnd_value(), sub = (uint32_t)rnd_value();
        if (!same_twice(leaf, sub))
            return failed("cpuid: leaf %x.%x changes", leaf, sub);
    }
    struct cpuid c = cpuid(1, 0), x = cpuid(0x80000001, 0);
    if (!(c.c & BIT(31)) || c.c & BIT(5) || c.c & BIT(3) || x.c & BIT(2))
        return failed("cpuid: hypervisor, VMX, MONITOR or SVM bits: %08x %08x", c.c, x.c);
    return true;
}

/* ---- model-specific registers ----------------------------------------------------------------------------------------------------- */

enum { EFER = 0xc0000080, APIC_BASE = 0x1b, X2APIC_ICR = 0x830 };

/* Left alone: what would take away the ground that the guest stands on by right. */
static bool is_ours(uint32_t msr)
{
    return msr == EFER || msr == APIC_BASE || msr == X2APIC_ICR || msr == 0x11 || msr == 0x12 || (msr >= 0x4b564d00 && msr <= 0x4b564d10);
}

static uint32_t random_msr(void)
{
    static const uint32_t known[] = {
        0x10, 0x17, 0x1b, 0x3a, 0x3b, 0x48, 0x49, 0x79, 0x8b, 0xc1, 0xce, 0xe7, 0xe8, 0xfe, 0x10a, 0x10b, 0x122, 0x174, 0x175, 0x176, 0x179, 0x17a,
        0x186, 0x198, 0x1a0, 0x1d9, 0x200, 0x20f, 0x250, 0x268, 0x26f, 0x277, 0x2ff, 0x345, 0x38f, 0x400, 0x480, 0x48b, 0x491, 0x4d0, 0x560, 0x6a0,
        0x6e0, 0x770, 0x802, 0x808, 0x80b, 0x80f, 0x832, 0x835, 0x838, 0x83f, 0xc80, 0xd90, 0xda0, 0x11e, 0x4b564d00, 0x4b564d05, 0x40000000, 0x40000073,
        0xc0000080, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102, 0xc0000103, 0xc0000104, 0xc00000e7,
        0xc0010000, 0xc0010010, 0xc0010015, 0xc0010016, 0xc001001a, 0xc001001f, 0xc0010058, 0xc0010061, 0xc0010112, 0xc0010114, 0xc0010115,
        0xc0010117, 0xc0010118, 0xc0010130, 0xc0010131, 0xc0010200, 0xc0011020, 0xc0011022, 0xc0011029, 0xc0011030};
    switch (rnd_below(5)) {
    case 0: return (uint32_t)rnd_below(0x2000);
    case 1: return (uint32_t)(0xc0000000 + rnd_below(0x2000));
    case 2: return (uint32_t)(0xc0010000 + rnd_below(0x2000));
    case 3: return (uint32_t)rnd_value();
    default: return PICK(known);
    }
}

static bool gp_or_done(int vector) { return vector == -1 || vector == VEC_GP; }

static bool msrs(void)
{
    for (uint64_t n = 0; n < count; n++) {
        uint32_t msr = random_msr();
        uint64_t was, now;
        int r = try_rdmsr(msr, &was);
        if (!gp_or_done(r))
            return failed("msrs: rdmsr %x: vector %d", msr, r);
        if (is_ours(msr))
            continue;
        int w = try_wrmsr(msr, rnd_value());
        if (!gp_or_done(w))
            return failed("msrs: wrmsr %x: vector %d", msr, w);
        if (r == -1 && try_rdmsr(msr, &now) != -1)
            return failed("msrs: %x can be read but once", msr);
        if (r == -1 && w == -1)
            try_wrmsr(msr, was);
    }
    /* The doors to virtualization and to system management mode are no registers of a guest's. */
    uint64_t v;
    if (!try_wrmsr(0xc0010117, 0x1000) || try_wrmsr(0xc0010117, 0x1000) != VEC_GP)
        return failed("msrs: VM_HSAVE_PA can be written");
    if (try_wrmsr(EFER, rdmsr(EFER) | BIT(12)) != VEC_GP)
        return failed("msrs: EFER.SVME can be set");
    if (try_rdmsr(0x12345678, &v) != VEC_GP || try_wrmsr(0x12345678, 0) != VEC_GP)
        return failed("msrs: an absent one answers");
    interrupts_sane();
    return true;
}

/* ---- the paravirtual clock --------------------------------------------------------------------------------------------------------- */

/* Its records may be put anywhere; where there is no memory for a whole one it must be #GP, and nothing else may be written. */
static bool pvclock(void)
{
    enum { WALL = 0x4b564d00, SYSTEM = 0x4b564d01 };
    static uint8_t page[4096] __attribute__((aligned(4096)));
    uint64_t ram_end = RAM_END;
    if (cpuid(0x40000000, 0).b != 0x4b4d564b)
        return failed("pvclock: no KVM leaves");
    for (uint64_t n = 0; n < count; n++) {
        unsigned offset = 64 + (unsigned)rnd_below(4096 - 128);
        memset(page, 0x5a, sizeof(page));
        int vector = try_wrmsr(SYSTEM, ((uint64_t)page + (offset & ~3u)) | 1);
        for (unsigned at = 0; at < 4096; at++)
            if (vector != -1 || (page[at] != 0x5a && (at < (offset & ~3u) || at >= (offset & ~3u) + 32)))
                return failed("pvclock: record at %x: vector %d, byte %x is %02x", offset, vector, at, page[at]);
        vector = try_wrmsr(WALL, (uint64_t)page + offset);
        if (vector != -1)
            return failed("pvclock: wall clock at %x: vector %d", offset, vector);
        uint64_t beyond = rnd_below(2) ? ram_end + (rnd_value() & 0xffff000) : rnd_value() | BIT(40);
        int a = try_wrmsr(SYSTEM, (beyond & ~UINT64_C(3)) | 1), b = try_wrmsr(SYSTEM, (ram_end - 4 * (1 + rnd_below(7))) | 1);
        int c = try_wrmsr(WALL, beyond), d = try_wrmsr(WALL, ram_end - 1 - rnd_below(11)), e = try_wrmsr(SYSTEM, (ram_end - 32) | 1);
        if (a != VEC_GP || b != VEC_GP || c != VEC_GP || d != VEC_GP || e != -1)
            return failed("pvclock: records outside memory, %lx: vectors %d %d %d %d %d", beyond, a, b, c, d, e);
    }
    return try_wrmsr(SYSTEM, 0) == -1 || failed("pvclock: cannot be turned off");
}

/* ---- control and debug registers ------------------------------------------------------------------------------------------------ */

/* Each write is foretold from the manual's rules and from CPUID, tried, read back and undone. */
#define TRY_WRITE_CR(n, v) TRY("mov %0, %%cr" #n, :: "r"((uint64_t)(v)) : "r15", "memory")
#define TRY_WRITE_DR(n, v) TRY("mov %0, %%dr" #n, :: "r"((uint64_t)(v)) : "r15", "memory")
#define READ_DR(n) ({ uint64_t v_; asm volatile("mov %%dr" #n ", %0" : "=r"(v_)); v_; })

enum { CR0_PE = 1, CR0_ET = 0x10, CR0_NW = 1 << 29, CR0_CD = 1 << 30, CR0_LEGAL = 0xe005003f };

static bool cr0_round(void)
{
    uint64_t was = READ_CR(0), v = rnd_below(4) ? rnd_value() & UINT32_MAX : rnd_value();
    v |= rnd_below(4) ? BIT(31) | CR0_PE : 0;
    bool ok = !(v >> 32) && (v & BIT(31)) && (v & CR0_PE) && (!(v & CR0_NW) || (v & CR0_CD));
    int vector = TRY_WRITE_CR(0, v);
    uint64_t now = READ_CR(0), want = ok ? (v & CR0_LEGAL) | CR0_ET : was;
    WRITE_CR(0, was);
    if (vector != (ok ? -1 : VEC_GP) || now != want)
        return failed("crs: CR0 = %lx: vector %d, then %lx instead of %lx", v, vector, now, want);
    return true;
}

static uint64_t cr4_legal(void)
{
    struct cpuid a = cpuid(1, 0), b = cpuid(7, 0);
    const struct { uint32_t has; uint64_t bits; } rules[] = {
        {a.d & 1 << 1, 3}, {a.d & 1 << 4, 4}, {a.d & 1 << 2, 8}, {a.d & 1 << 3, 0x10}, {a.d & 1 << 6, 0x20}, {a.d & 1 << 7, 0x40}, {a.d & 1 << 13, 0x80},
        {1, 0x100}, {a.d & 1 << 24, 0x200}, {a.d & 1 << 25, 0x400}, {b.c & 1 << 2, BIT(11)}, {b.c & 1 << 16, BIT(12)}, {b.b & 1, BIT(16)},
        {a.c & 1 << 17, BIT(17)}, {a.c & 1 << 26, BIT(18)}, {b.b & 1 << 7, BIT(20)}, {b.b & 1 << 20, BIT(21)}, {b.c & 1 << 3, BIT(22)},
        {b.c & 1 << 7, BIT(23)}};
    uint64_t legal = 0;
    for (unsigned n = 0; n < sizeof(rules) / sizeof(*rules); n++)
        legal |= rules[n].has ? rules[n].bits : 0;
    return legal;
}

static bool cr4_round(void)
{
    uint64_t was = READ_CR(4), legal = cr4_legal(), v = rnd_value();
    if (rnd_below(4))
        v = (v & legal) | (rnd_below(8) ? BIT(5) : 0) | (rnd_below(4) ? 0 : BIT(rnd_below(64)));
    bool ok = !(v & ~legal) && (v & BIT(5)) && !(v & BIT(12));
    int vector = TRY_WRITE_CR(4, v);
    uint64_t now = READ_CR(4);
    WRITE_CR(4, was);
    if (vector != (ok ? -1 : VEC_GP) || now != (ok ? v : was))
        return failed("crs: CR4 = %lx: vector %d, then %lx (legal %lx)", v, vector, now, legal);
    return true;
}

static bool cr3_round(void)
{
    uint64_t was = READ_CR(3), v = was | rnd_below(4096); /* reserved bits: see mode=cr3 */
    int vector = TRY_WRITE_CR(3, v);
    WRITE_CR(3, was);
    if (vector != -1)
        return failed("crs: CR3 = %lx: vector %d", v, vector);
    v = rnd_value();
    WRITE_CR(2, v);
    return READ_CR(2) == v || failed("crs: CR2 is %lx instead of %lx", READ_CR(2), v);
}

static bool cr8_round(void)
{
    uint64_t v = rnd_value() & (rnd_below(2) ? 15 : UINT64_MAX);
    int vector = TRY_WRITE_CR(8, v);
    uint64_t now = READ_CR(8), tpr = mmio_read(LAPIC + 0x80);
    WRITE_CR(8, 0);
    bool right = vector == VEC_GP ? v > 15 : vector == -1 && now == (v & 15) && tpr >> 4 == now; /* software CPUs ignore the upper bits */
    if (!right)
        return failed("crs: CR8 = %lx: vector %d, then %lx, TPR %lx", v, vector, now, tpr);
    return true;
}

static bool efer_round(void)
{
    struct cpuid x = cpuid(0x80000001, 0);
    uint64_t was = rdmsr(EFER), legal = 0x500 | (x.d >> 11 & 1) | (x.d & 1 << 20 ? 0x800 : 0) | (x.d & 1 << 25 ? BIT(14) : 0);
    uint64_t v = rnd_below(4) ? was ^ BIT(rnd_below(20)) : rnd_value();
    bool ok = !(v & ~legal) && (v & 0x100);
    if (ok && !(v & 0x400))
        return true; /* LMA changed by hand: CPUs differ */
    int vector = try_wrmsr(EFER, v);
    uint64_t now = rdmsr(EFER);
    wrmsr(EFER, was);
    if (vector != (ok ? -1 : VEC_GP) || now != (ok ? v : was))
        return failed("crs: EFER = %lx: vector %d, then %lx (legal %lx)", v, vector, now, legal);
    return true;
}

static bool xcr0_round(void)
{
    if (!(cpuid(1, 0).c & BIT(26)))
        return true;
    struct cpuid x = cpuid(0xd, 0);
    uint64_t legal = x.a | (uint64_t)x.d << 32, v = rnd_below(3) ? rnd_below(16) : rnd_value();
    uint32_t index = rnd_below(8) ? 0 : (uint32_t)rnd_value(), a, d;
    WRITE_CR(4, READ_CR(4) | BIT(18));
    bool ok = !index && (v & 1) && !(v & ~legal) && (!(v & 4) || (v & 2)) && !(v & 0xf8);
    int vector = TRY("xsetbv", :: "a"((uint32_t)v), "d"((uint32_t)(v >> 32)), "c"(index) : "r15", "memory");
    asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    uint64_t now = a | (uint64_t)d << 32;
    asm volatile("xsetbv" :: "a"((uint32_t)legal), "d"((uint32_t)(legal >> 32)), "c"(0));
    if (vector != (ok ? -1 : VEC_GP) || (ok && now != v))
        return failed("crs: XCR%x = %lx: vector %d, then %lx", index, v, vector, now);
    return true;
}

static bool dr_round(void)
{
    uint64_t v = rnd_value(), low = rnd_value() & UINT32_MAX & ~BIT(13);
    int vector;
    asm volatile("mov %0, %%dr0; mov %0, %%dr3" :: "r"(v));
    if (READ_DR(0) != v || READ_DR(3) != v)
        return failed("crs: DR0 or DR3 is not %lx", v);
    /* Breakpoints on whatever these are: they may or may not be met. */
    asm volatile("mov %0, %%dr1; mov %1, %%dr2" :: "r"((uint64_t)dr_round + rnd_below(64)), "r"(rnd_value()));
    asm volatile("mov %0, %%dr7" :: "r"(low) : "memory");
    uint64_t now = READ_DR(7), bits = low;
    asm volatile("mov %0, %%dr7" :: "r"(UINT64_C(0x400)) : "memory");
    if (now != 0x400 && (now ^ bits) & 0xffff27ff & ~UINT64_C(0x400))
        return failed("crs: DR7 = %lx reads %lx", low, now);
    vector = TRY_WRITE_DR(7, v | BIT(32));
    if (vector != VEC_GP)
        return failed("crs: DR7's upper half: vector %d", vector);
    vector = TRY_WRITE_DR(6, v | BIT(63));
    asm volatile("mov %0, %%dr6" :: "r"(low));
    if (vector != VEC_GP || (READ_DR(6) & ~UINT64_C(0xe00f)) != 0xffff0ff0)
        return failed("crs: DR6: vector %d, then %lx", vector, READ_DR(6));
    if (lenient("gd"))
        return true;
    asm volatile("mov %0, %%dr7" :: "r"(UINT64_C(0x2400)));
    if ((vector = TRY_WRITE_DR(0, 0)) != VEC_DB || !(READ_DR(6) & BIT(13)) || READ_DR(7) & BIT(13))
        return failed("crs: DR7.GD: vector %d, DR6 %lx, DR7 %lx", vector, READ_DR(6), READ_DR(7));
    return true;
}

static bool absent_crs(void)
{
    static const char what[] = "crs: an absent control register";
    bool no_dr8 = lenient("dr8");
    int cr5 = lenient("cr5") ? VEC_UD : TRY(".byte 0x0f, 0x22, 0xe8", ::: "r15");
    int dr8 = no_dr8 ? VEC_UD : TRY(".byte 0x44, 0x0f, 0x23, 0xc0", ::: "r15"), dr15 = no_dr8 ? VEC_UD : TRY(".byte 0x44, 0x0f, 0x21, 0xf8", ::: "r15", "rax");
    int v[] = {TRY(".byte 0x0f, 0x22, 0xc8", ::: "r15"), cr5, TRY(".byte 0x0f, 0x20, 0xf0", ::: "r15", "rax"),
               TRY(".byte 0x44, 0x0f, 0x22, 0xc8", ::: "r15"), TRY(".byte 0x44, 0x0f, 0x20, 0xf8", ::: "r15", "rax"), dr8, dr15};
    for (unsigned n = 0; n < sizeof(v) / sizeof(*v); n++)
        if (v[n] != VEC_UD)
            return failed("%s %u: vector %d", what, n, v[n]);
    WRITE_CR(4, READ_CR(4) | 8);
    int de = TRY(".byte 0x0f, 0x21, 0xe0", ::: "r15", "rax"); /* MOV RAX, DR4 */
    WRITE_CR(4, READ_CR(4) & ~UINT64_C(8));
    int no_de = TRY(".byte 0x0f, 0x21, 0xe0", ::: "r15", "rax");
    return (de == VEC_UD && no_de == -1) || failed("crs: DR4 with DE: vector %d, without: %d", de, no_de);
}

/* The short forms, on registers and in memory, and CR0 as the emulator sees it. */
static bool msw_round(void)
{
    static volatile uint16_t word;
    uint64_t was = READ_CR(0), reg;
    word = (uint16_t)rnd();
    uint16_t loaded = word;
    asm volatile("lmsw %0" :: "m"(word));
    uint64_t now = READ_CR(0), want = (was & ~UINT64_C(0xe)) | (loaded & 0xe) | 1;
    asm volatile("smsw %0; smsw %1" : "=m"(word), "=r"(reg));
    asm volatile("clts");
    uint64_t cleared = READ_CR(0);
    WRITE_CR(0, was);
    if (now != want || word != (uint16_t)want || (uint16_t)reg != (uint16_t)want || cleared != (want & ~UINT64_C(8)))
        return failed("crs: LMSW %x: %lx instead of %lx, SMSW %x %lx, CLTS %lx", loaded, now, want, word, reg, cleared);
    return true;
}

static bool crs(void)
{
    static bool (*const rounds[])(void) = {cr0_round, cr4_round, cr3_round, cr8_round, efer_round, xcr0_round, dr_round, absent_crs, msw_round};
    bool ok = true;
    for (uint64_t n = 0; n < count && ok; n++)
        ok = rounds[n % (sizeof(rounds) / sizeof(*rounds))]();
    return ok;
}

/* ---- instructions of hypervisors, firmware and enclaves ---------------------------------------------------------------------------- */

enum { FINE = 1, UD = 1 << VEC_UD, GP = 1 << VEC_GP };
/* VMRUN, VMLOAD and VMSAVE look at RAX before the intercept (APM 3). A senseless LOCK is #UD, but not on all CPUs in software. */
static const struct privileged { const char *name; unsigned allowed; uint8_t length, bytes[6]; } privileged[] = {
    {"vmrun", UD | GP, 3, {0x0f, 0x01, 0xd8}}, {"vmmcall", UD | FINE, 3, {0x0f, 0x01, 0xd9}}, {"vmload", UD | GP, 3, {0x0f, 0x01, 0xda}},
    {"vmsave", UD | GP, 3, {0x0f, 0x01, 0xdb}}, {"stgi", UD, 3, {0x0f, 0x01, 0xdc}}, {"clgi", UD, 3, {0x0f, 0x01, 0xdd}},
    {"skinit", UD, 3, {0x0f, 0x01, 0xde}}, {"invlpga", UD, 3, {0x0f, 0x01, 0xdf}}, {"vmcall", UD | FINE, 3, {0x0f, 0x01, 0xc1}},
    {"vmlaunch", UD, 3, {0x0f, 0x01, 0xc2}}, {"vmresume", UD, 3, {0x0f, 0x01, 0xc3}}, {"vmxoff", UD, 3, {0x0f, 0x01, 0xc4}},
    {"vmfunc", UD, 3, {0x0f, 0x01, 0xd4}}, {"vmxon", UD, 4, {0xf3, 0x0f, 0xc7, 0x37}}, {"vmptrld", UD, 3, {0x0f, 0xc7, 0x37}},
    {"vmclear", UD, 4, {0x66, 0x0f, 0xc7, 0x37}}, {"vmptrst", UD, 3, {0x0f, 0xc7, 0x3f}}, {"vmread", UD, 3, {0x0f, 0x78, 0xc8}},
    {"vmwrite", UD, 3, {0x0f, 0x79, 0xc8}}, {"invept", UD, 5, {0x66, 0x0f, 0x38, 0x80, 0x07}}, {"invvpid", UD, 5, {0x66, 0x0f, 0x38, 0x81, 0x07}},
    {"monitor", UD | GP, 3, {0x0f, 0x01, 0xc8}}, {"mwait", UD | GP, 3, {0x0f, 0x01, 0xc9}}, {"monitorx", UD, 3, {0x0f, 0x01, 0xfa}},
    {"mwaitx", UD, 3, {0x0f, 0x01, 0xfb}}, {"rdpmc", UD | GP, 2, {0x0f, 0x33}}, {"rsm", UD | GP, 2, {0x0f, 0xaa}},
    {"getsec", UD | GP, 2, {0x0f, 0x37}}, {"encls", UD, 3, {0x0f, 0x01, 0xcf}}, {"enclu", UD, 3, {0x0f, 0x01, 0xd7}},
    {"rdpru", UD, 3, {0x0f, 0x01, 0xfd}}, {"mcommit", UD, 4, {0xf3, 0x0f, 0x01, 0xfa}}, {"invlpgb", UD, 3, {0x0f, 0x01, 0xfe}},
    {"tlbsync", UD, 3, {0x0f, 0x01, 0xff}}, {"pconfig", UD | GP, 3, {0x0f, 0x01, 0xc5}}, {"rdpkru", UD, 3, {0x0f, 0x01, 0xee}},
    {"psmash", UD, 4, {0xf3, 0x0f, 0x01, 0xff}}, {"pvalidate", UD, 4, {0xf2, 0x0f, 0x01, 0xff}},
    {"invd", FINE, 2, {0x0f, 0x08}}, {"wbinvd", FINE, 2, {0x0f, 0x09}}, {"wbnoinvd", FINE, 3, {0xf3, 0x0f, 0x09}},
    {"invlpg", FINE, 3, {0x0f, 0x01, 0x3e}}, {"pause", FINE, 2, {0xf3, 0x90}}, {"rdtscp", FINE, 3, {0x0f, 0x01, 0xf9}},
    {"ud0", UD, 3, {0x0f, 0xff, 0xc0}}, {"ud1", UD, 3, {0x0f, 0xb9, 0xc0}}, {"ud2", UD, 2, {0x0f, 0x0b}}, {"lock nop", UD, 2, {0xf0, 0x90}},
    {"lock cpuid", UD | GP | FINE, 3, {0xf0, 0x0f, 0xa2}}, {"lock vmmcall", UD | GP | FINE, 4, {0xf0, 0x0f, 0x01, 0xd9}},
    {"lock wrmsr", UD | GP | FINE, 3, {0xf0, 0x0f, 0x30}}, {"lock in", UD | GP | FINE, 2, {0xf0, 0xec}},
    {"lock xsetbv", UD | GP | FINE, 4, {0xf0, 0x0f, 0x01, 0xd1}},
};

static const uint8_t useless[] = {0x2e, 0x3e, 0x26, 0x64, 0x65};
enum { PRIVILEGED_COUNT = sizeof(privileged) / sizeof(*privileged), MAX_USELESS = 6 };
/* One place for each instruction and number of prefixes: CPUs that do not tell lengths have them remembered by address. */
static uint8_t scratch[PRIVILEGED_COUNT * (MAX_USELESS + 1)][16];

struct placed { uint8_t *code; struct insn_regs regs; };
static void run_placed(void *arg)
{
    struct placed *p = arg;
    run_body((void (*)(void))p->code, &p->regs);
}

static bool virt(void)
{
    for (uint64_t n = 0; n < count; n++) {
        unsigned which = n % PRIVILEGED_COUNT, prefixes = 0;
        const struct privileged *p = &privileged[which];
        while (p->bytes[0] != 0xf0 && prefixes < MAX_USELESS && rnd_below(3) == 0) /* that mean nothing here and must change nothing */
            prefixes++;
        struct placed r = {scratch[which * (MAX_USELESS + 1) + prefixes], {.rax = n & 64 ? (uint64_t)tiny_pml4 : rnd_value(), .rcx = rnd_value(),
                           .rdx = rnd_value(), .rbx = rnd_value(), .rsi = (uint64_t)tiny_pml4, .rdi = (uint64_t)scratch, .rflags = 2}};
        for (unsigned at = 0; at < prefixes; at++)
            r.code[at] = PICK(useless);
        memcpy(r.code + prefixes, p->bytes, p->length);
        r.code[prefixes + p->length] = 0xc3;
        int vector = attempt(run_placed, &r);
        if (vector > 31 || !(p->allowed >> (vector == -1 ? 0 : vector) & 1))
            return failed("virt: %s with %u prefixes: vector %d", p->name, prefixes, vector);
        if (vector != -1 && attempt_frame.rip != (uint64_t)r.code)
            return failed("virt: %s: vector %d at %lx instead of %lx", p->name, vector, attempt_frame.rip, (uint64_t)r.code);
    }
    return true;
}

const struct mode cpu_modes[] = {{"cpuid", cpuid_mode, 2000}, {"msrs", msrs, 20000}, {"pvclock", pvclock, 300}, {"crs", crs, 9000}, {"virt", virt, 4000}, {}};
