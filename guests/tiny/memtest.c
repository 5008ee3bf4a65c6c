/*
 * Memory test: every word's value depends on seed, loop, page and place, so a page that comes back as another page, an older
 * self or zero is seen. Each page is read back in full before it is written anew.
 *
 *   pages=N (default: all free memory)  order=seq|rev|random|stride  seed=S  loops=L (default 1)  forever  nozero
 *
 * Memory must read zero before the first write, unless `nozero`. Ends with `memtest: ok`, or with `memtest: WRONG ...` and code 1.
 */
#include "tiny.h"

enum order { SEQ, REV, RANDOM, STRIDE };

static uint64_t base, pages, seed;

static uint64_t word_of(uint64_t loop, uint64_t page, uint64_t n)
{
    uint64_t x = seed * UINT64_C(0xd1342543de82ef95) + loop * UINT64_C(0x2545f4914f6cdd1d) + page * 512 + n;
    return (x ^ x >> 29) * UINT64_C(0xbf58476d1ce4e5b9);
}

/* The n-th page in this order: a permutation, for RANDOM and STRIDE by a step that has no divisor in common with the number. */
static uint64_t nth(enum order o, uint64_t step, uint64_t n) { return o == SEQ ? n : o == REV ? pages - 1 - n : (n * step + 7) % pages; }

static uint64_t gcd(uint64_t a, uint64_t b) { return b ? gcd(b, a % b) : a; }

static uint64_t step_for(enum order o)
{
    uint64_t state = seed, step = o == STRIDE ? 512 + 1 : random_next(&state) % pages;
    while (step < 2 || gcd(step, pages) != 1)
        step++;
    return pages < 3 ? 1 : step;
}

static bool check_page(uint64_t page, uint64_t loop, bool zero)
{
    const volatile uint64_t *w = (const volatile uint64_t *)(base + page * 4096);
    for (uint64_t n = 0; n < 512; n++) {
        uint64_t expected = zero ? 0 : word_of(loop, page, n), found = w[n];
        if (found != expected) {
            print("memtest: WRONG gpa=%lx expected=%016lx found=%016lx loop=%lu\n", base + page * 4096 + n * 8, expected, found, loop);
            return false;
        }
    }
    return true;
}

static void write_page(uint64_t page, uint64_t loop)
{
    volatile uint64_t *w = (volatile uint64_t *)(base + page * 4096);
    for (uint64_t n = 0; n < 512; n++)
        w[n] = word_of(loop, page, n);
}

int tiny_main(void)
{
    uint64_t end, loops = arg_u64("loops", 1);
    enum order o = arg_is("order", "rev") ? REV : arg_is("order", "random") ? RANDOM : arg_is("order", "stride") ? STRIDE : SEQ;
    bool forever = arg("forever"), fresh = !arg("nozero");
    seed = arg_u64("seed", 1);
    free_memory(&base, &end);
    pages = (end - base) / 4096;
    uint64_t wanted = arg_u64("pages", pages);
    if (wanted > pages || !wanted) {
        print("memtest: pages=%lu, but there are %lu free\n", wanted, pages);
        return 2;
    }
    pages = wanted;
    uint64_t step = step_for(o);
    print("memtest: %lu pages from %lx, seed %lu\n", pages, base, seed);
    for (uint64_t loop = 1; forever || loop <= loops; loop++) {
        for (uint64_t n = 0; n < pages; n++) {
            uint64_t page = nth(o, step, n);
            if ((loop > 1 || fresh) && !check_page(page, loop - 1, loop == 1))
                return 1;
            write_page(page, loop);
        }
        for (uint64_t n = 0; n < pages; n++)
            if (!check_page(nth(o, step, n), loop, false))
                return 1;
        print("memtest: loop %lu ok\n", loop);
    }
    print("memtest: ok\n");
    return 0;
}
