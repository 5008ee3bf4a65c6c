/*
 * What a guest sees of the CPU, as two tables: which features pass through if the CPU has them, and which we add.
 *
 * The rule: a feature is shown only if using it cannot fault and needs nothing of us that we do not do. Hidden, for example:
 * performance counters, MONITOR, virtualization, machine checks, speculation controls, supervisor XSAVE states, memory keys.
 * The answers are made once per VM, so that a CPUID exit is an indexed copy; only what depends on the vCPU or on its
 * control registers is put in afterwards.
 */
#include "vm/vm_internal.h"

#include "core/time.h"
#include "lib/string.h"
#include "mm/mm.h"
#include "x86/cpu.h"

#define BASIC_MAX 0x0du
#define EXT_MAX 0x1fu
#define HV_LEAF_MAX 0x40000001u
#define SUB4_COUNT 5

struct vm_cpuid { /* the same for a VM and its forks */
    unsigned users;
    struct cpuid basic[BASIC_MAX + 1], ext[EXT_MAX + 1], hv[2];
    struct cpuid cache[SUB4_COUNT];  /* leaf 4 */
    struct cpuid xsave[3];           /* leaf 0xd */
    struct cpuid topology[2];        /* leaf 0xb */
    uint32_t basic_max, ext_max;
    uint32_t xsave_bytes[8], xsavec_bytes[8]; /* by the low three bits of XCR0 */
};

static const enum cpuid_feature passed[] = {
    CPUID_SSE3, CPUID_PCLMULQDQ, CPUID_SSSE3, CPUID_CX16, CPUID_PCID, CPUID_SSE41, CPUID_SSE42, CPUID_MOVBE, CPUID_POPCNT, CPUID_AES,
    CPUID_RDRAND, CPUID_FPU, CPUID_VME, CPUID_DE, CPUID_PSE, CPUID_TSC, CPUID_MSR, CPUID_PAE, CPUID_CX8, CPUID_APIC, CPUID_SEP,
    CPUID_MTRR, CPUID_PGE, CPUID_CMOV, CPUID_PAT, CPUID_PSE36, CPUID_CLFLUSH, CPUID_MMX, CPUID_FXSR, CPUID_SSE, CPUID_SSE2, CPUID_SS,
    CPUID_FSGSBASE, CPUID_BMI1, CPUID_SMEP, CPUID_BMI2, CPUID_ERMS, CPUID_INVPCID, CPUID_RDSEED, CPUID_ADX, CPUID_SMAP,
    CPUID_CLFLUSHOPT, CPUID_CLWB, CPUID_SHA, CPUID_UMIP, CPUID_RDPID, CPUID_FSRM, CPUID_LAHF64, CPUID_CR8_LEGACY, CPUID_ABM,
    CPUID_SSE4A, CPUID_MISALIGNSSE, CPUID_PREFETCHW, CPUID_SYSCALL, CPUID_NX, CPUID_MMXEXT, CPUID_FXSR_OPT, CPUID_PAGES_1G,
    CPUID_RDTSCP, CPUID_LM, CPUID_AMD_3DNOWEXT, CPUID_AMD_3DNOW, CPUID_TSC_INVARIANT, CPUID_CLZERO, CPUID_XSAVEERPTR,
};

/* These live in XSAVE states: without XSAVE they go. */
static const enum cpuid_feature passed_with_xsave[] = {CPUID_XSAVE, CPUID_XSAVEOPT, CPUID_XSAVEC, CPUID_XGETBV1};
static const enum cpuid_feature passed_with_avx[] = {
    CPUID_AVX, CPUID_FMA, CPUID_F16C, CPUID_AVX2, CPUID_VAES, CPUID_VPCLMULQDQ, CPUID_FMA4, CPUID_XOP,
};

/* Ours, whatever the CPU has: the virtual platform brings them. */
static const enum cpuid_feature added[] = {CPUID_HYPERVISOR, CPUID_X2APIC, CPUID_TSC_DEADLINE, CPUID_ARAT};

static struct cpuid *slot_of(struct vm_cpuid *t, uint32_t leaf, uint32_t subleaf)
{
    if (leaf == CPUID_LEAF_XSAVE)
        return subleaf < ARRAY_SIZE(t->xsave) ? &t->xsave[subleaf] : NULL;
    if (leaf <= BASIC_MAX)
        return &t->basic[leaf];
    return leaf >= CPUID_LEAF_EXT_MAX && leaf - CPUID_LEAF_EXT_MAX <= EXT_MAX ? &t->ext[leaf - CPUID_LEAF_EXT_MAX] : NULL;
}

static uint32_t *register_of(struct cpuid *c, enum cpuid_reg r)
{
    return r == CPUID_EAX ? &c->eax : r == CPUID_EBX ? &c->ebx : r == CPUID_ECX ? &c->ecx : &c->edx;
}

static void show(struct vm_cpuid *t, enum cpuid_feature f)
{
    struct cpuid *c = slot_of(t, cpuid_feature_leaf(f), cpuid_feature_subleaf(f));
    if (c)
        *register_of(c, cpuid_feature_reg(f)) |= cpuid_feature_mask(f);
}

static void show_if_present(struct vm_cpuid *t, const enum cpuid_feature *list, size_t count)
{
    for (size_t n = 0; n < count; n++)
        if (cpu_has(list[n]))
            show(t, list[n]);
}

static void fill_features(struct vm_cpuid *t, const struct vm *vm)
{
    show_if_present(t, passed, ARRAY_SIZE(passed));
    if (fpu_xcr0_supported()) {
        show_if_present(t, passed_with_xsave, ARRAY_SIZE(passed_with_xsave));
        if (fpu_xcr0_supported() & XCR0_AVX)
            show_if_present(t, passed_with_avx, ARRAY_SIZE(passed_with_avx));
    }
    for (size_t n = 0; n < ARRAY_SIZE(added); n++)
        show(t, added[n]);
    if (vm->vcpu_count > 1) {
        show(t, CPUID_HTT);
        if (cpu_info()->vendor == CPU_VENDOR_AMD)
            show(t, CPUID_CMP_LEGACY);
    }
}

static unsigned bits_for(unsigned count)
{
    unsigned bits = 0;
    while ((1u << bits) < count)
        bits++;
    return bits;
}

/* Names, family and model, cache sizes: as the CPU says. The caches are each vCPU's own: one thread per core, one package. */
static void fill_identity(struct vm_cpuid *t, const struct vm *vm)
{
    struct cpuid c = cpu_leaf(0, 0);
    t->basic_max = BASIC_MAX;
    t->basic[0] = (struct cpuid){BASIC_MAX, c.ebx, c.ecx, c.edx};
    c = cpu_leaf(CPUID_LEAF_FEATURES, 0);
    t->basic[1].eax = c.eax;
    t->basic[1].ebx = (c.ebx & 0xff00) | vm->vcpu_count << 16;
    t->basic[2] = cpu_leaf(2, 0);
    for (unsigned n = 0; n < SUB4_COUNT; n++) {
        t->cache[n] = cpu_leaf(4, n);
        if (!(t->cache[n].eax & 0x1f))
            break;
        bool shared = (t->cache[n].eax >> 5 & 7) >= 3;
        t->cache[n].eax = (t->cache[n].eax & 0x3fff) | (shared ? vm->vcpu_count - 1 : 0) << 14 | (vm->vcpu_count - 1) << 26;
    }
    t->ext_max = CPUID_LEAF_EXT_MAX + EXT_MAX;
    c = cpu_leaf(CPUID_LEAF_EXT_MAX, 0);
    t->ext[0] = (struct cpuid){t->ext_max, c.ebx, c.ecx, c.edx};
    c = cpu_leaf(CPUID_LEAF_EXT_FEATURES, 0);
    t->ext[1].eax = c.eax;
    t->ext[1].ebx = c.ebx;
    static const uint8_t copied[] = {2, 3, 4, 5, 6, 0x19, 0x1a};
    for (size_t n = 0; n < sizeof(copied); n++)
        t->ext[copied[n]] = cpu_leaf(CPUID_LEAF_EXT_MAX + copied[n], 0);
    t->ext[8].eax = MIN(cpu_info()->phys_bits, 48u) | (cpu_info()->virt_bits > 48 ? 48u : cpu_info()->virt_bits) << 8;
    t->ext[8].ecx = (vm->vcpu_count - 1) | bits_for(vm->vcpu_count) << 12;
}

static void fill_topology(struct vm_cpuid *t, const struct vm *vm)
{
    t->topology[0] = (struct cpuid){.eax = 0, .ebx = 1, .ecx = 1 << 8};
    t->topology[1] = (struct cpuid){.eax = bits_for(vm->vcpu_count), .ebx = vm->vcpu_count, .ecx = 1 | 2 << 8};
}

/* Size of the compacted format: the legacy region, the header, then each state in turn, aligned where the CPU says so. */
static uint32_t compacted_bytes(uint64_t xcr0)
{
    uint32_t bytes = 512 + 64;
    if (xcr0 & XCR0_AVX) {
        struct cpuid c = cpu_leaf(CPUID_LEAF_XSAVE, 2);
        bytes = (c.ecx & 2 ? ALIGN_UP(bytes, 64u) : bytes) + c.eax;
    }
    return bytes;
}

static void fill_xsave(struct vm_cpuid *t)
{
    uint64_t mask = fpu_xcr0_supported();
    if (!mask)
        return;
    t->xsave[0] = (struct cpuid){(uint32_t)mask, 0, fpu_area_bytes(mask), (uint32_t)(mask >> 32)};
    if (mask & XCR0_AVX)
        t->xsave[2] = cpu_leaf(CPUID_LEAF_XSAVE, 2);
    for (unsigned n = 0; n < 8; n++) {
        t->xsave_bytes[n] = fpu_area_bytes(n & mask);
        t->xsavec_bytes[n] = compacted_bytes(n & mask);
    }
}

/* KVM's interface, as far as vm/pv.c and vm/pv_hypercall.c go; no delays are needed at ports. */
static void fill_hypervisor(struct vm_cpuid *t)
{
    enum {
        CLOCKSOURCE = 1 << 0, NOP_IO_DELAY = 1 << 1, CLOCKSOURCE2 = 1 << 3, STEAL_TIME = 1 << 5, PV_EOI = 1 << 6, PV_UNHALT = 1 << 7,
        PV_SEND_IPI = 1 << 11, PV_SCHED_YIELD = 1 << 13, CLOCKSOURCE_STABLE = 1 << 24,
    };
    t->hv[0] = (struct cpuid){.eax = HV_LEAF_MAX};
    memcpy(&t->hv[0].ebx, "KVMK", 4);
    memcpy(&t->hv[0].ecx, "VMKV", 4);
    memcpy(&t->hv[0].edx, "M\0\0\0", 4);
    t->hv[1].eax = CLOCKSOURCE | NOP_IO_DELAY | CLOCKSOURCE2 | STEAL_TIME | PV_EOI | PV_UNHALT | PV_SEND_IPI | PV_SCHED_YIELD | CLOCKSOURCE_STABLE;
}

bool cpuid_vm_init(struct vm *vm)
{
    struct vm_cpuid *t = kzalloc(sizeof(*t));
    if (!t)
        return false;
    fill_identity(t, vm);
    fill_xsave(t);
    fill_topology(t, vm);
    fill_features(t, vm);
    fill_hypervisor(t);
    t->users = 1;
    vm->cpuid = t;
    return true;
}

void cpuid_vm_share(struct vm *vm, const struct vm *with)
{
    vm->cpuid = with->cpuid;
    vm->cpuid->users++;
}

void cpuid_vm_fini(struct vm *vm)
{
    if (vm->cpuid && --vm->cpuid->users == 0)
        kfree(vm->cpuid);
    vm->cpuid = NULL;
}

bool cpuid_vm_shows(const struct vm *vm, uint32_t feature)
{
    enum cpuid_feature f = (enum cpuid_feature)feature;
    struct cpuid *c = slot_of(vm->cpuid, cpuid_feature_leaf(f), cpuid_feature_subleaf(f));
    return c && (*register_of(c, cpuid_feature_reg(f)) & cpuid_feature_mask(f));
}

static struct cpuid xsave_answer(struct vcpu *v, const struct vm_cpuid *t, uint32_t subleaf)
{
    struct cpuid c = subleaf < ARRAY_SIZE(t->xsave) ? t->xsave[subleaf] : (struct cpuid){0};
    if (subleaf == 0 && c.eax)
        c.ebx = t->xsave_bytes[fpu_guest_xcr0(v) & 7];
    else if (subleaf == 1 && (c.eax & cpuid_feature_mask(CPUID_XSAVEC)))
        c.ebx = t->xsavec_bytes[fpu_guest_xcr0(v) & 7];
    return c;
}

/* Leaves whose answer depends on ECX, on this vCPU or on its control registers. */
static struct cpuid special_answer(struct vcpu *v, const struct vm_cpuid *t, uint32_t leaf, uint32_t subleaf)
{
    struct cpuid c = leaf <= BASIC_MAX ? t->basic[leaf] : (struct cpuid){0};
    switch (leaf) {
    case 1:
        c.ebx |= v->id << 24;
        if (hvm()->get_reg(v, VCPU_CR4) & CR4_OSXSAVE)
            c.ecx |= cpuid_feature_mask(CPUID_OSXSAVE);
        return c;
    case 4: return subleaf < SUB4_COUNT ? t->cache[subleaf] : (struct cpuid){0};
    case CPUID_LEAF_STRUCTURED: return subleaf ? (struct cpuid){0} : c;
    case 0xb:
        c = subleaf < 2 ? t->topology[subleaf] : (struct cpuid){.ecx = subleaf & 0xff};
        c.edx = v->id;
        return c;
    default: return xsave_answer(v, t, subleaf);
    }
}

static inline void answer(struct vcpu *v, const struct cpuid *c)
{
    v->gpr[GPR_RAX] = c->eax;
    v->gpr[GPR_RBX] = c->ebx;
    v->gpr[GPR_RCX] = c->ecx;
    v->gpr[GPR_RDX] = c->edx;
}

/* Apart, so that the common case saves no registers. */
static __attribute__((noinline)) void answer_special(struct vcpu *v, const struct vm_cpuid *t, uint32_t leaf)
{
    struct cpuid c = special_answer(v, t, leaf, (uint32_t)v->gpr[GPR_RCX]);
    answer(v, &c);
}

/*
 * Out of range: AMD answers zeroes, Intel its highest basic leaf. Zeroes are right on the first and harmless on the second. Leaves
 * beyond ours that the CPU has are out of range too.
 */
void cpuid_answer(struct vcpu *v)
{
    enum { SPECIAL = 1 << 1 | 1 << 4 | 1 << 7 | 1 << 0xb | 1 << 0xd };
    static const struct cpuid nothing;
    const struct vm_cpuid *t = v->vm->cpuid;
    uint32_t leaf = (uint32_t)v->gpr[GPR_RAX];
    if (leaf <= BASIC_MAX) {
        if (SPECIAL >> leaf & 1)
            answer_special(v, t, leaf);
        else
            answer(v, &t->basic[leaf]);
    } else if (leaf >= CPUID_LEAF_EXT_MAX && leaf <= CPUID_LEAF_EXT_MAX + EXT_MAX) {
        answer(v, &t->ext[leaf - CPUID_LEAF_EXT_MAX]);
    } else {
        answer(v, leaf >= CPUID_LEAF_HYPERVISOR && leaf <= HV_LEAF_MAX ? &t->hv[leaf - CPUID_LEAF_HYPERVISOR] : &nothing);
    }
}
