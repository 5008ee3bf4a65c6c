/*
 * The interface on which policies stand. A policy decides; DMM does. It sees read-only facts and answers; it never
 * touches a table entry, a frame or a driver. Policies register at start and are switched at run time
 * (`policy list|show|on|off|set`).
 */
#ifndef HV_INCLUDE_HV_DMM_POLICY_H
#define HV_INCLUDE_HV_DMM_POLICY_H

#include "include/hv/types.h"
#include "lib/list.h"

struct dmm_space;
struct json_writer;

/* A first touch as the populate policy sees it. */
struct dmm_touch {
    gfn_t gfn;
    unsigned access;           /* enum dmm_access */
    bool may_clear;            /* the instruction may be one that stores zeros to whole pages */
    bool region_empty;         /* the whole aligned 2 MiB region is EMPTY RAM of this VM */
    uint64_t free_pages, total_pages, reserve_pages;
    uint64_t pool_room_pages;  /* how many more the pool may hold */
    gfn_t last_gfn;            /* where this space's previous first touch ended, with what was mapped around it */
    uint64_t streak;           /* how many touches before this one had the same stride without a break */
    int64_t stride;            /* gfn - last_gfn: 1 or -1 is a sequential walk, whatever was mapped around */
};
enum dmm_populate_size { DMM_POPULATE_4K, DMM_POPULATE_2M };
struct dmm_populate_plan {
    enum dmm_populate_size size;
    unsigned around_before, around_after; /* EMPTY neighbours to map too (4K only), clipped to the 2 MiB region */
    bool zero_page;            /* a read: map the shared zero page and no frame at all (4K only) */
    bool zero_store;           /* may_clear: if it does, the pages need no frame either; worth a look at the instruction */
};

/* When a populate policy wants to be asked; else the page alone is mapped, without the cost of asking. The first touch of a
 * region is asked about always, and so is one that may clear pages. */
enum dmm_populate_ask {
    DMM_ASK_WALK = 1,    /* streak > 0 with stride 1 or -1 */
    DMM_ASK_READ = 2,    /* no write */
};

struct dmm_policy_param { const char *name, *help; uint64_t value, min, max; };

struct dmm_policy {
    const char *name, *help;
    bool enabled;
    bool can_disable;          /* demand paging cannot: nothing else populates */
    struct dmm_policy_param *params;
    unsigned param_count;
    /* Hooks, each optional. Called in the fault path: no blocking, no allocation, no locks. */
    unsigned populate_ask;     /* mask of enum dmm_populate_ask; read again after changed() */
    void (*plan_populate)(struct dmm_policy *p, const struct dmm_touch *t, struct dmm_populate_plan *out);
    /* Prints counters and last decisions (`policy show`), as key/values. */
    void (*show)(struct dmm_policy *p, void (*kv)(const char *key, uint64_t value, void *arg), void *arg);
    void (*changed)(struct dmm_policy *p); /* switched, or a parameter set */
    struct list_head node;
};
void dmm_policy_register(struct dmm_policy *p);   /* before the first VM; asserts the name is new */
struct dmm_policy *dmm_policy_find(const char *name);
void dmm_policy_for_each(bool (*cb)(struct dmm_policy *p, void *arg), void *arg);
enum dmm_policy_set_result { DMM_POLICY_OK, DMM_POLICY_NO_PARAM, DMM_POLICY_RANGE, DMM_POLICY_CANNOT_DISABLE };
enum dmm_policy_set_result dmm_policy_set(struct dmm_policy *p, const char *param, uint64_t value);
enum dmm_policy_set_result dmm_policy_enable(struct dmm_policy *p, bool on);
/* From the policy's own hook: from now on it wants to be asked so. */
void dmm_policy_ask(struct dmm_policy *p, unsigned populate_ask);

#endif
