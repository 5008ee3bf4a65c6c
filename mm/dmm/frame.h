/*
 * Frames, inside DMM: the record of one machine frame, and what the allocator offers beyond include/hv/dmm.h.
 *
 * The table is flat and virtual: record n lies at FRAME_TABLE_VA + 16 n, and only the parts behind which there is RAM are
 * backed. So mfn -> record is one shift and one add, and a machine with a terabyte of hole pays nothing for the hole.
 */
#ifndef HV_MM_DMM_FRAME_H
#define HV_MM_DMM_FRAME_H

#include "core/lock.h"
#include "core/log.h"
#include "include/hv/dmm.h"
#include "mm/dmm/space.h"
#include "x86/percpu.h"

/*
 * Who may write a record: the one who took the frame from the allocator until it is published in a p2m entry, afterwards
 * the holder of the lock of the 2 MiB region of (owner, gfn); of a FRAME_SHARED, which has no owner, the holder of its share lock (share.h).
 * `refs` is atomic: FRAME_GUEST counts pins, FRAME_BOOT_FILE the IMAGE_RO entries that point here, FRAME_SHARED the entries that its reverse
 * map has (rmap.c keeps it in `where`). A frame taken as one of 2 MiB has one record, its first (FRAME_LARGE); frame_record()
 * finds it from any of the 512. There `refs` counts the pins of all its pages; each other page's own are in its own record, so
 * that they are known when the frame is split.
 */
struct frame {
    union {
        struct {
            uint64_t gfn : 40;  /* FRAME_GUEST: where owner has it; GFN_NONE otherwise */
            uint64_t tag : 24;  /* FRAME_GUEST: dmm_frame_set_tag(); FRAME_BOOT_FILE: the audit's count */
        };
        uint64_t where;         /* both at once */
    };
    union {
        struct {
            uint32_t refs;
            uint16_t owner;     /* dmm_space.id, 0: the hypervisor */
            uint8_t type;       /* enum frame_type */
            uint8_t flags;
        };
        uint64_t what;          /* all four at once: FRAME_WHAT() */
    };
};
_Static_assert(sizeof(struct frame) == 16, "the budget of design.md: 16 bytes a frame");
#define FRAME_LARGE 1u
#define FRAME_BROKE 2u                         /* FRAME_GUEST: was shared, and written to; not listed once */
#define FRAME_GUEST_TABLE 4u                   /* FRAME_GUEST: was shared, and the guest's page walk wrote to it; not listed while it is in use */
#define FRAME_HISTORY (FRAME_BROKE | FRAME_GUEST_TABLE)
#define FRAME_WHAT(type, owner, flags) ((uint64_t)(owner) << 32 | (uint64_t)(type) << 48 | (uint64_t)(flags) << 56)
#define GFN_NONE ((UINT64_C(1) << 40) - 1)

#define TREE_CHILDREN 32u                      /* a tree: 64 MiB */
#define CHILD_HUGE 0x8000u                     /* in child_free: all 512 are taken as one frame */
struct frame_child { uint64_t word[LARGE_PAGES / 64]; };  /* bit = 1: free, and in no magazine */
struct frame_tree {
    uint16_t child_free[TREE_CHILDREN];        /* bits set in each child that nobody has claimed yet, or CHILD_HUGE */
    uint32_t free;                             /* their sum: a hint that lets a search skip whole trees */
} __attribute__((aligned(64)));

#if HV_HOST                                    /* the tests bring their own memory */
extern uint8_t *host_directmap, *host_frame_va;
#define DIRECTMAP_VA ((uintptr_t)host_directmap)
#define FRAME_MAX_MFN (UINT64_C(1) << 22)      /* 16 GiB */
#define FRAME_TABLE_VA ((uintptr_t)host_frame_va)
#else
#include "include/abi/boot_info.h"
#define DIRECTMAP_VA HV_DIRECTMAP_BASE
#define FRAME_MAX_MFN (UINT64_C(1) << 34)      /* 64 TiB */
#define FRAME_TABLE_VA 0xffffe00000000000
#endif
#define FRAME_CHILD_VA (FRAME_TABLE_VA + FRAME_MAX_MFN * sizeof(struct frame))
#define FRAME_TREE_VA (FRAME_CHILD_VA + FRAME_MAX_MFN / LARGE_PAGES * sizeof(struct frame_child))

/* mfn_to_hva() without a call. */
static inline void *frame_page(mfn_t m) { return (void *)(DIRECTMAP_VA + mfn_to_hpa(m)); }
static inline struct frame *frame_of(mfn_t m) { return (struct frame *)FRAME_TABLE_VA + m.v; }
static inline struct frame_child *child_of(uint64_t child) { return (struct frame_child *)FRAME_CHILD_VA + child; }
static inline struct frame_tree *tree_of(uint64_t tree) { return (struct frame_tree *)FRAME_TREE_VA + tree; }
static inline uint16_t *child_free_of(uint64_t child)
{
    return &tree_of(child / TREE_CHILDREN)->child_free[child % TREE_CHILDREN];
}
/* Whose counters it is in. */
static inline struct dmm_space *frame_owner(const struct frame *f)
{
    if (f->type == FRAME_VM_STATE)
        return f->owner <= DMM_MAX_VMS ? dmm_state_spaces[f->owner] : NULL;
    return f->owner <= DMM_MAX_SPACES ? dmm_spaces[f->owner] : NULL;
}
/* The record that speaks for `m`. */
struct frame *frame_record(mfn_t m);
/* Is there a record at all: did the firmware report RAM here? For numbers that are not known to come from us. */
bool frame_exists(mfn_t m);

/* ---- per CPU: touched by threads of that CPU only, which do not preempt each other, hence without any lock ------ */

#define MAGAZINE_FRAMES 128u
#define MAGAZINE_BATCH 64u
struct magazine { uint64_t count; uint64_t mfn[MAGAZINE_FRAMES]; };

struct frame_cpu {
    struct magazine dirty, zeroed;
    int64_t type_count[FRAME_TYPE_COUNT];  /* summed over the CPUs: frames of each type */
    uint64_t child, tree_slot;             /* where the last refill took from */
    uint64_t refills, cleared;             /* from bitfields; frames zeroed while somebody waited for them */
    volatile bool inside;                  /* between dmm_enter() and dmm_leave() */
    struct frame_cpu *next;
};
extern struct frame_cpu *frame_cpus;       /* all of them; only grows */

static inline struct frame_cpu *frame_cpu(void) { return this_cpu()->slot[PERCPU_FRAMES]; }

/*
 * The audit's gate. Every entry to DMM passes it with one store and one load; the audit closes it, waits until no CPU is
 * inside and then sees a system at rest. Store and load are plain: the audit pays for their order instead, with
 * dmm_cpu_barrier (an interrupt on every other CPU), which core sets when it starts a second CPU. Entries nest; the outermost
 * one counts, and dmm_leave() wants to know whether this was it.
 */
extern volatile bool dmm_gate_closed;
extern void (*dmm_cpu_barrier)(void);
void dmm_gate_wait(struct frame_cpu *c);
static inline bool dmm_enter(void)
{
    struct frame_cpu *c = frame_cpu();
    if (c->inside)
        return false;
    c->inside = true;
    asm volatile("" ::: "memory");
    if (unlikely(dmm_gate_closed))
        dmm_gate_wait(c);
    return true;
}
/* For who knows that it is the outermost: dmm_leave_first() with the same pointer. */
static inline struct frame_cpu *dmm_enter_first(void)
{
    struct frame_cpu *c = frame_cpu();
    debug_assert(!c->inside);
    c->inside = true;
    asm volatile("" ::: "memory");
    if (unlikely(dmm_gate_closed))
        dmm_gate_wait(c);
    return c;
}
static inline void dmm_leave_first(struct frame_cpu *c)
{
    asm volatile("" ::: "memory");
    c->inside = false;
}
static inline void dmm_leave(bool outermost)
{
    asm volatile("" ::: "memory");
    if (outermost)
        frame_cpu()->inside = false;
}

/* ---- allocator internals that the table, the fault path and the audit share -------------------------------------- */

/* A pre-zeroed 2 MiB frame from the stock, or INVALID_MFN at once: never clears, never searches. */
mfn_t frame_take_large_zeroed(void);
/* A taken frame gets its type and owner (NULL: the hypervisor), and is counted. `pages` is 1 or LARGE_PAGES. */
static inline void frame_assign_on(struct frame_cpu *c, mfn_t m, enum frame_type type, struct dmm_space *owner, uint64_t gfn, uint64_t pages)
{
    struct frame *f = frame_of(m);
    c->type_count[f->type] -= pages;
    c->type_count[type] += pages;
    f->where = gfn;
    uint16_t id = !owner ? 0 : type == FRAME_VM_STATE ? owner->state_id : owner->id;
    f->what = FRAME_WHAT(type, id, pages == LARGE_PAGES ? FRAME_LARGE : 0);
    if (owner)
        __atomic_fetch_add(&owner->frames[type], pages, __ATOMIC_RELAXED);
}
static inline void frame_assign(mfn_t m, enum frame_type type, struct dmm_space *owner, uint64_t gfn, uint64_t pages)
{
    frame_assign_on(frame_cpu(), m, type, owner, gfn, pages);
}
/* A space's private frame becomes one that nobody owns, and back. The region's lock is held, and the share lock. */
static inline void frame_disown(mfn_t m, struct dmm_space *owner)
{
    struct frame_cpu *c = frame_cpu();
    c->type_count[FRAME_GUEST]--;
    c->type_count[FRAME_SHARED]++;
    __atomic_fetch_sub(&owner->frames[FRAME_GUEST], 1, __ATOMIC_RELAXED);
    frame_of(m)->what = FRAME_WHAT(FRAME_SHARED, 0, 0);
}
static inline void frame_own(mfn_t m, struct dmm_space *owner, uint64_t gfn)
{
    struct frame_cpu *c = frame_cpu();
    c->type_count[FRAME_SHARED]--;
    c->type_count[FRAME_GUEST]++;
    __atomic_fetch_add(&owner->frames[FRAME_GUEST], 1, __ATOMIC_RELAXED);
    frame_of(m)->where = gfn;
    frame_of(m)->what = FRAME_WHAT(FRAME_GUEST, owner->id, 0);
}
/* frame_alloc(0, ...) for the fault path, inside dmm_enter(): says whether the frame was zeroed beforehand, else it was cleared
 * now if flags ask for it. */
struct frame_got { mfn_t mfn; bool prezeroed; }; /* in registers: no address of a local is taken on the way */
struct frame_got frame_alloc_noting(unsigned flags, enum frame_type type, struct dmm_space *owner, uint64_t gfn);
/* The same for a zeroed guest page, which usually is one pop from this CPU's magazine. */
static inline struct frame_got frame_alloc_guest(struct frame_cpu *c, struct dmm_space *owner, uint64_t gfn)
{
    if (unlikely(!c->zeroed.count))
        return frame_alloc_noting(FRAME_ZEROED, FRAME_GUEST, owner, gfn);
    mfn_t m = mfn_of(c->zeroed.mfn[--c->zeroed.count]);
    frame_assign_on(c, m, FRAME_GUEST, owner, gfn, 1);
    return (struct frame_got){ m, true };
}
/* And for one whose contents will be overwritten. */
static inline bool frame_alloc_guest_dirty(struct frame_cpu *c, struct dmm_space *owner, uint64_t gfn, unsigned flags, mfn_t *m)
{
    if (unlikely(!c->dirty.count)) {
        *m = frame_alloc_noting(flags, FRAME_GUEST, owner, gfn).mfn;
        return mfn_valid(*m);
    }
    *m = mfn_of(c->dirty.mfn[--c->dirty.count]);
    frame_assign_on(c, *m, FRAME_GUEST, owner, gfn, 1);
    return true;
}
/* One 2 MiB frame becomes 512 of 4 KiB with the same owner, from gfn upwards, each with its own pins (returns how many have any); and back (all
 * 512 must be the owner's, and none pinned). Region locked. */
unsigned frame_split_large(mfn_t first);
void frame_join_large(mfn_t first);
/* What an ordinary request can still get, from the shared lists: a few loads, exact to a magazine. */
uint64_t frame_available_hint(void);
/* Could this CPU get a frame now? */
bool frame_can_take(void);
uint64_t frame_reserve_pages(void);
/* Gives the bits of [first, first+pages) to the allocator: at boot, and for the loader's memory. */
void frame_add_free(uint64_t first, uint64_t pages);
void frame_alloc_init(uint64_t total_pages, const uint32_t *trees, uint64_t tree_count);
void frame_cpu_setup(struct frame_cpu *c);
static inline void copy_page(void *to, const void *from)
{
    uint64_t n = PAGE_SIZE / 8;
    asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n) :: "memory");
}
static inline void clear_page(void *page)
{
    uint64_t n = PAGE_SIZE / 8;
    asm volatile("rep stosq" : "+D"(page), "+c"(n) : "a"(0UL) : "memory");
}

/* dmm_wait_memory() sleepers: > 0 sends freed frames past the magazines, where everybody can see them. */
extern volatile unsigned frame_waiters;

struct frame_run { uint64_t first, end; };  /* of mfns that have records, ascending, whole 2 MiB */
extern struct frame_run frame_runs[];
extern unsigned frame_run_count;
extern int64_t frame_boot_count[FRAME_TYPE_COUNT];  /* types given at boot */

/* What the allocator's own lists hold, for the audit. */
struct frame_stock {
    uint64_t bits, counters, trees, shared_free;     /* should all be equal (bits may exceed by none at rest) */
    uint64_t zeroed_stock, zeroed_large, magazines_dirty, magazines_zeroed;
};
void frame_stock_census(struct frame_stock *out);
/* Calls cb for each frame that a magazine or a stock of zeroed frames holds. */
void frame_for_each_cached(void (*cb)(mfn_t m, bool zeroed, uint64_t pages, void *arg), void *arg);

#endif
