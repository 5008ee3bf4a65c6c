/*
 * The neutral form of a VM exit. svm/exit.c and vmx/exit.c decode to this, and vendor words end there.
 * `fault-like`: RIP still points at the instruction. All exits below are fault-like; vm/ advances RIP by insn_len when it
 * has emulated the instruction. insn_len 0 means the hardware did not say: vm/ asks the decoder (vcpu_insn_len()).
 */
#ifndef HV_INCLUDE_HV_VM_EXIT_H
#define HV_INCLUDE_HV_VM_EXIT_H

#include "include/hv/types.h"

#define VM_EXIT_KINDS(X)                                                                                   \
    X(INTR, "physical interrupt") X(NMI, "physical NMI") X(IRQ_WINDOW, "interrupt window")                  \
    X(NMI_WINDOW, "NMI window") X(HLT, "HLT") X(PAUSE, "PAUSE") X(CPUID, "CPUID") X(RDMSR, "RDMSR")         \
    X(WRMSR, "WRMSR") X(PIO, "port I/O") X(NESTED_FAULT, "nested page fault") X(HYPERCALL, "hypercall")     \
    X(CR_ACCESS, "control register") X(DR_ACCESS, "debug register") X(EXCEPTION, "exception")               \
    X(RDTSC, "RDTSC/RDTSCP") X(RDPMC, "RDPMC") X(INVD, "INVD/WBINVD") X(XSETBV, "XSETBV")                   \
    X(MONITOR, "MONITOR/MWAIT") X(VIRT_INSN, "virtualization instruction") X(TASK_SWITCH, "task switch")    \
    X(TRIPLE_FAULT, "triple fault") X(INIT, "INIT") X(SHUTDOWN, "shutdown") X(INVALID_STATE, "entry refused") \
    X(OTHER, "other")

enum vm_exit_kind {
#define X(id, name) VM_EXIT_##id,
    VM_EXIT_KINDS(X)
#undef X
    VM_EXIT_KIND_COUNT,
};
const char *vm_exit_kind_name(enum vm_exit_kind k);

enum vm_cr_op { VM_CR_MOV_TO, VM_CR_MOV_FROM, VM_CR_CLTS, VM_CR_LMSW };

struct vm_exit {
    enum vm_exit_kind kind;
    uint8_t insn_len;          /* 0: unknown */
    uint8_t insn_bytes_len;    /* decode assist: bytes fetched by hardware, 0: none */
    uint8_t insn_bytes[15];
    uint64_t raw_code, raw_info1, raw_info2; /* the vendor's numbers, for reports only */
    union {
        struct { uint64_t gpa, gva; bool gva_valid, write, exec, in_walk /* of a guest page-table access */; } fault;
        struct { uint16_t port; uint8_t size /* 1 2 4 */; bool in, string, rep; uint8_t addr_size /* 0 unknown */, seg /* 0xff unknown */; } io;
        struct { uint32_t index; uint64_t value; } msr; /* value for WRMSR */
        struct { uint8_t cr, gpr /* 0xff unknown: decode the instruction */; enum vm_cr_op op; } cr; /* also DR */
        struct { uint8_t vector; bool has_error; uint32_t error_code; uint64_t cr2; } exc;
        struct { bool is_rdtscp; } tsc;
        struct { uint8_t len; } window;
    } u;
};

enum vm_event_type { VM_EVENT_NONE, VM_EVENT_INTR, VM_EVENT_NMI, VM_EVENT_EXCEPTION, VM_EVENT_SOFT_INT };
struct vm_event { enum vm_event_type type; uint8_t vector; bool has_error; uint32_t error_code; uint64_t cr2 /* for #PF */; uint8_t insn_len; };

#endif
