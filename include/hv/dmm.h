/*
 * DMM's contract: what vm/, policies/ and the console may ask of the dynamic memory mapping layer.
 *
 * A `struct dmm_space` is one VM's pseudo-physical memory: its p2m (the nested page table itself, typed entries in
 * present and non-present form), its pool (what it may hold and does hold), its counters. DMM knows nothing of a
 * VM beyond the space; the owner gives it callbacks to make CPUs forget translations.
 *
 * Locking: all functions may be called from any thread with interrupts on and no lock of rank >= LOCK_RANK_POOL held,
 * unless the comment says otherwise. None of them blocks; what must wait returns DMM_FAULT_BLOCKED/STALLED.
 */
#ifndef HV_INCLUDE_HV_DMM_H
#define HV_INCLUDE_HV_DMM_H

#include "include/hv/types.h"

struct boot_info;
struct waitq;
struct dmm_space;
struct p2m_format;

/* ---- frames ------------------------------------------------------------------------------------------- */

enum frame_type {       /* every machine frame is in exactly one; the ledger adds them up */
    FRAME_UNUSABLE = 0, /* firmware, MMIO, bad, or below the frame table's concern */
    FRAME_FREE,         /* contents unknown */
    FRAME_FREE_ZEROED,  /* known to be zero */
    FRAME_HV_IMAGE,     /* the hypervisor's own image */
    FRAME_HV_HEAP,      /* slab, stacks, tables of our own */
    FRAME_HV_PAGETABLE, /* our own page tables */
    FRAME_FRAMETABLE,   /* the frame table and allocator metadata */
    FRAME_BOOT_FILE,    /* a loaded file (kernel, initrd); shared read-only into VMs */
    FRAME_P2M,          /* a nested page-table page of owner */
    FRAME_VM_STATE,     /* VMCB/VMCS, bitmaps, save areas of owner */
    FRAME_GUEST,        /* private guest memory of owner at gfn */
    FRAME_SHARED,       /* guest memory that nobody may write: `refs` entries lead there, of one VM or several */
    FRAME_RMAP,         /* reverse maps of shared frames: which entries those are */
    FRAME_TYPE_COUNT,
};
const char *frame_type_name(enum frame_type t);

enum frame_flags { FRAME_ZEROED = 1 /* contents must be zero */, FRAME_RESERVE_OK = 2 /* may dig into the reserve */ };

/* Boot: builds the frame table from the memory map and takes every usable frame. Later the loader's memory follows. */
void frame_init(const struct boot_info *bi);
void frame_release_loader_memory(const struct boot_info *bi); /* all BOOT_MEM_LOADER but files and what was copied */
/* One frame, or 2^order aligned frames (order 0 or LARGE_ORDER). Returns INVALID_MFN if there is none. Any context with
 * interrupts on; lock-free in the common case. `owner` is NULL for the hypervisor itself. */
mfn_t frame_alloc(unsigned order, unsigned flags, enum frame_type type, struct dmm_space *owner);
void frame_free(mfn_t mfn, unsigned order);
enum frame_type frame_get_type(mfn_t mfn);
uint64_t frame_count(enum frame_type t); /* frames now of type t (exact when idle) */
uint64_t frame_total_pages(void);        /* all frames the table covers, FRAME_UNUSABLE excluded */
uint64_t frame_free_pages(void);         /* FREE + FREE_ZEROED */
/* Zeroes up to `max` free frames for the zeroed magazine; returns how many. The idle-priority thread's work. */
unsigned frame_zero_some(unsigned max);
void frame_zero_large_stock(void);       /* all of the stock of zeroed 2 MiB frames at once */
bool frame_zeroed_is_low(void);
void dmm_zero_thread(void *arg);         /* body of that thread (THREAD_PRIO_IDLE) */
/* On every CPU but the boot CPU, before it first uses DMM: its magazines. False: out of frames. */
bool frame_cpu_init(void);
/* Direct map. Pure arithmetic, valid for every frame of RAM. */
void *mfn_to_hva(mfn_t mfn);
mfn_t hva_to_mfn(const void *hva);

/* ---- spaces ------------------------------------------------------------------------------------------- */

/* DMM_WALK and DMM_MAY_CLEAR go with the others: the CPU's walk of the guest's page tables did it, so the page is one of them; the guest's
 * registers are such that its instruction may be one that clears whole pages, and the caller knows DMM_FAULT_ZERO_STORE. */
enum dmm_access { DMM_READ = 1, DMM_WRITE = 2, DMM_MAY_CLEAR = 4, DMM_WALK = 8, DMM_EXEC = 16 };

enum dmm_fault_result {
    DMM_FAULT_RETRY,    /* the page is usable for this access now: run the instruction again */
    DMM_FAULT_BLOCKED,  /* work is under way: dmm_wait() until it is done, then run the instruction again */
    DMM_FAULT_STALLED,  /* no frame left (pool or machine): dmm_wait_memory(), say why, then try again */
    DMM_FAULT_HOLE,     /* not memory of this VM: the caller decides (device, open bus) */
    DMM_FAULT_DENIED,   /* memory, but this access is never allowed (image-ro executed as device, poison) */
    DMM_FAULT_ZERO_STORE, /* the page reads as zero and frames are dear: if the instruction stores nothing but zeros to whole pages, do without
                           * (dmm_is_zero_without_frame(), dmm_zero_stored()); else ask again without DMM_MAY_CLEAR */
};

/* A CPU that keeps such a log notes a page when it sets the dirty bit of its entry. */
enum dmm_log_step {
    DMM_LOG_ALLOC,  /* get ready; false: the CPUs keep none, or there is no frame for one. FREE is due in any case */
    DMM_LOG_BEGIN,  /* all of the owner's CPUs log from the next flush on */
    DMM_LOG_READ,   /* tell dmm_log_written() of what was logged before the last flush, and not told yet */
    DMM_LOG_END,    /* none logs after the next flush */
    DMM_LOG_FREE,   /* that flush is over, or nothing has begun: the logs' frames are given back */
};

struct dmm_space_ops {  /* supplied by the owner (vm/) */
    /* Make every CPU that runs this space leave the guest and flush before it re-enters. Called after the
     * generation was bumped; must not return before all have acknowledged if `wait`. */
    void (*kick)(void *owner, bool wait);
    /* What the CPUs' logs of written pages are to do (mm/dmm/write_log.c). NULL: there are none. */
    bool (*log_writes)(void *owner, enum dmm_log_step step);
};

/* What becomes of a VM that writes to shared pages when frames are short. The cover is a number of frames that ordinary requests leave alone. */
enum dmm_class {
    DMM_CLASS_BEST_EFFORT, /* no cover: it waits */
    DMM_CLASS_INSURED,     /* covered for as many as its observed rate of breaks lets expect */
    DMM_CLASS_STRICT,      /* every page that it shares is covered: sharing never makes it wait */
};
const char *dmm_class_name(enum dmm_class c);

struct dmm_space_config {
    const char *name;
    uint32_t vm_id;
    enum dmm_class class;
    unsigned group;              /* dmm_group_of(); 0: shares with nobody but itself */
    uint64_t pages;              /* configured size in 4 KiB pages (RAM only; holes excluded) */
    uint64_t min_pages, max_pages, weight;
    const struct p2m_format *format;
    const struct dmm_space_ops *ops;
    void *owner;
};

enum dmm_create_result { DMM_CREATE_OK, DMM_CREATE_NO_MEMORY, DMM_CREATE_OVERCOMMITTED_MIN /* sum of minima > RAM */ };
enum dmm_create_result dmm_space_create(const struct dmm_space_config *cfg, struct dmm_space **out);
/* All vCPUs parked, no pins left: gives back every frame of guest memory, which is EMPTY again, as after dmm_space_add_ram(). */
void dmm_space_clear(struct dmm_space *s);
/* No policy is at work on it when this returns, and none begins: what its ops use may go. dmm_space_destroy() is all that may follow. May block. */
void dmm_space_close(struct dmm_space *s);
/* All vCPUs stopped, no pins left. Gives back every frame. */
void dmm_space_destroy(struct dmm_space *s);
/* Declares [first, first+pages) as RAM (EMPTY). Everything else is HOLE. Before the first fault. */
bool dmm_space_add_ram(struct dmm_space *s, gfn_t first, uint64_t pages);
/*
 * What a back end looks at before each entry; every space begins with one. The generation moves after something that CPUs may have cached has changed,
 * the root included: it is read first, after the vCPU counts as in the guest, and what is cached is forgotten if it is not the one of the last entry.
 */
struct dmm_translation {
    uint64_t generation;
    uint64_t root_hpa;  /* for nCR3/EPTP */
};
static inline const struct dmm_translation *dmm_space_translation(const struct dmm_space *s) { return (const struct dmm_translation *)s; }
static inline uint64_t dmm_space_flush_generation(const struct dmm_space *s)
{
    return __atomic_load_n(&dmm_space_translation(s)->generation, __ATOMIC_SEQ_CST);
}
static inline uint64_t dmm_space_root_hpa(const struct dmm_space *s) { return dmm_space_translation(s)->root_hpa; }
bool dmm_gfn_is_ram(const struct dmm_space *s, gfn_t gfn);

/* The nested fault. `access` is a mask of enum dmm_access; write implies read. */
enum dmm_fault_result dmm_fault(struct dmm_space *s, gfn_t gfn, unsigned access);
/* Does the page read as zero, without a frame of its own? And: that many pages of it had zeros stored to them at no cost. */
bool dmm_is_zero_without_frame(struct dmm_space *s, gfn_t gfn);
void dmm_zero_stored(struct dmm_space *s, uint64_t pages, uint64_t tsc);
/* Would dmm_fault() find nothing to do? Counts nothing: for the emulator, whose accesses are no faults. */
bool dmm_is_mapped(struct dmm_space *s, gfn_t gfn, unsigned access);
/* After BLOCKED / STALLED: sleeps (no lock held) until it is worth trying again, at most timeout_ns. */
void dmm_wait(struct dmm_space *s, gfn_t gfn, uint64_t timeout_ns);
void dmm_wait_memory(struct dmm_space *s, uint64_t timeout_ns);
/* Wakes everybody in dmm_wait_memory() (frames were freed); called by DMM itself, and when a VM is to stop. */
void dmm_wake_memory_waiters(void);

/* Maps pages [first, first+pages) read-only straight from a boot file's frames, copied on write (image-ro). Pages that are not EMPTY
 * any more get a copy of the contents instead. RETRY means done. */
enum dmm_fault_result dmm_map_boot_file(struct dmm_space *s, gfn_t first, mfn_t file_mfn, uint64_t pages);

/* The 2 MiB region around gfn: one large mapping into 512 small ones, or back (in place: all 512 on one 2 MiB frame). */
enum dmm_resize_result { DMM_RESIZE_OK, DMM_RESIZE_PINNED, DMM_RESIZE_NO_MEMORY, DMM_RESIZE_UNSUITABLE };
enum dmm_resize_result dmm_break_large(struct dmm_space *s, gfn_t gfn);
enum dmm_resize_result dmm_reform_large(struct dmm_space *s, gfn_t gfn);

/* For policies, on a space that they have acquired. A private 4 KiB page gets another frame, the guest running on; or is write-protected until
 * the guest writes to it (a large one: break it first). */
enum dmm_move_result { DMM_MOVE_OK, DMM_MOVE_UNSUITABLE, DMM_MOVE_PINNED, DMM_MOVE_NO_MEMORY };
enum dmm_move_result dmm_move_page(struct dmm_space *s, gfn_t gfn);
enum dmm_move_result dmm_protect_page(struct dmm_space *s, gfn_t gfn);
bool dmm_unprotect_page(struct dmm_space *s, gfn_t gfn); /* false: it is not such a page, or is shared with others */
/* The space of that id (1..DMM_MAX_SPACES), kept from being cleared or destroyed until the release; NULL: there is none, or it is about to
 * be. A policy's thread holds one at a time, and never blocks meanwhile. */
#define DMM_MAX_VMS 1024u
#define DMM_MAX_SPACES 2047u /* with images */
struct dmm_space *dmm_space_acquire(unsigned id);
void dmm_space_release(struct dmm_space *s);
uint64_t dmm_space_end_gfn(const struct dmm_space *s); /* all its RAM is below */

/* ---- sharing --------------------------------------------------------------------------------------------
 *
 * Who finds equal pages decides (policies/); that they are equal, may be shared, and are nobody's to write is made sure of here. */

/* Spaces of one group share among each other. In a secure group a page that a scan took up traps at its next access and is copied to another
 * frame, whether it was merged or not, so that the time tells nothing (VUsion). */
#define DMM_GROUP_MAX 255u
unsigned dmm_group_of(const char *name /* NULL, "": 0 */); /* makes it if there is none; 0 also if there are too many */
unsigned dmm_group_find(const char *name);                 /* 0: there is none */
const char *dmm_group_name(unsigned group);                /* NULL: there is none */
bool dmm_group_secure(unsigned group);
/* What was shared, or looked at, before it was switched on is for the next sweep to take up: all is fresh again. */
void dmm_group_set_secure(unsigned group, bool secure);
uint64_t dmm_group_changes(void);                          /* how often that was called */
unsigned dmm_space_group(const struct dmm_space *s);
/* What it shares with, as one number: spaces of one group have the same, any other its own. */
uint64_t dmm_space_domain(const struct dmm_space *s);

/*
 * A scan sees one 2 MiB region at a time, of a space that was acquired. A private page is dirty (written to since it was aged), fresh (not
 * written to since, and not listed since) or unchanged (listed before, and not written to since). Dirty bits are the CPU's; where it has none, every
 * page that was listed before counts as fresh again. A shared page that a merge did not make so is fresh once, too.
 */
struct dmm_scan_page { uint16_t index; /* in the region */ bool shared; mfn_t mfn; };
struct dmm_scan {
    uint16_t dirty, unchanged, fresh, shared, zero, pinned, unstable /* broke before, or a page table */, other;
    bool large;          /* one 2 MiB mapping: the pieces are listed, and can be merged after dmm_break_large() */
    bool accessed;       /* large only: since the last dmm_scan_age() */
    bool at_rest;        /* nothing is dirty, fresh, pinned or unstable: the next scan finds the same, unless something changes */
    uint16_t accessed_pages; /* private pages accessed since then */
    struct dmm_scan_page page[LARGE_PAGES]; /* the `fresh` ones, which from now on are unchanged */
};
/* Dirty pages, and accessed ones, are clean from now on; returns how many were dirty. CPUs hear of it at their next entry to the guest: what one
 * writes through an old translation before may go unnoticed, which costs a chance and no correctness. */
unsigned dmm_scan_age(struct dmm_space *s, gfn_t region);
/* False: there is nothing in this region that could be scanned (no RAM, nothing mapped, or still inherited). */
bool dmm_scan_region(struct dmm_space *s, gfn_t region, struct dmm_scan *out);
/*
 * Where CPUs log what they write to, a region that was found at rest need not be looked at again before something in it changes. Of an acquired space
 * whose CPUs can: dmm_log_set() has them begin or stop (false: they cannot, and do not), dmm_log_read() takes in what they have logged (it flushes
 * once) and returns how many pages that were since the last call. dmm_scan_is_unchanged(): CPUs log, the region was at rest, and neither a
 * log that was read nor DMM itself knows of a change since. Where shared pages have lost their other users meanwhile, or pages were read, it does not tell.
 */
bool dmm_log_set(struct dmm_space *s, bool on);
bool dmm_log_is_on(const struct dmm_space *s);
uint64_t dmm_log_read(struct dmm_space *s);
bool dmm_scan_is_unchanged(const struct dmm_space *s, gfn_t region);
/* For the owner of a space, while it does as `log_writes` says, or because a log is full. Any gpa will do: what is no RAM is ignored. */
void dmm_log_written(struct dmm_space *s, uint64_t gpa);
void dmm_log_was_full(void);
uint64_t dmm_log_times_full(void); /* since boot, of all CPUs */
unsigned dmm_log_spaces(void);     /* whose CPUs log now */
/* Lists all pages of a 2 MiB mapping, dirty or not; marks nothing. False: it is none. */
bool dmm_scan_list_large(struct dmm_space *s, gfn_t region, struct dmm_scan *out);
/* A number of the scanner's own for each region, 0 at first. */
void dmm_scan_note(struct dmm_space *s, gfn_t region, uint16_t note);
uint16_t dmm_scan_get_note(struct dmm_space *s, gfn_t region);
/* Shared pages of the region that were written to and copied since the last call, at most 255. */
unsigned dmm_scan_breaks(struct dmm_space *s, gfn_t region);
/* How a region is used, without listing anything. False: nothing is mapped there. */
struct dmm_survey { bool large; uint16_t private_pages, accessed, shared, without /* EMPTY or zero */, other; };
bool dmm_survey_region(struct dmm_space *s, gfn_t region, struct dmm_survey *out);
/* Forgets that pages were listed: all are fresh again, of one region or of all. */
void dmm_scan_forget_region(struct dmm_space *s, gfn_t region);
void dmm_scan_forget(struct dmm_space *s);

/* What a page holds at this moment, while it may still be changing. The key mixes in a secret of this boot. Two pages of one `content` with
 * equal keys are worth a comparison, no more. */
enum dmm_content { DMM_CONTENT_ZERO, DMM_CONTENT_SAME_FILLED /* one 64-bit word */, DMM_CONTENT_DATA };
struct dmm_digest { enum dmm_content content; uint64_t key; };
void dmm_digest_init(void); /* once, before the first */
struct dmm_digest dmm_digest_page(mfn_t mfn, mfn_t next); /* `next`: whose turn comes after it, fetched meanwhile; or INVALID_MFN */
/* A 24-bit tag that a private frame, or a piece of one of 2 MiB, keeps until it gets another owner or page; 0: none. For those who remember
 * frames. */
void dmm_frame_set_tag(mfn_t mfn, gfn_t gfn, uint32_t tag);
/* Could this frame be merged with, and is its tag (if it is private) this one? */
enum dmm_candidate { DMM_CANDIDATE_NONE, DMM_CANDIDATE, DMM_CANDIDATE_IN_LARGE /* merging with it breaks a 2 MiB mapping */ };
enum dmm_candidate dmm_frame_is_candidate(mfn_t mfn, uint32_t tag);

#define DMM_MERGE_BATCH 64u
enum dmm_merge_result {
    DMM_MERGE_DONE,        /* it is shared now and its frame free, or soon */
    DMM_MERGE_ZEROED,      /* it reads as the zero page now */
    DMM_MERGE_ALREADY,     /* the two were one frame before */
    DMM_MERGE_DIFFERENT,   /* the contents are not equal */
    DMM_MERGE_GONE,        /* the page is not what was scanned any more */
    DMM_MERGE_PARTNER_GONE,/* `with` can not be shared: it belongs to nobody now, is pinned, or a page table */
    DMM_MERGE_PINNED,
    DMM_MERGE_FULL,        /* `with` has as many users as a reverse map takes */
    DMM_MERGE_FOREIGN,     /* of another group, and not filled with one word, or one of the groups is secure */
    DMM_MERGE_UNCOVERED,   /* a strict VM's, and no frame can be set aside for the day when it writes */
    DMM_MERGE_NO_MEMORY,   /* for a reverse map */
    DMM_MERGE_RESULT_COUNT,
};
const char *dmm_merge_result_name(enum dmm_merge_result r);
struct dmm_merge {
    gfn_t gfn;             /* a page of the space, on frame `mfn` when it was scanned */
    mfn_t mfn;
    mfn_t with;            /* any frame; INVALID_MFN: it is to read as the zero page */
    enum dmm_merge_result result;
};
/* Merges up to DMM_MERGE_BATCH pages: write-protects them and their partners, has all CPUs forget (once), compares every byte, and only then
 * lets go of a frame. Frames that are free now may still be known to CPUs: they come back with the next batch, or dmm_merge_finish(), which is due
 * before the space is released. One thread only. */
void dmm_merge(struct dmm_space *s, struct dmm_merge *m, unsigned count);
void dmm_merge_finish(void);

/* 512 private 4 KiB pages (or such that read as zero) become one 2 MiB mapping, copied to a frame that can be one. */
enum dmm_resize_result dmm_collapse_large(struct dmm_space *s, gfn_t gfn);

/* ---- fork and snapshot --------------------------------------------------------------------------------------
 *
 * Freezing turns what a space holds into an image, which nobody can write to, and leaves the space empty, inheriting from it: each 2 MiB
 * region is taken over when it is first touched, its frames shared. So the time depends on no size. The image lives until no space, no other
 * image and no holder is left that needs it. */
struct dmm_image;
/* All vCPUs parked, no pins. In a line of a dozen images the time depends on the size once: what is inherited is taken over. */
enum dmm_freeze_result { DMM_FREEZE_OK, DMM_FREEZE_NO_MEMORY, DMM_FREEZE_PINNED };
enum dmm_freeze_result dmm_space_freeze(struct dmm_space *s, struct dmm_image **out); /* `out` is held by the caller */
/* A space of the same size and layout that inherits from it. */
enum dmm_create_result dmm_space_create_from(const struct dmm_space_config *cfg, struct dmm_image *image, struct dmm_space **out);
/* Drops what the space has and lets it inherit from the image. All vCPUs parked, no pins. False: more than its maximum, or can not be
 * covered; nothing happened. */
bool dmm_space_restore(struct dmm_space *s, struct dmm_image *image);
void dmm_image_release(struct dmm_image *image);
uint64_t dmm_image_pages(const struct dmm_image *image); /* frames that it holds and nobody else */

/* ---- who pays -------------------------------------------------------------------------------------------------- */

/* In thousandths of a 4 KiB frame: a frame with n users costs each 1/n. */
struct dmm_bill {
    uint64_t private_milli, shared_milli, image_milli /* boot files' pages */, inherited_milli, overhead_milli;
    uint64_t covered_pages;        /* frames set aside for this VM */
    uint64_t sharers_max;          /* most users of one of its frames */
    uint64_t breaks, break_rate_milli /* of its shared pages, per second, now */;
};
void dmm_space_bill(struct dmm_space *s, struct dmm_bill *out);
/* Frames that all VMs together would need more if nobody shared: their pages that read as something, less the frames that they have (of which the zero
 * page and boot files' are none, nor are those that only images have). Exact while VMs stand still. */
uint64_t dmm_saved_pages(void);
/* What a vCPU that waits in dmm_wait_memory() lacks, as far as one can tell now. */
enum dmm_stall { DMM_STALL_NONE, DMM_STALL_MAXIMUM /* its own */, DMM_STALL_NO_FRAME, DMM_STALL_SET_ASIDE /* for others, or other purposes */ };
enum dmm_stall dmm_stall_reason(const struct dmm_space *s);
void dmm_stall_text(const struct dmm_space *s, char *buf, size_t size); /* the same in words */
bool dmm_waits_for_memory(const struct dmm_space *s); /* is anybody in dmm_wait_memory() for it? */
/* False, and nothing has changed: strict, but what is free does not suffice for the pages that it owes itself (`lacking` of them). */
bool dmm_set_class(struct dmm_space *s, enum dmm_class c, uint64_t *lacking);
enum dmm_class dmm_get_class(const struct dmm_space *s);
/* Once a second, from any thread: how fast do shares break? Insured VMs' covers follow. */
void dmm_insurance_tick(uint64_t elapsed_ns);
uint64_t dmm_covered_pages(void); /* set aside for un-sharing, over all VMs */
uint64_t dmm_promised_pages(void);/* for minima not drawn yet */
uint64_t dmm_reserve_pages(void); /* for what is needed to free more, and breaks of the better classes */

/* ---- guest memory from the hypervisor --------------------------------------------------------------------- */

/* Makes the page a private frame of the guest (whether read or written: a pin lasts, and the guest must not copy the page away
 * under it), keeps it from moving, gives its address. NULL if it is no RAM or no frame is left (*why says which; may be NULL).
 * Each success needs one dmm_unpin with the same gfn. To just read or write bytes use the functions below: they pin nothing. */
void *dmm_pin(struct dmm_space *s, gfn_t gfn, bool write, enum dmm_fault_result *why);
void dmm_unpin(struct dmm_space *s, gfn_t gfn);
/* Byte-wise copies, any alignment and length. Reading maps nothing (EMPTY reads as zero, a boot file's page stays shared), nor does
 * zeroing what reads as zero already. RETRY means done; partial effects are possible on failure. */
enum dmm_fault_result dmm_read_guest(struct dmm_space *s, uint64_t gpa, void *buf, size_t len);
enum dmm_fault_result dmm_write_guest(struct dmm_space *s, uint64_t gpa, const void *buf, size_t len);
enum dmm_fault_result dmm_zero_guest(struct dmm_space *s, uint64_t gpa, size_t len);
/* Fast read of a naturally aligned u64 for guest page walks: no fault-in of absent pages beyond EMPTY reading as 0. */
bool dmm_peek_u64(struct dmm_space *s, uint64_t gpa, uint64_t *out);

/* ---- accounting ----------------------------------------------------------------------------------------- */

enum dmm_fault_cause { /* what a nested fault turned out to be; one latency histogram each */
    DMM_CAUSE_FIRST_TOUCH_4K, DMM_CAUSE_FIRST_TOUCH_4K_CLEARED, /* pre-zeroed frame / cleared in the fault */
    DMM_CAUSE_FIRST_TOUCH_2M, DMM_CAUSE_IMAGE_MAP, DMM_CAUSE_COW_IMAGE, DMM_CAUSE_COW_SHARED,
    DMM_CAUSE_COW_SEALED, DMM_CAUSE_UNPROTECT /* it had it alone */, DMM_CAUSE_INHERIT /* a region of the image it was made from */,
    DMM_CAUSE_ZERO_READ, DMM_CAUSE_ZERO_STORE,
    DMM_CAUSE_SPURIOUS, DMM_CAUSE_STALL, DMM_CAUSE_MOVING, DMM_CAUSE_HOLE, DMM_CAUSE_COUNT,
};
const char *dmm_fault_cause_name(enum dmm_fault_cause c);

struct dmm_hist_summary { uint64_t count, mean_tsc, p50_tsc, p99_tsc, max_tsc; };
void dmm_fault_summary(const struct dmm_space *s /* NULL: all */, enum dmm_fault_cause c, struct dmm_hist_summary *out);

struct dmm_usage { /* of one space, in 4 KiB pages; exact */
    uint64_t configured, resident, resident_large /* of which in 2 MiB mappings */, image_shared, shared, zero,
        empty, pinned, p2m_pages, state_pages, min, max, charged,
        sealed /* traps at the next access: secure groups */, inherited /* not looked at since the fork */, covered;
    uint64_t heap_bytes; /* records, stacks and buffers kept for this VM: with p2m_pages and state_pages its exact overhead */
};
/* What the owner allocated for this VM beside its frames. */
void dmm_space_add_overhead(struct dmm_space *s, uint64_t heap_bytes);
void dmm_space_usage(const struct dmm_space *s, struct dmm_usage *out);

/* The ledger: checks every conservation law on the live system (all spaces frozen for the duration). Calls
 * report(line, arg) for each violation; returns their number. */
unsigned dmm_audit(void (*report)(const char *line, void *arg), void *arg);
void dmm_for_each_space(bool (*cb)(struct dmm_space *s, void *arg), void *arg);
const char *dmm_space_name(const struct dmm_space *s);
bool dmm_space_named(const char *name); /* is there one? */
uint32_t dmm_space_vm_id(const struct dmm_space *s);
void dmm_init(void);
/* How to have every other CPU see our stores, once there are others; it interrupts them. */
void dmm_set_cpu_barrier(void (*fn)(void));

#endif
