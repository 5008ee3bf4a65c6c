/*
 * The nested fault: a guest touched a page that its entry does not let it touch.
 *
 * What the CPU says about the reason is not believed: emulated ones report a wrong present bit, and by the time we look
 * another vCPU may have mapped the page. The entry, read under its region's lock, is the only witness. If it permits the access there is
 * nothing to do (RETRY; a CPU re-walks after the exit). Otherwise its type says what is due: EMPTY gets a frame, the shared
 * read-only types get a copy.
 *
 * The first touch is the path that a guest's start and growth consist of, so it is kept straight: one index to the region, a
 * comparison with the constant EMPTY entry, a frame from the CPU's magazine of zeroed frames, one compare-and-swap. The policy is asked how much to
 * map around it; neighbours are mapped under the same lock. A write to a shared page is as straight: what it needs of share.c is inline.
 */
#include "core/log.h"
#include "mm/dmm/frame.h"
#include "mm/dmm/share.h"

/* Neighbours that have to be cleared now rather than in idle time: at most so many per fault, a few microseconds. */
#define AROUND_CLEAR_MAX 8u

struct outcome {
    uint32_t result; /* enum dmm_fault_result */
    uint16_t cause;  /* enum dmm_fault_cause */
    bool flush;      /* a translation was replaced */
}; /* fits a register */
#define OUTCOME(result_, cause_) ((struct outcome){ (result_), (cause_), false })
#define DONE(cause_) OUTCOME(DMM_FAULT_RETRY, cause_)
#define STALLED OUTCOME(DMM_FAULT_STALLED, DMM_CAUSE_STALL)

const char *dmm_fault_cause_name(enum dmm_fault_cause c)
{
    static const char *const names[DMM_CAUSE_COUNT] = {
        "first-touch-4k", "first-touch-4k-cleared", "first-touch-2m", "image-map", "cow-image", "cow-shared", "cow-sealed",
        "unprotect", "inherit", "zero-read", "zero-store", "spurious", "stall", "moving", "hole",
    };
    return (unsigned)c < DMM_CAUSE_COUNT ? names[c] : "?";
}

static struct outcome stalled_for(struct dmm_space *s, enum pool_want want)
{
    s->stalled_for = want;
    return STALLED;
}

enum fill { FILL_PREZEROED, FILL_CLEARED, FILL_NO_FRAME /* pool or machine has none */ };

/* EMPTY -> RW with a zeroed frame. */
static inline __attribute__((always_inline)) enum fill fill_page(struct frame_cpu *c, struct dmm_space *s, struct region *r,
                                                                    p2m_entry_t *slot, uint64_t gfn)
{
    if (unlikely(!pool_charge(s, 1)))
        return FILL_NO_FRAME;
    struct frame_got got = frame_alloc_guest(c, s, gfn);
    if (unlikely(!mfn_valid(got.mfn))) {
        pool_uncharge(s, 1);
        return FILL_NO_FRAME;
    }
    r->filled_pages++;
    p2m_transition(s, slot, 1, P2M_EMPTY, P2M_RW, s->rw_4k + mfn_to_hpa(got.mfn));
    return got.prezeroed ? FILL_PREZEROED : FILL_CLEARED;
}

/* EMPTY neighbours from gfn+step on, away from gfn, within the region. Best effort; returns how far it came. */
static uint64_t fill_around(struct dmm_space *s, struct region *r, uint64_t gfn, int64_t step, unsigned want, unsigned *may_clear)
{
    uint64_t reached = gfn;
    for (uint64_t g = gfn + step; want && g / LARGE_PAGES == gfn / LARGE_PAGES; g += step, want--) {
        p2m_entry_t *slot = &r->l1[g % LARGE_PAGES];
        if (p2m_read(slot) != s->empty || (!*may_clear && !frame_cpu()->zeroed.count))
            break;
        enum fill filled = fill_page(frame_cpu(), s, r, slot, g);
        if (filled == FILL_NO_FRAME)
            break;
        *may_clear -= filled == FILL_CLEARED;
        reached = g;
    }
    return reached;
}

/* The region's one 2 MiB leaf, if a zeroed 2 MiB frame is in stock: clearing one here would stop the guest for 100 us. */
static bool fill_large(struct dmm_space *s, struct region *r, uint64_t gfn)
{
    if (r->l1 || r->ram_pages != LARGE_PAGES || !pool_charge(s, LARGE_PAGES))
        return false;
    mfn_t m = frame_take_large_zeroed();
    if (!mfn_valid(m)) {
        pool_uncharge(s, LARGE_PAGES);
        return false;
    }
    frame_assign(m, FRAME_GUEST, s, ALIGN_DOWN(gfn, LARGE_PAGES), LARGE_PAGES);
    r->filled_pages = LARGE_PAGES;
    p2m_transition(s, r->l2e, 2, P2M_EMPTY, P2M_RW, s->format->make_leaf(P2M_RW, m, 2));
    return true;
}

/* Maps the page, and what the plan says. The entry is EMPTY, the region has level-1 entries. */
static inline __attribute__((always_inline)) struct outcome touch_page(struct frame_cpu *c, struct dmm_space *s, struct region *r, uint64_t gfn,
                                                                       unsigned access, const struct dmm_populate_plan *plan)
{
    p2m_entry_t *slot = &r->l1[gfn % LARGE_PAGES];
    if (plan && plan->zero_page && !(access & DMM_WRITE) && pool_can_owe(s, 1)) {
        r->filled_pages++;
        p2m_transition(s, slot, 1, P2M_EMPTY, P2M_ZERO_RO, s->format->make_leaf(P2M_ZERO_RO, dmm_zero_mfn, 1));
        pool_owe(s, 1);
        return DONE(DMM_CAUSE_ZERO_READ);
    }
    enum fill filled = fill_page(c, s, r, slot, gfn);
    if (unlikely(filled == FILL_NO_FRAME))
        return stalled_for(s, POOL_WANT_TOUCH);
    s->last_gfn = gfn;
    if (plan && (plan->around_after | plan->around_before)) {
        unsigned may_clear = AROUND_CLEAR_MAX;
        uint64_t after = fill_around(s, r, gfn, 1, plan->around_after, &may_clear);
        uint64_t before = fill_around(s, r, gfn, -1, plan->around_before, &may_clear);
        s->last_gfn = plan->around_after >= plan->around_before ? after : before;
    }
    return DONE(filled == FILL_PREZEROED ? DMM_CAUSE_FIRST_TOUCH_4K : DMM_CAUSE_FIRST_TOUCH_4K_CLEARED);
}

/* The policy has an opinion, or the region no level-1 entries yet. */
__attribute__((noinline)) static struct outcome touch_as_planned(struct dmm_space *s, struct region *r, uint64_t gfn, unsigned access)
{
    struct dmm_populate_plan plan = { .size = DMM_POPULATE_4K };
    policy_plan_populate(s, gfn_of(gfn), access, r, &plan);
    if (plan.zero_store && (access & DMM_MAY_CLEAR))
        return OUTCOME(DMM_FAULT_ZERO_STORE, DMM_CAUSE_ZERO_STORE);
    if (plan.size == DMM_POPULATE_2M && fill_large(s, r, gfn)) {
        s->last_gfn = gfn | (LARGE_PAGES - 1);
        return DONE(DMM_CAUSE_FIRST_TOUCH_2M);
    }
    if (!r->l1 && !p2m_build_level1(s, r, 0))
        return stalled_for(s, POOL_WANT_TABLE);
    return touch_page(frame_cpu(), s, r, gfn, access, &plan);
}

/* The entry that speaks for gfn is EMPTY. */
static inline __attribute__((always_inline)) struct outcome first_touch(struct frame_cpu *c, struct dmm_space *s, struct region *r,
                                                                        uint64_t gfn, unsigned access)
{
    int64_t stride = (int64_t)(gfn - s->last_gfn);
    s->streak = stride == s->stride ? s->streak + 1 : 0;
    s->stride = stride;
    unsigned asks = populate_asks;
    if (unlikely((asks & DMM_ASK_WALK && s->streak && (uint64_t)stride + 1 <= 2) || (asks & DMM_ASK_READ && !(access & DMM_WRITE)) ||
                 !r->filled_pages || access & DMM_MAY_CLEAR))
        return touch_as_planned(s, r, gfn, access);
    return touch_page(c, s, r, gfn, access, NULL);
}

/* IMAGE_RO or ZERO_RO -> a private frame with the same contents. The shared frame stays where it is: other spaces map it. */
static struct outcome copy_on_write(struct dmm_space *s, struct region *r, p2m_entry_t *slot, gfn_t gfn, enum p2m_type type)
{
    if (!pool_charge_break(s))
        return stalled_for(s, POOL_WANT_COPY);
    unsigned flags = pool_break_flags(s) | (type == P2M_ZERO_RO ? FRAME_ZEROED : 0);
    mfn_t m = frame_alloc_noting(flags, FRAME_GUEST, s, gfn.v).mfn;
    if (!mfn_valid(m)) {
        pool_uncharge(s, 1);
        return stalled_for(s, POOL_WANT_COPY);
    }
    mfn_t shared = s->format->mfn_of(p2m_read(slot));
    if (type == P2M_IMAGE_RO)
        copy_page(mfn_to_hva(m), mfn_to_hva(shared));
    p2m_transition(s, slot, 1, type, P2M_RW, s->rw_4k + mfn_to_hpa(m));
    region_changed(r);
    pool_settle(s, 1);
    if (type == P2M_IMAGE_RO)
        __atomic_fetch_sub(&frame_of(shared)->refs, 1, __ATOMIC_RELEASE);
    __atomic_fetch_add(&s->breaks, 1, __ATOMIC_RELAXED);
    return (struct outcome){ DMM_FAULT_RETRY, type == P2M_IMAGE_RO ? DMM_CAUSE_COW_IMAGE : DMM_CAUSE_COW_SHARED, true };
}

/* A SEALED page is touched; *left: the shared frame that it was. */
static struct outcome unseal(struct dmm_space *s, struct region *r, p2m_entry_t *slot, gfn_t gfn, unsigned access, mfn_t *left)
{
    p2m_entry_t e = p2m_read(slot);
    mfn_t m = share_mfn_of(s, e, P2M_SEALED);
    while (!share_copy_out(frame_cpu(), s, r, slot, e, gfn, m, P2M_SEALED, access))
        if (!share_drop_unsealed())
            return stalled_for(s, POOL_WANT_BREAK);
    *left = m;
    return (struct outcome){ DMM_FAULT_RETRY, DMM_CAUSE_COW_SEALED, true };
}

/* A write to the zero page: might it be one of zeros? */
__attribute__((noinline)) static bool may_be_zero_store(struct dmm_space *s, struct region *r, gfn_t gfn, unsigned access)
{
    struct dmm_populate_plan plan = { .size = DMM_POPULATE_4K };
    if (!(access & DMM_MAY_CLEAR))
        return false;
    policy_plan_populate(s, gfn, access, r, &plan);
    return plan.zero_store;
}

/* Everything but the first touch of a region that has level-1 entries, a write to a shared page, and what is inherited. */
static struct outcome resolve(struct dmm_space *s, struct region *r, gfn_t gfn, unsigned access, mfn_t *left)
{
    unsigned level;
    p2m_entry_t *slot = p2m_leaf(r, gfn, &level), e = p2m_read(slot);
    enum p2m_type type = p2m_type_of(s->format, e);
    switch (type) {
    case P2M_EMPTY:
        return first_touch(frame_cpu(), s, r, gfn.v, access);
    case P2M_RW:
    case P2M_IMAGE_RO:
    case P2M_ZERO_RO:
    case P2M_SHARED_RO:
        if (s->format->permits(e, access))
            return DONE(DMM_CAUSE_SPURIOUS);
        if (type == P2M_ZERO_RO && (access & DMM_WRITE) && may_be_zero_store(s, r, gfn, access))
            return OUTCOME(DMM_FAULT_ZERO_STORE, DMM_CAUSE_ZERO_STORE);
        if (type != P2M_RW && (access & DMM_WRITE))
            return copy_on_write(s, r, slot, gfn, type);
        break;
    case P2M_SEALED:
        return unseal(s, r, slot, gfn, access, left);
    case P2M_MOVING_OUT:
    case P2M_MOVING_IN:
        return OUTCOME(DMM_FAULT_BLOCKED, DMM_CAUSE_MOVING);
    case P2M_HOLE:
    case P2M_MMIO:
        return OUTCOME(DMM_FAULT_HOLE, DMM_CAUSE_HOLE);
    default:
        break;
    }
    return OUTCOME(DMM_FAULT_DENIED, DMM_CAUSE_HOLE);
}

static struct outcome other_fault(struct dmm_space *s, struct region *r, gfn_t gfn, unsigned access);

/* The region is taken over first, then it is as any other. */
static struct outcome inherit(struct dmm_space *s, struct region *r, gfn_t gfn, unsigned access)
{
    if (!image_take_region(s, r, gfn.v / LARGE_PAGES)) {
        spin_unlock(&r->lock);
        return stalled_for(s, POOL_WANT_TABLE);
    }
    struct outcome o = other_fault(s, r, gfn, access);
    o.cause = o.result == DMM_FAULT_RETRY ? DMM_CAUSE_INHERIT : o.cause;
    return o;
}

/* Everything but what other_fault() does. Region locked; it is let go. */
__attribute__((noinline)) static struct outcome rare_fault(struct dmm_space *s, struct region *r, gfn_t gfn, unsigned access)
{
    struct outcome o = OUTCOME(DMM_FAULT_HOLE, DMM_CAUSE_HOLE);
    mfn_t left = INVALID_MFN;
    if (r->l2e && p2m_type_of(s->format, p2m_read(r->l2e)) == P2M_INHERITED)
        return inherit(s, r, gfn, access);
    if (r->l2e)
        o = resolve(s, r, gfn, access, &left);
    spin_unlock(&r->lock);
    if (o.flush)
        dmm_flush_wait(s);
    if (mfn_valid(left))
        share_drop_later(left, s->id, gfn.v);
    return o;
}

/* The one user of a shared page writes to it. Region locked; it is let go. False: it is not alone any more, and the lock is held. */
__attribute__((noinline)) static bool break_in_place(struct dmm_space *s, struct region *r, p2m_entry_t *slot, gfn_t gfn)
{
    if (!share_unprotect(s, slot, gfn))
        return false;
    region_changed(r);
    spin_unlock(&r->lock);
    return true;
}

/* Everything but the first touch. Region locked; it is let go. The commonest, where pages are shared, is a write to one. */
static inline __attribute__((always_inline)) struct outcome level1_fault(struct frame_cpu *c, struct dmm_space *s, struct region *r,
                                                                         p2m_entry_t *slot, p2m_entry_t e, gfn_t gfn, unsigned access)
{
    if (unlikely(!(access & DMM_WRITE) || (e & s->type_mask) != s->shared_ro))
        return rare_fault(s, r, gfn, access);
    mfn_t m = p2m_mfn_of(e);
    /* Two users are two, even if the other is just leaving: that needs no lock. One may become two while we look. */
    if (unlikely(__atomic_load_n(&frame_of(m)->refs, __ATOMIC_RELAXED) == 1) && break_in_place(s, r, slot, gfn))
        return DONE(DMM_CAUSE_UNPROTECT);
    if (unlikely(!share_copy_out(c, s, r, slot, e, gfn, m, P2M_SHARED_RO, access))) {
        spin_unlock(&r->lock);
        return stalled_for(s, POOL_WANT_BREAK);
    }
    spin_unlock_here(&r->lock);
    dmm_flush_wait(s);
    share_drop(m, s->id, gfn.v); /* only now: docs/locking.md */
    return DONE(DMM_CAUSE_COW_SHARED);
}

static struct outcome other_fault(struct dmm_space *s, struct region *r, gfn_t gfn, unsigned access)
{
    if (!r->l1)
        return rare_fault(s, r, gfn, access);
    p2m_entry_t *slot = &r->l1[gfn.v % LARGE_PAGES];
    return level1_fault(frame_cpu(), s, r, slot, p2m_read(slot), gfn, access);
}

/* No vCPU has been near this gfn yet. */
__attribute__((noinline)) static struct outcome untouched(struct dmm_space *s, gfn_t gfn, unsigned access)
{
    if (!dmm_gfn_is_ram(s, gfn))
        return OUTCOME(DMM_FAULT_HOLE, DMM_CAUSE_HOLE);
    struct region *r = region_build(s, gfn);
    if (!r)
        return stalled_for(s, POOL_WANT_TABLE);
    spin_lock(&r->lock);
    return other_fault(s, r, gfn, access);
}

enum dmm_fault_result dmm_fault(struct dmm_space *s, gfn_t gfn, unsigned access)
{
    uint64_t start = __builtin_ia32_rdtsc();
    struct outcome o;
    struct frame_cpu *c = dmm_enter_first();
    struct region *r = region_place(s, gfn);
    if (unlikely(!r)) {
        o = untouched(s, gfn, access);
    } else {
        spin_lock_here(&r->lock);
        p2m_entry_t *l1 = r->l1, e;
        if (unlikely(!l1)) {
            o = rare_fault(s, r, gfn, access);
        } else if (likely((e = p2m_read(&l1[gfn.v % LARGE_PAGES])) == s->empty)) {
            o = first_touch(c, s, r, gfn.v, access);
            spin_unlock_here(&r->lock);
        } else {
            o = level1_fault(c, s, r, &l1[gfn.v % LARGE_PAGES], e, gfn, access);
        }
    }
    dmm_leave_first(c);
    if (likely(o.result != DMM_FAULT_ZERO_STORE)) /* it is asked again, or dmm_zero_stored() */
        dmm_hist_add(&s->hist[o.cause], __builtin_ia32_rdtsc() - start);
    return (enum dmm_fault_result)o.result;
}

bool dmm_is_zero_without_frame(struct dmm_space *s, gfn_t gfn)
{
    bool is = false, outermost = dmm_enter();
    struct region *r = region_of(s, gfn);
    if (r) {
        spin_lock(&r->lock);
        unsigned level;
        p2m_entry_t e = p2m_read(p2m_leaf(r, gfn, &level));
        enum p2m_type type = s->format->type_of(e, level);
        is = type == P2M_EMPTY || type == P2M_ZERO_RO;
        spin_unlock(&r->lock);
    }
    dmm_leave(outermost);
    return is;
}

void dmm_zero_stored(struct dmm_space *s, uint64_t pages, uint64_t tsc)
{
    while (pages--)
        dmm_hist_add(&s->hist[DMM_CAUSE_ZERO_STORE], tsc);
}

bool dmm_is_mapped(struct dmm_space *s, gfn_t gfn, unsigned access)
{
    bool mapped = false, outermost = dmm_enter();
    struct region *r = region_of(s, gfn);
    if (r) {
        spin_lock(&r->lock);
        unsigned level;
        mapped = s->format->permits(p2m_read(p2m_leaf(r, gfn, &level)), access);
        spin_unlock(&r->lock);
    }
    dmm_leave(outermost);
    return mapped;
}

/* ---- boot files ------------------------------------------------------------------------------------------------- */

/* True: mapped now, or was. False with *stalled: no table page; else the page holds something else and wants a copy. */
static bool map_image_page(struct dmm_space *s, struct region *r, gfn_t gfn, mfn_t m, bool *stalled)
{
    *stalled = !r->l1 && s->format->type_of(p2m_read(r->l2e), 2) == P2M_EMPTY && !p2m_build_level1(s, r, 0);
    if (*stalled || !r->l1)
        return false;
    p2m_entry_t *slot = &r->l1[gfn.v % LARGE_PAGES], e = p2m_read(slot);
    if (e != s->empty)
        return s->format->type_of(e, 1) == P2M_IMAGE_RO && mfn_eq(s->format->mfn_of(e), m);
    if (!pool_can_owe(s, 1))
        return false; /* a copy, then: the day on which it is written to is today */
    __atomic_fetch_add(&frame_of(m)->refs, 1, __ATOMIC_RELAXED);
    r->filled_pages++;
    p2m_transition(s, slot, 1, P2M_EMPTY, P2M_IMAGE_RO, s->format->make_leaf(P2M_IMAGE_RO, m, 1));
    pool_owe(s, 1);
    return true;
}

enum dmm_fault_result dmm_map_boot_file(struct dmm_space *s, gfn_t first, mfn_t file_mfn, uint64_t pages)
{
    enum dmm_fault_result result = DMM_FAULT_RETRY;
    for (uint64_t n = 0; n < pages && result == DMM_FAULT_RETRY; n++) {
        uint64_t start = __builtin_ia32_rdtsc();
        gfn_t gfn = gfn_add(first, n);
        mfn_t m = mfn_add(file_mfn, n);
        bool stalled;
        if (frame_get_type(m) != FRAME_BOOT_FILE)
            return DMM_FAULT_DENIED;
        if (!dmm_gfn_is_ram(s, gfn))
            return DMM_FAULT_HOLE;
        bool outermost = dmm_enter(), mapped = false;
        struct region *r = region_of(s, gfn);
        if (!r)
            r = region_build(s, gfn);
        stalled = !r;
        if (r) {
            spin_lock(&r->lock);
            mapped = map_image_page(s, r, gfn, m, &stalled);
            spin_unlock(&r->lock);
        }
        dmm_leave(outermost);
        if (stalled)
            result = (enum dmm_fault_result)stalled_for(s, POOL_WANT_TABLE).result;
        else if (!mapped)
            result = dmm_write_guest(s, gfn_to_gpa(gfn), mfn_to_hva(m), PAGE_SIZE);
        if (mapped)
            dmm_hist_add(&s->hist[DMM_CAUSE_IMAGE_MAP], __builtin_ia32_rdtsc() - start);
    }
    return result;
}

/* ---- large pages -------------------------------------------------------------------------------------------------- */

enum dmm_resize_result dmm_break_large(struct dmm_space *s, gfn_t gfn)
{
    enum dmm_resize_result result = DMM_RESIZE_UNSUITABLE;
    struct region *r = region_of(s, gfn);
    if (!r)
        return result;
    bool outermost = dmm_enter();
    spin_lock(&r->lock);
    result = p2m_break(s, r);
    spin_unlock(&r->lock);
    dmm_leave(outermost);
    if (result == DMM_RESIZE_OK)
        dmm_flush_wait(s);
    return result;
}

enum dmm_resize_result dmm_reform_large(struct dmm_space *s, gfn_t gfn)
{
    enum dmm_resize_result result = DMM_RESIZE_UNSUITABLE;
    struct region *r = region_of(s, gfn);
    mfn_t table;
    if (!r)
        return result;
    bool outermost = dmm_enter(); /* to the end: until it is freed, the table is in no place where an audit would look for it */
    spin_lock(&r->lock);
    result = p2m_reform(s, r, &table);
    spin_unlock(&r->lock);
    if (result == DMM_RESIZE_OK) {
        dmm_flush_wait(s);
        frame_free(table, 0);
    }
    dmm_leave(outermost);
    return result;
}

/* ---- waiting --------------------------------------------------------------------------------------------------- */

static struct waitq memory_waitq = WAITQ_INIT(memory_waitq);
static volatile uint64_t memory_wakes; /* explicit ones: look again, whatever the counters say */

struct memory_wait { struct dmm_space *space; uint64_t wakes; };

static bool memory_came(void *arg)
{
    const struct memory_wait *w = arg;
    return w->wakes != __atomic_load_n(&memory_wakes, __ATOMIC_ACQUIRE) || pool_has_room(w->space);
}

void dmm_wait_memory(struct dmm_space *s, uint64_t timeout_ns)
{
    struct memory_wait w = { s, __atomic_load_n(&memory_wakes, __ATOMIC_ACQUIRE) };
    __atomic_fetch_add(&frame_waiters, 1, __ATOMIC_SEQ_CST); /* from here on freed frames go where memory_came() sees them */
    __atomic_fetch_add(&s->memory_waiters, 1, __ATOMIC_RELAXED);
    share_drop_unsealed();
    waitq_wait(&memory_waitq, memory_came, &w, timeout_ns);
    __atomic_fetch_sub(&s->memory_waiters, 1, __ATOMIC_RELAXED);
    __atomic_fetch_sub(&frame_waiters, 1, __ATOMIC_SEQ_CST);
}

bool dmm_waits_for_memory(const struct dmm_space *s) { return __atomic_load_n(&s->memory_waiters, __ATOMIC_RELAXED); }

void dmm_wake_memory_waiters(void)
{
    __atomic_fetch_add(&memory_wakes, 1, __ATOMIC_RELEASE);
    waitq_wake_all(&memory_waitq);
}

struct moving_wait { struct dmm_space *space; gfn_t gfn; };

static bool moving_done(void *arg)
{
    const struct moving_wait *w = arg;
    struct region *r = region_of(w->space, w->gfn);
    unsigned level;
    if (!r)
        return true;
    const p2m_entry_t *slot = p2m_leaf(r, w->gfn, &level);
    enum p2m_type t = w->space->format->type_of(p2m_read(slot), level);
    return t != P2M_MOVING_IN && t != P2M_MOVING_OUT;
}

void dmm_wait(struct dmm_space *s, gfn_t gfn, uint64_t timeout_ns)
{
    struct moving_wait w = { s, gfn };
    waitq_wait(&s->moving, moving_done, &w, timeout_ns);
}
