/*
 * The VMCB's exit fields in neutral form (APM 2, appendix C). AMD's words end here.
 *
 * What the CPU leaves open stays open: without next-RIP save insn_len is 0, without decode assists the register of a CR access
 * is unknown, and vm/ looks at the instruction itself. The present bit of a nested fault's code is never used: software CPUs
 * leave it out for reserved bits, and DMM knows better anyway.
 */
#include "svm/svm.h"

#include "lib/string.h"

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
    x->insn_len = svm_len_to(b, b->c.exit_info2); /* IOIO has always told it */
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

/* Exits of which the kind says all, by code. 0: another way, or none that we asked for. */
#define AT(code) [SVM_EXIT_##code - SVM_EXIT_INTR]
static const uint8_t simple_kinds[SVM_EXIT_TLBSYNC - SVM_EXIT_INTR + 1] = {
    AT(INTR) = VM_EXIT_INTR, AT(SMI) = VM_EXIT_INTR, /* taken by the firmware at STGI: nothing for us to do */
    AT(NMI) = VM_EXIT_NMI, AT(INIT) = VM_EXIT_INIT, AT(VINTR) = VM_EXIT_IRQ_WINDOW, AT(IRET) = VM_EXIT_NMI_WINDOW, AT(HLT) = VM_EXIT_HLT,
    AT(PAUSE) = VM_EXIT_PAUSE, AT(CPUID) = VM_EXIT_CPUID, AT(VMMCALL) = VM_EXIT_HYPERCALL, AT(RDTSC) = VM_EXIT_RDTSC,
    AT(RDTSCP) = VM_EXIT_RDTSC, AT(RDPMC) = VM_EXIT_RDPMC, AT(RDPRU) = VM_EXIT_RDPMC, AT(INVD) = VM_EXIT_INVD, AT(WBINVD) = VM_EXIT_INVD,
    AT(XSETBV) = VM_EXIT_XSETBV, AT(MONITOR) = VM_EXIT_MONITOR, AT(MWAIT) = VM_EXIT_MONITOR, AT(MWAIT_COND) = VM_EXIT_MONITOR,
    AT(VMRUN) = VM_EXIT_VIRT_INSN, AT(VMLOAD) = VM_EXIT_VIRT_INSN, AT(VMSAVE) = VM_EXIT_VIRT_INSN, AT(STGI) = VM_EXIT_VIRT_INSN,
    AT(CLGI) = VM_EXIT_VIRT_INSN, AT(SKINIT) = VM_EXIT_VIRT_INSN, AT(INVLPGA) = VM_EXIT_VIRT_INSN, AT(RSM) = VM_EXIT_VIRT_INSN,
    AT(INVLPGB) = VM_EXIT_VIRT_INSN, AT(INVLPGB_ILLEGAL) = VM_EXIT_VIRT_INSN, AT(MCOMMIT) = VM_EXIT_VIRT_INSN,
    AT(TLBSYNC) = VM_EXIT_VIRT_INSN, AT(TASK_SWITCH) = VM_EXIT_TASK_SWITCH, AT(SHUTDOWN) = VM_EXIT_TRIPLE_FAULT,
};
#undef AT
_Static_assert(VM_EXIT_INTR == 0, "the one kind that looks like no kind");

static void decode_rest(struct vcpu *v, struct vm_exit *x, uint64_t code)
{
    const struct vmcb *b = vmcb_of(v);
    if (code == SVM_EXIT_MSR)
        decode_msr(v, x);
    else if (code < SVM_EXIT_DR0_READ)
        decode_register(x, VM_EXIT_CR_ACCESS, code & 0xf, code >= SVM_EXIT_CR0_WRITE, b->c.exit_info1);
    else if (code < SVM_EXIT_EXCP0)
        decode_register(x, VM_EXIT_DR_ACCESS, code & 0xf, code >= SVM_EXIT_DR0_WRITE, b->c.exit_info1);
    else if (code < SVM_EXIT_INTR)
        decode_exception(b, x, (unsigned)(code - SVM_EXIT_EXCP0));
    else
        x->kind = code == SVM_EXIT_INTR || code == SVM_EXIT_SMI ? VM_EXIT_INTR
            : (uint32_t)code == UINT32_MAX ? VM_EXIT_INVALID_STATE : VM_EXIT_OTHER;
}

void svm_decode_exit(struct vcpu *v, struct vm_exit *x)
{
    struct vmcb *b = vmcb_of(v);
    uint64_t code = b->c.exit_code, simple = code - SVM_EXIT_INTR;
    x->insn_len = x->insn_bytes_len = 0;
    x->raw_code = code;
    x->raw_info1 = b->c.exit_info1;
    x->raw_info2 = b->c.exit_info2;
    if (code == SVM_EXIT_NPF) {
        decode_npf(b, x);
        return;
    }
    if (code == SVM_EXIT_IOIO) {
        decode_io(b, x);
        return;
    }
    x->insn_len = svm_next_rip_len(b);
    if (simple < ARRAY_SIZE(simple_kinds) && simple_kinds[simple])
        x->kind = simple_kinds[simple];
    else
        decode_rest(v, x, code);
    if (x->kind == VM_EXIT_RDTSC)
        x->u.tsc.is_rdtscp = code == SVM_EXIT_RDTSCP;
}
