/*
 * Registers between the VMCB and the guest's view of them, and the MSR permission map.
 *
 * Three registers differ from what the guest sees. EFER has SVME, which VMRUN demands. CR0 has no CD and NW: memory is always
 * write-back (a guest that turns caches off would only slow the machine), so reads of CR0 are intercepted while the views differ.
 * DR7 and DR6 are the VMCB's, DR0..3 nobody's: svm/ops.c loads them only while DR7 arms one.
 *
 * The MSRs that VMLOAD and VMSAVE carry are the guest's own and not intercepted. All others exit, PAT too: G_PAT would
 * serve, but software CPUs let the write through to the machine's register.
 */
#include "svm/svm.h"

#include "lib/string.h"
#include "x86/cpu.h"

static struct vmcb_seg *seg_of(struct vmcb *b, enum vcpu_seg_id s)
{
    struct vmcb_seg *const map[SEG_COUNT] = {
        [SEG_ES] = &b->s.es, [SEG_CS] = &b->s.cs, [SEG_SS] = &b->s.ss, [SEG_DS] = &b->s.ds,
        [SEG_FS] = &b->s.fs, [SEG_GS] = &b->s.gs, [SEG_LDTR] = &b->s.ldtr, [SEG_TR] = &b->s.tr,
    };
    return map[s];
}

void svm_get_seg(struct vcpu *v, enum vcpu_seg_id s, struct vcpu_seg *out)
{
    const struct vmcb_seg *g = seg_of(vmcb_of(v), s);
    *out = (struct vcpu_seg){.selector = g->selector, .attr = g->attr & 0xfff, .limit = g->limit, .base = g->base};
    if (!(g->attr & 0x80)) /* not present is how SVM says unusable; 64-bit SS may be null and still has its DPL */
        out->attr |= BIT64(15);
}

static void set_seg(struct vmcb *b, enum vcpu_seg_id s, const struct vcpu_seg *in)
{
    uint16_t attr = in->attr & BIT64(15) ? in->attr & 0x60 : in->attr & 0xfff;
    *seg_of(b, s) = (struct vmcb_seg){.selector = in->selector, .attr = attr, .limit = in->limit, .base = in->base};
}

/* APM 2, 15.5.1: the CPL is SS's DPL; real mode is CPL 0 and virtual-8086 mode CPL 3 whatever SS says. */
unsigned svm_cpl(struct vcpu *v)
{
    const struct vmcb *b = vmcb_of(v);
    if (!(b->s.cr0 & CR0_PE))
        return 0;
    return v->rflags & RFLAGS_VM ? 3 : b->s.ss.attr >> 5 & 3;
}

static void set_cr0(struct vcpu *v, uint64_t value)
{
    struct svm_vcpu *s = svm_of(v);
    s->cr0 = value | CR0_ET;
    s->vmcb->s.cr0 = s->cr0 & ~(CR0_CD | CR0_NW);
    s->vmcb->c.cr_read = s->vmcb->s.cr0 != s->cr0 ? BIT64(0) : 0;
    svm_dirty(s, SVM_CLEAN_CR | SVM_CLEAN_INTERCEPTS);
}

/* The same register for get and set: where it lives, and which clean bit covers it. */
static uint64_t *plain_reg(struct vmcb *b, enum vcpu_reg r, uint64_t *group)
{
    *group = 0; /* VMLOAD's registers are not cached under clean bits */
    switch (r) {
    case VCPU_CR2: *group = SVM_CLEAN_CR2; return &b->s.cr2;
    case VCPU_CR3: *group = SVM_CLEAN_CR; return &b->s.cr3;
    case VCPU_CR4: *group = SVM_CLEAN_CR; return &b->s.cr4;
    case VCPU_DR6: *group = SVM_CLEAN_DR; return &b->s.dr6;
    case VCPU_DR7: *group = SVM_CLEAN_DR; return &b->s.dr7;
    case VCPU_PAT: *group = SVM_CLEAN_NP; return &b->s.g_pat;
    case VCPU_STAR: return &b->s.star;
    case VCPU_LSTAR: return &b->s.lstar;
    case VCPU_CSTAR: return &b->s.cstar;
    case VCPU_SFMASK: return &b->s.sfmask;
    case VCPU_KERNEL_GS_BASE: return &b->s.kernel_gs_base;
    case VCPU_FS_BASE: return &b->s.fs.base;
    case VCPU_GS_BASE: return &b->s.gs.base;
    case VCPU_SYSENTER_CS: return &b->s.sysenter_cs;
    case VCPU_SYSENTER_ESP: return &b->s.sysenter_esp;
    case VCPU_SYSENTER_EIP: return &b->s.sysenter_eip;
    default: return NULL;
    }
}

uint64_t svm_get_reg(struct vcpu *v, enum vcpu_reg r)
{
    uint64_t group;
    if (r == VCPU_CR0) /* bits the guest may change without an exit: none, writes are intercepted */
        return svm_of(v)->cr0;
    if (r == VCPU_EFER)
        return vmcb_of(v)->s.efer & ~EFER_SVME;
    return *plain_reg(vmcb_of(v), r, &group);
}

/* Which changes of a register make the CPU forget translations: it did not execute the instruction, so the ASID is left behind. */
static uint64_t flushing_bits(enum vcpu_reg r)
{
    switch (r) {
    case VCPU_CR0: return CR0_PG | CR0_WP | CR0_PE;
    case VCPU_CR4: return CR4_PGE | CR4_PSE | CR4_PAE | CR4_PCIDE | CR4_SMEP | CR4_SMAP;
    case VCPU_EFER: return EFER_LMA | EFER_LME | EFER_NXE;
    case VCPU_CR3: case VCPU_PAT: return ~UINT64_C(0);
    default: return 0;
    }
}

void svm_set_reg(struct vcpu *v, enum vcpu_reg r, uint64_t value)
{
    struct svm_vcpu *s = svm_of(v);
    uint64_t group = SVM_CLEAN_CR, flushing = flushing_bits(r);
    if (flushing && ((svm_get_reg(v, r) ^ value) & flushing || r == VCPU_CR3))
        s->asid_generation = 0;
    if (r == VCPU_CR0)
        set_cr0(v, value);
    else if (r == VCPU_EFER)
        s->vmcb->s.efer = value | EFER_SVME;
    else
        *plain_reg(s->vmcb, r, &group) = value;
    svm_dirty(s, group);
}

void svm_get_sregs(struct vcpu *v, struct vcpu_sregs *o)
{
    struct vmcb *b = vmcb_of(v);
    for (unsigned n = 0; n < SEG_COUNT; n++)
        svm_get_seg(v, n, &o->seg[n]);
    o->gdtr.base = b->s.gdtr.base;
    o->gdtr.limit = b->s.gdtr.limit;
    o->idtr.base = b->s.idtr.base;
    o->idtr.limit = b->s.idtr.limit;
    o->cr0 = svm_get_reg(v, VCPU_CR0);
    o->cr2 = b->s.cr2;
    o->cr3 = b->s.cr3;
    o->cr4 = b->s.cr4;
    o->cr8 = svm_get_cr8(v);
    o->efer = svm_get_reg(v, VCPU_EFER);
    o->dr6 = b->s.dr6;
    o->dr7 = b->s.dr7;
    o->pat = b->s.g_pat;
    o->star = b->s.star;
    o->lstar = b->s.lstar;
    o->cstar = b->s.cstar;
    o->sfmask = b->s.sfmask;
    o->kernel_gs_base = b->s.kernel_gs_base;
    o->sysenter_cs = b->s.sysenter_cs;
    o->sysenter_esp = b->s.sysenter_esp;
    o->sysenter_eip = b->s.sysenter_eip;
}

void svm_set_sregs(struct vcpu *v, const struct vcpu_sregs *in)
{
    struct vmcb *b = vmcb_of(v);
    for (unsigned n = 0; n < SEG_COUNT; n++)
        set_seg(b, n, &in->seg[n]);
    b->s.gdtr = (struct vmcb_seg){.base = in->gdtr.base, .limit = in->gdtr.limit};
    b->s.idtr = (struct vmcb_seg){.base = in->idtr.base, .limit = in->idtr.limit};
    set_cr0(v, in->cr0);
    b->s.cr2 = in->cr2;
    b->s.cr3 = in->cr3;
    b->s.cr4 = in->cr4;
    b->s.efer = in->efer | EFER_SVME;
    b->s.dr6 = in->dr6;
    b->s.dr7 = in->dr7;
    b->s.g_pat = in->pat;
    b->s.star = in->star;
    b->s.lstar = in->lstar;
    b->s.cstar = in->cstar;
    b->s.sfmask = in->sfmask;
    b->s.kernel_gs_base = in->kernel_gs_base;
    b->s.sysenter_cs = in->sysenter_cs;
    b->s.sysenter_esp = in->sysenter_esp;
    b->s.sysenter_eip = in->sysenter_eip;
    b->s.cpl = in->cr0 & CR0_PE ? in->seg[SEG_SS].attr >> 5 & 3 : 0;
    svm_set_cr8(v, (uint8_t)in->cr8);
    svm_of(v)->clean = 0;
    svm_of(v)->asid_generation = 0; /* INIT, a start or another life: what the CPU remembers is of other tables */
}

void svm_set_tsc_offset(struct vcpu *v, uint64_t offset)
{
    vmcb_of(v)->c.tsc_offset = offset;
    svm_dirty(svm_of(v), SVM_CLEAN_INTERCEPTS);
}

void svm_set_cr8(struct vcpu *v, uint8_t tpr_class)
{
    vmcb_of(v)->c.v_tpr = tpr_class & 0xf;
    svm_dirty(svm_of(v), SVM_CLEAN_TPR);
}

uint8_t svm_get_cr8(struct vcpu *v) { return vmcb_of(v)->c.v_tpr & 0xf; }

/* APM 2, 15.11: two bits for each MSR (read, write) in three ranges of 8192. */
static void allow(uint8_t *map, uint32_t msr)
{
    uint32_t bit = msr < 0x2000 ? msr * 2 : 0x800 * 8 + (msr - 0xc0000000u) * 2;
    map[bit / 8] &= (uint8_t)~(3u << bit % 8);
}

void svm_msrpm_fill(uint8_t *map)
{
    static const uint32_t own[] = {MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP, MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_SFMASK,
                                   MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE};
    memset(map, 0xff, SVM_MSRPM_BYTES);
    for (size_t n = 0; n < ARRAY_SIZE(own); n++)
        allow(map, own[n]);
}
