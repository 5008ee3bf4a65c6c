/*
 * What a scanner sees of guest memory, one 2 MiB region at a time.
 *
 * Hashing every page in every sweep is what makes scanners expensive, and a checksum that stayed the same is a poor sign that a page is at rest.
 * The CPU knows better: it sets a dirty bit. Here a page is first aged (its dirty bit cleared); if it is still clean when the scan comes
 * by, it is listed once and marked, by a bit of the entry that hardware ignores. From then on "marked and clean" means that whoever listed it
 * knows what it holds, and a later sweep pays one read of the entry for it. A shared page can not change at all: one that a fork made so is listed
 * once as well, since it may be equal to others.
 *
 * Where CPUs log what they write to (write_log.c), even that read is saved: a region in which all was unchanged is passed by until a log, or DMM itself,
 * knows of a change.
 *
 * No CPU is interrupted when dirty bits are cleared: one that has the old entry in its TLB does not set the bit again, so a write may go unseen until
 * it enters the guest the next time, when it flushes. This costs a chance to merge, or an attempt in vain; merging itself believes nothing but a comparison.
 */
#include "mm/dmm/share.h"

#include "core/log.h"
#include "lib/string.h"

/* Bits that hardware sets in entries, and ours. */
static void clear_bits(p2m_entry_t *slot, uint64_t bits) { __atomic_fetch_and(slot, ~bits, __ATOMIC_RELAXED); }
static void set_bits(p2m_entry_t *slot, uint64_t bits) { __atomic_fetch_or(slot, bits, __ATOMIC_RELAXED); }

/* Entries are passed by in lines of eight: in most of them no entry is of interest, and one test says so. */
#define LINE_ENTRIES 8u
_Static_assert(LARGE_PAGES % LINE_ENTRIES == 0, "a table is whole lines");

/* Does any entry of the line have these bits different from `bits`? */
static inline bool any_differs(const p2m_entry_t *line, p2m_entry_t bits, p2m_entry_t which)
{
    p2m_entry_t difference = 0;
#pragma GCC unroll 8
    for (unsigned n = 0; n < LINE_ENTRIES; n++)
        difference |= p2m_read(&line[n]) ^ bits;
    return difference & which;
}

/* Returns whether it was dirty. */
static bool age_entry(const struct dmm_space *s, p2m_entry_t *slot, unsigned level, uint64_t dirty, uint64_t accessed)
{
    p2m_entry_t e = p2m_read(slot);
    if (!(e & (dirty | accessed)) || s->format->type_of(e, level) != P2M_RW)
        return false;
    clear_bits(slot, dirty | accessed | (e & dirty ? s->format->mark : 0));
    return e & dirty;
}

unsigned dmm_scan_age(struct dmm_space *s, gfn_t gfn)
{
    struct region *r = region_of(s, gfn);
    const uint64_t dirty = s->format->dirty_mask(), accessed = s->format->accessed_mask();
    unsigned aged = 0;
    if (!r)
        return 0;
    bool outermost = dmm_enter();
    spin_lock(&r->lock);
    if (!r->l1)
        aged = age_entry(s, r->l2e, 2, dirty, accessed);
    else
        for (p2m_entry_t *line = r->l1; line < r->l1 + LARGE_PAGES; line += LINE_ENTRIES)
            if (unlikely(any_differs(line, 0, dirty | accessed)))
                for (unsigned n = 0; n < LINE_ENTRIES; n++)
                    aged += age_entry(s, &line[n], 1, dirty, accessed);
    if (aged)
        __atomic_fetch_add(&s->translation.generation, 1, __ATOMIC_SEQ_CST);
    spin_unlock(&r->lock);
    dmm_leave(outermost);
    return aged;
}

/* A private 4 KiB page that is clean and was not listed. */
static void look_at_page(struct dmm_space *s, p2m_entry_t *slot, p2m_entry_t e, unsigned index, struct dmm_scan *out)
{
    mfn_t m = s->format->mfn_of(e);
    struct frame *f = frame_of(m);
    if (__atomic_load_n(&f->refs, __ATOMIC_RELAXED)) {
        out->pinned++;
    } else if (f->flags & FRAME_HISTORY) { /* it gets another chance when it has been left alone for a whole sweep */
        out->unstable++;
        if (f->flags & FRAME_BROKE || !(e & s->format->accessed_mask()))
            f->flags &= (uint8_t)~FRAME_HISTORY;
    } else {
        set_bits(slot, s->format->mark);
        out->page[out->fresh++] = (struct dmm_scan_page){ (uint16_t)index, false, m };
    }
}

/* One that is shared but was not listed, by a fork above all, may be equal to others, and is listed once; what was merged is marked (merge.c). In a
 * secure group none may stay: each is listed until it is sealed. */
static void look_at_shared(struct dmm_space *s, p2m_entry_t *slot, p2m_entry_t e, gfn_t gfn, struct dmm_scan *out)
{
    bool secure = dmm_group_secure(s->group);
    if (!secure && share_unprotect(s, slot, gfn)) { /* nobody else has it any more, and it was not written to */
        look_at_page(s, slot, p2m_read(slot), (unsigned)(gfn.v % LARGE_PAGES), out);
        return;
    }
    out->shared++;
    if (e & s->format->mark && !secure)
        return;
    set_bits(slot, s->format->mark);
    out->page[out->fresh++] = (struct dmm_scan_page){ (uint16_t)(gfn.v % LARGE_PAGES), true, s->format->mfn_of(e) };
}

static void look_at_entry(struct dmm_space *s, p2m_entry_t *slot, p2m_entry_t e, gfn_t gfn, uint64_t dirty, struct dmm_scan *out)
{
    switch (s->format->type_of(e, 1)) {
    case P2M_RW:
        if (e & dirty)
            out->dirty++;
        else
            look_at_page(s, slot, e, (unsigned)(gfn.v % LARGE_PAGES), out);
        break;
    case P2M_SHARED_RO:
        look_at_shared(s, slot, e, gfn, out);
        break;
    case P2M_SEALED:
        out->shared++;
        break;
    case P2M_ZERO_RO:
        out->zero++;
        break;
    default:
        out->other++;
    }
}

static void list_large(mfn_t first, struct dmm_scan *out)
{
    out->fresh = LARGE_PAGES;
    for (unsigned n = 0; n < LARGE_PAGES; n++)
        out->page[n] = (struct dmm_scan_page){ (uint16_t)n, false, mfn_add(first, n) };
}

static void look_at_large(struct dmm_space *s, p2m_entry_t *slot, uint64_t dirty, struct dmm_scan *out)
{
    p2m_entry_t e = p2m_read(slot);
    mfn_t first = s->format->mfn_of(e);
    out->large = true;
    out->accessed = e & s->format->accessed_mask();
    out->accessed_pages = out->accessed ? LARGE_PAGES : 0;
    if (e & dirty) {
        out->dirty = LARGE_PAGES;
    } else if (dirty && e & s->format->mark) {
        out->unchanged = LARGE_PAGES;
    } else {
        set_bits(slot, s->format->mark);
        list_large(first, out);
    }
}

static void look_at_small(struct dmm_space *s, struct region *r, uint64_t first, uint64_t dirty, struct dmm_scan *out)
{
    /* Unchanged pages are the many; they are told from all others by these bits alone. */
    const uint64_t accessed = s->format->accessed_mask(), mark = dirty ? s->format->mark : 0;
    const p2m_entry_t kind = s->rw_4k | mark, which = kind | dirty | s->format->make_leaf(P2M_IMAGE_RO, mfn_of(0), 1) |
                                                     s->format->make_leaf(P2M_SHARED_RO, mfn_of(0), 1) |
                                                     s->format->make_leaf(P2M_ZERO_RO, mfn_of(0), 1);
    unsigned unchanged = 0, touched = 0;
    for (unsigned at = 0; at < LARGE_PAGES; at += LINE_ENTRIES) {
        p2m_entry_t *const line = &r->l1[at];
        if (likely(mark && !any_differs(line, kind, which | accessed))) {
            unchanged += LINE_ENTRIES;
            continue;
        }
        for (unsigned n = 0; n < LINE_ENTRIES; n++) {
            p2m_entry_t e = p2m_read(&line[n]);
            touched += (e & accessed) != 0;
            if (mark && (e & which) == kind)
                unchanged++;
            else if (e != s->empty)
                look_at_entry(s, &line[n], e, gfn_of(first + at + n), dirty, out);
        }
    }
    out->unchanged += unchanged;
    out->accessed_pages = touched;
}

/* A CPU that has dirtied a page behind us logs it, and if that log has been read meanwhile the region is not being scanned any more. Region locked. */
static void note_rest(const struct dmm_space *s, struct region *r, bool at_rest)
{
    uint16_t scanned = REGION_BEING_SCANNED, rests = (uint16_t)(r->filled_pages + 1);
    if (!at_rest || !s->logs)
        region_changed(r);
    else
        __atomic_compare_exchange_n(&r->at_rest, &scanned, rests, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

bool dmm_scan_region(struct dmm_space *s, gfn_t gfn, struct dmm_scan *out)
{
    struct region *r = region_of(s, gfn);
    const uint64_t dirty = s->format->dirty_mask();
    bool found = true;
    memset(out, 0, offsetof(struct dmm_scan, page));
    if (!r)
        return false;
    bool outermost = dmm_enter();
    spin_lock(&r->lock);
    __atomic_exchange_n(&r->at_rest, REGION_BEING_SCANNED, __ATOMIC_SEQ_CST); /* before any entry is read */
    if (r->l1)
        look_at_small(s, r, ALIGN_DOWN(gfn.v, LARGE_PAGES), dirty, out);
    else if (s->format->type_of(p2m_read(r->l2e), 2) == P2M_RW)
        look_at_large(s, r->l2e, dirty, out);
    else
        found = false;
    out->at_rest = found && dirty && !out->dirty && !out->fresh && !out->pinned && !out->unstable;
    note_rest(s, r, out->at_rest);
    spin_unlock(&r->lock);
    dmm_leave(outermost);
    return found;
}

bool dmm_scan_list_large(struct dmm_space *s, gfn_t gfn, struct dmm_scan *out)
{
    struct region *r = region_of(s, gfn);
    if (!r)
        return false;
    bool outermost = dmm_enter();
    spin_lock(&r->lock);
    p2m_entry_t e = p2m_read(r->l2e);
    bool large = !r->l1 && s->format->type_of(e, 2) == P2M_RW;
    if (large)
        list_large(s->format->mfn_of(e), out);
    spin_unlock(&r->lock);
    dmm_leave(outermost);
    return large;
}

void dmm_scan_note(struct dmm_space *s, gfn_t gfn, uint16_t note)
{
    struct region *r = region_of(s, gfn);
    if (r)
        r->note = note;
}

void dmm_scan_forget_region(struct dmm_space *s, gfn_t gfn)
{
    struct region *r = region_of(s, gfn);
    unsigned level;
    if (!r)
        return;
    bool outermost = dmm_enter();
    spin_lock(&r->lock);
    p2m_entry_t *slot = p2m_leaf(r, gfn_of(ALIGN_DOWN(gfn.v, LARGE_PAGES)), &level);
    for (unsigned n = 0; n < (level == 1 ? LARGE_PAGES : 1); n++)
        if (s->format->type_of(p2m_read(&slot[n]), level) == P2M_RW || s->format->type_of(p2m_read(&slot[n]), level) == P2M_SHARED_RO)
            clear_bits(&slot[n], s->format->mark);
    region_changed(r);
    spin_unlock(&r->lock);
    dmm_leave(outermost);
}

void dmm_scan_forget(struct dmm_space *s)
{
    for (uint64_t g = 0; g < dmm_space_end_gfn(s); g += LARGE_PAGES)
        if (region_place(s, gfn_of(g)))
            dmm_scan_forget_region(s, gfn_of(g));
        else
            g += (CHUNK_REGIONS - 1) * LARGE_PAGES; /* nobody has touched any of the chunk */
}

uint16_t dmm_scan_get_note(struct dmm_space *s, gfn_t gfn)
{
    const struct region *r = region_of(s, gfn);
    return r ? r->note : 0;
}

unsigned dmm_scan_breaks(struct dmm_space *s, gfn_t gfn)
{
    struct region *r = region_of(s, gfn);
    if (!r)
        return 0;
    bool outermost = dmm_enter();
    spin_lock(&r->lock);
    unsigned breaks = r->breaks;
    r->breaks = 0;
    if (breaks)
        region_changed(r);
    spin_unlock(&r->lock);
    dmm_leave(outermost);
    return breaks;
}

static void survey_page(const struct dmm_space *s, p2m_entry_t e, struct dmm_survey *out)
{
    switch (s->format->type_of(e, 1)) {
    case P2M_RW:
        out->private_pages++;
        out->accessed += (e & s->format->accessed_mask()) != 0;
        break;
    case P2M_SHARED_RO:
    case P2M_SEALED: out->shared++; break;
    case P2M_EMPTY:
    case P2M_ZERO_RO: out->without++; break;
    default: out->other++; break;
    }
}

bool dmm_survey_region(struct dmm_space *s, gfn_t gfn, struct dmm_survey *out)
{
    struct region *r = region_of(s, gfn);
    *out = (struct dmm_survey){ 0 };
    if (!r)
        return false;
    bool outermost = dmm_enter();
    spin_lock(&r->lock);
    out->large = s->format->type_of(p2m_read(r->l2e), 2) == P2M_RW;
    bool found = out->large || r->l1;
    for (unsigned n = 0; r->l1 && n < LARGE_PAGES; n++)
        survey_page(s, p2m_read(&r->l1[n]), out);
    spin_unlock(&r->lock);
    dmm_leave(outermost);
    return found;
}

void dmm_frame_set_tag(mfn_t m, gfn_t gfn, uint32_t tag)
{
    /* No lock: whoever else writes the word writes another one, and the exchange then fails. The records of a 2 MiB frame's pieces are nobody's
     * but for this. */
    struct frame *head = frame_record(m), *f = frame_of(m);
    struct frame was = { .where = __atomic_load_n(&f->where, __ATOMIC_RELAXED) }, is = was;
    is.tag = tag;
    if (head->type == FRAME_GUEST && (head->flags & FRAME_LARGE || was.gfn == gfn.v))
        __atomic_compare_exchange_n(&f->where, &was.where, is.where, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

enum dmm_candidate dmm_frame_is_candidate(mfn_t m, uint32_t tag)
{
    if (!frame_exists(m))
        return DMM_CANDIDATE_NONE;
    const struct frame *head = frame_record(m), now = { .what = __atomic_load_n(&head->what, __ATOMIC_RELAXED) };
    if (now.type == FRAME_SHARED)
        return now.refs ? DMM_CANDIDATE : DMM_CANDIDATE_NONE;
    bool pinned = now.refs && (frame_of(m) == head || __atomic_load_n(&frame_of(m)->refs, __ATOMIC_RELAXED));
    if (now.type != FRAME_GUEST || pinned || frame_of(m)->tag != tag)
        return DMM_CANDIDATE_NONE;
    return now.flags & FRAME_LARGE ? DMM_CANDIDATE_IN_LARGE : DMM_CANDIDATE;
}
