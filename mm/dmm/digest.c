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

struct dmm_digest dmm_digest_page(mfn_t mfn)
{
    const volatile uint64_t *page = mfn_to_hva(mfn); /* a guest may be writing to it */
    uint64_t first = page[0];
    unsigned n = 1;
    while (n < PAGE_SIZE / sizeof(*page) && page[n] == first)
        n++;
    if (n < PAGE_SIZE / sizeof(*page))
        return (struct dmm_digest){ DMM_CONTENT_DATA, XXH64((const void *)(uintptr_t)page, PAGE_SIZE, seed) };
    if (!first)
        return (struct dmm_digest){ DMM_CONTENT_ZERO, 0 };
    return (struct dmm_digest){ DMM_CONTENT_SAME_FILLED, XXH64(&first, sizeof(first), seed) };
}

/* The CPU's own prefetcher stops at the end of each page and has to be started anew. */
void dmm_digest_soon(mfn_t mfn)
{
    const char *page = mfn_to_hva(mfn);
    for (unsigned line = 0; line < 8; line++)
        __builtin_prefetch(page + 64 * line);
}
