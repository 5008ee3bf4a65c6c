/*
 * The virtual region for everything that must not sit in the direct map: stacks, which want an unmapped page below so that an
 * overflow faults at its first byte, device windows, which want another cache type, and objects larger than a page, whose
 * frames need not be contiguous.
 *
 * The region is one array of 4 KiB slots with a bitmap (1 GiB, 32 KiB of bitmap). First fit from a moving hint: allocations are
 * few and short-lived VMs return theirs, so search cost does not matter, whereas a freed stack's addresses must be
 * reusable for ever. Each allocation is one slot longer than asked, and that slot, the lowest, stays unmapped: every
 * object has a guard below it, and above it its neighbour's.
 */
#include "mm/vmap.h"
#include "core/lock.h"
#include "core/log.h"
#include "include/hv/dmm.h"
#include "lib/string.h"
#include "mm/early.h"
#include "mm/mm.h"

#define VMAP_BASE 0xffffc00000000000
#define VMAP_SLOTS (GIB(1) / PAGE_SIZE)
#define BATCH UINT64_C(64)

static uint64_t slot_taken[VMAP_SLOTS / 64];
static uint64_t hint;
static struct spinlock vmap_lock = SPINLOCK_INIT(LOCK_RANK_VMAP, "vmap");

static bool is_taken(uint64_t slot)
{
    return slot_taken[slot / 64] & BIT64(slot % 64);
}

static void mark(uint64_t first, uint64_t count, bool taken)
{
    for (uint64_t s = first; s < first + count; s++) {
        hv_assert(is_taken(s) != taken);
        slot_taken[s / 64] ^= BIT64(s % 64);
    }
}

static uint64_t find_run(uint64_t from, uint64_t to, uint64_t count)
{
    for (uint64_t s = from, run = 0; s < to; s++) {
        run = is_taken(s) ? 0 : run + 1;
        if (run == count)
            return s + 1 - count;
    }
    return VMAP_SLOTS;
}

uint64_t vmap_reserve(uint64_t pages)
{
    uint64_t count = pages + 1;
    spin_lock(&vmap_lock);
    uint64_t first = find_run(hint, VMAP_SLOTS, count);
    if (first == VMAP_SLOTS)
        first = find_run(0, VMAP_SLOTS, count);
    if (first != VMAP_SLOTS) {
        mark(first, count, true);
        hint = first + count;
    }
    spin_unlock(&vmap_lock);
    return first == VMAP_SLOTS ? 0 : VMAP_BASE + (first + 1) * PAGE_SIZE;
}

void vmap_release(uint64_t va, uint64_t pages)
{
    uint64_t first = (va - VMAP_BASE) / PAGE_SIZE - 1;
    spin_lock(&vmap_lock);
    mark(first, pages + 1, false);
    if (first < hint)
        hint = first;
    spin_unlock(&vmap_lock);
}

bool vmap_contains(const void *p)
{
    return (uintptr_t)p - VMAP_BASE < VMAP_SLOTS * PAGE_SIZE;
}

static void unback(uint64_t va, uint64_t pages)
{
    mfn_t batch[BATCH];
    for (uint64_t done = 0, n; done < pages; done += n) { /* a frame goes only after every CPU has forgotten it */
        n = MIN(pages - done, BATCH);
        for (uint64_t i = 0; i < n; i++)
            batch[i] = hpa_to_mfn(hostmap_lookup(va + (done + i) * PAGE_SIZE));
        hostmap_unmap(va + done * PAGE_SIZE, n * PAGE_SIZE);
        for (uint64_t i = 0; i < n; i++)
            frame_free(batch[i], 0);
    }
}

/* All of them or none. */
static bool back(uint64_t va, uint64_t pages)
{
    mfn_t batch[BATCH];
    uint64_t have = 0;
    while (have < pages && mfn_valid(batch[have] = frame_alloc(0, FRAME_ZEROED, FRAME_HV_HEAP, NULL)))
        have++;
    if (have == pages && hostmap_map_frames(va, batch, pages, HOSTMAP_RW))
        return true;
    while (have)
        frame_free(batch[--have], 0);
    return false;
}

void *vmap_alloc(uint64_t pages)
{
    uint64_t va = vmap_reserve(pages), done = 0;
    if (!va)
        return NULL;
    while (done < pages && back(va + done * PAGE_SIZE, MIN(pages - done, BATCH)))
        done += MIN(pages - done, BATCH);
    if (done == pages)
        return (void *)va;
    unback(va, done);
    vmap_release(va, pages);
    return NULL;
}

void vmap_free(void *p, uint64_t pages)
{
    unback((uintptr_t)p, pages);
    vmap_release((uintptr_t)p, pages);
}

void *stack_alloc(size_t bytes)
{
    hv_assert(IS_ALIGNED(bytes, PAGE_SIZE));
    return vmap_alloc(bytes / PAGE_SIZE);
}

void stack_free(void *base, size_t bytes)
{
    vmap_free(base, bytes / PAGE_SIZE);
}

void *map_mmio(uint64_t hpa, size_t size)
{
    uint64_t offset = hpa & (PAGE_SIZE - 1);
    uint64_t pages = ALIGN_UP(offset + size, PAGE_SIZE) / PAGE_SIZE;
    uint64_t va = vmap_reserve(pages);
    if (!va || !hostmap_map(va, hpa - offset, pages * PAGE_SIZE, HOSTMAP_RW | HOSTMAP_UC))
        return NULL;
    return (void *)(va + offset);
}
