/* Shared frames inside DMM: FRAME_SHARED behind SHARED_RO and SEALED entries. share.c has the theory. */
#ifndef HV_MM_DMM_SHARE_H
#define HV_MM_DMM_SHARE_H

#include "mm/dmm/frame.h"
#include "mm/dmm/p2m.h"
#include "mm/dmm/rmap.h"
#include "mm/dmm/space.h"

/* The record of a shared frame: type, refs, reverse map. Taken with the region's lock held; never two. */
#define SHARE_LOCKS 64
extern struct spinlock share_locks[SHARE_LOCKS];
static inline void share_lock(mfn_t m) { spin_lock_here(&share_locks[m.v % SHARE_LOCKS]); }
static inline void share_unlock(mfn_t m) { spin_unlock_here(&share_locks[m.v % SHARE_LOCKS]); }

/* The frame behind a SHARED_RO or SEALED entry. */
static inline mfn_t share_mfn_of(const struct dmm_space *s, p2m_entry_t e, enum p2m_type type)
{
    return type == P2M_SEALED ? mfn_of(s->format->payload_of(e)) : s->format->mfn_of(e);
}

/* RW -> SHARED_RO with one user. Region locked; the caller has made sure that nothing is pinned, and flushes. */
void share_protect(struct dmm_space *s, p2m_entry_t *slot, gfn_t gfn);
/* Pages that somebody who does not merge is protecting, and that CPUs may still be writing to: counted before they are protected, until all have been
 * told. */
extern unsigned share_unflushed;
static inline unsigned share_unflushed_pages(void) { return __atomic_load_n(&share_unflushed, __ATOMIC_ACQUIRE); }
/* SHARED_RO with one user -> RW, the same frame: no CPU can have a translation that permits more. False: it has more users. Region locked. */
bool share_unprotect(struct dmm_space *s, p2m_entry_t *slot, gfn_t gfn);
/* A user leaves: its entry is changed, and every CPU has forgotten it. Frees the frame after the last one. */
static inline void share_drop(mfn_t m, uint16_t space_id, uint64_t gfn)
{
    share_lock(m);
    uint32_t left = rmap_remove(frame_of(m), space_id, gfn);
    share_unlock(m);
    if (unlikely(!left))
        frame_free(m, 0);
}

/* An entry of this type, which is `e`, gets a frame of the space's own with what `m` holds. Region locked. False: there is none. */
static inline __attribute__((always_inline)) bool share_copy_out(struct frame_cpu *c, struct dmm_space *s, struct region *r, p2m_entry_t *slot,
                                                                 p2m_entry_t e, gfn_t gfn, mfn_t m, enum p2m_type type, unsigned access)
{
    mfn_t copy;
    if (unlikely(!pool_may_break(s) || !frame_alloc_guest_dirty(c, s, gfn.v, pool_break_flags(s), &copy)))
        return false;
    frame_of(copy)->flags = access & DMM_WALK ? FRAME_GUEST_TABLE : FRAME_BROKE;
    copy_page(frame_page(copy), frame_page(m));
    p2m_transition_from(s, slot, 1, type, P2M_RW, e, s->rw_4k + mfn_to_hpa(copy));
    pool_settle(s, 1);
    r->breaks += r->breaks < UINT8_MAX;
    __atomic_fetch_add(&s->breaks, 1, __ATOMIC_RELAXED);
    return true;
}

/* The same for a sealed page, in a time that does not tell what was left; it is counted out some time later. */
void share_drop_later(mfn_t m, uint16_t space_id, uint64_t gfn);
/* Counts out all that wait for it; returns whether there were any. No lock of rank > P2M held. */
bool share_drop_unsealed(void);

/* Users of shared frames whose entries have left, and that have not been counted out yet; for the audit. */
uint64_t share_limbo_count(void);

#endif
