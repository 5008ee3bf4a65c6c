/*
 * Spaces: making one, declaring its RAM, taking it apart.
 *
 * Declaring RAM costs nothing but a note of the range: regions, 64 bytes for 2 MiB, and the upper tables appear in chunks of 128 MiB with the first
 * access (region_build()), level-1 tables with the first 4 KiB page that is mapped. Taking apart follows the one order in which a frame may
 * leave (docs/memory-states.md): all regions are cut off at level 2, every CPU forgets, and then the frames are given back from the
 * tables, which nobody but us can reach any more.
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
           p2m_type_of(f, f->make_leaf(P2M_RW, m, 1)) == P2M_RW && mfn_eq(p2m_mfn_of(f->make_leaf(P2M_RW, m, 1)), m) &&
           f->type_of(0, 1) == P2M_HOLE && f->type_of(0, 4) == P2M_HOLE;
}

void space_kick_nobody(void *owner UNUSED, bool wait UNUSED) {}

enum dmm_create_result dmm_space_create(const struct dmm_space_config *cfg, struct dmm_space **out)
{
    hv_assert(format_is_linear(cfg->format));
    struct dmm_space *s = kzalloc(sizeof(*s));
    if (!s)
        return DMM_CREATE_NO_MEMORY;
    s->format = cfg->format;
    s->empty = cfg->format->make_nonpresent(P2M_EMPTY, 0);
    s->rw_4k = cfg->format->make_leaf(P2M_RW, mfn_of(0), 1);
    s->type_mask = UINT64_C(15) << cfg->format->type_shift;
    s->shared_ro = (p2m_entry_t)P2M_SHARED_RO << cfg->format->type_shift;
    s->heap_bytes = sizeof(*s);
    s->vm_id = cfg->vm_id;
    s->pages = cfg->pages;
    s->min_pages = cfg->min_pages;
    s->max_pages = cfg->max_pages ? MIN(cfg->max_pages, cfg->pages) : cfg->pages;
    s->weight = cfg->weight;
    s->kick = cfg->ops && cfg->ops->kick ? cfg->ops->kick : space_kick_nobody;
    s->log_writes = cfg->ops ? cfg->ops->log_writes : NULL;
    s->owner = cfg->owner;
    s->translation.generation = 1; /* a vCPU that has flushed for nothing yet says 0 */
    s->last_gfn = UINT64_MAX - 1;
    str_copy(s->name, sizeof(s->name), cfg->name);
    waitq_init(&s->moving);
    spin_init(&s->build_lock, LOCK_RANK_SPACE, "space");
    pool_cover_init(s);
    s->class = cfg->class;
    s->covered = cfg->class != DMM_CLASS_BEST_EFFORT || cfg->min_pages;
    s->group = cfg->group;
    s->domain = cfg->group ? cfg->group : DMM_GROUP_MAX + __atomic_add_fetch(&domains, 1, __ATOMIC_RELAXED);

    if (!pool_admit(s)) {
        kfree(s);
        return DMM_CREATE_OVERCOMMITTED_MIN;
    }
    bool outermost = dmm_enter(); /* an audit must not meet a listed space without a root */
    mfn_t root = INVALID_MFN;
    if (pool_list_add(s)) {
        root = frame_alloc(0, FRAME_ZEROED, FRAME_P2M, s);
        s->translation.root_hpa = mfn_to_hpa(root);
        if (!mfn_valid(root))
            pool_list_remove(s);
    }
    dmm_leave(outermost);
    if (!mfn_valid(root)) {
        pool_dismiss(s);
        kfree(s);
        return DMM_CREATE_NO_MEMORY;
    }
    *out = s;
    return DMM_CREATE_OK;
}

/* Room for chunks up to gfn `end`. Nobody else uses the space yet. */
static bool grow_chunks(struct dmm_space *s, uint64_t end)
{
    uint64_t regions = (end + LARGE_PAGES - 1) / LARGE_PAGES;
    uint64_t had = (s->region_count + CHUNK_REGIONS - 1) / CHUNK_REGIONS, count = (regions + CHUNK_REGIONS - 1) / CHUNK_REGIONS;
    if (count > had) {
        struct region **grown = kzalloc(count * sizeof(*grown));
        if (!grown)
            return false;
        if (had)
            memcpy(grown, s->chunks, had * sizeof(*grown));
        s->heap_bytes += (count - had) * sizeof(*grown);
        kfree(s->chunks);
        s->chunks = grown;
    }
    s->region_count = MAX(s->region_count, regions);
    return true;
}

uint64_t space_ram_in(const struct dmm_space *s, uint64_t first, uint64_t end)
{
    uint64_t pages = 0;
    for (unsigned n = 0; n < s->ram_ranges; n++) {
        uint64_t from = MAX(first, s->ram[n].first), to = MIN(end, s->ram[n].end);
        pages += to > from ? to - from : 0;
    }
    return pages;
}

bool dmm_space_add_ram(struct dmm_space *s, gfn_t first, uint64_t pages)
{
    uint64_t end = first.v + pages;
    if (pages == 0 || end < first.v || end > UINT64_C(1) << 36 || pages > s->pages - s->ram_pages || s->ram_ranges == DMM_RAM_RANGES ||
        space_ram_in(s, first.v, end) || !grow_chunks(s, end))
        return false;
    s->ram[s->ram_ranges++] = (struct ram_range){ first.v, end };
    s->ram_pages += pages;
    return true;
}

bool dmm_gfn_is_ram(const struct dmm_space *s, gfn_t gfn)
{
    for (unsigned n = 0; n < s->ram_ranges; n++)
        if (gfn.v >= s->ram[n].first && gfn.v < s->ram[n].end)
            return true;
    return false;
}

/* ---- regions ------------------------------------------------------------------------------------------------------- */

p2m_entry_t *space_new_table(struct dmm_space *s, uint64_t n)
{
    mfn_t m = frame_alloc(0, FRAME_ZEROED, FRAME_P2M, s);
    if (!mfn_valid(m))
        return NULL;
    p2m_entry_t *l1 = mfn_to_hva(m);
    for (uint64_t g = n * LARGE_PAGES; g < (n + 1) * LARGE_PAGES; g++)
        if (dmm_gfn_is_ram(s, gfn_of(g)))
            p2m_transition(s, &l1[g % LARGE_PAGES], 1, P2M_HOLE, P2M_EMPTY, s->empty);
    return l1;
}

/* What the region needs: its level-2 entry, and level-1 entries if it is RAM in part. An heir does not know its share of RAM apart: it inherits the
 * region. False: out of frames. build_lock held. */
static bool prepare_region(struct dmm_space *s, uint64_t n, struct region *r)
{
    spin_init(&r->lock, LOCK_RANK_P2M, "p2m region");
    r->ram_pages = (uint16_t)space_ram_in(s, n * LARGE_PAGES, (n + 1) * LARGE_PAGES);
    if (!r->ram_pages)
        return true;
    r->l2e = p2m_build_level2(s, gfn_of(n * LARGE_PAGES));
    if (!r->l2e)
        return false;
    if (!s->base && r->ram_pages < LARGE_PAGES)
        r->l1 = space_new_table(s, n);
    return s->base || r->l1 || r->ram_pages == LARGE_PAGES;
}

static void link_region(struct dmm_space *s, struct region *r)
{
    if (s->base)
        p2m_transition(s, r->l2e, 2, P2M_HOLE, P2M_INHERITED, s->format->make_nonpresent(P2M_INHERITED, 0));
    else if (r->l1)
        p2m_transition(s, r->l2e, 2, P2M_HOLE, P2M_TABLE, s->format->make_table(mfn_to_hpa(hva_to_mfn(r->l1))));
    else
        p2m_transition(s, r->l2e, 2, P2M_HOLE, P2M_EMPTY, s->empty);
}

/* CPUs may walk to level 2 of it meanwhile, and nobody looks for level-1 tables but by their region: so none is linked before all that the chunk needs is
 * there. Upper tables stay for the next attempt. */
static bool make_chunk(struct dmm_space *s, uint64_t first, struct region *chunk)
{
    uint64_t made = 0;
    while (made < CHUNK_REGIONS && prepare_region(s, first + made, &chunk[made]))
        made++;
    for (uint64_t k = 0; k < CHUNK_REGIONS; k++) {
        if (made == CHUNK_REGIONS && chunk[k].l2e)
            link_region(s, &chunk[k]);
        else if (made < CHUNK_REGIONS && chunk[k].l1)
            frame_free(hva_to_mfn(chunk[k].l1), 0);
    }
    return made == CHUNK_REGIONS;
}

struct region *region_build(struct dmm_space *s, gfn_t gfn)
{
    uint64_t n = gfn.v / LARGE_PAGES, first = ALIGN_DOWN(n, CHUNK_REGIONS);
    spin_lock(&s->build_lock);
    if (!s->chunks[n / CHUNK_REGIONS]) {
        mfn_t m = frame_alloc(0, FRAME_ZEROED, FRAME_P2M, s);
        struct region *chunk = mfn_valid(m) ? mfn_to_hva(m) : NULL;
        if (chunk && make_chunk(s, first, chunk))
            __atomic_store_n(&s->chunks[n / CHUNK_REGIONS], chunk, __ATOMIC_RELEASE);
        else if (chunk)
            frame_free(m, 0);
    }
    spin_unlock(&s->build_lock);
    return region_of(s, gfn);
}

uint64_t dmm_space_end_gfn(const struct dmm_space *s) { return s->region_count * LARGE_PAGES; }
const char *dmm_space_name(const struct dmm_space *s) { return s->name; }
uint32_t dmm_space_vm_id(const struct dmm_space *s) { return s->vm_id; }

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

/* Frees the tables that a table of this level leads to. Level-2 entries have been cut off before and lead nowhere. */
static void free_tables_below(struct dmm_space *s, mfn_t table, unsigned level)
{
    const p2m_entry_t *t = mfn_to_hva(table);
    for (unsigned n = 0; n < LARGE_PAGES && level > 2; n++)
        if (s->format->type_of(t[n], level) == P2M_TABLE) {
            free_tables_below(s, s->format->mfn_of(t[n]), level - 1);
            frame_free(s->format->mfn_of(t[n]), 0);
        }
}

void region_drop(struct dmm_space *s, uint64_t n, struct region *r, p2m_entry_t e)
{
    for (unsigned k = 0; r->l1 && k < LARGE_PAGES; k++)
        drop_entry(s, gfn_of(n * LARGE_PAGES + k), r->l1[k], 1);
    if (r->l1)
        frame_free(hva_to_mfn(r->l1), 0);
    else
        drop_entry(s, gfn_of(n * LARGE_PAGES), e, 2);
    r->l1 = NULL;
}

/* Its entries are given up with their table: pages by state are counted off here. */
static void uncount_table(struct dmm_space *s, const struct region *r)
{
    for (unsigned k = 0; k < LARGE_PAGES; k++) {
        enum p2m_type type = s->format->type_of(r->l1[k], 1);
        if (type > P2M_EMPTY)
            __atomic_fetch_sub(&s->entries[type], 1, __ATOMIC_RELAXED);
    }
}

void space_each_region(struct dmm_space *s, void (*fn)(struct dmm_space *s, uint64_t n, struct region *r))
{
    for (uint64_t n = 0; n < s->region_count; n++) {
        struct region *chunk = __atomic_load_n(&s->chunks[n / CHUNK_REGIONS], __ATOMIC_ACQUIRE);
        if (!chunk)
            n |= CHUNK_REGIONS - 1;
        else if (chunk[n % CHUNK_REGIONS].l2e)
            fn(s, n, &chunk[n % CHUNK_REGIONS]);
    }
}

static void detach(struct dmm_space *s, uint64_t n, struct region *r)
{
    enum p2m_type type = s->format->type_of(p2m_read(r->l2e), 2);
    (void)n;
    r->detached = 0;
    if (type == P2M_TABLE || type == P2M_RW)
        r->detached = p2m_transition(s, r->l2e, 2, type, P2M_EMPTY, s->empty);
}

static void drop_detached(struct dmm_space *s, uint64_t n, struct region *r)
{
    if (r->l1)
        uncount_table(s, r);
    region_drop(s, n, r, r->detached);
}

/* Everything but the root goes: the space is as if its RAM had just been declared. In this order: nobody can find a frame, no CPU knows one, it is
 * given back. */
static void make_empty(struct dmm_space *s)
{
    space_each_region(s, detach);
    __atomic_fetch_add(&s->translation.generation, 1, __ATOMIC_SEQ_CST); /* for the upper tables, whatever they lead to */
    dmm_flush_wait(s);
    share_drop_unsealed(); /* before its id can become another's */
    if (s->base)
        image_depart(s);
    space_each_region(s, drop_detached);
    free_tables_below(s, space_root(s), 4);
    memset(mfn_to_hva(space_root(s)), 0, PAGE_SIZE);
    for (uint64_t k = 0; k * CHUNK_REGIONS < s->region_count; k++)
        if (s->chunks[k]) {
            frame_free(hva_to_mfn(s->chunks[k]), 0);
            s->chunks[k] = NULL;
        }
    s->last_gfn = UINT64_MAX - 1;
    s->streak = 0;
}

void dmm_space_clear(struct dmm_space *s)
{
    pool_close(s);
    bool outermost = dmm_enter();
    make_empty(s);
    dmm_leave(outermost);
    pool_open(s);
    dmm_wake_memory_waiters();
}

void space_destroy(struct dmm_space *s)
{
    bool outermost = dmm_enter();
    write_log_forget(s);
    make_empty(s);
    frame_free(space_root(s), 0);
    for (unsigned t = 0; t < FRAME_TYPE_COUNT; t++)
        if (s->frames[t])
            panic("vm%u (%s): %lu %s frames are still owned at its end", s->vm_id, s->name, (unsigned long)s->frames[t],
                  frame_type_name(t));
    dmm_set_class(s, DMM_CLASS_BEST_EFFORT, NULL);
    pool_list_remove(s);
    pool_dismiss(s);
    dmm_leave(outermost);
    kfree(s->chunks);
    kfree(s);
    dmm_wake_memory_waiters();
}

void dmm_space_close(struct dmm_space *s) { pool_close(s); }

void dmm_space_destroy(struct dmm_space *s)
{
    pool_close(s);
    space_destroy(s);
}

/* ---- accounting ----------------------------------------------------------------------------------------------- */

/* Those that the image has something for. */
static uint64_t inherited_pages(const struct dmm_space *s) { return __atomic_load_n(&s->inherited_owed, __ATOMIC_RELAXED); }

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
    out->inherited = inherited_pages(s);
    out->empty = s->ram_pages - out->resident - out->image_shared - out->shared - out->zero - out->inherited;
}

void dmm_space_add_overhead(struct dmm_space *s, uint64_t heap_bytes) { __atomic_fetch_add(&s->heap_bytes, heap_bytes, __ATOMIC_RELAXED); }

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
