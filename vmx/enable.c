/*
 * Is VMX there with what we need, and turning it on. What its capability MSRs mean is in capability.c; here they are read.
 */
#include "vmx/vmx.h"

#include "core/log.h"
#include "core/time.h"
#include "lib/string.h"
#include "mm/mm.h"
#include "x86/percpu.h"

struct vmx_features vmx_feature_flags;
#define features vmx_feature_flags /* here alone it is written */
static char reason[VMX_WHY_BYTES]; /* of the last failure */
static mfn_t msr_bitmap;
static bool shared_ready;

uint64_t vmx_msr_bitmap_hpa(void) { return mfn_to_hpa(msr_bitmap); }

NORETURN void vmx_insn_failed(const char *insn, uint64_t operand)
{
    uint64_t error = 0;
    if (!vmread_safe(VMCS_INSTRUCTION_ERROR, &error))
        panic("%s %#lx failed: VMfailInvalid, no current VMCS or not in VMX operation", insn, operand);
    panic("%s %#lx failed: VM-instruction error %lu, %s", insn, operand, error, vmx_error_name((uint32_t)error));
}

NORETURN void vmread_failed(uint64_t field) { vmx_insn_failed("VMREAD", field); }
NORETURN void vmwrite_failed(uint64_t field) { vmx_insn_failed("VMWRITE", field); }

/* ---- probing ------------------------------------------------------------------------------------------------------------ */

static struct vmx_msrs read_capabilities(void)
{
    struct vmx_msrs m = {0};
    for (uint32_t msr = MSR_VMX_BASIC; msr <= MSR_VMX_LAST; msr++)
        if (vmx_msr_exists(&m, msr))
            m.value[msr - MSR_VMX_BASIC] = rdmsr(msr);
    return m;
}

/* Each CPU has a register of its own. */
static bool feature_control_allows(void)
{
    uint64_t fc, wanted;
    if (!rdmsr_safe(MSR_FEATURE_CONTROL, &fc))
        return true; /* no such register: nothing can forbid VMXON */
    wanted = fc;
    return vmx_feature_control_allows(&wanted) && (wanted == fc || wrmsr_safe(MSR_FEATURE_CONTROL, wanted));
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
    struct vmx_msrs m = read_capabilities();
    if (!vmx_features_of(&m, &features, reason))
        return HVM_PROBE_LACKS_FEATURE;
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
    uint64_t ticks = mul_div64(time_tsc_khz(), VMX_IF0_SLICE_NS, 1000000) >> features.timer_shift;
    features.timer_slice = (uint32_t)MIN(MAX(ticks, 1), UINT32_MAX - 1);
    log_info("vmx: unrestricted guest, EPT%s%s, %s, %s, %s", features.ept_vpid_cap & EPT_CAP_AD ? " with accessed and dirty bits" : "",
             features.pml ? ", page-modification logging" : "", features.vpid ? "VPID" : "no VPID", features.tpr_shadow ? "TPR shadow" : "CR8 exits",
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

/* Also true of the boot CPU itself. */
static bool like_the_boot_cpu(const char **why)
{
    struct vmx_features here;
    *why = reason;
    if (!cpu_has(CPUID_VMX) || !feature_control_allows()) {
        *why = "VMX is not there on this CPU or locked off (IA32_FEATURE_CONTROL), though not on the boot CPU";
        return false;
    }
    struct vmx_msrs m = read_capabilities();
    return vmx_features_of(&m, &here, reason) && vmx_features_agree(&features, &here, reason);
}

static void report_vmxon(enum vmx_outcome how)
{
    uint64_t error = 0;
    if (how == VMX_FAIL_VALID)
        vmread_safe(VMCS_INSTRUCTION_ERROR, &error);
    vmx_vmxon_failure(how, error, reason);
    log_error("vmx: VMXON of a region with revision %#x failed: cr0 %#lx (fixed %#lx to 1, %#lx to 0), cr4 %#lx (%#lx, %#lx)", features.revision,
              read_cr0(), rdmsr(MSR_VMX_CR0_FIXED0), ~rdmsr(MSR_VMX_CR0_FIXED1), read_cr4(), rdmsr(MSR_VMX_CR4_FIXED0), ~rdmsr(MSR_VMX_CR4_FIXED1));
}

bool vmx_cpu_enable(const char **why)
{
    struct vmx_cpu *c = kzalloc(sizeof(*c));
    mfn_t region = frame_alloc(0, FRAME_ZEROED, FRAME_HV_HEAP, NULL);
    if (!c || !mfn_valid(region) || !init_shared()) {
        *why = "no frames for the VMXON region and the MSR bitmap, or no interrupt vector left";
        goto fail;
    }
    if (!like_the_boot_cpu(why))
        goto fail;
    fix_control_registers();
    *(uint32_t *)mfn_to_hva(region) = features.revision;
    enum vmx_outcome how = vmxon(mfn_to_hpa(region));
    if (how != VMX_SUCCEEDED) {
        report_vmxon(how);
        *why = reason;
        write_cr4(read_cr4() & ~CR4_VMXE);
        goto fail;
    }
    /* What an earlier owner of this CPU left under the same tags. */
    if (features.ept_vpid_cap & EPT_CAP_INVEPT_ALL)
        invept(INVEPT_ALL, &(struct vmx_invalidation){0});
    if (features.vpid)
        invvpid(INVVPID_ALL, &(struct vmx_invalidation){0});
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
