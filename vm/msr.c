/*
 * Model-specific registers, as a table of ranges with a handler each. What is not in the table raises #GP, as on a CPU that
 * has not got it: a guest that probes learns the truth, and one that does not asked for something that CPUID hides.
 *
 * Registers that the CPU switches itself (SYSCALL, SYSENTER, segment bases) normally never get here; they are in the table
 * for a back end that has to intercept them.
 */
#include "vm/vm_internal.h"

#include "core/log.h"
#include "lib/string.h"
#include "mm/mm.h"
#include "x86/cpu.h"

#define MTRR_VARIABLE VCPU_MTRR_VARIABLE

enum msr_result { MSR_DONE, MSR_GP, MSR_AGAIN /* has waited for memory */ };

struct msr_range {
    uint32_t first, last;
    enum msr_result (*read)(struct vcpu *v, uint32_t msr, uint64_t *value);
    enum msr_result (*write)(struct vcpu *v, uint32_t msr, uint64_t value);
};

static bool canonical(uint64_t a) { return (uint64_t)((int64_t)(a << 16) >> 16) == a; }

/* ---- registers behind the back end ------------------------------------------------------------------------------------- */

static enum vcpu_reg reg_of(uint32_t msr)
{
    switch (msr) {
    case MSR_STAR: return VCPU_STAR;
    case MSR_LSTAR: return VCPU_LSTAR;
    case MSR_CSTAR: return VCPU_CSTAR;
    case MSR_SFMASK: return VCPU_SFMASK;
    case MSR_FS_BASE: return VCPU_FS_BASE;
    case MSR_GS_BASE: return VCPU_GS_BASE;
    case MSR_KERNEL_GS_BASE: return VCPU_KERNEL_GS_BASE;
    case MSR_SYSENTER_CS: return VCPU_SYSENTER_CS;
    case MSR_SYSENTER_ESP: return VCPU_SYSENTER_ESP;
    case MSR_SYSENTER_EIP: return VCPU_SYSENTER_EIP;
    case MSR_PAT: return VCPU_PAT;
    default: return VCPU_EFER;
    }
}

static enum msr_result read_reg(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    *value = hvm()->get_reg(v, reg_of(msr));
    return MSR_DONE;
}

static enum msr_result write_plain(struct vcpu *v, uint32_t msr, uint64_t value)
{
    hvm()->set_reg(v, reg_of(msr), value);
    return MSR_DONE;
}

static enum msr_result write_address(struct vcpu *v, uint32_t msr, uint64_t value)
{
    return canonical(value) ? write_plain(v, msr, value) : MSR_GP;
}

static enum msr_result write_efer(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)msr;
    return cr_set_efer(v, value) ? MSR_DONE : MSR_GP;
}

/* Eight types of three bits, each in a byte; 2 and 3 are reserved (APM 2, 7.8.2). */
static enum msr_result write_pat(struct vcpu *v, uint32_t msr, uint64_t value)
{
    for (unsigned n = 0; n < 8; n++) {
        unsigned type = value >> 8 * n & 0xff;
        if (type > 7 || type == 2 || type == 3)
            return MSR_GP;
    }
    return write_plain(v, msr, value);
}

/* ---- time ------------------------------------------------------------------------------------------------------------------ */

static enum msr_result read_tsc(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    (void)msr;
    *value = vcpu_guest_tsc(v);
    return MSR_DONE;
}

static enum msr_result write_tsc(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)msr;
    vcpu_set_tsc_offset(v, v->tsc_offset + value - vcpu_guest_tsc(v));
    vm_platform()->tsc_changed(v);
    return pv_refresh(v) == PV_MSR_AGAIN ? MSR_AGAIN : MSR_DONE;
}

static enum msr_result read_tsc_aux(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    (void)msr;
    *value = v->tsc_aux;
    return MSR_DONE;
}

static enum msr_result write_tsc_aux(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)msr;
    if (value >> 32)
        return MSR_GP;
    fpu_spill(v); /* it is loaded with the vector registers */
    v->tsc_aux = value;
    return MSR_DONE;
}

/* ---- MTRRs: kept, and without effect: guest memory is write-back ---------------------------------------------------------- */

static enum msr_result read_mtrrcap(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    (void)v, (void)msr;
    *value = MTRR_VARIABLE | MTRRCAP_FIX | MTRRCAP_WC;
    return MSR_DONE;
}

static unsigned fixed_index(uint32_t msr)
{
    return msr == MSR_MTRR_FIX64K_00000 ? 0 : msr <= MSR_MTRR_FIX16K_A0000 ? 1 + msr - MSR_MTRR_FIX16K_80000 : 3 + msr - MSR_MTRR_FIX4K_C0000;
}

static uint64_t *mtrr_slot(struct vcpu *v, uint32_t msr)
{
    if (msr == MSR_MTRR_DEF_TYPE)
        return &v->msrs->mtrr_def_type;
    return msr < MSR_MTRR_FIX64K_00000 ? &v->msrs->mtrr_var[msr - MSR_MTRR_PHYSBASE(0)] : &v->msrs->mtrr_fix[fixed_index(msr)];
}

static enum msr_result read_mtrr(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    *value = *mtrr_slot(v, msr);
    return MSR_DONE;
}

static bool memory_type_valid(unsigned type) { return type <= MEM_TYPE_WB && type != 2 && type != 3; }

static enum msr_result write_mtrr(struct vcpu *v, uint32_t msr, uint64_t value)
{
    bool ok = true;
    if (msr == MSR_MTRR_DEF_TYPE) {
        ok = !(value & ~(UINT64_C(0xff) | MTRR_DEF_TYPE_E | MTRR_DEF_TYPE_FE)) && memory_type_valid(value & 0xff);
    } else if (msr >= MSR_MTRR_FIX64K_00000) {
        for (unsigned n = 0; n < 8; n++)
            ok &= memory_type_valid(value >> 8 * n & 0xff);
    } else {
        uint64_t high = ~((UINT64_C(1) << MIN(cpu_info()->phys_bits, 48u)) - 1);
        bool mask = msr & 1;
        ok = !(value & high) && (mask ? !(value & 0x7ff) : !(value & 0xf00) && memory_type_valid(value & 0xff));
    }
    if (!ok)
        return MSR_GP;
    *mtrr_slot(v, msr) = value;
    return MSR_DONE;
}

/* ---- constants ------------------------------------------------------------------------------------------------------------- */

static enum msr_result read_zero(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    (void)v, (void)msr;
    *value = 0;
    return MSR_DONE;
}

static enum msr_result read_hwcr(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    (void)v, (void)msr;
    *value = BIT64(24); /* TscFreqSel: the TSC counts at a constant rate */
    return MSR_DONE;
}

static enum msr_result read_de_cfg(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    (void)v, (void)msr;
    *value = DE_CFG_LFENCE_SERIALIZE; /* x86/cpu.c has set it where it exists */
    return MSR_DONE;
}

static enum msr_result read_misc_enable(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    (void)v, (void)msr;
    *value = MISC_ENABLE_FAST_STRING | BIT64(11) | BIT64(12); /* no branch tracing, no PEBS */
    return MSR_DONE;
}

static enum msr_result read_vm_cr(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    (void)v, (void)msr;
    *value = VM_CR_SVMDIS | VM_CR_LOCK;
    return MSR_DONE;
}

static enum msr_result write_zero(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)v, (void)msr;
    return value ? MSR_GP : MSR_DONE;
}

static enum msr_result write_ignored(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)v, (void)msr, (void)value;
    return MSR_DONE;
}

static const struct msr_range table[] = { /* ascending */
    {MSR_TSC, MSR_TSC, read_tsc, write_tsc},
    {MSR_PLATFORM_ID, MSR_PLATFORM_ID, read_zero, NULL},
    {MSR_BIOS_UPDT_TRIG, MSR_BIOS_UPDT_TRIG, NULL, write_ignored},
    {MSR_BIOS_SIGN_ID, MSR_BIOS_SIGN_ID, read_zero, write_ignored},
    {MSR_MTRRCAP, MSR_MTRRCAP, read_mtrrcap, NULL},
    {MSR_SYSENTER_CS, MSR_SYSENTER_CS, read_reg, write_plain},
    {MSR_SYSENTER_ESP, MSR_SYSENTER_EIP, read_reg, write_address},
    {MSR_MCG_CAP, MSR_MCG_CAP, read_zero, NULL},    /* no banks, hence no checks. Hidden as they are, systems read this one without asking: */
    {MSR_MCG_STATUS, MSR_MCG_STATUS, read_zero, write_zero}, /* every 64-bit CPU has it */
    {MSR_MISC_ENABLE, MSR_MISC_ENABLE, read_misc_enable, write_ignored},
    {MSR_DEBUGCTL, MSR_DEBUGCTL, read_zero, write_ignored}, /* no branch records; single-stepping by branch is not offered */
    {MSR_MTRR_PHYSBASE(0), MSR_MTRR_PHYSMASK(MTRR_VARIABLE - 1), read_mtrr, write_mtrr},
    {MSR_MTRR_FIX64K_00000, MSR_MTRR_FIX64K_00000, read_mtrr, write_mtrr},
    {MSR_MTRR_FIX16K_80000, MSR_MTRR_FIX16K_A0000, read_mtrr, write_mtrr},
    {MSR_MTRR_FIX4K_C0000, MSR_MTRR_FIX4K_F8000, read_mtrr, write_mtrr},
    {MSR_PAT, MSR_PAT, read_reg, write_pat},
    {MSR_MTRR_DEF_TYPE, MSR_MTRR_DEF_TYPE, read_mtrr, write_mtrr},
    {MSR_EFER, MSR_EFER, read_reg, write_efer},
    {MSR_STAR, MSR_STAR, read_reg, write_plain},
    {MSR_LSTAR, MSR_CSTAR, read_reg, write_address},
    {MSR_SFMASK, MSR_SFMASK, read_reg, write_plain},
    {MSR_FS_BASE, MSR_KERNEL_GS_BASE, read_reg, write_address},
    {MSR_TSC_AUX, MSR_TSC_AUX, read_tsc_aux, write_tsc_aux},
    {MSR_SYSCFG, MSR_SYSCFG, read_zero, write_ignored},
    {MSR_HWCR, MSR_HWCR, read_hwcr, write_ignored},
    {MSR_NB_CFG, MSR_NB_CFG, read_zero, write_ignored},
    {MSR_PATCH_LOADER, MSR_PATCH_LOADER, NULL, write_ignored},
    {MSR_VM_CR, MSR_VM_CR, read_vm_cr, NULL},
    {MSR_LS_CFG, MSR_IC_CFG, read_zero, write_ignored},
    {MSR_DE_CFG, MSR_DE_CFG, read_de_cfg, write_ignored},
};

/* The table's AMD and Intel parts exist on that vendor's CPUs only, TSC_AUX with RDTSCP. */
static bool exists(const struct vcpu *v, uint32_t msr)
{
    if (msr >= 0xc0010000u)
        return cpu_info()->vendor == CPU_VENDOR_AMD;
    if (msr == MSR_PLATFORM_ID || msr == MSR_MISC_ENABLE || msr == MSR_BIOS_UPDT_TRIG)
        return cpu_info()->vendor == CPU_VENDOR_INTEL;
    if (msr == MSR_TSC_AUX)
        return cpuid_vm_shows(v->vm, CPUID_RDTSCP) || cpuid_vm_shows(v->vm, CPUID_RDPID);
    return true;
}

static const struct msr_range *find(const struct vcpu *v, uint32_t msr)
{
    size_t low = 0, high = ARRAY_SIZE(table);
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (msr < table[mid].first)
            high = mid;
        else if (msr > table[mid].last)
            low = mid + 1;
        else
            return exists(v, msr) ? &table[mid] : NULL;
    }
    return NULL;
}

void msr_handle_read(struct vcpu *v)
{
    uint32_t msr = v->exit.u.msr.index;
    uint64_t value = 0;
    bool gp = false;
    if (!vm_platform()->rdmsr(v, msr, &value, &gp) && !pv_rdmsr(v, msr, &value)) {
        const struct msr_range *r = find(v, msr);
        gp = !r || !r->read || r->read(v, msr, &value) == MSR_GP;
    }
    if (gp) {
        log_debug("vm: %s.vcpu%u: rdmsr %#x: #GP", v->vm->name, v->id, msr);
        vcpu_inject_gp(v);
    } else if (vcpu_skip(v)) {
        v->gpr[GPR_RAX] = (uint32_t)value;
        v->gpr[GPR_RDX] = value >> 32;
    }
}

static enum msr_result write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    bool gp = false;
    if (vm_platform()->wrmsr(v, msr, value, &gp))
        return gp ? MSR_GP : MSR_DONE;
    switch (pv_wrmsr(v, msr, value)) {
    case PV_MSR_DONE: return MSR_DONE;
    case PV_MSR_GP: return MSR_GP;
    case PV_MSR_AGAIN: return MSR_AGAIN;
    case PV_MSR_NOT_MINE: break;
    }
    const struct msr_range *r = find(v, msr);
    return r && r->write ? r->write(v, msr, value) : MSR_GP;
}

/* The length is found before the write: should its bytes be out of reach, the instruction comes again and nothing has happened. */
void msr_handle_write(struct vcpu *v)
{
    uint32_t msr = v->exit.u.msr.index;
    uint64_t value = v->exit.u.msr.value;
    unsigned len = vcpu_insn_len(v);
    if (!len)
        return;
    switch (write(v, msr, value)) {
    case MSR_DONE: vcpu_advance_rip(v, len); return;
    case MSR_AGAIN: return;
    case MSR_GP:
        log_debug("vm: %s.vcpu%u: wrmsr %#x = %#lx: #GP", v->vm->name, v->id, msr, value);
        vcpu_inject_gp(v);
    }
}

bool msr_vcpu_init(struct vcpu *v)
{
    v->msrs = kzalloc(sizeof(*v->msrs));
    return v->msrs;
}

void msr_vcpu_fini(struct vcpu *v)
{
    kfree(v->msrs);
    v->msrs = NULL;
}

/* As firmware leaves them: everything write-back by default. */
void msr_vcpu_reset(struct vcpu *v)
{
    memset(v->msrs, 0, sizeof(*v->msrs));
    v->msrs->mtrr_def_type = MTRR_DEF_TYPE_E | MEM_TYPE_WB;
    v->tsc_aux = 0;
}
