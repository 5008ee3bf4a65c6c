/*
 * Reverse maps of shared frames: the (space, gfn) of every entry that leads to one.
 *
 * A list node per user would cost a third of what sharing saves in small pieces, and a pointer per frame would be paid by all frames for the few
 * that are shared. But the two kinds of sharing that are common are small: a page written by nobody since a fork has two users at the *same* gfn (the
 * image and the child, or two children), and a page that just got write-protected has one. Both fit the 64 bits in which a private frame keeps its
 * gfn: gfn and two space ids of 12 bits. Everything else hangs off the record in chunks of seven users and a link, 64 bytes, cut from
 * frames of type FRAME_RMAP. So an unshared machine pays nothing and a merged page about nine bytes per user.
 *
 * Order does not matter, hence the first chunk is the one that may be part full, and removing fills the hole from it. The number of users is bounded,
 * so walks are.
 */
#include "mm/dmm/rmap.h"

#include "core/log.h"
#include "lib/list.h"
#include "mm/dmm/share.h"

#define CHUNK_USERS 7u
#define CHUNKS_PER_PAGE (PAGE_SIZE / 64)
#define NO_CHUNK 0u            /* chunk 0 of a page is its header, so no chunk has number 0 of mfn 0 either */

_Static_assert(DMM_MAX_SPACES < 0xfff, "two ids in 24 bits, and one value left over");

struct rmap_chunk {
    uint64_t next;             /* number of the next chunk, or NO_CHUNK */
    uint64_t user[CHUNK_USERS];/* id << 40 | gfn; 0: none (there is no space 0) */
};
_Static_assert(sizeof(struct rmap_chunk) == 64, "a cache line");

struct rmap_page {             /* in place of chunk 0 */
    struct list_head node;     /* on `partial` while it has a free chunk */
    uint64_t free;             /* bit n: chunk n is free */
};
_Static_assert(sizeof(struct rmap_page) <= 64, "fits the place of a chunk");

static struct spinlock pages_lock = SPINLOCK_INIT(LOCK_RANK_RMAP, "reverse maps");
static struct list_head partial = LIST_INIT(partial);
static uint64_t page_count, chunk_count;

static struct rmap_chunk *chunk_at(uint64_t number)
{
    return (struct rmap_chunk *)frame_page(mfn_of(0)) + number; /* pages hold a whole number of them */
}

/* ---- chunks ------------------------------------------------------------------------------------------------------ */

static struct rmap_page *add_page(void)
{
    mfn_t m = frame_alloc(0, FRAME_RESERVE_OK, FRAME_RMAP, NULL); /* what is freed by it is more */
    if (!mfn_valid(m))
        return NULL;
    struct rmap_page *p = mfn_to_hva(m);
    p->free = ~UINT64_C(1);
    list_add_tail(&partial, &p->node);
    page_count++;
    return p;
}

static uint64_t chunk_alloc(void)
{
    uint64_t number = NO_CHUNK;
    spin_lock(&pages_lock);
    struct rmap_page *p = list_empty(&partial) ? add_page() : container_of(partial.next, struct rmap_page, node);
    if (p) {
        unsigned n = (unsigned)__builtin_ctzll(p->free);
        p->free &= p->free - 1;
        if (!p->free)
            list_del(&p->node);
        number = hva_to_mfn(p).v * CHUNKS_PER_PAGE + n;
        chunk_count++;
    }
    spin_unlock(&pages_lock);
    if (number != NO_CHUNK)
        *chunk_at(number) = (struct rmap_chunk){ .next = NO_CHUNK };
    return number;
}

/* Its page was full, or nothing in it is in use any more. Lock held; it is let go. */
__attribute__((noinline)) static void page_changes(struct rmap_page *p, uint64_t was)
{
    bool empty = p->free == ~UINT64_C(1);
    if (!was)
        list_add_tail(&partial, &p->node);
    if (empty) {
        list_del(&p->node);
        page_count--;
    }
    spin_unlock_here(&pages_lock);
    if (empty)
        frame_free(hva_to_mfn(p), 0);
}

static inline void chunk_free(uint64_t number)
{
    struct rmap_page *p = (struct rmap_page *)chunk_at(ALIGN_DOWN(number, CHUNKS_PER_PAGE));
    spin_lock_here(&pages_lock);
    uint64_t was = p->free, is = was | BIT64(number % CHUNKS_PER_PAGE);
    p->free = is;
    chunk_count--;
    if (unlikely(!was || is == ~UINT64_C(1)))
        page_changes(p, was);
    else
        spin_unlock_here(&pages_lock);
}

/* ---- one frame's map ------------------------------------------------------------------------------------------------ */

static uint16_t inline_id(const struct frame *f, unsigned n) { return f->tag >> (12 * n) & 0xfff; }

static void set_inline(struct frame *f, uint64_t gfn, uint16_t a, uint16_t b)
{
    f->where = (uint64_t)((uint32_t)b << 12 | a) << 40 | gfn;
}

void rmap_first(struct frame *f, uint16_t space_id, uint64_t gfn)
{
    set_inline(f, gfn, space_id, 0);
    __atomic_store_n(&f->refs, 1, __ATOMIC_RELEASE);
}

/* From inline to a chunk with the same users. */
static bool make_chunked(struct frame *f)
{
    uint64_t number = chunk_alloc(), gfn = f->gfn;
    if (number == NO_CHUNK)
        return false;
    struct rmap_chunk *c = chunk_at(number);
    c->user[0] = rmap_user(inline_id(f, 0), gfn);
    if (inline_id(f, 1))
        c->user[1] = rmap_user(inline_id(f, 1), gfn);
    f->where = (uint64_t)RMAP_CHUNKED << 40 | number;
    return true;
}

static bool put_in_chunk(struct rmap_chunk *c, uint64_t user)
{
    for (unsigned n = 0; n < CHUNK_USERS; n++)
        if (!c->user[n]) {
            c->user[n] = user;
            return true;
        }
    return false;
}

enum rmap_result rmap_add(struct frame *f, uint16_t space_id, uint64_t gfn)
{
    if (f->refs >= RMAP_MAX_USERS)
        return RMAP_FULL;
    if (!rmap_is_chunked(f) && f->refs == 1 && f->gfn == gfn) {
        set_inline(f, gfn, inline_id(f, 0), space_id);
    } else {
        if (!rmap_is_chunked(f) && !make_chunked(f))
            return RMAP_NO_MEMORY;
        if (!put_in_chunk(chunk_at(f->gfn), rmap_user(space_id, gfn))) {
            uint64_t number = chunk_alloc();
            if (number == NO_CHUNK)
                return RMAP_NO_MEMORY;
            chunk_at(number)->next = f->gfn;
            chunk_at(number)->user[0] = rmap_user(space_id, gfn);
            f->where = (uint64_t)RMAP_CHUNKED << 40 | number;
        }
    }
    __atomic_fetch_add(&f->refs, 1, __ATOMIC_RELEASE);
    return RMAP_OK;
}

static void remove_inline(struct frame *f, uint16_t space_id, uint64_t gfn)
{
    uint16_t a = inline_id(f, 0), b = inline_id(f, 1);
    hv_assert(f->gfn == gfn && (a == space_id || (b && b == space_id)));
    set_inline(f, gfn, a == space_id ? b : a, 0);
}

static uint64_t *find_in_chunks(const struct frame *f, uint64_t user)
{
    for (uint64_t number = f->gfn; number != NO_CHUNK; number = chunk_at(number)->next)
        for (unsigned n = 0; n < CHUNK_USERS; n++)
            if (chunk_at(number)->user[n] == user)
                return &chunk_at(number)->user[n];
    return NULL;
}

void rmap_leave_one(struct frame *f, uint64_t user)
{
    uint64_t number = f->gfn;
    const struct rmap_chunk *c = chunk_at(number);
    hv_assert(c->user[0] == user || c->user[1] == user);
    f->where = c->user[0] ^ c->user[1] ^ user;
    __atomic_fetch_sub(&f->refs, 1, __ATOMIC_RELEASE);
    chunk_free(number);
}

/* More than two. The last one of the first chunk fills the hole. */
__attribute__((noinline)) static void remove_from_chunks(struct frame *f, uint64_t user)
{
    uint64_t first = f->gfn, *hole = find_in_chunks(f, user);
    struct rmap_chunk *c = chunk_at(first);
    unsigned last = CHUNK_USERS;
    hv_assert(hole);
    while (!c->user[last - 1])
        last--;
    *hole = c->user[last - 1];
    c->user[last - 1] = 0;
    if (last == 1) {
        f->where = (uint64_t)RMAP_CHUNKED << 40 | c->next;
        chunk_free(first);
    }
}

uint32_t rmap_remove_rare(struct frame *f, uint16_t space_id, uint64_t gfn)
{
    if (rmap_is_chunked(f))
        remove_from_chunks(f, rmap_user(space_id, gfn));
    else
        remove_inline(f, space_id, gfn);
    return __atomic_sub_fetch(&f->refs, 1, __ATOMIC_RELEASE);
}

bool rmap_has(const struct frame *f, uint16_t space_id, uint64_t gfn)
{
    if (rmap_is_chunked(f))
        return find_in_chunks(f, rmap_user(space_id, gfn)) != NULL;
    return f->gfn == gfn && (inline_id(f, 0) == space_id || inline_id(f, 1) == space_id);
}

uint16_t rmap_any_space(const struct frame *f)
{
    return rmap_is_chunked(f) ? (uint16_t)(chunk_at(f->gfn)->user[0] >> 40) : inline_id(f, 0);
}

void rmap_each(const struct frame *f, void (*cb)(uint16_t space_id, uint64_t gfn, void *arg), void *arg)
{
    for (unsigned n = 0; !rmap_is_chunked(f) && n < 2; n++)
        if (inline_id(f, n))
            cb(inline_id(f, n), f->gfn, arg);
    for (uint64_t number = rmap_is_chunked(f) ? f->gfn : NO_CHUNK; number != NO_CHUNK; number = chunk_at(number)->next)
        for (unsigned n = 0; n < CHUNK_USERS; n++) {
            uint64_t user = chunk_at(number)->user[n];
            if (user)
                cb((uint16_t)(user >> 40), user & GFN_NONE, arg);
        }
}

static void count_user(uint16_t space_id UNUSED, uint64_t gfn UNUSED, void *arg) { ++*(uint32_t *)arg; }

uint32_t rmap_count(const struct frame *f)
{
    uint32_t count = 0;
    rmap_each(f, count_user, &count);
    return count;
}

void rmap_census(uint64_t *pages, uint64_t *chunks)
{
    *pages = page_count;
    *chunks = chunk_count;
}
