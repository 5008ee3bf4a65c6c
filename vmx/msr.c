/*
 * Registers between the VMCS, the CPU and the guest's view of them, and the MSR bitmap.
 *
 * CR0 and CR4 exist twice. The VMCS has what runs: NE and VMXE as VMX operation demands, caches never off. For the bits in
 * CR0_MASK and CR4_MASK the guest reads the shadow, which is what it wrote; a write that would change one of them exits. TS, PGE and
 * the like, which mean nothing to us, it owns.
 * DR6 and CR2 are in no VMCS. DR6 is ours altogether, as each access exits and #DB does too; CR2 is exchanged by ops.c.
 * SYSCALL's MSRs and KERNEL_GS_BASE are in no VMCS either. We use none, so a vCPU's stay in the registers until another
 * vCPU comes to the same CPU or this one leaves it: no MSR is written while one vCPU has a CPU to itself.
 *
 * What a VM entry would refuse (SDM 3, 27.3.1) is put straight here, where the value comes in, as far as a single register goes: other
 * CPUs are less strict, and a refused entry explains little.
 */
#include "vmx/vmx.h"

#include "include/hv/dmm.h"
#include "include/hw/paging.h"
#include "lib/string.h"
#include "x86/percpu.h"

#define ATTR_ACCESSED 0x01
#define ATTR_LDT 0x02
#define ATTR_BUSY 0x03       /* a TSS of 16 bits */
#define ATTR_TYPE_32 0x08
#define ATTR_S 0x10
#define ATTR_TYPE_S 0x1f
#define ATTR_DPL 0x60
#define ATTR_P 0x80
#define ATTR_G 0x800
#define ATTR_UNUSABLE BIT64(15)
#define ATTR_TSS_BUSY 0x8b

static const uint32_t lazy_msrs[VMX_LAZY_COUNT] = {
    [VMX_LAZY_STAR] = MSR_STAR, [VMX_LAZY_LSTAR] = MSR_LSTAR, [VMX_LAZY_CSTAR] = MSR_CSTAR, [VMX_LAZY_SFMASK] = MSR_SFMASK,
    [VMX_LAZY_KERNEL_GS_BASE] = MSR_KERNEL_GS_BASE,
};

static uint64_t canonical(uint64_t va) { return (uint64_t)((int64_t)(va << 16) >> 16); }

/* ---- segments ----------------------------------------------------------------------------------------------------------- */

/* The VMCS lists segments in the order of enum vcpu_seg_id, two numbers apart. */
#define SEG_FIELD(what, s) ((enum vmcs_field)(VMCS_GUEST_ES_##what + 2 * (s)))
_Static_assert(VMCS_GUEST_ES_BASE + 2 * SEG_TR == VMCS_GUEST_TR_BASE && VMCS_GUEST_ES_RIGHTS + 2 * SEG_SS == VMCS_GUEST_SS_RIGHTS &&
               VMCS_GUEST_ES_LIMIT + 2 * SEG_LDTR == VMCS_GUEST_LDTR_LIMIT, "SDM 3, appendix B");

/* Rights: bits 7..0 as ours, 15..12 our 11..8, 16 unusable. */
static uint16_t attr_of_rights(uint64_t r)
{
    return (uint16_t)((r & 0xff) | (r >> 4 & 0xf00) | (r & VMX_RIGHTS_UNUSABLE ? ATTR_UNUSABLE : 0));
}

static uint32_t rights_of_attr(uint32_t attr)
{
    if ((attr & ATTR_UNUSABLE) || !(attr & ATTR_P))
        return VMX_RIGHTS_UNUSABLE | (attr & ATTR_DPL); /* SS keeps the CPL */
    return (attr & 0xff) | (attr & 0xf00) << 4;
}

static inline void get_seg(enum vcpu_seg_id s, struct vcpu_seg *out)
{
    *out = (struct vcpu_seg){
        .selector = (uint16_t)vmread(SEG_FIELD(SELECTOR, s)), .attr = attr_of_rights(vmread(SEG_FIELD(RIGHTS, s))),
        .limit = (uint32_t)vmread(SEG_FIELD(LIMIT, s)), .base = vmread(SEG_FIELD(BASE, s)),
    };
}

void vmx_get_seg(struct vcpu *v, enum vcpu_seg_id s, struct vcpu_seg *out)
{
    vmx_current(v);
    get_seg(s, out);
}

static void set_seg(enum vcpu_seg_id s, const struct vcpu_seg *in)
{
    struct vcpu_seg g = *in;
    bool usable = (g.attr & ATTR_P) && !(g.attr & ATTR_UNUSABLE);
    if (s == SEG_TR) /* there always is one, of 16 or of 32 bits, and LTR makes it busy */
        g.attr = usable ? (g.attr & ~ATTR_TYPE_S) | ATTR_BUSY | (g.attr & ATTR_TYPE_32) : ATTR_TSS_BUSY;
    else if (s == SEG_LDTR)
        g.attr = (g.attr & ~ATTR_TYPE_S) | ATTR_LDT;
    else
        g.attr |= ATTR_S | ATTR_ACCESSED; /* as loading a segment register does */
    if (s >= SEG_LDTR)
        g.selector &= (uint16_t)~4u; /* there is no LDT to find them in */
    if (g.limit >> 20) {
        g.limit |= 0xfff;
        g.attr |= ATTR_G;
    } else if ((g.limit & 0xfff) != 0xfff) {
        g.attr &= (uint16_t)~ATTR_G;
    }
    vmwrite(SEG_FIELD(SELECTOR, s), g.selector);
    vmwrite(SEG_FIELD(RIGHTS, s), rights_of_attr(g.attr));
    vmwrite(SEG_FIELD(LIMIT, s), g.limit);
    vmwrite(SEG_FIELD(BASE, s), s <= SEG_DS ? (uint32_t)g.base : canonical(g.base));
}

/* Real mode has DPL 0 in SS, virtual-8086 mode 3: entries insist on both. */
unsigned vmx_cpl(struct vcpu *v)
{
    vmx_current(v);
    return vmread(VMCS_GUEST_SS_RIGHTS) >> 5 & 3;
}

/* ---- control registers -------------------------------------------------------------------------------------------------- */

static void paging_changed(struct vmx_vcpu *s) { s->flush_linear = s->pdptes_stale = true; }

static void set_cr0(struct vmx_vcpu *s, uint64_t value)
{
    const struct vmx_features *f = vmx_features();
    s->cr0 = value | CR0_ET;
    vmwrite(VMCS_CR0_SHADOW, s->cr0);
    vmwrite(VMCS_GUEST_CR0, ((s->cr0 & ~(CR0_CD | CR0_NW)) | f->cr0_fixed0) & f->cr0_fixed1);
    paging_changed(s);
}

static void set_cr4(struct vmx_vcpu *s, uint64_t value)
{
    const struct vmx_features *f = vmx_features();
    s->cr4 = value;
    vmwrite(VMCS_CR4_SHADOW, value);
    vmwrite(VMCS_GUEST_CR4, (value | f->cr4_fixed0) & f->cr4_fixed1);
    paging_changed(s);
}

static uint64_t get_cr0(const struct vmx_vcpu *s)
{
    return (s->cr0 & ~VMX_CR0_GUEST_OWNED) | (vmread(VMCS_GUEST_CR0) & VMX_CR0_GUEST_OWNED);
}

static uint64_t get_cr4(const struct vmx_vcpu *s)
{
    return (s->cr4 & ~VMX_CR4_GUEST_OWNED) | (vmread(VMCS_GUEST_CR4) & VMX_CR4_GUEST_OWNED);
}

/* The entry control "IA-32e mode guest" is EFER.LMA. A CPU that enters long mode makes a 16-bit TSS an error; a 64-bit one has the
 * type of a 32-bit one. */
static void set_efer(struct vmx_vcpu *s, uint64_t value)
{
    uint32_t controls = value & EFER_LMA ? s->entry_controls | VMX_ENTRY_GUEST_IA32E : s->entry_controls & ~(uint32_t)VMX_ENTRY_GUEST_IA32E;
    vmwrite(VMCS_GUEST_EFER, value);
    if (controls != s->entry_controls)
        vmwrite(VMCS_ENTRY_CONTROLS, s->entry_controls = controls);
    if (value & EFER_LMA)
        vmwrite(VMCS_GUEST_TR_RIGHTS, vmread(VMCS_GUEST_TR_RIGHTS) | (ATTR_TSS_BUSY & 0xf));
    paging_changed(s);
}

/* PAE paging takes its four top entries from the VMCS at each entry (4.4.1 and 27.3.2.4); the CPU fills them when the guest itself
 * loads CR3, we when one of the control registers was written for it. A bad entry faults when used, as it does on AMD. */
bool vmx_load_pdptes(struct vcpu *v)
{
    struct vmx_vcpu *s = vmx_of(v);
    uint64_t cr3, entry[4], bad = GENMASK64(2, 1) | GENMASK64(8, 5) | GENMASK64(63, cpu_info()->phys_bits);
    if (likely(!s->pdptes_stale))
        return true;
    if ((s->entry_controls & VMX_ENTRY_GUEST_IA32E) || !(s->cr0 & CR0_PG) || !(s->cr4 & CR4_PAE)) {
        s->pdptes_stale = false;
        return true;
    }
    cr3 = vmread(VMCS_GUEST_CR3) & GENMASK64(31, 5);
    switch (dmm_read_guest(v->space, cr3, entry, sizeof(entry))) {
    case DMM_FAULT_RETRY: break;
    case DMM_FAULT_BLOCKED: dmm_wait(v->space, gpa_to_gfn(cr3), 10000000); return false;
    case DMM_FAULT_STALLED: dmm_wait_memory(v->space, 10000000); return false;
    default: memset(entry, 0, sizeof(entry)); break; /* tables where there is no memory */
    }
    vmx_current(v); /* the read may have waited for memory */
    for (unsigned n = 0; n < 4; n++)
        vmwrite((enum vmcs_field)(VMCS_GUEST_PDPTE0 + 2 * n), (entry[n] & PTE_P) && !(entry[n] & bad) ? entry[n] : 0);
    s->pdptes_stale = false;
    return true;
}

/* ---- MSRs that stay in the registers -------------------------------------------------------------------------------------- */

void vmx_lazy_save(struct vmx_cpu *c)
{
    struct vmx_vcpu *s = c->msr_owner;
    for (unsigned n = 0; s && n < VMX_LAZY_COUNT; n++)
        s->lazy[n] = rdmsr(lazy_msrs[n]);
    c->msr_owner = NULL;
}

void vmx_lazy_load(struct vmx_vcpu *s)
{
    struct vmx_cpu *c = vmx_this_cpu();
    if (likely(c->msr_owner == s))
        return;
    vmx_lazy_save(c);
    for (unsigned n = 0; n < VMX_LAZY_COUNT; n++)
        wrmsr(lazy_msrs[n], s->lazy[n]);
    c->msr_owner = s;
}

static uint64_t get_lazy(struct vmx_vcpu *s, enum vmx_lazy_msr n)
{
    return vmx_this_cpu()->msr_owner == s ? rdmsr(lazy_msrs[n]) : s->lazy[n];
}

static void set_lazy(struct vmx_vcpu *s, enum vmx_lazy_msr n, uint64_t value)
{
    if (n != VMX_LAZY_STAR)
        value = n == VMX_LAZY_SFMASK ? (uint32_t)value : canonical(value); /* WRMSR refuses the rest */
    if (vmx_this_cpu()->msr_owner == s)
        wrmsr(lazy_msrs[n], value);
    else
        s->lazy[n] = value;
}

/* ---- by name --------------------------------------------------------------------------------------------------------------- */

/* All of this folds away where the register is known: the lists further down cost an instruction or two for each. The VMCS is current. */
#define FOLDED static inline __attribute__((always_inline))

/* Where the plain ones live; false: the register is none of them. */
FOLDED bool field_of(enum vcpu_reg r, enum vmcs_field *f)
{
    switch (r) {
    case VCPU_CR3: *f = VMCS_GUEST_CR3; return true;
    case VCPU_EFER: *f = VMCS_GUEST_EFER; return true;
    case VCPU_DR7: *f = VMCS_GUEST_DR7; return true;
    case VCPU_PAT: *f = VMCS_GUEST_PAT; return true;
    case VCPU_FS_BASE: *f = VMCS_GUEST_FS_BASE; return true;
    case VCPU_GS_BASE: *f = VMCS_GUEST_GS_BASE; return true;
    case VCPU_SYSENTER_CS: *f = VMCS_GUEST_SYSENTER_CS; return true;
    case VCPU_SYSENTER_ESP: *f = VMCS_GUEST_SYSENTER_ESP; return true;
    case VCPU_SYSENTER_EIP: *f = VMCS_GUEST_SYSENTER_EIP; return true;
    default: return false;
    }
}

FOLDED uint64_t get_reg(struct vmx_vcpu *s, enum vcpu_reg r)
{
    enum vmcs_field f;
    if (field_of(r, &f))
        return vmread(f);
    switch (r) {
    case VCPU_CR0: return get_cr0(s);
    case VCPU_CR2: return s->cr2;
    case VCPU_CR4: return get_cr4(s);
    case VCPU_DR6: return s->dr6;
    case VCPU_STAR: return get_lazy(s, VMX_LAZY_STAR);
    case VCPU_LSTAR: return get_lazy(s, VMX_LAZY_LSTAR);
    case VCPU_CSTAR: return get_lazy(s, VMX_LAZY_CSTAR);
    case VCPU_SFMASK: return get_lazy(s, VMX_LAZY_SFMASK);
    default: return get_lazy(s, VMX_LAZY_KERNEL_GS_BASE);
    }
}

FOLDED void set_reg(struct vmx_vcpu *s, enum vcpu_reg r, uint64_t value)
{
    enum vmcs_field f;
    switch (r) {
    case VCPU_CR0: set_cr0(s, value); return;
    case VCPU_CR2: s->cr2 = value; return;
    case VCPU_CR4: set_cr4(s, value); return;
    case VCPU_EFER: set_efer(s, value); return;
    case VCPU_DR6: s->dr6 = value; return;
    case VCPU_STAR: set_lazy(s, VMX_LAZY_STAR, value); return;
    case VCPU_LSTAR: set_lazy(s, VMX_LAZY_LSTAR, value); return;
    case VCPU_CSTAR: set_lazy(s, VMX_LAZY_CSTAR, value); return;
    case VCPU_SFMASK: set_lazy(s, VMX_LAZY_SFMASK, value); return;
    case VCPU_KERNEL_GS_BASE: set_lazy(s, VMX_LAZY_KERNEL_GS_BASE, value); return;
    case VCPU_CR3: paging_changed(s); break;
    case VCPU_DR7: case VCPU_SYSENTER_CS: value = (uint32_t)value; break;
    case VCPU_FS_BASE: case VCPU_GS_BASE: case VCPU_SYSENTER_ESP: case VCPU_SYSENTER_EIP: value = canonical(value); break;
    default: break;
    }
    if (field_of(r, &f))
        vmwrite(f, value);
}

uint64_t vmx_get_reg(struct vcpu *v, enum vcpu_reg r)
{
    vmx_current(v);
    return get_reg(vmx_of(v), r);
}

void vmx_set_reg(struct vcpu *v, enum vcpu_reg r, uint64_t value)
{
    vmx_current(v);
    set_reg(vmx_of(v), r, value);
}

/* One list for both directions, so that neither forgets a register that the other has. */
#define SREGS(R)                                                                                           \
    R(efer, VCPU_EFER) R(cr0, VCPU_CR0) R(cr2, VCPU_CR2) R(cr3, VCPU_CR3) R(cr4, VCPU_CR4) R(dr6, VCPU_DR6) R(dr7, VCPU_DR7) \
    R(pat, VCPU_PAT) R(star, VCPU_STAR) R(lstar, VCPU_LSTAR) R(cstar, VCPU_CSTAR) R(sfmask, VCPU_SFMASK)    \
    R(kernel_gs_base, VCPU_KERNEL_GS_BASE) R(sysenter_cs, VCPU_SYSENTER_CS) R(sysenter_esp, VCPU_SYSENTER_ESP) \
    R(sysenter_eip, VCPU_SYSENTER_EIP)

void vmx_get_sregs(struct vcpu *v, struct vcpu_sregs *o)
{
    struct vmx_vcpu *s = vmx_of(v);
    vmx_current(v);
    for (unsigned n = 0; n < SEG_COUNT; n++)
        get_seg(n, &o->seg[n]);
    o->gdtr.base = vmread(VMCS_GUEST_GDTR_BASE);
    o->gdtr.limit = (uint32_t)vmread(VMCS_GUEST_GDTR_LIMIT);
    o->idtr.base = vmread(VMCS_GUEST_IDTR_BASE);
    o->idtr.limit = (uint32_t)vmread(VMCS_GUEST_IDTR_LIMIT);
    o->cr8 = vmx_get_cr8(v);
#define R(field, reg) o->field = get_reg(s, reg);
    SREGS(R)
#undef R
}

void vmx_set_sregs(struct vcpu *v, const struct vcpu_sregs *in)
{
    struct vmx_vcpu *s = vmx_of(v);
    vmx_current(v);
    for (unsigned n = 0; n < SEG_COUNT; n++)
        set_seg(n, &in->seg[n]);
    vmwrite(VMCS_GUEST_GDTR_BASE, canonical(in->gdtr.base));
    vmwrite(VMCS_GUEST_GDTR_LIMIT, in->gdtr.limit & 0xffff);
    vmwrite(VMCS_GUEST_IDTR_BASE, canonical(in->idtr.base));
    vmwrite(VMCS_GUEST_IDTR_LIMIT, in->idtr.limit & 0xffff);
#define R(field, reg) set_reg(s, reg, in->field);
    SREGS(R) /* EFER after TR's segment */
#undef R
    vmx_set_cr8(v, (uint8_t)in->cr8);
}

void vmx_set_tsc_offset(struct vcpu *v, uint64_t offset)
{
    vmx_current(v);
    vmwrite(VMCS_TSC_OFFSET, offset);
}

void vmx_set_cr8(struct vcpu *v, uint8_t tpr_class)
{
    struct vmx_vcpu *s = vmx_of(v);
    if (s->apic_page)
        s->apic_page[VIRTUAL_APIC_TPR] = (uint8_t)((tpr_class & 0xf) << 4);
    s->cr8 = tpr_class & 0xf;
    if (unlikely(s->tpr_threshold > s->cr8)) /* 27.2.1.1: an entry would be refused; what waited for this is deliverable now */
        vmx_set_tpr_alarm(v, 0);
}

uint8_t vmx_get_cr8(struct vcpu *v)
{
    const struct vmx_vcpu *s = vmx_of(v);
    return s->apic_page ? s->apic_page[VIRTUAL_APIC_TPR] >> 4 : s->cr8;
}

/* 25.6.9: read and write bits for MSRs 0..1FFFh and C0000000h..C0001FFFh; others always exit. */
static void allow(uint8_t *map, uint32_t msr)
{
    uint32_t bit = (msr & 0x1fff) + (msr >= 0xc0000000u ? 1024 * 8 : 0);
    map[bit / 8] &= (uint8_t)~(1u << bit % 8);
    map[2048 + bit / 8] &= (uint8_t)~(1u << bit % 8);
}

void vmx_msr_bitmap_fill(uint8_t *map)
{
    static const uint32_t in_vmcs[] = {MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP, MSR_FS_BASE, MSR_GS_BASE};
    memset(map, 0xff, PAGE_SIZE);
    for (size_t n = 0; n < ARRAY_SIZE(in_vmcs); n++)
        allow(map, in_vmcs[n]);
    for (size_t n = 0; n < VMX_LAZY_COUNT; n++)
        allow(map, lazy_msrs[n]);
}
