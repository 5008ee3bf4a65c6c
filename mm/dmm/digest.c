/*
 * What a page holds, in a number.
 *
 * Pages of one repeated word are told from others at their first words, and need no table to find each other. For the rest XXH64 of Debian's
 * xxHash: vector registers belong to whichever guest ran last, and without them it is faster than XXH3 (395 ns a page against 520). The seed is
 * this boot's secret: a guest that could make pages of equal keys would make the scanner compare for nothing. Equal keys prove nothing anyway;
 * a merge compares every byte.
 */
#include "include/hv/dmm.h"

#include "x86/cpu.h"

#define XXH_INLINE_ALL
#define XXH_VECTOR XXH_SCALAR
#include <xxhash.h>

static uint64_t seed;

void dmm_digest_init(void) { seed = cpu_random(); }

/* Frames that follow each other in a guest seldom do so in memory, and the CPU's own prefetcher stops at the end of each page: the next page is
 * fetched while this one is hashed, a little at a time, so that both keep going. */
static uint64_t hash_page(const uint8_t *page, const uint8_t *next)
{
    enum { STEP = 512, LINE = 64 };
    XXH64_state_t state;
    XXH64_reset(&state, seed);
    for (unsigned at = 0; at < PAGE_SIZE; at += STEP) {
        for (unsigned line = 0; line < STEP; line += LINE)
            __builtin_prefetch(next + at + line);
        XXH64_update(&state, page + at, STEP);
    }
    return XXH64_digest(&state);
}

struct dmm_digest dmm_digest_page(mfn_t mfn, mfn_t next)
{
    const volatile uint64_t *page = mfn_to_hva(mfn); /* a guest may be writing to it */
    uint64_t first = page[0];
    unsigned n = 1;
    while (n < PAGE_SIZE / sizeof(*page) && page[n] == first)
        n++;
    if (n < PAGE_SIZE / sizeof(*page))
        return (struct dmm_digest){ DMM_CONTENT_DATA, hash_page((const void *)(uintptr_t)page, mfn_to_hva(mfn_valid(next) ? next : mfn)) };
    if (!first)
        return (struct dmm_digest){ DMM_CONTENT_ZERO, 0 };
    return (struct dmm_digest){ DMM_CONTENT_SAME_FILLED, XXH64(&first, sizeof(first), seed) };
}
