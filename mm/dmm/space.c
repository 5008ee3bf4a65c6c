/*
 * Spaces: making one, declaring its RAM, taking it apart.
 *
 * Declaring RAM costs 8 bytes per 2 MiB of guest in level-2 tables and 64 for the region; level-1 tables appear with the first 4 KiB page that
 * is mapped. Taking apart follows the one order in which a frame may leave (docs/memory-states.md): all regions are cut off at level
 * 2, every CPU forgets, and then the frames are given back from the tables, which nobody but us can reach any more.
 */
#include "mm/dmm/space.h"

#include "core/log.h"
#include "lib/string.h"
#include "mm/dmm/frame.h"
#include "mm/dmm/share.h"
#include "mm/mm.h"

mfn_t dmm_zero_mfn;
static uint64_t domains; /* handed out to spaces that share with nobody else */

void dmm_init(void)
{
    dmm_zero_mfn = frame_alloc(0, FRAME_ZEROED, FRAME_HV_HEAP, NULL);
    hv_assert(mfn_valid(dmm_zero_mfn));
}

/* The fault path adds a frame's address to a constant instead of calling the format; see p2m.h. */
static bool format_is_linear(const struct p2m_format *f)
{
    const mfn_t m = mfn_of(0x5a5a5a5 & ~(LARGE_PAGES - 1));
    return f->make_leaf(P2M_RW, m, 1) == f->make_leaf(P2M_RW, mfn_of(0), 1) + mfn_to_hpa(m) &&
           f->type_of(0, 1) == P2M_HOLE && f->type_of(0, 4) == P2M_HOLE;
}

enum dmm_create_result dmm_space_create(const struct dmm_space_config *cfg, struct dmm_space **out)
{
    hv_assert(format_is_linear(cfg->format));
    struct dmm_space *s = kzalloc(sizeof(*s));
    if (!s)
        return DMM_CREATE_NO_MEMORY;
    s->format = cfg->format;
    s->empty = cfg->format->make_nonpresent(P2M_EMPTY, 0);
    s->rw_4k = cfg->format->make_leaf(P2M_RW, mfn_of(0), 1);
    s->heap_bytes = sizeof(*s);
    s->vm_id = cfg->vm_id;
    s->pages = cfg->pages;
    s->min_pages = cfg->min_pages;
    s->max_pages = cfg->max_pages ? MIN(cfg->max_pages, cfg->pages) : cfg->pages;
    s->weight = cfg->weight;
    s->ops = cfg->ops;
    s->owner = cfg->owner;
    s->flush_generation = 1; /* a vCPU that has flushed for nothing yet says 0 */
    s->last_gfn = UINT64_MAX - 1;
    str_copy(s->name, sizeof(s->name), cfg->name);
    waitq_init(&s->moving);
    pool_cover_init(s);
    s->class = cfg->class;
    s->group = cfg->group;
    s->domain = cfg->group ? cfg->group : DMM_GROUP_MAX + __atomic_add_fetch(&domains, 1, __ATOMIC_RELAXED);

    if (!pool_admit(s)) {
        kfree(s);
        return DMM_CREATE_OVERCOMMITTED_MIN;
    }
    bool outermost = dmm_enter(); /* an audit must not meet a listed space without a root */
    s->root = INVALID_MFN;
    if (pool_list_add(s)) {
        s->root = frame_alloc(0, FRAME_ZEROED, FRAME_P2M, s);
        if (!mfn_valid(s->root))
            pool_list_remove(s);
    }
    dmm_leave(outermost);
    if (!mfn_valid(s->root)) {
        pool_dismiss(s);
        kfree(s);
        return DMM_CREATE_NO_MEMORY;
    }
    *out = s;
    return DMM_CREATE_OK;
}

/* Room for regions up to gfn `end`. Nobody else uses the space yet. */
static bool grow_regions(struct dmm_space *s, uint64_t end)
{
    uint64_t count = (end + LARGE_PAGES - 1) / LARGE_PAGES;
    if (count <= s->region_count)
        return true;
    struct region *grown = kzalloc(count * sizeof(*grown));
    if (!grown)
        return false;
    if (s->region_count)
        memcpy(grown, s->regions, s->region_count * sizeof(*grown));
    for (uint64_t n = s->region_count; n < count; n++)
        spin_init(&grown[n].lock, LOCK_RANK_P2M, "p2m region");
    s->heap_bytes += (count - s->region_count) * sizeof(*grown);
    kfree(s->regions);
    s->regions = grown;
    s->region_count = count;
    return true;
}

/* [from, end) of one region. A region that is RAM throughout is one level-2 entry. */
static bool add_ram_region(struct dmm_space *s, uint64_t from, uint64_t end)
{
    struct region *r = &s->regions[from / LARGE_PAGES];
    if (!r->l2e && !(r->l2e = p2m_build_level2(s, gfn_of(from))))
        return false;
    if (end - from == LARGE_PAGES) {
        p2m_transition(s, r->l2e, 2, P2M_HOLE, P2M_EMPTY, s->empty);
    } else {
        if (!r->l1 && !p2m_build_level1(s, r, 0))
            return false;
        for (uint64_t g = from; g < end; g++)
            p2m_transition(s, &r->l1[g % LARGE_PAGES], 1, P2M_HOLE, P2M_EMPTY, s->empty);
    }
    r->ram_pages += end - from;
    s->ram_pages += end - from;
    return true;
}

bool dmm_space_add_ram(struct dmm_space *s, gfn_t first, uint64_t pages)
{
    uint64_t end = first.v + pages;
    if (pages == 0 || end < first.v || end > UINT64_C(1) << 36 || pages > s->pages - s->ram_pages)
        return false;
    bool outermost = dmm_enter();
    bool ok = grow_regions(s, end);
    for (uint64_t g = first.v; ok && g < end; g++)
        ok = !dmm_gfn_is_ram(s, gfn_of(g));
    for (uint64_t g = first.v, next; ok && g < end; g = next) {
        next = MIN(ALIGN_DOWN(g, LARGE_PAGES) + LARGE_PAGES, end);
        ok = add_ram_region(s, g, next);
    }
    dmm_leave(outermost);
    return ok;
}

uint64_t dmm_space_end_gfn(const struct dmm_space *s) { return s->region_count * LARGE_PAGES; }
uint64_t dmm_space_root_hpa(const struct dmm_space *s) { return mfn_to_hpa(s->root); }
const char *dmm_space_name(const struct dmm_space *s) { return s->name; }
uint32_t dmm_space_vm_id(const struct dmm_space *s) { return s->vm_id; }
uint64_t dmm_space_flush_generation(const struct dmm_space *s)
{
    return __atomic_load_n(&s->flush_generation, __ATOMIC_SEQ_CST);
}

bool dmm_gfn_is_ram(const struct dmm_space *s, gfn_t gfn)
{
    const struct region *r = region_of(s, gfn);
    if (!r || r->ram_pages == 0)
        return false;
    return r->ram_pages == LARGE_PAGES || !r->l1 || s->format->type_of(p2m_read(&r->l1[gfn.v % LARGE_PAGES]), 1) != P2M_HOLE;
}

void dmm_flush_wait(struct dmm_space *s)
{
    __atomic_fetch_add(&s->flushes, 1, __ATOMIC_RELAXED);
    if (s->ops && s->ops->kick)
        s->ops->kick(s->owner, true);
}

/* ---- destroying ----------------------------------------------------------------------------------------------- */

/* All CPUs have forgotten it. */
static void drop_entry(struct dmm_space *s, gfn_t gfn, p2m_entry_t e, unsigned level)
{
    enum p2m_type type = s->format->type_of(e, level);
    if (type == P2M_RW) {
        mfn_t m = s->format->mfn_of(e);
        hv_assert(!frame_of(m)->refs); /* a pin left over: somebody still has its address */
        pool_uncharge(s, level == 2 ? LARGE_PAGES : 1);
        frame_free(m, level == 2 ? LARGE_ORDER : 0);
        return;
    }
    if (type == P2M_SHARED_RO || type == P2M_SEALED) {
        pool_uncharge(s, 1);
        share_drop(share_mfn_of(s, e, type), s->id, gfn.v);
    } else if (type == P2M_IMAGE_RO) {
        __atomic_fetch_sub(&frame_of(s->format->mfn_of(e))->refs, 1, __ATOMIC_RELEASE);
    } else if (type != P2M_ZERO_RO) {
        return;
    }
    pool_settle(s, 1);
}

/* Frees what a table of this level leads to, then the table. Level-2 entries have been cut off before and lead nowhere. */
static void free_table(struct dmm_space *s, mfn_t table, unsigned level)
{
    const p2m_entry_t *t = mfn_to_hva(table);
    for (unsigned n = 0; n < LARGE_PAGES && level > 2; n++)
        if (s->format->type_of(t[n], level) == P2M_TABLE)
            free_table(s, s->format->mfn_of(t[n]), level - 1);
    frame_free(table, 0);
}

/* Cuts every region off at level 2 and has all CPUs forget: nobody but us can reach what is below. */
static void detach_all(struct dmm_space *s)
{
    for (uint64_t n = 0; n < s->region_count; n++) {
        struct region *r = &s->regions[n];
        enum p2m_type type = r->l2e ? s->format->type_of(p2m_read(r->l2e), 2) : P2M_HOLE;
        if (type == P2M_TABLE || type == P2M_RW)
            r->detached = p2m_transition(s, r->l2e, 2, type, P2M_EMPTY, s->empty);
    }
    dmm_flush_wait(s);
}

/* A detached region goes back to what add_ram_region() made: EMPTY throughout, or a table of EMPTY and HOLE. */
static void renew_region(struct dmm_space *s, struct region *r)
{
    uint64_t first = (uint64_t)(r - s->regions) * LARGE_PAGES;
    for (unsigned k = 0; r->l1 && k < LARGE_PAGES; k++) {
        p2m_entry_t e = p2m_read(&r->l1[k]);
        enum p2m_type type = s->format->type_of(e, 1);
        if (type == P2M_HOLE || type == P2M_EMPTY)
            continue;
        p2m_transition(s, &r->l1[k], 1, type, P2M_EMPTY, s->empty);
        drop_entry(s, gfn_of(first + k), e, 1);
    }
    if (!r->l1) {
        drop_entry(s, gfn_of(first), r->detached, 2);
    } else if (r->ram_pages == LARGE_PAGES) {
        frame_free(hva_to_mfn(r->l1), 0);
        r->l1 = NULL;
    } else {
        p2m_transition(s, r->l2e, 2, P2M_EMPTY, P2M_TABLE, r->detached);
    }
    r->detached = 0;
    r->filled_pages = 0;
    r->breaks = 0;
    r->note = 0;
}

void dmm_space_clear(struct dmm_space *s)
{
    pool_close(s);
    bool outermost = dmm_enter();
    detach_all(s);
    for (uint64_t n = 0; n < s->region_count; n++)
        if (s->regions[n].l2e)
            renew_region(s, &s->regions[n]);
    s->last_gfn = UINT64_MAX - 1;
    s->streak = 0;
    dmm_leave(outermost);
    pool_open(s);
    dmm_wake_memory_waiters();
}

void dmm_space_destroy(struct dmm_space *s)
{
    pool_close(s);
    bool outermost = dmm_enter();
    detach_all(s);
    for (uint64_t n = 0; n < s->region_count; n++) {
        struct region *r = &s->regions[n];
        for (unsigned k = 0; r->l1 && k < LARGE_PAGES; k++)
            drop_entry(s, gfn_of(n * LARGE_PAGES + k), r->l1[k], 1);
        if (r->l1)
            frame_free(hva_to_mfn(r->l1), 0);
        else
            drop_entry(s, gfn_of(n * LARGE_PAGES), r->detached, 2);
    }
    free_table(s, s->root, 4);
    for (unsigned t = 0; t < FRAME_TYPE_COUNT; t++)
        if (s->frames[t])
            panic("vm%u (%s): %lu %s frames are still owned at its end", s->vm_id, s->name, (unsigned long)s->frames[t],
                  frame_type_name(t));
    pool_list_remove(s);
    pool_dismiss(s);
    dmm_leave(outermost);
    kfree(s->regions);
    kfree(s);
    dmm_wake_memory_waiters();
}

/* ---- accounting ----------------------------------------------------------------------------------------------- */

void dmm_space_usage(const struct dmm_space *s, struct dmm_usage *out)
{
    *out = (struct dmm_usage){
        .configured = s->pages, .resident = s->entries[P2M_RW], .resident_large = s->large_pages,
        .image_shared = s->entries[P2M_IMAGE_RO], .shared = s->entries[P2M_SHARED_RO], .zero = s->entries[P2M_ZERO_RO],
        .pinned = s->pinned_pages, .p2m_pages = s->frames[FRAME_P2M], .state_pages = s->frames[FRAME_VM_STATE],
        .min = s->min_pages, .max = s->max_pages, .charged = s->charged, .heap_bytes = s->heap_bytes,
        .sealed = s->entries[P2M_SEALED], .covered = s->hard + s->soft,
    };
    out->shared += out->sealed;
    out->empty = s->ram_pages - out->resident - out->image_shared - out->shared - out->zero;
}

void dmm_space_add_overhead(struct dmm_space *s, uint64_t heap_bytes) { s->heap_bytes += heap_bytes; }

struct cause_sum { enum dmm_fault_cause cause; struct dmm_hist hist; };

static bool add_hist(struct dmm_space *s, void *arg)
{
    struct cause_sum *sum = arg;
    dmm_hist_merge(&sum->hist, &s->hist[sum->cause]);
    return true;
}

void dmm_fault_summary(const struct dmm_space *s, enum dmm_fault_cause c, struct dmm_hist_summary *out)
{
    struct cause_sum sum = { .cause = c };
    if (s)
        dmm_hist_merge(&sum.hist, &s->hist[c]);
    else
        dmm_for_each_space(add_hist, &sum);
    dmm_hist_summarize(&sum.hist, out);
}
