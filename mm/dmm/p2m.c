/*
 * The p2m: a VM's gfn -> mfn map, which is the nested page table itself.
 *
 * A map beside the nested table would be a second truth to keep in step with the first, and twice the memory. Here the entry that the
 * hardware walks is the record: present entries carry a type in bits that hardware ignores, non-present ones are
 * nothing but type and payload. The walker knows no bit of it; struct p2m_format spells entries for NPT, EPT and the tests.
 *
 * Every entry changes in p2m_transition(), which knows the state diagram and nothing else. Because callers hold the region's lock only the
 * hardware races with it (accessed and dirty bits), and a compare-and-swap that tolerates exactly that loses neither.
 */
#include "mm/dmm/p2m.h"

#include "core/log.h"
#include "mm/dmm/frame.h"

const char *p2m_type_name(enum p2m_type t)
{
    static const char *const names[P2M_TYPE_COUNT] = {
        "HOLE", "EMPTY", "SWAPPED", "COMPRESSED", "BALLOONED", "MOVING_OUT", "MOVING_IN", "POISON", "MMIO", "SEALED",
        "INHERITED", "TABLE", "RW",
        "SHARED_RO", "ZERO_RO", "IMAGE_RO",
    };
    return (unsigned)t < P2M_TYPE_COUNT ? names[t] : "?";
}

__attribute__((cold)) void p2m_refuse(const struct dmm_space *s, const p2m_entry_t *slot, unsigned level, enum p2m_type from,
                                      enum p2m_type to)
{
    panic("p2m: vm%u: no way from %s to %s at level %u (entry now %lx)", s->vm_id, p2m_type_name(from), p2m_type_name(to),
          level, (unsigned long)p2m_read(slot));
}

/* ---- tables ------------------------------------------------------------------------------------------------ */

p2m_entry_t p2m_exchange(const struct dmm_space *s, p2m_entry_t *slot, unsigned level, enum p2m_type from, enum p2m_type to_type, p2m_entry_t to)
{
    p2m_entry_t old = p2m_read(slot);
    do {
        if (!p2m_is(s, old, from))
            p2m_refuse(s, slot, level, from, to_type);
    } while (!__atomic_compare_exchange_n(slot, &old, to, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
    return old;
}

static p2m_entry_t *table_alloc(struct dmm_space *s, unsigned flags, p2m_entry_t fill, mfn_t *mfn)
{
    *mfn = frame_alloc(0, flags, FRAME_P2M, s);
    if (!mfn_valid(*mfn))
        return NULL;
    p2m_entry_t *t = mfn_to_hva(*mfn);
    for (unsigned n = 0; n < LARGE_PAGES; n++)
        t[n] = fill;
    return t;
}

p2m_entry_t *p2m_build_level2(struct dmm_space *s, gfn_t gfn)
{
    p2m_entry_t *table = mfn_to_hva(space_root(s));
    for (unsigned level = 4; level > 2; level--) {
        p2m_entry_t *slot = &table[gfn.v >> (9 * (level - 1)) & (LARGE_PAGES - 1)];
        if (s->format->type_of(p2m_read(slot), level) == P2M_HOLE) {
            mfn_t mfn;
            if (!table_alloc(s, 0, 0, &mfn)) /* all zero: HOLE in every format */
                return NULL;
            p2m_transition(s, slot, level, P2M_HOLE, P2M_TABLE, s->format->make_table(mfn_to_hpa(mfn)));
        }
        table = mfn_to_hva(s->format->mfn_of(p2m_read(slot)));
    }
    return &table[gfn.v >> 9 & (LARGE_PAGES - 1)];
}

bool p2m_build_level1(struct dmm_space *s, struct region *r, unsigned frame_flags)
{
    mfn_t mfn;
    p2m_entry_t *l1 = table_alloc(s, frame_flags, s->empty, &mfn);
    if (!l1)
        return false;
    p2m_transition(s, r->l2e, 2, P2M_EMPTY, P2M_TABLE, s->format->make_table(mfn_to_hpa(mfn)));
    r->l1 = l1;
    return true;
}

enum dmm_resize_result p2m_break(struct dmm_space *s, struct region *r)
{
    p2m_entry_t large = p2m_read(r->l2e);
    if (r->l1 || s->format->type_of(large, 2) != P2M_RW)
        return DMM_RESIZE_UNSUITABLE;
    mfn_t first = s->format->mfn_of(large), table;
    p2m_entry_t *l1 = table_alloc(s, FRAME_RESERVE_OK, 0, &table);
    if (!l1)
        return DMM_RESIZE_NO_MEMORY;
    for (unsigned n = 0; n < LARGE_PAGES; n++)
        l1[n] = s->format->make_leaf(P2M_RW, mfn_add(first, n), 1) | (large & s->format->dirty_mask()); /* any of them, for all we know */
    uint64_t were_pinned = __atomic_load_n(&frame_of(first)->refs, __ATOMIC_RELAXED) ? LARGE_PAGES : 0;
    __atomic_fetch_sub(&s->pinned_pages, were_pinned - frame_split_large(first), __ATOMIC_RELAXED);
    p2m_transition(s, r->l2e, 2, P2M_RW, P2M_TABLE, s->format->make_table(mfn_to_hpa(table)));
    region_changed(r);
    r->l1 = l1;
    return DMM_RESIZE_OK;
}

enum dmm_resize_result p2m_reform(struct dmm_space *s, struct region *r, mfn_t *table)
{
    if (!r->l1)
        return DMM_RESIZE_UNSUITABLE;
    mfn_t first = s->format->type_of(r->l1[0], 1) == P2M_RW ? s->format->mfn_of(r->l1[0]) : INVALID_MFN;
    if (!mfn_valid(first) || !IS_ALIGNED(first.v, LARGE_PAGES))
        return DMM_RESIZE_UNSUITABLE;
    for (unsigned n = 0; n < LARGE_PAGES; n++) {
        p2m_entry_t e = p2m_read(&r->l1[n]);
        if (s->format->type_of(e, 1) != P2M_RW || s->format->mfn_of(e).v != first.v + n)
            return DMM_RESIZE_UNSUITABLE;
        if (__atomic_load_n(&frame_of(mfn_add(first, n))->refs, __ATOMIC_RELAXED))
            return DMM_RESIZE_PINNED;
    }
    frame_join_large(first);
    p2m_entry_t old = p2m_transition(s, r->l2e, 2, P2M_TABLE, P2M_RW,
                                     s->format->make_leaf(P2M_RW, first, 2) | s->format->dirty_mask());
    *table = s->format->mfn_of(old);
    region_changed(r);
    r->l1 = NULL;
    return DMM_RESIZE_OK;
}
