/*
 * Merging equal pages, a batch at a time. share.c has the theory; here are its steps in order:
 *
 *   protect     each page and its partner become SHARED_RO on their own frames, under their regions' locks
 *   flush       once for every space that this concerned: from here on nobody writes to any of them
 *   count out   what the batch before put into limbo: this flush covered it
 *   compare     the page joins the partner's users first, so that the partner cannot be taken back and written in place; then every byte is compared
 *   repoint     SHARED_RO -> the partner's frame, or the zero page, or SEALED; the page stays a user of its own frame in limbo, until the next
 *               flush has made its CPUs forget it
 *
 * Between the flush and the comparison a guest may write to its page and have it back, and somebody else may protect it again (dmm_protect_page()), whose
 * flush is not ours: while such a flush is under way anywhere, no page is merged. It is looked for after the page, or the frame, was found protected.
 *
 * A page whose partner turned out different goes back to RW at once; a partner with which nobody merged does so at the next write or scan.
 * In a secure group the page is SEALED in the end, with a partner or alone, and whoever touches it waits for the same work: a frame, a copy, and a note
 * of what was left ("unsealed", below).
 * One thread merges at a time (policies/dedup.c); the limbo is its own, and read by the audit.
 */
#include "core/log.h"
#include "lib/string.h"
#include "mm/dmm/rmap.h"
#include "mm/dmm/share.h"

static struct { mfn_t mfn; gfn_t gfn; uint16_t space_id; } limbo[2 * DMM_MERGE_BATCH];
static unsigned limbo_count;

const char *dmm_merge_result_name(enum dmm_merge_result r)
{
    static const char *const names[DMM_MERGE_RESULT_COUNT] = {
        "merged", "zeroed", "already", "different", "gone", "partner-gone", "pinned", "full", "foreign", "uncovered", "no-memory",
    };
    return (unsigned)r < DMM_MERGE_RESULT_COUNT ? names[r] : "?";
}

/* ---- limbo --------------------------------------------------------------------------------------------------------- */

/* The entry at gfn has left the frame, and the space's CPUs do not know yet: it stays a user. Inside the gate. */
static void to_limbo(mfn_t m, const struct dmm_space *s, gfn_t gfn)
{
    hv_assert(limbo_count < ARRAY_SIZE(limbo));
    limbo[limbo_count].mfn = m;
    limbo[limbo_count].gfn = gfn;
    limbo[limbo_count++].space_id = s->id;
}

/* Counts out what space `id` left: all its CPUs have forgotten it. */
static void free_limbo(uint16_t id)
{
    bool outermost = dmm_enter();
    for (unsigned n = 0; n < limbo_count;) {
        if (limbo[n].space_id != id) {
            n++;
            continue;
        }
        mfn_t m = limbo[n].mfn;
        gfn_t gfn = limbo[n].gfn;
        limbo[n] = limbo[--limbo_count];
        share_drop(m, id, gfn.v);
    }
    dmm_leave(outermost);
}

/* Of how many limbo's users is `id` the space? */
static unsigned limbo_of(uint16_t id)
{
    unsigned count = 0;
    for (unsigned n = 0; n < limbo_count; n++)
        count += limbo[n].space_id == id;
    return count;
}

void dmm_merge_finish(void)
{
    share_drop_unsealed();
    while (limbo_count) {
        uint16_t id = limbo[0].space_id;
        struct dmm_space *s = dmm_space_acquire(id); /* none: it is being taken apart, and no CPU runs it */
        if (s) {
            dmm_flush_wait(s);
            dmm_space_release(s);
        }
        free_limbo(id);
    }
}

/* ---- unsealed --------------------------------------------------------------------------------------------------------
 *
 * Whoever unseals a page leaves a frame that had one user, two, or a thousand: to free it, to take a chunk of the map apart, or to look through all of
 * it takes different times, and the guest waits meanwhile. So the fault only notes who has left, in a random place of this pool; what has to leave
 * that place for it is counted out then, and that is another page's, from some time before. The rest goes when the scanner passes by, a space is
 * taken apart, or frames are lacking. Every CPU has forgotten these: they may be counted out at any time.
 */

#define UNSEALED_MAX 256u
static struct leaver { mfn_t mfn; gfn_t gfn; uint16_t space_id; } unsealed[UNSEALED_MAX]; /* space_id 0: free */
static unsigned unsealed_count;
static uint64_t unsealed_random = UINT64_C(0x2545f4914f6cdd1d);
static struct spinlock unsealed_lock = SPINLOCK_INIT(LOCK_RANK_UNSEALED, "unsealed");

void share_drop_later(mfn_t m, uint16_t space_id, uint64_t gfn)
{
    spin_lock(&unsealed_lock);
    unsealed_random = (unsealed_random ^ __builtin_ia32_rdtsc()) * UINT64_C(0x9e3779b97f4a7c15);
    struct leaver *place = &unsealed[unsealed_random >> 56], old = *place;
    *place = (struct leaver){ m, gfn_of(gfn), space_id };
    unsealed_count += !old.space_id;
    if (old.space_id) /* under the lock: who finds the pool empty can rely on all having left */
        share_drop(old.mfn, old.space_id, old.gfn.v);
    spin_unlock(&unsealed_lock);
}
_Static_assert(UNSEALED_MAX == 1u << (64 - 56), "eight random bits");

/* One place. Returns whether there was somebody. */
static bool drop_unsealed_at(unsigned n)
{
    spin_lock(&unsealed_lock);
    struct leaver old = unsealed[n];
    unsealed[n].space_id = 0;
    if (old.space_id) {
        share_drop(old.mfn, old.space_id, old.gfn.v);
        __atomic_fetch_sub(&unsealed_count, 1, __ATOMIC_RELEASE);
    }
    spin_unlock(&unsealed_lock);
    return old.space_id;
}

bool share_drop_unsealed(void)
{
    bool any = false;
    if (likely(!__atomic_load_n(&unsealed_count, __ATOMIC_ACQUIRE)))
        return false;
    bool outermost = dmm_enter();
    for (unsigned n = 0; n < UNSEALED_MAX; n++)
        any |= drop_unsealed_at(n);
    dmm_leave(outermost);
    return any;
}

uint64_t share_limbo_count(void) { return limbo_count + unsealed_count; }

/* ---- protecting ------------------------------------------------------------------------------------------------------ */

/* `gfn` of `s` is to be SHARED_RO on its own frame `m`; it may be so already, alone or with others. That it was listed remains known. */
static enum dmm_merge_result protect_page(struct dmm_space *s, gfn_t gfn, mfn_t m, bool *flush)
{
    enum dmm_merge_result result = DMM_MERGE_GONE;
    struct region *r = region_of(s, gfn);
    if (!r)
        return result;
    bool outermost = dmm_enter();
    spin_lock(&r->lock);
    p2m_entry_t *slot = r->l1 ? &r->l1[gfn.v % LARGE_PAGES] : NULL, e = slot ? p2m_read(slot) : 0;
    enum p2m_type type = s->format->type_of(e, 1);
    bool there = slot && (type == P2M_RW || type == P2M_SHARED_RO) && mfn_eq(s->format->mfn_of(e), m);
    if (there && type == P2M_SHARED_RO) {
        result = DMM_MERGE_DONE;
    } else if (there) {
        if (__atomic_load_n(&frame_of(m)->refs, __ATOMIC_ACQUIRE)) {
            result = DMM_MERGE_PINNED;
        } else if (!pool_can_owe(s, 1)) {
            result = DMM_MERGE_UNCOVERED;
        } else {
            share_protect(s, slot, gfn);
            __atomic_fetch_or(slot, e & s->format->mark, __ATOMIC_RELAXED);
            region_changed(r);
            *flush = true;
            result = DMM_MERGE_DONE;
        }
    }
    spin_unlock(&r->lock);
    dmm_leave(outermost);
    return result;
}

/* The spaces to flush: each is acquired, but for the batch's own, the first, which the caller has and which may need none. */
struct flush_set { struct dmm_space *space[DMM_MERGE_BATCH + 1]; unsigned count; bool own; };

static bool in_set(const struct flush_set *f, const struct dmm_space *s)
{
    for (unsigned n = 0; n < f->count; n++)
        if (f->space[n] == s)
            return true;
    return false;
}

/* Keeps what was acquired, unless it has it. */
static void add_to_set(struct flush_set *f, struct dmm_space *t)
{
    f->own |= t == f->space[0];
    if (in_set(f, t))
        dmm_space_release(t);
    else
        f->space[f->count++] = t;
}

/* A partner is a shared frame already, or becomes one where its owner has it. */
static bool protect_partner(mfn_t m, struct flush_set *f)
{
    if (!frame_exists(m))
        return false;
    const struct frame *record = frame_record(m);
    struct frame now = { .what = __atomic_load_n(&record->what, __ATOMIC_RELAXED), .where = __atomic_load_n(&record->where, __ATOMIC_RELAXED) };
    if (now.type == FRAME_SHARED)
        return true;
    if (now.type != FRAME_GUEST || now.flags & FRAME_GUEST_TABLE)
        return false;
    struct dmm_space *t = dmm_space_acquire(now.owner);
    if (!t)
        return false;
    gfn_t gfn = gfn_of(now.gfn + (now.flags & FRAME_LARGE ? m.v % LARGE_PAGES : 0));
    if (now.flags & FRAME_LARGE)
        dmm_break_large(t, gfn);
    bool flush = false, done = protect_page(t, gfn, m, &flush) == DMM_MERGE_DONE;
    if (flush)
        add_to_set(f, t);
    else
        dmm_space_release(t);
    return done;
}

static void protect_all(struct dmm_space *s, struct dmm_merge *m, unsigned count, struct flush_set *f)
{
    for (unsigned n = 0; n < count; n++) {
        m[n].result = protect_page(s, m[n].gfn, m[n].mfn, &f->own);
        if (m[n].result == DMM_MERGE_DONE && mfn_valid(m[n].with) && !mfn_eq(m[n].with, m[n].mfn) && !protect_partner(m[n].with, f))
            m[n].result = DMM_MERGE_PARTNER_GONE;
    }
}

/* ---- merging ----------------------------------------------------------------------------------------------------------- */

static bool is_same_filled(const uint64_t *page)
{
    for (unsigned n = 1; n < PAGE_SIZE / 8; n++)
        if (page[n] != page[0])
            return false;
    return true;
}

static bool is_equal(const uint64_t *a, const uint64_t *b)
{
    for (unsigned n = 0; n < PAGE_SIZE / 8; n++)
        if (a[n] != b[n])
            return false;
    return true;
}

/* What `s` may share with another space (NULL: it is gone). Zeros are not asked for: there is one frame of them, whoever has some. */
enum closeness { ANYTHING, ONE_WORD /* pages of one word throughout */, NOTHING };

static enum closeness closeness_of(const struct dmm_space *s, const struct dmm_space *t)
{
    if (t && t->domain == s->domain)
        return ANYTHING;
    return dmm_group_secure(s->group) || (t && dmm_group_secure(t->group)) ? NOTHING : ONE_WORD;
}

/* Counts the page among the users of `with`, if that is a shared frame; *may: what may be shared with who has it already. */
static enum dmm_merge_result join(struct dmm_space *s, gfn_t gfn, mfn_t with, enum closeness *may)
{
    enum dmm_merge_result result = DMM_MERGE_PARTNER_GONE;
    share_lock(with);
    struct frame *f = frame_record(with);
    if (f->type == FRAME_SHARED && f->refs && !share_unflushed_pages()) {
        const struct dmm_space *t = space_of_id(rmap_any_space(f)); /* NULL: it is gone, and the frame in limbo */
        *may = closeness_of(s, t);
        switch (rmap_add(f, s->id, gfn.v)) {
        case RMAP_OK: result = DMM_MERGE_DONE; break;
        case RMAP_FULL: result = DMM_MERGE_FULL; break;
        case RMAP_NO_MEMORY: result = DMM_MERGE_NO_MEMORY; break;
        }
    }
    share_unlock(with);
    return result;
}

/* Nothing leads from the page to `with` yet: no flush is due. */
static void leave(struct dmm_space *s, gfn_t gfn, mfn_t with)
{
    share_lock(with);
    rmap_remove(frame_of(with), s->id, gfn.v); /* it had a user before */
    share_unlock(with);
}

static p2m_entry_t sealed(const struct dmm_space *s, mfn_t m) { return s->format->make_nonpresent(P2M_SEALED, m.v); }

static enum dmm_merge_result merge_with(struct dmm_space *s, p2m_entry_t *slot, gfn_t gfn, mfn_t m, mfn_t with, bool secure)
{
    enum closeness may = NOTHING;
    enum dmm_merge_result result = join(s, gfn, with, &may);
    if (result != DMM_MERGE_DONE)
        return result;
    if (!is_equal(mfn_to_hva(m), mfn_to_hva(with)))
        result = DMM_MERGE_DIFFERENT;
    else if (may == NOTHING || (may == ONE_WORD && !is_same_filled(mfn_to_hva(m))))
        result = DMM_MERGE_FOREIGN;
    if (result != DMM_MERGE_DONE) {
        leave(s, gfn, with);
        return result;
    }
    if (secure)
        p2m_transition(s, slot, 1, P2M_SHARED_RO, P2M_SEALED, sealed(s, with));
    else
        p2m_transition(s, slot, 1, P2M_SHARED_RO, P2M_SHARED_RO, s->format->make_leaf(P2M_SHARED_RO, with, 1) | s->format->mark);
    to_limbo(m, s, gfn);
    return DMM_MERGE_DONE;
}

static enum dmm_merge_result merge_with_zero(struct dmm_space *s, p2m_entry_t *slot, gfn_t gfn, mfn_t m)
{
    const uint64_t *page = mfn_to_hva(m);
    if (page[0] || !is_same_filled(page))
        return DMM_MERGE_DIFFERENT;
    p2m_transition(s, slot, 1, P2M_SHARED_RO, P2M_ZERO_RO, s->format->make_leaf(P2M_ZERO_RO, dmm_zero_mfn, 1));
    to_limbo(m, s, gfn);
    pool_uncharge(s, 1); /* it still owes a frame */
    return DMM_MERGE_ZEROED;
}

/* Protected, and flushed. The entry is looked at again: the guest may have written to it and have it back. */
static enum dmm_merge_result merge_page(struct dmm_space *s, const struct dmm_merge *k, bool secure)
{
    enum dmm_merge_result result = DMM_MERGE_GONE;
    struct region *r = region_of(s, k->gfn);
    bool outermost = dmm_enter();
    spin_lock(&r->lock);
    p2m_entry_t *slot = r->l1 ? &r->l1[k->gfn.v % LARGE_PAGES] : NULL;
    if (slot && s->format->type_of(p2m_read(slot), 1) == P2M_SHARED_RO && mfn_eq(s->format->mfn_of(p2m_read(slot)), k->mfn)) {
        if (share_unflushed_pages()) {
            result = DMM_MERGE_GONE;
        } else if (!mfn_valid(k->with)) {
            result = merge_with_zero(s, slot, k->gfn, k->mfn);
        } else if (!mfn_eq(k->with, k->mfn)) {
            result = merge_with(s, slot, k->gfn, k->mfn, k->with, secure);
        } else {
            result = DMM_MERGE_ALREADY;
            if (secure)
                p2m_transition(s, slot, 1, P2M_SHARED_RO, P2M_SEALED, sealed(s, k->mfn));
        }
        if (result == DMM_MERGE_NO_MEMORY && secure) /* a lack must not tell either that there was somebody to join */
            p2m_transition(s, slot, 1, P2M_SHARED_RO, P2M_SEALED, sealed(s, k->mfn));
        else if (result > DMM_MERGE_ALREADY)
            share_unprotect(s, slot, k->gfn);
        region_changed(r);
    }
    spin_unlock(&r->lock);
    dmm_leave(outermost);
    return result;
}

void dmm_merge(struct dmm_space *s, struct dmm_merge *m, unsigned count)
{
    struct flush_set f = { .space = { s }, .count = 1 };
    hv_assert(count <= DMM_MERGE_BATCH);
    if (limbo_of(s->id) != limbo_count)
        dmm_merge_finish();
    protect_all(s, m, count, &f);
    for (unsigned n = f.own || limbo_count ? 0 : 1; n < f.count; n++) {
        dmm_flush_wait(f.space[n]);
        free_limbo(f.space[n]->id);
    }
    bool secure = dmm_group_secure(s->group);
    for (unsigned n = 0; n < count; n++)
        if (m[n].result == DMM_MERGE_DONE)
            m[n].result = merge_page(s, &m[n], secure);
        else if (m[n].result == DMM_MERGE_PARTNER_GONE)
            dmm_unprotect_page(s, m[n].gfn);
    for (unsigned n = 1; n < f.count; n++)
        dmm_space_release(f.space[n]);
}
