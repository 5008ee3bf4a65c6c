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

#define L(n) (1u << (n))  /* legal at level n */
#define LEAF (L(1) | L(2))

/* Everything that is not here is refused. docs/memory-states.md draws it; tests/unit/test_transitions.c compares the two. */
static const struct legal_change {
    uint8_t from, to, levels, change;
} diagram[] = {
    { P2M_HOLE, P2M_EMPTY, LEAF, P2M_CHANGE_ADDS },              /* the region becomes RAM */
    { P2M_HOLE, P2M_TABLE, L(4) | L(3) | L(2), P2M_CHANGE_ADDS },
    { P2M_EMPTY, P2M_TABLE, L(2), P2M_CHANGE_ADDS },             /* first 4 KiB page of a region */
    { P2M_EMPTY, P2M_RW, LEAF, P2M_CHANGE_ADDS },                /* first touch */
    { P2M_EMPTY, P2M_ZERO_RO, L(1), P2M_CHANGE_ADDS },           /* first read */
    { P2M_EMPTY, P2M_IMAGE_RO, L(1), P2M_CHANGE_ADDS },          /* boot file */
    { P2M_ZERO_RO, P2M_RW, L(1), P2M_CHANGE_REMOVES },           /* copy on write */
    { P2M_IMAGE_RO, P2M_RW, L(1), P2M_CHANGE_REMOVES },
    { P2M_RW, P2M_TABLE, L(2), P2M_CHANGE_REMOVES },             /* break */
    { P2M_TABLE, P2M_RW, L(2), P2M_CHANGE_REMOVES },             /* re-form */
    { P2M_RW, P2M_EMPTY, LEAF, P2M_CHANGE_REMOVES },             /* destroy */
    { P2M_TABLE, P2M_EMPTY, L(2), P2M_CHANGE_REMOVES },
};

const char *p2m_type_name(enum p2m_type t)
{
    static const char *const names[P2M_TYPE_COUNT] = {
        "HOLE", "EMPTY", "SWAPPED", "COMPRESSED", "BALLOONED", "MOVING_OUT", "MOVING_IN", "POISON", "MMIO", "TABLE", "RW",
        "SHARED_RO", "ZERO_RO", "IMAGE_RO",
    };
    return (unsigned)t < P2M_TYPE_COUNT ? names[t] : "?";
}

/* The diagram, indexed: a fault must not search it. Each cell holds (levels << 4 | change). */
static uint16_t legal[P2M_TYPE_COUNT][P2M_TYPE_COUNT];

__attribute__((cold, noinline)) static void index_diagram(void)
{
    for (unsigned n = 0; n < ARRAY_SIZE(diagram); n++)
        __atomic_store_n(&legal[diagram[n].from][diagram[n].to], diagram[n].levels << 4 | diagram[n].change, __ATOMIC_RELAXED);
}

enum p2m_change p2m_change_of(enum p2m_type from, enum p2m_type to, unsigned level)
{
    if (unlikely(!legal[P2M_HOLE][P2M_EMPTY]))
        index_diagram();
    uint16_t cell = legal[from][to];
    return cell >> 4 & L(level) ? (enum p2m_change)(cell & 15) : P2M_CHANGE_ILLEGAL;
}

/* Pages by state; EMPTY and HOLE are the rest and not counted. */
static void count_change(struct dmm_space *s, unsigned level, enum p2m_type from, enum p2m_type to)
{
    uint64_t pages = level == 2 ? LARGE_PAGES : 1;
    if (from > P2M_EMPTY)
        __atomic_fetch_sub(&s->entries[from], pages, __ATOMIC_RELAXED);
    if (to > P2M_EMPTY)
        __atomic_fetch_add(&s->entries[to], pages, __ATOMIC_RELAXED);
    if (level == 2)
        __atomic_fetch_add(&s->large_pages, (to == P2M_RW ? pages : 0) - (from == P2M_RW ? pages : 0), __ATOMIC_RELAXED);
}

__attribute__((cold)) NORETURN static void refuse(const struct dmm_space *s, const p2m_entry_t *slot, unsigned level,
                                                  enum p2m_type from, enum p2m_type to)
{
    panic("p2m: vm%u: no way from %s to %s at level %u (entry now %lx)", s->vm_id, p2m_type_name(from), p2m_type_name(to),
          level, (unsigned long)p2m_read(slot));
}

p2m_entry_t p2m_transition(struct dmm_space *s, p2m_entry_t *slot, unsigned level, enum p2m_type from_type,
                           enum p2m_type to_type, p2m_entry_t to)
{
    p2m_entry_t old = p2m_read(slot);
    enum p2m_change change = p2m_change_of(from_type, to_type, level);
    if (unlikely(change == P2M_CHANGE_ILLEGAL))
        refuse(s, slot, level, from_type, to_type);
    do {
        if (unlikely(from_type == P2M_EMPTY ? old != s->empty : s->format->type_of(old, level) != from_type))
            refuse(s, slot, level, from_type, to_type);
    } while (unlikely(!__atomic_compare_exchange_n(slot, &old, to, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED)));
    if (likely(to_type != P2M_TABLE && from_type != P2M_TABLE))
        count_change(s, level, from_type, to_type);
    else if (level == 2 && (from_type == P2M_RW || to_type == P2M_RW)) /* break, re-form: the same pages in other pieces */
        __atomic_fetch_add(&s->large_pages, to_type == P2M_RW ? LARGE_PAGES : -LARGE_PAGES, __ATOMIC_RELAXED);
    if (change == P2M_CHANGE_REMOVES)
        __atomic_fetch_add(&s->flush_generation, 1, __ATOMIC_SEQ_CST);
    return old;
}

/* ---- tables ------------------------------------------------------------------------------------------------ */

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
    p2m_entry_t *table = mfn_to_hva(s->root);
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
    p2m_entry_t above = p2m_read(r->l2e);
    enum p2m_type type = s->format->type_of(above, 2);
    mfn_t mfn;
    p2m_entry_t *l1 = table_alloc(s, frame_flags, above, &mfn);
    if (!l1)
        return false;
    p2m_transition(s, r->l2e, 2, type, P2M_TABLE, s->format->make_table(mfn_to_hpa(mfn)));
    r->l1 = l1;
    return true;
}

enum dmm_resize_result p2m_break(struct dmm_space *s, struct region *r)
{
    p2m_entry_t large = p2m_read(r->l2e);
    if (r->l1 || s->format->type_of(large, 2) != P2M_RW)
        return DMM_RESIZE_UNSUITABLE;
    mfn_t first = s->format->mfn_of(large), table;
    if (__atomic_load_n(&frame_of(first)->refs, __ATOMIC_RELAXED))
        return DMM_RESIZE_PINNED;
    p2m_entry_t *l1 = table_alloc(s, FRAME_RESERVE_OK, 0, &table);
    if (!l1)
        return DMM_RESIZE_NO_MEMORY;
    for (unsigned n = 0; n < LARGE_PAGES; n++)
        l1[n] = s->format->make_leaf(P2M_RW, mfn_add(first, n), 1);
    frame_split_large(first);
    p2m_transition(s, r->l2e, 2, P2M_RW, P2M_TABLE, s->format->make_table(mfn_to_hpa(table)));
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
    p2m_entry_t old = p2m_transition(s, r->l2e, 2, P2M_TABLE, P2M_RW, s->format->make_leaf(P2M_RW, first, 2));
    *table = s->format->mfn_of(old);
    r->l1 = NULL;
    return DMM_RESIZE_OK;
}
