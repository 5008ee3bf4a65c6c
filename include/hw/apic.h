/* Local APIC and I/O APIC registers (AMD APM 2 chapter 16, Intel SDM 3 chapter 11, 82093AA data sheet). */
#ifndef HV_INCLUDE_HW_APIC_H
#define HV_INCLUDE_HW_APIC_H

#include "include/hv/types.h"

#define LAPIC_DEFAULT_BASE 0xfee00000u
#define LAPIC_WINDOW_BYTES 0x1000u

/* Offsets in the xAPIC page; 32-bit accesses only. As x2APIC: MSR_X2APIC_BASE + (offset >> 4), ICR one 64-bit MSR. */
#define LAPIC_ID 0x020u
#define LAPIC_VERSION 0x030u
#define LAPIC_TPR 0x080u
#define LAPIC_APR 0x090u
#define LAPIC_PPR 0x0a0u
#define LAPIC_EOI 0x0b0u
#define LAPIC_RRD 0x0c0u
#define LAPIC_LDR 0x0d0u
#define LAPIC_DFR 0x0e0u             /* not in x2APIC */
#define LAPIC_SVR 0x0f0u
#define LAPIC_ISR 0x100u             /* eight registers of 32 vectors, 16 bytes apart; TMR and IRR alike */
#define LAPIC_TMR 0x180u
#define LAPIC_IRR 0x200u
#define LAPIC_ESR 0x280u
#define LAPIC_LVT_CMCI 0x2f0u
#define LAPIC_ICR 0x300u
#define LAPIC_ICR_HIGH 0x310u        /* not in x2APIC */
#define LAPIC_LVT_TIMER 0x320u
#define LAPIC_LVT_THERMAL 0x330u
#define LAPIC_LVT_PERF 0x340u
#define LAPIC_LVT_LINT0 0x350u
#define LAPIC_LVT_LINT1 0x360u
#define LAPIC_LVT_ERROR 0x370u
#define LAPIC_TIMER_INITIAL 0x380u
#define LAPIC_TIMER_CURRENT 0x390u
#define LAPIC_TIMER_DIVIDE 0x3e0u
#define LAPIC_SELF_IPI 0x3f0u        /* x2APIC only */

#define LAPIC_SVR_ENABLE BIT64(8)
#define LAPIC_SVR_FOCUS_OFF BIT64(9)
#define LAPIC_SVR_EOI_SUPPRESS BIT64(12)
#define LAPIC_VERSION_MAX_LVT(v) FIELD_GET64(v, 23, 16)

#define LVT_MASKED BIT64(16)
#define LVT_PENDING BIT64(12)        /* delivery status */
#define LVT_ACTIVE_LOW BIT64(13)
#define LVT_REMOTE_IRR BIT64(14)
#define LVT_LEVEL BIT64(15)
#define LVT_TIMER_ONESHOT (UINT64_C(0) << 17)
#define LVT_TIMER_PERIODIC (UINT64_C(1) << 17)
#define LVT_TIMER_TSC_DEADLINE (UINT64_C(2) << 17)

/* Delivery modes: bits 10..8 of an LVT entry, the ICR and a redirection entry */
#define APIC_DM_FIXED (UINT64_C(0) << 8)
#define APIC_DM_LOWEST (UINT64_C(1) << 8)
#define APIC_DM_SMI (UINT64_C(2) << 8)
#define APIC_DM_NMI (UINT64_C(4) << 8)
#define APIC_DM_INIT (UINT64_C(5) << 8)
#define APIC_DM_SIPI (UINT64_C(6) << 8)
#define APIC_DM_EXTINT (UINT64_C(7) << 8)
#define APIC_DM_MASK (UINT64_C(7) << 8)

#define ICR_LOGICAL BIT64(11)
#define ICR_PENDING BIT64(12)        /* xAPIC only */
#define ICR_ASSERT BIT64(14)
#define ICR_LEVEL BIT64(15)
#define ICR_SELF (UINT64_C(1) << 18)
#define ICR_ALL (UINT64_C(2) << 18)
#define ICR_ALL_BUT_SELF (UINT64_C(3) << 18)
#define ICR_SHORTHAND_MASK (UINT64_C(3) << 18)

/* I/O APIC: an index and a data register; 32-bit accesses only. */
#define IOAPIC_DEFAULT_BASE 0xfec00000u
#define IOAPIC_WINDOW_BYTES 0x1000u
#define IOAPIC_REGSEL 0x00u
#define IOAPIC_WIN 0x10u
#define IOAPIC_EOI 0x40u             /* version 0x20 and later */
#define IOAPIC_REG_ID 0x00u
#define IOAPIC_REG_VER 0x01u
#define IOAPIC_REG_ARB 0x02u
#define IOAPIC_REG_REDIR(n) (0x10u + 2 * (n)) /* low half; high half follows */
#define IOAPIC_VER_MAX_REDIR(v) FIELD_GET64(v, 23, 16)

#define REDIR_LOGICAL BIT64(11)
#define REDIR_PENDING BIT64(12)
#define REDIR_ACTIVE_LOW BIT64(13)
#define REDIR_REMOTE_IRR BIT64(14)
#define REDIR_LEVEL BIT64(15)
#define REDIR_MASKED BIT64(16)
#define REDIR_DEST_SHIFT 56

#endif
