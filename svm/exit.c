/*
 * The VMCB's exit fields in neutral form (APM 2, appendix C). AMD's words end here.
 *
 * What the CPU leaves open stays open: without next-RIP save insn_len is 0, without decode assists the register of a CR access
 * is unknown, and vm/ looks at the instruction itself. The present bit of a nested fault's code is never used: software CPUs
 * leave it out for reserved bits, and DMM knows better anyway.
 */
#include "svm/svm.h"

#include "lib/string.h"

/* Distance to the next instruction where the CPU gives it and it makes sense. */
static uint8_t length_to(const struct vmcb *b, uint64_t next_rip)
{
    uint64_t len = next_rip - b->s.rip;
    return len >= 1 && len <= 15 ? (uint8_t)len : 0;
}

static void decode_io(struct vmcb *b, struct vm_exit *x)
{
    uint64_t info = b->c.exit_info1;
    unsigned size = (unsigned)SVM_IOIO_SIZE(info), addr = (unsigned)SVM_IOIO_ADDR(info), seg = (unsigned)SVM_IOIO_SEG(info);
    x->kind = VM_EXIT_PIO;
    x->u.io.port = (uint16_t)SVM_IOIO_PORT(info);
    x->u.io.size = size & 4 ? 4 : size & 2 ? 2 : 1;
    x->u.io.in = info & SVM_IOIO_IN;
    x->u.io.string = info & SVM_IOIO_STRING;
    x->u.io.rep = info & SVM_IOIO_REP;
    x->u.io.addr_size = addr & 4 ? 8 : addr & 2 ? 4 : addr & 1 ? 2 : 0;
    x->u.io.seg = svm_features()->decode_assists && seg < 6 ? (uint8_t)seg : 0xff;
    x->insn_len = length_to(b, b->c.exit_info2); /* IOIO has always told it */
}

static void decode_msr(struct vcpu *v, struct vm_exit *x)
{
    x->kind = vmcb_of(v)->c.exit_info1 & 1 ? VM_EXIT_WRMSR : VM_EXIT_RDMSR;
    x->u.msr.index = (uint32_t)v->gpr[GPR_RCX];
    x->u.msr.value = (uint32_t)v->gpr[GPR_RAX] | v->gpr[GPR_RDX] << 32;
}

static void decode_npf(const struct vmcb *b, struct vm_exit *x)
{
    x->kind = VM_EXIT_NESTED_FAULT;
    x->u.fault.gpa = b->c.exit_info2;
    x->u.fault.write = b->c.exit_info1 & SVM_NPF_WRITE;
    x->u.fault.exec = b->c.exit_info1 & SVM_NPF_EXEC;
    x->u.fault.in_walk = b->c.exit_info1 & SVM_NPF_WALK;
    if (svm_features()->decode_assists && b->c.bytes_fetched <= sizeof(x->insn_bytes)) {
        x->insn_bytes_len = b->c.bytes_fetched;
        memcpy(x->insn_bytes, b->c.insn_bytes, sizeof(x->insn_bytes));
    }
}

/* 15.7.1: bit 63 says MOV CRn, then bits 3..0 are the register; CLTS, LMSW and SMSW leave it clear, as do old CPUs. */
static void decode_register(struct vm_exit *x, enum vm_exit_kind kind, unsigned number, bool write, uint64_t info)
{
    x->kind = kind;
    x->u.cr.cr = (uint8_t)number;
    x->u.cr.op = write ? VM_CR_MOV_TO : VM_CR_MOV_FROM;
    bool told = svm_features()->decode_assists && (kind == VM_EXIT_DR_ACCESS || (info & BIT64(63)));
    x->u.cr.gpr = told ? info & 0xf : 0xff;
}

static void decode_exception(const struct vmcb *b, struct vm_exit *x, unsigned vector)
{
    enum { HAVE_ERROR = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30 };
    x->kind = VM_EXIT_EXCEPTION;
    x->u.exc.vector = (uint8_t)vector;
    x->u.exc.has_error = HAVE_ERROR >> vector & 1;
    x->u.exc.error_code = (uint32_t)b->c.exit_info1;
    x->u.exc.cr2 = b->c.exit_info2;
}

static enum vm_exit_kind simple_kind(uint64_t code)
{
    switch (code) {
    case SVM_EXIT_INTR: return VM_EXIT_INTR;
    case SVM_EXIT_SMI: return VM_EXIT_INTR; /* taken by the firmware at STGI: nothing for us to do */
    case SVM_EXIT_NMI: return VM_EXIT_NMI;
    case SVM_EXIT_INIT: return VM_EXIT_INIT;
    case SVM_EXIT_VINTR: return VM_EXIT_IRQ_WINDOW;
    case SVM_EXIT_IRET: return VM_EXIT_NMI_WINDOW;
    case SVM_EXIT_HLT: return VM_EXIT_HLT;
    case SVM_EXIT_PAUSE: return VM_EXIT_PAUSE;
    case SVM_EXIT_CPUID: return VM_EXIT_CPUID;
    case SVM_EXIT_VMMCALL: return VM_EXIT_HYPERCALL;
    case SVM_EXIT_RDTSC: case SVM_EXIT_RDTSCP: return VM_EXIT_RDTSC;
    case SVM_EXIT_RDPMC: case SVM_EXIT_RDPRU: return VM_EXIT_RDPMC;
    case SVM_EXIT_INVD: case SVM_EXIT_WBINVD: return VM_EXIT_INVD;
    case SVM_EXIT_XSETBV: return VM_EXIT_XSETBV;
    case SVM_EXIT_MONITOR: case SVM_EXIT_MWAIT: case SVM_EXIT_MWAIT_COND: return VM_EXIT_MONITOR;
    case SVM_EXIT_VMRUN: case SVM_EXIT_VMLOAD: case SVM_EXIT_VMSAVE: case SVM_EXIT_STGI: case SVM_EXIT_CLGI: case SVM_EXIT_SKINIT:
    case SVM_EXIT_INVLPGA: case SVM_EXIT_RSM: case SVM_EXIT_INVLPGB: case SVM_EXIT_INVLPGB_ILLEGAL: case SVM_EXIT_MCOMMIT:
    case SVM_EXIT_TLBSYNC: return VM_EXIT_VIRT_INSN;
    case SVM_EXIT_TASK_SWITCH: return VM_EXIT_TASK_SWITCH;
    case SVM_EXIT_SHUTDOWN: return VM_EXIT_TRIPLE_FAULT;
    default: return VM_EXIT_OTHER;
    }
}

void svm_decode_exit(struct vcpu *v, struct vm_exit *x)
{
    struct vmcb *b = vmcb_of(v);
    uint64_t code = b->c.exit_code;
    x->insn_len = x->insn_bytes_len = 0;
    x->raw_code = code;
    x->raw_info1 = b->c.exit_info1;
    x->raw_info2 = b->c.exit_info2;
    if ((uint32_t)code == UINT32_MAX) {
        x->kind = VM_EXIT_INVALID_STATE;
        return;
    }
    if (code == SVM_EXIT_NPF) {
        decode_npf(b, x);
        return;
    }
    if (code == SVM_EXIT_IOIO) {
        decode_io(b, x);
        return;
    }
    if (svm_features()->nrips)
        x->insn_len = length_to(b, b->c.next_rip);
    if (code == SVM_EXIT_MSR)
        decode_msr(v, x);
    else if (code < SVM_EXIT_DR0_READ)
        decode_register(x, VM_EXIT_CR_ACCESS, code & 0xf, code >= SVM_EXIT_CR0_WRITE, b->c.exit_info1);
    else if (code < SVM_EXIT_EXCP0)
        decode_register(x, VM_EXIT_DR_ACCESS, code & 0xf, code >= SVM_EXIT_DR0_WRITE, b->c.exit_info1);
    else if (code < SVM_EXIT_INTR)
        decode_exception(b, x, (unsigned)(code - SVM_EXIT_EXCP0));
    else
        x->kind = code == SVM_EXIT_CR0_SEL_WRITE ? VM_EXIT_OTHER : simple_kind(code);
    if (x->kind == VM_EXIT_RDTSC)
        x->u.tsc.is_rdtscp = code == SVM_EXIT_RDTSCP;
}
