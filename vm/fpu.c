/*
 * The guest's x87, SSE and AVX registers, XCR0 and TSC_AUX.
 *
 * The hypervisor is compiled without vector instructions, so a guest's registers can stay in the CPU across exits; they are
 * saved when another thread gets the CPU (or the emulator wants to see one) and loaded before the next entry. Not
 * lazily by #NM: guests use vector registers in every slice, the trap costs more than the XRSTOR, and late restores
 * are how registers have leaked between guests.
 *
 * XCR0 is the guest's while its registers are live. Saving and loading is done with the hypervisor's XCR0, which covers all that
 * a guest can own: SSE registers are there also for a guest that has not set XCR0 at all. Some CPUs
 * let the guest write XCR0 without an exit, so it is read back and held against what CPUID shows.
 */
#include "vm/saved.h"

#include "core/log.h"
#include "lib/string.h"
#include "mm/mm.h"
#include "x86/cpu.h"
#include "x86/percpu.h"

#define FXSAVE_BYTES 512u
#define XSAVE_HEADER_BYTES 64u
#define FCW_RESET 0x37f
#define MXCSR_RESET 0x1f80
#define MXCSR_OFFSET 24

static uint64_t host_xcr0;  /* 0: no XSAVE, FXSAVE serves */
static uint32_t area_bytes;
static bool leaks_fip;      /* FXRSTOR leaves FIP, FDP, FOP alone unless an exception is pending (AMD APM 2, 11.5.8) */
static bool has_tsc_aux;

uint64_t fpu_xcr0_supported(void) { return host_xcr0; }

uint32_t fpu_area_bytes(uint64_t xcr0)
{
    uint32_t bytes = FXSAVE_BYTES + XSAVE_HEADER_BYTES;
    for (unsigned bit = 2; bit < 63; bit++) {
        if (!(xcr0 & BIT64(bit)))
            continue;
        struct cpuid c = cpu_leaf(CPUID_LEAF_XSAVE, bit);
        bytes = MAX(bytes, c.eax + c.ebx);
    }
    return bytes;
}

void fpu_init(void)
{
    host_xcr0 = cpu_info()->xcr0;
    area_bytes = fpu_area_bytes(host_xcr0);
    leaks_fip = cpu_info()->vendor == CPU_VENDOR_AMD && !cpu_has(CPUID_XSAVEERPTR);
    has_tsc_aux = cpu_has(CPUID_RDTSCP) || cpu_has(CPUID_RDPID);
}

bool fpu_vcpu_init(struct vcpu *v)
{
    v->fpu_area = kzalloc(area_bytes);
    return v->fpu_area;
}

void fpu_vcpu_fini(struct vcpu *v)
{
    kfree(v->fpu_area);
    v->fpu_area = NULL;
}

void fpu_vcpu_reset(struct vcpu *v)
{
    uint8_t *area = v->fpu_area;
    memset(area, 0, area_bytes);
    *(uint16_t *)area = FCW_RESET;
    *(uint32_t *)(area + MXCSR_OFFSET) = MXCSR_RESET;
    v->guest_xcr0 = XCR0_X87;
    v->fpu_live = false;
}

size_t fpu_copy_bytes(void) { return area_bytes; }

void fpu_copy_out(const struct vcpu *v, struct vcpu_saved *out)
{
    debug_assert(!v->fpu_live);
    memcpy(out->fpu, v->fpu_area, area_bytes);
    out->guest_xcr0 = v->guest_xcr0;
    out->tsc_aux = v->tsc_aux;
}

void fpu_copy_in(struct vcpu *v, const struct vcpu_saved *in)
{
    debug_assert(!v->fpu_live);
    memcpy(v->fpu_area, in->fpu, area_bytes);
    v->guest_xcr0 = in->guest_xcr0;
    v->tsc_aux = in->tsc_aux;
}

static void use_xcr0(uint64_t value)
{
    if (host_xcr0 && xgetbv(0) != value)
        xsetbv(0, value);
}

/* Gives FIP, FDP and FOP values that are nobody's: an x87 load records its own addresses. */
static void clear_x87_pointers(void)
{
    static const uint32_t zero;
    asm volatile("fnclex\n ffree %%st(7)\n fildl %0" :: "m"(zero) : "memory");
}

void fpu_load(struct vcpu *v)
{
    debug_assert(!v->fpu_live);
    if (leaks_fip)
        clear_x87_pointers();
    if (host_xcr0) {
        use_xcr0(host_xcr0);
        asm volatile("xrstor64 %0" :: "m"(*(uint8_t (*)[])v->fpu_area), "a"((uint32_t)host_xcr0), "d"((uint32_t)(host_xcr0 >> 32))
                     : "memory");
        use_xcr0(v->guest_xcr0);
    } else {
        asm volatile("fxrstor64 %0" :: "m"(*(uint8_t (*)[FXSAVE_BYTES])v->fpu_area));
    }
    if (has_tsc_aux)
        wrmsr(MSR_TSC_AUX, v->tsc_aux);
    v->fpu_live = true;
}

void fpu_spill(struct vcpu *v)
{
    if (!v->fpu_live)
        return;
    uint64_t flags = irq_save();
    if (host_xcr0) {
        v->guest_xcr0 = fpu_guest_xcr0(v);
        use_xcr0(host_xcr0);
        asm volatile("xsave64 %0" : "+m"(*(uint8_t (*)[])v->fpu_area)
                     : "a"((uint32_t)host_xcr0), "d"((uint32_t)(host_xcr0 >> 32)) : "memory");
    } else {
        asm volatile("fxsave64 %0" : "=m"(*(uint8_t (*)[FXSAVE_BYTES])v->fpu_area));
    }
    v->fpu_live = false;
    irq_restore(flags);
}

uint64_t fpu_guest_xcr0(struct vcpu *v)
{
    return v->fpu_live && host_xcr0 ? (xgetbv(0) & host_xcr0) | XCR0_X87 : v->guest_xcr0;
}

/* APM 4, XSETBV; SDM 1, 13.3. */
enum xsetbv_result fpu_xsetbv(struct vcpu *v, uint32_t index, uint64_t value)
{
    if (index || !host_xcr0 || !(value & XCR0_X87) || (value & ~host_xcr0) || ((value & XCR0_AVX) && !(value & XCR0_SSE)))
        return XSETBV_GP;
    uint64_t flags = irq_save();
    v->guest_xcr0 = value;
    if (v->fpu_live)
        use_xcr0(value);
    irq_restore(flags);
    return XSETBV_OK;
}
