/*
 * When and how much the scanner works, and what the console says of it. What it does is dedup.c's business.
 *
 * It takes no more of a CPU than its budget: time and pages that it has had are paid for with sleep. When a sweep has found little the next one comes
 * late, unless there is a reason to hurry. `dedup sweep` asks for one sweep at once, and a thorough one: as if memory were short, and of what is being
 * left alone, too. Only this thread scans, whoever asks.
 */
#include "policies/dedup_internal.h"

#include "core/console.h"
#include "core/log.h"
#include "core/thread.h"
#include "core/time.h"
#include "include/hv/dmm.h"
#include "lib/string.h"

#define SETTLE_NS UINT64_C(20000000)
#define NAP_NS UINT64_C(2000000)        /* shorter ones are saved up */
#define BUSY_PAUSE_NS UINT64_C(1000000000)
#define PASSES_MAX 3u

static struct dmm_policy_param params[DEDUP_PARAM_COUNT] = {
    [DEDUP_CPU_PERCENT] = { "cpu_percent", "of one CPU, at most", 5, 1, 100 },
    [DEDUP_PAGES_PER_SECOND] = { "pages_per_second", "pages hashed, at most", 200000, 1, 100000000 },
    [DEDUP_IDLE_SECONDS] = { "idle_seconds", "pause between sweeps that find little", 10, 0, 3600 },
    [DEDUP_BREAK_LARGE_PERCENT] = { "break_large_percent",
        "2 MiB mappings are broken if so much of them would be saved (0: for any page, 101: never)", 25, 0, 101 },
    [DEDUP_SHORT_PERCENT] = { "short_percent",
        "memory is short below so much free: then 2 MiB mappings in use are broken too, and for a few pages", 25, 0, 100 },
    [DEDUP_BREAKS_MAX] = { "breaks_max", "a region with more broken shares since the last sweep is left alone for a while", 16, 1, 255 },
    [DEDUP_LOG_PAGES_MAX] = { "log_pages_max",
        "pages logged as written by a VM's CPUs, for each 2 MiB that need not be looked at: if it is more, it goes without logs (0: never any)", 64, 0, 512 },
};

static struct waitq wanted = WAITQ_INIT(wanted), swept = WAITQ_INIT(swept);
static volatile uint64_t sweeps_asked;  /* `dedup sweep`: how many have been asked for, and are done */
static volatile uint64_t sweeps_served;

uint64_t dedup_param(enum dedup_param which) { return __atomic_load_n(&params[which].value, __ATOMIC_RELAXED); }
bool dedup_memory_is_short(void) { return frame_free_pages() * 100 < frame_total_pages() * dedup_param(DEDUP_SHORT_PERCENT); }

/* ---- the budget ------------------------------------------------------------------------------------------------------------------ */

static bool is_asked(void) { return sweeps_asked != sweeps_served; }
static bool has_work(void *arg) { return ((struct dmm_policy *)arg)->enabled || is_asked(); }
static bool is_asked_now(void *arg) { return is_asked() || !((struct dmm_policy *)arg)->enabled; }

/* Finding nothing is a reason to look less often. */
static bool last_sweep_was_poor(void) { return dedup_counts.last_found * 64 < dedup_counts.last_hashed || !dedup_counts.last_hashed; }

/* CPU time and pages that it has had, paid for with sleep. */
static void pay(uint64_t worked_ns, uint64_t hashed)
{
    static uint64_t debt_ns;
    uint64_t percent = dedup_param(DEDUP_CPU_PERCENT), by_pages = hashed * 1000000000 / dedup_param(DEDUP_PAGES_PER_SECOND);
    uint64_t by_cpu = worked_ns * (100 - percent) / percent;
    debt_ns += MAX(by_cpu, by_pages > worked_ns ? by_pages - worked_ns : 0);
    if (debt_ns >= NAP_NS && !is_asked()) {
        waitq_wait(&wanted, is_asked_now, &dedup_policy, debt_ns);
        debt_ns = 0;
    }
}

bool dedup_prepare(void)
{
    static bool failed;
    if (dedup_table.slots)
        return true;
    if (dedup_table_init(&dedup_table, frame_total_pages())) {
        if (dedup_table.sets < dedup_table.wanted)
            log_warn("dedup: no memory for a table of %lu slots: with %lu it will miss some", dedup_table.wanted * DEDUP_SET, dedup_table.sets * DEDUP_SET);
        return true;
    }
    if (!failed)
        log_error("dedup: no memory for its table: nothing is shared");
    failed = true;
    return false;
}

static enum dedup_step timed_step(uint64_t *worked_ns)
{
    uint64_t begun = time_ns();
    enum dedup_step step = dedup_step();
    *worked_ns = time_ns() - begun;
    dedup_counts.cpu_ns += *worked_ns;
    return step;
}

/* It begins anew: it has to see everything. Mappings that it breaks for pages elsewhere may lie behind it, so it may have to pass twice. */
void dedup_sweep(void)
{
    enum dedup_step step;
    bool again = true;
    for (unsigned pass = 0; again && pass < PASSES_MAX; pass++) {
        dedup_begin_sweep(true);
        do {
            uint64_t worked_ns;
            again = dedup_broke_behind();
            step = timed_step(&worked_ns);
            if (step == DEDUP_STEP_SETTLE)
                thread_sleep_ns(SETTLE_NS);
            thread_resched_point();
        } while (step != DEDUP_STEP_SWEPT);
    }
}

static void serve(void)
{
    uint64_t upto = sweeps_asked;
    dedup_sweep();
    sweeps_served = upto;
    waitq_wake_all(&swept);
}

static bool count_space(struct dmm_space *s, void *arg)
{
    (void)s;
    ++*(unsigned *)arg;
    return true;
}

static unsigned count_spaces(void)
{
    unsigned count = 0;
    dmm_for_each_space(count_space, &count);
    return count;
}

/* Between sweeps: the longer one if there is no hurry. There is when memory becomes short, a VM is made, or a group becomes secure. */
static void pause_between_sweeps(void)
{
    bool was_short = dedup_memory_is_short();
    uint64_t idle_ns = dedup_param(DEDUP_IDLE_SECONDS) * 1000000000 + NAP_NS, begun = time_ns(), spaces = count_spaces(), groups = dmm_group_changes();
    dedup_counts.pause_ns = last_sweep_was_poor() && !was_short ? idle_ns : BUSY_PAUSE_NS;
    for (uint64_t now = begun; now < begun + dedup_counts.pause_ns; now = time_ns()) {
        uint64_t left = begun + dedup_counts.pause_ns - now;
        if (waitq_wait(&wanted, is_asked_now, &dedup_policy, MIN(left, BUSY_PAUSE_NS)) == WAIT_DONE)
            return;
        if (dedup_memory_is_short() != was_short || count_spaces() != spaces || dmm_group_changes() != groups)
            return;
    }
}

static void work_in_the_background(void)
{
    uint64_t worked_ns, hashed = dedup_counts.hashed;
    enum dedup_step step = timed_step(&worked_ns);
    pay(worked_ns, dedup_counts.hashed - hashed);
    if (step == DEDUP_STEP_SETTLE)
        waitq_wait(&wanted, is_asked_now, &dedup_policy, SETTLE_NS);
    else if (step == DEDUP_STEP_SWEPT)
        pause_between_sweeps();
    thread_resched_point();
}

void dedup_thread(void *arg)
{
    (void)arg;
    dedup_begin_sweep(false);
    for (;;) {
        if (!has_work(&dedup_policy))
            dedup_end_logs();
        waitq_wait(&wanted, has_work, &dedup_policy, WAIT_FOREVER);
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
    kv("sweeps", dedup_counts.sweeps, arg);
    kv("last_sweep_ms", dedup_counts.last_sweep_ns / 1000000, arg);
    kv("last_sweep_hashed", dedup_counts.last_hashed, arg);
    kv("last_sweep_found", dedup_counts.last_found, arg);
    kv("pause_ms", dedup_counts.pause_ns / 1000000, arg);
    kv("memory_is_short", dedup_memory_is_short(), arg);
    kv("cpu_ms", dedup_counts.cpu_ns / 1000000, arg);
    kv("regions", dedup_counts.regions, arg);
    kv("regions_left_alone", dedup_counts.skipped, arg);
    kv("regions_unchanged", dedup_counts.unchanged_regions, arg);
    kv("regions_waiting", dedup_counts.waiting, arg);
    kv("vms_that_log", dmm_log_spaces(), arg);
    kv("log_pages", dedup_counts.logged, arg);
    kv("log_full", dmm_log_times_full(), arg);
    kv("pages_hashed", dedup_counts.hashed, arg);
    kv("pages_unchanged", dedup_counts.unchanged, arg);
    kv("pages_dirty", dedup_counts.dirty, arg);
    kv("pages_unstable", dedup_counts.unstable, arg);
    kv("pages_same_filled", dedup_counts.same_filled, arg);
    kv("pages_shared", dedup_counts.shared, arg);
    kv("pages_zero", dedup_counts.zero, arg);
    kv("pages_pinned", dedup_counts.pinned, arg);
    kv("large_broken", dedup_counts.large_broken, arg);
    kv("large_in_use", dedup_counts.large_in_use, arg);
    kv("sealed", dedup_counts.sealed, arg);
    for (unsigned n = 0; n < DMM_MERGE_RESULT_COUNT; n++)
        kv(dmm_merge_result_name((enum dmm_merge_result)n), dedup_counts.result[n], arg);
    kv("table_slots", dedup_table.sets * DEDUP_SET, arg);
    kv("table_slots_wanted", dedup_table.wanted * DEDUP_SET, arg);
    kv("table_used", dedup_table.used, arg);
    kv("table_evictions", dedup_table.evictions, arg);
}

static void changed(struct dmm_policy *p)
{
    (void)p;
    waitq_wake_all(&wanted);
}

struct dmm_policy dedup_policy = {
    .name = "dedup", .help = "shares pages that hold the same", .enabled = true, .can_disable = true, .params = params,
    .param_count = DEDUP_PARAM_COUNT, .show = show, .changed = changed,
};

void dedup_policy_init(void)
{
    dmm_digest_init();
    dmm_policy_register(&dedup_policy);
}

static bool is_served(void *arg) { return sweeps_served >= *(uint64_t *)arg; }

static enum cmd_result cmd_dedup(struct cmd_ctx *c)
{
    if (c->argc != 2 || strcmp(c->argv[1], "sweep") != 0)
        return CMD_USAGE;
    const struct dedup_counts before = dedup_counts;
    uint64_t mine = ++sweeps_asked, begun = time_ns();
    waitq_wake_all(&wanted);
    waitq_wait(&swept, is_served, &mine, WAIT_FOREVER);
    if (!dedup_table.slots)
        return cmd_error(c, "there is no memory for the scanner's table");
    const struct { const char *key; uint64_t value; } found[] = {
        { "ms", (time_ns() - begun) / 1000000 },
        { "pages_hashed", dedup_counts.hashed - before.hashed },
        { "merged", dedup_counts.result[DMM_MERGE_DONE] - before.result[DMM_MERGE_DONE] },
        { "zeroed", dedup_counts.result[DMM_MERGE_ZEROED] - before.result[DMM_MERGE_ZEROED] },
        { "sealed", dedup_counts.sealed - before.sealed },
        { "large_broken", dedup_counts.large_broken - before.large_broken },
        { "regions_left_alone", dedup_counts.skipped - before.skipped },
    };
    if (!c->want_json) {
        con_printf("swept in %lu ms: %lu pages looked at, %lu merged, %lu were zero, %lu sealed; %lu 2 MiB mappings broken, %lu regions left alone\n",
                   found[0].value, found[1].value, found[2].value, found[3].value, found[4].value, found[5].value, found[6].value);
        return CMD_OK;
    }
    json_object_begin(c->json);
    for (unsigned n = 0; n < ARRAY_SIZE(found); n++)
        json_kv_u64(c->json, found[n].key, found[n].value);
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
                  "looks at all pages of all VMs once, now, whatever the scanner's budget is, and waits for it. 2 MiB mappings are broken for\n"
                  "a few pages, as when memory is short (but if break_large_percent is 101).\n"
                  "`policy show dedup` has the scanner's counters and parameters.", complete_dedup);
