/*
 * Is VMX there with what we need, and turning it on.
 *
 * A control may be set or cleared only as far as the capability MSRs let it: their low half are the bits that must be 1, their high
 * half those that may be (appendix A.2). One table-driven function applies that to each control word, so that a CPU that is
 * refused is refused with the manual's name of the control it lacks. We ask for the "true" MSRs: the old ones force
 * CR3 exits, which nested paging makes useless.
 * Unrestricted guest is required: without it real mode would have to be emulated, which nothing here does.
 */
#include "vmx/vmx.h"

#include "core/log.h"
#include "core/time.h"
#include "lib/string.h"
#include "mm/mm.h"
#include "x86/percpu.h"

struct vmx_features vmx_feature_flags;
#define features vmx_feature_flags /* here alone it is written */
static char reason[160];           /* of the last failure */
static mfn_t msr_bitmap;
static bool shared_ready;

uint64_t vmx_msr_bitmap_hpa(void) { return mfn_to_hpa(msr_bitmap); }

const char *vmx_error_name(uint32_t number)
{
    switch (number) {
#define E(n, words) case n: return words;
        VMX_INSTRUCTION_ERRORS(E)
#undef E
    default: return "unknown VM-instruction error";
    }
}

NORETURN void vmx_insn_failed(const char *insn, uint64_t operand)
{
    uint64_t error = 0;
    if (!vmread_safe(VMCS_INSTRUCTION_ERROR, &error))
        panic("%s %#lx failed: VMfailInvalid, no current VMCS or not in VMX operation", insn, operand);
    panic("%s %#lx failed: VM-instruction error %lu, %s", insn, operand, error, vmx_error_name((uint32_t)error));
}

NORETURN void vmread_failed(uint64_t field) { vmx_insn_failed("VMREAD", field); }
NORETURN void vmwrite_failed(uint64_t field) { vmx_insn_failed("VMWRITE", field); }

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
static bool adjust(const struct control_word *w, bool true_msrs)
{
    bool has_true = w->msr != MSR_VMX_PROCBASED_CTLS2;
    uint64_t cap = rdmsr(true_msrs && has_true ? w->msr + MSR_VMX_TRUE_OFFSET : w->msr);
    uint32_t must = (uint32_t)cap, may = (uint32_t)(cap >> 32);
    uint32_t lacking = w->required & ~may, forced = w->unwanted & must;
    if (lacking || forced) {
        snprintf(reason, sizeof(reason), "VMX without the %s control \"%s\"%s (MSR %#x = %#lx)", w->what,
                 control_name(w, lacking ? lacking : forced), lacking ? "" : " being optional", w->msr, cap);
        return false;
    }
    *(uint32_t *)((char *)&features + w->result) = w->required | (w->optional & may) | must;
    return true;
}

static bool adjust_all(void)
{
    uint64_t basic = rdmsr(MSR_VMX_BASIC);
    features.revision = (uint32_t)VMX_BASIC_REVISION(basic);
    features.ins_outs_info = basic & VMX_BASIC_INS_OUTS_INFO;
    for (size_t n = 0; n < ARRAY_SIZE(words); n++)
        if (!adjust(&words[n], basic & VMX_BASIC_TRUE_CONTROLS))
            return false;
    features.tpr_shadow = features.proc & VMX_PROC_TPR_SHADOW;
    if (!features.tpr_shadow) {
        uint32_t may = (uint32_t)(rdmsr(MSR_VMX_PROCBASED_CTLS) >> 32), cr8 = VMX_PROC_CR8_LOAD | VMX_PROC_CR8_STORE;
        if ((may & cr8) != cr8) {
            snprintf(reason, sizeof(reason), "VMX with neither \"use TPR shadow\" nor CR8 exiting");
            return false;
        }
        features.proc |= cr8;
    }
    return true;
}

static bool check_nested_paging(void)
{
    static const struct { uint64_t bit; const char *what; } needed[] = {
        {EPT_CAP_WALK_4, "page-walk length 4"}, {EPT_CAP_WB, "write-back paging structures"}, {EPT_CAP_2M, "2-MByte pages"},
        {EPT_CAP_INVEPT, "INVEPT"},
    };
    uint64_t cap = features.ept_vpid_cap = rdmsr(MSR_VMX_EPT_VPID_CAP);
    for (size_t n = 0; n < ARRAY_SIZE(needed); n++)
        if (!(cap & needed[n].bit)) {
            snprintf(reason, sizeof(reason), "EPT without %s (IA32_VMX_EPT_VPID_CAP = %#lx)", needed[n].what, cap);
            return false;
        }
    if (!(cap & (EPT_CAP_INVEPT_SINGLE | EPT_CAP_INVEPT_ALL))) {
        snprintf(reason, sizeof(reason), "INVEPT without a type (IA32_VMX_EPT_VPID_CAP = %#lx)", cap);
        return false;
    }
    features.invept_type = cap & EPT_CAP_INVEPT_SINGLE ? INVEPT_SINGLE : INVEPT_ALL;
    features.eptp_bits = MEM_TYPE_WB | EPTP_WALK_4 | (cap & EPT_CAP_AD ? EPTP_AD : 0);
    /* A VPID that cannot be taken back for all is no VPID: then each entry and exit empties the TLB. */
    if (!(cap & EPT_CAP_INVVPID) || !(cap & EPT_CAP_INVVPID_ALL))
        features.proc2 &= ~(uint32_t)VMX_PROC2_VPID;
    features.vpid = features.proc2 & VMX_PROC2_VPID;
    return true;
}

/* ---- probing ------------------------------------------------------------------------------------------------------------ */

/* SDM 3, 24.7: the firmware should have locked it one way or the other; one that forgot leaves the choice to us. Each CPU. */
static bool feature_control_allows(void)
{
    uint64_t fc;
    if (!rdmsr_safe(MSR_FEATURE_CONTROL, &fc))
        return true; /* no such register: nothing can forbid VMXON */
    if (!(fc & FEATURE_CONTROL_LOCKED)) {
        fc |= FEATURE_CONTROL_LOCKED | FEATURE_CONTROL_VMX_OUTSIDE_SMX;
        return wrmsr_safe(MSR_FEATURE_CONTROL, fc);
    }
    return fc & FEATURE_CONTROL_VMX_OUTSIDE_SMX;
}

enum hvm_probe_result vmx_probe(const char **why)
{
    *why = reason;
    if (!cpu_has(CPUID_VMX)) {
        *why = "the CPU has no VMX (Intel VT-x)";
        return HVM_PROBE_ABSENT;
    }
    if (!feature_control_allows()) {
        *why = "VMX (Intel VT-x) is locked off by the firmware (IA32_FEATURE_CONTROL): enable it in the firmware's setup";
        return HVM_PROBE_LOCKED;
    }
    if (!adjust_all() || !check_nested_paging())
        return HVM_PROBE_LACKS_FEATURE;
    features.cr0_fixed0 = rdmsr(MSR_VMX_CR0_FIXED0) & ~(CR0_PE | CR0_PG); /* an unrestricted guest may leave these out */
    features.cr0_fixed1 = rdmsr(MSR_VMX_CR0_FIXED1);
    features.cr4_fixed0 = rdmsr(MSR_VMX_CR4_FIXED0);
    features.cr4_fixed1 = rdmsr(MSR_VMX_CR4_FIXED1);
    if (!(features.ept_vpid_cap & EPT_CAP_AD))
        vmx_ept_without_ad();
    *why = NULL;
    return HVM_PROBE_OK;
}

/* ---- turning it on ------------------------------------------------------------------------------------------------------ */

static bool init_shared(void)
{
    if (shared_ready)
        return true;
    msr_bitmap = frame_alloc(0, 0, FRAME_HV_HEAP, NULL);
    if (!mfn_valid(msr_bitmap) || !vmx_evict_init())
        return false;
    vmx_msr_bitmap_fill(mfn_to_hva(msr_bitmap));
    features.preemption_timer = features.pin & VMX_PIN_TIMER;
    uint64_t ticks = mul_div64(time_tsc_khz(), VMX_IF0_SLICE_NS, 1000000) >> VMX_MISC_TIMER_SHIFT(rdmsr(MSR_VMX_MISC));
    features.timer_slice = (uint32_t)MIN(MAX(ticks, 1), UINT32_MAX - 1);
    log_info("vmx: unrestricted guest, EPT%s, %s, %s, %s", features.ept_vpid_cap & EPT_CAP_AD ? " with accessed and dirty bits" : "",
             features.vpid ? "VPID" : "no VPID", features.tpr_shadow ? "TPR shadow" : "CR8 exits",
             features.preemption_timer ? "preemption timer" : "no preemption timer");
    shared_ready = true;
    return true;
}

/* SDM 3, 24.8: bits that VMX operation holds at 0 or 1. */
static void fix_control_registers(void)
{
    write_cr0((read_cr0() | rdmsr(MSR_VMX_CR0_FIXED0)) & rdmsr(MSR_VMX_CR0_FIXED1));
    write_cr4((read_cr4() | CR4_VMXE | rdmsr(MSR_VMX_CR4_FIXED0)) & rdmsr(MSR_VMX_CR4_FIXED1));
}

bool vmx_cpu_enable(const char **why)
{
    struct vmx_cpu *c = kzalloc(sizeof(*c));
    mfn_t region = frame_alloc(0, FRAME_ZEROED, FRAME_HV_HEAP, NULL);
    if (!c || !mfn_valid(region) || !init_shared()) {
        *why = "no frames for the VMXON region and the MSR bitmap, or no interrupt vector left";
        goto fail;
    }
    if (!feature_control_allows()) {
        *why = "VMX is locked off on this CPU (IA32_FEATURE_CONTROL) though not on the boot CPU";
        goto fail;
    }
    fix_control_registers();
    *(uint32_t *)mfn_to_hva(region) = features.revision;
    if (!vmxon(mfn_to_hpa(region))) {
        snprintf(reason, sizeof(reason), "VMXON failed with cr0 %#lx cr4 %#lx, VMCS revision %#x", read_cr0(), read_cr4(), features.revision);
        *why = reason;
        write_cr4(read_cr4() & ~CR4_VMXE);
        goto fail;
    }
    /* What an earlier owner of this CPU left under the same tags. */
    if (features.ept_vpid_cap & EPT_CAP_INVEPT_ALL)
        invept(INVEPT_ALL, 0);
    if (features.vpid)
        invvpid(INVVPID_ALL, 0);
    *c = (struct vmx_cpu){.vpid_generation = 1, .next_vpid = 1, .vmxon_region = region};
    this_cpu()->slot[PERCPU_HVM] = c;
    *why = NULL;
    return true;
fail:
    if (mfn_valid(region))
        frame_free(region, 0);
    kfree(c);
    return false;
}

/* No vCPU may be active here any more. */
void vmx_cpu_disable(void)
{
    struct vmx_cpu *c = vmx_this_cpu();
    if (!c)
        return;
    hv_assert(!c->current && !c->msr_owner);
    this_cpu()->slot[PERCPU_HVM] = NULL;
    vmxoff();
    write_cr4(read_cr4() & ~CR4_VMXE);
    frame_free(c->vmxon_region, 0);
    kfree(c);
}
