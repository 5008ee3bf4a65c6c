/*
 * What a page holds, in a number.
 *
 * Pages of one repeated word are told from others at their first words, and need no table to find each other. For the rest XXH3 of Debian's
 * xxHash, in its scalar form: vector registers belong to whichever guest ran last. The seed is this boot's secret: a guest
 * that could make pages of equal keys would make the scanner compare for nothing. Equal keys prove nothing anyway; a merge compares every byte.
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
        return (struct dmm_digest){ DMM_CONTENT_DATA, XXH3_64bits_withSeed((const void *)(uintptr_t)page, PAGE_SIZE, seed) };
    if (!first)
        return (struct dmm_digest){ DMM_CONTENT_ZERO, 0 };
    return (struct dmm_digest){ DMM_CONTENT_SAME_FILLED, XXH3_64bits_withSeed(&first, sizeof(first), seed) };
}
