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
#include "tiny.h"

#define BIT(n) (UINT64_C(1) << (n))

static unsigned good, bad;
static bool bare, exact;
static uint64_t tsc_hz = 1000000000; /* until the PM timer has told */
static uint8_t buf[8192] __attribute__((aligned(4096)));

#define CHECK(what, condition, ...)                                                                        \
    do {                                                                                                   \
        if (condition) {                                                                                   \
            good++;                                                                                        \
            print("platform: %s ok\n", what);                                                              \
        } else {                                                                                           \
            bad++;                                                                                         \
            print("platform: %s FAILED ", what);                                                           \
            print(__VA_ARGS__);                                                                            \
            print("\n");                                                                                   \
        }                                                                                                  \
    } while (0)

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

static bool shown(const char *name)
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

static void check_features(void)
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

static void wait_tsc(uint64_t ticks)
{
    for (uint64_t begin = rdtsc(); rdtsc() - begin < ticks;)
        asm volatile("pause");
}

/* Over 40 ms of TSC the clock, of so many bits, has moved as it should to two percent and what the readings themselves are unsure of. */
static void check_rate(const char *name, uint64_t (*read)(void), uint64_t hz, unsigned bits)
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

static uint8_t cmos(uint8_t reg) { outb(0x70, reg); return inb(0x71); }
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

enum { MSR_WALL_CLOCK = 0x4b564d00, MSR_SYSTEM_TIME = 0x4b564d01, MSR_APIC_BASE = 0x1b };

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

static void check_interrupts(void)
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
