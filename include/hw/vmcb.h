/* The virtual machine control block (AMD APM 2, appendix B) with its intercepts and exit codes (appendix C). */
#ifndef HV_INCLUDE_HW_VMCB_H
#define HV_INCLUDE_HW_VMCB_H

#include "include/hv/types.h"

/* Segment attributes are descriptor bits 40..47 and 52..55, packed: just what struct vcpu_seg has. */
struct vmcb_seg { uint16_t selector, attr; uint32_t limit; uint64_t base; };

struct vmcb_control {
    uint16_t cr_read, cr_write, dr_read, dr_write; /* intercepts, one bit for each register */
    uint32_t exceptions, misc1, misc2, misc3;
    uint8_t reserved_018[0x03c - 0x018];
    uint16_t pause_threshold, pause_count;
    uint64_t iopm_hpa, msrpm_hpa, tsc_offset;
    uint32_t asid;
    uint8_t tlb_control, reserved_05d[3];
    uint8_t v_tpr, v_irq, v_prio, v_intr_masking;  /* bit 24 is bit 0 of the last */
    uint8_t v_vector, reserved_065[3];
    uint64_t interrupt_shadow;
    uint64_t exit_code, exit_info1, exit_info2, exit_int_info;
    uint64_t np_enable, avic_bar, ghcb;
    uint64_t event_inj;
    uint64_t n_cr3, lbr_enable;
    uint32_t clean, reserved_0c4;
    uint64_t next_rip;
    uint8_t bytes_fetched, insn_bytes[15];
    uint8_t reserved_0e0[0x400 - 0x0e0];
};

struct vmcb_save {
    struct vmcb_seg es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
    uint8_t reserved_4a0[0x4cb - 0x4a0];
    uint8_t cpl;
    uint8_t reserved_4cc[4];
    uint64_t efer;
    uint8_t reserved_4d8[0x548 - 0x4d8];
    uint64_t cr4, cr3, cr0, dr7, dr6, rflags, rip;
    uint8_t reserved_580[0x5d8 - 0x580];
    uint64_t rsp, s_cet, ssp, isst, rax;
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base, sysenter_cs, sysenter_esp, sysenter_eip, cr2;
    uint8_t reserved_648[0x668 - 0x648];
    uint64_t g_pat, dbgctl, br_from, br_to, last_excp_from, last_excp_to;
    uint8_t reserved_698[0xc00 - 0x298];
};

struct vmcb { struct vmcb_control c; struct vmcb_save s; };

#define VMCB_AT(field, offset) _Static_assert(offsetof(struct vmcb, field) == (offset), "APM 2, appendix B: " #field)
VMCB_AT(c.exceptions, 0x008);
VMCB_AT(c.misc1, 0x00c);
VMCB_AT(c.pause_threshold, 0x03c);
VMCB_AT(c.iopm_hpa, 0x040);
VMCB_AT(c.asid, 0x058);
VMCB_AT(c.tlb_control, 0x05c);
VMCB_AT(c.v_tpr, 0x060);
VMCB_AT(c.v_vector, 0x064);
VMCB_AT(c.interrupt_shadow, 0x068);
VMCB_AT(c.exit_code, 0x070);
VMCB_AT(c.exit_int_info, 0x088);
VMCB_AT(c.np_enable, 0x090);
VMCB_AT(c.event_inj, 0x0a8);
VMCB_AT(c.n_cr3, 0x0b0);
VMCB_AT(c.clean, 0x0c0);
VMCB_AT(c.next_rip, 0x0c8);
VMCB_AT(c.bytes_fetched, 0x0d0);
VMCB_AT(s.es, 0x400);
VMCB_AT(s.tr, 0x490);
VMCB_AT(s.cpl, 0x4cb);
VMCB_AT(s.efer, 0x4d0);
VMCB_AT(s.cr4, 0x548);
VMCB_AT(s.rip, 0x578);
VMCB_AT(s.rsp, 0x5d8);
VMCB_AT(s.rax, 0x5f8);
VMCB_AT(s.star, 0x600);
VMCB_AT(s.cr2, 0x640);
VMCB_AT(s.g_pat, 0x668);
VMCB_AT(s.last_excp_to, 0x690);
#undef VMCB_AT
_Static_assert(sizeof(struct vmcb) == PAGE_SIZE, "one page");

/* misc1, misc2: the bit is the exit code less 60h and 80h */
#define SVM_MISC1(exit) (1u << ((exit) - 0x60u))
#define SVM_MISC2(exit) (1u << ((exit) - 0x80u))
#define SVM_MISC3(exit) (1u << ((exit) - 0xa0u))

/* c.v_irq and c.v_prio are bits 15..8 and 23..16 of the word at 60h */
#define SVM_V_IRQ 0x01u
#define SVM_V_PRIO(p) ((p) & 0x0fu)
#define SVM_V_IGN_TPR 0x10u
#define SVM_V_INTR_MASKING 0x01u

#define SVM_TLB_KEEP 0u
#define SVM_TLB_FLUSH_ALL 1u

/* c.clean: set = unchanged since the last exit on this CPU */
#define SVM_CLEAN_INTERCEPTS BIT64(0)  /* with TSC offset and PAUSE filter */
#define SVM_CLEAN_IOPM BIT64(1)
#define SVM_CLEAN_ASID BIT64(2)
#define SVM_CLEAN_TPR BIT64(3)         /* the word at 60h */
#define SVM_CLEAN_NP BIT64(4)          /* n_cr3, g_pat */
#define SVM_CLEAN_CR BIT64(5)          /* CR0 CR3 CR4 EFER */
#define SVM_CLEAN_DR BIT64(6)
#define SVM_CLEAN_DT BIT64(7)
#define SVM_CLEAN_SEG BIT64(8)         /* CS SS DS ES, CPL */
#define SVM_CLEAN_CR2 BIT64(9)
#define SVM_CLEAN_ALL 0x3ffu

/* event_inj, exit_int_info (APM 2, 15.20) */
#define SVM_EVENT_VECTOR(e) ((uint8_t)(e))
#define SVM_EVENT_TYPE(e) FIELD_GET64(e, 10, 8)
#define SVM_EVENT_MAKE(type, vector) (BIT64(31) | (uint64_t)(type) << 8 | (vector))
#define SVM_EVENT_ERROR_VALID BIT64(11)
#define SVM_EVENT_VALID BIT64(31)
enum { SVM_EVENT_INTR = 0, SVM_EVENT_NMI = 2, SVM_EVENT_EXCEPTION = 3, SVM_EVENT_SOFT_INT = 4 };

enum svm_exit_code {
    SVM_EXIT_CR0_READ = 0x00, SVM_EXIT_CR0_WRITE = 0x10, SVM_EXIT_DR0_READ = 0x20, SVM_EXIT_DR0_WRITE = 0x30, SVM_EXIT_EXCP0 = 0x40,
    SVM_EXIT_INTR = 0x60, SVM_EXIT_NMI, SVM_EXIT_SMI, SVM_EXIT_INIT, SVM_EXIT_VINTR, SVM_EXIT_CR0_SEL_WRITE,
    SVM_EXIT_IDTR_READ, SVM_EXIT_GDTR_READ, SVM_EXIT_LDTR_READ, SVM_EXIT_TR_READ,
    SVM_EXIT_IDTR_WRITE, SVM_EXIT_GDTR_WRITE, SVM_EXIT_LDTR_WRITE, SVM_EXIT_TR_WRITE,
    SVM_EXIT_RDTSC, SVM_EXIT_RDPMC, SVM_EXIT_PUSHF, SVM_EXIT_POPF, SVM_EXIT_CPUID, SVM_EXIT_RSM, SVM_EXIT_IRET, SVM_EXIT_SWINT,
    SVM_EXIT_INVD, SVM_EXIT_PAUSE, SVM_EXIT_HLT, SVM_EXIT_INVLPG, SVM_EXIT_INVLPGA, SVM_EXIT_IOIO, SVM_EXIT_MSR,
    SVM_EXIT_TASK_SWITCH, SVM_EXIT_FERR_FREEZE, SVM_EXIT_SHUTDOWN,
    SVM_EXIT_VMRUN = 0x80, SVM_EXIT_VMMCALL, SVM_EXIT_VMLOAD, SVM_EXIT_VMSAVE, SVM_EXIT_STGI, SVM_EXIT_CLGI, SVM_EXIT_SKINIT,
    SVM_EXIT_RDTSCP, SVM_EXIT_ICEBP, SVM_EXIT_WBINVD, SVM_EXIT_MONITOR, SVM_EXIT_MWAIT, SVM_EXIT_MWAIT_COND, SVM_EXIT_XSETBV,
    SVM_EXIT_RDPRU, SVM_EXIT_INVLPGB = 0xa0, SVM_EXIT_INVLPGB_ILLEGAL, SVM_EXIT_INVPCID, SVM_EXIT_MCOMMIT, SVM_EXIT_TLBSYNC,
    SVM_EXIT_NPF = 0x400, SVM_EXIT_INVALID_LOW = -1, /* in the low 32 bits: software CPUs fill no more */
};
_Static_assert(SVM_EXIT_SHUTDOWN == 0x7f && SVM_EXIT_XSETBV == 0x8d && SVM_EXIT_VINTR == 0x64, "APM 2, appendix C");

/* exit_info1 of IOIO (15.10.2) and NPF (15.25.6) */
#define SVM_IOIO_IN BIT64(0)
#define SVM_IOIO_STRING BIT64(2)
#define SVM_IOIO_REP BIT64(3)
#define SVM_IOIO_SIZE(i) FIELD_GET64(i, 6, 4)
#define SVM_IOIO_ADDR(i) FIELD_GET64(i, 9, 7)
#define SVM_IOIO_SEG(i) FIELD_GET64(i, 12, 10)
#define SVM_IOIO_PORT(i) FIELD_GET64(i, 31, 16)
#define SVM_NPF_WRITE BIT64(1)
#define SVM_NPF_EXEC BIT64(4)
#define SVM_NPF_WALK BIT64(33)

#define SVM_IOPM_BYTES (3 * PAGE_SIZE)
#define SVM_MSRPM_BYTES (2 * PAGE_SIZE)

#endif
