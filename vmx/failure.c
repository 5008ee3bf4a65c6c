/*
 * What VMX refused and why, in the manual's words: VM-instruction errors (SDM 3, 31.4), VMXON, and entries that failed after the controls
 * had been found good (27.8). Each is a bug of ours or of the machine; the words are what whoever reads the report will look up.
 */
#include "vmx/failure.h"

#include "include/hw/vmcs.h"
#include "lib/string.h"

const char *vmx_error_name(uint32_t number)
{
    switch (number) {
#define E(n, words) case n: return words;
        VMX_INSTRUCTION_ERRORS(E)
#undef E
    default: return "unknown VM-instruction error";
    }
}

void vmx_vmxon_failure(enum vmx_outcome how, uint64_t error, char why[VMX_WHY_BYTES])
{
    switch (how) {
    case VMX_SUCCEEDED: why[0] = 0; break;
    case VMX_FAIL_INVALID:
        snprintf(why, VMX_WHY_BYTES, "VMXON: VMfailInvalid, the region's address or revision identifier, or VMX operation was on already");
        break;
    case VMX_FAIL_VALID:
        snprintf(why, VMX_WHY_BYTES, "VMXON: VM-instruction error %lu, %s", error, vmx_error_name((uint32_t)error));
        break;
    case VMX_FAULTED:
        snprintf(why, VMX_WHY_BYTES, "VMXON: #GP, a bit of CR0 or CR4 that VMX operation fixes, or IA32_FEATURE_CONTROL");
        break;
    }
}

/* The qualification of invalid guest state; 0, any check that has no number. */
static const char *guest_state_words(uint64_t qualification)
{
    switch (qualification) {
    case 0: return "";
    case 2: return ": loading the PDPTEs";
    case 3: return ": an NMI while blocking by STI";
    case 4: return ": the VMCS link pointer";
    default: return ": unknown qualification";
    }
}

void vmx_entry_failure(uint32_t reason, uint64_t qualification, char why[VMX_WHY_BYTES])
{
    switch (VMX_REASON_BASIC(reason)) {
    case VMX_REASON_INVALID_GUEST_STATE:
        snprintf(why, VMX_WHY_BYTES, "VM-entry failure due to invalid guest state%s", guest_state_words(qualification));
        break;
    case VMX_REASON_MSR_LOADING:
        snprintf(why, VMX_WHY_BYTES, "VM-entry failure due to MSR loading: entry %lu of the VM-entry MSR-load area", qualification);
        break;
    case VMX_REASON_ENTRY_MACHINE_CHECK: snprintf(why, VMX_WHY_BYTES, "VM-entry failure due to machine-check event"); break;
    default: snprintf(why, VMX_WHY_BYTES, "VM-entry failure of unknown reason %u", VMX_REASON_BASIC(reason)); break;
    }
}
