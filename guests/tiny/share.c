/*
 * Memory that is worth sharing, and that says when sharing it went wrong.
 *
 *   mode=hold|writers|storm  seed=S  pages=N  cpus=N  rounds=N
 *
 * What a page holds follows from a stamp of 64 bits, kept in an array that is private to this guest: a kind (the same in every such guest; the same
 * in this guest; this page's alone; zero; one word throughout), a number, and at most one byte that differs. So any page can be checked in full at
 * any time, whatever was done to it before, and a byte that came from another page, another VM or another time is seen.
 *
 * hold     Fills its pages and halts. At any key on COM1 it verifies them all: `share: verified N pages sum=X`.
 * storm    The same; at key w it changes one byte of every page first: `share: wrote N pages`.
 * writers  Round by round, for ever or `rounds` times, all vCPUs check all pages and write to many: a byte, the whole page, the same contents once
 *          more, zeroes. In each round a page is another vCPU's. Some more pages are written to by all vCPUs at once. `share: round N ok sum=X`.
 *
 * The sums are of what was read, and depend on arguments only. A wrong word ends it: `share: ERROR gpa=...` and value 1.
 */
#include "lib/cpus.h"

enum { COMMON = 32 /* pages that all vCPUs write to */, COM1 = 0x3f8, COM1_PIN = 4, VECTOR_COM1 = 0x51 };
enum kind { EQUAL_EVERYWHERE, EQUAL_HERE, UNIQUE, ZERO, ONE_WORD };

/* A stamp: kind, number, and the byte that differs, if it does. */
#define STAMP(kind, number) ((uint64_t)(kind) << 32 | (uint32_t)(number))
#define PATCHED (UINT64_C(1) << 36)
#define KIND_OF(stamp) ((enum kind)((stamp) >> 32 & 15))
#define PATCH(offset, value) (PATCHED | (uint64_t)(offset) << 40 | (uint64_t)(value) << 52)

static uint64_t seed, pages, cpu_total, rounds, memory, *stamps;
static volatile uint64_t sum, wrong;

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* ---- contents --------------------------------------------------------------------------------------------------------------- */

/* Words of a page without its patch are first + n * step. */
struct pattern { uint64_t first, step; };

static struct pattern pattern_of(uint64_t stamp)
{
    uint64_t number = (uint32_t)stamp;
    switch (KIND_OF(stamp)) {
    case ZERO: return (struct pattern){0, 0};
    case ONE_WORD: return (struct pattern){mix(number + 1), 0};
    case EQUAL_EVERYWHERE: return (struct pattern){mix(number << 1), mix(~number) | 1};
    case EQUAL_HERE: return (struct pattern){mix(mix(seed) + number), mix(seed ^ ~number) | 1};
    default: return (struct pattern){mix(mix(~seed) ^ number << 8), mix(seed + (number << 20)) | 1};
    }
}

static uint64_t word_of(struct pattern p, uint64_t stamp, uint64_t n)
{
    uint64_t word = p.first + n * p.step, offset = stamp >> 40 & 4095, shift = offset % 8 * 8;
    if ((stamp & PATCHED) && offset / 8 == n)
        word = (word & ~(UINT64_C(255) << shift)) | (stamp >> 52 & 255) << shift;
    return word;
}

/* The contents are drawn by a page's number and, if it is given something new, the round. */
static uint64_t draw(uint64_t page, uint64_t round)
{
    uint64_t x = mix(mix(seed + round) ^ page), in_100 = x % 100, few = x >> 32 & 15;
    if (in_100 < 30)
        return STAMP(EQUAL_EVERYWHERE, few << 2 | (x >> 40 & 3));
    if (in_100 < 50)
        return STAMP(EQUAL_HERE, few);
    if (in_100 < 80)
        return STAMP(UNIQUE, round << 20 | page);
    return in_100 < 90 ? STAMP(ZERO, 0) : STAMP(ONE_WORD, few);
}

static volatile uint64_t *words_of(uint64_t page) { return (volatile uint64_t *)(memory + page * 4096); }

static void write_page(uint64_t page, uint64_t stamp)
{
    volatile uint64_t *w = words_of(page);
    struct pattern p = pattern_of(stamp);
    for (uint64_t n = 0; n < 512; n++)
        w[n] = word_of(p, stamp, n);
    stamps[page] = stamp;
}

static void zero_page(uint64_t page)
{
    void *at = (void *)words_of(page);
    uint64_t count = 512;
    asm volatile("rep stosq" : "+D"(at), "+c"(count) : "a"(UINT64_C(0)) : "memory");
    stamps[page] = STAMP(ZERO, 0);
}

/* The byte that differed before, if any, is as it should be again. */
static void patch_page(uint64_t page, uint64_t offset, uint64_t value)
{
    volatile uint8_t *bytes = (volatile uint8_t *)words_of(page);
    uint64_t stamp = stamps[page], before = stamp >> 40 & 4095, plain = stamp & (PATCHED - 1);
    if (stamp & PATCHED)
        bytes[before] = (uint8_t)(word_of(pattern_of(plain), plain, before / 8) >> before % 8 * 8);
    bytes[offset] = (uint8_t)value;
    stamps[page] = plain | PATCH(offset, value);
}

/* ---- checking ----------------------------------------------------------------------------------------------------------------- */

static void __attribute__((noreturn)) complain(volatile uint64_t *at, uint64_t expected, uint64_t found, uint64_t stamp)
{
    while (add(&wrong, 1))
        for (;;)
            pause(); /* one is enough */
    print("share: ERROR gpa=%lx expected=%016lx found=%016lx now=%016lx stamp=%016lx\n", (uint64_t)at, expected, found, *at, stamp);
    exit_vm(1);
}

/* A sum over what was read: where each word is counts. */
static uint64_t check_page(uint64_t page)
{
    volatile uint64_t *w = words_of(page);
    uint64_t stamp = stamps[page], s = page;
    struct pattern p = pattern_of(stamp);
    for (uint64_t n = 0; n < 512; n++) {
        uint64_t found = w[n], expected = word_of(p, stamp, n);
        if (found != expected)
            complain(&w[n], expected, found, stamp);
        s = (s ^ found) * UINT64_C(0x9e3779b97f4a7c15);
    }
    return s ^ s >> 32;
}

static void verify(void)
{
    uint64_t s = 0;
    for (uint64_t page = 0; page < pages; page++)
        s += check_page(page);
    print("share: verified %lu pages sum=%016lx\n", pages, s);
}

/* ---- hold and storm ------------------------------------------------------------------------------------------------------------- */

static void interrupted(unsigned vector)
{
    (void)vector;
    wrmsr(APIC_EOI, 0);
}

static void ioapic_set(unsigned reg, uint32_t v)
{
    *(volatile uint32_t *)UINT64_C(0xfec00000) = reg;
    *(volatile uint32_t *)UINT64_C(0xfec00010) = v;
}

/* STI's shadow covers the HLT: a key between the look and the sleep ends the sleep. */
static uint8_t wait_for_key(void)
{
    for (;;) {
        asm volatile("cli" ::: "memory");
        if (inb(COM1 + 5) & 1)
            return inb(COM1);
        asm volatile("sti\n hlt" ::: "memory");
    }
}

static void __attribute__((noreturn)) hold(bool storm)
{
    on_interrupt = interrupted;
    apic_enable();
    ioapic_set(0x11 + 2 * COM1_PIN, (uint32_t)(rdmsr(APIC_ID) << 24));
    ioapic_set(0x10 + 2 * COM1_PIN, VECTOR_COM1);
    outb(0x21, 0xff); /* firmware may have left the 8259s open */
    outb(0xa1, 0xff);
    outb(COM1 + 4, 0x0b); /* OUT2 lets its interrupt through */
    outb(COM1 + 1, 1);
    print("share: holds %lu pages\n", pages);
    for (uint64_t n = 1;; n++) {
        uint8_t key = wait_for_key();
        if (storm && key == 'w') {
            for (uint64_t page = 0; page < pages; page++)
                patch_page(page, mix(page + n) & 4095, n & 255);
            print("share: wrote %lu pages\n", pages);
        }
        verify();
    }
}

/* ---- writers ---------------------------------------------------------------------------------------------------------------------- */

/* All pages are looked at in turn; half of them are left as they are, or they would never be at rest. */
static void work_on(uint64_t page, uint64_t round)
{
    uint64_t x = mix(mix(~seed + round) + page);
    add(&sum, check_page(page));
    switch (x % 16) {
    case 0 ... 2: patch_page(page, x >> 8 & 4095, x >> 20 & 255); break;
    case 3: case 4: write_page(page, draw(page, round)); break;
    case 5: case 6: write_page(page, stamps[page]); break;
    case 7: zero_page(page); break;
    }
}

/* Pages behind the others, all equal and so soon one: every vCPU writes its own byte of each, all at the same time. */
static void meet_in_common(uint64_t i, uint64_t round)
{
    for (uint64_t n = 0; n < COMMON; n++)
        ((volatile uint8_t *)words_of(pages + n))[4096 - CPUS_MAX + i] = (uint8_t)round;
    cpus_barrier();
    for (uint64_t n = i; n < COMMON; n += cpu_total) {
        volatile uint64_t *w = words_of(pages + n);
        struct pattern p = pattern_of(stamps[pages + n]);
        for (uint64_t k = 0; k < 512 - CPUS_MAX / 8; k++)
            if (w[k] != word_of(p, stamps[pages + n], k))
                complain(&w[k], word_of(p, stamps[pages + n], k), w[k], stamps[pages + n]);
        for (uint64_t cpu = 0; cpu < cpu_total; cpu++)
            if (((volatile uint8_t *)w)[4096 - CPUS_MAX + cpu] != (uint8_t)round)
                complain(&w[512 - CPUS_MAX / 8 + cpu / 8], round, w[512 - CPUS_MAX / 8 + cpu / 8], stamps[pages + n]);
    }
}

static void write_rounds(uint64_t i)
{
    for (uint64_t round = 1; !rounds || round <= rounds; round++) {
        for (uint64_t page = 0; page < pages; page++)
            if ((page + round) % cpu_total == i)
                work_on(page, round);
        cpus_barrier();
        uint64_t so_far = sum;           /* nobody adds to it before the next round */
        meet_in_common(i, round);
        cpus_barrier();
        if (i == 0)
            print("share: round %lu ok sum=%016lx\n", round, so_far);
    }
}

static void begin(uint64_t index)
{
    cpus_barrier();
    write_rounds(index);
    for (;;)
        asm volatile("cli\n hlt");
}

static int writers(void)
{
    for (uint64_t n = 0; n < COMMON; n++)
        write_page(pages + n, STAMP(EQUAL_HERE, UINT32_MAX));
    cpus_start(cpu_total, begin);
    print("share: %lu vCPUs write to %lu pages\n", cpu_total, pages);
    cpus_barrier();
    write_rounds(0);
    verify();
    print("share: ok\n");
    return 0;
}

int tiny_main(void)
{
    uint64_t end;
    bool storm = arg_is("mode", "storm"), write = arg_is("mode", "writers");
    seed = arg_u64("seed", 1);
    pages = arg_u64("pages", 1000);
    cpu_total = arg_u64("cpus", cpus_present());
    rounds = arg_u64("rounds", 0);
    free_memory(&memory, &end);
    stamps = (uint64_t *)memory;
    memory += ((pages + COMMON) * sizeof(stamps[0]) + 4095) & ~UINT64_C(4095);
    if (!(storm || write || arg_is("mode", "hold")) || !pages || pages > 1 << 20 || memory + (pages + COMMON) * 4096 > end || !cpu_total ||
        cpu_total > CPUS_MAX) {
        print("share: no mode, more than %u cpus, or %lu pages are too many\n", CPUS_MAX, pages);
        return 2;
    }
    for (uint64_t page = 0; page < pages; page++)
        write_page(page, draw(page, 0));
    if (write)
        return writers();
    hold(storm);
}
