/*
 * Dedup: finds pages with equal contents and has DMM share them.
 *
 * A sweep visits all spaces, region by region. Hashing everything every time is what makes scanners a burden, so it goes by dirty bits: pages
 * are *aged* some regions ahead of where the scan is, and those that are still clean when it comes by are at rest and worth a look, once. Each is
 * zero, or has a partner in the table, or becomes a partner for others; until somebody writes to it the next sweeps pass it by at the price of
 * reading its entry, or less (see "the CPUs' logs of written pages"). So one sweep after guests have come to rest finds everything, and the sweeps
 * after that cost next to nothing. What a fork shares is looked at in the same way, once; all its users move to the frame that the table has, and the
 * one they leave is free when the last has left.
 *
 * What keeps breaking is not worth sharing: a region whose shares break is left alone for twice as many sweeps each time. A 2 MiB mapping is
 * worth more than a few pages: it is broken if enough of its pieces would be saved, for its own sake or that of another region's pages that are equal
 * to them, and if nobody is using it or memory is short. What had to wait for that is marked, and listed again on the day. One dirty bit speaks for 512
 * pages, of which a guest at rest writes to a few: when memory is short it is no excuse, and those pages that are at rest come to light in the pieces.
 *
 * When and how much of this is done is dedup_thread.c's business.
 */
#include "policies/dedup_internal.h"

#include "core/time.h"

#define HASHED_AHEAD 8u
#define AHEAD 16u                       /* regions between aging and scanning */
#define BACKOFF_MAX 6u
#define ENOUGH_WHEN_SHORT 8u            /* pages to be saved by breaking a 2 MiB mapping, which costs one for the entries, and the guest some speed */

#define LOOK_ANYWAY 32u                 /* one region in so many is looked at though its VM's logs have nothing of it */
#define LOG_REGIONS_MIN 8u              /* fewer to be passed by are not worth a log */

struct dedup_counts dedup_counts;
struct dedup_table dedup_table;
static struct dmm_scan scan;            /* of the region at hand */
static struct dmm_digest digests[LARGE_PAGES];

/* Where the sweep is. */
static struct {
    unsigned space_id;
    uint64_t region, aged;
    bool fresh_space;
    bool thorough;                      /* somebody has asked for it */
    bool broke_behind;                  /* a mapping that the sweep may have passed already: its pieces have not been looked at since */
    uint64_t begun_ns, found_before, hashed_before;
    uint64_t rests, dirty, logged;      /* of this space: regions that changed nothing, pages written to, pages logged since the last sweep */
} at;

static uint64_t saved(void) { return dedup_counts.result[DMM_MERGE_DONE] + dedup_counts.result[DMM_MERGE_ZEROED]; }
static bool pages_matter_more(void) { return at.thorough || dedup_memory_is_short(); }

/* ---- a batch of pages that have partners ------------------------------------------------------------------------------ */

static struct dmm_merge batch[DMM_MERGE_BATCH];
static uint64_t batch_key[DMM_MERGE_BATCH];
static unsigned batch_count;
static bool region_lacks;               /* something failed for want of frames */
static bool region_in_vain;             /* a 2 MiB mapping in use was hashed, and stays */

/* The partner was not what the table said, or takes no more: from now on it is this page. */
static bool wants_new_partner(enum dmm_merge_result r)
{
    return r == DMM_MERGE_DIFFERENT || r == DMM_MERGE_PARTNER_GONE || r == DMM_MERGE_FULL || r == DMM_MERGE_FOREIGN;
}

/* The page whose partner failed: it is entered in its place, unless another of the batch was before it. That one is its partner then; in a secure
 * group it is sealed without one. True: once more. */
static bool try_another(struct dmm_space *s, struct dmm_merge *m, uint64_t key)
{
    enum dmm_candidate kind;
    mfn_t now = dedup_table_find(&dedup_table, key, m->mfn, &kind);
    if (kind != DMM_CANDIDATE || mfn_eq(now, m->with)) {
        dedup_table_enter(&dedup_table, key, m->mfn, m->gfn, m->with);
        m->with = m->mfn;
        return dmm_group_secure(dmm_space_group(s));
    }
    m->with = now;
    return true;
}

static void merge_batch(struct dmm_space *s)
{
    const bool secure = dmm_group_secure(dmm_space_group(s));
    unsigned rounds = 0;
    while (batch_count) {
        unsigned again = 0, count = batch_count;
        dmm_merge(s, batch, count);
        for (unsigned n = 0; n < count; n++) {
            dedup_counts.result[batch[n].result]++;
            dedup_counts.sealed += batch[n].result == DMM_MERGE_ALREADY && mfn_eq(batch[n].with, batch[n].mfn);
            region_lacks |= batch[n].result == DMM_MERGE_NO_MEMORY || batch[n].result == DMM_MERGE_UNCOVERED;
            if (!wants_new_partner(batch[n].result) || !mfn_valid(batch[n].with) || !try_another(s, &batch[n], batch_key[n]))
                continue;
            batch[again] = batch[n];
            batch_key[again++] = batch_key[n];
        }
        rounds += again == count; /* each round one is entered, or sealed; else the table is beyond hope, and a secure group's are sealed alone */
        batch_count = rounds < (secure ? 3 : 2) ? again : 0;
        for (unsigned n = 0; rounds == 2 && n < batch_count; n++)
            batch[n].with = batch[n].mfn;
    }
}

static void add_to_batch(struct dmm_space *s, gfn_t gfn, mfn_t mfn, mfn_t with, uint64_t key)
{
    batch[batch_count] = (struct dmm_merge){ .gfn = gfn, .mfn = mfn, .with = with };
    batch_key[batch_count++] = key;
    if (batch_count == DMM_MERGE_BATCH)
        merge_batch(s);
}

/* ---- pages -------------------------------------------------------------------------------------------------------------- */

/* One word throughout is shared by all, but for secure groups: that somebody else has a page of that word may be a secret. Anything else only inside
 * the space's domain. */
static uint64_t key_of(const struct dmm_space *s, struct dmm_digest d)
{
    return d.content == DMM_CONTENT_DATA || dmm_group_secure(dmm_space_group(s)) ? d.key ^ dmm_space_domain(s) * UINT64_C(0x9e3779b97f4a7c15) : ~d.key;
}

/* Partners inside 2 MiB mappings are not used before it is known how many pages one mapping would have to be broken for. */
static mfn_t in_large[LARGE_PAGES];     /* of each page of the region; INVALID_MFN: none */
static struct { uint32_t mapping, pages; } tally[2 * LARGE_PAGES];

static uint32_t mapping_of(mfn_t m) { return (uint32_t)(m.v / LARGE_PAGES) + 1; }

static uint32_t *tally_of(mfn_t m)
{
    uint32_t mapping = mapping_of(m), n = mapping % ARRAY_SIZE(tally);
    while (tally[n].mapping && tally[n].mapping != mapping)
        n = (n + 1) % ARRAY_SIZE(tally); /* a region has at most half as many */
    tally[n].mapping = mapping;
    return &tally[n].pages;
}

static void begin_region(void)
{
    region_lacks = region_in_vain = false;
    for (unsigned n = 0; n < ARRAY_SIZE(tally); n++)
        tally[n].mapping = tally[n].pages = 0;
    for (unsigned n = 0; n < LARGE_PAGES; n++)
        in_large[n] = INVALID_MFN;
}

/* So many pages have to be saved for a 2 MiB mapping. */
static uint64_t enough(void)
{
    uint64_t percent = dedup_param(DEDUP_BREAK_LARGE_PERCENT), pages = LARGE_PAGES * percent / 100;
    if (percent > 100)
        return LARGE_PAGES + 1;
    return MAX(pages_matter_more() ? MIN(pages, ENOUGH_WHEN_SHORT) : pages, UINT64_C(1));
}

static void add_zero(struct dmm_space *s, gfn_t gfn, mfn_t mfn) { add_to_batch(s, gfn, mfn, INVALID_MFN, 0); }

/* In a secure group it must look the same whether it was merged or not. */
static void add_without_partner(struct dmm_space *s, gfn_t gfn, mfn_t mfn, uint64_t key)
{
    if (dmm_group_secure(dmm_space_group(s)))
        add_to_batch(s, gfn, mfn, mfn, key);
}

/* The `n`th listed page of a region of small ones. */
static void consider_page(struct dmm_space *s, unsigned n, gfn_t gfn)
{
    enum dmm_candidate kind;
    mfn_t mfn = scan.page[n].mfn;
    if (digests[n].content == DMM_CONTENT_ZERO) {
        add_zero(s, gfn, mfn);
        return;
    }
    dedup_counts.same_filled += digests[n].content == DMM_CONTENT_SAME_FILLED;
    uint64_t key = key_of(s, digests[n]);
    mfn_t with = dedup_table_find(&dedup_table, key, mfn, &kind);
    if (kind == DMM_CANDIDATE) {
        add_to_batch(s, gfn, mfn, with, key);
        return;
    }
    dedup_table_enter(&dedup_table, key, mfn, gfn, INVALID_MFN);
    if (kind == DMM_CANDIDATE_IN_LARGE && !scan.page[n].shared) { /* its frame stays in use by others: no mapping is broken for it */
        in_large[n] = with;
        ++*tally_of(with);
    } else {
        add_without_partner(s, gfn, mfn, key);
    }
}

/* Partners inside 2 MiB mappings, now that they are counted. Returns how many pages have to do without. */
static unsigned use_partners_in_large(struct dmm_space *s, uint64_t first)
{
    unsigned unused = 0;
    uint64_t needed = enough();
    for (unsigned n = 0; n < scan.fresh; n++) {
        gfn_t gfn = gfn_of(first + scan.page[n].index);
        if (!mfn_valid(in_large[n]))
            continue;
        if (*tally_of(in_large[n]) >= needed) {
            at.broke_behind = true;
            add_to_batch(s, gfn, scan.page[n].mfn, in_large[n], key_of(s, digests[n]));
        } else {
            unused++;
            add_without_partner(s, gfn, scan.page[n].mfn, key_of(s, digests[n]));
        }
    }
    return unused;
}

/* A look into the table is a cache miss; hashing some pages ahead hides it. Returns whether something waits for memory to become short. */
static bool consider_small(struct dmm_space *s, uint64_t first)
{
    for (unsigned n = 0; n < scan.fresh + HASHED_AHEAD; n++) {
        if (n < scan.fresh) {
            digests[n] = dmm_digest_page(scan.page[n].mfn, n + 1 < scan.fresh ? scan.page[n + 1].mfn : INVALID_MFN);
            dedup_table_prefetch(&dedup_table, key_of(s, digests[n]));
        }
        if (n >= HASHED_AHEAD)
            consider_page(s, n - HASHED_AHEAD, gfn_of(first + scan.page[n - HASHED_AHEAD].index));
    }
    dedup_counts.hashed += scan.fresh;
    unsigned unused = use_partners_in_large(s, first);
    merge_batch(s);
    return unused;
}

/* ---- 2 MiB mappings ------------------------------------------------------------------------------------------------------- */

/* How many of its pieces would need no frame? All digests are kept, and pieces like no other are entered in the table: somebody's page may be
 * equal. */
static unsigned count_savings(struct dmm_space *s, uint64_t first)
{
    unsigned savings = 0;
    for (unsigned n = 0; n < LARGE_PAGES; n++) {
        enum dmm_candidate kind;
        mfn_t mfn = scan.page[n].mfn;
        digests[n] = dmm_digest_page(mfn, n + 1 < LARGE_PAGES ? scan.page[n + 1].mfn : INVALID_MFN);
        uint64_t key = key_of(s, digests[n]);
        mfn_t with = digests[n].content == DMM_CONTENT_ZERO ? INVALID_MFN : dedup_table_find(&dedup_table, key, mfn, &kind);
        if (digests[n].content == DMM_CONTENT_ZERO || (mfn_valid(with) && (kind == DMM_CANDIDATE || mapping_of(with) == mapping_of(mfn)))) {
            savings++;
        } else if (mfn_valid(with)) {
            in_large[n] = with;
            ++*tally_of(with);
        } else {
            dedup_table_enter(&dedup_table, key, mfn, gfn_of(first + n), INVALID_MFN);
        }
    }
    dedup_counts.hashed += LARGE_PAGES;
    uint64_t needed = enough();
    for (unsigned n = 0; n < LARGE_PAGES; n++)
        savings += mfn_valid(in_large[n]) && *tally_of(in_large[n]) >= needed;
    return savings;
}

/* It was broken: its pieces are small pages now, and each other's partners. */
static void consider_pieces(struct dmm_space *s, uint64_t first)
{
    begin_region(); /* some partners have become small with it */
    for (unsigned n = 0; n < LARGE_PAGES; n++)
        consider_page(s, n, gfn_of(first + n));
    use_partners_in_large(s, first);
    merge_batch(s);
}

static bool breaks_in_use(void) { return pages_matter_more() || !dedup_param(DEDUP_BREAK_LARGE_PERCENT); }

/* Secure groups have no large mappings that are not in use: which of them are broken would tell what they hold. */
static bool consider_large(struct dmm_space *s, uint64_t first)
{
    if (scan.fresh != LARGE_PAGES)
        return false;
    if (scan.accessed && !breaks_in_use()) {
        dmm_scan_forget_region(s, gfn_of(first)); /* next time, then */
        dedup_counts.large_in_use++;
        return false;
    }
    bool worth_it = count_savings(s, first) >= enough() || dmm_group_secure(dmm_space_group(s));
    if (!worth_it || dmm_break_large(s, gfn_of(first)) != DMM_RESIZE_OK) {
        region_in_vain = scan.dirty;
        return true;
    }
    dedup_counts.large_broken++;
    consider_pieces(s, first);
    return false;
}

/* ---- regions ---------------------------------------------------------------------------------------------------------------- */

/* The note of a region: sweeps that it is still left alone, how often that has been doubled, and whether something in it waits for memory to become
 * short. */
#define NOTE_WAITS 0x8000u
struct note { unsigned rest, backoff; bool waits; };

static struct note read_note(struct dmm_space *s, gfn_t gfn)
{
    uint16_t note = dmm_scan_get_note(s, gfn);
    return (struct note){ .rest = note & 0xff, .backoff = note >> 8 & 0x7f, .waits = note & NOTE_WAITS };
}

static void write_note(struct dmm_space *s, gfn_t gfn, struct note n)
{
    dmm_scan_note(s, gfn, (uint16_t)(n.rest | n.backoff << 8 | (n.waits ? NOTE_WAITS : 0)));
}

static void leave_alone(struct note *n)
{
    n->backoff = MIN(n->backoff + 1, BACKOFF_MAX);
    n->rest = 1u << n->backoff;
}

/* Before it is scanned: what is listed once is not listed again. */
static bool is_left_alone(struct dmm_space *s, gfn_t gfn)
{
    struct note n = read_note(s, gfn);
    if (at.thorough)
        return false;
    if (n.rest)
        n.rest--;
    else if (dmm_scan_breaks(s, gfn) > dedup_param(DEDUP_BREAKS_MAX))
        leave_alone(&n);
    else
        return false;
    write_note(s, gfn, n);
    dedup_counts.skipped++;
    return true;
}

/* What the next sweeps should know of it. Shares that hold are a reason to trust it again. */
static void note_outcome(struct dmm_space *s, gfn_t gfn, bool waits)
{
    struct note n = read_note(s, gfn), was = n;
    if (n.backoff && scan.shared)
        n.backoff--;
    if (waits && !pages_matter_more()) /* else it has just been tried */
        n.waits = true;
    if (region_in_vain) /* its dirty bit would have it hashed in each sweep */
        leave_alone(&n);
    if (region_lacks) { /* later there may be what was lacking now */
        dmm_scan_forget_region(s, gfn);
        leave_alone(&n);
    }
    dedup_counts.waiting += n.waits && !was.waits;
    if (n.rest != was.rest || n.backoff != was.backoff || n.waits != was.waits)
        write_note(s, gfn, n);
}

static void count_region(void)
{
    dedup_counts.regions++;
    dedup_counts.unchanged += scan.unchanged;
    dedup_counts.dirty += scan.dirty;
    dedup_counts.unstable += scan.unstable;
    dedup_counts.shared += scan.shared;
    dedup_counts.zero += scan.zero;
    dedup_counts.pinned += scan.pinned;
}

/* Neither the CPUs' logs nor DMM know of a change since it was found at rest. Some are looked at nevertheless, others in each sweep: for what this does not
 * tell (shares that have lost their other users, pages that are only read). What is left alone for a while is counted elsewhere. */
static bool is_unchanged(struct dmm_space *s, uint64_t region, const struct note *n)
{
    return !at.thorough && !n->rest && !n->backoff && (region + dedup_counts.sweeps) % LOOK_ANYWAY && dmm_scan_is_unchanged(s, gfn_of(region * LARGE_PAGES));
}

static void scan_region(struct dmm_space *s, uint64_t region)
{
    gfn_t gfn = gfn_of(region * LARGE_PAGES);
    struct note n = read_note(s, gfn);
    if (is_unchanged(s, region, &n)) {
        dedup_counts.unchanged_regions++;
        at.rests++;
        return;
    }
    if (is_left_alone(s, gfn) || !dmm_scan_region(s, gfn, &scan))
        return;
    count_region();
    at.rests += scan.at_rest;
    bool waits = false;
    if (scan.large && scan.dirty && breaks_in_use() && !dmm_scan_list_large(s, gfn, &scan))
        return;
    if (scan.fresh) {
        begin_region();
        waits = scan.large ? consider_large(s, gfn.v) : consider_small(s, gfn.v);
    } else {
        region_lacks = region_in_vain = false;
    }
    note_outcome(s, gfn, waits);
}

static void age_region(struct dmm_space *s, uint64_t region)
{
    gfn_t gfn = gfn_of(region * LARGE_PAGES);
    struct note n = read_note(s, gfn);
    if (n.waits && pages_matter_more()) {
        n.waits = false;
        write_note(s, gfn, n);
        dmm_scan_forget_region(s, gfn);
    }
    if (!is_unchanged(s, region, &n))
        at.dirty += dmm_scan_age(s, gfn);
}

/* ---- the CPUs' logs of written pages ---------------------------------------------------------------------------------------------
 *
 * To pass a region by saves reading its 512 entries twice. What it costs is an entry in a log for each page that is dirtied, which somebody has to read;
 * a VM exit when a log is full; a flush for each sweep; and a frame for each vCPU. So a VM's CPUs log only while the scanner is on and as long as pages
 * written to are few beside the regions that are not: `log_pages_max` for each of these. (Reading a region costs 850 ns, a page in a log 3 and the CPU's
 * part and its share of an exit: 64 leave a margin.) It begins below half of that, so that it does not go back and forth.
 * A VM that writes a lot is scanned by its dirty bits alone, as one on a CPU that has no log. */

static void begin_space(struct dmm_space *s)
{
    at.rests = at.dirty = 0;
    at.logged = dmm_log_read(s);
    dedup_counts.logged += at.logged;
}

static void end_space(struct dmm_space *s)
{
    uint64_t most = dedup_param(DEDUP_LOG_PAGES_MAX) * at.rests;
    bool worth_it = dmm_log_is_on(s) ? at.logged <= most : at.dirty <= most / 2;
    if (!at.thorough)
        dmm_log_set(s, dedup_policy.enabled && dedup_param(DEDUP_LOG_PAGES_MAX) && at.rests >= LOG_REGIONS_MIN && worth_it);
}

void dedup_end_logs(void)
{
    for (unsigned id = 1; id <= DMM_MAX_SPACES; id++) {
        struct dmm_space *s = dmm_space_acquire(id);
        if (!s)
            continue;
        dmm_log_set(s, false);
        dmm_space_release(s);
    }
}

/* ---- the sweep ---------------------------------------------------------------------------------------------------------------- */

void dedup_begin_sweep(bool thorough)
{
    at.space_id = 0;
    at.fresh_space = true;
    at.thorough = thorough;
    at.broke_behind = false;
    at.begun_ns = time_ns();
    at.found_before = saved();
    at.hashed_before = dedup_counts.hashed;
}

static void end_sweep(void)
{
    dedup_counts.sweeps++;
    dedup_counts.last_sweep_ns = time_ns() - at.begun_ns;
    dedup_counts.last_hashed = dedup_counts.hashed - at.hashed_before;
    dedup_counts.last_found = saved() - at.found_before;
}

static struct dmm_space *next_space(void)
{
    struct dmm_space *s = at.fresh_space ? NULL : dmm_space_acquire(at.space_id);
    while (!s && at.space_id < DMM_MAX_SPACES) {
        at.region = at.aged = 0;
        at.fresh_space = true;
        s = dmm_space_acquire(++at.space_id);
    }
    return s;
}

enum dedup_step dedup_step(void)
{
    struct dmm_space *s = next_space();
    if (!s) {
        end_sweep();
        dedup_begin_sweep(false);
        return DEDUP_STEP_SWEPT;
    }
    uint64_t end = dmm_space_end_gfn(s) / LARGE_PAGES;
    if (at.fresh_space)
        begin_space(s);
    for (; at.aged < MIN(at.region + AHEAD, end); at.aged++)
        age_region(s, at.aged);
    bool settle = at.fresh_space;
    at.fresh_space = false;
    if (!settle && at.region < end)
        scan_region(s, at.region++);
    dmm_merge_finish();
    if (!settle && at.region >= end) {
        end_space(s);
        at.fresh_space = true; /* on to the next */
    }
    dmm_space_release(s);
    return settle ? DEDUP_STEP_SETTLE : DEDUP_STEP_MORE;
}

bool dedup_broke_behind(void) { return at.broke_behind; }
