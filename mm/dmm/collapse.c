/*
 * Collapsing: 512 small pages become one 2 MiB mapping, on another frame.
 *
 * Re-forming in place (dmm_reform_large()) works as long as the pages are where they were when the mapping was broken. Pages that were shared and copied,
 * or moved, are not: they have to be brought together. It is move.c at the next level up: the whole region is taken away, all CPUs
 * acknowledge, everything is copied, and it is given back as one. What reads as zero becomes memory, so this is for regions that are nearly full.
 */
#include "core/log.h"
#include "lib/string.h"
#include "mm/dmm/share.h"

/* Can it, and how many of its pages have no frame yet? Region locked. */
static enum dmm_resize_result look(const struct dmm_space *s, const struct region *r, uint64_t *without)
{
    *without = 0;
    if (!r->l1 || r->ram_pages != LARGE_PAGES)
        return DMM_RESIZE_UNSUITABLE;
    for (unsigned n = 0; n < LARGE_PAGES; n++) {
        p2m_entry_t e = p2m_read(&r->l1[n]);
        enum p2m_type type = s->format->type_of(e, 1);
        if (type == P2M_EMPTY || type == P2M_ZERO_RO)
            ++*without;
        else if (type != P2M_RW)
            return DMM_RESIZE_UNSUITABLE;
        else if (__atomic_load_n(&frame_of(s->format->mfn_of(e))->refs, __ATOMIC_ACQUIRE))
            return DMM_RESIZE_PINNED;
    }
    return DMM_RESIZE_OK;
}

/* Pages by state: all are on their way, or have arrived (p2m_transition() counts the arrival). */
static void count_out(struct dmm_space *s, const p2m_entry_t *l1)
{
    for (unsigned n = 0; n < LARGE_PAGES; n++) {
        enum p2m_type type = s->format->type_of(l1[n], 1);
        if (type > P2M_EMPTY)
            __atomic_fetch_sub(&s->entries[type], 1, __ATOMIC_RELAXED);
        if (type == P2M_ZERO_RO)
            pool_settle(s, 1);
    }
    __atomic_fetch_add(&s->entries[P2M_MOVING_OUT], LARGE_PAGES, __ATOMIC_RELAXED);
}

static void copy_region(const struct dmm_space *s, mfn_t to, const p2m_entry_t *l1)
{
    for (unsigned n = 0; n < LARGE_PAGES; n++) {
        if (s->format->type_of(l1[n], 1) == P2M_RW)
            copy_page(mfn_to_hva(mfn_add(to, n)), mfn_to_hva(s->format->mfn_of(l1[n])));
        else
            clear_page(mfn_to_hva(mfn_add(to, n)));
    }
}

static void free_region(const struct dmm_space *s, p2m_entry_t *l1)
{
    for (unsigned n = 0; n < LARGE_PAGES; n++)
        if (s->format->type_of(l1[n], 1) == P2M_RW)
            frame_free(s->format->mfn_of(l1[n]), 0);
    frame_free(hva_to_mfn(l1), 0);
}

static enum dmm_resize_result collapse(struct dmm_space *s, struct region *r, uint64_t first)
{
    uint64_t without;
    mfn_t to = frame_alloc(LARGE_ORDER, 0, FRAME_GUEST, s);
    if (!mfn_valid(to))
        return DMM_RESIZE_NO_MEMORY;
    spin_lock(&r->lock);
    enum dmm_resize_result result = look(s, r, &without);
    if (result == DMM_RESIZE_OK && without && !pool_charge(s, without))
        result = DMM_RESIZE_NO_MEMORY;
    p2m_entry_t *l1 = r->l1;
    if (result == DMM_RESIZE_OK) {
        p2m_transition(s, r->l2e, 2, P2M_TABLE, P2M_MOVING_OUT, s->format->make_nonpresent(P2M_MOVING_OUT, 0));
        r->l1 = NULL; /* whoever looks now finds the level-2 entry, and waits */
        count_out(s, l1);
    }
    spin_unlock(&r->lock);
    if (result != DMM_RESIZE_OK) {
        frame_free(to, LARGE_ORDER);
        return result;
    }
    dmm_flush_wait(s);
    copy_region(s, to, l1);
    frame_of(to)->where = first;
    spin_lock(&r->lock);
    p2m_transition(s, r->l2e, 2, P2M_MOVING_OUT, P2M_RW, s->format->make_leaf(P2M_RW, to, 2) | s->format->dirty_mask());
    region_changed(r);
    r->filled_pages = LARGE_PAGES;
    spin_unlock(&r->lock);
    free_region(s, l1);
    waitq_wake_all(&s->moving);
    return DMM_RESIZE_OK;
}

enum dmm_resize_result dmm_collapse_large(struct dmm_space *s, gfn_t gfn)
{
    struct region *r = region_of(s, gfn);
    if (!r)
        return DMM_RESIZE_UNSUITABLE;
    bool outermost = dmm_enter(); /* throughout: in between, frames are in no entry */
    enum dmm_resize_result result = collapse(s, r, ALIGN_DOWN(gfn.v, LARGE_PAGES));
    dmm_leave(outermost);
    return result;
}
