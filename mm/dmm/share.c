/*
 * Shared frames: one frame behind several entries, copied when one of them is written to.
 *
 * The obvious merge (compare two pages, point both entries at one) is wrong twice: a guest may write between the comparison and the change, and a CPU
 * that still has the old translation may write after it. So here a page first becomes unwritable (SHARED_RO, on its own frame), then all CPUs
 * acknowledge, and only what nobody can write any more is compared. What was merged waits ("limbo") for the flush of the next batch before it
 * is counted out, so that a batch costs one flush.
 *
 * The obvious break is wrong as well: counting a user out before its CPUs have forgotten the frame lets the last other user, who now is
 * alone, write in place to what those CPUs still read. So the entry changes, the CPUs acknowledge, and then the user is counted out (share_drop()); a
 * frame with one user is written in place, one with two is copied even if the other is just leaving.
 *
 * Locks: the entry and a private frame's record belong to the region's lock, a shared frame's record to its share lock, taken inside. Whoever holds the
 * region's lock of one user keeps that user, hence the frame: contents can be read without the share lock.
 */
#include "mm/dmm/share.h"

#include "core/log.h"
#include "mm/dmm/rmap.h"

struct spinlock share_locks[SHARE_LOCKS] = { [0 ... SHARE_LOCKS - 1] = SPINLOCK_INIT(LOCK_RANK_SHARE, "shared frame") };

unsigned share_unflushed;

void share_protect(struct dmm_space *s, p2m_entry_t *slot, gfn_t gfn)
{
    mfn_t m = s->format->mfn_of(p2m_read(slot));
    share_lock(m);
    frame_disown(m, s);
    rmap_first(frame_of(m), s->id, gfn.v);
    share_unlock(m);
    p2m_transition(s, slot, 1, P2M_RW, P2M_SHARED_RO, s->format->make_leaf(P2M_SHARED_RO, m, 1));
    pool_owe(s, 1);
}

/* The one user takes the frame back. Share lock held; it is let go. */
static void take_back(struct dmm_space *s, p2m_entry_t *slot, gfn_t gfn, mfn_t m)
{
    rmap_remove(frame_of(m), s->id, gfn.v);
    frame_own(m, s, gfn.v);
    share_unlock(m);
    p2m_transition(s, slot, 1, P2M_SHARED_RO, P2M_RW, s->rw_4k + mfn_to_hpa(m));
    pool_settle(s, 1);
}

bool share_unprotect(struct dmm_space *s, p2m_entry_t *slot, gfn_t gfn)
{
    mfn_t m = s->format->mfn_of(p2m_read(slot));
    share_lock(m);
    if (frame_of(m)->refs != 1) {
        share_unlock(m);
        return false;
    }
    take_back(s, slot, gfn, m);
    return true;
}
