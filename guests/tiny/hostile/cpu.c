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

const struct mode cpu_modes[] = {{"cpuid", cpuid_mode, 2000}, {"msrs", msrs, 20000}, {}};
