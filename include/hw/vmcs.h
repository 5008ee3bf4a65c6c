/*
 * The virtual-machine control structure (Intel SDM 3, chapter 25 and appendix B), its controls, exit reasons (appendix C) and
 * instruction errors (31.4), and the capability MSRs (appendix A).
 *
 * The CPU lays the structure out as it likes: fields have only numbers, made of width, type and index (25.11.2). The list has the
 * parts and the appendix's number; that both agree is checked, so a wrong digit does not compile.
 */
#ifndef HV_INCLUDE_HW_VMCS_H
#define HV_INCLUDE_HW_VMCS_H

#include "include/hv/types.h"

enum vmcs_width { VMCS_W16, VMCS_W64, VMCS_W32, VMCS_NATURAL };
enum vmcs_type { VMCS_CONTROL, VMCS_EXIT_INFO /* read-only */, VMCS_GUEST, VMCS_HOST };
#define VMCS_ENCODE(width, type, index) ((unsigned)(width) << 13 | (unsigned)(type) << 10 | (index) << 1)

/* F(name, width, type, index, number in appendix B) */
#define VMCS_FIELDS(F)                                                                                     \
    F(VPID, W16, CONTROL, 0, 0x0000)                                                                        \
    F(GUEST_ES_SELECTOR, W16, GUEST, 0, 0x0800) F(GUEST_CS_SELECTOR, W16, GUEST, 1, 0x0802)                 \
    F(GUEST_SS_SELECTOR, W16, GUEST, 2, 0x0804) F(GUEST_DS_SELECTOR, W16, GUEST, 3, 0x0806)                 \
    F(GUEST_FS_SELECTOR, W16, GUEST, 4, 0x0808) F(GUEST_GS_SELECTOR, W16, GUEST, 5, 0x080a)                 \
    F(GUEST_LDTR_SELECTOR, W16, GUEST, 6, 0x080c) F(GUEST_TR_SELECTOR, W16, GUEST, 7, 0x080e)               \
    F(HOST_ES_SELECTOR, W16, HOST, 0, 0x0c00) F(HOST_CS_SELECTOR, W16, HOST, 1, 0x0c02)                     \
    F(HOST_SS_SELECTOR, W16, HOST, 2, 0x0c04) F(HOST_DS_SELECTOR, W16, HOST, 3, 0x0c06)                     \
    F(HOST_FS_SELECTOR, W16, HOST, 4, 0x0c08) F(HOST_GS_SELECTOR, W16, HOST, 5, 0x0c0a)                     \
    F(HOST_TR_SELECTOR, W16, HOST, 6, 0x0c0c) F(PML_INDEX, W16, GUEST, 9, 0x0812)                           \
    F(MSR_BITMAP, W64, CONTROL, 2, 0x2004) F(PML_ADDRESS, W64, CONTROL, 7, 0x200e) F(TSC_OFFSET, W64, CONTROL, 8, 0x2010)                           \
    F(VIRTUAL_APIC, W64, CONTROL, 9, 0x2012) F(EPTP, W64, CONTROL, 13, 0x201a)                              \
    F(GUEST_PHYSICAL_ADDRESS, W64, EXIT_INFO, 0, 0x2400)                                                    \
    F(LINK_POINTER, W64, GUEST, 0, 0x2800) F(GUEST_DEBUGCTL, W64, GUEST, 1, 0x2802)                         \
    F(GUEST_PAT, W64, GUEST, 2, 0x2804) F(GUEST_EFER, W64, GUEST, 3, 0x2806)                                \
    F(GUEST_PDPTE0, W64, GUEST, 5, 0x280a) F(GUEST_PDPTE1, W64, GUEST, 6, 0x280c)                           \
    F(GUEST_PDPTE2, W64, GUEST, 7, 0x280e) F(GUEST_PDPTE3, W64, GUEST, 8, 0x2810)                           \
    F(HOST_PAT, W64, HOST, 0, 0x2c00) F(HOST_EFER, W64, HOST, 1, 0x2c02)                                    \
    F(PIN_CONTROLS, W32, CONTROL, 0, 0x4000) F(PROC_CONTROLS, W32, CONTROL, 1, 0x4002)                      \
    F(EXCEPTION_BITMAP, W32, CONTROL, 2, 0x4004) F(PF_ERROR_MASK, W32, CONTROL, 3, 0x4006)                  \
    F(PF_ERROR_MATCH, W32, CONTROL, 4, 0x4008) F(CR3_TARGET_COUNT, W32, CONTROL, 5, 0x400a)                 \
    F(EXIT_CONTROLS, W32, CONTROL, 6, 0x400c) F(EXIT_MSR_STORE_COUNT, W32, CONTROL, 7, 0x400e)              \
    F(EXIT_MSR_LOAD_COUNT, W32, CONTROL, 8, 0x4010) F(ENTRY_CONTROLS, W32, CONTROL, 9, 0x4012)              \
    F(ENTRY_MSR_LOAD_COUNT, W32, CONTROL, 10, 0x4014) F(ENTRY_INTERRUPTION, W32, CONTROL, 11, 0x4016)       \
    F(ENTRY_ERROR_CODE, W32, CONTROL, 12, 0x4018) F(ENTRY_INSTRUCTION_LENGTH, W32, CONTROL, 13, 0x401a)     \
    F(TPR_THRESHOLD, W32, CONTROL, 14, 0x401c) F(PROC2_CONTROLS, W32, CONTROL, 15, 0x401e)                  \
    F(PLE_GAP, W32, CONTROL, 16, 0x4020) F(PLE_WINDOW, W32, CONTROL, 17, 0x4022)                            \
    F(INSTRUCTION_ERROR, W32, EXIT_INFO, 0, 0x4400) F(EXIT_REASON, W32, EXIT_INFO, 1, 0x4402)               \
    F(EXIT_INTERRUPTION, W32, EXIT_INFO, 2, 0x4404) F(EXIT_ERROR_CODE, W32, EXIT_INFO, 3, 0x4406)           \
    F(IDT_VECTORING, W32, EXIT_INFO, 4, 0x4408) F(IDT_VECTORING_ERROR_CODE, W32, EXIT_INFO, 5, 0x440a)      \
    F(EXIT_INSTRUCTION_LENGTH, W32, EXIT_INFO, 6, 0x440c) F(EXIT_INSTRUCTION_INFO, W32, EXIT_INFO, 7, 0x440e) \
    F(GUEST_ES_LIMIT, W32, GUEST, 0, 0x4800) F(GUEST_CS_LIMIT, W32, GUEST, 1, 0x4802)                       \
    F(GUEST_SS_LIMIT, W32, GUEST, 2, 0x4804) F(GUEST_DS_LIMIT, W32, GUEST, 3, 0x4806)                       \
    F(GUEST_FS_LIMIT, W32, GUEST, 4, 0x4808) F(GUEST_GS_LIMIT, W32, GUEST, 5, 0x480a)                       \
    F(GUEST_LDTR_LIMIT, W32, GUEST, 6, 0x480c) F(GUEST_TR_LIMIT, W32, GUEST, 7, 0x480e)                     \
    F(GUEST_GDTR_LIMIT, W32, GUEST, 8, 0x4810) F(GUEST_IDTR_LIMIT, W32, GUEST, 9, 0x4812)                   \
    F(GUEST_ES_RIGHTS, W32, GUEST, 10, 0x4814) F(GUEST_CS_RIGHTS, W32, GUEST, 11, 0x4816)                   \
    F(GUEST_SS_RIGHTS, W32, GUEST, 12, 0x4818) F(GUEST_DS_RIGHTS, W32, GUEST, 13, 0x481a)                   \
    F(GUEST_FS_RIGHTS, W32, GUEST, 14, 0x481c) F(GUEST_GS_RIGHTS, W32, GUEST, 15, 0x481e)                   \
    F(GUEST_LDTR_RIGHTS, W32, GUEST, 16, 0x4820) F(GUEST_TR_RIGHTS, W32, GUEST, 17, 0x4822)                 \
    F(INTERRUPTIBILITY, W32, GUEST, 18, 0x4824) F(ACTIVITY_STATE, W32, GUEST, 19, 0x4826)                   \
    F(GUEST_SYSENTER_CS, W32, GUEST, 21, 0x482a) F(PREEMPTION_TIMER, W32, GUEST, 23, 0x482e)                \
    F(HOST_SYSENTER_CS, W32, HOST, 0, 0x4c00)                                                               \
    F(CR0_MASK, NATURAL, CONTROL, 0, 0x6000) F(CR4_MASK, NATURAL, CONTROL, 1, 0x6002)                       \
    F(CR0_SHADOW, NATURAL, CONTROL, 2, 0x6004) F(CR4_SHADOW, NATURAL, CONTROL, 3, 0x6006)                   \
    F(EXIT_QUALIFICATION, NATURAL, EXIT_INFO, 0, 0x6400) F(GUEST_LINEAR_ADDRESS, NATURAL, EXIT_INFO, 5, 0x640a) \
    F(GUEST_CR0, NATURAL, GUEST, 0, 0x6800) F(GUEST_CR3, NATURAL, GUEST, 1, 0x6802)                         \
    F(GUEST_CR4, NATURAL, GUEST, 2, 0x6804) F(GUEST_ES_BASE, NATURAL, GUEST, 3, 0x6806)                     \
    F(GUEST_CS_BASE, NATURAL, GUEST, 4, 0x6808) F(GUEST_SS_BASE, NATURAL, GUEST, 5, 0x680a)                 \
    F(GUEST_DS_BASE, NATURAL, GUEST, 6, 0x680c) F(GUEST_FS_BASE, NATURAL, GUEST, 7, 0x680e)                 \
    F(GUEST_GS_BASE, NATURAL, GUEST, 8, 0x6810) F(GUEST_LDTR_BASE, NATURAL, GUEST, 9, 0x6812)               \
    F(GUEST_TR_BASE, NATURAL, GUEST, 10, 0x6814) F(GUEST_GDTR_BASE, NATURAL, GUEST, 11, 0x6816)             \
    F(GUEST_IDTR_BASE, NATURAL, GUEST, 12, 0x6818) F(GUEST_DR7, NATURAL, GUEST, 13, 0x681a)                 \
    F(GUEST_RSP, NATURAL, GUEST, 14, 0x681c) F(GUEST_RIP, NATURAL, GUEST, 15, 0x681e)                       \
    F(GUEST_RFLAGS, NATURAL, GUEST, 16, 0x6820) F(PENDING_DEBUG, NATURAL, GUEST, 17, 0x6822)                \
    F(GUEST_SYSENTER_ESP, NATURAL, GUEST, 18, 0x6824) F(GUEST_SYSENTER_EIP, NATURAL, GUEST, 19, 0x6826)     \
    F(HOST_CR0, NATURAL, HOST, 0, 0x6c00) F(HOST_CR3, NATURAL, HOST, 1, 0x6c02)                             \
    F(HOST_CR4, NATURAL, HOST, 2, 0x6c04) F(HOST_FS_BASE, NATURAL, HOST, 3, 0x6c06)                         \
    F(HOST_GS_BASE, NATURAL, HOST, 4, 0x6c08) F(HOST_TR_BASE, NATURAL, HOST, 5, 0x6c0a)                     \
    F(HOST_GDTR_BASE, NATURAL, HOST, 6, 0x6c0c) F(HOST_IDTR_BASE, NATURAL, HOST, 7, 0x6c0e)                 \
    F(HOST_SYSENTER_ESP, NATURAL, HOST, 8, 0x6c10) F(HOST_SYSENTER_EIP, NATURAL, HOST, 9, 0x6c12)           \
    F(HOST_RSP, NATURAL, HOST, 10, 0x6c14) F(HOST_RIP, NATURAL, HOST, 11, 0x6c16)

enum vmcs_field {
#define F(name, width, type, index, number) VMCS_##name = VMCS_ENCODE(VMCS_##width, VMCS_##type, index),
    VMCS_FIELDS(F)
#undef F
};
#define F(name, width, type, index, number) _Static_assert(VMCS_##name == (number), "SDM 3, appendix B: " #name);
VMCS_FIELDS(F)
#undef F

/* ---- capability MSRs (appendix A), from MSR_VMX_BASIC on ------------------------------------------------------------- */

#define MSR_VMX_PINBASED_CTLS 0x481u
#define MSR_VMX_PROCBASED_CTLS 0x482u
#define MSR_VMX_EXIT_CTLS 0x483u
#define MSR_VMX_ENTRY_CTLS 0x484u
#define MSR_VMX_MISC 0x485u
#define MSR_VMX_CR0_FIXED0 0x486u
#define MSR_VMX_CR0_FIXED1 0x487u
#define MSR_VMX_CR4_FIXED0 0x488u
#define MSR_VMX_CR4_FIXED1 0x489u
#define MSR_VMX_PROCBASED_CTLS2 0x48bu
#define MSR_VMX_EPT_VPID_CAP 0x48cu
#define MSR_VMX_TRUE_OFFSET 0xcu       /* the "true" control MSRs: 48Dh for 481h and so on */
#define MSR_VMX_TRUE_FIRST 0x48du
#define MSR_VMX_LAST 0x490u            /* of those that we read */

#define VMX_BASIC_REVISION(v) FIELD_GET64(v, 30, 0)
#define VMX_BASIC_BYTES(v) FIELD_GET64(v, 44, 32)
#define VMX_BASIC_MEM_TYPE(v) FIELD_GET64(v, 53, 50)
#define VMX_BASIC_INS_OUTS_INFO BIT64(54)
#define VMX_BASIC_TRUE_CONTROLS BIT64(55)
#define VMX_MISC_TIMER_SHIFT(v) FIELD_GET64(v, 4, 0)

#define EPT_CAP_WALK_4 BIT64(6)
#define EPT_CAP_WB BIT64(14)
#define EPT_CAP_2M BIT64(16)
#define EPT_CAP_INVEPT BIT64(20)
#define EPT_CAP_AD BIT64(21)
#define EPT_CAP_INVEPT_SINGLE BIT64(25)
#define EPT_CAP_INVEPT_ALL BIT64(26)
#define EPT_CAP_INVVPID BIT64(32)
#define EPT_CAP_INVVPID_ALL BIT64(42)

#define INVEPT_SINGLE 1u
#define INVEPT_ALL 2u
#define INVVPID_ALL 2u
/* What both look at in memory: for INVEPT an EPTP, for INVVPID a VPID; their types for all look at neither. */
struct vmx_invalidation { uint64_t what, address; };
_Static_assert(sizeof(struct vmx_invalidation) == 16, "SDM 3, 31.3");

#define EPTP_WALK_4 (UINT64_C(3) << 3)
#define EPTP_AD BIT64(6)

/* ---- controls (25.6.1, 25.6.2, 25.7.1, 25.8.1): C(name, bit, the manual's words) --------------------------------------- */

#define VMX_PIN_CONTROLS(C)                                                                                \
    C(EXTINT, 0, "external-interrupt exiting") C(NMI, 3, "NMI exiting") C(VIRTUAL_NMI, 5, "virtual NMIs")   \
    C(TIMER, 6, "activate VMX-preemption timer")

#define VMX_PROC_CONTROLS(C)                                                                               \
    C(IRQ_WINDOW, 2, "interrupt-window exiting") C(TSC_OFFSET, 3, "use TSC offsetting") C(HLT, 7, "HLT exiting") \
    C(INVLPG, 9, "INVLPG exiting") C(MWAIT, 10, "MWAIT exiting") C(RDPMC, 11, "RDPMC exiting")              \
    C(RDTSC, 12, "RDTSC exiting") C(CR3_LOAD, 15, "CR3-load exiting") C(CR3_STORE, 16, "CR3-store exiting") \
    C(CR8_LOAD, 19, "CR8-load exiting") C(CR8_STORE, 20, "CR8-store exiting") C(TPR_SHADOW, 21, "use TPR shadow") \
    C(NMI_WINDOW, 22, "NMI-window exiting") C(MOV_DR, 23, "MOV-DR exiting") C(IO, 24, "unconditional I/O exiting") \
    C(MSR_BITMAPS, 28, "use MSR bitmaps") C(MONITOR, 29, "MONITOR exiting") C(PAUSE, 30, "PAUSE exiting")   \
    C(SECONDARY, 31, "activate secondary controls")

#define VMX_PROC2_CONTROLS(C)                                                                              \
    C(EPT, 1, "enable EPT") C(RDTSCP, 3, "enable RDTSCP") C(VPID, 5, "enable VPID") C(WBINVD, 6, "WBINVD exiting") \
    C(UNRESTRICTED, 7, "unrestricted guest") C(PAUSE_LOOP, 10, "PAUSE-loop exiting") C(INVPCID, 12, "enable INVPCID") \
    C(PML, 17, "enable PML")

#define VMX_EXIT_CONTROLS(C)                                                                               \
    C(SAVE_DEBUG, 2, "save debug controls") C(HOST_64, 9, "host address-space size")                        \
    C(ACK_INTERRUPT, 15, "acknowledge interrupt on exit") C(SAVE_PAT, 18, "save IA32_PAT") C(LOAD_PAT, 19, "load IA32_PAT") \
    C(SAVE_EFER, 20, "save IA32_EFER") C(LOAD_EFER, 21, "load IA32_EFER")                                   \
    C(SAVE_TIMER, 22, "save VMX-preemption timer value")

#define VMX_ENTRY_CONTROLS(C)                                                                              \
    C(LOAD_DEBUG, 2, "load debug controls") C(GUEST_IA32E, 9, "IA-32e mode guest") C(SMM, 10, "entry to SMM") \
    C(LOAD_PAT, 14, "load IA32_PAT") C(LOAD_EFER, 15, "load IA32_EFER")

enum vmx_control_bits {
#define C(name, bit, words) VMX_PIN_##name = 1 << (bit),
    VMX_PIN_CONTROLS(C)
#undef C
#define C(name, bit, words) VMX_EXIT_##name = 1 << (bit),
    VMX_EXIT_CONTROLS(C)
#undef C
#define C(name, bit, words) VMX_ENTRY_##name = 1 << (bit),
    VMX_ENTRY_CONTROLS(C)
#undef C
#define C(name, bit, words) VMX_PROC_##name = 1u << (bit),
    VMX_PROC_CONTROLS(C)
#undef C
#define C(name, bit, words) VMX_PROC2_##name = 1 << (bit),
    VMX_PROC2_CONTROLS(C)
#undef C
};

/* ---- segments, events, interruptibility -------------------------------------------------------------------------------- */

#define VMX_RIGHTS_UNUSABLE BIT64(16)

/* ENTRY_INTERRUPTION, EXIT_INTERRUPTION, IDT_VECTORING (25.8.3, 25.9.2, 25.9.3) */
#define VMX_EVENT_VECTOR(e) ((uint8_t)(e))
#define VMX_EVENT_TYPE(e) ((e) >> 8 & 7)
#define VMX_EVENT_MAKE(type, vector) (VMX_EVENT_VALID | (uint32_t)(type) << 8 | (vector))
#define VMX_EVENT_ERROR_VALID (1u << 11)
#define VMX_EVENT_NMI_UNBLOCKED (1u << 12) /* exits: IRET had ended the blocking before it faulted */
#define VMX_EVENT_VALID (1u << 31)
enum vmx_event_type { VMX_EVENT_EXTINT = 0, VMX_EVENT_NMI = 2, VMX_EVENT_EXCEPTION = 3, VMX_EVENT_SOFT_INT = 4,
    VMX_EVENT_PRIVILEGED_SOFT = 5 /* INT1 */, VMX_EVENT_SOFT_EXCEPTION = 6 /* INT3, INTO */ };

#define VMX_BLOCKED_BY_STI (1u << 0)
#define VMX_BLOCKED_BY_MOV_SS (1u << 1)
#define VMX_BLOCKED_BY_NMI (1u << 3)
#define VMX_PENDING_DEBUG_BS BIT64(14)

/* ---- exits (appendix C): R(name, number) ----------------------------------------------------------------------------------- */

#define VMX_EXIT_REASONS(R)                                                                                \
    R(EXCEPTION_OR_NMI, 0) R(EXTERNAL_INTERRUPT, 1) R(TRIPLE_FAULT, 2) R(INIT, 3) R(SIPI, 4) R(IO_SMI, 5) R(OTHER_SMI, 6) \
    R(INTERRUPT_WINDOW, 7) R(NMI_WINDOW, 8) R(TASK_SWITCH, 9) R(CPUID, 10) R(GETSEC, 11) R(HLT, 12) R(INVD, 13) \
    R(INVLPG, 14) R(RDPMC, 15) R(RDTSC, 16) R(RSM, 17) R(VMCALL, 18) R(VMCLEAR, 19) R(VMLAUNCH, 20) R(VMPTRLD, 21) \
    R(VMPTRST, 22) R(VMREAD, 23) R(VMRESUME, 24) R(VMWRITE, 25) R(VMXOFF, 26) R(VMXON, 27) R(CR_ACCESS, 28) \
    R(MOV_DR, 29) R(IO, 30) R(RDMSR, 31) R(WRMSR, 32) R(INVALID_GUEST_STATE, 33) R(MSR_LOADING, 34) R(MWAIT, 36) \
    R(MONITOR_TRAP, 37) R(MONITOR, 39) R(PAUSE, 40) R(ENTRY_MACHINE_CHECK, 41) R(TPR_BELOW_THRESHOLD, 43) \
    R(APIC_ACCESS, 44) R(VIRTUALIZED_EOI, 45) R(GDTR_IDTR, 46) R(LDTR_TR, 47) R(EPT_VIOLATION, 48) \
    R(EPT_MISCONFIGURATION, 49) R(INVEPT, 50) R(RDTSCP, 51) R(PREEMPTION_TIMER, 52) R(INVVPID, 53) R(WBINVD, 54) \
    R(XSETBV, 55) R(APIC_WRITE, 56) R(RDRAND, 57) R(INVPCID, 58) R(VMFUNC, 59) R(ENCLS, 60) R(RDSEED, 61) \
    R(PML_FULL, 62) R(XSAVES, 63) R(XRSTORS, 64) R(UMWAIT, 67) R(TPAUSE, 68)

enum vmx_exit_reason {
#define R(name, number) VMX_REASON_##name = (number),
    VMX_EXIT_REASONS(R)
#undef R
};
#define VMX_REASON_BASIC(r) ((r) & 0xffff)
#define VMX_REASON_ENTRY_FAILURE (1u << 31)

/* Page-modification logging (29.3.6): the log fills from its last entry down; below 0 the index is FFFFh, and the CPU exits instead of logging. */
#define PML_ENTRIES 512u

/* EXIT_QUALIFICATION of control registers, debug registers, I/O and EPT violations (28.2.1); EXIT_INSTRUCTION_INFO of INS, OUTS */
#define VMX_CR_NUMBER(q) FIELD_GET64(q, 3, 0)
#define VMX_CR_ACCESS(q) FIELD_GET64(q, 5, 4)  /* MOV to, MOV from, CLTS, LMSW */
#define VMX_CR_GPR(q) FIELD_GET64(q, 11, 8)
#define VMX_DR_NUMBER(q) FIELD_GET64(q, 2, 0)
#define VMX_DR_FROM BIT64(4)
#define VMX_DR_GPR(q) FIELD_GET64(q, 11, 8)
#define VMX_IO_BYTES(q) (FIELD_GET64(q, 2, 0) + 1)
#define VMX_IO_IN BIT64(3)
#define VMX_IO_STRING BIT64(4)
#define VMX_IO_REP BIT64(5)
#define VMX_IO_PORT(q) FIELD_GET64(q, 31, 16)
#define VMX_STRING_ADDRESS(i) ((i) >> 7 & 7)   /* 16, 32, 64 bits */
#define VMX_STRING_SEGMENT(i) ((i) >> 15 & 7)  /* OUTS only */
#define VMX_EPT_WRITE BIT64(1)
#define VMX_EPT_EXEC BIT64(2)
#define VMX_EPT_LINEAR_VALID BIT64(7)
#define VMX_EPT_FINAL BIT64(8)                 /* with LINEAR_VALID: the access itself, not the guest's page walk */
#define VMX_EPT_NMI_UNBLOCKED BIT64(12)
#define VMX_DB_CAUSES (GENMASK64(3, 0) | GENMASK64(14, 13))

/* ---- VM-instruction errors (31.4): E(number, words) -------------------------------------------------------------------------- */

#define VMX_INSTRUCTION_ERRORS(E)                                                                          \
    E(1, "VMCALL executed in VMX root operation") E(2, "VMCLEAR with invalid physical address")              \
    E(3, "VMCLEAR with VMXON pointer") E(4, "VMLAUNCH with non-clear VMCS") E(5, "VMRESUME with non-launched VMCS") \
    E(6, "VMRESUME after VMXOFF") E(7, "VM entry with invalid control field(s)")                             \
    E(8, "VM entry with invalid host-state field(s)") E(9, "VMPTRLD with invalid physical address")          \
    E(10, "VMPTRLD with VMXON pointer") E(11, "VMPTRLD with incorrect VMCS revision identifier")             \
    E(12, "VMREAD/VMWRITE from/to unsupported VMCS component") E(13, "VMWRITE to read-only VMCS component")  \
    E(15, "VMXON executed in VMX root operation") E(16, "VM entry with invalid executive-VMCS pointer")      \
    E(17, "VM entry with non-launched executive VMCS")                                                       \
    E(18, "VM entry with executive-VMCS pointer not VMXON pointer") E(19, "VMCALL with non-clear VMCS")      \
    E(20, "VMCALL with invalid VM-exit control fields") E(22, "VMCALL with incorrect MSEG revision identifier") \
    E(23, "VMXOFF under dual-monitor treatment of SMIs and SMM") E(24, "VMCALL with invalid SMM-monitor features") \
    E(25, "VM entry with invalid VM-execution control fields in executive VMCS")                             \
    E(26, "VM entry with events blocked by MOV SS") E(28, "Invalid operand to INVEPT/INVVPID")

/* APIC page (12.5.1 of the manual's APIC chapter): the task priority that CR8 stands for */
#define VIRTUAL_APIC_TPR 0x80

#endif
