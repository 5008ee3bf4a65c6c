/*
 * The hypervisor's own page tables. The loader's tables live in memory that is about to become guests', and map it
 * executable; so the first thing core does is to build its own:
 *
 *   HV_DIRECTMAP_BASE  every byte of RAM that the firmware reports, and of its tables: RW, NX, in the largest pages that fit;
 *                      devices are not in it, so that no stray cacheable mapping of a register can exist
 *   VMAP_BASE          stacks between guard pages, device windows, large objects: mm/vmap.c
 *   0xffffe000...      the frame table, backed only where there is RAM: mm/dmm/frame.c
 *   HV_LINK_BASE       the image: text R-X, rodata R--, data and bss RW-; nothing is both writable and executable
 *
 * The page below the boot stack is left out as its guard. There is no identity map. All leaves are global: there is one
 * host address space, and guests have their own tags.
 */
#include "mm/early.h"
#include "core/ipi.h"
#include "core/lock.h"
#include "core/log.h"
#include "include/abi/boot_info.h"
#include "include/hw/paging.h"
#include "mm/mm.h"
#include "x86/cpu.h"

extern char hv_text_start[], hv_text_end[], hv_rodata_start[], hv_rodata_end[], hv_data_start[], hv_bss_end[];
extern char boot_stack_bottom[];

static uint64_t root_hpa;
static struct spinlock map_lock = SPINLOCK_INIT(LOCK_RANK_HOSTMAP, "hostmap");

static uint64_t *table_at(uint64_t entry)
{
    return mfn_to_hva(hpa_to_mfn(entry & PTE_ADDR_MASK));
}

static uint64_t new_table(void)
{
    if (!early_is_sealed())
        return early_alloc(PAGE_SIZE, PAGE_SIZE, FRAME_HV_PAGETABLE);
    mfn_t m = frame_alloc(0, FRAME_ZEROED | FRAME_RESERVE_OK, FRAME_HV_PAGETABLE, NULL);
    return mfn_valid(m) ? mfn_to_hpa(m) : 0;
}

/* The entry for va at `level`, with the tables above it made if `create`. NULL: absent, a larger leaf, or no frame. */
static uint64_t *entry_at(uint64_t va, unsigned level, bool create)
{
    uint64_t *table = mfn_to_hva(hpa_to_mfn(root_hpa));
    for (unsigned l = PT_LEVELS; l > level; l--) {
        uint64_t *e = &table[PT_INDEX(va, l)];
        if (!(*e & PTE_P)) {
            uint64_t hpa = create ? new_table() : 0;
            if (!hpa)
                return NULL;
            *e = hpa | PTE_P | PTE_W;
        } else if (l < PT_LEVELS && (*e & PTE_PS)) {
            return NULL;
        }
        table = table_at(*e);
    }
    return &table[PT_INDEX(va, level)];
}

static void map_leaf(uint64_t va, uint64_t hpa, unsigned level, uint64_t bits)
{
    uint64_t *e = entry_at(va, level, true);
    if (!e || (*e & PTE_P))
        panic("hostmap: cannot map %#lx (level %u): %s", va, level, e ? "mapped already" : "no frame for a table");
    *e = hpa | bits | PTE_P | PTE_G | (level > 1 ? PTE_PS : 0);
}

/* Largest pages that alignment, length and the CPU allow. */
static void map_range(uint64_t va, uint64_t hpa, uint64_t bytes, uint64_t bits)
{
    bool have_1g = cpu_info()->pages_1g;
    while (bytes) {
        unsigned level = 1;
        for (unsigned l = have_1g ? 3 : 2; l > 1 && level == 1; l--)
            if (IS_ALIGNED(va | hpa, UINT64_C(1) << PT_SHIFT(l)) && bytes >= UINT64_C(1) << PT_SHIFT(l))
                level = l;
        uint64_t step = UINT64_C(1) << PT_SHIFT(level);
        map_leaf(va, hpa, level, bits);
        va += step;
        hpa += step;
        bytes -= step;
    }
}

static bool is_memory(uint32_t type)
{
    return type == BOOT_MEM_USABLE || type == BOOT_MEM_LOADER || type == BOOT_MEM_IMAGE || type == BOOT_MEM_ACPI_RECLAIM ||
           type == BOOT_MEM_ACPI_NVS;
}

static void map_direct(const struct boot_info *bi)
{
    for (uint32_t i = 0; i < bi->mem_count;) {
        uint64_t base = bi->mem[i].base, end = base;
        for (; i < bi->mem_count && bi->mem[i].base == end && is_memory(bi->mem[i].type); i++)
            end += bi->mem[i].size; /* neighbours share large pages */
        if (end > base)
            map_range(HV_DIRECTMAP_BASE + base, base, end - base, PTE_W | PTE_NX);
        else
            i++;
    }
}

static void map_image_part(const struct boot_info *bi, const char *start, const char *end, uint64_t bits)
{
    uint64_t va = (uintptr_t)start, stop = ALIGN_UP((uintptr_t)end, PAGE_SIZE);
    for (; va < stop; va += PAGE_SIZE)
        if (va != (uintptr_t)boot_stack_bottom - PAGE_SIZE)
            map_leaf(va, bi->image_hpa + (va - HV_LINK_BASE), 1, bits);
}

void hostmap_init(const struct boot_info *bi)
{
    root_hpa = early_alloc(PAGE_SIZE, PAGE_SIZE, FRAME_HV_PAGETABLE);
    if (!root_hpa)
        panic("hostmap: no memory for page tables");
    map_direct(bi);
    map_image_part(bi, hv_text_start, hv_text_end, 0);
    map_image_part(bi, hv_rodata_start, hv_rodata_end, PTE_NX);
    map_image_part(bi, hv_data_start, hv_bss_end, PTE_W | PTE_NX);
    write_cr3(root_hpa);
    write_cr4(read_cr4() | CR4_PGE);
}

uint64_t hostmap_root_hpa(void) { return root_hpa; }

/* The entry for the page at va, after `e`, that of the page before it (NULL: none): a walk for each table, not for each page. */
static uint64_t *next_entry(uint64_t *e, uint64_t va, bool create)
{
    return e && PT_INDEX(va, 1) ? e + 1 : entry_at(va, 1, create);
}

/* Either frames[0..pages-1], or from hpa on. */
static bool map_pages(uint64_t va, const mfn_t *frames, uint64_t hpa, uint64_t pages, unsigned flags)
{
    uint64_t bits = PTE_P | PTE_G | PTE_NX | (flags & HOSTMAP_RW ? PTE_W : 0) | (flags & HOSTMAP_UC ? PTE_CACHE_UC : 0);
    uint64_t *e = NULL, done = 0;
    spin_lock(&map_lock);
    for (; done < pages; done++) {
        e = next_entry(e, va + done * PAGE_SIZE, true);
        if (!e)
            break;
        hv_assert(!(*e & PTE_P));
        *e = (frames ? mfn_to_hpa(frames[done]) : hpa + done * PAGE_SIZE) | bits;
    }
    spin_unlock(&map_lock);
    if (done < pages)
        hostmap_unmap(va, done * PAGE_SIZE);
    return done == pages;
}

bool hostmap_map(uint64_t va, uint64_t hpa, uint64_t bytes, unsigned flags)
{
    return map_pages(va, NULL, hpa, ALIGN_UP(bytes, PAGE_SIZE) / PAGE_SIZE, flags);
}

bool hostmap_map_frames(uint64_t va, const mfn_t *frames, uint64_t pages, unsigned flags) { return map_pages(va, frames, 0, pages, flags); }

struct range { uint64_t va, end; };

/* On another CPU. */
static void forget(void *arg)
{
    const struct range *r = arg;
    for (uint64_t va = r->va; va < r->end; va += PAGE_SIZE)
        invlpg((const void *)va);
}

void hostmap_unmap(uint64_t va, uint64_t bytes)
{
    struct range gone = {va, va + bytes};
    uint64_t *e = NULL;
    spin_lock(&map_lock);
    for (uint64_t end = va + bytes; va < end; va += PAGE_SIZE) {
        e = next_entry(e, va, false);
        hv_assert(e && (*e & PTE_P));
        *e = 0;
        invlpg((const void *)va);
    }
    spin_unlock(&map_lock);
    cpu_call_others(forget, &gone);
}

uint64_t hostmap_lookup(uint64_t va)
{
    for (unsigned level = 1; level <= 3; level++) {
        const uint64_t *e = entry_at(va, level, false);
        if (e && (*e & PTE_P) && (level == 1 || (*e & PTE_PS))) {
            uint64_t offset = va & ((UINT64_C(1) << PT_SHIFT(level)) - 1);
            return (*e & PTE_ADDR_MASK & ~((UINT64_C(1) << PT_SHIFT(level)) - 1)) | offset;
        }
    }
    return INVALID_FRAME;
}
