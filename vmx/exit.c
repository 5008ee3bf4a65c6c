/*
 * The exit fields in neutral form (SDM 3, chapter 28 and appendix C). Intel's words end here.
 *
 * One table says for each reason what it is and whether the instruction length is defined (28.2.5): for exits that an instruction
 * caused, and not for EPT violations, whose instruction vm/ fetches itself if it needs it.
 */
#include "vmx/vmx.h"

#include "core/log.h"
#include "include/hv/dmm.h"
#include "include/hw/paging.h"
#include "x86/idt.h"

#define REASON_COUNT 80
#define HAS_LENGTH 0x80
#define KIND(kind) (VM_EXIT_##kind + 1)
#define INSN(kind) (KIND(kind) | HAS_LENGTH)
_Static_assert(VM_EXIT_KIND_COUNT < HAS_LENGTH, "both in a byte");

/* 0: does not occur with our controls */
static const uint8_t kinds[REASON_COUNT] = {
    [VMX_REASON_EXCEPTION_OR_NMI] = KIND(EXCEPTION),
    [VMX_REASON_EXTERNAL_INTERRUPT] = KIND(INTR),
    [VMX_REASON_PREEMPTION_TIMER] = KIND(INTR),
    [VMX_REASON_IO_SMI] = KIND(INTR), [VMX_REASON_OTHER_SMI] = KIND(INTR), /* the firmware's, over by now */
    [VMX_REASON_TRIPLE_FAULT] = KIND(TRIPLE_FAULT),
    [VMX_REASON_INIT] = KIND(INIT), [VMX_REASON_SIPI] = KIND(INIT),
    [VMX_REASON_INTERRUPT_WINDOW] = KIND(IRQ_WINDOW), [VMX_REASON_TPR_BELOW_THRESHOLD] = KIND(IRQ_WINDOW),
    [VMX_REASON_NMI_WINDOW] = KIND(NMI_WINDOW),
    [VMX_REASON_TASK_SWITCH] = KIND(TASK_SWITCH),
    [VMX_REASON_CPUID] = INSN(CPUID),
    [VMX_REASON_HLT] = INSN(HLT),
    [VMX_REASON_INVD] = INSN(INVD), [VMX_REASON_WBINVD] = INSN(INVD),
    [VMX_REASON_RDPMC] = INSN(RDPMC),
    [VMX_REASON_RDTSC] = INSN(RDTSC), [VMX_REASON_RDTSCP] = INSN(RDTSC),
    [VMX_REASON_VMCALL] = INSN(HYPERCALL),
    [VMX_REASON_GETSEC] = INSN(VIRT_INSN), [VMX_REASON_RSM] = INSN(VIRT_INSN), [VMX_REASON_VMCLEAR] = INSN(VIRT_INSN),
    [VMX_REASON_VMLAUNCH] = INSN(VIRT_INSN), [VMX_REASON_VMPTRLD] = INSN(VIRT_INSN), [VMX_REASON_VMPTRST] = INSN(VIRT_INSN),
    [VMX_REASON_VMREAD] = INSN(VIRT_INSN), [VMX_REASON_VMRESUME] = INSN(VIRT_INSN), [VMX_REASON_VMWRITE] = INSN(VIRT_INSN),
    [VMX_REASON_VMXOFF] = INSN(VIRT_INSN), [VMX_REASON_VMXON] = INSN(VIRT_INSN), [VMX_REASON_INVEPT] = INSN(VIRT_INSN),
    [VMX_REASON_INVVPID] = INSN(VIRT_INSN), [VMX_REASON_VMFUNC] = INSN(VIRT_INSN), [VMX_REASON_ENCLS] = INSN(VIRT_INSN),
    [VMX_REASON_CR_ACCESS] = INSN(CR_ACCESS),
    [VMX_REASON_MOV_DR] = INSN(DR_ACCESS),
    [VMX_REASON_IO] = INSN(PIO),
    [VMX_REASON_RDMSR] = INSN(RDMSR), [VMX_REASON_WRMSR] = INSN(WRMSR),
    [VMX_REASON_INVALID_GUEST_STATE] = KIND(INVALID_STATE), [VMX_REASON_MSR_LOADING] = KIND(INVALID_STATE),
    [VMX_REASON_ENTRY_MACHINE_CHECK] = KIND(INVALID_STATE),
    [VMX_REASON_MWAIT] = INSN(MONITOR), [VMX_REASON_MONITOR] = INSN(MONITOR),
    [VMX_REASON_PAUSE] = INSN(PAUSE),
    [VMX_REASON_EPT_VIOLATION] = KIND(NESTED_FAULT),
    [VMX_REASON_XSETBV] = INSN(XSETBV),
    [VMX_REASON_PML_FULL] = KIND(INTR), /* the access that had no room is made again */
};

const char *vmx_reason_name(uint32_t basic_reason)
{
    switch (basic_reason) {
#define R(name, number) case number: return #name;
        VMX_EXIT_REASONS(R)
#undef R
    default: return "?";
    }
}

static void decode_io(struct vm_exit *x, uint64_t q)
{
    static const uint8_t address_bytes[8] = {2, 4, 8};
    x->u.io.port = (uint16_t)VMX_IO_PORT(q);
    x->u.io.size = (uint8_t)VMX_IO_BYTES(q);
    x->u.io.in = q & VMX_IO_IN;
    x->u.io.string = q & VMX_IO_STRING;
    x->u.io.rep = q & VMX_IO_REP;
    x->u.io.addr_size = 0;
    x->u.io.seg = 0xff;
    if (!x->u.io.string || !vmx_features()->ins_outs_info)
        return;
    uint64_t info = vmread(VMCS_EXIT_INSTRUCTION_INFO);
    x->u.io.addr_size = address_bytes[VMX_STRING_ADDRESS(info)];
    x->u.io.seg = x->u.io.in ? SEG_ES : VMX_STRING_SEGMENT(info) < 6 ? (uint8_t)VMX_STRING_SEGMENT(info) : 0xff;
}

static void decode_cr(struct vm_exit *x, uint64_t q)
{
    static const enum vm_cr_op ops[] = {VM_CR_MOV_TO, VM_CR_MOV_FROM, VM_CR_CLTS, VM_CR_LMSW};
    x->u.cr.op = ops[VMX_CR_ACCESS(q)];
    x->u.cr.cr = x->u.cr.op <= VM_CR_MOV_FROM ? (uint8_t)VMX_CR_NUMBER(q) : 0;
    x->u.cr.gpr = x->u.cr.op <= VM_CR_MOV_FROM ? (uint8_t)VMX_CR_GPR(q) : 0xff;
}

static void decode_dr(struct vm_exit *x, uint64_t q)
{
    x->u.cr.op = q & VMX_DR_FROM ? VM_CR_MOV_FROM : VM_CR_MOV_TO;
    x->u.cr.cr = (uint8_t)VMX_DR_NUMBER(q);
    x->u.cr.gpr = (uint8_t)VMX_DR_GPR(q);
}

/* An intercepted #DB has changed neither DR6 nor DR7: its causes are in the qualification (28.2.1). vm/ finds them as the
 * handler would. */
static void note_debug_causes(struct vmx_vcpu *s, uint64_t q)
{
    s->dr6 = (s->dr6 & ~GENMASK64(3, 0)) | (q & VMX_DB_CAUSES);
    uint64_t dr7 = vmread(VMCS_GUEST_DR7);
    if (dr7 & BIT64(13))
        vmwrite(VMCS_GUEST_DR7, dr7 & ~BIT64(13)); /* GD */
}

static void decode_exception(struct vcpu *v, struct vmx_vcpu *s, struct vm_exit *x, uint64_t q)
{
    uint32_t event = (uint32_t)vmread(VMCS_EXIT_INTERRUPTION);
    x->raw_info2 = event;
    if (VMX_EVENT_TYPE(event) == VMX_EVENT_NMI) {
        x->kind = VM_EXIT_NMI;
        return;
    }
    x->u.exc.vector = VMX_EVENT_VECTOR(event);
    x->u.exc.has_error = event & VMX_EVENT_ERROR_VALID;
    x->u.exc.error_code = x->u.exc.has_error ? (uint32_t)vmread(VMCS_EXIT_ERROR_CODE) : 0;
    x->u.exc.cr2 = x->u.exc.vector == X86_PF ? q : 0;
    if (x->u.exc.vector == X86_DB)
        note_debug_causes(s, q);
    if (VMX_EVENT_TYPE(event) == VMX_EVENT_PRIVILEGED_SOFT) /* INT1: RIP is still on it, and what it raises is a trap */
        v->rip += vmread(VMCS_EXIT_INSTRUCTION_LENGTH);
}

static void decode_violation(struct vm_exit *x, uint64_t q)
{
    x->u.fault.gpa = x->raw_info2 = vmread(VMCS_GUEST_PHYSICAL_ADDRESS);
    x->u.fault.gva_valid = q & VMX_EPT_LINEAR_VALID;
    x->u.fault.gva = x->u.fault.gva_valid ? vmread(VMCS_GUEST_LINEAR_ADDRESS) : 0;
    x->u.fault.write = q & VMX_EPT_WRITE;
    x->u.fault.exec = q & VMX_EPT_EXEC;
    x->u.fault.in_walk = x->u.fault.gva_valid && !(q & VMX_EPT_FINAL);
}

/* The CPU met an entry that no p2m function may ever make: our bug, or a frame of the table overwritten. */
static void report_misconfiguration(struct vcpu *v, struct vm_exit *x)
{
    uint64_t gpa = x->raw_info2 = vmread(VMCS_GUEST_PHYSICAL_ADDRESS), table = dmm_space_root_hpa(v->space);
    log_error("vmx: vm%u.vcpu%u: EPT misconfiguration at gpa %#lx: a bug of the hypervisor", v->vm->id, v->id, gpa);
    for (unsigned level = PT_LEVELS; level > 0; level--) {
        uint64_t entry = ((const uint64_t *)mfn_to_hva(hpa_to_mfn(table)))[PT_INDEX(gpa, level)];
        log_error("vmx: level %u table %#lx entry %lu = %#018lx: %s", level, table, PT_INDEX(gpa, level), entry,
                  p2m_type_name(p2m_format_ept.type_of(entry, level)));
        if (!(entry & 7) || p2m_format_ept.is_large(entry, level))
            break;
        table = entry & PTE_ADDR_MASK;
    }
}

void vmx_decode_exit(struct vcpu *v, struct vm_exit *x)
{
    struct vmx_vcpu *s = vmx_of(v);
    uint32_t reason = VMX_REASON_BASIC(s->reason);
    uint64_t q = vmread(VMCS_EXIT_QUALIFICATION);
    uint8_t kind = reason < REASON_COUNT ? kinds[reason] : 0;
    x->insn_len = x->insn_bytes_len = 0;
    x->raw_code = s->reason;
    x->raw_info1 = q;
    x->raw_info2 = 0;
    x->kind = kind ? (enum vm_exit_kind)((kind & ~HAS_LENGTH) - 1) : VM_EXIT_OTHER;
    if (kind & HAS_LENGTH)
        x->insn_len = (uint8_t)vmread(VMCS_EXIT_INSTRUCTION_LENGTH);
    switch (reason) {
    case VMX_REASON_EXCEPTION_OR_NMI: decode_exception(v, s, x, q); break;
    case VMX_REASON_NMI_WINDOW: vmx_request_nmi_window(v, false); break; /* rings once, as the other vendor's does */
    case VMX_REASON_CR_ACCESS: decode_cr(x, q); break;
    case VMX_REASON_MOV_DR: decode_dr(x, q); break;
    case VMX_REASON_IO: decode_io(x, q); break;
    case VMX_REASON_RDMSR: case VMX_REASON_WRMSR:
        x->u.msr.index = (uint32_t)v->gpr[GPR_RCX];
        x->u.msr.value = (uint32_t)v->gpr[GPR_RAX] | v->gpr[GPR_RDX] << 32;
        break;
    case VMX_REASON_RDTSC: case VMX_REASON_RDTSCP: x->u.tsc.is_rdtscp = reason == VMX_REASON_RDTSCP; break;
    case VMX_REASON_EPT_VIOLATION: decode_violation(x, q); break;
    case VMX_REASON_PML_FULL: vmx_log_full(v); break;
    case VMX_REASON_EPT_MISCONFIGURATION: report_misconfiguration(v, x); break;
    default: break;
    }
}
