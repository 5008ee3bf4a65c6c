/*
 * Writes to control and debug registers and EFER, with the checks that the CPU would make: once a write is intercepted nobody else
 * makes them, and an entry with an impossible combination is refused (APM 2, 15.5.1; SDM 3, 26.3.1).
 *
 * What may be set follows from CPUID: a CR4 bit whose feature is hidden is reserved, as on a CPU without it.
 */
#include "vm/vm_internal.h"

#include "x86/cpu.h"
#include "x86/idt.h"

#define CR0_LEGAL (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)
#define DR6_FIXED1 0xffff0ff0u
#define DR6_WRITABLE 0xe00fu
#define DR6_BD BIT64(13)
#define DR7_FIXED1 BIT64(10)
#define DR7_FIXED0 0xd800u /* bits 11 (RTM), 12, 14, 15 */
#define DR7_GD BIT64(13)

static uint64_t cr4_legal(const struct vm *vm)
{
    static const struct { enum cpuid_feature f; uint64_t bits; } by_feature[] = {
        {CPUID_VME, CR4_VME | CR4_PVI}, {CPUID_TSC, CR4_TSD}, {CPUID_DE, CR4_DE}, {CPUID_PSE, CR4_PSE}, {CPUID_PAE, CR4_PAE},
        {CPUID_MCE, CR4_MCE}, {CPUID_PGE, CR4_PGE}, {CPUID_FXSR, CR4_OSFXSR}, {CPUID_SSE, CR4_OSXMMEXCPT}, {CPUID_UMIP, CR4_UMIP},
        {CPUID_FSGSBASE, CR4_FSGSBASE}, {CPUID_PCID, CR4_PCIDE}, {CPUID_XSAVE, CR4_OSXSAVE}, {CPUID_SMEP, CR4_SMEP},
        {CPUID_SMAP, CR4_SMAP},
    };
    uint64_t legal = CR4_PCE; /* RDPMC raises #GP all the same */
    for (size_t n = 0; n < ARRAY_SIZE(by_feature); n++)
        if (cpuid_vm_shows(vm, by_feature[n].f))
            legal |= by_feature[n].bits;
    return legal;
}

/* False: #GP. Long mode is entered and left with CR0.PG (APM 2, 14.6). */
static bool set_cr0(struct vcpu *v, uint64_t value)
{
    const struct hvm_ops *h = hvm();
    uint64_t old = h->get_reg(v, VCPU_CR0), cr4 = h->get_reg(v, VCPU_CR4), efer = h->get_reg(v, VCPU_EFER);
    struct vcpu_seg cs;
    if (value >> 32)
        return false;
    value = (value & CR0_LEGAL) | CR0_ET;
    if (((value & CR0_PG) && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD)))
        return false;
    if (~old & value & CR0_PG) {
        h->get_seg(v, SEG_CS, &cs);
        bool cs_long = cs.attr >> 9 & 1;
        if ((efer & EFER_LME) && (!(cr4 & CR4_PAE) || cs_long))
            return false;
        if (efer & EFER_LME)
            h->set_reg(v, VCPU_EFER, efer | EFER_LMA);
    } else if (old & ~value & CR0_PG) {
        if ((cr4 & CR4_PCIDE) || vcpu_in_long_mode(v))
            return false;
        h->set_reg(v, VCPU_EFER, efer & ~EFER_LMA);
    }
    h->set_reg(v, VCPU_CR0, value);
    return true;
}

static bool set_cr4(struct vcpu *v, uint64_t value)
{
    const struct hvm_ops *h = hvm();
    uint64_t old = h->get_reg(v, VCPU_CR4), efer = h->get_reg(v, VCPU_EFER);
    if (value & ~cr4_legal(v->vm))
        return false;
    if ((efer & EFER_LMA) && !(value & CR4_PAE))
        return false;
    if ((~old & value & CR4_PCIDE) && (!(efer & EFER_LMA) || (h->get_reg(v, VCPU_CR3) & 0xfff)))
        return false;
    h->set_reg(v, VCPU_CR4, value);
    return true;
}

static bool set_cr3(struct vcpu *v, uint64_t value)
{
    if (hvm()->get_reg(v, VCPU_EFER) & EFER_LMA) {
        bool pcid = hvm()->get_reg(v, VCPU_CR4) & CR4_PCIDE;
        value &= pcid ? ~BIT64(63) : ~UINT64_C(0);
        if (value >> MIN(cpu_info()->phys_bits, 48u))
            return false;
    }
    hvm()->set_reg(v, VCPU_CR3, value);
    return true;
}

bool cr_set_efer(struct vcpu *v, uint64_t value)
{
    uint64_t old = hvm()->get_reg(v, VCPU_EFER), legal = EFER_LMA;
    if (cpuid_vm_shows(v->vm, CPUID_SYSCALL))
        legal |= EFER_SCE;
    if (cpuid_vm_shows(v->vm, CPUID_LM))
        legal |= EFER_LME;
    if (cpuid_vm_shows(v->vm, CPUID_NX))
        legal |= EFER_NXE;
    if (cpuid_vm_shows(v->vm, CPUID_FXSR_OPT))
        legal |= EFER_FFXSR;
    if (value & ~legal)
        return false;
    if (((old ^ value) & EFER_LME) && (hvm()->get_reg(v, VCPU_CR0) & CR0_PG))
        return false;
    hvm()->set_reg(v, VCPU_EFER, (value & ~EFER_LMA) | (old & EFER_LMA));
    return true;
}

/* CR8: bits 3..0 are the task priority's class. */
static bool set_cr8(struct vcpu *v, uint64_t value)
{
    if (value >> 4)
        return false;
    hvm()->set_cr8(v, (uint8_t)value);
    v->cr8_seen = (uint8_t)value;
    vm_platform()->irq.tpr_changed(v, (uint8_t)value);
    return true;
}

static bool write_cr(struct vcpu *v, unsigned cr, uint64_t value)
{
    switch (cr) {
    case 0: return set_cr0(v, value);
    case 2: hvm()->set_reg(v, VCPU_CR2, value); return true;
    case 3: return set_cr3(v, value);
    case 4: return set_cr4(v, value);
    default: return set_cr8(v, value);
    }
}

static uint64_t read_cr(struct vcpu *v, unsigned cr)
{
    switch (cr) {
    case 0: return hvm()->get_reg(v, VCPU_CR0);
    case 2: return hvm()->get_reg(v, VCPU_CR2);
    case 3: return hvm()->get_reg(v, VCPU_CR3);
    case 4: return hvm()->get_reg(v, VCPU_CR4);
    default: return vm_platform()->irq.get_cr8(v);
    }
}

/* What the instruction wants: from the back end if the CPU said, else from its bytes. */
static bool decode(struct vcpu *v, struct emulate_cr *cr)
{
    struct emulate_outcome out;
    if (v->exit.u.cr.gpr != 0xff && v->exit.insn_len && v->exit.u.cr.op <= VM_CR_MOV_FROM) {
        bool to = v->exit.u.cr.op == VM_CR_MOV_TO, debug = v->exit.kind == VM_EXIT_DR_ACCESS;
        *cr = (struct emulate_cr){.kind = debug ? to ? EMULATE_MOV_TO_DR : EMULATE_MOV_FROM_DR : to ? EMULATE_MOV_TO_CR : EMULATE_MOV_FROM_CR,
                                  .reg = v->exit.u.cr.cr, .gpr = v->exit.u.cr.gpr, .len = v->exit.insn_len};
        uint64_t value = v->gpr[cr->gpr];
        cr->value = vcpu_in_long_mode(v) ? value : (uint32_t)value;
        return true;
    }
    enum emulate_result r = emulate_vcpu_cr(v, cr, &out);
    if (r == EMULATE_DONE)
        return true;
    if (r != EMULATE_UNSUPPORTED) /* that: another CPU has changed the instruction since; it is simply run again */
        vcpu_emulate_outcome(v, r, &out, "control register access");
    return false;
}

static void finish(struct vcpu *v, const struct emulate_cr *cr, uint64_t value)
{
    struct emulate_outcome out;
    enum emulate_result r = emulate_vcpu_cr_finish(v, cr, value, &out);
    if (r != EMULATE_DONE)
        vcpu_emulate_outcome(v, r, &out, "control register access");
}

void cr_handle_cr(struct vcpu *v)
{
    struct emulate_cr cr;
    uint64_t cr0 = hvm()->get_reg(v, VCPU_CR0), value = 0;
    bool ok = true;
    if (!decode(v, &cr))
        return;
    switch (cr.kind) {
    case EMULATE_MOV_TO_CR: ok = write_cr(v, cr.reg, cr.value); break;
    case EMULATE_MOV_FROM_CR: value = read_cr(v, cr.reg); break;
    case EMULATE_CLTS: ok = set_cr0(v, cr0 & ~CR0_TS); break;
    case EMULATE_LMSW: ok = set_cr0(v, (cr0 & ~UINT64_C(0xe)) | (cr.value & 0xf)); break; /* it can set PE but not clear it */
    case EMULATE_SMSW: value = cr0; break;
    default: return;
    }
    if (ok)
        finish(v, &cr, value);
    else
        vcpu_inject_gp(v);
}

static uint64_t read_dr(struct vcpu *v, unsigned dr)
{
    return dr < 4 ? v->dr[dr] : hvm()->get_reg(v, dr == 6 ? VCPU_DR6 : VCPU_DR7);
}

static bool write_dr(struct vcpu *v, unsigned dr, uint64_t value)
{
    if (dr < 4) {
        v->dr[dr] = value;
        v->dr_changed = true;
        return true;
    }
    if (value >> 32)
        return false;
    if (dr == 6)
        hvm()->set_reg(v, VCPU_DR6, (value & DR6_WRITABLE) | DR6_FIXED1);
    else
        hvm()->set_reg(v, VCPU_DR7, (value & ~(uint64_t)DR7_FIXED0) | DR7_FIXED1);
    v->dr_changed = true;
    return true;
}

void cr_handle_dr(struct vcpu *v)
{
    struct emulate_cr cr;
    uint64_t dr7 = hvm()->get_reg(v, VCPU_DR7);
    if (!decode(v, &cr) || (cr.kind != EMULATE_MOV_TO_DR && cr.kind != EMULATE_MOV_FROM_DR))
        return;
    unsigned dr = cr.reg & 7;
    if (dr == 4 || dr == 5) { /* other names of 6 and 7, unless debugging extensions are on */
        if (hvm()->get_reg(v, VCPU_CR4) & CR4_DE) {
            vcpu_inject_ud(v);
            return;
        }
        dr += 2;
    }
    if (dr7 & DR7_GD) {
        hvm()->set_reg(v, VCPU_DR7, dr7 & ~DR7_GD);
        hvm()->set_reg(v, VCPU_DR6, hvm()->get_reg(v, VCPU_DR6) | DR6_BD);
        vcpu_inject_exception(v, X86_DB, false, 0);
        return;
    }
    if (cr.kind == EMULATE_MOV_TO_DR && !write_dr(v, dr, cr.value))
        vcpu_inject_gp(v);
    else
        finish(v, &cr, read_dr(v, dr));
}
