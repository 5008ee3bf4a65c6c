/* The p2m inside DMM: building a space's tables and changing its entries. include/hv/p2m.h has the entry formats' side. */
#ifndef HV_MM_DMM_P2M_H
#define HV_MM_DMM_P2M_H

#include "mm/dmm/space.h"

/* What a change of an entry's type at one level means for translations that CPUs may hold. */
enum p2m_change {
    P2M_CHANGE_ILLEGAL = 0,
    P2M_CHANGE_ADDS,     /* nothing was translated before: no CPU can hold anything */
    P2M_CHANGE_REMOVES,  /* a translation (or a table whose address CPUs may have cached) goes away */
};
/* The state diagram itself: docs/memory-states.md is checked against it. `level` 1 to 4. */
enum p2m_change p2m_change_of(enum p2m_type from, enum p2m_type to, unsigned level);

/*
 * The one way to change an entry. Replaces *slot, which must be of type from_type, with `to`; the hardware may set accessed and dirty bits
 * meanwhile. The region's lock is held (or the table is not reachable yet). Panics on a change that the diagram does not have: that is a bug
 * of ours, and the guest behind it is not safe. Returns what was replaced, with its final A and D bits. A P2M_CHANGE_REMOVES bumps the flush
 * generation; the caller then calls dmm_flush_wait(), after letting go of the lock and before it gives the frame away.
 */
p2m_entry_t p2m_transition(struct dmm_space *s, p2m_entry_t *slot, unsigned level, enum p2m_type from_type,
                           enum p2m_type to_type, p2m_entry_t to);

/* Upper levels down to the level-2 entry of `gfn`; NULL: out of frames. Before the space is in use. */
p2m_entry_t *p2m_build_level2(struct dmm_space *s, gfn_t gfn);
/* Gives the region level-1 entries that say what its non-present level-2 entry (EMPTY or HOLE) says. Region locked.
 * False: out of frames. */
bool p2m_build_level1(struct dmm_space *s, struct region *r, unsigned frame_flags);
/* One private 2 MiB leaf becomes 512 leaves of 4 KiB on the same frames, and back where that is possible in place. Region locked.
 * The caller flushes, and then frees the level-1 page that p2m_reform() took out of use (*table). */
enum dmm_resize_result p2m_break(struct dmm_space *s, struct region *r);
enum dmm_resize_result p2m_reform(struct dmm_space *s, struct region *r, mfn_t *table);

/* The leaf entry that speaks for gfn and its level. Region locked. */
static inline p2m_entry_t *p2m_leaf(struct region *r, gfn_t gfn, unsigned *level)
{
    *level = r->l1 ? 1 : 2;
    return r->l1 ? &r->l1[gfn.v % LARGE_PAGES] : r->l2e;
}

static inline p2m_entry_t p2m_read(const p2m_entry_t *slot) { return __atomic_load_n(slot, __ATOMIC_RELAXED); }

#endif
