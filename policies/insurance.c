/*
 * Insurance: how many frames to set aside for insured VMs.
 *
 * DMM counts how often shared pages are written to; what that means for the next ten seconds is asked here, at intervals. Frames have to be
 * there before the storm, so a rise counts at once, and a lull by and by.
 */
#include "policies/insurance.h"

#include "core/thread.h"
#include "core/time.h"
#include "include/hv/dmm.h"
#include "include/hv/dmm_policy.h"

enum { INTERVAL_MS, PARAM_COUNT };
static struct dmm_policy_param params[PARAM_COUNT] = {
    [INTERVAL_MS] = { "interval_ms", "between two looks at how fast shares break", 1000, 100, 60000 },
};

static struct waitq wanted = WAITQ_INIT(wanted);
static struct dmm_policy insurance;

static bool is_on(void *arg) { return ((struct dmm_policy *)arg)->enabled; }

void insurance_thread(void *arg)
{
    (void)arg;
    for (uint64_t last = time_ns();;) {
        waitq_wait(&wanted, is_on, &insurance, WAIT_FOREVER);
        thread_sleep_ns(params[INTERVAL_MS].value * 1000000);
        uint64_t now = time_ns();
        dmm_insurance_tick(now - last);
        last = now;
    }
}

static void show(struct dmm_policy *p, void (*kv)(const char *key, uint64_t value, void *arg), void *arg)
{
    (void)p;
    kv("covered_pages", dmm_covered_pages(), arg);
    kv("promised_pages", dmm_promised_pages(), arg);
}

static void changed(struct dmm_policy *p)
{
    if (p->enabled)
        waitq_wake_all(&wanted);
}

static struct dmm_policy insurance = {
    .name = "insurance", .help = "sets frames aside for insured VMs, as many as their shares are likely to break", .enabled = true,
    .can_disable = true, .params = params, .param_count = PARAM_COUNT, .show = show, .changed = changed,
};

void insurance_policy_init(void) { dmm_policy_register(&insurance); }
