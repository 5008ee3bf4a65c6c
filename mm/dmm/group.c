/*
 * Sharing groups: names that spaces may have in common.
 *
 * A name becomes a small number when the first VM with it is made, and stays: numbers are compared in the merge path, and a group that is
 * empty for a while keeps its mode. Commands make groups, one at a time; the scanner only reads.
 *
 * A group that becomes secure has pages that were merged, and such that were looked at in vain and left as they were: a write tells them apart. So
 * everything of it is as if nobody had looked at it yet; the scanner, which does not wait out its pause then, takes up both, and both trap.
 * The mode is switched on first: what is listed after the forgetting is sealed.
 */
#include "core/lock.h"
#include "include/hv/dmm.h"
#include "lib/string.h"
#include "mm/dmm/share.h"
#include "mm/dmm/space.h"

static struct { char name[DMM_NAME_MAX]; bool secure; } groups[DMM_GROUP_MAX + 1]; /* [0] is nobody's */
static unsigned group_count;
static uint64_t changes;
static struct spinlock groups_lock = SPINLOCK_INIT(LOCK_RANK_POOL, "groups");

unsigned dmm_group_find(const char *name)
{
    for (unsigned g = 1; g <= __atomic_load_n(&group_count, __ATOMIC_ACQUIRE); g++)
        if (strcmp(groups[g].name, name) == 0)
            return g;
    return 0;
}

unsigned dmm_group_of(const char *name)
{
    if (!name || !name[0])
        return 0;
    spin_lock(&groups_lock);
    unsigned g = dmm_group_find(name);
    if (!g && group_count < DMM_GROUP_MAX) {
        g = group_count + 1;
        str_copy(groups[g].name, sizeof(groups[g].name), name);
        __atomic_store_n(&group_count, g, __ATOMIC_RELEASE);
    }
    spin_unlock(&groups_lock);
    return g;
}

static bool exists(unsigned group) { return group >= 1 && group <= __atomic_load_n(&group_count, __ATOMIC_ACQUIRE); }

const char *dmm_group_name(unsigned group) { return exists(group) ? groups[group].name : NULL; }
bool dmm_group_secure(unsigned group) { return exists(group) && __atomic_load_n(&groups[group].secure, __ATOMIC_RELAXED); }

void dmm_group_set_secure(unsigned group, bool secure)
{
    if (!exists(group))
        return;
    __atomic_store_n(&groups[group].secure, secure, __ATOMIC_SEQ_CST);
    for (unsigned id = 1; secure && id <= DMM_MAX_SPACES; id++) {
        struct dmm_space *s = dmm_space_acquire(id);
        if (!s)
            continue;
        if (s->group == group)
            dmm_scan_forget(s);
        dmm_space_release(s);
    }
    if (!secure)
        share_drop_unsealed();
    __atomic_fetch_add(&changes, 1, __ATOMIC_RELEASE);
}

uint64_t dmm_group_changes(void) { return __atomic_load_n(&changes, __ATOMIC_ACQUIRE); }

unsigned dmm_space_group(const struct dmm_space *s) { return s->group; }
uint64_t dmm_space_domain(const struct dmm_space *s) { return s->domain; }
