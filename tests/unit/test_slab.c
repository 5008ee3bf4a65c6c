/* Small objects against a model: random allocations and frees; objects never overlap, are zeroed and aligned, keep what was written, and
 * every frame comes back. Misuse (a write after the free, a free of what is none) is caught.
 * TEST-SOURCES: mm/slab.c */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "core/lock.h"
#include "core/log.h"
#include "include/hv/dmm.h"
#include "mm/mm.h"
#include "mm/vmap.h"

/* ---- the layers below ---------------------------------------------------------------------------------------------------- */

#define FRAMES 2048u
#define VMAP_PAGES 4096u

static uint8_t *memory, *region;   /* frames behind the direct map; the virtual region */
static bool used[FRAMES], region_used[VMAP_PAGES];
static unsigned in_use, region_in_use, frames_allowed = FRAMES;

mfn_t frame_alloc(unsigned order, unsigned flags, enum frame_type type, struct dmm_space *owner)
{
    assert_int_equal(order, 0);
    assert_int_equal(type, FRAME_HV_HEAP);
    for (unsigned n = 1; n < FRAMES && in_use < frames_allowed; n++)
        if (!used[n]) {
            used[n] = true;
            in_use++;
            memset(memory + n * PAGE_SIZE, 0xdd, PAGE_SIZE);
            return mfn_of(n);
        }
    return INVALID_MFN;
}

void frame_free(mfn_t mfn, unsigned order)
{
    assert_true(mfn.v < FRAMES && used[mfn.v]);
    used[mfn.v] = false;
    in_use--;
}

void *mfn_to_hva(mfn_t mfn) { return memory + mfn.v * PAGE_SIZE; }
mfn_t hva_to_mfn(const void *hva) { return mfn_of((uint64_t)((const uint8_t *)hva - memory) / PAGE_SIZE); }

void *vmap_alloc(uint64_t pages)
{
    for (unsigned n = 0; n + pages <= VMAP_PAGES && in_use + pages <= frames_allowed; n++) {
        unsigned k = 0;
        while (k < pages && !region_used[n + k])
            k++;
        if (k < pages)
            continue;
        memset(region_used + n, true, pages);
        in_use += (unsigned)pages;
        region_in_use += (unsigned)pages;
        return memset(region + n * PAGE_SIZE, 0, pages * PAGE_SIZE);
    }
    return NULL;
}

void vmap_free(void *p, uint64_t pages)
{
    size_t n = (size_t)((uint8_t *)p - region) / PAGE_SIZE;
    for (uint64_t k = 0; k < pages; k++)
        assert_true(region_used[n + k]);
    memset(region_used + n, false, pages);
    in_use -= (unsigned)pages;
    region_in_use -= (unsigned)pages;
}

bool vmap_contains(const void *p) { return (const uint8_t *)p >= region && (const uint8_t *)p < region + VMAP_PAGES * PAGE_SIZE; }

static bool locked;
void spin_lock(struct spinlock *l)
{
    assert_false(locked);
    locked = true;
}
void spin_unlock(struct spinlock *l)
{
    assert_true(locked);
    locked = false;
}

static jmp_buf *panic_to;
static char panic_text[200];
NORETURN void panic(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(panic_text, sizeof(panic_text), fmt, ap);
    va_end(ap);
    locked = false;
    if (panic_to)
        longjmp(*panic_to, 1);
    fail_msg("panic: %s", panic_text);
    abort();
}

static int start(void **state)
{
    memory = mmap(NULL, FRAMES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    region = mmap(NULL, VMAP_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED || region == MAP_FAILED;
}

/* ---- the model --------------------------------------------------------------------------------------------------------------- */

#define OBJECTS 1500u
static struct { uint8_t *p; size_t bytes; uint8_t fill; } object[OBJECTS];

static size_t random_size(void)
{
    switch (rand() % 8) {
    case 0: return (size_t)rand() % 3 ? (size_t)rand() % 30000 + 1 : 0;
    case 1: return 1984 + (size_t)rand() % 3 - 1; /* around the largest class */
    default: return (size_t)rand() % (1u << (3 + rand() % 9)) + 1;
    }
}

static void take(unsigned n)
{
    size_t bytes = random_size();
    uint8_t *p = kzalloc(bytes);
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % (bytes >= 64 ? 64 : 16), 0);
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal(p[i], 0);
    object[n].p = p;
    object[n].bytes = bytes;
    object[n].fill = (uint8_t)(rand() % 255 + 1);
    memset(p, object[n].fill, bytes);
}

static void give(unsigned n)
{
    for (size_t i = 0; i < object[n].bytes; i++)
        assert_int_equal(object[n].p[i], object[n].fill);
    kfree(object[n].p);
    object[n].p = NULL;
}

static uint64_t total(void)
{
    uint64_t sum = 0;
    for (unsigned n = 0; n < OBJECTS; n++)
        sum += object[n].p ? object[n].bytes : 0;
    return sum;
}

static void test_random(void **state)
{
    srand(1);
    for (unsigned round = 0; round < 20000; round++) {
        unsigned n = (unsigned)rand() % OBJECTS;
        if (round / 4000 % 2 && !object[n].p) /* shrinking times */
            continue;
        object[n].p ? give(n) : take(n);
        assert_false(locked);
        assert_true(kheap_bytes_in_use() >= total() && kheap_bytes_in_use() <= in_use * PAGE_SIZE);
    }
    for (unsigned n = 0; n < OBJECTS; n++)
        if (object[n].p)
            give(n);
    assert_int_equal(kheap_bytes_in_use(), 0);
    assert_int_equal(region_in_use, 0);
    assert_true(in_use <= 12); /* one kept per class */
    kfree(NULL);
}

static void test_out_of_frames(void **state)
{
    void *kept[8 * 512], *p;
    unsigned count = 0;
    frames_allowed = in_use + 8;
    while ((p = kzalloc(100)))
        kept[count++] = p;
    assert_true(count >= 8 * 31);
    assert_null(kzalloc(8 * PAGE_SIZE));
    uint64_t before = kheap_bytes_in_use();
    assert_null(kzalloc(100));
    assert_int_equal(kheap_bytes_in_use(), before);
    kfree(kept[--count]);
    kept[count++] = kzalloc(100);
    assert_non_null(kept[count - 1]);
    while (count)
        kfree(kept[--count]);
    frames_allowed = FRAMES;
    assert_int_equal(kheap_bytes_in_use(), 0);
}

static bool panics(void (*fn)(void))
{
    jmp_buf here;
    panic_to = &here;
    bool result = setjmp(here) != 0;
    if (!result)
        fn();
    panic_to = NULL;
    return result;
}

static void write_after_free(void)
{
    uint8_t *p = kzalloc(128), *q;
    kfree(p);
    p[100] = 1;
    for (unsigned n = 0; n < 40 && (q = kzalloc(128)) != p; n++)
        ;
}

static void free_inside(void) { kfree((uint8_t *)kzalloc(128) + 16); }
static void free_unknown_pages(void) { kfree(region + 100 * PAGE_SIZE); }
static void free_no_page(void) { kfree(memory + (FRAMES - 1) * PAGE_SIZE + 64); }

static void test_misuse(void **state)
{
    assert_true(panics(write_after_free));
    assert_non_null(strstr(panic_text, "+100 after it was freed"));
    assert_true(panics(free_inside));
    assert_true(panics(free_unknown_pages));
    assert_true(panics(free_no_page));
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_random), cmocka_unit_test(test_out_of_frames), cmocka_unit_test(test_misuse) };
    return cmocka_run_group_tests(tests, start, NULL);
}
