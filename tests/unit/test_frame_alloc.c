/* The frame allocator against a model: who has which frame; on one thread, then on several with an audit at rest.
 * TEST-SOURCES: mm/dmm/frame.c mm/dmm/frame_alloc.c mm/dmm/space.c mm/dmm/write_log.c mm/dmm/pool.c mm/dmm/p2m.c mm/dmm/fault.c mm/dmm/hist.c
   mm/dmm/guest_access.c mm/dmm/policy.c mm/dmm/audit.c mm/dmm/share.c mm/dmm/rmap.c mm/dmm/merge.c
   mm/dmm/scan.c mm/dmm/group.c mm/dmm/image.c mm/dmm/collapse.c mm/dmm/bill.c mm/dmm/move.c tests/unit/fake/dmm_host.c tests/unit/fake/p2m_fake.c */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "mm/dmm/frame.h"
#include "tests/unit/fake/dmm_host.h"

#define MIB_RAM 96u
#define MAX_HELD 40000u
#define MAX_MFN (GIB(4) >> PAGE_SHIFT)

struct held { mfn_t m; unsigned order; };
static uint8_t *owned;             /* by mfn: 0 free, else who has it */

static bool is_zero(const void *p, size_t bytes) { return !*(const char *)p && !memcmp(p, (const char *)p + 1, bytes - 1); }

static void take(struct held *h, unsigned who, unsigned order, unsigned flags)
{
    h->m = frame_alloc(order, flags, FRAME_HV_HEAP, NULL);
    h->order = order;
    if (!mfn_valid(h->m))
        return;
    assert_true(IS_ALIGNED(h->m.v, 1UL << order));
    if (flags & FRAME_ZEROED)
        assert_true(is_zero(mfn_to_hva(h->m), PAGE_SIZE << order));
    for (uint64_t n = h->m.v; n < h->m.v + (1UL << order); n++) {
        assert_true(frame_exists(mfn_of(n)) && n != 0);
        assert_int_equal(frame_get_type(mfn_of(n)), FRAME_HV_HEAP);
        assert_int_equal(__atomic_exchange_n(&owned[n], who, __ATOMIC_RELAXED), 0); /* never handed out twice */
    }
    memset(mfn_to_hva(h->m), 0xa5, PAGE_SIZE);
}

static void give(struct held *h)
{
    for (uint64_t n = h->m.v; n < h->m.v + (1UL << h->order); n++)
        __atomic_store_n(&owned[n], 0, __ATOMIC_RELAXED);
    frame_free(h->m, h->order);
}

static void test_boot_types(void **state)
{
    uint64_t usable = 0;
    for (unsigned n = 0; n < host_boot_info.mem_count; n++) {
        const struct boot_mem_range *r = &host_boot_info.mem[n];
        bool ours = r->type == BOOT_MEM_USABLE || r->type == BOOT_MEM_LOADER || r->type == BOOT_MEM_IMAGE;
        usable += ours ? r->size >> PAGE_SHIFT : 0;
        for (uint64_t m = r->base >> PAGE_SHIFT; m < (r->base + r->size) >> PAGE_SHIFT; m++) {
            enum frame_type t = frame_get_type(mfn_of(m));
            assert_true(ours && m ? t != FRAME_UNUSABLE : t == FRAME_UNUSABLE);
            assert_int_equal(r->type == BOOT_MEM_IMAGE, t == FRAME_HV_IMAGE);
        }
    }
    assert_int_equal(frame_total_pages(), usable - 1); /* all but mfn 0 */
    for (unsigned n = 0; n < HOST_FILE_PAGES; n++)
        assert_int_equal(frame_get_type(mfn_add(host_file_mfn(), n)), FRAME_BOOT_FILE);
    assert_int_equal(frame_get_type(mfn_of(GIB(2) >> PAGE_SHIFT)), FRAME_UNUSABLE);
    assert_int_equal(frame_get_type(INVALID_MFN), FRAME_UNUSABLE);
}

static void test_random_against_model(void **state)
{
    struct held *held = calloc(MAX_HELD, sizeof(*held));
    unsigned count = 0;
    uint64_t before = frame_free_pages(), pages = 0;
    for (unsigned step = 0; step < 60000; step++) {
        if (host_random(100) < (step / 6000 % 2 ? 30 : 68) && count < MAX_HELD) {
            take(&held[count], 1, host_random(100) ? 0 : LARGE_ORDER, host_random(2) ? FRAME_ZEROED : 0);
            if (mfn_valid(held[count].m))
                pages += 1UL << held[count++].order;
        } else if (count) {
            unsigned n = (unsigned)host_random(count);
            pages -= 1UL << held[n].order;
            give(&held[n]);
            held[n] = held[--count];
        }
        if (host_random(50) == 0)
            frame_zero_some((unsigned)host_random(200));
        assert_int_equal(frame_free_pages(), before - pages);
        assert_int_equal(frame_count(FRAME_FREE) + frame_count(FRAME_FREE_ZEROED), before - pages);
        if (step % 500 == 0)
            host_audit();
    }
    while (count)
        give(&held[--count]);
    host_audit();
    assert_int_equal(frame_free_pages(), before);
    free(held);
}

/* Single frames come out of few 2 MiB runs: with a quarter of memory taken, most runs are whole. */
static void test_keeps_large_runs_whole(void **state)
{
    static struct held held[MIB_RAM * 64], large[MIB_RAM];
    unsigned large_count = 0;
    for (unsigned n = 0; n < ARRAY_SIZE(held); n++)
        take(&held[n], 1, 0, 0);
    for (;; large_count++) {
        take(&large[large_count], 1, LARGE_ORDER, 0);
        if (!mfn_valid(large[large_count].m))
            break;
    }
    assert_true(large_count >= MIB_RAM / 2 * 6 / 10);
    while (large_count)
        give(&large[--large_count]);
    for (unsigned n = 0; n < ARRAY_SIZE(held); n++)
        give(&held[n]);
    host_audit();
}

/* A zeroing thread that gets little time fills both stocks, and not one after the other. */
static void test_zeroes_both_sizes(void **state)
{
    uint64_t zeroed = frame_count(FRAME_FREE_ZEROED);
    for (unsigned n = 0; n < 2 * LARGE_PAGES / 16 + 2; n++)
        assert_int_equal(frame_zero_some(16), 16);
    assert_true(frame_zeroed_is_low() || frame_count(FRAME_FREE_ZEROED) - zeroed > LARGE_PAGES);
    mfn_t m = frame_take_large_zeroed();
    assert_true(mfn_valid(m) && is_zero(mfn_to_hva(m), LARGE_SIZE));
    frame_assign(m, FRAME_HV_HEAP, NULL, 0, LARGE_PAGES);
    frame_zero_large_stock();
    unsigned large = 0;
    for (mfn_t more; mfn_valid(more = frame_take_large_zeroed()); large++) {
        assert_true(is_zero(mfn_to_hva(more), LARGE_SIZE));
        frame_assign(more, FRAME_HV_HEAP, NULL, 0, LARGE_PAGES);
        frame_free(more, LARGE_ORDER);
    }
    assert_int_equal(large, 8);
    frame_free(m, LARGE_ORDER);
    host_audit();
}

/* An ordinary request never gets the reserve; one that may does; all comes back. */
static void test_reserve(void **state)
{
    struct held *held = calloc(MAX_HELD, sizeof(*held));
    unsigned count = 0, reserve = 0;
    for (; take(&held[count], 1, 0, host_random(2) ? FRAME_ZEROED : 0), mfn_valid(held[count].m); count++)
        continue;
    uint64_t left = frame_free_pages();
    assert_true(left >= frame_reserve_pages() && left <= frame_reserve_pages() + 2 * MAGAZINE_FRAMES);
    for (; take(&held[count], 1, 0, FRAME_RESERVE_OK), mfn_valid(held[count].m); count++)
        reserve++;
    assert_int_equal(reserve, left);
    assert_int_equal(frame_free_pages(), 0);
    host_audit();
    /* What comes back fills the reserve first. */
    for (unsigned n = 0; n < frame_reserve_pages() / 2; n++)
        give(&held[--count]);
    assert_false(mfn_valid(frame_alloc(0, 0, FRAME_HV_HEAP, NULL)));
    while (count)
        give(&held[--count]);
    host_audit();
    free(held);
}

static void expect_panic(mfn_t m, unsigned order)
{
    jmp_buf here;
    host_panic_jmp = &here;
    if (setjmp(here) == 0) {
        frame_free(m, order);
        host_panic_jmp = NULL;
        fail_msg("freeing %lx was accepted", m.v);
    }
    host_panic_jmp = NULL;
    frame_cpu()->inside = false; /* the panic left it in the middle */
}

static void test_wrong_frees_are_caught(void **state)
{
    mfn_t a = frame_alloc(0, 0, FRAME_HV_HEAP, NULL), b = frame_alloc(LARGE_ORDER, 0, FRAME_HV_HEAP, NULL);
    expect_panic(b, 0);          /* by a part */
    expect_panic(a, LARGE_ORDER);
    frame_free(a, 0);
    expect_panic(a, 0);          /* twice */
    frame_free(b, LARGE_ORDER);
    expect_panic(b, LARGE_ORDER);
    host_audit();
}

#define THREADS 3
static void *churn(void *arg)
{
    unsigned who = (unsigned)(uintptr_t)arg, count = 0;
    struct held held[400];
    uint64_t x = who * UINT64_C(0x9e3779b97f4a7c15);
    host_become_cpu(who);
    for (unsigned step = 0; step < 60000; step++) {
        x = x * UINT64_C(6364136223846793005) + 1442695040888963407;
        if ((x >> 33) % 2 && count < ARRAY_SIZE(held)) {
            take(&held[count], who, (x >> 40) % 300 ? 0 : LARGE_ORDER, (x >> 50) % 2 ? FRAME_ZEROED : 0);
            count += mfn_valid(held[count].m);
        } else if (count) {
            unsigned n = (unsigned)((x >> 34) % count);
            give(&held[n]);
            held[n] = held[--count];
        }
        if ((x >> 42) % 64 == 0)
            frame_zero_some(8);
    }
    while (count)
        give(&held[--count]);
    return NULL;
}

static void test_threads(void **state)
{
    pthread_t t[THREADS];
    for (uintptr_t n = 0; n < THREADS; n++)
        assert_int_equal(pthread_create(&t[n], NULL, churn, (void *)(n + 2)), 0);
    for (unsigned n = 0; n < THREADS; n++)
        pthread_join(t[n], NULL);
    host_audit();
    for (uint64_t m = 0; m < MAX_MFN; m++)
        assert_int_equal(owned[m], 0);
}

static int setup(void **state)
{
    owned = calloc(MAX_MFN, 1);
    host_machine_init(MIB_RAM);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_boot_types), cmocka_unit_test(test_keeps_large_runs_whole), cmocka_unit_test(test_zeroes_both_sizes),
        cmocka_unit_test(test_reserve),
        cmocka_unit_test(test_random_against_model), cmocka_unit_test(test_wrong_frees_are_caught), cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
