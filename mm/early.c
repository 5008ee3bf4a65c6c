/*
 * Boot-time memory. Page tables and the frame table are needed to build the allocator that would supply them, so the first
 * pages come from a cursor that walks the usable ranges upwards. It never frees. What it took is recorded range by
 * range (neighbours of one purpose merge, so the list stays short), and frame_init() reads the list: the ledger then
 * accounts for these frames like for all others.
 *
 * The cursor starts at 1 MiB: real-mode memory is left for the trampolines of other CPUs.
 */
#include "mm/early.h"
#include "core/log.h"
#include "include/abi/boot_info.h"
#include "lib/string.h"

#define MAX_TAKEN 256

static struct { uint64_t hpa, bytes; enum frame_type purpose; } taken[MAX_TAKEN];
static unsigned taken_count;
static const struct boot_info *boot;
static uint32_t range;          /* index of the range the cursor is in */
static uint64_t cursor = MIB(1);
static bool sealed;

void early_init(const struct boot_info *bi)
{
    boot = bi;
}

static void record(uint64_t hpa, uint64_t bytes, enum frame_type purpose)
{
    if (taken_count && taken[taken_count - 1].hpa + taken[taken_count - 1].bytes == hpa &&
        taken[taken_count - 1].purpose == purpose) {
        taken[taken_count - 1].bytes += bytes;
        return;
    }
    if (taken_count == MAX_TAKEN)
        panic("early memory: more than %d separate allocations", MAX_TAKEN);
    taken[taken_count].hpa = hpa;
    taken[taken_count].bytes = bytes;
    taken[taken_count++].purpose = purpose;
}

uint64_t early_alloc(uint64_t bytes, uint64_t align, enum frame_type purpose)
{
    hv_assert(!sealed && bytes && IS_ALIGNED(bytes, PAGE_SIZE) && IS_ALIGNED(align, PAGE_SIZE));
    for (; range < boot->mem_count; range++) {
        const struct boot_mem_range *r = &boot->mem[range];
        uint64_t hpa = ALIGN_UP(MAX(cursor, r->base), align);
        if (r->type != BOOT_MEM_USABLE || hpa >= r->base + r->size || r->base + r->size - hpa < bytes)
            continue;
        cursor = hpa + bytes;
        record(hpa, bytes, purpose);
        memset(mfn_to_hva(hpa_to_mfn(hpa)), 0, bytes);
        return hpa;
    }
    return 0;
}

/* From the top: what firmware left at the bottom (its own real-mode data, as a rule) may be of use to somebody's debugger. */
uint64_t early_alloc_low(enum frame_type purpose)
{
    static uint64_t low_end = MIB(1);
    hv_assert(!sealed);
    uint64_t best = 0;
    for (uint32_t n = 0; n < boot->mem_count; n++) {
        const struct boot_mem_range *r = &boot->mem[n];
        uint64_t end = MIN(r->base + r->size, low_end);
        if (r->type == BOOT_MEM_USABLE && end > r->base && end - PAGE_SIZE >= MAX(r->base, PAGE_SIZE))
            best = end - PAGE_SIZE;
    }
    if (!best)
        return 0;
    low_end = best;
    record(best, PAGE_SIZE, purpose);
    memset(mfn_to_hva(hpa_to_mfn(best)), 0, PAGE_SIZE);
    return best;
}

void early_for_each_taken(void (*cb)(uint64_t, uint64_t, enum frame_type, void *), void *arg)
{
    for (unsigned i = 0; i < taken_count; i++)
        cb(taken[i].hpa, taken[i].bytes, taken[i].purpose, arg);
}

void early_seal(void)
{
    sealed = true;
}

bool early_is_sealed(void)
{
    return sealed;
}
