/*
 * The bill: what a VM's memory costs the machine, to a thousandth of a frame.
 *
 * "Resident" counts a shared frame once for each of its users, so the sum over VMs is more than the machine has, and no VM's figure says what
 * the machine would gain if it went. Here a frame with n users costs each 1/n: the bills add up to the frames (but for what images keep for heirs that
 * have gone on, which `mem` shows). Walking is fine for a command: region by region, each under its lock.
 */
#include "mm/dmm/share.h"

#include "lib/string.h"

#define FRAME_MILLI 1000u

static uint64_t share_of(mfn_t m, struct dmm_bill *out)
{
    uint32_t users = __atomic_load_n(&frame_of(m)->refs, __ATOMIC_RELAXED);
    out->sharers_max = MAX(out->sharers_max, users);
    return FRAME_MILLI / MAX(users, 1u);
}

/* A page of another space's image: `heirs` wait for it besides those who have taken it. */
static uint64_t inherited_share(const struct dmm_space *image, p2m_entry_t e, enum p2m_type type, struct dmm_bill *out)
{
    uint32_t heirs = MAX(image->heirs, 1u);
    if (type == P2M_RW)
        return FRAME_MILLI / heirs;
    if (type == P2M_SHARED_RO || type == P2M_SEALED)
        return share_of(share_mfn_of(image, e, type), out) / heirs;
    return 0;
}

static void bill_inherited(struct dmm_space *s, uint64_t n, struct dmm_bill *out)
{
    struct region *from;
    struct dmm_space *image = image_of(s, n, &from);
    if (!image)
        return;
    spin_lock(&image->image_lock);
    for (unsigned k = 0; k < LARGE_PAGES; k++) {
        unsigned level = 1;
        p2m_entry_t e = p2m_read(p2m_leaf(from, gfn_of(n * LARGE_PAGES + k), &level));
        out->inherited_milli += inherited_share(image, e, image->format->type_of(e, level), out);
    }
    spin_unlock(&image->image_lock);
}

static void bill_page(const struct dmm_space *s, p2m_entry_t e, struct dmm_bill *out)
{
    enum p2m_type type = s->format->type_of(e, 1);
    if (type == P2M_SHARED_RO || type == P2M_SEALED)
        out->shared_milli += share_of(share_mfn_of(s, e, type), out);
    else if (type == P2M_IMAGE_RO)
        out->image_milli += FRAME_MILLI / MAX(__atomic_load_n(&frame_of(s->format->mfn_of(e))->refs, __ATOMIC_RELAXED), 1u);
}

static void bill_region(struct dmm_space *s, uint64_t n, struct dmm_bill *out)
{
    bool outermost = dmm_enter();
    struct region *r = region_of(s, gfn_of(n * LARGE_PAGES));
    struct spinlock *lock = r ? &r->lock : &s->build_lock;
    spin_lock(lock);
    if (!r || s->format->type_of(p2m_read(r->l2e), 2) == P2M_INHERITED)
        bill_inherited(s, n, out);
    for (unsigned k = 0; r && r->l1 && k < LARGE_PAGES; k++)
        bill_page(s, p2m_read(&r->l1[k]), out);
    spin_unlock(lock);
    dmm_leave(outermost);
}

void dmm_space_bill(struct dmm_space *s, struct dmm_bill *out)
{
    struct dmm_usage u;
    dmm_space_usage(s, &u);
    *out = (struct dmm_bill){
        .private_milli = u.resident * FRAME_MILLI,
        .overhead_milli = (u.p2m_pages + u.state_pages) * FRAME_MILLI + u.heap_bytes * FRAME_MILLI / PAGE_SIZE,
        .covered_pages = s->hard + s->soft, .breaks = s->breaks, .break_rate_milli = s->break_rate_milli,
    };
    bool stays = dmm_space_acquire(s->id); /* else it is being cleared, and what it inherited from may go */
    for (uint64_t n = 0; stays && n < s->region_count; n++)
        bill_region(s, n, out);
    if (stays)
        dmm_space_release(s);
}
