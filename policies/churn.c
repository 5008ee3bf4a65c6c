/*
 * Churn: moves, write-protects, breaks and re-forms guest pages at random while their guests run, to no end but to show that it can be done.
 *
 * What takes memory from guests for a reason is rare and picks its moments; the races between it and a guest on other CPUs would be met once
 * in a month. This meets them all the time: with guests that check every word they wrote, it is the test of everything that policies
 * are built from, on any machine. `policy on churn`; guests run more slowly, and must notice nothing else.
 */
#include "policies/churn.h"

#include "core/thread.h"
#include "core/time.h"
#include "include/hv/dmm.h"
#include "include/hv/dmm_policy.h"

enum { RATE, PARAM_COUNT };
static struct dmm_policy_param params[PARAM_COUNT] = {
    [RATE] = {"rate", "pages per second, over all VMs", 2000, 1, 1000000},
};

enum { MOVED, PROTECTED, BROKEN, REFORMED, PINNED, UNSUITABLE, NO_FRAME, COUNT_COUNT };
static const char *const count_names[COUNT_COUNT] = {"moved", "protected", "broken", "reformed", "pinned", "unsuitable", "no_frame"};
static uint64_t counts[COUNT_COUNT];

static struct waitq wanted = WAITQ_INIT(wanted);
static struct dmm_policy churn;

static bool is_on(void *arg) { return ((struct dmm_policy *)arg)->enabled; }

static uint64_t next_random(void)
{
    static uint64_t x = 0x2545f4914f6cdd1d;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return x;
}

static void count_move(enum dmm_move_result r, unsigned done)
{
    counts[r == DMM_MOVE_OK ? done : r == DMM_MOVE_PINNED ? PINNED : r == DMM_MOVE_NO_MEMORY ? NO_FRAME : UNSUITABLE]++;
}

static void count_resize(enum dmm_resize_result r, unsigned done)
{
    counts[r == DMM_RESIZE_OK ? done : r == DMM_RESIZE_PINNED ? PINNED : r == DMM_RESIZE_NO_MEMORY ? NO_FRAME : UNSUITABLE]++;
}

/* One page of one space. Moving a page of a region spoils it for re-forming, so that is tried on regions that are left alone otherwise. */
static void disturb(struct dmm_space *s)
{
    uint64_t r = next_random(), gfn = r % dmm_space_end_gfn(s);
    bool resize_only = gfn / LARGE_PAGES % 2;
    switch (r >> 56 & 3) {
    case 0: resize_only ? count_resize(dmm_break_large(s, gfn_of(gfn)), BROKEN) : count_move(dmm_move_page(s, gfn_of(gfn)), MOVED); break;
    case 1: resize_only ? count_resize(dmm_reform_large(s, gfn_of(gfn)), REFORMED) : count_move(dmm_move_page(s, gfn_of(gfn)), MOVED); break;
    case 2: count_move(dmm_protect_page(s, gfn_of(gfn)), PROTECTED); break;
    case 3: count_resize(dmm_reform_large(s, gfn_of(gfn)), REFORMED); break;
    }
}

static unsigned disturb_all(unsigned pages)
{
    unsigned done = 0;
    for (unsigned id = 1; id <= DMM_MAX_SPACES && done < pages; id++) {
        for (unsigned n = 0; n < 16 && done < pages; n++) {
            struct dmm_space *s = dmm_space_acquire(id);
            if (!s)
                break;
            if (dmm_space_end_gfn(s))
                disturb(s);
            dmm_space_release(s);
            done++;
            thread_resched_point();
        }
    }
    return done;
}

void churn_thread(void *arg)
{
    (void)arg;
    enum { TICK_NS = 10000000 };
    for (uint64_t next_ns = time_ns();;) {
        waitq_wait(&wanted, is_on, &churn, WAIT_FOREVER);
        uint64_t now = time_ns(), budget = MAX(params[RATE].value / (1000000000 / TICK_NS), UINT64_C(1));
        while (budget) {
            unsigned done = disturb_all((unsigned)budget);
            budget -= MIN(budget, MAX(done, 1u));
        }
        next_ns = MAX(next_ns + TICK_NS, now);
        thread_sleep_until_ns(next_ns);
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

static struct dmm_policy churn = {
    .name = "churn", .help = "moves, protects, breaks and re-forms guests' pages at random: a test of the machine", .enabled = false,
    .can_disable = true, .params = params, .param_count = PARAM_COUNT, .show = show, .changed = changed,
};

void churn_policy_init(void) { dmm_policy_register(&churn); }
