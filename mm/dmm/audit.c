/*
 * The ledger: the conservation laws of memory, checked on the live system.
 *
 * Counters are kept where things change, for speed; the audit recounts from the ground up, each law from both ends, so that
 * an error must be made twice in the same way to go unseen:
 *
 *   frames    the records by type add up to the counters, and these to the machine; a free frame is in exactly one of the
 *             bitfields, the magazines and the zeroed stocks; child, tree and global counters equal the bits
 *   p2m       every entry is of a state that the diagram has; RW: the frame is this space's, at this gfn, and no other entry can have it,
 *             since there are exactly as many GUEST frames; IMAGE_RO: a boot file's, whose references equal its entries
 *   spaces    pages by state add up to the RAM declared; table pages reached equal table pages owned; the pool's charge
 *             equals the frames held
 *   shares    each SHARED_RO or SEALED entry is in its frame's reverse map, and the maps list as many users as there are entries (and users in
 *             limbo, whose CPUs have not been told yet)
 *   promises  the minima not yet drawn add up, and so does what covers un-sharing
 *
 * All CPUs are held outside DMM meanwhile (frame.h, dmm_enter), hence nothing here takes a lock or allocates.
 */
#include <stdarg.h>

#include "core/log.h"
#include "include/abi/boot_info.h"
#include "lib/string.h"
#include "mm/dmm/frame.h"
#include "mm/dmm/rmap.h"
#include "mm/dmm/share.h"
#include "mm/dmm/space.h"
#include "x86/cpu.h"

volatile bool dmm_gate_closed;
void (*dmm_cpu_barrier)(void);

struct audit {
    void (*report)(const char *line, void *arg);
    void *arg;
    unsigned violations;
    uint64_t by_type[FRAME_TYPE_COUNT], cached_dirty, cached_zeroed, image_entries, image_refs, shared_entries, shared_refs;
};

static void PRINTF_LIKE(2, 3) violation(struct audit *a, const char *fmt, ...)
{
    char line[192];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    a->violations++;
    if (a->report)
        a->report(line, a->arg);
}

/* law(a, x == y, ...) with both numbers shown. */
static void equal(struct audit *a, uint64_t x, uint64_t y, const char *whose, const char *what_x, const char *what_y)
{
    if (x != y)
        violation(a, "%s: %s is %lu, but %s is %lu", whose, what_x, (unsigned long)x, what_y, (unsigned long)y);
}

/* ---- the gate ------------------------------------------------------------------------------------------------- */

void dmm_gate_wait(struct frame_cpu *c)
{
    while (dmm_gate_closed) {
        c->inside = false;
        cpu_pause();
        if (dmm_gate_closed)
            continue;
        c->inside = true;
        asm volatile("mfence" ::: "memory");
    }
}

void dmm_set_cpu_barrier(void (*fn)(void)) { dmm_cpu_barrier = fn; }

static void close_gate(void)
{
    hv_assert(!frame_cpu()->inside);
    __atomic_store_n(&dmm_gate_closed, true, __ATOMIC_SEQ_CST);
    if (dmm_cpu_barrier)
        dmm_cpu_barrier();
    for (const struct frame_cpu *c = frame_cpus; c; c = c->next)
        while (c->inside)
            cpu_pause();
}

static void open_gate(void) { __atomic_store_n(&dmm_gate_closed, false, __ATOMIC_SEQ_CST); }

/* ---- frames ------------------------------------------------------------------------------------------------------ */

static void check_guest_frame(struct audit *a, mfn_t m, const struct frame *f)
{
    const struct dmm_space *s = frame_owner(f);
    struct region *r = s ? region_of(s, gfn_of(f->gfn)) : NULL;
    if (!r) {
        violation(a, "frame %lx: guest frame of owner %u at gfn %lx, which is nobody's RAM", (unsigned long)m.v, f->owner,
                  (unsigned long)f->gfn);
        return;
    }
    unsigned level;
    p2m_entry_t e = p2m_read(p2m_leaf(r, gfn_of(f->gfn), &level));
    bool large = f->flags & FRAME_LARGE;
    if (s->format->type_of(e, level) != P2M_RW || !mfn_eq(s->format->mfn_of(e), m) || large != (level == 2))
        violation(a, "frame %lx: vm%u's at gfn %lx, but the entry there is %s (%lx) at level %u", (unsigned long)m.v, s->vm_id,
                  (unsigned long)f->gfn, p2m_type_name(s->format->type_of(e, level)), (unsigned long)e, level);
}

static void check_shared_frame(struct audit *a, mfn_t m, const struct frame *f)
{
    uint32_t listed = rmap_count(f);
    a->shared_refs += f->refs;
    if (!f->refs || listed != f->refs || f->owner)
        violation(a, "frame %lx: shared by %u users of owner %u, but its reverse map lists %u", (unsigned long)m.v, f->refs, f->owner, listed);
}

static void check_pins_of_large(struct audit *a, mfn_t m, const struct frame *f)
{
    uint64_t others = 0;
    for (unsigned n = 1; n < LARGE_PAGES; n++)
        others += frame_of(mfn_add(m, n))->refs;
    if (others > f->refs)
        violation(a, "frame %lx: of 2 MiB, has %u pins, but its pages behind the first have %lu", (unsigned long)m.v, f->refs, (unsigned long)others);
}

static void check_frame(struct audit *a, mfn_t m, const struct frame *f, uint64_t pages)
{
    if (f->type >= FRAME_TYPE_COUNT) {
        violation(a, "frame %lx: unknown type %u", (unsigned long)m.v, f->type);
        return;
    }
    a->by_type[f->type] += pages;
    if (f->type == FRAME_GUEST)
        check_guest_frame(a, m, f);
    if (f->type == FRAME_GUEST && f->flags & FRAME_LARGE)
        check_pins_of_large(a, m, f);
    if (f->type == FRAME_SHARED)
        check_shared_frame(a, m, f);
    if ((f->type == FRAME_P2M || f->type == FRAME_VM_STATE) && !frame_owner(f))
        violation(a, "frame %lx: %s of owner %u, who does not exist", (unsigned long)m.v, frame_type_name(f->type), f->owner);
    if (f->type == FRAME_BOOT_FILE) {
        a->image_refs += f->refs;
        if ((f->refs & 0xffffff) != f->tag)
            violation(a, "frame %lx: boot file's page has %u references, but %u entries point there", (unsigned long)m.v,
                      f->refs, (unsigned)f->tag);
        frame_of(m)->tag = 0;
    }
}

static void check_child_bits(struct audit *a, uint64_t child)
{
    for (unsigned w = 0; w < LARGE_PAGES / 64; w++)
        for (uint64_t bits = child_of(child)->word[w]; bits; bits &= bits - 1) {
            mfn_t m = mfn_of(child * LARGE_PAGES + w * 64 + (unsigned)__builtin_ctzll(bits));
            if (frame_of(m)->type != FRAME_FREE)
                violation(a, "frame %lx: its bit says free, its record %s", (unsigned long)m.v, frame_type_name(frame_of(m)->type));
        }
}

static void check_cached(mfn_t m, bool zeroed, uint64_t pages, void *arg)
{
    struct audit *a = arg;
    *(zeroed ? &a->cached_zeroed : &a->cached_dirty) += pages;
    const struct frame *f = frame_of(m);
    if (f->type != (zeroed ? FRAME_FREE_ZEROED : FRAME_FREE))
        violation(a, "frame %lx: among the %s free frames, but its record says %s", (unsigned long)m.v,
                  zeroed ? "zeroed" : "cached", frame_type_name(f->type));
    if (pages == 1 && child_of(m.v / LARGE_PAGES)->word[m.v % LARGE_PAGES / 64] & BIT64(m.v % 64))
        violation(a, "frame %lx: free twice, in its bitfield and in a magazine or stock", (unsigned long)m.v);
}

static void check_frames(struct audit *a)
{
    struct frame_stock st;
    uint64_t sum = 0, rmap_pages, rmap_chunks;
    for (unsigned k = 0; k < frame_run_count; k++)
        for (uint64_t m = frame_runs[k].first; m < frame_runs[k].end; m += LARGE_PAGES) {
            if (*child_free_of(m / LARGE_PAGES) == CHILD_HUGE) {
                check_frame(a, mfn_of(m), frame_of(mfn_of(m)), LARGE_PAGES);
                continue;
            }
            for (uint64_t n = m; n < m + LARGE_PAGES; n++)
                check_frame(a, mfn_of(n), frame_of(mfn_of(n)), 1);
            check_child_bits(a, m / LARGE_PAGES);
        }
    for (unsigned t = FRAME_FREE; t < FRAME_TYPE_COUNT; t++) {
        equal(a, a->by_type[t], frame_count(t), frame_type_name(t), "the number of records", "the counter");
        sum += a->by_type[t];
    }
    equal(a, sum, frame_total_pages(), "frames", "the sum over types", "the machine");
    frame_for_each_cached(check_cached, a);
    frame_stock_census(&st);
    equal(a, st.bits, st.counters, "allocator", "the number of bits", "the sum of child counters");
    equal(a, st.bits, st.trees, "allocator", "the number of bits", "the sum of tree counters");
    equal(a, st.bits, st.shared_free, "allocator", "the number of bits", "the global counter");
    equal(a, st.bits + a->cached_dirty, a->by_type[FRAME_FREE], "allocator", "bits and magazines", "FREE frames");
    equal(a, a->cached_zeroed, a->by_type[FRAME_FREE_ZEROED], "allocator", "the stock of zeroed frames", "FREE_ZEROED frames");
    equal(a, a->image_refs, a->image_entries, "boot files", "the sum of references", "the number of IMAGE_RO entries");
    equal(a, a->shared_refs, a->shared_entries + share_limbo_count(), "shared frames", "the sum of references", "the number of entries");
    rmap_census(&rmap_pages, &rmap_chunks);
    equal(a, rmap_pages, a->by_type[FRAME_RMAP], "reverse maps", "the number of pages in use", "rmap frames");
}

/* ---- spaces ------------------------------------------------------------------------------------------------------- */

struct tally { uint64_t entries[P2M_TYPE_COUNT], tables, large, taken, pinned, inherited_ram, inherited_charge, inherited_owed; };

/* Each entry is in its frame's map, and there are as many entries as maps list: so the maps list nothing else. */
static bool check_shared_entry(struct audit *a, const struct dmm_space *s, gfn_t gfn, const struct frame *f)
{
    a->shared_entries++;
    return f->type == FRAME_SHARED && rmap_has(f, s->id, gfn.v);
}

static void check_leaf(struct audit *a, const struct dmm_space *s, gfn_t gfn, p2m_entry_t e, unsigned level, struct tally *t)
{
    enum p2m_type type = s->format->type_of(e, level);
    uint64_t pages = level == 2 ? LARGE_PAGES : 1;
    t->entries[type] += pages;
    if (type <= P2M_EMPTY)
        return;
    mfn_t m = type > P2M_TABLE || type == P2M_SEALED ? share_mfn_of(s, e, type) : INVALID_MFN;
    if (!mfn_valid(m) || !frame_exists(m)) {
        violation(a, "vm%u: gfn %lx: entry %lx (%s) leads to no frame", s->vm_id, (unsigned long)gfn.v, (unsigned long)e,
                  p2m_type_name(type));
        return;
    }
    struct frame *f = frame_of(m);
    bool ok = false;
    if (type == P2M_RW) {
        ok = f->type == FRAME_GUEST && f->owner == s->id && f->gfn == gfn.v && !(f->flags & FRAME_LARGE) == (level == 1) &&
             (level == 1 || IS_ALIGNED(m.v, LARGE_PAGES));
        t->large += level == 2 ? pages : 0;
        t->pinned += f->refs ? pages : 0;
    } else if (type == P2M_SHARED_RO || type == P2M_SEALED) {
        ok = check_shared_entry(a, s, gfn, f);
    } else if (type == P2M_IMAGE_RO) {
        ok = f->type == FRAME_BOOT_FILE;
        a->image_entries++;
        f->tag += ok;
    } else if (type == P2M_ZERO_RO) {
        ok = mfn_eq(m, dmm_zero_mfn);
    }
    if (!ok)
        violation(a, "vm%u: gfn %lx: %s entry leads to frame %lx, a %s of owner %u at gfn %lx", s->vm_id, (unsigned long)gfn.v,
                  p2m_type_name(type), (unsigned long)m.v, frame_type_name(f->type), f->owner, (unsigned long)f->gfn);
    if (type != P2M_RW && s->format->permits(e, DMM_WRITE))
        violation(a, "vm%u: gfn %lx: %s entry permits writing", s->vm_id, (unsigned long)gfn.v, p2m_type_name(type));
}

/* Region n is as the image has it: what it makes the space owe, and its pool be charged for. */
static void tally_inherited(const struct dmm_space *s, uint64_t n, struct tally *t)
{
    struct region *from;
    const struct dmm_space *image = image_of(s, n, &from);
    t->inherited_ram += space_ram_in(s, n * LARGE_PAGES, (n + 1) * LARGE_PAGES);
    for (unsigned k = 0; image && k < LARGE_PAGES; k++) {
        unsigned level = 1;
        enum p2m_type type = image->format->type_of(p2m_read(p2m_leaf(from, gfn_of(n * LARGE_PAGES + k), &level)), level);
        t->inherited_charge += type == P2M_RW || type == P2M_SHARED_RO || type == P2M_SEALED;
        t->inherited_owed += type > P2M_TABLE || type == P2M_SEALED;
    }
}

/* A region that scans pass by has nothing that none has seen. (What a CPU has dirtied may be in a log that was not read yet.) */
static void check_rest(struct audit *a, const struct dmm_space *s, uint64_t n, const struct region *r)
{
    unsigned level = r->l1 ? 1 : 2;
    const p2m_entry_t *slot = r->l1 ? r->l1 : r->l2e;
    for (unsigned k = 0; k < (r->l1 ? LARGE_PAGES : 1); k++) {
        p2m_entry_t e = p2m_read(&slot[k]);
        enum p2m_type type = s->format->type_of(e, level);
        if ((type == P2M_RW || type == P2M_SHARED_RO) && !(e & s->format->mark))
            violation(a, "vm%u: gfn %lx: entry %lx has been seen by no scan, but scans pass it by", s->vm_id,
                      (unsigned long)(n * LARGE_PAGES + k), (unsigned long)e);
    }
}

static void check_region(struct audit *a, const struct dmm_space *s, uint64_t n, const struct region *r, struct tally *t)
{
    uint64_t before_hole = t->entries[P2M_HOLE], before_empty = t->entries[P2M_EMPTY];
    p2m_entry_t above = p2m_read(r->l2e);
    enum p2m_type kind = s->format->type_of(above, 2);
    bool table = kind == P2M_TABLE;
    if (table != (r->l1 != NULL) || (table && !mfn_eq(s->format->mfn_of(above), hva_to_mfn(r->l1)))) {
        violation(a, "vm%u: region at gfn %lx: its level-1 table is not where its level-2 entry leads", s->vm_id,
                  (unsigned long)(n * LARGE_PAGES));
        return;
    }
    if (kind == P2M_INHERITED) {
        tally_inherited(s, n, t);
        return;
    }
    t->tables += table;
    for (unsigned k = 0; table && k < LARGE_PAGES; k++)
        check_leaf(a, s, gfn_of(n * LARGE_PAGES + k), p2m_read(&r->l1[k]), 1, t);
    if (!table)
        check_leaf(a, s, gfn_of(n * LARGE_PAGES), above, 2, t);
    if (s->frozen) {
        t->taken += table ? r->taken : 0;
        if (table && r->taken >= s->heirs)
            violation(a, "image of vm%u: region at gfn %lx: %u of %u heirs have it", s->vm_id, (unsigned long)(n * LARGE_PAGES),
                      r->taken, s->heirs);
        return; /* what was dropped is EMPTY now, whatever it was */
    }
    if (s->logs && region_is_unchanged(r))
        check_rest(a, s, n, r);
    uint64_t ram = LARGE_PAGES - (t->entries[P2M_HOLE] - before_hole);
    if (ram != r->ram_pages || ram - (t->entries[P2M_EMPTY] - before_empty) != r->filled_pages)
        violation(a, "vm%u: region at gfn %lx: counts %u RAM and %u filled pages, has %lu and %lu", s->vm_id,
                  (unsigned long)(n * LARGE_PAGES), r->ram_pages, r->filled_pages, (unsigned long)ram,
                  (unsigned long)(ram - (t->entries[P2M_EMPTY] - before_empty)));
}

/* 64 regions, or what stands for them. */
static void check_chunk(struct audit *a, const struct dmm_space *s, uint64_t first, struct tally *t)
{
    const struct region *chunk = s->chunks[first / CHUNK_REGIONS];
    t->tables += chunk != NULL;
    for (uint64_t n = first; n < MIN(first + CHUNK_REGIONS, s->region_count); n++) {
        if (chunk && chunk[n % CHUNK_REGIONS].l2e)
            check_region(a, s, n, &chunk[n % CHUNK_REGIONS], t);
        else if (!chunk && s->base)
            tally_inherited(s, n, t);
        else if (!chunk)
            t->entries[P2M_EMPTY] += space_ram_in(s, n * LARGE_PAGES, (n + 1) * LARGE_PAGES);
    }
}

static uint64_t count_tables(const struct dmm_space *s, mfn_t table, unsigned level)
{
    const p2m_entry_t *t = mfn_to_hva(table);
    uint64_t count = 1;
    for (unsigned n = 0; n < LARGE_PAGES && level > 2; n++)
        if (s->format->type_of(t[n], level) == P2M_TABLE)
            count += count_tables(s, s->format->mfn_of(t[n]), level - 1);
    return count;
}

static void check_space(struct audit *a, const struct dmm_space *s)
{
    struct tally t = { .tables = count_tables(s, space_root(s), 4) };
    for (uint64_t n = 0; n < s->region_count; n += CHUNK_REGIONS)
        check_chunk(a, s, n, &t);
    equal(a, t.taken, s->taken_sum, s->name, "what its regions say heirs have taken", "its sum");
    uint64_t ram = t.entries[P2M_EMPTY] + t.inherited_ram;
    for (unsigned k = P2M_EMPTY + 1; k < P2M_TYPE_COUNT; k++) {
        equal(a, t.entries[k], s->entries[k], s->name, p2m_type_name(k), "its counter");
        ram += t.entries[k];
    }
    if (!s->frozen)
        equal(a, ram, s->ram_pages, s->name, "the sum of pages by state", "the RAM declared");
    equal(a, t.inherited_charge, s->inherited_charge, s->name, "pages inherited with a frame", "their counter");
    equal(a, t.inherited_owed, s->inherited_owed, s->name, "pages inherited", "their counter");
    equal(a, t.entries[P2M_RW], s->frames[FRAME_GUEST], s->name, "RW pages", "private frames owned");
    uint64_t shared = t.entries[P2M_SHARED_RO] + t.entries[P2M_SEALED];
    equal(a, s->charged, s->frames[FRAME_GUEST] + shared + t.inherited_charge, s->name, "the pool's charge", "frames owned and pages shared");
    equal(a, s->owed, shared + t.entries[P2M_ZERO_RO] + t.entries[P2M_IMAGE_RO] + t.inherited_owed, s->name, "what it owes",
          "pages without a frame of their own");
    if (s->class == DMM_CLASS_STRICT && s->hard < s->owed)
        violation(a, "%s: is strict and owes %lu pages, but %lu frames are set aside", s->name, (unsigned long)s->owed, (unsigned long)s->hard);
    equal(a, t.tables, s->frames[FRAME_P2M], s->name, "nested tables reached", "table frames owned");
    equal(a, t.large, s->large_pages, s->name, "pages in 2 MiB mappings", "their counter");
    equal(a, t.pinned, s->pinned_pages, s->name, "pinned pages", "their counter");
    if (s->charged > s->max_pages)
        violation(a, "%s: holds %lu pages, its maximum is %lu", s->name, (unsigned long)s->charged, (unsigned long)s->max_pages);
}

unsigned dmm_audit(void (*report)(const char *line, void *arg), void *arg)
{
    struct audit a = { .report = report, .arg = arg };
    uint64_t promised = 0, hard = 0, soft = 0, all_hard, all_soft;
    close_gate();
    for (unsigned id = 1; id <= DMM_MAX_SPACES; id++) {
        const struct dmm_space *s = space_of_id((uint16_t)id);
        if (!s)
            continue;
        check_space(&a, s);
        promised += s->min_pages > s->charged ? s->min_pages - s->charged : 0;
        hard += s->hard;
        soft += s->soft;
    }
    check_frames(&a);
    equal(&a, promised + hard + soft, pool_set_aside, "pools", "promises and covers", "what is set aside");
    equal(&a, promised, pool_promised, "pools", "the sum of minima not drawn", "what is promised");
    pool_census(&all_hard, &all_soft);
    equal(&a, hard, all_hard, "pools", "the sum of spaces' covers", "what covers un-sharing");
    equal(&a, soft, all_soft, "pools", "the sum of spaces' expected covers", "what covers expected un-sharing");
    const uint64_t *zero = mfn_to_hva(dmm_zero_mfn);
    for (unsigned n = 0; n < PAGE_SIZE / 8; n++)
        if (zero[n]) {
            violation(&a, "the zero page is not zero at byte %u", n * 8);
            break;
        }
    open_gate();
    return a.violations;
}
