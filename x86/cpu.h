/*
 * Single instructions as functions, by the manuals' names, and what this CPU is (cpu.c).
 *
 * Anything that orders memory or changes state behind the compiler's back has a "memory" clobber; pure reads have not.
 * The _safe forms survive a #GP: the address of the instruction and where to go on are listed in section .fixups, which
 * the exception handler searches (idt.c).
 */
#ifndef HV_X86_CPU_H
#define HV_X86_CPU_H

#include "include/hv/types.h"
#include "include/hw/cpuid.h"
#include "include/hw/msr.h"

#define RFLAGS_CF BIT64(0)
#define RFLAGS_FIXED1 BIT64(1)
#define RFLAGS_ZF BIT64(6)
#define RFLAGS_TF BIT64(8)
#define RFLAGS_IF BIT64(9)
#define RFLAGS_DF BIT64(10)
#define RFLAGS_RF BIT64(16)
#define RFLAGS_VM BIT64(17)
#define RFLAGS_AC BIT64(18)

#define CR0_PE BIT64(0)
#define CR0_MP BIT64(1)
#define CR0_EM BIT64(2)
#define CR0_TS BIT64(3)
#define CR0_ET BIT64(4)
#define CR0_NE BIT64(5)
#define CR0_WP BIT64(16)
#define CR0_AM BIT64(18)
#define CR0_NW BIT64(29)
#define CR0_CD BIT64(30)
#define CR0_PG BIT64(31)

#define CR4_VME BIT64(0)
#define CR4_PVI BIT64(1)
#define CR4_TSD BIT64(2)
#define CR4_DE BIT64(3)
#define CR4_PSE BIT64(4)
#define CR4_PAE BIT64(5)
#define CR4_MCE BIT64(6)
#define CR4_PGE BIT64(7)
#define CR4_PCE BIT64(8)
#define CR4_OSFXSR BIT64(9)
#define CR4_OSXMMEXCPT BIT64(10)
#define CR4_UMIP BIT64(11)
#define CR4_LA57 BIT64(12)
#define CR4_VMXE BIT64(13)
#define CR4_SMXE BIT64(14)
#define CR4_FSGSBASE BIT64(16)
#define CR4_PCIDE BIT64(17)
#define CR4_OSXSAVE BIT64(18)
#define CR4_SMEP BIT64(20)
#define CR4_SMAP BIT64(21)
#define CR4_PKE BIT64(22)
#define CR4_CET BIT64(23)

#define XCR0_X87 BIT64(0)
#define XCR0_SSE BIT64(1)
#define XCR0_AVX BIT64(2)

/* One entry of .fixups: a fault at `rip` continues at `resume`. */
struct fixup { uint64_t rip, resume; };
_Static_assert(sizeof(struct fixup) == 16, "pairs of addresses, as the assembler emits them");
#define FIXUP(from, to) ".pushsection .fixups, \"a\"\n.quad " from ", " to "\n.popsection\n"

/* ---- MSRs, CPUID ----------------------------------------------------------------------------------------- */

static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t lo, hi;
    asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr) : "memory");
    return lo | (uint64_t)hi << 32;
}

static inline void wrmsr(uint32_t msr, uint64_t value)
{
    asm volatile("wrmsr" :: "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

/* False: #GP, the MSR does not exist; *value is then 0. Software CPUs answer 0 for every unknown MSR instead. */
static inline bool rdmsr_safe(uint32_t msr, uint64_t *value)
{
    uint32_t lo = 0, hi = 0, done = 0;
    asm volatile("1: rdmsr\n inc %k2\n 2:\n" FIXUP("1b", "2b")
                 : "+a"(lo), "+d"(hi), "+r"(done) : "c"(msr) : "memory", "cc");
    *value = lo | (uint64_t)hi << 32;
    return done;
}

/* False: #GP, no such MSR or not this value. */
static inline bool wrmsr_safe(uint32_t msr, uint64_t value)
{
    uint32_t done = 0;
    asm volatile("1: wrmsr\n inc %k0\n 2:\n" FIXUP("1b", "2b")
                 : "+r"(done) : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory", "cc");
    return done;
}

struct cpuid { uint32_t eax, ebx, ecx, edx; };

static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid r;
    asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
    return r;
}

/* ---- control registers ----------------------------------------------------------------------------------- */

#define CR_ACCESSORS(n)                                                                                    \
    static inline uint64_t read_cr##n(void)                                                                \
    {                                                                                                      \
        uint64_t v;                                                                                        \
        asm volatile("mov %%cr" #n ", %0" : "=r"(v) :: "memory");                                          \
        return v;                                                                                          \
    }                                                                                                      \
    static inline void write_cr##n(uint64_t v) { asm volatile("mov %0, %%cr" #n :: "r"(v) : "memory"); }
CR_ACCESSORS(0)
CR_ACCESSORS(2)
CR_ACCESSORS(3)
CR_ACCESSORS(4)
CR_ACCESSORS(8)
#undef CR_ACCESSORS

#define DR_ACCESSORS(n)                                                                                    \
    static inline uint64_t read_dr##n(void)                                                                \
    {                                                                                                      \
        uint64_t v;                                                                                        \
        asm volatile("mov %%dr" #n ", %0" : "=r"(v));                                                      \
        return v;                                                                                          \
    }                                                                                                      \
    static inline void write_dr##n(uint64_t v) { asm volatile("mov %0, %%dr" #n :: "r"(v)); }
DR_ACCESSORS(0)
DR_ACCESSORS(1)
DR_ACCESSORS(2)
DR_ACCESSORS(3)
DR_ACCESSORS(6)
DR_ACCESSORS(7)
#undef DR_ACCESSORS

/* CR4.OSXSAVE must be on. */
static inline uint64_t xgetbv(uint32_t xcr)
{
    uint32_t lo, hi;
    asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(xcr));
    return lo | (uint64_t)hi << 32;
}

static inline void xsetbv(uint32_t xcr, uint64_t value)
{
    asm volatile("xsetbv" :: "c"(xcr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

static inline void clts(void) { asm volatile("clts" ::: "memory"); }

/* ---- ports ------------------------------------------------------------------------------------------------- */

#define PORT_ACCESSORS(bits, suffix)                                                                       \
    static inline uint##bits##_t in##bits(uint16_t port)                                                   \
    {                                                                                                      \
        uint##bits##_t v;                                                                                  \
        asm volatile("in" #suffix " %1, %0" : "=a"(v) : "Nd"(port) : "memory");                            \
        return v;                                                                                          \
    }                                                                                                      \
    static inline void out##bits(uint16_t port, uint##bits##_t v)                                          \
    {                                                                                                      \
        asm volatile("out" #suffix " %0, %1" :: "a"(v), "Nd"(port) : "memory");                            \
    }
PORT_ACCESSORS(8, b)
PORT_ACCESSORS(16, w)
PORT_ACCESSORS(32, l)
#undef PORT_ACCESSORS

/* ---- time and order ---------------------------------------------------------------------------------------- */

/* May run before earlier loads: for statistics and time_ns(). */
static inline uint64_t rdtsc(void)
{
    uint32_t lo, hi;
    asm volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return lo | (uint64_t)hi << 32;
}

/* Neither before earlier nor after later instructions; LFENCE serializes on Intel, and on AMD once MSR_DE_CFG[1] is set
 * (cpu.c). For calibration and measurement. */
static inline uint64_t rdtsc_ordered(void)
{
    uint32_t lo, hi;
    asm volatile("lfence\n rdtsc\n lfence" : "=a"(lo), "=d"(hi) :: "memory");
    return lo | (uint64_t)hi << 32;
}

static inline void barrier(void) { asm volatile("" ::: "memory"); }
static inline void mfence(void) { asm volatile("mfence" ::: "memory"); }
static inline void lfence(void) { asm volatile("lfence" ::: "memory"); }
static inline void sfence(void) { asm volatile("sfence" ::: "memory"); }
static inline void cpu_pause(void) { asm volatile("pause" ::: "memory"); }
static inline void invlpg(const void *va) { asm volatile("invlpg (%0)" :: "r"(va) : "memory"); }
static inline void wbinvd(void) { asm volatile("wbinvd" ::: "memory"); }

/* a * b / d, rounded down, with a 128-bit product (no library division in a freestanding image). The quotient must fit
 * 64 bits: the CPU raises #DE otherwise. */
static inline uint64_t mul_div64(uint64_t a, uint64_t b, uint64_t d)
{
    uint64_t hi;
    asm("mulq %2\n divq %3" : "+&a"(a), "=&d"(hi) : "r"(b), "r"(d) : "cc");
    return a;
}

/* ---- interrupts ------------------------------------------------------------------------------------------- */

static inline void hlt(void) { asm volatile("hlt" ::: "memory"); }

static inline uint64_t read_rflags(void)
{
    uint64_t v;
    asm volatile("pushfq\n popq %0" : "=r"(v) :: "memory");
    return v;
}

static inline bool irqs_enabled(void) { return read_rflags() & RFLAGS_IF; }

/* Debug builds time how long interrupts are off (irqs_off.c). A guest that runs has them on, whatever ours says: end before, begin after. */
#define IRQS_OFF_TIMED (HV_DEBUG && !HV_HOST)
typedef void irqs_off_fn(const char *name, const void *pc, uint64_t tsc_ticks);
#if IRQS_OFF_TIMED
void irqs_off_begin(void);                              /* at the caller's; they are off */
void irqs_off_named(const char *name, const void *pc);  /* what has just begun is another's doing */
void irqs_off_end(void);                                /* they are still off */
void irqs_off_set_report(irqs_off_fn *fn);              /* interrupts off, any lock may be held */
#else
static inline void irqs_off_begin(void) {}
static inline void irqs_off_named(const char *name UNUSED, const void *pc UNUSED) {}
static inline void irqs_off_end(void) {}
static inline void irqs_off_set_report(irqs_off_fn *fn UNUSED) {}
#endif

static inline void cli(void)
{
    bool begins = IRQS_OFF_TIMED && irqs_enabled();
    asm volatile("cli" ::: "memory");
    if (begins)
        irqs_off_begin();
}

static inline void sti(void)
{
    irqs_off_end();
    asm volatile("sti" ::: "memory");
}

/* STI's shadow covers the HLT: an interrupt that comes after the caller's last check (interrupts off) still wakes it. */
static inline void sti_hlt(void)
{
    irqs_off_end();
    asm volatile("sti\n hlt" ::: "memory");
}

/* Interrupts off; what they were comes back for irq_restore(). Nests. */
static inline uint64_t irq_save(void)
{
    uint64_t flags = read_rflags();
    cli();
    return flags;
}

static inline void irq_restore(uint64_t flags)
{
    if (flags & RFLAGS_IF)
        sti();
}

/* ---- tables, segments --------------------------------------------------------------------------------------- */

struct PACKED descriptor_ptr { uint16_t limit; uint64_t base; };
_Static_assert(sizeof(struct descriptor_ptr) == 10, "APM 2, figure 4-9");

static inline void lgdt(const struct descriptor_ptr *p) { asm volatile("lgdt %0" :: "m"(*p) : "memory"); }
static inline void lidt(const struct descriptor_ptr *p) { asm volatile("lidt %0" :: "m"(*p) : "memory"); }
static inline void sgdt(struct descriptor_ptr *p) { asm volatile("sgdt %0" : "=m"(*p)); }
static inline void sidt(struct descriptor_ptr *p) { asm volatile("sidt %0" : "=m"(*p)); }
static inline void ltr(uint16_t selector) { asm volatile("ltr %0" :: "r"(selector) : "memory"); }
static inline void lldt(uint16_t selector) { asm volatile("lldt %0" :: "r"(selector) : "memory"); }

/* Only where CPUID has SMAP. We own no user pages: for tests and completeness of SMAP on. */
static inline void stac(void) { asm volatile("stac" ::: "memory", "cc"); }
static inline void clac(void) { asm volatile("clac" ::: "memory", "cc"); }

/* ---- cpu.c --------------------------------------------------------------------------------------------------- */

/* Asks the CPU itself: for set-up, not for hot paths. False for leaves that it does not have. */
bool cpu_has(enum cpuid_feature f);
/* As CPUID answers, zero for leaves above the CPU's maximum (which would repeat another leaf). */
struct cpuid cpu_leaf(uint32_t leaf, uint32_t subleaf);
uint64_t cpu_random(void); /* from the CPU's generator; without one it differs from call to call, no more */

enum cpu_vendor { CPU_VENDOR_OTHER, CPU_VENDOR_AMD /* and Hygon */, CPU_VENDOR_INTEL /* and Zhaoxin */ };

struct cpu_info {
    enum cpu_vendor vendor;
    char vendor_id[13], brand[49];
    unsigned family, model, stepping;
    unsigned phys_bits, virt_bits;  /* CPUID 8000_0008 */
    uint64_t xcr0_supported;        /* CPUID 0D.0, 0: no XSAVE */
    uint64_t xcr0;                  /* what cpu_init_this() has set */
    bool x2apic, tsc_deadline, tsc_invariant, pages_1g, hypervisor /* we run under one */, tcg /* which is QEMU's emulation */;
};
/* Filled by cpu_init_boot(). */
const struct cpu_info *cpu_info(void);

/* The boot CPU, once: reads what it is. Returns NULL, or what it lacks that we cannot do without, as a list in words. */
const char *cpu_init_boot(void);
/* Every CPU: CR0, CR4, EFER, PAT, XCR0 for us. After the CPU runs on our own page tables. */
void cpu_init_this(void);
/* One line per fact, for the `cpu` command: line(key, value, arg). */
void cpu_describe(void (*line)(const char *key, const char *value, void *arg), void *arg);

#endif
