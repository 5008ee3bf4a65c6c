/*
 * Dedup: finds pages with equal contents and has DMM share them.
 *
 * A sweep visits all spaces, region by region. Hashing everything every time is what makes scanners a burden, so it goes by dirty bits: pages are
 * *aged* some regions ahead of where the scan is, and those that are still clean when it comes by are at rest and worth a look, once. Each is zero, or
 * has a partner in the table, or becomes a partner for others; until somebody writes to it the next sweeps pass it by at the price of
 * reading its entry. So one sweep after guests have come to rest finds everything, and the sweeps after that cost next to nothing.
 *
 * What keeps breaking is not worth sharing: a region whose shares break is left alone for twice as many sweeps each time. A 2 MiB mapping is
 * worth more than a few pages: it is broken if enough of its pieces would be saved, and if nobody is using it or memory is short.
 *
 * The thread takes no more of a CPU than its budget, and less when there is little to find; `dedup sweep` asks for one sweep at once.
 */
#include "policies/dedup.h"

#include "core/console.h"
#include "core/log.h"
#include "core/thread.h"
#include "core/time.h"
#include "include/hv/dmm.h"
#include "include/hv/dmm_policy.h"
#include "lib/string.h"
#include "policies/dedup_table.h"

#define HASHED_AHEAD 8u
#define AHEAD 16u                       /* regions between aging and scanning */
#define SETTLE_NS UINT64_C(20000000)
#define BACKOFF_MAX 6u
#define NAP_NS UINT64_C(2000000)        /* shorter ones are saved up */

enum { CPU_PERCENT, PAGES_PER_SECOND, IDLE_SECONDS, BREAK_LARGE_PERCENT, SHORT_PERCENT, BREAKS_MAX, PARAM_COUNT };
static struct dmm_policy_param params[PARAM_COUNT] = {
    [CPU_PERCENT] = { "cpu_percent", "of one CPU, at most", 5, 1, 100 },
    [PAGES_PER_SECOND] = { "pages_per_second", "pages hashed, at most", 200000, 1, 100000000 },
    [IDLE_SECONDS] = { "idle_seconds", "pause between sweeps that find little", 10, 0, 3600 },
    [BREAK_LARGE_PERCENT] = { "break_large_percent", "2 MiB mappings are broken if so much of them would be saved (0: for any page)", 25, 0, 101 },
    [SHORT_PERCENT] = { "short_percent", "memory is short below so much free: then 2 MiB mappings in use are broken too", 25, 0, 100 },
    [BREAKS_MAX] = { "breaks_max", "a region with more broken shares since the last sweep is left alone for a while", 16, 1, 255 },
};

/* Of the policy since boot. Written by its thread only. */
static struct {
    uint64_t sweeps, regions, skipped, hashed, unchanged, dirty, unstable, same_filled, large_broken, cpu_ns, last_sweep_ns;
    uint64_t result[DMM_MERGE_RESULT_COUNT];
} counts;

static struct dedup_table table;
static struct dmm_scan scan;            /* of the region at hand */
static struct dmm_digest digests[LARGE_PAGES];
static struct waitq wanted = WAITQ_INIT(wanted), swept = WAITQ_INIT(swept);
static volatile uint64_t sweeps_asked;  /* `dedup sweep`: how many have been asked for, and are done */
static volatile uint64_t sweeps_served;
static struct dmm_policy dedup;

/* Where the sweep is. */
static struct { unsigned space_id; uint64_t region, aged; bool fresh_space; uint64_t begun_ns, found_before, hashed_before; } at;

static uint64_t param(unsigned which) { return __atomic_load_n(&params[which].value, __ATOMIC_RELAXED); }
static uint64_t saved(void) { return counts.result[DMM_MERGE_DONE] + counts.result[DMM_MERGE_ZEROED]; }
static bool memory_is_short(void) { return frame_free_pages() * 100 < frame_total_pages() * param(SHORT_PERCENT); }

/* ---- a batch of pages that have partners ------------------------------------------------------------------------------ */

static struct dmm_merge batch[DMM_MERGE_BATCH];
static uint64_t batch_key[DMM_MERGE_BATCH];
static unsigned batch_count;

/* The partner was not what the table said, or takes no more: from now on it is this page. */
static bool wants_new_partner(enum dmm_merge_result r)
{
    return r == DMM_MERGE_DIFFERENT || r == DMM_MERGE_PARTNER_GONE || r == DMM_MERGE_FULL || r == DMM_MERGE_FOREIGN;
}

/* The page whose partner failed: it is entered in its place, unless another of the batch was before it. That one is its partner then; in a secure group
 * it is sealed without one. True: once more. */
static bool try_another(struct dmm_space *s, struct dmm_merge *m, uint64_t key)
{
    enum dmm_candidate kind;
    mfn_t now = dedup_table_find(&table, key, &kind);
    if (!mfn_valid(now) || mfn_eq(now, m->with)) {
        dedup_table_enter(&table, key, m->mfn, m->gfn, m->with);
        m->with = m->mfn;
        return dmm_group_secure(dmm_space_group(s));
    }
    m->with = now;
    return !mfn_eq(now, m->mfn);
}

static void merge_batch(struct dmm_space *s)
{
    unsigned rounds = 0;
    while (batch_count) {
        unsigned again = 0, count = batch_count;
        dmm_merge(s, batch, count);
        for (unsigned n = 0; n < count; n++) {
            counts.result[batch[n].result]++;
            if (!wants_new_partner(batch[n].result) || !mfn_valid(batch[n].with) || !try_another(s, &batch[n], batch_key[n]))
                continue;
            batch[again] = batch[n];
            batch_key[again++] = batch_key[n];
        }
        rounds += again == count; /* each round one is entered, or sealed; else the table is beyond hope */
        batch_count = rounds < 2 ? again : 0;
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

/* One word throughout is nobody's secret and shared by all; anything else only inside the space's domain. */
static uint64_t key_of(const struct dmm_space *s, struct dmm_digest d)
{
    return d.content == DMM_CONTENT_DATA ? d.key ^ dmm_space_domain(s) * UINT64_C(0x9e3779b97f4a7c15) : ~d.key;
}

/* Not worth breaking somebody's 2 MiB mapping for one page, unless pages are what is needed. */
static bool may_use(enum dmm_candidate kind)
{
    return kind == DMM_CANDIDATE || (kind == DMM_CANDIDATE_IN_LARGE && (!param(BREAK_LARGE_PERCENT) || scan.large || memory_is_short()));
}

static void consider_page(struct dmm_space *s, gfn_t gfn, mfn_t mfn, struct dmm_digest d)
{
    enum dmm_candidate kind = DMM_CANDIDATE_NONE;
    if (d.content == DMM_CONTENT_ZERO) {
        add_to_batch(s, gfn, mfn, INVALID_MFN, 0);
        return;
    }
    counts.same_filled += d.content == DMM_CONTENT_SAME_FILLED;
    uint64_t key = key_of(s, d);
    mfn_t with = dedup_table_find(&table, key, &kind);
    if (mfn_valid(with) && !mfn_eq(with, mfn) && may_use(kind)) {
        add_to_batch(s, gfn, mfn, with, key);
        return;
    }
    if (!mfn_valid(with))
        dedup_table_enter(&table, key, mfn, gfn, INVALID_MFN);
    if (dmm_group_secure(dmm_space_group(s)))
        add_to_batch(s, gfn, mfn, mfn, key); /* merged or not, it must look the same */
}

/* A look into the table is a cache miss; hashing some pages ahead hides it. */
static void consider_small(struct dmm_space *s, uint64_t first)
{
    for (unsigned n = 0; n < scan.fresh + HASHED_AHEAD; n++) {
        if (n < scan.fresh) {
            digests[n] = dmm_digest_page(scan.page[n].mfn, n + 1 < scan.fresh ? scan.page[n + 1].mfn : INVALID_MFN);
            dedup_table_prefetch(&table, key_of(s, digests[n]));
        }
        if (n >= HASHED_AHEAD) {
            const struct dmm_scan_page *p = &scan.page[n - HASHED_AHEAD];
            consider_page(s, gfn_of(first + p->index), p->mfn, digests[n - HASHED_AHEAD]);
        }
    }
    counts.hashed += scan.fresh;
    merge_batch(s);
}

/* ---- 2 MiB mappings ------------------------------------------------------------------------------------------------------- */

static uint64_t seen[2 * LARGE_PAGES];  /* keys of this region, to find pairs inside it */

static bool seen_before(uint64_t key)
{
    for (uint64_t n = key % ARRAY_SIZE(seen);; n = (n + 1) % ARRAY_SIZE(seen)) {
        if (seen[n] == key)
            return true;
        if (!seen[n]) {
            seen[n] = key;
            return false;
        }
    }
}

/* How many of its pieces would need no frame? All digests are kept. */
static unsigned count_savings(struct dmm_space *s)
{
    unsigned savings = 0;
    for (unsigned n = 0; n < ARRAY_SIZE(seen); n++)
        seen[n] = 0;
    for (unsigned n = 0; n < LARGE_PAGES; n++) {
        enum dmm_candidate kind;
        digests[n] = dmm_digest_page(scan.page[n].mfn, n + 1 < LARGE_PAGES ? scan.page[n + 1].mfn : INVALID_MFN);
        uint64_t key = key_of(s, digests[n]);
        savings += digests[n].content == DMM_CONTENT_ZERO || mfn_valid(dedup_table_find(&table, key, &kind)) || seen_before(key | 1);
    }
    counts.hashed += LARGE_PAGES;
    return savings;
}

/* Pieces are entered in the table in any case: somebody else's page may be equal to one. */
static void consider_large(struct dmm_space *s, uint64_t first)
{
    if (scan.fresh != LARGE_PAGES || (scan.accessed && !memory_is_short() && param(BREAK_LARGE_PERCENT)))
        return;
    unsigned savings = count_savings(s);
    bool breaks = savings && savings * 100 >= LARGE_PAGES * param(BREAK_LARGE_PERCENT) && dmm_break_large(s, gfn_of(first)) == DMM_RESIZE_OK;
    counts.large_broken += breaks;
    for (unsigned n = 0; n < LARGE_PAGES; n++) {
        gfn_t gfn = gfn_of(first + n);
        enum dmm_candidate kind;
        if (breaks)
            consider_page(s, gfn, scan.page[n].mfn, digests[n]);
        else if (digests[n].content != DMM_CONTENT_ZERO && !mfn_valid(dedup_table_find(&table, key_of(s, digests[n]), &kind)))
            dedup_table_enter(&table, key_of(s, digests[n]), scan.page[n].mfn, gfn, INVALID_MFN);
    }
    merge_batch(s);
}

/* ---- regions ---------------------------------------------------------------------------------------------------------------- */

/* The note of a region: sweeps that it is still left alone, and how often that has been doubled. */
static uint16_t note_of(unsigned rest, unsigned backoff) { return (uint16_t)(backoff << 8 | rest); }

/* Before it is scanned: what is listed once is not listed again. */
static bool is_left_alone(struct dmm_space *s, gfn_t gfn)
{
    uint16_t note = dmm_scan_get_note(s, gfn);
    unsigned rest = note & 0xff, backoff = note >> 8;
    if (rest) {
        dmm_scan_note(s, gfn, note_of(rest - 1, backoff));
    } else if (dmm_scan_breaks(s, gfn) > param(BREAKS_MAX)) {
        backoff = MIN(backoff + 1, BACKOFF_MAX);
        dmm_scan_note(s, gfn, note_of(1u << backoff, backoff));
    } else {
        return false;
    }
    counts.skipped++;
    return true;
}

/* Shares that hold are a reason to trust it again. */
static void forgive(struct dmm_space *s, gfn_t gfn)
{
    unsigned backoff = dmm_scan_get_note(s, gfn) >> 8;
    if (backoff && scan.shared)
        dmm_scan_note(s, gfn, note_of(0, backoff - 1));
}

static void scan_region(struct dmm_space *s, uint64_t region)
{
    gfn_t gfn = gfn_of(region * LARGE_PAGES);
    if (is_left_alone(s, gfn) || !dmm_scan_region(s, gfn, &scan))
        return;
    counts.regions++;
    counts.unchanged += scan.unchanged;
    counts.dirty += scan.dirty;
    counts.unstable += scan.unstable;
    forgive(s, gfn);
    if (scan.large)
        consider_large(s, gfn.v);
    else
        consider_small(s, gfn.v);
}

/* ---- the sweep ---------------------------------------------------------------------------------------------------------------- */

static void begin_sweep(void)
{
    at.space_id = 0;
    at.fresh_space = true;
    at.begun_ns = time_ns();
    at.found_before = saved();
    at.hashed_before = counts.hashed;
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
        counts.sweeps++;
        counts.last_sweep_ns = time_ns() - at.begun_ns;
        begin_sweep();
        return DEDUP_STEP_SWEPT;
    }
    uint64_t end = dmm_space_end_gfn(s) / LARGE_PAGES;
    for (; at.aged < MIN(at.region + AHEAD, end); at.aged++)
        dmm_scan_age(s, gfn_of(at.aged * LARGE_PAGES));
    bool settle = at.fresh_space;
    at.fresh_space = false;
    if (!settle && at.region < end)
        scan_region(s, at.region++);
    dmm_merge_finish();
    if (!settle && at.region >= end)
        at.fresh_space = true; /* on to the next */
    dmm_space_release(s);
    return settle ? DEDUP_STEP_SETTLE : DEDUP_STEP_MORE;
}

/* ---- the thread ------------------------------------------------------------------------------------------------------------------ */

static bool is_asked(void) { return sweeps_asked != sweeps_served; }
static bool has_work(void *arg) { return ((struct dmm_policy *)arg)->enabled || is_asked(); }
static bool is_asked_now(void *arg) { return is_asked() || !((struct dmm_policy *)arg)->enabled; }

/* Finding nothing is a reason to look less often. */
static bool last_sweep_was_poor(void) { return (saved() - at.found_before) * 64 < counts.hashed - at.hashed_before || counts.hashed == at.hashed_before; }

/* CPU time and pages that it has had, paid for with sleep. */
static void pay(uint64_t worked_ns, uint64_t hashed)
{
    static uint64_t debt_ns;
    uint64_t percent = param(CPU_PERCENT), by_pages = hashed * 1000000000 / param(PAGES_PER_SECOND);
    uint64_t by_cpu = worked_ns * (100 - percent) / percent;
    debt_ns += MAX(by_cpu, by_pages > worked_ns ? by_pages - worked_ns : 0);
    if (debt_ns >= NAP_NS && !is_asked()) {
        waitq_wait(&wanted, is_asked_now, &dedup, debt_ns);
        debt_ns = 0;
    }
}

bool dedup_prepare(void)
{
    static bool failed;
    if (table.slots || dedup_table_init(&table, frame_total_pages()))
        return true;
    if (!failed)
        log_error("dedup: no memory for its table: nothing is shared");
    failed = true;
    return false;
}

/* A sweep that somebody waits for begins anew: it has to see everything. */
static void serve(void)
{
    uint64_t upto = sweeps_asked;
    enum dedup_step step;
    begin_sweep();
    while ((step = dedup_step()) != DEDUP_STEP_SWEPT) {
        if (step == DEDUP_STEP_SETTLE)
            thread_sleep_ns(SETTLE_NS);
        thread_resched_point();
    }
    sweeps_served = upto;
    waitq_wake_all(&swept);
}

static void work_in_the_background(void)
{
    uint64_t begun = time_ns(), hashed = counts.hashed;
    bool poor = last_sweep_was_poor();
    enum dedup_step step = dedup_step();
    uint64_t worked = time_ns() - begun;
    counts.cpu_ns += worked;
    pay(worked, counts.hashed - hashed);
    if (step == DEDUP_STEP_SETTLE)
        waitq_wait(&wanted, is_asked_now, &dedup, SETTLE_NS);
    else if (step == DEDUP_STEP_SWEPT)
        waitq_wait(&wanted, is_asked_now, &dedup, poor && !memory_is_short() ? param(IDLE_SECONDS) * 1000000000 + NAP_NS : 1000000000);
    thread_resched_point();
}

void dedup_thread(void *arg)
{
    (void)arg;
    begin_sweep();
    for (;;) {
        waitq_wait(&wanted, has_work, &dedup, WAIT_FOREVER);
        if (!dedup_prepare()) {
            sweeps_served = sweeps_asked;
            waitq_wake_all(&swept);
            thread_sleep_ns(1000000000);
        } else if (is_asked()) {
            serve();
        } else {
            work_in_the_background();
        }
    }
}

/* ---- console --------------------------------------------------------------------------------------------------------------------- */

static void show(struct dmm_policy *p, void (*kv)(const char *key, uint64_t value, void *arg), void *arg)
{
    (void)p;
    kv("sweeps", counts.sweeps, arg);
    kv("last_sweep_ms", counts.last_sweep_ns / 1000000, arg);
    kv("cpu_ms", counts.cpu_ns / 1000000, arg);
    kv("regions", counts.regions, arg);
    kv("regions_left_alone", counts.skipped, arg);
    kv("pages_hashed", counts.hashed, arg);
    kv("pages_unchanged", counts.unchanged, arg);
    kv("pages_dirty", counts.dirty, arg);
    kv("pages_unstable", counts.unstable, arg);
    kv("pages_same_filled", counts.same_filled, arg);
    kv("large_broken", counts.large_broken, arg);
    for (unsigned n = 0; n < DMM_MERGE_RESULT_COUNT; n++)
        kv(dmm_merge_result_name((enum dmm_merge_result)n), counts.result[n], arg);
    kv("table_slots", table.sets * DEDUP_SET, arg);
    kv("table_used", table.used, arg);
    kv("table_evictions", table.evictions, arg);
}

static void changed(struct dmm_policy *p)
{
    (void)p;
    waitq_wake_all(&wanted);
}

static struct dmm_policy dedup = {
    .name = "dedup", .help = "shares pages that hold the same", .enabled = true, .can_disable = true, .params = params,
    .param_count = PARAM_COUNT, .show = show, .changed = changed,
};

void dedup_policy_init(void)
{
    dmm_digest_init();
    dmm_policy_register(&dedup);
}

static bool is_served(void *arg) { return sweeps_served >= *(uint64_t *)arg; }

static enum cmd_result cmd_dedup(struct cmd_ctx *c)
{
    if (c->argc != 2 || strcmp(c->argv[1], "sweep") != 0)
        return CMD_USAGE;
    uint64_t merged = counts.result[DMM_MERGE_DONE], zeroed = counts.result[DMM_MERGE_ZEROED], hashed = counts.hashed, mine = ++sweeps_asked;
    waitq_wake_all(&wanted);
    waitq_wait(&swept, is_served, &mine, WAIT_FOREVER);
    if (!table.slots)
        return cmd_error(c, "there is no memory for the scanner's table");
    merged = counts.result[DMM_MERGE_DONE] - merged;
    zeroed = counts.result[DMM_MERGE_ZEROED] - zeroed;
    hashed = counts.hashed - hashed;
    uint64_t ms = counts.last_sweep_ns / 1000000;
    if (!c->want_json) {
        con_printf("swept in %lu ms: %lu pages looked at, %lu merged, %lu were zero\n", ms, hashed, merged, zeroed);
        return CMD_OK;
    }
    json_object_begin(c->json);
    json_kv_u64(c->json, "ms", ms);
    json_kv_u64(c->json, "pages_hashed", hashed);
    json_kv_u64(c->json, "merged", merged);
    json_kv_u64(c->json, "zeroed", zeroed);
    json_object_end(c->json);
    return CMD_OK;
}

static void complete_dedup(int argn, char **argv, void (*add)(const char *candidate, void *arg), void *arg)
{
    (void)argv;
    if (argn == 1)
        add("sweep", arg);
}

CONSOLE_COMMAND_C(dedup, cmd_dedup, "dedup sweep",
                  "looks at all pages of all VMs once, now, whatever the scanner's budget is, and waits for it.\n"
                  "`policy show dedup` has the scanner's counters and parameters.", complete_dedup);
