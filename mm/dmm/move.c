/*
 * Taking a page away from a running guest and giving it back: to another frame, or write-protected.
 *
 * Everything that takes memory from guests has this shape, and its one difficulty: other CPUs go on using the old translation until they
 * have been told and have said so. So the entry changes first (the generation moves with it), then all CPUs acknowledge, and only
 * then the contents are read, because until then a guest may still be writing them. A vCPU that touches the page meanwhile
 * finds it MOVING_OUT and sleeps until it is back. docs/locking.md draws the race.
 *
 * A write-protected page is SHARED_RO with one user: the first write gives it back, in place.
 */
#include "core/log.h"
#include "mm/dmm/frame.h"
#include "mm/dmm/share.h"

/* The entry of a private, unpinned 4 KiB page; NULL: *why. Region locked. */
static p2m_entry_t *private_page(struct dmm_space *s, struct region *r, gfn_t gfn, enum dmm_move_result *why)
{
    p2m_entry_t *slot = r->l1 ? &r->l1[gfn.v % LARGE_PAGES] : NULL;
    *why = DMM_MOVE_UNSUITABLE;
    if (!slot || s->format->type_of(p2m_read(slot), 1) != P2M_RW)
        return NULL;
    *why = __atomic_load_n(&frame_of(s->format->mfn_of(p2m_read(slot)))->refs, __ATOMIC_ACQUIRE) ? DMM_MOVE_PINNED : DMM_MOVE_OK;
    return *why == DMM_MOVE_OK ? slot : NULL;
}

/* Inside the gate throughout: in between, a frame is in no entry. */
static enum dmm_move_result move(struct dmm_space *s, struct region *r, gfn_t gfn)
{
    enum dmm_move_result result;
    mfn_t to = frame_alloc(0, 0, FRAME_GUEST, s);
    if (!mfn_valid(to))
        return DMM_MOVE_NO_MEMORY;
    spin_lock(&r->lock);
    p2m_entry_t *slot = private_page(s, r, gfn, &result);
    mfn_t from = slot ? s->format->mfn_of(p2m_read(slot)) : INVALID_MFN;
    if (slot)
        p2m_transition(s, slot, 1, P2M_RW, P2M_MOVING_OUT, s->format->make_nonpresent(P2M_MOVING_OUT, 0));
    spin_unlock(&r->lock);
    if (!slot) {
        frame_free(to, 0);
        return result;
    }
    dmm_flush_wait(s);
    copy_page(mfn_to_hva(to), mfn_to_hva(from));
    frame_of(to)->where = gfn.v;
    spin_lock(&r->lock);
    p2m_transition(s, slot, 1, P2M_MOVING_OUT, P2M_RW, s->rw_4k + mfn_to_hpa(to));
    region_changed(r);
    spin_unlock(&r->lock);
    frame_free(from, 0);
    waitq_wake_all(&s->moving);
    return DMM_MOVE_OK;
}

enum dmm_move_result dmm_move_page(struct dmm_space *s, gfn_t gfn)
{
    struct region *r = region_of(s, gfn);
    if (!r)
        return DMM_MOVE_UNSUITABLE;
    bool outermost = dmm_enter();
    enum dmm_move_result result = move(s, r, gfn);
    dmm_leave(outermost);
    return result;
}

enum dmm_move_result dmm_protect_page(struct dmm_space *s, gfn_t gfn)
{
    enum dmm_move_result result = DMM_MOVE_UNSUITABLE;
    struct region *r = region_of(s, gfn);
    if (!r)
        return result;
    __atomic_fetch_add(&share_unflushed, 1, __ATOMIC_SEQ_CST);
    bool outermost = dmm_enter();
    spin_lock(&r->lock);
    p2m_entry_t *slot = private_page(s, r, gfn, &result);
    if (slot && !pool_can_owe(s, 1)) {
        slot = NULL;
        result = DMM_MOVE_NO_MEMORY;
    }
    if (slot) {
        share_protect(s, slot, gfn);
        region_changed(r);
    }
    spin_unlock(&r->lock);
    dmm_leave(outermost);
    if (result == DMM_MOVE_OK)
        dmm_flush_wait(s); /* from here on nobody writes */
    __atomic_fetch_sub(&share_unflushed, 1, __ATOMIC_SEQ_CST);
    return result;
}

bool dmm_unprotect_page(struct dmm_space *s, gfn_t gfn)
{
    struct region *r = region_of(s, gfn);
    bool done = false;
    if (!r)
        return false;
    bool outermost = dmm_enter();
    spin_lock(&r->lock);
    p2m_entry_t *slot = r->l1 ? &r->l1[gfn.v % LARGE_PAGES] : NULL;
    if (slot && s->format->type_of(p2m_read(slot), 1) == P2M_SHARED_RO)
        done = share_unprotect(s, slot, gfn);
    region_changed(r);
    spin_unlock(&r->lock);
    dmm_leave(outermost);
    return done;
}
