/*
 * CPUID: leaves, and feature bits as (leaf, subleaf, register, bit) (AMD APM 3 appendix E, Intel SDM 2 "CPUID").
 *
 * The one list CPUID_FEATURES makes an enum whose values *are* the tuples, packed, so that a feature is a plain constant for
 * tables and switches; cpuid_feature_leaf() and friends unpack it.
 */
#ifndef HV_INCLUDE_HW_CPUID_H
#define HV_INCLUDE_HW_CPUID_H

#include "include/hv/types.h"

enum cpuid_reg { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };

#define CPUID_LEAF_VENDOR 0x00000000u
#define CPUID_LEAF_FEATURES 0x00000001u
#define CPUID_LEAF_STRUCTURED 0x00000007u
#define CPUID_LEAF_XSAVE 0x0000000du
#define CPUID_LEAF_TSC_HZ 0x00000015u
#define CPUID_LEAF_HYPERVISOR 0x40000000u
#define CPUID_LEAF_EXT_MAX 0x80000000u
#define CPUID_LEAF_EXT_FEATURES 0x80000001u
#define CPUID_LEAF_EXT_BRAND 0x80000002u /* ..4 */
#define CPUID_LEAF_EXT_POWER 0x80000007u
#define CPUID_LEAF_EXT_SIZES 0x80000008u
#define CPUID_LEAF_EXT_SVM 0x8000000au

#define CPUID_FEATURES(F)                                                                                  \
    F(SSE3, 1, 0, ECX, 0) F(PCLMULQDQ, 1, 0, ECX, 1) F(DTES64, 1, 0, ECX, 2) F(MONITOR, 1, 0, ECX, 3)       \
    F(DSCPL, 1, 0, ECX, 4) F(VMX, 1, 0, ECX, 5) F(SMX, 1, 0, ECX, 6) F(EST, 1, 0, ECX, 7) F(TM2, 1, 0, ECX, 8) \
    F(SSSE3, 1, 0, ECX, 9) F(CNXTID, 1, 0, ECX, 10) F(SDBG, 1, 0, ECX, 11) F(FMA, 1, 0, ECX, 12)            \
    F(CX16, 1, 0, ECX, 13) F(XTPR, 1, 0, ECX, 14) F(PDCM, 1, 0, ECX, 15) F(PCID, 1, 0, ECX, 17)             \
    F(DCA, 1, 0, ECX, 18) F(SSE41, 1, 0, ECX, 19) F(SSE42, 1, 0, ECX, 20) F(X2APIC, 1, 0, ECX, 21)          \
    F(MOVBE, 1, 0, ECX, 22) F(POPCNT, 1, 0, ECX, 23) F(TSC_DEADLINE, 1, 0, ECX, 24) F(AES, 1, 0, ECX, 25)   \
    F(XSAVE, 1, 0, ECX, 26) F(OSXSAVE, 1, 0, ECX, 27) F(AVX, 1, 0, ECX, 28) F(F16C, 1, 0, ECX, 29)          \
    F(RDRAND, 1, 0, ECX, 30) F(HYPERVISOR, 1, 0, ECX, 31)                                                   \
    F(FPU, 1, 0, EDX, 0) F(VME, 1, 0, EDX, 1) F(DE, 1, 0, EDX, 2) F(PSE, 1, 0, EDX, 3) F(TSC, 1, 0, EDX, 4)  \
    F(MSR, 1, 0, EDX, 5) F(PAE, 1, 0, EDX, 6) F(MCE, 1, 0, EDX, 7) F(CX8, 1, 0, EDX, 8) F(APIC, 1, 0, EDX, 9) \
    F(SEP, 1, 0, EDX, 11) F(MTRR, 1, 0, EDX, 12) F(PGE, 1, 0, EDX, 13) F(MCA, 1, 0, EDX, 14)                 \
    F(CMOV, 1, 0, EDX, 15) F(PAT, 1, 0, EDX, 16) F(PSE36, 1, 0, EDX, 17) F(PSN, 1, 0, EDX, 18)              \
    F(CLFLUSH, 1, 0, EDX, 19) F(DS, 1, 0, EDX, 21) F(ACPI, 1, 0, EDX, 22) F(MMX, 1, 0, EDX, 23)             \
    F(FXSR, 1, 0, EDX, 24) F(SSE, 1, 0, EDX, 25) F(SSE2, 1, 0, EDX, 26) F(SS, 1, 0, EDX, 27)                \
    F(HTT, 1, 0, EDX, 28) F(TM, 1, 0, EDX, 29) F(PBE, 1, 0, EDX, 31)                                        \
    F(ARAT, 6, 0, EAX, 2) F(APERFMPERF, 6, 0, ECX, 0)                                                       \
    F(FSGSBASE, 7, 0, EBX, 0) F(TSC_ADJUST, 7, 0, EBX, 1) F(SGX, 7, 0, EBX, 2) F(BMI1, 7, 0, EBX, 3)        \
    F(HLE, 7, 0, EBX, 4) F(AVX2, 7, 0, EBX, 5) F(SMEP, 7, 0, EBX, 7) F(BMI2, 7, 0, EBX, 8)                  \
    F(ERMS, 7, 0, EBX, 9) F(INVPCID, 7, 0, EBX, 10) F(RTM, 7, 0, EBX, 11) F(PQM, 7, 0, EBX, 12)             \
    F(MPX, 7, 0, EBX, 14) F(PQE, 7, 0, EBX, 15) F(AVX512F, 7, 0, EBX, 16) F(AVX512DQ, 7, 0, EBX, 17)        \
    F(RDSEED, 7, 0, EBX, 18) F(ADX, 7, 0, EBX, 19) F(SMAP, 7, 0, EBX, 20) F(CLFLUSHOPT, 7, 0, EBX, 23)      \
    F(CLWB, 7, 0, EBX, 24) F(INTEL_PT, 7, 0, EBX, 25) F(SHA, 7, 0, EBX, 29)                                 \
    F(UMIP, 7, 0, ECX, 2) F(PKU, 7, 0, ECX, 3) F(OSPKE, 7, 0, ECX, 4) F(WAITPKG, 7, 0, ECX, 5)              \
    F(CET_SS, 7, 0, ECX, 7) F(VAES, 7, 0, ECX, 9) F(VPCLMULQDQ, 7, 0, ECX, 10) F(LA57, 7, 0, ECX, 16)       \
    F(RDPID, 7, 0, ECX, 22) F(FSRM, 7, 0, EDX, 4) F(MD_CLEAR, 7, 0, EDX, 10) F(CET_IBT, 7, 0, EDX, 20)      \
    F(SPEC_CTRL, 7, 0, EDX, 26) F(STIBP_INTEL, 7, 0, EDX, 27) F(FLUSH_L1D, 7, 0, EDX, 28)                   \
    F(ARCH_CAPABILITIES, 7, 0, EDX, 29) F(SSBD_INTEL, 7, 0, EDX, 31)                                        \
    F(XSAVEOPT, 0xd, 1, EAX, 0) F(XSAVEC, 0xd, 1, EAX, 1) F(XGETBV1, 0xd, 1, EAX, 2) F(XSAVES, 0xd, 1, EAX, 3) \
    F(LAHF64, 0x80000001, 0, ECX, 0) F(CMP_LEGACY, 0x80000001, 0, ECX, 1) F(SVM, 0x80000001, 0, ECX, 2)     \
    F(EXTAPIC, 0x80000001, 0, ECX, 3) F(CR8_LEGACY, 0x80000001, 0, ECX, 4) F(ABM, 0x80000001, 0, ECX, 5)    \
    F(SSE4A, 0x80000001, 0, ECX, 6) F(MISALIGNSSE, 0x80000001, 0, ECX, 7) F(PREFETCHW, 0x80000001, 0, ECX, 8) \
    F(OSVW, 0x80000001, 0, ECX, 9) F(IBS, 0x80000001, 0, ECX, 10) F(XOP, 0x80000001, 0, ECX, 11)            \
    F(SKINIT, 0x80000001, 0, ECX, 12) F(WDT, 0x80000001, 0, ECX, 13) F(LWP, 0x80000001, 0, ECX, 15)         \
    F(FMA4, 0x80000001, 0, ECX, 16) F(TCE, 0x80000001, 0, ECX, 17) F(TBM, 0x80000001, 0, ECX, 21)           \
    F(TOPOEXT, 0x80000001, 0, ECX, 22) F(PERFCTR_CORE, 0x80000001, 0, ECX, 23)                              \
    F(PERFCTR_NB, 0x80000001, 0, ECX, 24) F(DBX, 0x80000001, 0, ECX, 26) F(PERFTSC, 0x80000001, 0, ECX, 27) \
    F(PERFCTR_LLC, 0x80000001, 0, ECX, 28) F(MONITORX, 0x80000001, 0, ECX, 29)                              \
    F(SYSCALL, 0x80000001, 0, EDX, 11) F(NX, 0x80000001, 0, EDX, 20) F(MMXEXT, 0x80000001, 0, EDX, 22)      \
    F(FXSR_OPT, 0x80000001, 0, EDX, 25) F(PAGES_1G, 0x80000001, 0, EDX, 26) F(RDTSCP, 0x80000001, 0, EDX, 27) \
    F(LM, 0x80000001, 0, EDX, 29) F(AMD_3DNOWEXT, 0x80000001, 0, EDX, 30) F(AMD_3DNOW, 0x80000001, 0, EDX, 31) \
    F(TSC_INVARIANT, 0x80000007, 0, EDX, 8)                                                                 \
    F(CLZERO, 0x80000008, 0, EBX, 0) F(XSAVEERPTR, 0x80000008, 0, EBX, 2) F(RDPRU, 0x80000008, 0, EBX, 4)   \
    F(WBNOINVD, 0x80000008, 0, EBX, 9) F(IBPB, 0x80000008, 0, EBX, 12) F(IBRS, 0x80000008, 0, EBX, 14)      \
    F(STIBP, 0x80000008, 0, EBX, 15) F(SSBD, 0x80000008, 0, EBX, 24) F(VIRT_SSBD, 0x80000008, 0, EBX, 25)   \
    F(SVM_NP, 0x8000000a, 0, EDX, 0) F(SVM_LBRVIRT, 0x8000000a, 0, EDX, 1) F(SVM_LOCK, 0x8000000a, 0, EDX, 2) \
    F(SVM_NRIPS, 0x8000000a, 0, EDX, 3) F(SVM_TSCRATE, 0x8000000a, 0, EDX, 4)                               \
    F(SVM_VMCBCLEAN, 0x8000000a, 0, EDX, 5) F(SVM_FLUSHBYASID, 0x8000000a, 0, EDX, 6)                       \
    F(SVM_DECODEASSISTS, 0x8000000a, 0, EDX, 7) F(SVM_PAUSEFILTER, 0x8000000a, 0, EDX, 10)                  \
    F(SVM_PFTHRESHOLD, 0x8000000a, 0, EDX, 12) F(SVM_AVIC, 0x8000000a, 0, EDX, 13)                          \
    F(SVM_VLOADSAVE, 0x8000000a, 0, EDX, 15) F(SVM_VGIF, 0x8000000a, 0, EDX, 16)                            \
    F(SVM_GMET, 0x8000000a, 0, EDX, 17)

/* Bits 4..0 bit, 6..5 register, 14..7 subleaf, 22..15 low byte of the leaf, 23 extended leaf. */
#define CPUID_PACK(leaf, subleaf, reg, bit)                                                                \
    (((leaf) >> 31) << 23 | ((leaf) & 0xff) << 15 | (subleaf) << 7 | (uint32_t)CPUID_##reg << 5 | (bit))

enum cpuid_feature {
#define CPUID_ENUM_ITEM(name, leaf, subleaf, reg, bit) CPUID_##name = CPUID_PACK(leaf##u, subleaf##u, reg, bit##u),
    CPUID_FEATURES(CPUID_ENUM_ITEM)
#undef CPUID_ENUM_ITEM
};

static inline uint32_t cpuid_feature_leaf(enum cpuid_feature f) { return ((f >> 23) & 1u) << 31 | ((f >> 15) & 0xff); }
static inline uint32_t cpuid_feature_subleaf(enum cpuid_feature f) { return (f >> 7) & 0xff; }
static inline enum cpuid_reg cpuid_feature_reg(enum cpuid_feature f) { return (enum cpuid_reg)((f >> 5) & 3); }
static inline unsigned cpuid_feature_bit(enum cpuid_feature f) { return f & 31; }
static inline uint32_t cpuid_feature_mask(enum cpuid_feature f) { return 1u << (f & 31); }
_Static_assert(CPUID_SVM == CPUID_PACK(0x80000001u, 0u, ECX, 2u) && CPUID_SVM >> 23 == 1, "extended leaves keep their bit");

#endif
