/*
 * Guest memory from the hypervisor: loaders, emulated string I/O, walks of guest page tables, virtual devices.
 *
 * Most users want a few bytes once. For them a copy under the region's lock is cheapest and safest: nothing can be taken away meanwhile, no count is
 * kept, and reading changes nothing (an EMPTY page reads as zero without getting a frame; a boot file's page stays shared). A pin is
 * for an address that outlives the call. It insists on a private frame, so that neither we nor the guest can have the page
 * copied to another place under the pin; the count sits in that frame's record.
 */
#include "core/log.h"
#include "lib/string.h"
#include "mm/dmm/frame.h"
#include "mm/dmm/share.h"
#include "x86/cpu.h"

/* The leaf that speaks for gfn, its region locked; NULL: nothing locked, and *type is INHERITED (it was never touched) or HOLE. */
static p2m_entry_t *lock_leaf(struct dmm_space *s, gfn_t gfn, struct region **r, unsigned *level, enum p2m_type *type)
{
    *r = region_of(s, gfn);
    *type = *r ? P2M_HOLE : dmm_gfn_is_ram(s, gfn) ? P2M_INHERITED : P2M_HOLE;
    if (!*r)
        return NULL;
    spin_lock(&(*r)->lock);
    p2m_entry_t *slot = p2m_leaf(*r, gfn, level);
    *type = s->format->type_of(p2m_read(slot), *level);
    if (*type != P2M_HOLE && *type != P2M_MMIO && (*type != P2M_INHERITED || dmm_gfn_is_ram(s, gfn)))
        return slot;
    spin_unlock(&(*r)->lock);
    *type = P2M_HOLE;
    return NULL;
}

static uint8_t *leaf_hva(const struct dmm_space *s, p2m_entry_t e, enum p2m_type type, unsigned level, gfn_t gfn)
{
    return mfn_to_hva(mfn_add(share_mfn_of(s, e, type), level == 2 ? gfn.v % LARGE_PAGES : 0));
}

/* A store of ours is one that the CPU does not see. */
static void set_dirty(const struct dmm_space *s, struct region *r, p2m_entry_t *slot)
{
    __atomic_fetch_or(slot, s->format->dirty_mask(), __ATOMIC_RELAXED);
    region_changed(r);
}

/* By us: a sealed page is only the guest's not to look at. */
static bool is_readable(enum p2m_type t) { return t > P2M_TABLE || t == P2M_SEALED; }

/* A page that is on its way to another frame arrives without anybody else's help, and soon: no need to trouble the caller. */
static enum dmm_fault_result fault_in(struct dmm_space *s, gfn_t gfn, unsigned access)
{
    enum dmm_fault_result result;
    while ((result = dmm_fault(s, gfn, access)) == DMM_FAULT_BLOCKED)
        cpu_pause();
    return result;
}

/* ---- pins ------------------------------------------------------------------------------------------------------ */

/* Pages that cannot be moved for the pins of this record: the first that is taken, the last that is given back. */
static uint64_t pages_held(unsigned level) { return level == 2 ? LARGE_PAGES : 1; }

static void add_pin(struct dmm_space *s, mfn_t head, mfn_t page, unsigned level)
{
    if (!mfn_eq(head, page))
        __atomic_fetch_add(&frame_of(page)->refs, 1, __ATOMIC_RELAXED);
    if (__atomic_fetch_add(&frame_of(head)->refs, 1, __ATOMIC_ACQUIRE) == 0)
        __atomic_fetch_add(&s->pinned_pages, pages_held(level), __ATOMIC_RELAXED);
}

static void drop_pin(struct dmm_space *s, mfn_t head, mfn_t page, unsigned level)
{
    hv_assert(frame_of(head)->refs > 0 && frame_of(page)->refs > 0);
    if (!mfn_eq(head, page))
        __atomic_fetch_sub(&frame_of(page)->refs, 1, __ATOMIC_RELAXED);
    if (__atomic_fetch_sub(&frame_of(head)->refs, 1, __ATOMIC_RELEASE) == 1)
        __atomic_fetch_sub(&s->pinned_pages, pages_held(level), __ATOMIC_RELAXED);
}

void *dmm_pin(struct dmm_space *s, gfn_t gfn, bool write, enum dmm_fault_result *why)
{
    enum dmm_fault_result ignored;
    (void)write; /* both make the page private; see above */
    for (why = why ? why : &ignored;;) {
        struct region *r;
        unsigned level;
        enum p2m_type type;
        void *hva = NULL;
        bool outermost = dmm_enter();
        p2m_entry_t *slot = lock_leaf(s, gfn, &r, &level, &type);
        if (slot) {
            if (type == P2M_RW) {
                mfn_t head = s->format->mfn_of(p2m_read(slot)), page = mfn_add(head, level == 2 ? gfn.v % LARGE_PAGES : 0);
                add_pin(s, head, page, level);
                hva = mfn_to_hva(page);
            }
            spin_unlock(&r->lock);
        }
        dmm_leave(outermost);
        *why = hva ? DMM_FAULT_RETRY : fault_in(s, gfn, DMM_READ | DMM_WRITE);
        if (hva || *why != DMM_FAULT_RETRY)
            return hva;
    }
}

void dmm_unpin(struct dmm_space *s, gfn_t gfn)
{
    struct region *r;
    unsigned level;
    enum p2m_type type;
    bool outermost = dmm_enter();
    p2m_entry_t *slot = lock_leaf(s, gfn, &r, &level, &type);
    hv_assert(slot && type == P2M_RW);
    mfn_t head = s->format->mfn_of(p2m_read(slot)), page = mfn_add(head, level == 2 ? gfn.v % LARGE_PAGES : 0);
    set_dirty(s, r, slot);
    drop_pin(s, head, page, level);
    spin_unlock(&r->lock);
    dmm_leave(outermost);
}

/* ---- copies ---------------------------------------------------------------------------------------------------- */

enum copy { COPY_READ, COPY_WRITE, COPY_ZERO };

/* False: not with the page as it is. Region locked. */
static bool copy_at(struct dmm_space *s, struct region *r, p2m_entry_t *slot, enum p2m_type type, unsigned level, gfn_t gfn, unsigned offset, void *buf,
                    size_t len, enum copy what)
{
    bool reads_as_zero = type == P2M_EMPTY || type == P2M_ZERO_RO;
    uint8_t *at = is_readable(type) ? leaf_hva(s, p2m_read(slot), type, level, gfn) + offset : NULL;
    if (what == COPY_READ && reads_as_zero) {
        memset(buf, 0, len);
    } else if (what == COPY_READ && at) {
        memcpy(buf, at, len);
    } else if (what != COPY_READ && type == P2M_RW) {
        what == COPY_WRITE ? (void)memcpy(at, buf, len) : (void)memset(at, 0, len);
        set_dirty(s, r, slot);
    } else {
        return what == COPY_ZERO && reads_as_zero;
    }
    return true;
}

/* [offset, offset+len) of one page. */
static enum dmm_fault_result copy_in_page(struct dmm_space *s, gfn_t gfn, unsigned offset, void *buf, size_t len, enum copy what)
{
    for (;;) {
        struct region *r;
        unsigned level;
        enum p2m_type type;
        bool done = false, outermost = dmm_enter();
        p2m_entry_t *slot = lock_leaf(s, gfn, &r, &level, &type);
        if (slot) {
            done = copy_at(s, r, slot, type, level, gfn, offset, buf, len, what);
            spin_unlock(&r->lock);
        }
        dmm_leave(outermost);
        if (!slot && type != P2M_INHERITED)
            return DMM_FAULT_HOLE;
        if (done)
            return DMM_FAULT_RETRY;
        if (type == P2M_INHERITED && what == COPY_READ) { /* needs no frame */
            if (image_read(s, gfn, offset, buf, len))
                return DMM_FAULT_RETRY;
            continue; /* somebody has taken it over meanwhile */
        }
        enum dmm_fault_result result = fault_in(s, gfn, what == COPY_READ ? DMM_READ : DMM_READ | DMM_WRITE);
        if (result != DMM_FAULT_RETRY)
            return result;
    }
}

static enum dmm_fault_result copy_guest(struct dmm_space *s, uint64_t gpa, void *buf, size_t len, enum copy what)
{
    if (len && gpa + (len - 1) < gpa)
        return DMM_FAULT_HOLE;
    while (len) {
        unsigned offset = gpa % PAGE_SIZE;
        size_t part = MIN(len, PAGE_SIZE - offset);
        enum dmm_fault_result result = copy_in_page(s, gpa_to_gfn(gpa), offset, buf, part, what);
        if (result != DMM_FAULT_RETRY)
            return result;
        gpa += part;
        len -= part;
        buf = buf ? (uint8_t *)buf + part : NULL;
    }
    return DMM_FAULT_RETRY;
}

enum dmm_fault_result dmm_read_guest(struct dmm_space *s, uint64_t gpa, void *buf, size_t len)
{
    return copy_guest(s, gpa, buf, len, COPY_READ);
}

enum dmm_fault_result dmm_write_guest(struct dmm_space *s, uint64_t gpa, const void *buf, size_t len)
{
    return copy_guest(s, gpa, (void *)(uintptr_t)buf, len, COPY_WRITE);
}

enum dmm_fault_result dmm_zero_guest(struct dmm_space *s, uint64_t gpa, size_t len)
{
    return copy_guest(s, gpa, NULL, len, COPY_ZERO);
}

bool dmm_peek_u64(struct dmm_space *s, uint64_t gpa, uint64_t *out)
{
    for (;;) {
        struct region *r;
        unsigned level;
        enum p2m_type type;
        bool known = false, outermost = dmm_enter();
        p2m_entry_t *slot = lock_leaf(s, gpa_to_gfn(gpa), &r, &level, &type);
        if (slot) {
            known = type == P2M_EMPTY || is_readable(type);
            if (known)
                *out = type == P2M_EMPTY ? 0 : __atomic_load_n((const uint64_t *)(leaf_hva(s, p2m_read(slot), type, level, gpa_to_gfn(gpa)) +
                                                                                  gpa % PAGE_SIZE), __ATOMIC_RELAXED);
            spin_unlock(&r->lock);
        }
        dmm_leave(outermost);
        if (!known && type == P2M_INHERITED)
            known = image_read(s, gpa_to_gfn(gpa), gpa % PAGE_SIZE, out, sizeof(*out));
        if (known || (!slot && type != P2M_INHERITED))
            return known;
        if (type == P2M_INHERITED)
            continue;
        if (fault_in(s, gpa_to_gfn(gpa), DMM_READ) != DMM_FAULT_RETRY) /* moving: there in a moment */
            return false;
    }
}
