/* Shared frames inside DMM: FRAME_SHARED behind SHARED_RO and SEALED entries. share.c has the theory. */
#ifndef HV_MM_DMM_SHARE_H
#define HV_MM_DMM_SHARE_H

#include "mm/dmm/frame.h"
#include "mm/dmm/p2m.h"
#include "mm/dmm/space.h"

/* The record of a shared frame: type, refs, reverse map. Taken with the region's lock held; never two. */
void share_lock(mfn_t m);
void share_unlock(mfn_t m);

/* The frame behind a SHARED_RO or SEALED entry. */
static inline mfn_t share_mfn_of(const struct dmm_space *s, p2m_entry_t e, enum p2m_type type)
{
    return type == P2M_SEALED ? mfn_of(s->format->payload_of(e)) : s->format->mfn_of(e);
}

/* RW -> SHARED_RO with one user. Region locked; the caller has made sure that nothing is pinned, and flushes. */
void share_protect(struct dmm_space *s, p2m_entry_t *slot, gfn_t gfn);
/* SHARED_RO with one user -> RW, the same frame: no CPU can have a translation that permits more. False: it has more users. Region locked. */
bool share_unprotect(struct dmm_space *s, p2m_entry_t *slot, gfn_t gfn);
/* A user leaves: its entry is changed, and every CPU has forgotten it. Frees the frame after the last one. */
void share_drop(mfn_t m, uint16_t space_id, uint64_t gfn);
/* One more entry will lead there: counted before it is made. */
bool share_join(mfn_t m, uint16_t space_id, uint64_t gfn);

enum share_break_result {
    SHARE_BREAK_IN_PLACE,      /* nobody else had it: done */
    SHARE_BREAK_COPIED,        /* the caller flushes, and then calls share_drop(*old) */
    SHARE_BREAK_NO_FRAME,
};
/* A SHARED_RO entry is written to, or a SEALED one touched. Region locked. */
enum share_break_result share_break(struct dmm_space *s, struct region *r, p2m_entry_t *slot, gfn_t gfn, enum p2m_type type, unsigned access,
                                    mfn_t *old);

/* Users of shared frames whose entries have left and whose CPUs do not know it yet; for the audit. */
uint64_t share_limbo_count(void);

#endif
