/*
 * The p2m entry-format plug-in: how one nested page-table entry is spelled by EPT, NPT, or the host tests' fake.
 * The walker (mm/dmm/p2m.c) is neutral; it sees entries only through this table. All formats have four levels of 512
 * eight-byte entries, leaves at level 1 (4 KiB) and level 2 (2 MiB).
 *
 * An entry is typed in present and in non-present form. In non-present form the hardware ignores it; the payload must
 * not look like a real frame (L1TF): formats store it inverted above the physical width or reversed.
 */
#ifndef HV_INCLUDE_HV_P2M_H
#define HV_INCLUDE_HV_P2M_H

#include "include/hv/types.h"

typedef uint64_t p2m_entry_t;

enum p2m_type {
    P2M_HOLE = 0,    /* not RAM (all-zero entry) */
    P2M_EMPTY,       /* RAM never touched: reads as zero */
    P2M_SWAPPED, P2M_COMPRESSED, P2M_BALLOONED, P2M_MOVING_OUT, P2M_MOVING_IN, P2M_POISON, /* payload: slot/handle */
    P2M_MMIO,
    P2M_SEALED,      /* a shared frame's number; the next access of any kind copies it (secure groups) */
    P2M_INHERITED,   /* a 2 MiB region that is as the image has it from which the space was made, and was not touched since */
    P2M_LAST_NONPRESENT = P2M_INHERITED,
    P2M_TABLE,       /* present: points to the next level */
    P2M_RW,          /* present: private frame */
    P2M_SHARED_RO,   /* present: shared frame, copy on write */
    P2M_ZERO_RO,     /* present: the one zero frame, copy on write */
    P2M_IMAGE_RO,    /* present: a boot file's frame, copy on write */
    P2M_TYPE_COUNT,
};
const char *p2m_type_name(enum p2m_type t);

struct p2m_format {
    const char *name;  /* "npt", "ept", "fake" */
    p2m_entry_t (*make_table)(uint64_t table_hpa);
    /* A leaf of a present type. `level` 1 or 2; permissions follow from the type: P2M_RW is rwx, the _RO are r-x. The frame's address is
     * in bits 51:12 as both vendors have it: make_leaf(t, m, l) == make_leaf(t, 0, l) + mfn_to_hpa(m) (checked at creation). */
    p2m_entry_t (*make_leaf)(enum p2m_type t, mfn_t mfn, unsigned level);
    p2m_entry_t (*make_nonpresent)(enum p2m_type t, uint64_t payload /* < 2^40 */);
    enum p2m_type (*type_of)(p2m_entry_t e, unsigned level);
    unsigned type_shift;                     /* where its four bits are, at every level: p2m_type_of() */
    mfn_t (*mfn_of)(p2m_entry_t e);          /* of a present leaf or table */
    uint64_t (*payload_of)(p2m_entry_t e);   /* of a non-present entry */
    bool (*is_large)(p2m_entry_t e, unsigned level);
    bool (*accessed)(p2m_entry_t e);
    bool (*dirty)(p2m_entry_t e);
    p2m_entry_t (*clear_accessed)(p2m_entry_t e);
    p2m_entry_t (*clear_dirty)(p2m_entry_t e);
    /* The bits themselves, for those who look at many entries; 0: this CPU keeps none. And one bit of present entries that is ours to set. */
    uint64_t (*accessed_mask)(void);
    uint64_t (*dirty_mask)(void);
    uint64_t mark;
    bool (*permits)(p2m_entry_t e, unsigned access /* enum dmm_access */);
};

/* type_of() and mfn_of() without a call. */
static inline enum p2m_type p2m_type_of(const struct p2m_format *f, p2m_entry_t e) { return (enum p2m_type)(e >> f->type_shift & 15); }
static inline mfn_t p2m_mfn_of(p2m_entry_t e) { return mfn_of(e << 12 >> 24); } /* bits 51:12 */

extern const struct p2m_format p2m_format_npt, p2m_format_ept; /* svm/npt.c, vmx/ept.c */

#endif
