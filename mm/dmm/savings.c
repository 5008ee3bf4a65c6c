/*
 * What sharing saves: the pages of all VMs that read as something, less the frames that they have.
 *
 * Each of these pages would need a frame if VMs shared nothing, not even the zero page and boot files. A page is on a frame of its VM's own, or it is
 * owed one, and what is owed is counted anyway (pool.c). The frames behind the owed ones are not as easily counted: a shared frame may be there for
 * an image only, whose heirs have all taken the region over and written to the page; it is no VM's, and no cost of sharing either. And what an image has
 * alone may be a page of ten VMs that have not looked at it since the fork. So the regions of images that some VM still inherits are marked
 * (`note`, which in an image nobody uses otherwise), and the frames that only the others have are counted off, each once: where the lowest of its users is.
 *
 * A walk over the pages of images is fine for a command. While VMs run, its parts are of several moments.
 */
#include "mm/dmm/rmap.h"
#include "mm/dmm/share.h"

/* Calls fn for every region of every image, which cannot go meanwhile. */
static void each_region(void (*fn)(struct dmm_space *image, uint64_t n, struct region *r, uint64_t *sum), uint64_t *sum)
{
    for (unsigned id = 1; id <= DMM_MAX_SPACES; id++) {
        struct dmm_space *image = pool_hold_image(id);
        bool outermost = dmm_enter();
        for (uint64_t n = 0; image && n < image->region_count; n++) {
            struct region *r = region_of(image, gfn_of(n * LARGE_PAGES));
            if (r)
                fn(image, n, r, sum);
        }
        if (image)
            image_release(image);
        dmm_leave(outermost);
    }
}

static void unmark(struct dmm_space *image UNUSED, uint64_t n UNUSED, struct region *r, uint64_t *sum UNUSED) { r->note = 0; }

/* Adds what the space is owed, and marks what it inherits. */
static bool add_space(struct dmm_space *listed, void *arg)
{
    uint64_t *pages = arg;
    struct dmm_space *s = dmm_space_acquire(listed->id);
    if (!s)
        return true;
    *pages += s->owed;
    for (uint64_t n = 0; s->base && n < s->region_count; n++) {
        struct region *r = region_place(s, gfn_of(n * LARGE_PAGES)), *from = NULL;
        if (!r || (r->l2e && s->format->type_of(p2m_read(r->l2e), 2) == P2M_INHERITED))
            image_of(s, n, &from);
        if (from)
            from->note = 1;
    }
    dmm_space_release(s);
    return true;
}

struct look { uint64_t self; bool needed, lower; };

static void look_at_user(uint16_t id, uint64_t gfn, void *arg)
{
    struct look *k = arg;
    const struct dmm_space *s = space_of_id(id);
    const struct region *r = s ? region_of(s, gfn_of(gfn)) : NULL;
    k->needed |= s && (!s->frozen || (r && r->note));
    k->lower |= rmap_user(id, gfn) < k->self;
}

/* Is it there for images only, in regions that no VM inherits, and this its lowest user? */
static bool only_here(mfn_t m, uint16_t id, uint64_t gfn)
{
    struct look k = { .self = rmap_user(id, gfn) };
    share_lock(m);
    rmap_each(frame_of(m), look_at_user, &k);
    share_unlock(m);
    return !k.needed && !k.lower;
}

/* Of one page of an image: does it have a frame that some VM has through it alone (+1), or one that no VM has (-1)? All others are counted as shared. */
static int64_t frame_counts(const struct dmm_space *image, uint64_t gfn, p2m_entry_t e, bool inherited)
{
    enum p2m_type type = image->format->type_of(e, 1);
    if (type == P2M_RW)
        return inherited;
    if (inherited || (type != P2M_SHARED_RO && type != P2M_SEALED))
        return 0;
    return -(int64_t)only_here(share_mfn_of(image, e, type), image->id, gfn);
}

static void add_region(struct dmm_space *image, uint64_t n, struct region *r, uint64_t *frames)
{
    spin_lock(&image->image_lock);
    if (!r->l1 && image->format->type_of(p2m_read(r->l2e), 2) == P2M_RW)
        *frames += r->note ? LARGE_PAGES : 0;
    for (unsigned k = 0; r->l1 && k < LARGE_PAGES; k++)
        *frames += (uint64_t)frame_counts(image, n * LARGE_PAGES + k, p2m_read(&r->l1[k]), r->note);
    spin_unlock(&image->image_lock);
}

uint64_t dmm_saved_pages(void)
{
    share_drop_unsealed();
    uint64_t pages = 0, frames = frame_count(FRAME_SHARED);
    each_region(unmark, NULL);
    dmm_for_each_space(add_space, &pages);
    each_region(add_region, &frames);
    return pages > frames ? pages - frames : 0;
}
