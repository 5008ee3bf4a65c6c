/*
 * What this CPU is, and its set-up for us.
 *
 * Features are asked of CPUID, never inferred from a model. What we cannot do without is a table, so that a machine that is
 * refused is refused with the names of everything it lacks. Protections that a CPU may have (SMEP, SMAP, UMIP) are
 * switched on where they exist. XCR0 is opened for x87, SSE and AVX: that is the state vm/ can switch for guests.
 */
#include "x86/cpu.h"
#include "lib/string.h"
#include "x86/apic.h"
#include "x86/percpu.h"
#include "x86/tsc.h"

static struct cpu_info info;

static const struct { enum cpuid_feature feature; const char *name; } feature_names[] = {
#define NAME_ITEM(name, leaf, subleaf, reg, bit) {CPUID_##name, #name},
    CPUID_FEATURES(NAME_ITEM)
#undef NAME_ITEM
};

static const enum cpuid_feature required[] = {
    CPUID_FPU, CPUID_TSC, CPUID_MSR, CPUID_PAE, CPUID_CX8, CPUID_APIC, CPUID_PGE, CPUID_CMOV, CPUID_PAT, CPUID_FXSR,
    CPUID_SSE, CPUID_SSE2, CPUID_CX16, CPUID_POPCNT, CPUID_LM, CPUID_NX, CPUID_SYSCALL,
};

const struct cpu_info *cpu_info(void) { return &info; }

struct cpuid cpu_leaf(uint32_t leaf, uint32_t subleaf)
{
    return cpuid(leaf & 0x80000000, 0).eax >= leaf ? cpuid(leaf, subleaf) : (struct cpuid){0};
}

static uint32_t reg_of(struct cpuid c, enum cpuid_reg r)
{
    return r == CPUID_EAX ? c.eax : r == CPUID_EBX ? c.ebx : r == CPUID_ECX ? c.ecx : c.edx;
}

bool cpu_has(enum cpuid_feature f)
{
    return reg_of(cpu_leaf(cpuid_feature_leaf(f), cpuid_feature_subleaf(f)), cpuid_feature_reg(f)) & cpuid_feature_mask(f);
}

/* RDRAND may fail transiently (Intel SDM 1, 7.3.17.1: retry ten times); without it the TSC is what differs between boots. */
uint64_t cpu_random(void)
{
    uint64_t value = 0;
    uint8_t ok = 0;
    if (cpu_has(CPUID_RDRAND))
        for (int i = 0; i < 10 && !ok; i++)
            asm volatile("rdrand %0\n setc %1" : "=r"(value), "=qm"(ok) :: "cc");
    return value ^ rdtsc() * UINT64_C(0x9e3779b97f4a7c15);
}

static const char *feature_name(enum cpuid_feature f)
{
    for (size_t i = 0; i < ARRAY_SIZE(feature_names); i++)
        if (feature_names[i].feature == f)
            return feature_names[i].name;
    return "?";
}

/* APM 3, E.3.2: the extended fields count only where the base family is 0Fh (Intel: models also for family 6). */
static void decode_signature(uint32_t eax)
{
    info.stepping = eax & 0xf;
    info.model = FIELD_GET64(eax, 7, 4);
    info.family = FIELD_GET64(eax, 11, 8);
    if (info.family == 0xf || (info.family == 6 && info.vendor == CPU_VENDOR_INTEL))
        info.model |= FIELD_GET64(eax, 19, 16) << 4;
    if (info.family == 0xf)
        info.family += FIELD_GET64(eax, 27, 20);
}

/* QEMU's emulation says so where hypervisors give their names. */
static bool is_tcg(void)
{
    struct cpuid c = cpuid(CPUID_LEAF_HYPERVISOR, 0);
    const uint32_t name[3] = {c.ebx, c.ecx, c.edx};
    return !memcmp(name, "TCGTCGTCGTCG", sizeof(name));
}

static void identify(void)
{
    struct cpuid v = cpuid(CPUID_LEAF_VENDOR, 0);
    memcpy(info.vendor_id, &v.ebx, 4);
    memcpy(info.vendor_id + 4, &v.edx, 4);
    memcpy(info.vendor_id + 8, &v.ecx, 4);
    bool amd = !strcmp(info.vendor_id, "AuthenticAMD") || !strcmp(info.vendor_id, "HygonGenuine");
    bool intel = !strcmp(info.vendor_id, "GenuineIntel") || !strcmp(info.vendor_id, "CentaurHauls") ||
                 !strcmp(info.vendor_id, "  Shanghai  ");
    info.vendor = amd ? CPU_VENDOR_AMD : intel ? CPU_VENDOR_INTEL : CPU_VENDOR_OTHER;
    decode_signature(cpuid(CPUID_LEAF_FEATURES, 0).eax);

    for (uint32_t i = 0; i < 3; i++) {
        struct cpuid b = cpu_leaf(CPUID_LEAF_EXT_BRAND + i, 0);
        memcpy(info.brand + 16 * i, &b, 16);
    }
    struct cpuid sizes = cpu_leaf(CPUID_LEAF_EXT_SIZES, 0);
    info.phys_bits = sizes.eax & 0xff ? sizes.eax & 0xff : 36;
    info.virt_bits = sizes.eax >> 8 & 0xff ? sizes.eax >> 8 & 0xff : 48;
    if (info.phys_bits > 52)
        info.phys_bits = 52;
    info.x2apic = cpu_has(CPUID_X2APIC);
    info.tsc_deadline = cpu_has(CPUID_TSC_DEADLINE);
    info.tsc_invariant = cpu_has(CPUID_TSC_INVARIANT);
    info.pages_1g = cpu_has(CPUID_PAGES_1G);
    info.hypervisor = cpu_has(CPUID_HYPERVISOR);
    info.tcg = info.hypervisor && is_tcg();
    if (cpu_has(CPUID_XSAVE)) {
        struct cpuid x = cpu_leaf(CPUID_LEAF_XSAVE, 0);
        info.xcr0_supported = x.eax | (uint64_t)x.edx << 32;
    }
}

const char *cpu_init_boot(void)
{
    static char missing[160];
    size_t used = 0;

    identify();
    for (size_t i = 0; i < ARRAY_SIZE(required); i++)
        if (!cpu_has(required[i]) && used < sizeof(missing))
            used += (size_t)snprintf(missing + used, sizeof(missing) - used, "%s%s", used ? " " : "this CPU lacks ",
                                     feature_name(required[i]));
    return used ? missing : NULL;
}

static uint64_t cr4_if(enum cpuid_feature f, uint64_t bit) { return cpu_has(f) ? bit : 0; }

void cpu_init_this(void)
{
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
    write_cr0((read_cr0() | CR0_WP | CR0_NE | CR0_MP) & ~(CR0_EM | CR0_TS | CR0_AM | CR0_CD | CR0_NW));
    uint64_t keep = read_cr4() & CR4_VMXE;
    write_cr4(keep | CR4_PAE | CR4_DE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | cr4_if(CPUID_MCE, CR4_MCE) |
              cr4_if(CPUID_SMEP, CR4_SMEP) | cr4_if(CPUID_SMAP, CR4_SMAP) | cr4_if(CPUID_UMIP, CR4_UMIP) |
              cr4_if(CPUID_XSAVE, CR4_OSXSAVE));
    if (info.xcr0_supported) {
        info.xcr0 = info.xcr0_supported & (XCR0_X87 | XCR0_SSE | XCR0_AVX);
        xsetbv(0, info.xcr0);
    }
    wrmsr(MSR_PAT, PAT_RESET); /* what include/hw/paging.h's PTE_CACHE_* mean; entry 0, all we have used so far, is the same */
    uint64_t de_cfg;
    if (info.vendor == CPU_VENDOR_AMD && info.family >= 0x10 && rdmsr_safe(MSR_DE_CFG, &de_cfg))
        wrmsr_safe(MSR_DE_CFG, de_cfg | DE_CFG_LFENCE_SERIALIZE); /* APM 3, LFENCE: for rdtsc_ordered() */
}

/* The features of one CPUID register in one line: "7.0.ebx: FSGSBASE SMEP ...". */
static void describe_register(enum cpuid_feature first, void (*line)(const char *, const char *, void *), void *arg)
{
    static const char *const regs[] = {"eax", "ebx", "ecx", "edx"};
    char key[40], value[320];
    size_t used = 0;
    value[0] = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(feature_names); i++)
        if (feature_names[i].feature >> 5 == first >> 5 && cpu_has(feature_names[i].feature) && used < sizeof(value))
            used += (size_t)snprintf(value + used, sizeof(value) - used, "%s%s", used ? " " : "", feature_names[i].name);
    snprintf(key, sizeof(key), "cpuid %x.%x.%s", cpuid_feature_leaf(first), cpuid_feature_subleaf(first),
             regs[cpuid_feature_reg(first)]);
    if (used)
        line(key, value, arg);
}

void cpu_describe(void (*line)(const char *key, const char *value, void *arg), void *arg)
{
    char text[128];

    line("vendor", info.vendor_id, arg);
    line("brand", info.brand, arg);
    snprintf(text, sizeof(text), "family %u model %u stepping %u", info.family, info.model, info.stepping);
    line("signature", text, arg);
    snprintf(text, sizeof(text), "%u physical, %u virtual%s", info.phys_bits, info.virt_bits, info.pages_1g ? ", 1 GiB pages" : "");
    line("address bits", text, arg);
    snprintf(text, sizeof(text), "%lu.%03lu MHz by %s%s%s", tsc_khz() / 1000, tsc_khz() % 1000, tsc_source(),
             info.tsc_invariant ? ", invariant" : "", info.hypervisor ? ", under a hypervisor" : "");
    line("tsc", text, arg);
    if (lapic_timer_hz())
        snprintf(text, sizeof(text), "%s, one-shot timer %lu kHz", lapic_is_x2apic() ? "x2APIC" : "xAPIC", lapic_timer_hz() / 1000);
    else
        snprintf(text, sizeof(text), "%s, TSC deadline timer", lapic_is_x2apic() ? "x2APIC" : "xAPIC");
    line("local apic", text, arg);
    snprintf(text, sizeof(text), "cr0 %#lx cr4 %#lx efer %#lx xcr0 %#lx", read_cr0(), read_cr4(), rdmsr(MSR_EFER), info.xcr0);
    line("control", text, arg);
    for (unsigned i = 0; i < cpu_count(); i++) {
        const struct percpu *c = percpu_of(i);
        snprintf(text, sizeof(text), "apic id %u, %lu interrupts, %lu spurious, %lu nmi", c->apic_id, c->irq_count,
                 c->spurious_count, c->nmi_count);
        char key[16];
        snprintf(key, sizeof(key), "pcpu %u", i);
        line(key, text, arg);
    }
    for (size_t i = 0; i < ARRAY_SIZE(feature_names); i++)
        if (i == 0 || feature_names[i].feature >> 5 != feature_names[i - 1].feature >> 5)
            describe_register(feature_names[i].feature, line, arg);
}
