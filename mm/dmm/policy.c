/*
 * The register of policies, and DMM's side of the questions that they answer.
 *
 * Policies register before the first VM and never leave, so the list needs no lock; switching one is a single store. The fault path finds the
 * one that answers in a cached pointer.
 */
#include "core/log.h"
#include "lib/string.h"
#include "mm/dmm/frame.h"
#include "mm/dmm/space.h"

static struct list_head policies = LIST_INIT(policies);
struct dmm_policy *volatile populate_policy;
volatile unsigned populate_asks;

static void choose_populate_policy(void)
{
    struct dmm_policy *chosen = NULL;
    list_for_each(p, &policies, struct dmm_policy, node)
        if (!chosen && p->enabled && p->plan_populate)
            chosen = p;
    populate_policy = chosen;
    populate_asks = chosen ? chosen->populate_ask : 0;
}

void dmm_policy_register(struct dmm_policy *p)
{
    hv_assert(!dmm_policy_find(p->name));
    list_add_tail(&policies, &p->node);
    choose_populate_policy();
}

struct dmm_policy *dmm_policy_find(const char *name)
{
    list_for_each(p, &policies, struct dmm_policy, node)
        if (strcmp(p->name, name) == 0)
            return p;
    return NULL;
}

void dmm_policy_for_each(bool (*cb)(struct dmm_policy *p, void *arg), void *arg)
{
    list_for_each(p, &policies, struct dmm_policy, node)
        if (!cb(p, arg))
            return;
}

enum dmm_policy_set_result dmm_policy_set(struct dmm_policy *p, const char *param, uint64_t value)
{
    for (unsigned n = 0; n < p->param_count; n++) {
        struct dmm_policy_param *q = &p->params[n];
        if (strcmp(q->name, param) != 0)
            continue;
        if (value < q->min || value > q->max)
            return DMM_POLICY_RANGE;
        __atomic_store_n(&q->value, value, __ATOMIC_RELAXED);
        if (p->changed)
            p->changed(p);
        choose_populate_policy();
        return DMM_POLICY_OK;
    }
    return DMM_POLICY_NO_PARAM;
}

enum dmm_policy_set_result dmm_policy_enable(struct dmm_policy *p, bool on)
{
    if (!on && !p->can_disable)
        return DMM_POLICY_CANNOT_DISABLE;
    p->enabled = on;
    if (p->changed)
        p->changed(p);
    choose_populate_policy();
    return DMM_POLICY_OK;
}

void dmm_policy_ask(struct dmm_policy *p, unsigned populate_ask)
{
    p->populate_ask = populate_ask;
    if (populate_policy == p)
        populate_asks = populate_ask;
}

void policy_plan_populate(struct dmm_space *s, gfn_t gfn, unsigned access, const struct region *r,
                          struct dmm_populate_plan *plan)
{
    struct dmm_policy *p = populate_policy;
    if (unlikely(!p))
        return; /* switched off just now */
    uint64_t charged = __atomic_load_n(&s->charged, __ATOMIC_RELAXED);
    const struct dmm_touch touch = {
        .gfn = gfn, .access = access, .may_clear = access & DMM_MAY_CLEAR, .region_empty = r->filled_pages == 0 && r->ram_pages == LARGE_PAGES,
        .free_pages = frame_available_hint(), .total_pages = frame_total_pages(), .reserve_pages = frame_reserve_pages(),
        .pool_room_pages = charged < s->max_pages ? s->max_pages - charged : 0,
        .last_gfn = gfn_of(s->last_gfn), .streak = s->streak, .stride = s->stride,
    };
    p->plan_populate(p, &touch, plan);
}
