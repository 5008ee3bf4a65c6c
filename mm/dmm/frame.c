/*
 * The frame table: one 16-byte record for each machine frame, built once from the firmware's map.
 *
 * Every frame that is RAM and ours is in exactly one type from here on; types change only in frame_assign(), frame_free() and the
 * zeroing of free frames, each of which moves a per-CPU count from one type to another. So the counts add up to the machine
 * by construction, and the audit proves it by counting the records.
 */
#include "mm/dmm/frame.h"

#include "core/log.h"
#include "include/abi/boot_info.h"
#include "mm/dmm/space.h"
#include "mm/early.h"

struct frame_run frame_runs[BOOT_MAX_MEM_RANGES];
unsigned frame_run_count;
int64_t frame_boot_count[FRAME_TYPE_COUNT];
static uint64_t frame_total;

const char *frame_type_name(enum frame_type t)
{
    static const char *const names[FRAME_TYPE_COUNT] = {
        "unusable", "free", "free-zeroed", "hv-image", "hv-heap", "hv-pagetable", "frame-table", "boot-file", "p2m",
        "vm-state", "guest", "shared", "rmap",
    };
    return (unsigned)t < FRAME_TYPE_COUNT ? names[t] : "?";
}

void *mfn_to_hva(mfn_t m) { return (void *)(DIRECTMAP_VA + mfn_to_hpa(m)); }
mfn_t hva_to_mfn(const void *hva) { return hpa_to_mfn((uintptr_t)hva - DIRECTMAP_VA); }

bool frame_exists(mfn_t m)
{
    unsigned low = 0, high = frame_run_count;
    while (low < high) {
        unsigned mid = (low + high) / 2;
        if (m.v < frame_runs[mid].first)
            high = mid;
        else if (m.v >= frame_runs[mid].end)
            low = mid + 1;
        else
            return true;
    }
    return false;
}

struct frame *frame_record(mfn_t m)
{
    if (unlikely(__atomic_load_n(child_free_of(m.v / LARGE_PAGES), __ATOMIC_RELAXED) == CHILD_HUGE))
        return frame_of(mfn_of(ALIGN_DOWN(m.v, LARGE_PAGES)));
    return frame_of(m);
}

enum frame_type frame_get_type(mfn_t m) { return frame_exists(m) ? frame_record(m)->type : FRAME_UNUSABLE; }
uint64_t frame_total_pages(void) { return frame_total; }
uint64_t frame_free_pages(void) { return frame_count(FRAME_FREE) + frame_count(FRAME_FREE_ZEROED); }

uint64_t frame_count(enum frame_type t)
{
    int64_t n = __atomic_load_n(&frame_boot_count[t], __ATOMIC_RELAXED);
    for (const struct frame_cpu *c = frame_cpus; c; c = c->next)
        n += c->type_count[t];
    return n > 0 ? (uint64_t)n : 0;
}

unsigned frame_split_large(mfn_t first)
{
    struct frame head = *frame_of(first);
    unsigned pinned = 0;
    debug_assert(head.flags & FRAME_LARGE);
    for (uint64_t n = LARGE_PAGES; n-- > 0;) {
        struct frame *f = frame_of(mfn_add(first, n)), was = *f;
        if (n)
            head.refs -= was.refs; /* in the end it has its own, too */
        *f = head;
        f->refs = n ? was.refs : head.refs;
        f->tag = was.tag; /* each piece has had its own */
        f->flags = 0;
        f->gfn = head.gfn == GFN_NONE ? GFN_NONE : head.gfn + n;
        pinned += f->refs != 0;
    }
    __atomic_store_n(child_free_of(first.v / LARGE_PAGES), 0, __ATOMIC_RELEASE);
    return pinned;
}

void frame_join_large(mfn_t first)
{
    debug_assert(*child_free_of(first.v / LARGE_PAGES) == 0);
    frame_of(first)->flags = FRAME_LARGE;
    __atomic_store_n(child_free_of(first.v / LARGE_PAGES), CHILD_HUGE, __ATOMIC_RELEASE);
}

/* ---- boot ------------------------------------------------------------------------------------------------ */

/* Backs the bytes [start, end) of one of the three arrays. Calls come in ascending order for each; `*covered` remembers. */
static void cover(uint64_t start, uint64_t end, uint64_t *covered)
{
    start = MAX(ALIGN_DOWN(start, PAGE_SIZE), *covered);
    end = ALIGN_UP(end, PAGE_SIZE);
    if (start >= end)
        return;
    uint64_t hpa = early_alloc(end - start, PAGE_SIZE, FRAME_FRAMETABLE);
    if (!hpa || !hostmap_map(start, hpa, end - start, HOSTMAP_RW))
        panic("frames: no memory for %lu bytes of frame table", end - start);
    *covered = end;
}

static bool is_ours(uint32_t type)
{
    return type == BOOT_MEM_USABLE || type == BOOT_MEM_LOADER || type == BOOT_MEM_IMAGE;
}

static void find_runs(const struct boot_info *bi)
{
    for (uint32_t n = 0; n < bi->mem_count; n++) {
        const struct boot_mem_range *r = &bi->mem[n];
        uint64_t first = ALIGN_DOWN(r->base >> PAGE_SHIFT, LARGE_PAGES);
        uint64_t end = MIN(ALIGN_UP((r->base + r->size) >> PAGE_SHIFT, LARGE_PAGES), FRAME_MAX_MFN);
        if (!is_ours(r->type) || first >= end)
            continue;
        struct frame_run *last = frame_run_count ? &frame_runs[frame_run_count - 1] : NULL;
        if (last && first <= last->end)
            last->end = MAX(last->end, end);
        else
            frame_runs[frame_run_count++] = (struct frame_run){ first, end };
    }
}

/* The trees that have any RAM, as a dense list that a search can walk. */
static const uint32_t *list_trees(uint64_t *count)
{
    const uint64_t tree_frames = TREE_CHILDREN * LARGE_PAGES;
    uint64_t bound = 0, n = 0;
    for (unsigned k = 0; k < frame_run_count; k++)
        bound += (frame_runs[k].end - 1) / tree_frames - frame_runs[k].first / tree_frames + 1;
    uint64_t hpa = early_alloc(ALIGN_UP(bound * sizeof(uint32_t), PAGE_SIZE), PAGE_SIZE, FRAME_FRAMETABLE);
    if (!hpa)
        panic("frames: no memory for the list of trees");
    uint32_t *trees = mfn_to_hva(hpa_to_mfn(hpa));
    for (unsigned k = 0; k < frame_run_count; k++)
        for (uint64_t t = frame_runs[k].first / tree_frames; t <= (frame_runs[k].end - 1) / tree_frames; t++)
            if (n == 0 || trees[n - 1] != t)
                trees[n++] = (uint32_t)t;
    *count = n;
    return trees;
}

/* Gives [base, base+bytes) a type, wherever it has one of ours already or `fresh` says that it is new. */
static void set_type(uint64_t base, uint64_t bytes, enum frame_type type, bool fresh)
{
    uint64_t end = (base + bytes + PAGE_SIZE - 1) >> PAGE_SHIFT;
    for (uint64_t n = base >> PAGE_SHIFT; n < MIN(end, FRAME_MAX_MFN); n++) {
        struct frame *f = frame_of(mfn_of(n));
        if (!frame_exists(mfn_of(n)) || (!fresh && f->type == FRAME_UNUSABLE) || n == 0)
            continue; /* mfn 0 stays out of it: an address of 0 is nobody's frame */
        frame_boot_count[f->type] -= f->type != FRAME_UNUSABLE;
        frame_total += f->type == FRAME_UNUSABLE;
        frame_boot_count[type]++;
        *f = (struct frame){ .gfn = GFN_NONE, .type = type };
    }
}

static void taken_early(uint64_t hpa, uint64_t bytes, enum frame_type purpose, void *arg)
{
    (void)arg;
    set_type(hpa, bytes, purpose, false);
}

/* Everything typed FREE in [first, end) goes to the allocator. */
static void free_run(uint64_t first, uint64_t end)
{
    for (uint64_t n = first, start; n < end; n++) {
        if (frame_of(mfn_of(n))->type != FRAME_FREE)
            continue;
        for (start = n; n < end && frame_of(mfn_of(n))->type == FRAME_FREE; n++)
            continue;
        frame_add_free(start, n - start);
    }
}

void frame_init(const struct boot_info *bi)
{
    static struct frame_cpu boot_cpu;
    uint64_t table = 0, children = 0, trees = 0, tree_count;

    find_runs(bi);
    for (unsigned k = 0; k < frame_run_count; k++) {
        const struct frame_run r = frame_runs[k];
        uint64_t c0 = r.first / LARGE_PAGES, c1 = r.end / LARGE_PAGES;
        cover((uintptr_t)frame_of(mfn_of(r.first)), (uintptr_t)frame_of(mfn_of(r.end)), &table);
        cover((uintptr_t)child_of(c0), (uintptr_t)child_of(c1), &children);
        cover((uintptr_t)tree_of(c0 / TREE_CHILDREN), (uintptr_t)(tree_of((c1 - 1) / TREE_CHILDREN) + 1), &trees);
    }
    const uint32_t *tree_list = list_trees(&tree_count);

    uint64_t pages = 0;
    for (uint32_t n = 0; n < bi->mem_count; n++)
        pages += bi->mem[n].type == BOOT_MEM_USABLE ? bi->mem[n].size >> PAGE_SHIFT : 0;
    frame_alloc_init(pages, tree_list, tree_count); /* its own early_alloc()s are the last */
    frame_cpu_setup(&boot_cpu);

    static const enum frame_type type_of[] = { [BOOT_MEM_USABLE] = FRAME_FREE, [BOOT_MEM_LOADER] = FRAME_HV_HEAP,
                                               [BOOT_MEM_IMAGE] = FRAME_HV_IMAGE };
    for (uint32_t n = 0; n < bi->mem_count; n++)
        if (is_ours(bi->mem[n].type))
            set_type(bi->mem[n].base, bi->mem[n].size, type_of[bi->mem[n].type], true);
    for (uint32_t n = 0; n < MIN(bi->file_count, (uint32_t)BOOT_MAX_FILES); n++)
        set_type(bi->files[n].hpa, bi->files[n].size, FRAME_BOOT_FILE, false);
    early_for_each_taken(taken_early, NULL);

    for (unsigned k = 0; k < frame_run_count; k++)
        free_run(frame_runs[k].first, frame_runs[k].end);
    log_info("frames: %lu MiB in %u ranges, %lu MiB free, %lu KiB of records, reserve %lu KiB", frame_total >> 8,
             frame_run_count, frame_free_pages() >> 8, frame_count(FRAME_FRAMETABLE) * 4, frame_reserve_pages() * 4);
}

void frame_release_loader_memory(const struct boot_info *bi)
{
    for (uint32_t n = 0; n < bi->mem_count; n++) {
        const struct boot_mem_range *r = &bi->mem[n];
        if (r->type != BOOT_MEM_LOADER)
            continue;
        uint64_t first = r->base >> PAGE_SHIFT, end = (r->base + r->size) >> PAGE_SHIFT;
        for (uint64_t m = first; m < end; m++)
            if (frame_exists(mfn_of(m)) && frame_of(mfn_of(m))->type == FRAME_HV_HEAP)
                frame_free(mfn_of(m), 0);
    }
}
