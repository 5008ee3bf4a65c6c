/* Model-specific registers by the manuals' names (AMD APM 2 appendix A, Intel SDM 4). */
#ifndef HV_INCLUDE_HW_MSR_H
#define HV_INCLUDE_HW_MSR_H

#include "include/hv/types.h"

/* Architectural, both vendors */
#define MSR_TSC 0x10u                /* software CPUs may read 0 and ignore writes: use RDTSC */
#define MSR_PLATFORM_ID 0x17u
#define MSR_APIC_BASE 0x1bu
#define MSR_FEATURE_CONTROL 0x3au
#define MSR_TSC_ADJUST 0x3bu
#define MSR_SPEC_CTRL 0x48u
#define MSR_PRED_CMD 0x49u
#define MSR_BIOS_UPDT_TRIG 0x79u
#define MSR_BIOS_SIGN_ID 0x8bu       /* microcode revision; AMD: PATCH_LEVEL */
#define MSR_PLATFORM_INFO 0xceu
#define MSR_MPERF 0xe7u
#define MSR_APERF 0xe8u
#define MSR_MTRRCAP 0xfeu
#define MSR_ARCH_CAPABILITIES 0x10au
#define MSR_FLUSH_CMD 0x10bu
#define MSR_SYSENTER_CS 0x174u
#define MSR_SYSENTER_ESP 0x175u
#define MSR_SYSENTER_EIP 0x176u
#define MSR_MCG_CAP 0x179u
#define MSR_MCG_STATUS 0x17au
#define MSR_MCG_CTL 0x17bu
#define MSR_PERFEVTSEL0 0x186u
#define MSR_PERF_STATUS 0x198u
#define MSR_PERF_CTL 0x199u
#define MSR_THERM_STATUS 0x19cu
#define MSR_MISC_ENABLE 0x1a0u
#define MSR_DEBUGCTL 0x1d9u
#define MSR_LASTBRANCHFROMIP 0x1dbu
#define MSR_LASTBRANCHTOIP 0x1dcu
#define MSR_LASTINTFROMIP 0x1ddu
#define MSR_LASTINTTOIP 0x1deu
#define MSR_MTRR_PHYSBASE(n) (0x200u + 2 * (n))
#define MSR_MTRR_PHYSMASK(n) (0x201u + 2 * (n))
#define MSR_MTRR_FIX64K_00000 0x250u
#define MSR_MTRR_FIX16K_80000 0x258u
#define MSR_MTRR_FIX16K_A0000 0x259u
#define MSR_MTRR_FIX4K_C0000 0x268u  /* ..0x26f */
#define MSR_MTRR_FIX4K_F8000 0x26fu
#define MSR_PAT 0x277u
#define MSR_MTRR_DEF_TYPE 0x2ffu
#define MSR_MC0_CTL 0x400u           /* four per bank: CTL, STATUS, ADDR, MISC */
#define MSR_VMX_BASIC 0x480u
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_X2APIC_BASE 0x800u       /* ..0x8ff: MSR 0x800 + (xAPIC offset >> 4) */
#define MSR_X2APIC_LAST 0x8ffu
#define MSR_XSS 0xda0u

/* AMD's range, the first few also Intel's */
#define MSR_EFER 0xc0000080u
#define MSR_STAR 0xc0000081u
#define MSR_LSTAR 0xc0000082u
#define MSR_CSTAR 0xc0000083u
#define MSR_SFMASK 0xc0000084u
#define MSR_FS_BASE 0xc0000100u
#define MSR_GS_BASE 0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u
#define MSR_TSC_AUX 0xc0000103u
#define MSR_TSC_RATIO 0xc0000104u
#define MSR_PERF_EVT_SEL0 0xc0010000u /* ..3 */
#define MSR_PERF_CTR0 0xc0010004u     /* ..7 */
#define MSR_SYSCFG 0xc0010010u
#define MSR_HWCR 0xc0010015u
#define MSR_IORR_BASE0 0xc0010016u
#define MSR_TOP_MEM 0xc001001au
#define MSR_TOP_MEM2 0xc001001du
#define MSR_NB_CFG 0xc001001fu
#define MSR_PATCH_LOADER 0xc0010020u
#define MSR_OSVW_ID_LENGTH 0xc0010140u
#define MSR_OSVW_STATUS 0xc0010141u
#define MSR_PSTATE_CUR_LIM 0xc0010061u
#define MSR_PSTATE_CTL 0xc0010062u
#define MSR_PSTATE_STATUS 0xc0010063u
#define MSR_PSTATE_0 0xc0010064u
#define MSR_VM_CR 0xc0010114u
#define MSR_IGNNE 0xc0010115u
#define MSR_VM_HSAVE_PA 0xc0010117u
#define MSR_SVM_KEY 0xc0010118u
#define MSR_VIRT_SPEC_CTRL 0xc001011fu
#define MSR_PERF_CTL0_CORE 0xc0010200u /* ..0xc001020b: extended core counters */
#define MSR_IBS_FETCH_CTL 0xc0011030u
#define MSR_LS_CFG 0xc0011020u
#define MSR_IC_CFG 0xc0011021u
#define MSR_DE_CFG 0xc0011029u

#define APIC_BASE_BSP BIT64(8)
#define APIC_BASE_X2APIC BIT64(10)
#define APIC_BASE_ENABLE BIT64(11)
#define APIC_BASE_ADDRESS_MASK GENMASK64(51, 12)

#define FEATURE_CONTROL_LOCKED BIT64(0)
#define FEATURE_CONTROL_VMX_OUTSIDE_SMX BIT64(2)

#define EFER_SCE BIT64(0)
#define EFER_LME BIT64(8)
#define EFER_LMA BIT64(10)
#define EFER_NXE BIT64(11)
#define EFER_SVME BIT64(12)
#define EFER_LMSLE BIT64(13)
#define EFER_FFXSR BIT64(14)
#define EFER_TCE BIT64(15)

#define VM_CR_R_INIT BIT64(1)
#define VM_CR_LOCK BIT64(3)
#define VM_CR_SVMDIS BIT64(4)

#define DE_CFG_LFENCE_SERIALIZE BIT64(1)
#define MISC_ENABLE_FAST_STRING BIT64(0)

#define MTRRCAP_FIX BIT64(8)
#define MTRRCAP_WC BIT64(10)
#define MTRR_DEF_TYPE_FE BIT64(10)
#define MTRR_DEF_TYPE_E BIT64(11)

#define MEM_TYPE_UC 0u
#define MEM_TYPE_WC 1u
#define MEM_TYPE_WT 4u
#define MEM_TYPE_WP 5u
#define MEM_TYPE_WB 6u
#define MEM_TYPE_UC_MINUS 7u         /* PAT only */
#define PAT_RESET UINT64_C(0x0007040600070406) /* WB WT UC- UC, twice: APM 2, 7.8.2 */

#endif
