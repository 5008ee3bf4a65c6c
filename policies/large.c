/*
 * Large: makes 2 MiB mappings of small pages where that pays.
 *
 * Mappings are broken for a reason (pages were shared, moved, protected), and the reason passes: the pages become private again and are used every
 * day, each at the price of a longer walk. If a region is nearly full of private pages that the guest uses, shares nothing, and memory is
 * plentiful (what is missing to 512 has to be filled up, and 2 MiB cannot be shared or given back in pieces), it is mapped as one again: in place where
 * the pages still lie together, else by copying. The scanner breaks mappings below the same figures turned round, with a gap between them, so the two do not
 * undo each other's work.
 */
#include "policies/large.h"

#include "core/thread.h"
#include "core/time.h"
#include "include/hv/dmm.h"
#include "include/hv/dmm_policy.h"

enum { REGIONS_PER_SECOND, PRIVATE_MIN, ACCESSED_MIN, FREE_PERCENT, PARAM_COUNT };
static struct dmm_policy_param params[PARAM_COUNT] = {
    [REGIONS_PER_SECOND] = { "regions_per_second", "looked at, over all VMs", 64, 1, 100000 },
    [PRIVATE_MIN] = { "private_min", "of 512 pages must have a frame of their own", 480, 1, 512 },
    [ACCESSED_MIN] = { "accessed_min", "of 512 pages must have been used since the scanner came by", 128, 0, 512 },
    [FREE_PERCENT] = { "free_percent", "of memory must be free", 60, 0, 100 },
};

enum { LOOKED_AT, IN_PLACE, COPIED, COLD, SPARSE, SHARING, FAILED, COUNT_COUNT };
static const char *const count_names[COUNT_COUNT] = { "looked_at", "in_place", "copied", "cold", "sparse", "sharing", "failed" };
static uint64_t counts[COUNT_COUNT];

static struct waitq wanted = WAITQ_INIT(wanted);
static struct dmm_policy large;
static unsigned at_space;
static uint64_t at_region;

static uint64_t param(unsigned which) { return __atomic_load_n(&params[which].value, __ATOMIC_RELAXED); }

static unsigned verdict(struct dmm_space *s, gfn_t gfn, const struct dmm_survey *v)
{
    if (v->shared || v->other)
        return SHARING;
    if (v->private_pages < param(PRIVATE_MIN) || v->private_pages + v->without != LARGE_PAGES)
        return SPARSE;
    if (v->accessed < param(ACCESSED_MIN))
        return COLD;
    if (dmm_reform_large(s, gfn) == DMM_RESIZE_OK)
        return IN_PLACE;
    return dmm_collapse_large(s, gfn) == DMM_RESIZE_OK ? COPIED : FAILED;
}

static void look_at(struct dmm_space *s, gfn_t gfn)
{
    struct dmm_survey v;
    counts[LOOKED_AT]++;
    if (dmm_survey_region(s, gfn, &v) && !v.large)
        counts[verdict(s, gfn, &v)]++;
}

void large_step(void)
{
    if (frame_free_pages() * 100 < frame_total_pages() * param(FREE_PERCENT))
        return;
    for (unsigned n = 0; n <= DMM_MAX_SPACES; n++) {
        struct dmm_space *s = dmm_space_acquire(at_space);
        bool here = s && at_region * LARGE_PAGES < dmm_space_end_gfn(s);
        if (here)
            look_at(s, gfn_of(at_region++ * LARGE_PAGES));
        if (s)
            dmm_space_release(s);
        if (here)
            return;
        at_region = 0;
        at_space = at_space % DMM_MAX_SPACES + 1;
    }
}

static bool is_on(void *arg) { return ((struct dmm_policy *)arg)->enabled; }

void large_thread(void *arg)
{
    (void)arg;
    enum { TICK_NS = 100000000 };
    for (;;) {
        waitq_wait(&wanted, is_on, &large, WAIT_FOREVER);
        for (uint64_t n = 0; n < MAX(param(REGIONS_PER_SECOND) / (1000000000 / TICK_NS), UINT64_C(1)); n++) {
            large_step();
            thread_resched_point();
        }
        thread_sleep_ns(TICK_NS);
    }
}

static void show(struct dmm_policy *p, void (*kv)(const char *key, uint64_t value, void *arg), void *arg)
{
    (void)p;
    for (unsigned n = 0; n < COUNT_COUNT; n++)
        kv(count_names[n], counts[n], arg);
}

static void changed(struct dmm_policy *p)
{
    if (p->enabled)
        waitq_wake_all(&wanted);
}

static struct dmm_policy large = {
    .name = "large", .help = "maps 2 MiB as one again where pages are private and in use", .enabled = true, .can_disable = true,
    .params = params, .param_count = PARAM_COUNT, .show = show, .changed = changed,
};

void large_policy_init(void) { dmm_policy_register(&large); }
