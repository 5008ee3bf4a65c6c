/*
 * Demand paging: how much to map when a guest touches memory for the first time.
 *
 * An exit costs more than mapping a page, so mapping neighbours early wins if they are touched too, and wastes frames if not.
 * The guest tells which: a touch that continues where the last one ended is a walk through memory (stride 1 or -1), and each step that
 * keeps the stride doubles the window, up to around_max. Random touches break the streak and get the page alone, so the
 * waste is bounded by the last window of each walk. 2 MiB at a time is for a wholly untouched region while memory is
 * plentiful: under pressure the unused part of a large page is what somebody else lacks. Zeros need no frame at all, neither read nor stored, but
 * the next write costs another exit: that is for when memory is short. (Measured on Linux, which clears a page only when it is about to use it: a
 * third more faults for one page in thirty; docs/memory-states.md.)
 */
#include "policies/demand.h"

#include "include/hv/dmm.h"
#include "include/hv/dmm_policy.h"

enum { AROUND_MAX, LARGE_FREE_PERCENT, ZERO_READ, ZERO_STORE, SHORT_PERCENT, PARAM_COUNT };
enum { NEVER, ALWAYS, WHEN_SHORT };

static struct dmm_policy_param params[PARAM_COUNT] = {
    [AROUND_MAX] = { "around_max", "neighbours mapped with a sequential touch, at most", 15, 0, 511 },
    [LARGE_FREE_PERCENT] = { "large_free_percent", "2 MiB first touches only while this much of memory is free (101: never)", 60, 0, 101 },
    [ZERO_READ] = { "zero_read", "a first read maps the shared zero page: 0 never, 1 always, 2 when memory is short", WHEN_SHORT, 0, 2 },
    [ZERO_STORE] = { "zero_store", "storing zeros to whole untouched pages takes no frame: 0 never, 1 always, 2 when memory is short", WHEN_SHORT, 0, 2 },
    [SHORT_PERCENT] = { "short_percent", "memory is short below so much free", 25, 0, 100 },
};

/* One count per decision. Written by any CPU without a lock: a lost count is not worth a locked operation per fault. */
static struct { uint64_t large, sequential, zero, zero_store, around_pages; } decisions;
static bool memory_was_short; /* at the last look */

static uint64_t param(unsigned which) { return __atomic_load_n(&params[which].value, __ATOMIC_RELAXED); }

static bool wants(unsigned which) { return param(which) == ALWAYS || (param(which) == WHEN_SHORT && memory_was_short); }

/* Being asked costs, so only what could be answered is asked. */
static unsigned asks(void)
{
    return DMM_ASK_WALK | (wants(ZERO_READ) ? DMM_ASK_READ : 0);
}

/* Every region's first touch is asked about, and every page that a guest clears before it uses it: often enough to notice. */
static void look_at_memory(struct dmm_policy *p, const struct dmm_touch *t)
{
    bool is_short = t->free_pages * 100 < t->total_pages * param(SHORT_PERCENT);
    if (is_short == memory_was_short)
        return;
    memory_was_short = is_short;
    dmm_policy_ask(p, asks());
}

static void plan_populate(struct dmm_policy *p, const struct dmm_touch *t, struct dmm_populate_plan *out)
{
    look_at_memory(p, t);
    if (t->region_empty && t->pool_room_pages >= LARGE_PAGES &&
        t->free_pages * 100 >= t->total_pages * param(LARGE_FREE_PERCENT)) {
        out->size = DMM_POPULATE_2M; /* if there is no zeroed 2 MiB frame DMM takes the rest of the plan instead */
        decisions.large++;
    }
    if (t->may_clear && wants(ZERO_STORE)) {
        out->zero_store = true;
        decisions.zero_store++;
    }
    if (!(t->access & DMM_WRITE) && wants(ZERO_READ)) {
        out->size = DMM_POPULATE_4K;
        out->zero_page = true;
        decisions.zero++;
        return;
    }
    bool sequential = t->stride == 1 || t->stride == -1;
    if (!sequential || t->streak == 0 || t->free_pages < 2 * t->reserve_pages)
        return;
    uint64_t window = MIN(param(AROUND_MAX), UINT64_C(1) << MIN(t->streak, 9));
    if (t->stride == 1)
        out->around_after = (unsigned)window;
    else
        out->around_before = (unsigned)window;
    decisions.sequential++;
    decisions.around_pages += window;
}

static void show(struct dmm_policy *p, void (*kv)(const char *key, uint64_t value, void *arg), void *arg)
{
    (void)p;
    kv("planned_2m", decisions.large, arg);
    kv("planned_sequential", decisions.sequential, arg);
    kv("planned_zero_page", decisions.zero, arg);
    kv("zero_stores_looked_at", decisions.zero_store, arg);
    kv("planned_around_pages", decisions.around_pages, arg);
}

static void changed(struct dmm_policy *p)
{
    p->populate_ask = asks();
}

static struct dmm_policy demand = {
    .name = "demand", .help = "maps guest memory at first touch", .enabled = true, .can_disable = false,
    .params = params, .param_count = PARAM_COUNT, .plan_populate = plan_populate, .show = show, .changed = changed,
};

void demand_policy_init(void)
{
    changed(&demand);
    dmm_policy_register(&demand);
}
