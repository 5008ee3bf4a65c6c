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
    FRAME_SHARED,       /* guest memory shared copy-on-write (refcount) */
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
struct waitq *frame_low_zeroed_waitq(void); /* woken when the pre-zeroed stock falls below its low mark */
bool frame_zeroed_is_low(void);
void dmm_zero_thread(void *arg);         /* body of that thread (THREAD_PRIO_IDLE) */
/* On every CPU but the boot CPU, before it first uses DMM: its magazines. False: out of frames. */
bool frame_cpu_init(void);
/* Direct map. Pure arithmetic, valid for every frame of RAM. */
void *mfn_to_hva(mfn_t mfn);
mfn_t hva_to_mfn(const void *hva);

/* ---- spaces ------------------------------------------------------------------------------------------- */

enum dmm_access { DMM_READ = 1, DMM_WRITE = 2, DMM_EXEC = 4 };

enum dmm_fault_result {
    DMM_FAULT_RETRY,    /* the page is usable for this access now: run the instruction again */
    DMM_FAULT_BLOCKED,  /* work is under way: dmm_wait() until it is done, then run the instruction again */
    DMM_FAULT_STALLED,  /* no frame left (pool or machine): dmm_wait_memory(), say why, then try again */
    DMM_FAULT_HOLE,     /* not memory of this VM: the caller decides (device, open bus) */
    DMM_FAULT_DENIED,   /* memory, but this access is never allowed (image-ro executed as device, poison) */
};
const char *dmm_fault_result_name(enum dmm_fault_result r);

struct dmm_space_ops {  /* supplied by the owner (vm/) */
    /* Make every CPU that runs this space leave the guest and flush before it re-enters. Called after the
     * generation was bumped; must not return before all have acknowledged if `wait`. */
    void (*kick)(void *owner, bool wait);
};

struct dmm_space_config {
    const char *name;
    uint32_t vm_id;
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
/* All vCPUs stopped, no pins left. Gives back every frame. */
void dmm_space_destroy(struct dmm_space *s);
/* Declares [first, first+pages) as RAM (EMPTY). Everything else is HOLE. Before the first fault. */
bool dmm_space_add_ram(struct dmm_space *s, gfn_t first, uint64_t pages);
/* Root of the nested table, for nCR3/EPTP, and the generation that the vendor code compares before each entry. */
uint64_t dmm_space_root_hpa(const struct dmm_space *s);
uint64_t dmm_space_flush_generation(const struct dmm_space *s);
bool dmm_gfn_is_ram(const struct dmm_space *s, gfn_t gfn);

/* The nested fault. `access` is a mask of enum dmm_access; write implies read. */
enum dmm_fault_result dmm_fault(struct dmm_space *s, gfn_t gfn, unsigned access);
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
const char *dmm_move_result_name(enum dmm_move_result r);
enum dmm_move_result dmm_move_page(struct dmm_space *s, gfn_t gfn);
enum dmm_move_result dmm_protect_page(struct dmm_space *s, gfn_t gfn);
/* The space of that id (1..DMM_MAX_SPACES), kept from being cleared or destroyed until the release; NULL: there is none, or it is about to
 * be. A policy's thread holds one at a time, and never blocks meanwhile. */
#define DMM_MAX_SPACES 1024u
struct dmm_space *dmm_space_acquire(unsigned id);
void dmm_space_release(struct dmm_space *s);
uint64_t dmm_space_end_gfn(const struct dmm_space *s); /* all its RAM is below */

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
    DMM_CAUSE_FIRST_TOUCH_2M, DMM_CAUSE_IMAGE_MAP, DMM_CAUSE_COW_IMAGE, DMM_CAUSE_COW_SHARED, DMM_CAUSE_ZERO_READ,
    DMM_CAUSE_SPURIOUS, DMM_CAUSE_STALL, DMM_CAUSE_MOVING, DMM_CAUSE_HOLE, DMM_CAUSE_COUNT,
};
const char *dmm_fault_cause_name(enum dmm_fault_cause c);

struct dmm_hist_summary { uint64_t count, mean_tsc, p50_tsc, p99_tsc, max_tsc; };
void dmm_fault_summary(const struct dmm_space *s /* NULL: all */, enum dmm_fault_cause c, struct dmm_hist_summary *out);

struct dmm_usage { /* of one space, in 4 KiB pages; exact */
    uint64_t configured, resident, resident_large /* of which in 2 MiB mappings */, image_shared, shared, zero,
        empty, pinned, p2m_pages, state_pages, min, max, charged;
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
uint32_t dmm_space_vm_id(const struct dmm_space *s);
void dmm_init(void);
/* How to have every other CPU see our stores, once there are others; it interrupts them. */
void dmm_set_cpu_barrier(void (*fn)(void));

#endif
