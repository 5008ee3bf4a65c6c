/*
 * What a CPU's capability MSRs (SDM 3, appendix A) let us have of what we want, or why that is too little. Values in, values out: the
 * MSRs are read in enable.c, and in the host test they are those of seven CPU models, and each of their bits turned over.
 *
 * A control may be set or cleared only as far as the capability MSRs let it: their low half are the bits that must be 1, their high
 * half those that may be (appendix A.2). One table-driven function applies that to each control word, so that a CPU that is
 * refused is refused with the manual's name of the control it lacks. We ask for the "true" MSRs: the old ones force
 * CR3 exits, which nested paging makes useless.
 * Unrestricted guest is required: without it real mode would have to be emulated, which nothing here does.
 */
#include "vmx/capability.h"

#include "include/hw/msr.h"
#include "include/hw/paging.h"
#include "include/hw/vmcs.h"
#include "lib/string.h"
#include "x86/cpu.h"

bool vmx_msr_exists(const struct vmx_msrs *m, uint32_t msr)
{
    bool secondary = vmx_msr(m, MSR_VMX_PROCBASED_CTLS) >> 32 & VMX_PROC_SECONDARY;
    switch (msr) {
    case MSR_VMX_PROCBASED_CTLS2: return secondary;
    case MSR_VMX_EPT_VPID_CAP: return secondary && (vmx_msr(m, MSR_VMX_PROCBASED_CTLS2) >> 32 & (VMX_PROC2_EPT | VMX_PROC2_VPID));
    default: return msr < MSR_VMX_TRUE_FIRST || (vmx_msr(m, MSR_VMX_BASIC) & VMX_BASIC_TRUE_CONTROLS);
    }
}

bool vmx_feature_control_allows(uint64_t *value)
{
    if (!(*value & FEATURE_CONTROL_LOCKED))
        *value |= FEATURE_CONTROL_LOCKED | FEATURE_CONTROL_VMX_OUTSIDE_SMX;
    return *value & FEATURE_CONTROL_VMX_OUTSIDE_SMX;
}

/* ---- control words ---------------------------------------------------------------------------------------------------- */

struct control_name { unsigned bit; const char *words; };
#define C(name, bit, words) {bit, words},
static const struct control_name pin_names[] = {VMX_PIN_CONTROLS(C)}, proc_names[] = {VMX_PROC_CONTROLS(C)},
                                 proc2_names[] = {VMX_PROC2_CONTROLS(C)}, exit_names[] = {VMX_EXIT_CONTROLS(C)},
                                 entry_names[] = {VMX_ENTRY_CONTROLS(C)};
#undef C

static const struct control_word {
    const char *what;
    uint32_t msr;
    const struct control_name *names;
    size_t name_count;
    uint32_t required, optional, unwanted;
    size_t result;
} words[] = {
    {"pin-based", MSR_VMX_PINBASED_CTLS, pin_names, ARRAY_SIZE(pin_names), VMX_PIN_EXTINT | VMX_PIN_NMI | VMX_PIN_VIRTUAL_NMI,
     VMX_PIN_TIMER, 0, offsetof(struct vmx_features, pin)},
    {"processor-based", MSR_VMX_PROCBASED_CTLS, proc_names, ARRAY_SIZE(proc_names),
     VMX_PROC_TSC_OFFSET | VMX_PROC_HLT | VMX_PROC_MWAIT | VMX_PROC_RDPMC | VMX_PROC_MOV_DR | VMX_PROC_IO | VMX_PROC_MSR_BITMAPS |
         VMX_PROC_MONITOR | VMX_PROC_SECONDARY,
     VMX_PROC_TPR_SHADOW,
     VMX_PROC_CR3_LOAD | VMX_PROC_CR3_STORE | VMX_PROC_INVLPG | VMX_PROC_RDTSC | VMX_PROC_PAUSE | VMX_PROC_IRQ_WINDOW |
         VMX_PROC_NMI_WINDOW,
     offsetof(struct vmx_features, proc)},
    {"secondary processor-based", MSR_VMX_PROCBASED_CTLS2, proc2_names, ARRAY_SIZE(proc2_names),
     VMX_PROC2_EPT | VMX_PROC2_UNRESTRICTED | VMX_PROC2_WBINVD, VMX_PROC2_VPID | VMX_PROC2_RDTSCP | VMX_PROC2_INVPCID | VMX_PROC2_PAUSE_LOOP, 0,
     offsetof(struct vmx_features, proc2)},
    {"VM-exit", MSR_VMX_EXIT_CTLS, exit_names, ARRAY_SIZE(exit_names),
     VMX_EXIT_SAVE_DEBUG | VMX_EXIT_HOST_64 | VMX_EXIT_LOAD_PAT | VMX_EXIT_LOAD_EFER, 0, VMX_EXIT_ACK_INTERRUPT,
     offsetof(struct vmx_features, exit)},
    {"VM-entry", MSR_VMX_ENTRY_CTLS, entry_names, ARRAY_SIZE(entry_names),
     VMX_ENTRY_LOAD_DEBUG | VMX_ENTRY_GUEST_IA32E | VMX_ENTRY_LOAD_PAT | VMX_ENTRY_LOAD_EFER, 0, VMX_ENTRY_SMM,
     offsetof(struct vmx_features, entry)},
};

static const char *control_name(const struct control_word *w, uint32_t bits)
{
    for (size_t n = 0; n < w->name_count; n++)
        if (bits >> w->names[n].bit & 1)
            return w->names[n].words;
    return "?";
}

/* IA-32e mode guest counts as required because a CPU that cannot have it is none of ours; control.c clears it for each entry. */
static bool adjust(const struct control_word *w, const struct vmx_msrs *m, struct vmx_features *f, char why[VMX_WHY_BYTES])
{
    uint32_t true_msr = w->msr + MSR_VMX_TRUE_OFFSET;
    bool has_true = w->msr != MSR_VMX_PROCBASED_CTLS2 && vmx_msr_exists(m, true_msr);
    uint64_t cap = vmx_msr(m, has_true ? true_msr : w->msr);
    uint32_t must = (uint32_t)cap, may = (uint32_t)(cap >> 32);
    uint32_t lacking = w->required & ~may, forced = w->unwanted & must;
    if (lacking || forced) {
        snprintf(why, VMX_WHY_BYTES, "VMX without the %s control \"%s\"%s (MSR %#x = %#lx)", w->what,
                 control_name(w, lacking ? lacking : forced), lacking ? "" : " being optional", has_true ? true_msr : w->msr, cap);
        return false;
    }
    *(uint32_t *)((char *)f + w->result) = w->required | (w->optional & may) | must;
    return true;
}

static bool adjust_all(const struct vmx_msrs *m, struct vmx_features *f, char why[VMX_WHY_BYTES])
{
    for (size_t n = 0; n < ARRAY_SIZE(words); n++)
        if (!adjust(&words[n], m, f, why))
            return false;
    f->preemption_timer = f->pin & VMX_PIN_TIMER;
    f->tpr_shadow = f->proc & VMX_PROC_TPR_SHADOW;
    if (!f->tpr_shadow) {
        uint32_t may = (uint32_t)(vmx_msr(m, MSR_VMX_PROCBASED_CTLS) >> 32), cr8 = VMX_PROC_CR8_LOAD | VMX_PROC_CR8_STORE;
        if ((may & cr8) != cr8) {
            snprintf(why, VMX_WHY_BYTES, "VMX with neither \"use TPR shadow\" nor CR8 exiting");
            return false;
        }
        f->proc |= cr8;
    }
    return true;
}

/* ---- nested paging ---------------------------------------------------------------------------------------------------- */

static bool check_nested_paging(const struct vmx_msrs *m, struct vmx_features *f, char why[VMX_WHY_BYTES])
{
    const uint64_t cap = vmx_msr(m, MSR_VMX_EPT_VPID_CAP);
    static const struct { uint64_t bit; const char *what; } needed[] = {
        {EPT_CAP_WALK_4, "page-walk length 4"}, {EPT_CAP_WB, "write-back paging structures"}, {EPT_CAP_2M, "2-MByte pages"},
        {EPT_CAP_INVEPT, "INVEPT"},
    };
    f->ept_vpid_cap = cap;
    for (size_t n = 0; n < ARRAY_SIZE(needed); n++)
        if (!(cap & needed[n].bit)) {
            snprintf(why, VMX_WHY_BYTES, "EPT without %s (IA32_VMX_EPT_VPID_CAP = %#lx)", needed[n].what, cap);
            return false;
        }
    if (!(cap & (EPT_CAP_INVEPT_SINGLE | EPT_CAP_INVEPT_ALL))) {
        snprintf(why, VMX_WHY_BYTES, "INVEPT without a type (IA32_VMX_EPT_VPID_CAP = %#lx)", cap);
        return false;
    }
    f->invept_type = cap & EPT_CAP_INVEPT_SINGLE ? INVEPT_SINGLE : INVEPT_ALL;
    f->eptp_bits = MEM_TYPE_WB | EPTP_WALK_4 | (cap & EPT_CAP_AD ? EPTP_AD : 0);
    /* A VPID that cannot be taken back for all is no VPID: then each entry and exit empties the TLB. */
    if (!(cap & EPT_CAP_INVVPID) || !(cap & EPT_CAP_INVVPID_ALL))
        f->proc2 &= ~(uint32_t)VMX_PROC2_VPID;
    f->vpid = f->proc2 & VMX_PROC2_VPID;
    /* Not in proc2: it is on while somebody reads the log (log.c). What is logged is that a dirty bit was set. */
    f->pml = (vmx_msr(m, MSR_VMX_PROCBASED_CTLS2) >> 32 & VMX_PROC2_PML) && (cap & EPT_CAP_AD);
    return true;
}

bool vmx_features_of(const struct vmx_msrs *m, struct vmx_features *f, char why[VMX_WHY_BYTES])
{
    *f = (struct vmx_features){0};
    if (!adjust_all(m, f, why) || !check_nested_paging(m, f, why))
        return false;
    f->revision = (uint32_t)VMX_BASIC_REVISION(vmx_msr(m, MSR_VMX_BASIC));
    f->ins_outs_info = vmx_msr(m, MSR_VMX_BASIC) & VMX_BASIC_INS_OUTS_INFO;
    f->timer_shift = (uint32_t)VMX_MISC_TIMER_SHIFT(vmx_msr(m, MSR_VMX_MISC));
    f->cr0_fixed0 = vmx_msr(m, MSR_VMX_CR0_FIXED0) & ~(CR0_PE | CR0_PG); /* an unrestricted guest may leave these out */
    f->cr0_fixed1 = vmx_msr(m, MSR_VMX_CR0_FIXED1);
    f->cr4_fixed0 = vmx_msr(m, MSR_VMX_CR4_FIXED0);
    f->cr4_fixed1 = vmx_msr(m, MSR_VMX_CR4_FIXED1);
    return true;
}

/* Not the eptp_bits and flags that follow from these, nor timer_slice, which is the boot CPU's for all. */
bool vmx_features_agree(const struct vmx_features *boot, const struct vmx_features *here, char why[VMX_WHY_BYTES])
{
#define SAME(field, words)                                                                                 \
    if (here->field != boot->field) {                                                                      \
        snprintf(why, VMX_WHY_BYTES, words ": %#lx here, %#lx on the boot CPU", (uint64_t)here->field, (uint64_t)boot->field); \
        return false;                                                                                      \
    }
    SAME(revision, "VMCS revision identifier")
    SAME(pin, "pin-based controls")
    SAME(proc, "processor-based controls")
    SAME(proc2, "secondary processor-based controls")
    SAME(exit, "VM-exit controls")
    SAME(entry, "VM-entry controls")
    SAME(ept_vpid_cap, "EPT and VPID capabilities")
    SAME(cr0_fixed0, "IA32_VMX_CR0_FIXED0")
    SAME(cr0_fixed1, "IA32_VMX_CR0_FIXED1")
    SAME(cr4_fixed0, "IA32_VMX_CR4_FIXED0")
    SAME(cr4_fixed1, "IA32_VMX_CR4_FIXED1")
    SAME(ins_outs_info, "instruction information for INS and OUTS")
    SAME(timer_shift, "VMX-preemption timer rate")
    SAME(pml, "page-modification logging")
#undef SAME
    return true;
}
