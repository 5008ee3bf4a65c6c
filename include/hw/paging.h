/* Long-mode page-table entries (AMD APM 2 chapter 5.3, Intel SDM 3 chapter 4.5); nested entries on AMD have this form too. */
#ifndef HV_INCLUDE_HW_PAGING_H
#define HV_INCLUDE_HW_PAGING_H

#include "include/hv/types.h"

#define PTE_P BIT64(0)
#define PTE_W BIT64(1)
#define PTE_U BIT64(2)
#define PTE_PWT BIT64(3)
#define PTE_PCD BIT64(4)
#define PTE_A BIT64(5)
#define PTE_D BIT64(6)
#define PTE_PS BIT64(7)              /* in a PDE or PDPTE: a 2 MiB or 1 GiB leaf */
#define PTE_PAT BIT64(7)             /* in a 4 KiB PTE */
#define PTE_G BIT64(8)
#define PTE_AVL_SHIFT 9              /* three bits for software */
#define PTE_PAT_LARGE BIT64(12)      /* in a 2 MiB or 1 GiB leaf */
#define PTE_NX BIT64(63)
#define PTE_ADDR_MASK GENMASK64(51, 12)
#define PTE_ADDR_MASK_2M GENMASK64(51, 21)
#define PTE_ADDR_MASK_1G GENMASK64(51, 30)

/* With the reset PAT (MSR_PAT = PAT_RESET), for every leaf size. */
#define PTE_CACHE_WB UINT64_C(0)
#define PTE_CACHE_WT PTE_PWT
#define PTE_CACHE_UC_MINUS PTE_PCD   /* an MTRR of write-combining wins: frame buffers */
#define PTE_CACHE_UC (PTE_PCD | PTE_PWT)

#define PT_ENTRIES 512u
#define PT_LEVELS 4u                 /* 4: PML4, 3: PDPT, 2: PD, 1: PT */
#define PT_SHIFT(level) (PAGE_SHIFT + 9u * ((level) - 1))
#define PT_INDEX(va, level) (((va) >> PT_SHIFT(level)) & (PT_ENTRIES - 1))

/* #PF error code (APM 2, 8.4.2) */
#define PF_P BIT64(0)
#define PF_W BIT64(1)
#define PF_U BIT64(2)
#define PF_RSVD BIT64(3)
#define PF_I BIT64(4)
#define PF_PK BIT64(5)
#define PF_SS BIT64(6)

/* Bits 63..47 all equal: what 4-level paging can translate. */
static inline bool va_is_canonical(uint64_t va) { return (int64_t)(va << 16) >> 16 == (int64_t)va; }

#endif
