/* The p2m inside DMM: building a space's tables and changing its entries. include/hv/p2m.h has the entry formats' side. */
#ifndef HV_MM_DMM_P2M_H
#define HV_MM_DMM_P2M_H

#include "mm/dmm/space.h"

/* What a change of an entry's type at one level means for translations that CPUs may hold. */
enum p2m_change {
    P2M_CHANGE_ILLEGAL = 0,
    P2M_CHANGE_ADDS,     /* no CPU can hold a translation that is wrong now: there was none, or one that permits less */
    P2M_CHANGE_REMOVES,  /* a translation (or a table whose address CPUs may have cached) goes away */
    P2M_CHANGE_BY_FRAME, /* it goes away unless the frame stays the same */
};

/*
 * The state diagram: everything that is not here is refused. docs/memory-states.md draws it, and
 * tests/unit/test_transitions.c compares the two. A constant in a header, so that where the types are known to the compiler
 * (everywhere but in tests) the check costs nothing.
 */
#define P2M_AT(levels, change) ((levels) << 4 | (change))
enum { P2M_L1 = 1 << 1, P2M_L2 = 1 << 2, P2M_L3 = 1 << 3, P2M_L4 = 1 << 4, P2M_LEAF = P2M_L1 | P2M_L2 };
static const uint16_t p2m_diagram[P2M_TYPE_COUNT][P2M_TYPE_COUNT] = {
    [P2M_HOLE][P2M_EMPTY] = P2M_AT(P2M_LEAF, P2M_CHANGE_ADDS),               /* declared as RAM */
    [P2M_HOLE][P2M_TABLE] = P2M_AT(P2M_L2 | P2M_L3 | P2M_L4, P2M_CHANGE_ADDS),
    [P2M_EMPTY][P2M_TABLE] = P2M_AT(P2M_L2, P2M_CHANGE_ADDS),                /* first 4 KiB page of a region */
    [P2M_EMPTY][P2M_RW] = P2M_AT(P2M_LEAF, P2M_CHANGE_ADDS),                 /* first touch */
    [P2M_EMPTY][P2M_ZERO_RO] = P2M_AT(P2M_L1, P2M_CHANGE_ADDS),              /* first read */
    [P2M_EMPTY][P2M_IMAGE_RO] = P2M_AT(P2M_L1, P2M_CHANGE_ADDS),             /* boot file */
    [P2M_EMPTY][P2M_SHARED_RO] = P2M_AT(P2M_L1, P2M_CHANGE_ADDS),            /* taken over from an image */
    [P2M_EMPTY][P2M_SEALED] = P2M_AT(P2M_L1, P2M_CHANGE_ADDS),
    [P2M_RW][P2M_MOVING_OUT] = P2M_AT(P2M_L1, P2M_CHANGE_REMOVES),           /* to another frame */
    [P2M_RW][P2M_SHARED_RO] = P2M_AT(P2M_L1, P2M_CHANGE_REMOVES),            /* write-protected */
    [P2M_SHARED_RO][P2M_RW] = P2M_AT(P2M_L1, P2M_CHANGE_BY_FRAME),           /* written to: copied, or the same frame if nobody else has it */
    [P2M_SHARED_RO][P2M_SHARED_RO] = P2M_AT(P2M_L1, P2M_CHANGE_REMOVES),     /* merged: another frame */
    [P2M_SHARED_RO][P2M_ZERO_RO] = P2M_AT(P2M_L1, P2M_CHANGE_REMOVES),       /* merged: it was zero */
    [P2M_SHARED_RO][P2M_SEALED] = P2M_AT(P2M_L1, P2M_CHANGE_REMOVES),        /* secure group */
    [P2M_SEALED][P2M_RW] = P2M_AT(P2M_L1, P2M_CHANGE_REMOVES),               /* touched: always copied */
    [P2M_SEALED][P2M_EMPTY] = P2M_AT(P2M_L1, P2M_CHANGE_REMOVES),            /* clear */
    [P2M_SHARED_RO][P2M_EMPTY] = P2M_AT(P2M_L1, P2M_CHANGE_REMOVES),         /* clear */
    [P2M_ZERO_RO][P2M_RW] = P2M_AT(P2M_L1, P2M_CHANGE_REMOVES),              /* copy on write */
    [P2M_IMAGE_RO][P2M_RW] = P2M_AT(P2M_L1, P2M_CHANGE_REMOVES),
    [P2M_RW][P2M_TABLE] = P2M_AT(P2M_L2, P2M_CHANGE_REMOVES),                /* break */
    [P2M_TABLE][P2M_RW] = P2M_AT(P2M_L2, P2M_CHANGE_REMOVES),                /* re-form */
    [P2M_RW][P2M_EMPTY] = P2M_AT(P2M_LEAF, P2M_CHANGE_REMOVES),              /* destroy, clear */
    [P2M_IMAGE_RO][P2M_EMPTY] = P2M_AT(P2M_L1, P2M_CHANGE_REMOVES),          /* clear */
    [P2M_ZERO_RO][P2M_EMPTY] = P2M_AT(P2M_L1, P2M_CHANGE_REMOVES),
    [P2M_TABLE][P2M_EMPTY] = P2M_AT(P2M_L2, P2M_CHANGE_REMOVES),
    [P2M_TABLE][P2M_MOVING_OUT] = P2M_AT(P2M_L2, P2M_CHANGE_REMOVES),        /* collapse: 512 pages to one frame */
    [P2M_MOVING_OUT][P2M_RW] = P2M_AT(P2M_LEAF, P2M_CHANGE_ADDS),
    [P2M_HOLE][P2M_INHERITED] = P2M_AT(P2M_L2, P2M_CHANGE_ADDS),             /* a space made from an image */
    [P2M_INHERITED][P2M_TABLE] = P2M_AT(P2M_L2, P2M_CHANGE_ADDS),            /* first access: taken over */
    [P2M_INHERITED][P2M_EMPTY] = P2M_AT(P2M_L2, P2M_CHANGE_ADDS),
};
static inline enum p2m_change p2m_change_of(enum p2m_type from, enum p2m_type to, unsigned level)
{
    uint16_t cell = p2m_diagram[from][to];
    return cell >> 4 & 1u << level ? (enum p2m_change)(cell & 15) : P2M_CHANGE_ILLEGAL;
}

static inline p2m_entry_t p2m_read(const p2m_entry_t *slot) { return __atomic_load_n(slot, __ATOMIC_RELAXED); }

NORETURN void p2m_refuse(const struct dmm_space *s, const p2m_entry_t *slot, unsigned level, enum p2m_type from,
                         enum p2m_type to);

/* An EMPTY one is known whole. */
static inline bool p2m_is(const struct dmm_space *s, p2m_entry_t e, enum p2m_type type)
{
    return type == P2M_EMPTY ? e == s->empty : p2m_type_of(s->format, e) == type;
}

/* The entry has changed since it was read: as often as the hardware sets its bits. Returns what was replaced. */
p2m_entry_t p2m_exchange(const struct dmm_space *s, p2m_entry_t *slot, unsigned level, enum p2m_type from, enum p2m_type to_type, p2m_entry_t to);

/* Pages by state; EMPTY and HOLE are the rest and not counted. Across a TABLE the pages stay what they are, in other pieces. */
static inline void p2m_count(struct dmm_space *s, unsigned level, enum p2m_type from, enum p2m_type to)
{
    uint64_t pages = level == 2 ? LARGE_PAGES : 1;
    bool regroups = from == P2M_TABLE || to == P2M_TABLE || from == P2M_INHERITED || to == P2M_INHERITED;
    if (from > P2M_EMPTY && !regroups)
        __atomic_fetch_sub(&s->entries[from], pages, __ATOMIC_RELAXED);
    if (to > P2M_EMPTY && !regroups)
        __atomic_fetch_add(&s->entries[to], pages, __ATOMIC_RELAXED);
    if (level == 2 && from == P2M_RW)
        __atomic_fetch_sub(&s->large_pages, LARGE_PAGES, __ATOMIC_RELAXED);
    if (level == 2 && to == P2M_RW)
        __atomic_fetch_add(&s->large_pages, LARGE_PAGES, __ATOMIC_RELAXED);
}

/*
 * The one way to change an entry. Replaces *slot, which must be of type from_type, with `to`; the hardware may set accessed
 * and dirty bits meanwhile. The region's lock is held (or the table is not reachable yet). Panics on a change that the
 * diagram does not have: that is a bug of ours, and the guest behind it is not safe. Returns what was replaced, with its
 * final A and D bits. A P2M_CHANGE_REMOVES bumps the flush generation; the caller then calls dmm_flush_wait(), after
 * letting go of the lock and before it gives the frame away.
 */
static inline __attribute__((always_inline)) p2m_entry_t p2m_transition_from( /* which has been read, and found of from_type: `old` */
    struct dmm_space *s, p2m_entry_t *slot, unsigned level, enum p2m_type from_type, enum p2m_type to_type, p2m_entry_t old, p2m_entry_t to)
{
    const enum p2m_change change = p2m_change_of(from_type, to_type, level);
    if (unlikely(change == P2M_CHANGE_ILLEGAL || (HV_DEBUG && !p2m_is(s, old, from_type))))
        p2m_refuse(s, slot, level, from_type, to_type);
    if (unlikely(!__atomic_compare_exchange_n(slot, &old, to, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED)))
        old = p2m_exchange(s, slot, level, from_type, to_type, to);
    p2m_count(s, level, from_type, to_type);
    if (change == P2M_CHANGE_REMOVES || (change == P2M_CHANGE_BY_FRAME && p2m_mfn_of(old ^ to).v))
        __atomic_fetch_add(&s->translation.generation, 1, __ATOMIC_SEQ_CST);
    return old;
}

static inline __attribute__((always_inline)) p2m_entry_t p2m_transition(
    struct dmm_space *s, p2m_entry_t *slot, unsigned level, enum p2m_type from_type, enum p2m_type to_type, p2m_entry_t to)
{
    p2m_entry_t old = from_type == P2M_EMPTY ? s->empty : p2m_read(slot);
    if (unlikely(!p2m_is(s, old, from_type)))
        p2m_refuse(s, slot, level, from_type, to_type);
    return p2m_transition_from(s, slot, level, from_type, to_type, old, to);
}

/* Upper levels down to the level-2 entry of `gfn`; NULL: out of frames. Before the space is in use. */
p2m_entry_t *p2m_build_level2(struct dmm_space *s, gfn_t gfn);
/* Gives the region level-1 entries that say what its level-2 entry says, which is EMPTY. Region locked. False: out of frames. */
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

#endif
