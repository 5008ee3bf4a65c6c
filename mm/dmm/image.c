/*
 * Images: what a space held at one moment, for its heirs.
 *
 * Copying a p2m to fork a VM takes a time that grows with the VM, most of it for pages that neither side writes to before it ends. Here a fork
 * copies nothing. The tables of the space become an image, which no CPU runs and nobody writes to; the space itself goes on with an empty root, an heir of the
 * image like its children. When an heir first touches a 2 MiB region that it has not got, it takes it over: 512 entries are copied, each frame
 * becomes shared by the image and the heir, and from there on everything is copy on write (share.c). A region that all heirs have taken
 * is dropped from the image, so that the frames are theirs alone again and the last user writes in place. Images inherit from images: an heir looks along
 * the line for the first that has the region. A line that gets too long is cut by taking over everything at once.
 *
 * Frames keep their owner's id when they are frozen, which would otherwise be work for each of them: the image takes over the id of the space, which
 * gets a new one. (Frames of a VM's control blocks have a number of their own for this reason.)
 *
 * Locks: an heir's region lock, then the image's lock. What an image has never changes but in two ways, both under its lock: RW becomes SHARED_RO
 * when it is taken, and a region is dropped that no heir can want any more.
 */
#include "core/log.h"
#include "mm/dmm/rmap.h"
#include "mm/dmm/share.h"
#include "lib/string.h"
#include "mm/mm.h"

#define DEPTH_MAX 12u

/* An image is a space; to others it is something else. */
static struct dmm_space *space_of(struct dmm_image *image) { return (struct dmm_space *)image; }
static struct dmm_image *image_handle(struct dmm_space *s) { return (struct dmm_image *)s; }

static enum p2m_type region_type(const struct dmm_space *s, const struct region *r) { return s->format->type_of(p2m_read(r->l2e), 2); }

static struct region *region_number(const struct dmm_space *s, uint64_t n) { return region_of(s, gfn_of(n * LARGE_PAGES)); }

struct dmm_space *image_of(const struct dmm_space *s, uint64_t n, struct region **r)
{
    for (struct dmm_space *b = s->base; b; b = b->base) {
        *r = region_number(b, n);
        if (*r && region_type(b, *r) != P2M_INHERITED)
            return b;
    }
    *r = NULL;
    return NULL;
}

/* ---- taking over ---------------------------------------------------------------------------------------------------- */

/* Pages of what was taken, by what they count as. */
struct taken { uint64_t charged, owed; };

/* The image's frame has as many users as it can: the heir gets a copy. */
static bool take_copy(struct dmm_space *s, p2m_entry_t *slot, uint64_t gfn, mfn_t from, struct taken *t)
{
    mfn_t m = frame_alloc_noting(0, FRAME_GUEST, s, gfn).mfn;
    if (!mfn_valid(m))
        return false;
    copy_page(mfn_to_hva(m), mfn_to_hva(from));
    p2m_transition(s, slot, 1, P2M_EMPTY, P2M_RW, s->rw_4k + mfn_to_hpa(m));
    pool_settle(s, 1); /* it was owed as one of the image's */
    t->charged++;
    t->owed++;
    return true;
}

/* A page of the image that has a frame. Image locked. */
static bool take_frame(struct dmm_space *s, p2m_entry_t *slot, uint64_t gfn, struct dmm_space *image, p2m_entry_t *from, struct taken *t)
{
    enum p2m_type type = image->format->type_of(p2m_read(from), 1);
    if (type == P2M_RW) {
        share_protect(image, from, gfn_of(gfn));
        type = P2M_SHARED_RO;
    }
    mfn_t m = share_mfn_of(image, p2m_read(from), type);
    share_lock(m);
    enum rmap_result joined = rmap_add(frame_of(m), s->id, gfn);
    share_unlock(m);
    if (joined == RMAP_FULL)
        return take_copy(s, slot, gfn, m, t);
    if (joined != RMAP_OK)
        return false;
    if (type == P2M_SEALED)
        p2m_transition(s, slot, 1, P2M_EMPTY, P2M_SEALED, s->format->make_nonpresent(P2M_SEALED, m.v));
    else
        p2m_transition(s, slot, 1, P2M_EMPTY, P2M_SHARED_RO, s->format->make_leaf(P2M_SHARED_RO, m, 1));
    t->charged++;
    t->owed++;
    return true;
}

static bool take_page(struct dmm_space *s, p2m_entry_t *slot, uint64_t gfn, struct dmm_space *image, p2m_entry_t *from, struct taken *t)
{
    p2m_entry_t e = p2m_read(from);
    mfn_t m;
    switch (image->format->type_of(e, 1)) {
    case P2M_RW:
    case P2M_SHARED_RO:
    case P2M_SEALED:
        return take_frame(s, slot, gfn, image, from, t);
    case P2M_ZERO_RO:
        p2m_transition(s, slot, 1, P2M_EMPTY, P2M_ZERO_RO, s->format->make_leaf(P2M_ZERO_RO, dmm_zero_mfn, 1));
        t->owed++;
        return true;
    case P2M_IMAGE_RO:
        m = image->format->mfn_of(e);
        __atomic_fetch_add(&frame_of(m)->refs, 1, __ATOMIC_RELAXED);
        p2m_transition(s, slot, 1, P2M_EMPTY, P2M_IMAGE_RO, s->format->make_leaf(P2M_IMAGE_RO, m, 1));
        t->owed++;
        return true;
    default:
        return true; /* EMPTY */
    }
}

/* Out of frames half-way: no CPU has seen the table. */
static void give_back(struct dmm_space *s, p2m_entry_t *l1, uint64_t n)
{
    for (unsigned k = 0; k < LARGE_PAGES; k++) {
        p2m_entry_t e = p2m_read(&l1[k]);
        enum p2m_type type = s->format->type_of(e, 1);
        if (type <= P2M_EMPTY)
            continue;
        p2m_transition(s, &l1[k], 1, type, P2M_EMPTY, s->empty);
        if (type == P2M_RW) {
            frame_free(s->format->mfn_of(e), 0);
            pool_owe(s, 1);
        } else if (type == P2M_SHARED_RO || type == P2M_SEALED) {
            share_drop(share_mfn_of(s, e, type), s->id, n * LARGE_PAGES + k);
        } else if (type == P2M_IMAGE_RO) {
            __atomic_fetch_sub(&frame_of(s->format->mfn_of(e))->refs, 1, __ATOMIC_RELEASE);
        }
    }
    frame_free(hva_to_mfn(l1), 0);
}

/* No heir inherits this region any more. Image locked. */
static void drop_region(struct dmm_space *image, uint64_t n, struct region *r)
{
    for (unsigned k = 0; k < LARGE_PAGES; k++) {
        enum p2m_type type = image->format->type_of(r->l1[k], 1);
        if (type > P2M_EMPTY)
            __atomic_fetch_sub(&image->entries[type], 1, __ATOMIC_RELAXED);
    }
    p2m_transition(image, r->l2e, 2, P2M_TABLE, P2M_EMPTY, image->empty);
    region_drop(image, n, r, image->empty);
    r->filled_pages = 0;
    image->taken_sum -= r->taken;
    r->taken = 0;
}

/* One more heir has it. Image locked. */
static void count_taken(struct dmm_space *image, uint64_t n, struct region *r)
{
    image->taken_sum++;
    if (++r->taken == image->heirs)
        drop_region(image, n, r);
}

/* What the image has for region n into l1. Image locked. */
static bool take_pages(struct dmm_space *s, p2m_entry_t *l1, uint64_t n, struct dmm_space *image, struct region *from, struct taken *t)
{
    if (!from->l1 && p2m_break(image, from) != DMM_RESIZE_OK)
        return false;
    for (unsigned k = 0; k < LARGE_PAGES; k++)
        if (!take_page(s, &l1[k], n * LARGE_PAGES + k, image, &from->l1[k], t))
            return false;
    return true;
}

static void link_table(struct dmm_space *s, struct region *r, p2m_entry_t *l1, const struct taken *t)
{
    p2m_transition(s, r->l2e, 2, P2M_INHERITED, P2M_TABLE, s->format->make_table(mfn_to_hpa(hva_to_mfn(l1))));
    r->l1 = l1;
    r->filled_pages = (uint16_t)t->owed;
    __atomic_fetch_sub(&s->inherited_charge, t->charged, __ATOMIC_RELAXED);
    __atomic_fetch_sub(&s->inherited_owed, t->owed, __ATOMIC_RELAXED);
}

bool image_take_region(struct dmm_space *s, struct region *r, uint64_t n)
{
    struct region *from;
    struct dmm_space *image = image_of(s, n, &from);
    struct taken t = { 0 };
    bool nothing = !image || (!from->l1 && region_type(image, from) == P2M_EMPTY);
    if (nothing && r->ram_pages == LARGE_PAGES) {
        p2m_transition(s, r->l2e, 2, P2M_INHERITED, P2M_EMPTY, s->empty);
        return true;
    }
    p2m_entry_t *l1 = space_new_table(s, n);
    if (!l1)
        return false;
    if (!nothing) {
        spin_lock(&image->image_lock);
        bool ok = take_pages(s, l1, n, image, from, &t);
        if (ok)
            link_table(s, r, l1, &t);
        if (ok && image == s->base)
            count_taken(image, n, from);
        spin_unlock(&image->image_lock);
        if (!ok)
            give_back(s, l1, n);
        return ok;
    }
    link_table(s, r, l1, &t);
    return true;
}

/* Reads through the line of images; no frame is needed for it. `r` is the heir's region, NULL if it has none; locked otherwise. */
static void read_inherited(struct dmm_space *s, gfn_t gfn, unsigned offset, void *buf, size_t len)
{
    struct region *from;
    struct dmm_space *image = image_of(s, gfn.v / LARGE_PAGES, &from);
    memset(buf, 0, len);
    if (!image)
        return;
    spin_lock(&image->image_lock);
    unsigned level;
    p2m_entry_t e = p2m_read(p2m_leaf(from, gfn, &level));
    enum p2m_type type = image->format->type_of(e, level);
    if (type > P2M_TABLE || type == P2M_SEALED) {
        mfn_t m = mfn_add(share_mfn_of(image, e, type), level == 2 ? gfn.v % LARGE_PAGES : 0);
        memcpy(buf, (const uint8_t *)mfn_to_hva(m) + offset, len);
    }
    spin_unlock(&image->image_lock);
}

bool image_read(struct dmm_space *s, gfn_t gfn, unsigned offset, void *buf, size_t len)
{
    bool outermost = dmm_enter();
    struct region *r = region_of(s, gfn);
    struct spinlock *lock = r ? &r->lock : &s->build_lock; /* whichever a taker needs first */
    spin_lock(lock);
    bool inherited = r ? region_type(s, r) == P2M_INHERITED : !region_of(s, gfn);
    if (inherited)
        read_inherited(s, gfn, offset, buf, len);
    spin_unlock(lock);
    dmm_leave(outermost);
    return inherited;
}

/* ---- heirs come and go -------------------------------------------------------------------------------------------------- */

/* With one heir less, are there regions that all that are left have taken? */
static void drop_taken(struct dmm_space *image)
{
    for (uint64_t n = 0; n < image->region_count; n++) {
        struct region *r = region_number(image, n);
        if (!r || !r->l1)
            continue;
        spin_lock(&image->image_lock);
        if (r->l1 && r->taken == image->heirs)
            drop_region(image, n, r);
        spin_unlock(&image->image_lock);
    }
}

void image_release(struct dmm_space *image)
{
    spin_lock(&image->image_lock);
    unsigned left = --image->heirs;
    bool any_taken = image->taken_sum;
    spin_unlock(&image->image_lock);
    if (!left)
        space_destroy(image);
    else if (any_taken)
        drop_taken(image);
}

void image_depart(struct dmm_space *s)
{
    struct dmm_space *image = s->base;
    for (uint64_t n = 0; n < s->region_count; n++) {
        struct region *r = region_number(s, n), *from = region_number(image, n);
        if (!r || !from || region_type(s, r) == P2M_INHERITED)
            continue;
        spin_lock(&image->image_lock);
        if (from->l1) { /* dropped ones count no more */
            from->taken--;
            image->taken_sum--;
        }
        spin_unlock(&image->image_lock);
    }
    uint64_t charged = s->inherited_charge, owed = s->inherited_owed;
    s->base = NULL;
    s->depth = 0;
    s->inherited_charge = s->inherited_owed = 0;
    pool_uncharge(s, charged);
    pool_settle(s, owed);
    image_release(image);
}

static void join_heirs(struct dmm_space *s, struct dmm_space *image)
{
    spin_lock(&image->image_lock);
    image->heirs++;
    spin_unlock(&image->image_lock);
    s->base = image;
    s->depth = image->depth + 1;
    s->inherited_charge = image->charged;
    s->inherited_owed = image->frozen_owed;
}

/* Takes over everything that is still inherited: the space needs no image any more. False: out of frames. */
static bool take_all(struct dmm_space *s)
{
    for (uint64_t n = 0; n < s->region_count; n++) {
        gfn_t first = gfn_of(n * LARGE_PAGES);
        if (!space_ram_in(s, first.v, first.v + LARGE_PAGES))
            continue;
        struct region *r = region_of(s, first);
        if (!r && !(r = region_build(s, first)))
            return false;
        spin_lock(&r->lock);
        bool ok = region_type(s, r) != P2M_INHERITED || image_take_region(s, r, n);
        spin_unlock(&r->lock);
        if (!ok)
            return false;
    }
    image_depart(s);
    return true;
}

/* ---- freezing ------------------------------------------------------------------------------------------------------------- */

/* What was the space's memory is the image's from here on. */
static void move_to_image(struct dmm_space *s, struct dmm_space *image, mfn_t root, struct region **chunks)
{
    uint16_t image_id = image->id;
    uint64_t state_frames = s->frames[FRAME_VM_STATE];
    memcpy(image, s, IMAGE_BYTES);
    image->id = image_id;
    image->state_id = 0;
    spin_init(&image->build_lock, LOCK_RANK_SPACE, "space");
    spin_init(&image->image_lock, LOCK_RANK_IMAGE, "image");
    pool_cover_init(image);
    image->class = DMM_CLASS_BEST_EFFORT;
    image->covered = false;
    image->hard = image->soft = image->min_pages = 0;
    waitq_init(&image->moving);
    image->frozen = true;
    image->closed = true;
    image->kick = space_kick_nobody;
    image->log_writes = NULL;
    image->logs = false;
    image->owner = NULL;
    image->frames[FRAME_VM_STATE] = 0;
    image->heap_bytes = IMAGE_BYTES;
    image->taken_sum = 0;
    image->frozen_owed = s->entries[P2M_RW] + s->entries[P2M_SHARED_RO] + s->entries[P2M_SEALED] + s->entries[P2M_ZERO_RO] +
                         s->entries[P2M_IMAGE_RO] + s->inherited_owed;
    memset(s->frames, 0, sizeof(s->frames));
    memset(s->entries, 0, sizeof(s->entries));
    s->frames[FRAME_VM_STATE] = state_frames;
    s->frames[FRAME_P2M] = 1; /* the new root, which has been counted as one of the old ones */
    image->frames[FRAME_P2M]--;
    s->large_pages = 0;
    s->translation.root_hpa = mfn_to_hpa(root);
    s->chunks = chunks;
    s->last_gfn = UINT64_MAX - 1;
}

static enum dmm_freeze_result freeze(struct dmm_space *s, struct dmm_space **out)
{
    struct dmm_space *image = kzalloc(IMAGE_BYTES);
    struct region **chunks = kzalloc((s->region_count + CHUNK_REGIONS - 1) / CHUNK_REGIONS * sizeof(*chunks));
    mfn_t root = image && chunks ? frame_alloc(0, FRAME_ZEROED, FRAME_P2M, s) : INVALID_MFN;
    uint64_t alone = s->entries[P2M_RW];
    if (image)
        image->frozen = image->closed = true; /* nobody may acquire it once it is listed */
    if (!mfn_valid(root) || !pool_can_owe(s, alone) || !pool_list_split(s, image)) {
        if (mfn_valid(root))
            frame_free(root, 0);
        kfree(chunks);
        kfree(image);
        return DMM_FREEZE_NO_MEMORY;
    }
    frame_of(root)->owner = s->id;
    move_to_image(s, image, root, chunks);
    join_heirs(s, image);
    pool_owe(s, alone);
    __atomic_fetch_add(&s->translation.generation, 1, __ATOMIC_SEQ_CST);
    dmm_flush_wait(s);
    *out = image;
    return DMM_FREEZE_OK;
}

enum dmm_freeze_result dmm_space_freeze(struct dmm_space *s, struct dmm_image **out)
{
    enum dmm_freeze_result result = DMM_FREEZE_OK;
    struct dmm_space *image = NULL;
    bool untouched = s->base;
    pool_close(s);
    bool outermost = dmm_enter();
    for (uint64_t k = 0; untouched && k * CHUNK_REGIONS < s->region_count; k++)
        untouched = !s->chunks[k];
    if (s->pinned_pages)
        result = DMM_FREEZE_PINNED;
    else if (untouched)
        image = s->base; /* nothing has changed since the last time */
    else if (s->depth >= DEPTH_MAX && !take_all(s))
        result = DMM_FREEZE_NO_MEMORY;
    else
        result = freeze(s, &image);
    if (image) {
        spin_lock(&image->image_lock);
        image->heirs++; /* the caller */
        spin_unlock(&image->image_lock);
        *out = image_handle(image);
    }
    dmm_leave(outermost);
    pool_open(s);
    return result;
}

enum dmm_create_result dmm_space_create_from(const struct dmm_space_config *cfg, struct dmm_image *handle, struct dmm_space **out)
{
    struct dmm_space *image = space_of(handle), *s;
    enum dmm_create_result result = dmm_space_create(cfg, &s);
    if (result != DMM_CREATE_OK)
        return result;
    bool outermost = dmm_enter(), ok = image->charged <= s->max_pages && pool_can_owe(s, image->frozen_owed);
    for (unsigned n = 0; ok && n < image->ram_ranges; n++)
        ok = dmm_space_add_ram(s, gfn_of(image->ram[n].first), image->ram[n].end - image->ram[n].first);
    if (ok) {
        join_heirs(s, image);
        pool_inherit(s, image->charged);
        pool_owe(s, image->frozen_owed);
    }
    dmm_leave(outermost);
    if (!ok) {
        dmm_space_destroy(s);
        return DMM_CREATE_NO_MEMORY;
    }
    *out = s;
    return DMM_CREATE_OK;
}

bool dmm_space_restore(struct dmm_space *s, struct dmm_image *handle)
{
    struct dmm_space *image = space_of(handle);
    hv_assert(!s->pinned_pages && s->region_count == image->region_count);
    uint64_t more = image->frozen_owed - MIN(image->frozen_owed, s->hard); /* what is set aside for it now will be again */
    if (image->charged > s->max_pages || (more && !pool_can_owe(s, more)))
        return false;
    dmm_space_clear(s);
    bool outermost = dmm_enter();
    join_heirs(s, image);
    pool_inherit(s, image->charged);
    pool_owe(s, image->frozen_owed);
    dmm_leave(outermost);
    return true;
}

void dmm_image_release(struct dmm_image *handle)
{
    bool outermost = dmm_enter();
    image_release(space_of(handle));
    dmm_leave(outermost);
    dmm_wake_memory_waiters();
}

uint64_t dmm_image_pages(const struct dmm_image *handle)
{
    struct dmm_space *image = space_of((struct dmm_image *)(uintptr_t)handle);
    uint64_t pages = 0;
    for (uint64_t n = 0; n < image->region_count; n++) {
        bool outermost = dmm_enter();
        spin_lock(&image->image_lock);
        struct region *r = region_number(image, n);
        for (unsigned k = 0; r && r->l1 && k < LARGE_PAGES; k++)
            if (image->format->type_of(p2m_read(&r->l1[k]), 1) == P2M_SHARED_RO)
                pages += frame_of(image->format->mfn_of(p2m_read(&r->l1[k])))->refs == 1;
        spin_unlock(&image->image_lock);
        dmm_leave(outermost);
    }
    return pages + image->frames[FRAME_GUEST];
}
