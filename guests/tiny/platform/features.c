/* CPU features: each that is shown is used, and none is shown that nobody here uses. Extended state, whose layout CPUID tells, is looked at as a whole. */
#include "platform/platform.h"

static uint8_t buf[8192] __attribute__((aligned(4096)));

/* ---- CPU features: using each one -------------------------------------------------------------------------------------------- */

enum { CR4_PGE = 1 << 7, CR4_OSFXSR = 1 << 9, CR4_OSXMMEXCPT = 1 << 10, CR4_UMIP = 1 << 11, CR4_FSGSBASE = 1 << 16, CR4_PCIDE = 1 << 17,
    CR4_OSXSAVE = 1 << 18, CR4_SMEP = 1 << 20, CR4_SMAP = 1 << 21 };
enum { PF = 14, WRONG = 1000 /* no fault, but not the right result */ };

/* One or a few instructions with RDI and RSI at memory; the value is -1, or the vector of the fault. */
#define INSN(id, text)                                                                                     \
    static int use_##id(void)                                                                              \
    {                                                                                                      \
        return TRY(text, :: "D"(buf), "S"(buf + 4096) : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r15", "cc", "memory"); \
    }
/* The same with a result in RAX that is known. */
#define INSN_VALUE(id, text, expected)                                                                     \
    static int use_##id(void)                                                                              \
    {                                                                                                      \
        uint64_t a_ = 0;                                                                                   \
        int r_ = TRY(text, : "+a"(a_) : "D"(buf), "S"(buf + 4096) : "rbx", "rcx", "rdx", "r8", "r9", "r11", "r15", "cc", "memory"); \
        return r_ >= 0 || a_ == (expected) ? r_ : WRONG;                                                   \
    }

INSN(fpu, "fninit\n fld1\n fstp %%st(0)")
INSN(cx8, "lock cmpxchg8b (%%rdi)")
INSN(cx16, "lock cmpxchg16b (%%rdi)")
INSN_VALUE(cmov, "mov $5, %%ecx\n test %%ecx, %%ecx\n cmovnz %%rcx, %%rax", 5)
INSN(clflush, "clflush (%%rdi)")
INSN(clflushopt, "clflushopt (%%rdi)")
INSN(clwb, "clwb (%%rdi)")
INSN(clzero, "mov %%rdi, %%rax\n clzero")
INSN(prefetchw, "prefetchw (%%rdi)")
INSN(mmx, "paddb %%mm0, %%mm1\n emms")
INSN(mmxext, "pavgb %%mm0, %%mm1\n emms")
INSN(now3d, "pfadd %%mm0, %%mm1\n femms")
INSN(now3dext, "pswapd %%mm0, %%mm1\n femms")
INSN(fxsr, "fxsave64 (%%rdi)\n fxrstor64 (%%rdi)")
INSN(sse, "xorps %%xmm0, %%xmm0\n addps %%xmm0, %%xmm1")
INSN_VALUE(sse2, "mov $7, %%ecx\n movq %%rcx, %%xmm0\n paddq %%xmm0, %%xmm0\n movq %%xmm0, %%rax", 14)
INSN(sse3, "addsubps %%xmm0, %%xmm1")
INSN(ssse3, "pshufb %%xmm0, %%xmm1")
INSN(sse41, "pmulld %%xmm0, %%xmm1")
INSN_VALUE(sse42, "mov $1, %%ecx\n crc32b %%cl, %%rax", 0xf26b8303)
INSN(sse4a, "extrq $8, $8, %%xmm0")
INSN(misalign, "stmxcsr (%%rdi)\n orl $0x20000, (%%rdi)\n ldmxcsr (%%rdi)\n addps 4(%%rdi), %%xmm0\n andl $~0x20000, (%%rdi)\n ldmxcsr (%%rdi)")
INSN(pclmul, "pclmulqdq $0, %%xmm0, %%xmm1")
INSN(aes, "aesenc %%xmm0, %%xmm1")
INSN(sha, "sha1nexte %%xmm0, %%xmm1")
INSN_VALUE(popcnt, "mov $0xff00ff, %%ecx\n popcnt %%rcx, %%rax", 16)
INSN_VALUE(movbe, "movq $0x12, (%%rdi)\n movbe (%%rdi), %%rax", 0x1200000000000000)
INSN(rdrand, "rdrand %%rax")
INSN(rdseed, "rdseed %%rax")
INSN_VALUE(bmi1, "mov $0xf0, %%ecx\n mov $0xff, %%edx\n andn %%rdx, %%rcx, %%rax", 0x0f)
INSN_VALUE(bmi2, "mov $0x1234, %%ecx\n mov $0xf0f0, %%edx\n pext %%rdx, %%rcx, %%rax", 0x13)
INSN_VALUE(adx, "xor %%ecx, %%ecx\n mov $3, %%eax\n adcx %%rax, %%rax\n adox %%rax, %%rax", 12)
INSN_VALUE(lzcnt, "mov $1, %%ecx\n lzcnt %%rcx, %%rax", 63)
INSN(lahf, "lahf\n sahf")
INSN_VALUE(movsb, "mov %%rdi, %%r8\n mov %%rsi, %%r9\n movq $77, (%%rsi)\n mov $64, %%ecx\n rep movsb\n mov -64(%%rdi), %%rax\n"
           " mov %%r8, %%rdi\n mov %%r9, %%rsi", 77)
INSN(avx, "vaddps %%ymm0, %%ymm1, %%ymm2\n vzeroupper")
INSN(avx2, "vpaddq %%ymm0, %%ymm1, %%ymm2\n vzeroupper")
INSN(fma, "vfmadd231ps %%ymm0, %%ymm1, %%ymm2\n vzeroupper")
INSN(f16c, "vcvtps2ph $0, %%ymm0, %%xmm1\n vzeroupper")
INSN(vaes, "vaesenc %%ymm0, %%ymm1, %%ymm2\n vzeroupper")
INSN(vpclmul, "vpclmulqdq $0, %%ymm0, %%ymm1, %%ymm2\n vzeroupper")
INSN(fma4, "vfmaddps %%xmm0, %%xmm1, %%xmm2, %%xmm3\n vzeroupper")
INSN(xop, "vpcmov %%xmm0, %%xmm1, %%xmm2, %%xmm3\n vzeroupper")
INSN_VALUE(syscall, "lea 2f(%%rip), %%rax\n mov %%rax, %%rdx\n shr $32, %%rdx\n mov $0xc0000082, %%ecx\n wrmsr\n xor %%eax, %%eax\n"
           " mov $8, %%edx\n mov $0xc0000081, %%ecx\n wrmsr\n syscall\n ud2\n 2: mov %%cs, %%eax", 8)

/* AMD's CPUs have SYSENTER outside long mode only, compatibility mode included, and then not at all. */
static volatile uint64_t behind_sysenter;
static volatile bool no_sysenter;
static bool leave_compatibility(struct trap_frame *f)
{
    no_sysenter = f->vector == 6;
    f->cs = 8;
    f->rip = behind_sysenter;
    return no_sysenter;
}

/* From 32-bit code in the innermost ring, to which it comes back; then something that exits, so that the CPU is entered with what SYSENTER leaves. */
INSN_VALUE(enter, "pushfq\n pop %%r8\n mov $0x174, %%ecx\n mov $8, %%eax\n xor %%edx, %%edx\n wrmsr\n mov $0x175, %%ecx\n mov %%rsp, %%rax\n"
           " mov %%rsp, %%rdx\n shr $32, %%rdx\n wrmsr\n mov $0x176, %%ecx\n lea 3f(%%rip), %%rax\n mov %%rax, behind_sysenter(%%rip)\n"
           " mov %%rax, %%rdx\n shr $32, %%rdx\n wrmsr\n"
           " push $0x18\n lea 2f(%%rip), %%rax\n push %%rax\n movq $0, resume(%%rip)\n lretq\n .code32\n 2: sysenter\n .code64\n"
           " 3: xor %%eax, %%eax\n cpuid\n push %%r8\n popfq\n mov %%cs, %%eax", 8)
static int use_sysenter(void)
{
    no_sysenter = false;
    on_trap = leave_compatibility;
    int r = use_enter();
    on_trap = NULL;
    return no_sysenter && !on_amd() ? 6 : r;
}

static int with_cr4(uint64_t bits)
{
    uint64_t old = READ_CR(4);
    int r = TRY("mov %0, %%cr4", :: "r"(old | bits) : "r15", "memory");
    if (r < 0 && (READ_CR(4) & bits) != bits)
        r = WRONG;
    WRITE_CR(4, old);
    return r;
}
static int use_pge(void) { return with_cr4(CR4_PGE); }
static int use_umip(void) { return with_cr4(CR4_UMIP); }
static int use_vme(void) { return with_cr4(3); }
static int use_de(void) { return with_cr4(8); }
static int use_pcid(void) { return with_cr4(CR4_PCIDE); }

static int use_fsgsbase(void)
{
    uint64_t got = 0;
    WRITE_CR(4, READ_CR(4) | CR4_FSGSBASE);
    int r = TRY("wrgsbase %1\n rdgsbase %0", : "+r"(got) : "r"(UINT64_C(0x123456789000)) : "r15", "memory");
    return r >= 0 || (got == 0x123456789000 && rdmsr(0xc0000101) == got) ? r : WRONG;
}

static int use_invpcid(void)
{
    struct { uint64_t pcid, address; } d = {0, (uint64_t)buf};
    for (uint64_t type = 0; type < 4; type++)
        if (TRY("invpcid %1, %0", :: "r"(type), "m"(d) : "r15", "memory") >= 0)
            return fault_vector;
    return -1;
}

static int use_tsc_aux(bool rdpid)
{
    uint64_t aux = 0;
    wrmsr(0xc0000103, 0x5eed);
    int r = rdpid ? TRY("rdpid %%rcx", : "=c"(aux) :: "r15", "memory") : TRY("rdtscp", : "=c"(aux) :: "rax", "rdx", "r15", "memory");
    return r >= 0 || (uint32_t)aux == 0x5eed ? r : WRONG;
}
static int use_rdtscp(void) { return use_tsc_aux(false); }
static int use_rdpid(void) { return use_tsc_aux(true); }

/* A page at another address, with other rights: it holds `jmp *%rbx`, which comes back. */
#define ALIAS (UINT64_C(1) << 39)
static uint64_t alias_tables[3][512] __attribute__((aligned(4096)));

static void alias(uint64_t rights)
{
    buf[4096] = 0xff;
    buf[4097] = 0xe3;
    alias_tables[2][0] = (uint64_t)(buf + 4096) | rights;
    alias_tables[1][0] = (uint64_t)alias_tables[2] | 7;
    alias_tables[0][0] = (uint64_t)alias_tables[1] | 7;
    tiny_pml4[1] = (uint64_t)alias_tables[0] | 7;
    WRITE_CR(3, READ_CR(3));
}
static int fetch(void) { return TRY("lea 2f(%%rip), %%rbx\n jmp *%0\n 2:", :: "r"(ALIAS) : "rbx", "r15", "memory"); }
static int load(void) { return TRY("movb (%0), %%al", :: "r"(ALIAS) : "rax", "r15", "memory"); }

static int use_nx(void)
{
    alias(3);
    int r = fetch();
    alias(BIT(63) | 3);
    return r >= 0 ? r : fetch() == PF && (fault_error & 0x11) == 0x11 && load() < 0 ? -1 : WRONG;
}

static int use_smep(void)
{
    alias(7);
    int without = fetch();
    WRITE_CR(4, READ_CR(4) | CR4_SMEP);
    bool refused = fetch() == PF && (fault_error & 0x11) == 0x11, other = load() < 0;
    WRITE_CR(4, READ_CR(4) & ~(uint64_t)CR4_SMEP);
    return without < 0 && refused && other ? -1 : WRONG;
}

static int use_smap(void)
{
    alias(7);
    WRITE_CR(4, READ_CR(4) | CR4_SMAP);
    bool refused = load() == PF;
    int r = TRY("stac\n movb (%0), %%al\n clac", :: "r"(ALIAS) : "rax", "r15", "memory");
    WRITE_CR(4, READ_CR(4) & ~(uint64_t)CR4_SMAP);
    return r >= 0 || (refused && load() < 0) ? r : WRONG;
}

static int use_1g(void)
{
    uint64_t at = ALIAS + (uint64_t)(buf + 4096);
    alias(3);
    alias_tables[0][0] = 0x83;
    WRITE_CR(3, READ_CR(3));
    int r = TRY("movw (%0), %%ax", :: "r"(at) : "rax", "r15", "memory");
    return r >= 0 || *(volatile uint16_t *)at == 0xe3ff ? r : WRONG;
}

/* ---- CPU features: extended state --------------------------------------------------------------------------------------------- */

static uint64_t xcr0_mask(void) { struct cpuid c = cpuid(0xd, 0); return c.a | (uint64_t)c.d << 32; }

static int set_xcr0(uint64_t value)
{
    return TRY("xsetbv", :: "a"((uint32_t)value), "d"((uint32_t)(value >> 32)), "c"(0) : "r15", "memory");
}

enum save_form { XSAVE, XSAVEOPT, XSAVEC };

/* Saved, changed, restored: the registers are back, and nothing was written behind the size that CPUID says. */
static int save_with(enum save_form form)
{
    bool ymm = xcr0_mask() & 4;
    uint32_t size = cpuid(0xd, form == XSAVEC).b, out[8] = {0};
    if (size < 576 || size > 4096)
        return WRONG;
    for (uint32_t n = 0; n < sizeof(buf); n++)
        buf[n] = n < size ? 0 : 0xee;
    uint64_t pattern[4] = {1, 2, 3, 4};
    int r = ymm ? TRY("vmovdqu %0, %%ymm7", :: "m"(pattern) : "r15", "memory") : TRY("movdqu %0, %%xmm7", :: "m"(pattern) : "r15", "memory");
    if (r < 0)
        r = form == XSAVE ? TRY("xsave64 (%0)", :: "r"(buf), "a"(-1), "d"(-1) : "r15", "memory")
          : form == XSAVEOPT ? TRY("xsaveopt64 (%0)", :: "r"(buf), "a"(-1), "d"(-1) : "r15", "memory")
                             : TRY("xsavec64 (%0)", :: "r"(buf), "a"(-1), "d"(-1) : "r15", "memory");
    if (r < 0)
        r = TRY("pxor %%xmm7, %%xmm7\n xrstor64 (%0)", :: "r"(buf), "a"(-1), "d"(-1) : "r15", "memory");
    if (r < 0)
        r = ymm ? TRY("vmovdqu %%ymm7, %0\n vzeroupper", : "=m"(out) :: "r15", "memory") : TRY("movdqu %%xmm7, %0", : "=m"(out) :: "r15", "memory");
    bool inside = true;
    for (uint32_t n = size; n < sizeof(buf); n++)
        inside &= buf[n] == 0xee;
    return r >= 0 || (inside && out[0] == 1 && out[2] == 2 && (!ymm || (out[4] == 3 && out[6] == 4))) ? r : WRONG;
}
static int use_xsave(void) { return save_with(XSAVE); }
static int use_xsaveopt(void) { return save_with(XSAVEOPT); }
static int use_xsavec(void) { return save_with(XSAVEC); }

static int use_xgetbv1(void)
{
    uint64_t a = 0;
    int r = TRY("xgetbv", : "=a"(a) : "c"(1) : "rdx", "r15", "memory");
    return r >= 0 || !(a & ~xcr0_mask()) ? r : WRONG;
}

/* Every leaf with features, and what uses each bit. NULL: used by a check of its own further down. */
enum { A, B, C, D };
static const struct feature { const char *name; uint32_t leaf; uint8_t sub, reg, bit; int (*use)(void); } features[] = {
    {"sse3", 1, 0, C, 0, use_sse3}, {"pclmulqdq", 1, 0, C, 1, use_pclmul}, {"ssse3", 1, 0, C, 9, use_ssse3}, {"fma", 1, 0, C, 12, use_fma},
    {"cx16", 1, 0, C, 13, use_cx16}, {"pcid", 1, 0, C, 17, use_pcid}, {"sse4.1", 1, 0, C, 19, use_sse41}, {"sse4.2", 1, 0, C, 20, use_sse42},
    {"x2apic", 1, 0, C, 21, NULL}, {"movbe", 1, 0, C, 22, use_movbe}, {"popcnt", 1, 0, C, 23, use_popcnt}, {"tsc-deadline", 1, 0, C, 24, NULL},
    {"aes", 1, 0, C, 25, use_aes}, {"xsave", 1, 0, C, 26, use_xsave}, {"osxsave", 1, 0, C, 27, NULL}, {"avx", 1, 0, C, 28, use_avx},
    {"f16c", 1, 0, C, 29, use_f16c}, {"rdrand", 1, 0, C, 30, use_rdrand}, {"hypervisor", 1, 0, C, 31, NULL},
    {"fpu", 1, 0, D, 0, use_fpu}, {"vme", 1, 0, D, 1, use_vme}, {"de", 1, 0, D, 2, use_de}, {"pse", 1, 0, D, 3, NULL}, {"tsc", 1, 0, D, 4, NULL},
    {"msr", 1, 0, D, 5, NULL}, {"pae", 1, 0, D, 6, NULL}, {"cx8", 1, 0, D, 8, use_cx8}, {"apic", 1, 0, D, 9, NULL}, {"sep", 1, 0, D, 11, use_sysenter},
    {"mtrr", 1, 0, D, 12, NULL}, {"pge", 1, 0, D, 13, use_pge}, {"cmov", 1, 0, D, 15, use_cmov}, {"pat", 1, 0, D, 16, NULL},
    {"pse36", 1, 0, D, 17, NULL}, {"clflush", 1, 0, D, 19, use_clflush}, {"mmx", 1, 0, D, 23, use_mmx}, {"fxsr", 1, 0, D, 24, use_fxsr},
    {"sse", 1, 0, D, 25, use_sse}, {"sse2", 1, 0, D, 26, use_sse2}, {"self-snoop", 1, 0, D, 27, NULL}, {"htt", 1, 0, D, 28, NULL},
    {"arat", 6, 0, A, 2, NULL},
    {"fsgsbase", 7, 0, B, 0, use_fsgsbase}, {"bmi1", 7, 0, B, 3, use_bmi1}, {"avx2", 7, 0, B, 5, use_avx2}, {"smep", 7, 0, B, 7, use_smep},
    {"bmi2", 7, 0, B, 8, use_bmi2}, {"erms", 7, 0, B, 9, use_movsb}, {"invpcid", 7, 0, B, 10, use_invpcid}, {"rdseed", 7, 0, B, 18, use_rdseed},
    {"adx", 7, 0, B, 19, use_adx}, {"smap", 7, 0, B, 20, use_smap}, {"clflushopt", 7, 0, B, 23, use_clflushopt}, {"clwb", 7, 0, B, 24, use_clwb},
    {"sha", 7, 0, B, 29, use_sha}, {"umip", 7, 0, C, 2, use_umip}, {"vaes", 7, 0, C, 9, use_vaes}, {"vpclmulqdq", 7, 0, C, 10, use_vpclmul},
    {"rdpid", 7, 0, C, 22, use_rdpid}, {"fsrm", 7, 0, D, 4, use_movsb},
    {"xsaveopt", 0xd, 1, A, 0, use_xsaveopt}, {"xsavec", 0xd, 1, A, 1, use_xsavec}, {"xgetbv1", 0xd, 1, A, 2, use_xgetbv1},
    {"lahf", 0x80000001, 0, C, 0, use_lahf}, {"cmp-legacy", 0x80000001, 0, C, 1, NULL}, {"cr8-legacy", 0x80000001, 0, C, 4, NULL},
    {"lzcnt", 0x80000001, 0, C, 5, use_lzcnt}, {"sse4a", 0x80000001, 0, C, 6, use_sse4a}, {"misalignsse", 0x80000001, 0, C, 7, use_misalign},
    {"prefetchw", 0x80000001, 0, C, 8, use_prefetchw}, {"xop", 0x80000001, 0, C, 11, use_xop}, {"fma4", 0x80000001, 0, C, 16, use_fma4},
    {"syscall", 0x80000001, 0, D, 11, use_syscall}, {"nx", 0x80000001, 0, D, 20, use_nx}, {"mmxext", 0x80000001, 0, D, 22, use_mmxext},
    {"fxsr-opt", 0x80000001, 0, D, 25, use_fxsr}, {"1g-pages", 0x80000001, 0, D, 26, use_1g}, {"rdtscp", 0x80000001, 0, D, 27, use_rdtscp},
    {"long-mode", 0x80000001, 0, D, 29, NULL}, {"3dnowext", 0x80000001, 0, D, 30, use_now3dext}, {"3dnow", 0x80000001, 0, D, 31, use_now3d},
    {"tsc-invariant", 0x80000007, 0, D, 8, NULL}, {"clzero", 0x80000008, 0, B, 0, use_clzero}, {"xsaveerptr", 0x80000008, 0, B, 2, use_fxsr},
};
enum { FEATURES = sizeof(features) / sizeof(features[0]) };

static uint32_t feature_word(uint32_t leaf, uint8_t sub, uint8_t reg)
{
    if (leaf > cpuid(leaf & 0x80000000, 0).a)
        return 0;
    struct cpuid c = cpuid(leaf, sub);
    return reg == A ? c.a : reg == B ? c.b : reg == C ? c.c : c.d;
}

bool shown(const char *name)
{
    for (unsigned n = 0; n < FEATURES; n++) {
        const char *a = features[n].name, *b = name;
        while (*a && *a == *b)
            a++, b++;
        if (!*a && !*b)
            return feature_word(features[n].leaf, features[n].sub, features[n].reg) >> features[n].bit & 1;
    }
    print("platform: no feature is named %s\n", name);
    exit_vm(2);
}

static void check_unknown_features(void)
{
    uint32_t unknown = 0, word, allowed;
    for (unsigned n = 0; n < FEATURES; n++) { /* each word once: where its first feature stands */
        const struct feature *f = &features[n];
        if (n && f[-1].leaf == f->leaf && f[-1].sub == f->sub && f[-1].reg == f->reg)
            continue;
        /* AMD repeats leaf 1's EDX there */
        allowed = f->leaf == 0x80000001 && f->reg == D && on_amd() ? feature_word(1, 0, D) & 0x0183f3ff : 0;
        for (unsigned m = 0; m < FEATURES; m++)
            if (features[m].leaf == f->leaf && features[m].sub == f->sub && features[m].reg == f->reg)
                allowed |= 1u << features[m].bit;
        word = feature_word(f->leaf, f->sub, f->reg);
        if (word & ~allowed)
            print("platform: leaf %x.%u register %c shows %08x, which nothing here uses\n", f->leaf, f->sub, 'a' + f->reg, word & ~allowed);
        unknown |= word & ~allowed;
    }
    CHECK("cpuid-known-features", !unknown, "unknown bits");
}

void check_features(void)
{
    WRITE_CR(0, (READ_CR(0) & ~UINT64_C(0xc)) | 0x22); /* neither EM nor TS; MP, NE */
    WRITE_CR(4, READ_CR(4) | CR4_OSFXSR | CR4_OSXMMEXCPT);
    if (shown("xsave")) {
        bool before = shown("osxsave");
        WRITE_CR(4, READ_CR(4) | CR4_OSXSAVE);
        CHECK("osxsave-follows-cr4", !before && shown("osxsave"), "CR4 %lx", READ_CR(4));
        CHECK("xcr0", set_xcr0(0) == 13 && (xcr0_mask() & 3) == 3 && set_xcr0(xcr0_mask()) < 0, "mask %lx", xcr0_mask());
        CHECK("xcr0-refuses", set_xcr0(5) == 13 && set_xcr0(BIT(62) | 3) == 13, "a value that cannot be was taken");
    }
    for (unsigned n = 0; n < FEATURES; n++) {
        const struct feature *f = &features[n];
        if (!f->use || !(feature_word(f->leaf, f->sub, f->reg) >> f->bit & 1))
            continue;
        int r = f->use();
        CHECK(f->name, r < 0, r == WRONG ? "shown, but the result is wrong" : "shown, but using it raises vector %d", r);
    }
    if (!bare)
        check_unknown_features();
}
