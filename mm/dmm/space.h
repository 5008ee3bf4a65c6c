/*
 * One VM's pseudo-physical memory, inside DMM: its nested table, its pool, its counters.
 *
 * Per 2 MiB of guest memory there is a struct region: the lock under which everything in it changes, and where its entries are. A
 * fault so reaches its entry with two indices instead of a four-level walk, and faults in different regions meet in no lock and no cache
 * line. Regions come in chunks of 64, a frame each, which appear with the first access: a space costs nothing for what it never touches, and
 * making one from an image takes a time that does not depend on its size (image.c).
 *
 * An image is a space too: frozen, run by no CPU, known to its heirs only.
 */
#ifndef HV_MM_DMM_SPACE_H
#define HV_MM_DMM_SPACE_H

#include "core/lock.h"
#include "core/thread.h"
#include "include/hv/dmm.h"
#include "include/hv/dmm_policy.h"
#include "include/hv/p2m.h"
#include "mm/dmm/hist.h"

#define DMM_NAME_MAX 48

struct region {
    struct spinlock lock;   /* LOCK_RANK_P2M */
    p2m_entry_t *l2e;       /* its level-2 entry; NULL: no RAM here */
    p2m_entry_t *l1;        /* 512 level-1 entries, or NULL: the level-2 entry speaks for all */
    union {
        p2m_entry_t detached; /* what the level-2 entry was, while the space is being taken apart */
        struct {
            uint32_t taken;   /* of an image: how many of its heirs have it */
            uint16_t at_rest; /* (a) region_is_unchanged() */
        };
    };
    uint16_t ram_pages;     /* declared as RAM */
    uint16_t filled_pages;  /* of which not EMPTY */
    uint16_t note;          /* dmm_scan_note() */
    uint8_t breaks;         /* of shared pages, since the last scan */
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct region) == 64, "a cache line each");

/*
 * A scan that found a region at rest leaves here how many of its pages were filled, plus one. First touches and breaks of shared pages change what this is
 * compared with, at no cost to them; whoever else changes an entry says so, with the lock held, and a CPU's log whenever it is read, without.
 */
#define REGION_BEING_SCANNED UINT16_MAX
static inline bool region_is_unchanged(const struct region *r)
{
    return __atomic_load_n(&r->at_rest, __ATOMIC_RELAXED) == __atomic_load_n(&r->filled_pages, __ATOMIC_RELAXED) + 1 &&
           !__atomic_load_n(&r->breaks, __ATOMIC_RELAXED);
}
static inline void region_changed(struct region *r) { __atomic_store_n(&r->at_rest, 0, __ATOMIC_RELAXED); }

#define CHUNK_REGIONS (PAGE_SIZE / sizeof(struct region))
/* What a vCPU that finds no frame wanted it for; each has its own rule (pool.c). */
enum pool_want {
    POOL_WANT_TOUCH, /* a page that holds nothing yet */
    POOL_WANT_COPY,  /* a page that reads as something, and has no charge: ZERO_RO, IMAGE_RO */
    POOL_WANT_BREAK, /* a shared page, which is charged already */
    POOL_WANT_TABLE, /* a table, or what a region takes that is taken over from an image: in no pool */
};

#define DMM_RAM_RANGES 8u
struct ram_range { uint64_t first, end; };

struct dmm_space {
    struct dmm_translation translation; /* first: dmm_space_translation(). Its generation is atomic, its root changes when the space is frozen */

    /* constant after creation */
    const struct p2m_format *format __attribute__((aligned(64)));
    p2m_entry_t empty, rw_4k; /* make_nonpresent(P2M_EMPTY, 0); make_leaf(P2M_RW, 0, 1), to which a frame is just added */
    p2m_entry_t type_mask, shared_ro; /* the type's bits, and what they are in a SHARED_RO entry */
    struct region **chunks;   /* of CHUNK_REGIONS each; NULL: untouched, hence EMPTY, or as the image has it, or no RAM */
    uint64_t region_count, heap_bytes;
    struct ram_range ram[DMM_RAM_RANGES];
    unsigned ram_ranges;
    uint16_t id, state_id;    /* who owns its guest memory and tables; its FRAME_VM_STATE. The former moves to the image when it is frozen */
    uint32_t vm_id;
    uint64_t pages, min_pages, max_pages, weight;
    void (*kick)(void *owner, bool wait); /* of dmm_space_ops; of a space without any: nothing */
    bool (*log_writes)(void *owner, enum dmm_log_step step); /* of dmm_space_ops, or NULL */
    void *owner;
    char name[DMM_NAME_MAX];

    /* atomic */
    uint64_t charged __attribute__((aligned(64))); /* pages that have a frame, alone or shared, those being faulted in included */
    uint64_t frames[FRAME_TYPE_COUNT];  /* by type, owned by this space */
    uint64_t entries[P2M_TYPE_COUNT];   /* pages by state; EMPTY and HOLE are not counted, they are the rest */
    uint64_t large_pages, pinned_pages, ram_pages;
    uint64_t flushes;
    uint64_t breaks;          /* shared pages written to and copied */
    uint64_t logged;          /* pages that CPUs have logged as written */
    bool logs;                /* the scanner's: every CPU logs what it writes */

    /* under cover_lock: pool.c */
    struct spinlock cover_lock;
    uint64_t owed;            /* pages that read as something and need a frame when they are written to */
    uint64_t hard, soft;      /* frames set aside for them */
    uint64_t risk;            /* insured: in 1024ths */
    uint64_t breaks_seen;     /* dmm_insurance_tick() */
    uint64_t break_rate_milli;/* per second */
    enum dmm_class class;
    bool covered;             /* by its class, or because it has a minimum */
    unsigned group;           /* constant */
    uint64_t domain;          /* constant: what it may share with, as one number */
    /* images: image.c */
    struct spinlock build_lock; /* the levels above the regions */
    struct dmm_space *base;   /* the image from which untouched regions are inherited; NULL: they are EMPTY */
    struct spinlock image_lock; /* if this is one: its entries, `taken`, heirs */
    uint64_t taken_sum;         /* of `taken` over all regions: while it is 0, as just after a fork, there is nothing to look for */
    unsigned heirs;           /* spaces and images that have this for their base, and holders */
    bool frozen;
    unsigned depth;           /* images below */
    uint64_t frozen_owed;     /* image: what an heir owes from the start */
    uint64_t inherited_charge, inherited_owed; /* atomic: pages of untouched regions that have a frame in the image; that read as something */
    unsigned memory_waiters;  /* threads in dmm_wait_memory() */
    volatile enum pool_want stalled_for; /* a hint: vCPUs may wait for different things */

    /* the pattern of first touches; races between vCPUs only blur a hint */
    uint64_t last_gfn, streak;
    int64_t stride;

    struct waitq moving;      /* dmm_wait() */
    unsigned users;           /* under pools_lock: policies at work on it */
    bool closed;              /* under pools_lock: none may begin */

    struct dmm_hist hist[DMM_CAUSE_COUNT]; /* last: images have none */
};
#define IMAGE_BYTES offsetof(struct dmm_space, hist)

_Static_assert(!offsetof(struct dmm_space, translation), "dmm_space_translation()");
static inline mfn_t space_root(const struct dmm_space *s) { return hpa_to_mfn(s->translation.root_hpa); }

/* The place for it, RAM or not; NULL: no chunk. */
static inline struct region *region_place(const struct dmm_space *s, gfn_t gfn)
{
    uint64_t n = gfn.v / LARGE_PAGES;
    if (unlikely(n >= s->region_count))
        return NULL;
    struct region *chunk = __atomic_load_n(&s->chunks[n / CHUNK_REGIONS], __ATOMIC_ACQUIRE);
    return likely(chunk) ? &chunk[n % CHUNK_REGIONS] : NULL;
}
/* NULL: no RAM, or nothing has touched it yet (region_build() makes it then). */
static inline struct region *region_of(const struct dmm_space *s, gfn_t gfn)
{
    struct region *r = region_place(s, gfn);
    return likely(r && r->l2e) ? r : NULL;
}
/* The region of a gfn that is RAM, made if need be. NULL: out of frames. No lock of rank >= LOCK_RANK_SPACE held; inside the gate. */
struct region *region_build(struct dmm_space *s, gfn_t gfn);
/* A level-1 table for region n, nothing of which can be reached yet: EMPTY where the space has RAM. NULL: out of frames. */
p2m_entry_t *space_new_table(struct dmm_space *s, uint64_t n);
/* RAM pages of [first, end). */
uint64_t space_ram_in(const struct dmm_space *s, uint64_t first, uint64_t end);
/* Takes back what the region has and frees it: all CPUs have forgotten it. `e` is its level-2 entry, which nothing holds any more. */
void region_drop(struct dmm_space *s, uint64_t n, struct region *r, p2m_entry_t e);

extern struct dmm_space *dmm_spaces[DMM_MAX_SPACES + 1]; /* by id; [0] is the hypervisor and stays NULL */
extern struct dmm_space *dmm_state_spaces[DMM_MAX_VMS + 1]; /* by state_id */
static inline struct dmm_space *space_of_id(uint16_t id) { return dmm_spaces[id]; }

/* Calls fn for every region that there is. */
void space_each_region(struct dmm_space *s, void (*fn)(struct dmm_space *s, uint64_t n, struct region *r));
void space_kick_nobody(void *owner, bool wait);
void space_destroy(struct dmm_space *s); /* without dmm_space_destroy()'s wait for policies */

/* write_log.c: its CPUs are gone, and their logs. */
void write_log_forget(struct dmm_space *s);

/* ---- image.c ---------------------------------------------------------------------------------------------- */

/* The region n of s is INHERITED and its lock held: it becomes what the image has. False: out of frames. */
bool image_take_region(struct dmm_space *s, struct region *r, uint64_t n);
/* Copies from a page that is still inherited. False: it is not, any more. */
bool image_read(struct dmm_space *s, gfn_t gfn, unsigned offset, void *buf, size_t len);
/* The space has no region of its base any more (they are INHERITED or dropped, as their level-2 entries say): it is an heir no more. */
void image_depart(struct dmm_space *s);
/* One heir or holder less, which has taken nothing (any more): the last one takes it along. */
void image_release(struct dmm_space *image);
/* The image that has region n of what s inherits, and where; NULL: none, it is EMPTY. */
struct dmm_space *image_of(const struct dmm_space *s, uint64_t n, struct region **r);
extern mfn_t dmm_zero_mfn; /* the one frame behind every ZERO_RO entry */

/* Has every CPU that may hold an old translation of this space forget it. p2m_transition() has bumped the generation; no region lock is held
 * now; on return no CPU can use what was removed, and only then the frame behind it is given away. */
static inline void dmm_flush_wait(struct dmm_space *s)
{
    __atomic_fetch_add(&s->flushes, 1, __ATOMIC_RELAXED);
    s->kick(s->owner, true);
}

/* ---- pool.c --------------------------------------------------------------------------------------------- */

extern uint64_t pool_promised;       /* minima not yet drawn, over all spaces */
extern uint64_t pool_set_aside;      /* that, and what covers un-sharing: 0 in the common case */
bool pool_charge_slow(struct dmm_space *s, uint64_t before, uint64_t pages);
/* May the space have `pages` more private frames? Charges them if so. False: its maximum is reached, or what is free is
 * promised to other spaces' minima. */
static inline bool pool_charge(struct dmm_space *s, uint64_t pages)
{
    uint64_t before = __atomic_fetch_add(&s->charged, pages, __ATOMIC_RELAXED);
    if (likely(before + pages <= s->max_pages && !__atomic_load_n(&pool_set_aside, __ATOMIC_RELAXED)))
        return true; /* nothing is set aside: this space's minimum, if it has one, is drawn */
    return pool_charge_slow(s, before, pages);
}
void pool_uncharge(struct dmm_space *s, uint64_t pages);
bool pool_has_room(struct dmm_space *s);
/* `pages` more / fewer pages of the space read as something without having a frame of their own: what is set aside for them follows. */
void pool_cover(struct dmm_space *s);
static inline void pool_owe(struct dmm_space *s, uint64_t pages)
{
    __atomic_fetch_add(&s->owed, pages, __ATOMIC_RELAXED);
    if (unlikely(s->covered))
        pool_cover(s);
}
static inline void pool_settle(struct dmm_space *s, uint64_t pages) { pool_owe(s, -pages); }
/* Can what a strict space would owe more be set aside? True for others. */
bool pool_can_owe(const struct dmm_space *s, uint64_t pages);
/* May the space have a frame now for a page that it owes? Its class decides how deep it may reach. And with which flags to ask for it. */
bool pool_may_break_slow(const struct dmm_space *s);
static inline bool pool_may_break(const struct dmm_space *s)
{
    return likely(!__atomic_load_n(&pool_set_aside, __ATOMIC_RELAXED)) || pool_may_break_slow(s);
}
static inline unsigned pool_break_flags(const struct dmm_space *s)
{
    return s->class == DMM_CLASS_BEST_EFFORT ? 0 : FRAME_RESERVE_OK;
}
/* A page without a charge (ZERO_RO, IMAGE_RO) is to have a frame: its maximum, and pool_may_break(). Charged if true. */
bool pool_charge_break(struct dmm_space *s);
void pool_cover_init(struct dmm_space *s);
void pool_census(uint64_t *hard, uint64_t *soft); /* for the audit: what is set aside, over all spaces */
/* Promises min_pages to a new space / takes the promise back. */
bool pool_admit(struct dmm_space *s);
void pool_dismiss(struct dmm_space *s);
/* Gives the space its ids and lists it; false: too many. */
bool pool_list_add(struct dmm_space *s);
/* The image takes over the id of `s`, which gets another; false: there is none. */
bool pool_list_split(struct dmm_space *s, struct dmm_space *image);
/* Charges a new heir for what it inherits. */
void pool_inherit(struct dmm_space *s, uint64_t pages);
/* The image of that id, held until image_release(); NULL: there is none. */
struct dmm_space *pool_hold_image(unsigned id);
/* Until pool_open() no policy may begin with it; returns when none is at work on it any more. May block. */
void pool_close(struct dmm_space *s);
void pool_open(struct dmm_space *s);
void pool_list_remove(struct dmm_space *s);

/* ---- policy.c -------------------------------------------------------------------------------------------- */

extern struct dmm_policy *volatile populate_policy; /* the first enabled one with the hook */
extern volatile unsigned populate_asks;             /* when it wants to be asked */
void policy_plan_populate(struct dmm_space *s, gfn_t gfn, unsigned access, const struct region *r,
                          struct dmm_populate_plan *plan);

#endif
