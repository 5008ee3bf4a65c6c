/*
 * Pools: how many frames a space may have, and which are set aside for whom.
 *
 * A minimum is a promise made at creation, so it is admitted only if all promises together can be kept; while a space has less
 * than its minimum, the difference ("promised") is out of bounds for everybody else. A maximum is a limit. Both are counters: no frames are set
 * aside in a list, any frame will do. A charge comes before the frame is taken, so that two vCPUs cannot both take the last one.
 *
 * Sharing is overcommitment that nobody asked for: pages that had frames of their own will want them again when they are written to. A charge
 * therefore goes on while a page is shared (so un-sharing never meets the maximum), and each space has a count of what it *owes* itself: pages that read
 * as something and have no frame of their own. Its class says how many frames are set aside for them: all (hard) for a strict one and for what its minimum
 * promises, the expected number (soft) for an insured one, none for best effort. Ordinary requests leave alone what is set aside; an
 * insured space's breaks may use what is soft, whosever it is; a strict one's use their own, which are there by construction. A page is owed
 * whole even if it is the last to be written to and needs no frame then: one too many per shared frame, never one too few.
 */
#include "lib/string.h"
#include "mm/dmm/frame.h"
#include "mm/dmm/space.h"

uint64_t pool_promised, pool_set_aside;
static uint64_t covered_hard, covered_soft;
static struct spinlock pools_lock = SPINLOCK_INIT(LOCK_RANK_POOL, "pools"); /* admission, and the table of spaces */
struct dmm_space *dmm_spaces[DMM_MAX_SPACES + 1], *dmm_state_spaces[DMM_MAX_VMS + 1];

#define RISK_ONE UINT64_C(1024)
#define RISK_LEAST (RISK_ONE / 16)     /* nobody knows what a guest does next */
#define RISK_HORIZON_S 10

static uint64_t load(const uint64_t *n) { return __atomic_load_n(n, __ATOMIC_RELAXED); }

static void promise(int64_t pages)
{
    __atomic_fetch_add(&pool_promised, (uint64_t)pages, __ATOMIC_RELAXED);
    __atomic_fetch_add(&pool_set_aside, (uint64_t)pages, __ATOMIC_RELAXED);
}

void pool_uncharge(struct dmm_space *s, uint64_t pages)
{
    uint64_t after = __atomic_fetch_sub(&s->charged, pages, __ATOMIC_RELAXED) - pages;
    if (after < s->min_pages)
        promise((int64_t)(MIN(after + pages, s->min_pages) - after));
}

bool pool_charge_slow(struct dmm_space *s, uint64_t before, uint64_t pages)
{
    uint64_t beyond = pages;
    if (before < s->min_pages) { /* drawing on the promise */
        uint64_t drawn = MIN(pages, s->min_pages - before);
        promise(-(int64_t)drawn);
        beyond -= drawn;
    }
    if (before + pages <= s->max_pages && (!beyond || frame_available_hint() >= load(&pool_set_aside) + beyond))
        return true;
    pool_uncharge(s, pages);
    return false;
}

/* Whether it would be charged for another page, or let have the frame for one that is charged: the conditions of whoever stalled. */
static bool may_have(const struct dmm_space *s, enum pool_want want)
{
    uint64_t charged = load(&s->charged), aside = load(&pool_set_aside);
    if (want == POOL_WANT_BREAK)
        return pool_may_break(s);
    if (want == POOL_WANT_TABLE)
        return true;
    if (charged >= s->max_pages)
        return false;
    return charged < s->min_pages || !aside || frame_available_hint() > aside ||
           (want == POOL_WANT_COPY && s->class != DMM_CLASS_BEST_EFFORT && pool_may_break(s));
}

bool pool_has_room(struct dmm_space *s)
{
    return frame_can_take() && may_have(s, s->stalled_for);
}

bool pool_admit(struct dmm_space *s)
{
    spin_lock(&pools_lock);
    bool fits = !s->min_pages || load(&pool_set_aside) + s->min_pages <= frame_available_hint();
    if (fits)
        promise((int64_t)s->min_pages);
    spin_unlock(&pools_lock);
    return fits;
}

enum dmm_stall dmm_stall_reason(const struct dmm_space *s)
{
    enum pool_want want = s->stalled_for;
    if ((want == POOL_WANT_TOUCH || want == POOL_WANT_COPY) && load(&s->charged) >= s->max_pages)
        return DMM_STALL_MAXIMUM;
    if (!frame_available_hint())
        return DMM_STALL_NO_FRAME;
    return may_have(s, want) ? DMM_STALL_NONE : DMM_STALL_SET_ASIDE;
}

void dmm_stall_text(const struct dmm_space *s, char *buf, size_t size)
{
    switch (dmm_stall_reason(s)) {
    case DMM_STALL_MAXIMUM:
        snprintf(buf, size, "it holds its maximum of %lu KiB", (unsigned long)s->max_pages * 4);
        break;
    case DMM_STALL_SET_ASIDE:
        snprintf(buf, size, "it is %s, and the %lu KiB free are set aside for others", dmm_class_name(s->class), (unsigned long)frame_free_pages() * 4);
        break;
    default:
        snprintf(buf, size, "the machine has no free frame left (%lu KiB free)", (unsigned long)frame_free_pages() * 4);
    }
}

/* ---- un-sharing ------------------------------------------------------------------------------------------------- */

const char *dmm_class_name(enum dmm_class c)
{
    static const char *const names[] = { "best-effort", "insured", "strict" };
    return (unsigned)c < ARRAY_SIZE(names) ? names[c] : "?";
}

/* What is set aside for the space becomes what its class wants now. Its cover_lock is held. */
static void cover(struct dmm_space *s)
{
    uint64_t owed = load(&s->owed), charged = load(&s->charged);
    uint64_t shared = load(&s->entries[P2M_SHARED_RO]) + load(&s->entries[P2M_SEALED]) + load(&s->inherited_charge);
    uint64_t alone = charged - MIN(charged, shared);
    uint64_t hard = s->min_pages > alone ? MIN(shared, s->min_pages - alone) : 0, soft = 0;
    if (s->class == DMM_CLASS_STRICT)
        hard = MAX(hard, owed);
    if (s->class == DMM_CLASS_INSURED)
        soft = owed * s->risk / RISK_ONE;
    soft -= MIN(soft, hard);
    __atomic_fetch_add(&covered_hard, hard - s->hard, __ATOMIC_RELAXED);
    __atomic_fetch_add(&covered_soft, soft - s->soft, __ATOMIC_RELAXED);
    __atomic_fetch_add(&pool_set_aside, hard + soft - s->hard - s->soft, __ATOMIC_RELAXED);
    s->hard = hard;
    s->soft = soft;
}

void pool_cover(struct dmm_space *s)
{
    spin_lock(&s->cover_lock); /* whoever comes last sees all counts */
    cover(s);
    spin_unlock(&s->cover_lock);
}

bool pool_can_owe(const struct dmm_space *s, uint64_t pages)
{
    return s->class != DMM_CLASS_STRICT || frame_available_hint() >= load(&pool_set_aside) + pages;
}

bool pool_may_break_slow(const struct dmm_space *s)
{
    uint64_t aside = load(&pool_set_aside), ours = load(&s->hard);
    if (s->class == DMM_CLASS_STRICT)
        return true;
    if (s->class == DMM_CLASS_INSURED)
        ours += load(&covered_soft);
    return frame_available_hint() + ours > aside;
}

bool pool_charge_break(struct dmm_space *s)
{
    if (likely(pool_charge(s, 1)))
        return true;
    if (s->class == DMM_CLASS_BEST_EFFORT || !pool_may_break(s))
        return false;
    if (__atomic_fetch_add(&s->charged, 1, __ATOMIC_RELAXED) < s->max_pages)
        return true; /* beyond its minimum, or the first attempt would have had it */
    pool_uncharge(s, 1);
    return false;
}

bool dmm_set_class(struct dmm_space *s, enum dmm_class c, uint64_t *lacking)
{
    spin_lock(&s->cover_lock);
    uint64_t has = s->hard + s->soft, needs = load(&s->owed) - MIN(load(&s->owed), has), aside = load(&pool_set_aside), free = frame_available_hint();
    uint64_t can = free - MIN(free, aside);
    bool covered = c != DMM_CLASS_STRICT || can >= needs;
    if (covered) {
        s->class = c;
        s->covered = c != DMM_CLASS_BEST_EFFORT || s->min_pages;
        cover(s);
    }
    spin_unlock(&s->cover_lock);
    if (!covered)
        *lacking = needs - can;
    dmm_wake_memory_waiters();
    return covered;
}

enum dmm_class dmm_get_class(const struct dmm_space *s) { return s->class; }
uint64_t dmm_covered_pages(void) { return load(&covered_hard) + load(&covered_soft); }
uint64_t dmm_reserve_pages(void) { return frame_reserve_pages(); }
uint64_t dmm_promised_pages(void) { return load(&pool_promised); }

/* A jump is believed at once, a lull only slowly. */
static void estimate_risk(struct dmm_space *s, uint64_t elapsed_ns)
{
    uint64_t breaks = load(&s->breaks), rate_milli = (breaks - s->breaks_seen) * 1000 * 1000000 / (elapsed_ns / 1000 + 1);
    uint64_t owed = MAX(load(&s->owed), UINT64_C(1));
    uint64_t risk = MIN(MAX(rate_milli * RISK_HORIZON_S * RISK_ONE / 1000 / owed, RISK_LEAST), RISK_ONE);
    spin_lock(&s->cover_lock);
    s->breaks_seen = breaks;
    s->break_rate_milli = rate_milli;
    s->risk = MAX(risk, s->risk - s->risk / 8);
    cover(s);
    spin_unlock(&s->cover_lock);
}

void dmm_insurance_tick(uint64_t elapsed_ns)
{
    for (unsigned id = 1; id <= DMM_MAX_SPACES; id++) {
        struct dmm_space *s = dmm_spaces[id] ? dmm_space_acquire(id) : NULL;
        if (!s)
            continue;
        bool outermost = dmm_enter();
        estimate_risk(s, elapsed_ns);
        dmm_leave(outermost);
        dmm_space_release(s);
    }
}

void pool_cover_init(struct dmm_space *s)
{
    spin_init(&s->cover_lock, LOCK_RANK_COVER, "cover");
    s->risk = RISK_LEAST;
}

void pool_census(uint64_t *hard, uint64_t *soft)
{
    *hard = covered_hard;
    *soft = covered_soft;
}

/* Nothing is charged any more. */
void pool_dismiss(struct dmm_space *s) { promise(-(int64_t)s->min_pages); }

/* The table of ids is the list of spaces. pools_lock held; 0: full. */
static uint16_t free_slot(struct dmm_space **table, unsigned max)
{
    for (unsigned id = 1; id <= max; id++)
        if (!table[id])
            return (uint16_t)id;
    return 0;
}

bool pool_list_add(struct dmm_space *s)
{
    spin_lock(&pools_lock);
    s->id = free_slot(dmm_spaces, DMM_MAX_SPACES);
    s->state_id = free_slot(dmm_state_spaces, DMM_MAX_VMS);
    bool found = s->id && s->state_id;
    if (found) {
        dmm_state_spaces[s->state_id] = s;
        __atomic_store_n(&dmm_spaces[s->id], s, __ATOMIC_RELEASE);
    }
    spin_unlock(&pools_lock);
    return found;
}

bool pool_list_split(struct dmm_space *s, struct dmm_space *image)
{
    spin_lock(&pools_lock);
    uint16_t id = free_slot(dmm_spaces, DMM_MAX_SPACES);
    if (id) {
        image->id = s->id;
        image->state_id = 0;
        s->id = id;
        __atomic_store_n(&dmm_spaces[image->id], image, __ATOMIC_RELEASE);
        __atomic_store_n(&dmm_spaces[s->id], s, __ATOMIC_RELEASE);
    }
    spin_unlock(&pools_lock);
    return id;
}

void pool_list_remove(struct dmm_space *s)
{
    spin_lock(&pools_lock);
    dmm_spaces[s->id] = NULL;
    if (s->state_id)
        dmm_state_spaces[s->state_id] = NULL;
    spin_unlock(&pools_lock);
}

void pool_inherit(struct dmm_space *s, uint64_t pages)
{
    uint64_t before = __atomic_fetch_add(&s->charged, pages, __ATOMIC_RELAXED);
    if (before < s->min_pages)
        promise(-(int64_t)MIN(pages, s->min_pages - before));
}

struct dmm_space *dmm_space_acquire(unsigned id)
{
    /* Policies walk the whole table, in which nearly all is empty: the lock for each would have several CPUs meet at it all the time. */
    if (id < 1 || id > DMM_MAX_SPACES || !__atomic_load_n(&dmm_spaces[id], __ATOMIC_ACQUIRE))
        return NULL;
    spin_lock(&pools_lock);
    struct dmm_space *s = dmm_spaces[id];
    if (s && (s->closed || s->frozen))
        s = NULL;
    if (s)
        s->users++;
    spin_unlock(&pools_lock);
    return s;
}

struct dmm_space *pool_hold_image(unsigned id)
{
    if (!__atomic_load_n(&dmm_spaces[id], __ATOMIC_ACQUIRE))
        return NULL;
    spin_lock(&pools_lock); /* it is taken off the list before it goes */
    struct dmm_space *image = dmm_spaces[id];
    if (image && (!image->frozen || !image->heirs)) /* none yet, or no longer */
        image = NULL;
    if (image) {
        spin_lock(&image->image_lock);
        if (image->heirs)
            image->heirs++;
        bool held = image->heirs;
        spin_unlock(&image->image_lock);
        image = held ? image : NULL;
    }
    spin_unlock(&pools_lock);
    return image;
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

/* Without the lock: the callback may print, take locks of its own, or block. Spaces come and go by commands, on the console's thread, which
 * begins when the boot thread has made its last; and the callers of this are commands. */
void dmm_for_each_space(bool (*cb)(struct dmm_space *s, void *arg), void *arg)
{
    for (unsigned id = 1; id <= DMM_MAX_SPACES; id++)
        if (dmm_spaces[id] && !dmm_spaces[id]->frozen && !cb(dmm_spaces[id], arg))
            return;
}

bool dmm_space_named(const char *name)
{
    for (unsigned id = 1; id <= DMM_MAX_SPACES; id++)
        if (dmm_spaces[id] && !dmm_spaces[id]->frozen && strcmp(dmm_spaces[id]->name, name) == 0)
            return true;
    return false;
}
