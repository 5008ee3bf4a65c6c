/*
 * Pools: how many private frames a space may have.
 *
 * A minimum is a promise made at creation, so it is admitted only if all promises together can be kept; while a space has less
 * than its minimum, the difference ("promised") is out of bounds for everybody else. A maximum is a limit. Both are counters: no frames are set
 * aside in a list, any frame will do. A charge comes before the frame is taken, so that two vCPUs cannot both take the last one.
 */
#include "mm/dmm/frame.h"
#include "mm/dmm/space.h"

uint64_t pool_promised;
static struct spinlock pools_lock = SPINLOCK_INIT(LOCK_RANK_POOL, "pools"); /* admission, and the table of spaces */
struct dmm_space *dmm_spaces[DMM_MAX_SPACES + 1];

static uint64_t pool_promised_pages(void) { return __atomic_load_n(&pool_promised, __ATOMIC_RELAXED); }

void pool_uncharge(struct dmm_space *s, uint64_t pages)
{
    uint64_t after = __atomic_fetch_sub(&s->charged, pages, __ATOMIC_RELAXED) - pages;
    if (after < s->min_pages)
        __atomic_fetch_add(&pool_promised, MIN(after + pages, s->min_pages) - after, __ATOMIC_RELAXED);
}

bool pool_charge_slow(struct dmm_space *s, uint64_t before, uint64_t pages)
{
    uint64_t beyond = pages;
    if (before < s->min_pages) { /* drawing on the promise */
        uint64_t drawn = MIN(pages, s->min_pages - before);
        __atomic_fetch_sub(&pool_promised, drawn, __ATOMIC_RELAXED);
        beyond -= drawn;
    }
    if (before + pages <= s->max_pages && (!beyond || frame_available_hint() >= pool_promised_pages() + beyond))
        return true;
    pool_uncharge(s, pages);
    return false;
}

bool pool_has_room(struct dmm_space *s)
{
    uint64_t charged = __atomic_load_n(&s->charged, __ATOMIC_RELAXED);
    return charged < s->max_pages && frame_can_take() &&
           (charged < s->min_pages || !pool_promised_pages() || frame_available_hint() > pool_promised_pages());
}

bool pool_admit(struct dmm_space *s)
{
    spin_lock(&pools_lock);
    bool fits = !s->min_pages || pool_promised_pages() + s->min_pages <= frame_available_hint();
    if (fits)
        __atomic_fetch_add(&pool_promised, s->min_pages, __ATOMIC_RELAXED);
    spin_unlock(&pools_lock);
    return fits;
}

/* Nothing is charged any more. */
void pool_dismiss(struct dmm_space *s) { __atomic_fetch_sub(&pool_promised, s->min_pages, __ATOMIC_RELAXED); }

/* The table of ids is the list of spaces. */
bool pool_list_add(struct dmm_space *s)
{
    bool found = false;
    spin_lock(&pools_lock);
    for (unsigned id = 1; id <= DMM_MAX_SPACES && !found; id++)
        if (!dmm_spaces[id]) {
            s->id = (uint16_t)id;
            __atomic_store_n(&dmm_spaces[id], s, __ATOMIC_RELEASE);
            found = true;
        }
    spin_unlock(&pools_lock);
    return found;
}

void pool_list_remove(struct dmm_space *s)
{
    spin_lock(&pools_lock);
    dmm_spaces[s->id] = NULL;
    spin_unlock(&pools_lock);
}

struct dmm_space *dmm_space_acquire(unsigned id)
{
    spin_lock(&pools_lock);
    struct dmm_space *s = id >= 1 && id <= DMM_MAX_SPACES ? dmm_spaces[id] : NULL;
    if (s && s->closed)
        s = NULL;
    if (s)
        s->users++;
    spin_unlock(&pools_lock);
    return s;
}

static struct waitq users_gone = WAITQ_INIT(users_gone);

void dmm_space_release(struct dmm_space *s)
{
    spin_lock(&pools_lock);
    bool last = --s->users == 0 && s->closed;
    spin_unlock(&pools_lock); /* the one who closed it may free it from now on */
    if (last)
        waitq_wake_all(&users_gone);
}

static bool no_users(void *arg) { return !__atomic_load_n(&((struct dmm_space *)arg)->users, __ATOMIC_ACQUIRE); }

void pool_close(struct dmm_space *s)
{
    spin_lock(&pools_lock);
    s->closed = true;
    bool idle = !s->users;
    spin_unlock(&pools_lock);
    if (!idle)
        waitq_wait(&users_gone, no_users, s, WAIT_FOREVER);
}

void pool_open(struct dmm_space *s)
{
    spin_lock(&pools_lock);
    s->closed = false;
    spin_unlock(&pools_lock);
}

/* Without the lock: the callback may print, take locks of its own, or block. Spaces come and go on the console's thread only, and the
 * callers of this are commands. */
void dmm_for_each_space(bool (*cb)(struct dmm_space *s, void *arg), void *arg)
{
    for (unsigned id = 1; id <= DMM_MAX_SPACES; id++)
        if (dmm_spaces[id] && !cb(dmm_spaces[id], arg))
            return;
}
