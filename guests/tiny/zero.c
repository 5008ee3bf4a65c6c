/*
 * Zeros: REP STOS of every width, alignment, direction and prefix over memory that was touched here and there, beside a copy on which a plain loop does
 * the same; then a lot of memory that is only ever cleared.
 *
 *   seed=S  runs=N (default 400)  pages=N (default 256: of the two areas)  clear=N (default 4096: pages only cleared)
 *
 * Ends with `zero: ok`, or with `zero: WRONG ...` and code 1. The page tables of tiny guests have 2 MiB pages, so a run crosses many nested ones.
 */
#include "tiny.h"

static uint64_t state;

/* As the CPU has left its registers. */
struct registers { uint64_t di, cx; };

#define STOS(prefix, insn) asm volatile(prefix " " insn : "+D"(r.di), "+c"(r.cx) : "a"(value) : "memory", "cc")

static struct registers stos(unsigned width, unsigned variant, struct registers r, uint64_t value)
{
    if (variant == 1) { /* 32-bit addresses */
        switch (width) {
        case 1: STOS("addr32 rep", "stosb"); break;
        case 2: STOS("addr32 rep", "stosw"); break;
        case 4: STOS("addr32 rep", "stosl"); break;
        default: STOS("addr32 rep", "stosq"); break;
        }
    } else if (variant == 2) { /* backwards */
        asm volatile("std");
        switch (width) {
        case 1: STOS("rep", "stosb"); break;
        case 2: STOS("rep", "stosw"); break;
        case 4: STOS("rep", "stosl"); break;
        default: STOS("rep", "stosq"); break;
        }
        asm volatile("cld");
    } else {
        switch (width) {
        case 1: STOS("rep", "stosb"); break;
        case 2: STOS("repne", "stosw"); break; /* the same to the CPU */
        case 4: STOS("rep", "stosl"); break;
        default: STOS("rep", "stosq"); break;
        }
    }
    return r;
}

/* One run over [base, base+bytes), mirrored in `copy`. */
static bool run(uint64_t base, volatile uint8_t *copy, uint64_t bytes)
{
    unsigned width = 1u << random_next(&state) % 4, variant = (unsigned)(random_next(&state) % 4);
    uint64_t value = random_next(&state) % 5 ? 0 : random_next(&state);
    uint64_t start = random_next(&state) % (bytes - 8) & ~(uint64_t)(width - 1), room = (bytes - start) / width;
    if (random_next(&state) % 2)
        start &= ~UINT64_C(4095);
    uint64_t count = random_next(&state) % (random_next(&state) % 2 ? 64 : 20 * 4096) / width;
    count = count > room ? room : count;
    struct registers r = { base + start, count };
    if (variant == 2 && count)
        r.di += (count - 1) * width;
    r = stos(width, variant, r, value);
    uint64_t end = variant == 2 ? base + start - (count ? width : 0) : base + start + count * width;
    if (r.cx || r.di != end) {
        print("zero: WRONG width=%u variant=%u left rcx=%lx rdi=%lx, should be 0 and %lx\n", width, variant, r.cx, r.di, end);
        return false;
    }
    for (uint64_t n = 0; n < count * width; n++)
        copy[start + n] = (uint8_t)(value >> 8 * (n % width));
    return true;
}

static bool compare(const volatile uint64_t *area, const volatile uint64_t *copy, uint64_t bytes)
{
    for (uint64_t n = 0; n < bytes / 8; n++)
        if (area[n] != copy[n]) {
            print("zero: WRONG at %lx: %016lx, should be %016lx\n", (uint64_t)&area[n], area[n], copy[n]);
            return false;
        }
    return true;
}

int tiny_main(void)
{
    uint64_t base, end, runs = arg_u64("runs", 400), bytes = arg_u64("pages", 256) * 4096, clear = arg_u64("clear", 4096) * 4096;
    state = arg_u64("seed", 1) | 1;
    free_memory(&base, &end);
    if (base + 2 * bytes + clear > end) {
        print("zero: %lx bytes of memory are too few\n", end - base);
        return 2;
    }
    volatile uint8_t *area = (volatile uint8_t *)base, *copy = (volatile uint8_t *)(base + bytes);
    for (uint64_t n = 0; n < bytes / 4096; n++) /* here and there */
        if (random_next(&state) % 4 == 0)
            area[n * 4096 + n % 4096] = copy[n * 4096 + n % 4096] = (uint8_t)n;
    for (uint64_t n = 0; n < runs; n++)
        if (!run(base, copy, bytes))
            return 1;
    if (!compare((volatile uint64_t *)area, (volatile uint64_t *)copy, bytes))
        return 1;
    stos(8, 0, (struct registers){ base + 2 * bytes, clear / 8 }, 0);
    for (uint64_t at = base + 2 * bytes; at < base + 2 * bytes + clear; at += 61 * 4096)
        if (*(volatile uint64_t *)at) {
            print("zero: WRONG at %lx: not zero\n", at);
            return 1;
        }
    print("zero: ok\n");
    return 0;
}
