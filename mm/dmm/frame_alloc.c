/*
 * The frame allocator, after LLFree (Wrenger et al., USENIX ATC 2023), with magazines in front.
 *
 * A buddy allocator under a lock scales badly and scatters small requests over large blocks. Here free frames are bits, 512
 * to a 2 MiB child, with a counter per child and a sum per tree of 32 children. All updates are single atomic operations, and
 * the order makes them safe: whoever takes frames first lowers the child's counter (a claim), then clears bits; whoever frees first sets
 * the bits, then raises the counter. So a child always has at least as many bits as its counter and all open claims promise,
 * every claimant finds its bits, and a counter of 512 proves that nobody has a claim: 512 -> CHILD_HUGE takes the
 * whole child.
 *
 * That costs some tens of nanoseconds, mostly locked operations. Hence per-CPU magazines of frames, refilled with one claim and usually one
 * atomic exchange of a 64-bit word: the ordinary get and put are a few plain instructions. Refills prefer children that are in
 * use already, which keeps whole 2 MiB runs whole.
 *
 * Zeroed frames are a stock apart, made in idle time; the last frames are a reserve that only those may touch who need it in
 * order to free more (FRAME_RESERVE_OK).
 */
#include "core/log.h"
#include "core/thread.h"
#include "lib/string.h"
#include "mm/dmm/frame.h"
#include "mm/dmm/space.h"
#include "mm/early.h"

#define ZEROED_LARGE_MIN 8u
#define ZEROED_LARGE_MAX 64u

struct frame_cpu *frame_cpus;
volatile unsigned frame_waiters;

/* What all CPUs share. `free` counts the bits that nobody has claimed; it is raised and lowered in batches. */
static struct {
    uint64_t free, reserve;
    const uint32_t *trees;
    uint64_t tree_count;
} shared;

/* Zeroed frames beyond the magazines: two stacks under one lock that is taken once in 64 allocations. */
static struct {
    struct spinlock lock;
    uint64_t *frames;             /* mfns */
    uint64_t count, max, low;
    mfn_t large[ZEROED_LARGE_MAX];
    uint64_t large_count, large_max;
    volatile bool large_wanted;   /* one was taken since the thread last filled up */
    mfn_t clearing;               /* a 2 MiB frame that is being zeroed a little at a time */
    uint64_t clearing_done;       /* pages of it */
    struct waitq wanted;
    volatile bool thread_sleeps;
} stock;

void frame_alloc_init(uint64_t total_pages, const uint32_t *trees, uint64_t tree_count)
{
    shared.trees = trees;
    shared.tree_count = tree_count;
    shared.reserve = MAX(MIN(total_pages / 128, 1024), 64);
    stock.max = MAX(MIN(total_pages / 32, 8192), 2 * MAGAZINE_BATCH);
    stock.low = stock.max / 2;
    stock.large_max = MAX(MIN(total_pages / 32 / LARGE_PAGES, ZEROED_LARGE_MAX), ZEROED_LARGE_MIN);
    stock.clearing = INVALID_MFN;
    uint64_t hpa = early_alloc(ALIGN_UP(stock.max * sizeof(*stock.frames), PAGE_SIZE), PAGE_SIZE, FRAME_FRAMETABLE);
    if (!hpa)
        panic("frames: no memory for the list of zeroed frames");
    stock.frames = mfn_to_hva(hpa_to_mfn(hpa));
    spin_init(&stock.lock, LOCK_RANK_FRAME, "zeroed frames");
    waitq_init(&stock.wanted);
}

void frame_cpu_setup(struct frame_cpu *c)
{
    static struct spinlock lock = SPINLOCK_INIT(LOCK_RANK_FRAME, "frame CPUs");
    c->tree_slot = shared.tree_count ? cpu_id() * 7 % shared.tree_count : 0; /* CPUs start apart */
    c->child = shared.tree_count ? shared.trees[c->tree_slot] * (uint64_t)TREE_CHILDREN : 0;
    spin_lock(&lock);
    c->next = frame_cpus;
    __atomic_store_n(&frame_cpus, c, __ATOMIC_RELEASE);
    spin_unlock(&lock);
    this_cpu()->slot[PERCPU_FRAMES] = c;
}

uint64_t frame_reserve_pages(void) { return shared.reserve; }

static uint64_t shared_free(void) { return __atomic_load_n(&shared.free, __ATOMIC_RELAXED); }

uint64_t frame_available_hint(void)
{
    uint64_t n = shared_free();
    return (n > shared.reserve ? n - shared.reserve : 0) + __atomic_load_n(&stock.count, __ATOMIC_RELAXED) +
           __atomic_load_n(&stock.large_count, __ATOMIC_RELAXED) * LARGE_PAGES;
}

bool frame_can_take(void)
{
    const struct frame_cpu *c = frame_cpu();
    return c->dirty.count || c->zeroed.count || frame_available_hint();
}

/* ---- bits and counters ------------------------------------------------------------------------------------- */

static void count_free(uint64_t child, int64_t pages)
{
    __atomic_fetch_add(&tree_of(child / TREE_CHILDREN)->free, (uint32_t)pages, __ATOMIC_RELAXED);
    __atomic_fetch_add(&shared.free, (uint64_t)pages, __ATOMIC_RELAXED);
}

/* Lowers the child's counter by up to `want`; returns by how much. */
static unsigned claim(uint64_t child, unsigned want)
{
    uint16_t *counter = child_free_of(child), have = __atomic_load_n(counter, __ATOMIC_RELAXED);
    unsigned got;
    do {
        if (have == 0 || have == CHILD_HUGE)
            return 0;
        got = MIN(want, have);
    } while (!__atomic_compare_exchange_n(counter, &have, have - got, true, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED));
    count_free(child, -(int64_t)got);
    return got;
}

/* Clears `count` claimed bits and appends the frames to out[]. They exist (see above), though perhaps not where we looked first. */
static void collect(uint64_t child, unsigned count, uint64_t *out)
{
    struct frame_child *c = child_of(child);
    for (unsigned w = 0; count; w = (w + 1) % ARRAY_SIZE(c->word)) {
        uint64_t bits = __atomic_load_n(&c->word[w], __ATOMIC_RELAXED), take;
        do {
            take = bits;
            for (unsigned surplus = (unsigned)__builtin_popcountll(bits); surplus > count; surplus--)
                take &= take - 1; /* leave the lowest ones */
        } while (take && !__atomic_compare_exchange_n(&c->word[w], &bits, bits & ~take, true, __ATOMIC_ACQUIRE,
                                                      __ATOMIC_RELAXED));
        for (; take; take &= take - 1, count--)
            *out++ = child * LARGE_PAGES + w * 64 + (unsigned)__builtin_ctzll(take);
    }
}

static void put_bit(uint64_t mfn)
{
    uint64_t child = mfn / LARGE_PAGES, bit = BIT64(mfn % 64);
    uint64_t old = __atomic_fetch_or(&child_of(child)->word[mfn % LARGE_PAGES / 64], bit, __ATOMIC_RELEASE);
    hv_assert(!(old & bit));
    __atomic_fetch_add(child_free_of(child), 1, __ATOMIC_RELEASE);
    count_free(child, 1);
}

void frame_add_free(uint64_t first, uint64_t pages)
{
    for (uint64_t m = first; m < first + pages; m++)
        put_bit(m);
}

/* A child of this tree to take single frames from: one in use before one that is whole. */
static bool pick_child(uint64_t tree, bool whole_too, uint64_t *child)
{
    const struct frame_tree *t = tree_of(tree);
    bool found = false;
    if (__atomic_load_n(&t->free, __ATOMIC_RELAXED) == 0)
        return false;
    for (unsigned k = 0; k < TREE_CHILDREN; k++) {
        unsigned have = __atomic_load_n(&t->child_free[k], __ATOMIC_RELAXED);
        if (have == 0 || have == CHILD_HUGE || (have == LARGE_PAGES && (!whole_too || found)))
            continue;
        *child = tree * TREE_CHILDREN + k;
        found = true;
        if (have < LARGE_PAGES)
            break;
    }
    return found;
}

/* Takes up to `want` frames from the bitfields, all from one child. Looks where it took last, then for a child in use nearby, then for
 * any: the bound keeps a refill from walking all trees of a machine that is mostly free. */
static unsigned take_bits(unsigned want, unsigned flags, uint64_t *out)
{
    struct frame_cpu *c = frame_cpu();
    uint64_t available = shared_free(), child = c->child;
    if (!(flags & FRAME_RESERVE_OK))
        available = available > shared.reserve ? available - shared.reserve : 0;
    want = (unsigned)MIN(want, available);
    if (want == 0)
        return 0;
    c->refills++;
    unsigned got = claim(child, want);
    for (unsigned pass = 0; !got && pass < 2; pass++) {
        uint64_t bound = pass == 0 ? MIN(shared.tree_count, 64) : shared.tree_count;
        for (uint64_t n = 0; !got && n < bound; n++) {
            uint64_t slot = (c->tree_slot + n) % shared.tree_count;
            if (pick_child(shared.trees[slot], pass == 1, &child) && (got = claim(child, want))) {
                c->child = child;
                c->tree_slot = slot;
            }
        }
    }
    if (got)
        collect(child, got, out);
    return got;
}

static mfn_t take_large(unsigned flags)
{
    uint64_t floor = flags & FRAME_RESERVE_OK ? 0 : shared.reserve;
    struct frame_cpu *c = frame_cpu();
    if (shared_free() < floor + LARGE_PAGES)
        return INVALID_MFN;
    for (uint64_t n = 0; n < shared.tree_count; n++) {
        uint64_t tree = shared.trees[(c->tree_slot + n) % shared.tree_count];
        if (__atomic_load_n(&tree_of(tree)->free, __ATOMIC_RELAXED) < LARGE_PAGES)
            continue;
        for (unsigned k = TREE_CHILDREN; k-- > 0;) { /* from the top: single frames come from the bottom */
            uint16_t whole = LARGE_PAGES;
            if (!__atomic_compare_exchange_n(&tree_of(tree)->child_free[k], &whole, CHILD_HUGE, false, __ATOMIC_ACQUIRE,
                                             __ATOMIC_RELAXED))
                continue;
            uint64_t child = tree * TREE_CHILDREN + k;
            for (unsigned w = 0; w < LARGE_PAGES / 64; w++)
                hv_assert(__atomic_exchange_n(&child_of(child)->word[w], 0, __ATOMIC_ACQUIRE) == UINT64_MAX);
            count_free(child, -(int64_t)LARGE_PAGES);
            return mfn_of(child * LARGE_PAGES);
        }
    }
    return INVALID_MFN;
}

static void put_large(mfn_t m)
{
    uint64_t child = m.v / LARGE_PAGES;
    for (unsigned w = 0; w < LARGE_PAGES / 64; w++)
        __atomic_store_n(&child_of(child)->word[w], UINT64_MAX, __ATOMIC_RELAXED);
    hv_assert(__atomic_exchange_n(child_free_of(child), LARGE_PAGES, __ATOMIC_RELEASE) == CHILD_HUGE);
    count_free(child, LARGE_PAGES);
}

/* ---- free frames change their type: counted, like any other change ---------------------------------------- */

static inline void set_free_type(mfn_t m, enum frame_type type, uint64_t pages)
{
    struct frame_cpu *c = frame_cpu();
    struct frame *f = frame_of(m);
    c->type_count[f->type] -= pages;
    c->type_count[type] += pages;
    f->where = GFN_NONE;
    f->what = FRAME_WHAT(type, 0, pages == LARGE_PAGES ? FRAME_LARGE : 0);
}

/* The records of a 2 MiB frame that goes back to the bitfields must each say FREE: they are read one by one again. */
static void forget_large(mfn_t m)
{
    set_free_type(m, FRAME_FREE, LARGE_PAGES);
    for (uint64_t n = 0; n < LARGE_PAGES; n++)
        *frame_of(mfn_add(m, n)) = (struct frame){ .gfn = GFN_NONE, .type = FRAME_FREE };
    put_large(m);
}

/* ---- the stock of zeroed frames ------------------------------------------------------------------------------- */

bool frame_zeroed_is_low(void)
{
    return __atomic_load_n(&stock.count, __ATOMIC_RELAXED) < stock.low && shared_free() > 4 * shared.reserve;
}

static unsigned stock_pop(uint64_t *out, unsigned want)
{
    unsigned got = 0;
    if (__atomic_load_n(&stock.count, __ATOMIC_RELAXED)) {
        spin_lock(&stock.lock);
        got = (unsigned)MIN(want, stock.count);
        stock.count -= got;
        memcpy(out, stock.frames + stock.count, got * sizeof(*out));
        spin_unlock(&stock.lock);
    }
    if (unlikely(stock.thread_sleeps) && frame_zeroed_is_low())
        waitq_wake_all(&stock.wanted);
    return got;
}

mfn_t frame_take_large_zeroed(void)
{
    mfn_t m = INVALID_MFN;
    if (!__atomic_load_n(&stock.large_count, __ATOMIC_RELAXED))
        return m;
    spin_lock(&stock.lock);
    if (stock.large_count)
        m = stock.large[--stock.large_count];
    spin_unlock(&stock.lock);
    stock.large_wanted = true;
    if (unlikely(stock.thread_sleeps))
        waitq_wake_all(&stock.wanted);
    return m;
}

/* Memory is short: what was put by in 2 MiB pieces goes back, the piece in the making too. */
static bool stock_release_large(void)
{
    bool any = false;
    for (mfn_t m; mfn_valid(m = frame_take_large_zeroed()); any = true)
        forget_large(m);
    spin_lock(&stock.lock);
    mfn_t m = stock.clearing;
    stock.clearing = INVALID_MFN;
    spin_unlock(&stock.lock);
    if (mfn_valid(m))
        forget_large(m);
    return any || mfn_valid(m);
}

/* Up to `max` pages of work on the next 2 MiB frame of the stock. The piece is off every list while it is written to. */
static unsigned zero_large_some(unsigned max)
{
    spin_lock(&stock.lock);
    mfn_t m = stock.clearing;
    uint64_t done = stock.clearing_done, have = stock.large_count;
    stock.clearing = INVALID_MFN;
    spin_unlock(&stock.lock);
    if (!mfn_valid(m)) {
        if (have >= stock.large_max || shared_free() < 16 * shared.reserve + 4 * stock.large_max * LARGE_PAGES)
            return 0;
        m = take_large(0);
        if (!mfn_valid(m))
            return 0;
        done = 0;
        set_free_type(m, FRAME_FREE, LARGE_PAGES);
    }
    unsigned n = 0;
    for (; n < max && done < LARGE_PAGES; n++, done++)
        clear_page(mfn_to_hva(mfn_add(m, done)));
    if (done == LARGE_PAGES)
        set_free_type(m, FRAME_FREE_ZEROED, LARGE_PAGES);
    spin_lock(&stock.lock);
    bool fits = done < LARGE_PAGES ? !mfn_valid(stock.clearing) : stock.large_count < stock.large_max;
    if (fits && done < LARGE_PAGES) {
        stock.clearing = m;
        stock.clearing_done = done;
    } else if (fits) {
        stock.large[stock.large_count++] = m;
    }
    spin_unlock(&stock.lock);
    if (!fits) /* another CPU filled the place meanwhile */
        forget_large(m);
    return n;
}

static unsigned zero_small_some(unsigned max)
{
    uint64_t batch[MAGAZINE_BATCH];
    unsigned done = 0;
    while (done < max && __atomic_load_n(&stock.count, __ATOMIC_RELAXED) < stock.max && shared_free() > 4 * shared.reserve) {
        unsigned got = take_bits(MIN(max - done, MAGAZINE_BATCH), 0, batch), kept = 0;
        if (!got)
            break;
        for (unsigned n = 0; n < got; n++) {
            clear_page(mfn_to_hva(mfn_of(batch[n])));
            set_free_type(mfn_of(batch[n]), FRAME_FREE_ZEROED, 1);
        }
        spin_lock(&stock.lock);
        while (kept < got && stock.count < stock.max)
            stock.frames[stock.count++] = batch[kept++];
        spin_unlock(&stock.lock);
        for (; kept < got; kept++) {
            set_free_type(mfn_of(batch[kept]), FRAME_FREE, 1);
            put_bit(batch[kept]);
        }
        done += got;
    }
    return done;
}

/* Half of the work for each stock while neither is full: on a busy machine, whose thread gets little time, the second would else stay empty. */
unsigned frame_zero_some(unsigned max)
{
    bool outermost = dmm_enter();
    unsigned done = zero_large_some(max / 2);
    done += zero_small_some(max - done);
    if (done < max)
        done += zero_large_some(max - done);
    dmm_leave(outermost);
    return done;
}

/* The guests that start with the machine leave no idle time to prepare for their first touches. */
void frame_zero_large_stock(void)
{
    bool outermost = dmm_enter();
    while (zero_large_some(LARGE_PAGES))
        ;
    dmm_leave(outermost);
}

static bool zeroed_is_wanted(void *arg)
{
    (void)arg;
    return frame_zeroed_is_low() || stock.large_wanted;
}

/* In small pieces, for guests must not wait for it; sleeps once there is nothing left to do. */
void dmm_zero_thread(void *arg)
{
    (void)arg;
    for (;;) {
        stock.large_wanted = false; /* if there is none to be had, the next that is taken asks again */
        while (frame_zero_some(16))
            thread_resched_point();
        stock.thread_sleeps = true;
        waitq_wait(&stock.wanted, zeroed_is_wanted, NULL, WAIT_FOREVER);
        stock.thread_sleeps = false;
    }
}

/* ---- get --------------------------------------------------------------------------------------------------- */

/* The magazine was empty: refill it and take one, trying every source before giving up. */
__attribute__((noinline)) static mfn_t take_slow(unsigned flags, bool *zeroed)
{
    struct frame_cpu *c = frame_cpu();
    struct magazine *dirty = &c->dirty, *clean = &c->zeroed;
    if ((flags & FRAME_ZEROED) && !clean->count)
        clean->count = stock_pop(clean->mfn, MAGAZINE_BATCH);
    if (!((flags & FRAME_ZEROED) && clean->count) && !dirty->count) {
        dirty->count = take_bits(MAGAZINE_BATCH, flags, dirty->mfn);
        if (!dirty->count && !clean->count)
            clean->count = stock_pop(clean->mfn, MAGAZINE_BATCH);
        if (!dirty->count && !clean->count && stock_release_large())
            dirty->count = take_bits(MAGAZINE_BATCH, flags, dirty->mfn);
    }
    *zeroed = clean->count && ((flags & FRAME_ZEROED) || !dirty->count);
    struct magazine *from = *zeroed ? clean : dirty;
    return from->count ? mfn_of(from->mfn[--from->count]) : INVALID_MFN;
}

static inline mfn_t take(unsigned flags, bool *zeroed)
{
    struct frame_cpu *c = frame_cpu();
    struct magazine *m = flags & FRAME_ZEROED ? &c->zeroed : &c->dirty;
    if (unlikely(!m->count))
        return take_slow(flags, zeroed);
    *zeroed = flags & FRAME_ZEROED;
    return mfn_of(m->mfn[--m->count]);
}

static inline mfn_t take_for(unsigned flags, enum frame_type type, struct dmm_space *owner, uint64_t gfn, bool *prezeroed)
{
    mfn_t m = take(flags, prezeroed);
    if (unlikely(!mfn_valid(m)))
        return m;
    frame_assign(m, type, owner, gfn, 1);
    if ((flags & FRAME_ZEROED) && !*prezeroed) {
        frame_cpu()->cleared++;
        clear_page(mfn_to_hva(m));
    }
    return m;
}

struct frame_got frame_alloc_noting(unsigned flags, enum frame_type type, struct dmm_space *owner, uint64_t gfn)
{
    struct frame_got got;
    got.mfn = take_for(flags, type, owner, gfn, &got.prezeroed);
    return got;
}

__attribute__((noinline)) static mfn_t alloc_large(unsigned flags, enum frame_type type, struct dmm_space *owner)
{
    mfn_t m = flags & FRAME_ZEROED ? frame_take_large_zeroed() : INVALID_MFN;
    bool zeroed = mfn_valid(m);
    if (!zeroed && !mfn_valid(m = take_large(flags)) && stock_release_large())
        m = take_large(flags);
    if (!mfn_valid(m))
        return m;
    frame_assign(m, type, owner, GFN_NONE, LARGE_PAGES);
    for (uint64_t n = 0; !zeroed && (flags & FRAME_ZEROED) && n < LARGE_PAGES; n++)
        clear_page(mfn_to_hva(mfn_add(m, n)));
    return m;
}

mfn_t frame_alloc(unsigned order, unsigned flags, enum frame_type type, struct dmm_space *owner)
{
    bool zeroed, outermost = dmm_enter();
    debug_assert(order == 0 || order == LARGE_ORDER);
    mfn_t m = likely(order == 0) ? take_for(flags, type, owner, GFN_NONE, &zeroed) : alloc_large(flags, type, owner);
    dmm_leave(outermost);
    return m;
}

/* ---- put --------------------------------------------------------------------------------------------------- */

/* Others wait for memory, or the reserve has been dug into: the frame does not go into a drawer of ours. */
static inline bool is_short(void) { return frame_waiters || shared_free() <= shared.reserve; }

/* A magazine has no room, or should not get it. */
__attribute__((noinline)) static void put_slow(struct magazine *dirty, mfn_t m)
{
    if (is_short()) {
        put_bit(m.v);
        return;
    }
    while (dirty->count > MAGAZINE_FRAMES - MAGAZINE_BATCH)
        put_bit(dirty->mfn[--dirty->count]);
    dirty->mfn[dirty->count++] = m.v;
}

void frame_free(mfn_t m, unsigned order)
{
    bool outermost = dmm_enter();
    struct magazine *dirty = &frame_cpu()->dirty;
    const struct frame f = { .what = frame_of(m)->what };
    hv_assert(f.type > FRAME_FREE_ZEROED && !f.refs && (f.flags & ~FRAME_HISTORY) == (order == 0 ? 0 : FRAME_LARGE));
    if (f.owner)
        __atomic_fetch_sub(&frame_owner(&f)->frames[f.type], 1UL << order, __ATOMIC_RELAXED);
    if (unlikely(order != 0)) {
        forget_large(m);
    } else {
        set_free_type(m, FRAME_FREE, 1);
        if (likely(dirty->count < MAGAZINE_FRAMES && !is_short()))
            dirty->mfn[dirty->count++] = m.v;
        else
            put_slow(dirty, m);
    }
    dmm_leave(outermost);
    if (unlikely(frame_waiters) && frame_available_hint())
        dmm_wake_memory_waiters();
}

bool frame_cpu_init(void)
{
    uint64_t mfn;
    struct frame_cpu *c;
    _Static_assert(sizeof(*c) <= PAGE_SIZE, "a CPU's magazines fit a page");
    struct frame_cpu borrowed = { .child = shared.trees[0] * (uint64_t)TREE_CHILDREN };
    this_cpu()->slot[PERCPU_FRAMES] = &borrowed; /* on no list, gone before anybody can look */
    if (!take_bits(1, FRAME_RESERVE_OK, &mfn))
        return false;
    c = mfn_to_hva(mfn_of(mfn));
    clear_page(c);
    frame_cpu_setup(c);
    frame_assign(mfn_of(mfn), FRAME_HV_HEAP, NULL, GFN_NONE, 1);
    return true;
}

/* ---- for the audit ------------------------------------------------------------------------------------------- */

void frame_stock_census(struct frame_stock *out)
{
    *out = (struct frame_stock){ .shared_free = shared.free, .zeroed_stock = stock.count, .zeroed_large = stock.large_count };
    for (uint64_t n = 0; n < shared.tree_count; n++) {
        const struct frame_tree *t = tree_of(shared.trees[n]);
        out->trees += t->free;
        for (unsigned k = 0; k < TREE_CHILDREN; k++) {
            if (t->child_free[k] != CHILD_HUGE)
                out->counters += t->child_free[k];
            if (t->child_free[k] != 0 || frame_exists(mfn_of((shared.trees[n] * (uint64_t)TREE_CHILDREN + k) * LARGE_PAGES)))
                for (unsigned w = 0; w < LARGE_PAGES / 64; w++)
                    out->bits += __builtin_popcountll(child_of(shared.trees[n] * (uint64_t)TREE_CHILDREN + k)->word[w]);
        }
    }
    for (const struct frame_cpu *c = frame_cpus; c; c = c->next) {
        out->magazines_dirty += c->dirty.count;
        out->magazines_zeroed += c->zeroed.count;
    }
}

void frame_for_each_cached(void (*cb)(mfn_t m, bool zeroed, uint64_t pages, void *arg), void *arg)
{
    for (const struct frame_cpu *c = frame_cpus; c; c = c->next) {
        for (uint64_t n = 0; n < c->dirty.count; n++)
            cb(mfn_of(c->dirty.mfn[n]), false, 1, arg);
        for (uint64_t n = 0; n < c->zeroed.count; n++)
            cb(mfn_of(c->zeroed.mfn[n]), true, 1, arg);
    }
    for (uint64_t n = 0; n < stock.count; n++)
        cb(mfn_of(stock.frames[n]), true, 1, arg);
    for (uint64_t n = 0; n < stock.large_count; n++)
        cb(stock.large[n], true, LARGE_PAGES, arg);
    if (mfn_valid(stock.clearing))
        cb(stock.clearing, false, LARGE_PAGES, arg);
}
