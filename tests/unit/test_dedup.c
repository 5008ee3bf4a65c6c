/* The scanner itself, over memory with known duplicates: what it finds against what an oracle says there is, and never a byte changed.
 * TEST-SOURCES: policies/dedup.c policies/dedup_thread.c policies/dedup_table.c policies/large.c mm/dmm/digest.c mm/dmm/frame.c mm/dmm/frame_alloc.c
   mm/dmm/space.c mm/dmm/write_log.c
   mm/dmm/pool.c mm/dmm/p2m.c mm/dmm/fault.c mm/dmm/hist.c mm/dmm/guest_access.c mm/dmm/policy.c mm/dmm/audit.c mm/dmm/share.c mm/dmm/rmap.c
   mm/dmm/merge.c mm/dmm/scan.c mm/dmm/group.c mm/dmm/image.c mm/dmm/collapse.c mm/dmm/bill.c mm/dmm/move.c policies/demand.c
   tests/unit/fake/dmm_host.c tests/unit/fake/p2m_fake.c */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "core/console.h"
#include "core/thread.h"
#include "core/time.h"
#include "include/hv/dmm_policy.h"
#include "mm/dmm/rmap.h"
#include "mm/dmm/share.h"
#include "policies/dedup.h"
#include "policies/dedup_table.h"
#include "policies/demand.h"
#include "policies/large.h"
#include "tests/unit/fake/dmm_host.h"
#include "x86/cpu.h"
#include "tests/unit/fake/dedup_vms.h"

/* ---- the oracle ----------------------------------------------------------------------------------------------------------- */

struct item { uint64_t domain, content; };
static int by_item(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    return x->domain != y->domain ? (x->domain > y->domain) - (x->domain < y->domain) : (x->content > y->content) - (x->content < y->content);
}

/* Frames that perfect sharing would need. */
static uint64_t least_frames(void)
{
    static struct item items[VMS * PAGES];
    size_t count = 0;
    uint64_t frames = 0, run = 0;
    for (unsigned k = 0; k < VMS; k++)
        for (uint64_t g = 0; vms[k].s && g < PAGES; g++)
            if (vms[k].content[g])
                items[count++] = (struct item){ vms[k].content[g] < 100 ? 0 : dmm_space_domain(vms[k].s), vms[k].content[g] };
    qsort(items, count, sizeof(items[0]), by_item);
    for (size_t n = 0; n < count; n++) {
        run = n && !by_item(&items[n], &items[n - 1]) ? run + 1 : 1;
        frames += run % RMAP_MAX_USERS == 1; /* a frame takes so many users, and the next begins another */
    }
    return frames;
}

static void expect_found(uint64_t before, unsigned permille)
{
    uint64_t least = least_frames(), used = frames_used();
    assert_true(used >= least);
    if ((before - used) * 1000 < (before - least) * permille)
        fail_msg("%lu frames of %lu are in use, %lu would do", used, before, least);
}

static uint64_t random_content(void)
{
    switch (host_random(6)) {
    case 0: return 0;
    case 1: return 1 + host_random(6);
    case 2: return 1000000 + host_random(100000000); /* nobody else's */
    default: return 100 + host_random(1500);
    }
}

static void fill_all(void)
{
    for (unsigned k = 0; k < VMS; k++)
        for (uint64_t g = 0; g < PAGES; g++)
            put(&vms[k], g, random_content());
}

/* ---- tests ------------------------------------------------------------------------------------------------------------------ */

static void test_one_sweep_finds_all(void **state)
{
    for (unsigned large = 0; large < 2; large++) {
        dmm_policy_set(dmm_policy_find("dedup"), "break_large_percent", 0);
        for (unsigned k = 0; k < VMS; k++)
            create(k, k % 2 ? 1 : 0, large);
        fill_all();
        uint64_t before = frames_used();
        dedup_sweep();
        check_all();
        expect_found(before, 980);
        uint64_t used = frames_used();
        sweep();
        assert_true(frames_used() <= used);
        destroy_all();
    }
    dmm_policy_set(dmm_policy_find("dedup"), "break_large_percent", 25);
}

/* A fork makes two users of each page, also of pages that are equal or zero: they are merged when all their users have been looked at, and looked at
 * once. */
static void test_shared_pages_are_merged(void **state)
{
    struct dmm_image *image;
    create(0, 1, false);
    for (uint64_t g = 0; g < PAGES; g++)
        put(&vms[0], g, g % 5 == 0 ? 0 : g % 5 == 1 ? 7000000 + g : 100 + g % 300);
    assert_int_equal(dmm_space_freeze(vms[0].s, &image), DMM_FREEZE_OK);
    struct dmm_space_config cfg = { .name = "child", .vm_id = 2, .pages = PAGES, .group = 1, .format = &p2m_format_fake };
    assert_int_equal(dmm_space_create_from(&cfg, image, &vms[1].s), DMM_CREATE_OK);
    memcpy(vms[1].content, vms[0].content, sizeof(vms[0].content));
    dmm_image_release(image);
    for (unsigned k = 0; k < 2; k++)
        for (uint64_t g = 0; g < PAGES; g += 512)
            assert_int_equal(dmm_fault(vms[k].s, gfn_of(g), DMM_READ), DMM_FAULT_RETRY);
    assert_int_equal(frames_used(), PAGES);
    sweep();
    assert_int_equal(frames_used(), least_frames());
    uint64_t hashed = counter("pages_hashed"), done = counter("merged");
    sweep();
    assert_int_equal(counter("pages_hashed"), hashed);
    assert_int_equal(counter("merged"), done);
    destroy_all();
}

/* What nobody wrote to is not hashed again. */
static void test_unchanged_costs_nothing(void **state)
{
    create(0, 0, false);
    for (uint64_t g = 0; g < PAGES; g++)
        put(&vms[0], g, 5000000 + g);
    sweep();
    uint64_t hashed = counter("pages_hashed"), unchanged = counter("pages_unchanged");
    sweep();
    assert_int_equal(counter("pages_hashed"), hashed);
    assert_int_equal(counter("pages_unchanged"), unchanged + PAGES);
    for (uint64_t g = 0; g < 40; g++)
        put(&vms[0], g * 7, 6000000 + g);
    sweep();
    assert_int_equal(counter("pages_hashed"), hashed + 40);
    destroy_all();
}

/* ---- 2 MiB mappings ------------------------------------------------------------------------------------------------------------ */

/* A mapping in use is left alone, and looked at again when it is not. */
static void test_large_in_use(void **state)
{
    create(0, 0, true);
    for (uint64_t g = 0; g < 512; g++)
        put(&vms[0], g, 100 + g % 5);
    assert_int_equal(large_pages(0), 512);
    for (unsigned round = 0; round < 3; round++) {
        assert_int_equal(dedup_step(), DEDUP_STEP_SETTLE);
        *region_of(vms[0].s, gfn_of(0))->l2e |= p2m_format_fake.accessed_mask(); /* the guest reads */
        sweep();
        assert_int_equal(large_pages(0), 512);
    }
    sweep();
    assert_int_equal(large_pages(0), 0);
    assert_int_equal(frames_used(), 5);
    destroy_all();
}

/* Small pages equal to pieces of a mapping break it if they are many; if they are few, when memory is short. */
static void test_large_as_partner(void **state)
{
    short_of_memory(false);
    two_with_equal_pages(true, false, 200);
    sweep();
    assert_int_equal(large_pages(0), 0);
    assert_int_equal(frames_used(), 1024 - 200);
    destroy_all();

    two_with_equal_pages(true, false, 50);
    for (unsigned round = 0; round < 3; round++) {
        sweep();
        assert_int_equal(large_pages(0), 512);
    }
    uint64_t hashed = counter("pages_hashed");
    sweep();
    assert_int_equal(counter("pages_hashed"), hashed);
    short_of_memory(true);
    sweep();
    assert_int_equal(large_pages(0), 0);
    assert_int_equal(frames_used(), 1024 - 50);
    sweep(); /* its pieces, which are small now */
    hashed = counter("pages_hashed");
    for (unsigned round = 0; round < 3; round++)
        sweep();
    assert_int_equal(counter("pages_hashed"), hashed); /* but not every time */
    destroy_all();

    two_with_equal_pages(true, false, 3); /* not worth the page of entries, even now */
    sweep();
    hashed = counter("pages_hashed");
    for (unsigned round = 0; round < 3; round++)
        sweep();
    assert_int_equal(large_pages(0), 512);
    assert_int_equal(counter("pages_hashed"), hashed);
    short_of_memory(false);
    destroy_all();
}

/* A mapping that was not worth breaking is broken later in the sweep, for another's sake: what it has to share itself is found too. */
static void test_large_behind_the_sweep(void **state)
{
    short_of_memory(false);
    for (unsigned k = 0; k < 2; k++) {
        create(k, 1, true);
        for (uint64_t g = 0; g < 512; g++)
            put(&vms[k], g, g >= 100 ? 10000 + g : k ? 20000 + g : 0);
        assert_int_equal(large_pages(k), 512);
    }
    dedup_sweep();
    check_all();
    assert_int_equal(large_pages(0) + large_pages(1), 0);
    assert_int_equal(frames_used(), 512);
    destroy_all();
}

/* Equal small pages share among each other though one in a 2 MiB mapping is equal as well. */
static void test_large_is_not_the_only_partner(void **state)
{
    short_of_memory(false);
    two_with_equal_pages(true, false, 50);
    create(2, 1, false);
    for (uint64_t g = 0; g < 50; g++)
        put(&vms[2], g, 10000 + g);
    sweep();
    assert_int_equal(large_pages(0), 512);
    assert_int_equal(frames_used(), 1024);
    short_of_memory(true);
    sweep();
    assert_int_equal(frames_used(), 1024 - 50);
    short_of_memory(false);
    destroy_all();
}

/* A mapping that is broken for its own sake does not break others for a page each. */
static void test_large_breaks_no_others(void **state)
{
    short_of_memory(false);
    create(0, 1, true);
    for (uint64_t g = 0; g < 2560; g++)
        put(&vms[0], g, 10000 + g);
    create(1, 1, true);
    for (uint64_t g = 0; g < 512; g++)
        put(&vms[1], g, g < 300 ? 0 : g < 305 ? 10000 + (g - 300) * 512 : 30000 + g);
    assert_int_equal(large_pages(0), 2560);
    assert_int_equal(large_pages(1), 512);
    sweep();
    assert_int_equal(large_pages(0), 2560);
    assert_int_equal(large_pages(1), 0);
    assert_int_equal(frames_used(), 2560 + 212);
    destroy_all();
}

static uint64_t greedy_pages(const struct dmm_space *s)
{
    struct dmm_usage u;
    dmm_space_usage(s, &u);
    return u.resident;
}

/* What failed for want of frames is tried again. */
static void test_uncovered_is_tried_again(void **state)
{
    create(0, 0, false);
    assert_true(dmm_set_class(vms[0].s, DMM_CLASS_STRICT, NULL));
    for (uint64_t g = 0; g < 512; g++)
        put(&vms[0], g, 100 + g % 5);
    struct dmm_space_config cfg = { .name = "greedy", .vm_id = 9, .pages = 1 << 16, .format = &p2m_format_fake };
    struct dmm_space *greedy;
    assert_int_equal(dmm_space_create(&cfg, &greedy), DMM_CREATE_OK);
    assert_true(dmm_space_add_ram(greedy, gfn_of(0), 1 << 16));
    for (uint64_t g = 0; dmm_fault(greedy, gfn_of(g), DMM_WRITE) == DMM_FAULT_RETRY; g++)
        continue;
    uint64_t failed = counter("uncovered");
    sweep();
    assert_true(counter("uncovered") > failed);
    assert_true(frames_used() > 5 + greedy_pages(greedy));
    dmm_space_destroy(greedy);
    sweep(); /* left alone for two */
    sweep();
    sweep();
    assert_int_equal(frames_used(), 5);
    destroy_all();
}

static void test_what_breaks_is_left_alone(void **state)
{
    create(0, 0, false);
    for (uint64_t g = 0; g < PAGES; g++)
        put(&vms[0], g, 100 + g % 5);
    sweep();
    uint64_t merged = counter("merged");
    for (unsigned round = 0; round < 12; round++) {
        for (uint64_t g = 0; g < 400; g++) { /* the first region breaks all the time */
            uint64_t was = vms[0].content[g];
            put(&vms[0], g, 77000 + g);
            put(&vms[0], g, was);
        }
        sweep();
    }
    assert_true(counter("regions_left_alone") > 5);
    assert_true(counter("merged") - merged < 12 * 400 / 2);
    destroy_all();
}

/* Random writers between steps of sweeps, VMs that come and go, forks, mappings that are made large again. */
static void test_against_writers(void **state)
{
    for (unsigned k = 0; k < VMS; k++)
        create(k, (unsigned)host_random(3), host_random(2));
    fill_all();
    for (unsigned n = 0; n < 3000; n++) {
        unsigned k = (unsigned)host_random(VMS);
        dedup_step();
        if (host_random(4) == 0)
            large_step();
        for (unsigned w = 0; w < 8; w++)
            put(&vms[k], host_random(PAGES), random_content());
        if (host_random(300) == 0) {
            dmm_space_destroy(vms[k].s);
            create(k, (unsigned)host_random(3), host_random(2));
        }
        if (host_random(200) == 0) {
            struct dmm_image *image;
            if (dmm_space_freeze(vms[k].s, &image) == DMM_FREEZE_OK)
                dmm_image_release(image);
        }
        if (n % 100 == 0)
            check_all();
    }
    check_all();
    destroy_all();
}

static void test_large_policy(void **state)
{
    struct dmm_usage u;
    dmm_policy_set(dmm_policy_find("large"), "accessed_min", 0);
    dmm_policy_set(dmm_policy_find("large"), "free_percent", 0);
    create(0, 0, false);
    for (uint64_t g = 0; g < PAGES; g++)
        put(&vms[0], g, 100000 + g);
    for (unsigned n = 0; n < 4 * PAGES / 512; n++)
        large_step();
    dmm_space_usage(vms[0].s, &u);
    assert_int_equal(u.resident_large, PAGES);
    check_all();
    dmm_policy_set(dmm_policy_find("large"), "free_percent", 60);
    dmm_policy_set(dmm_policy_find("large"), "accessed_min", 128);
    destroy_all();
}

static void test_table(void **state)
{
    struct dedup_table t;
    create(0, 0, false);
    for (uint64_t g = 0; g < PAGES; g++)
        put(&vms[0], g, 100000 + g);
    assert_true(dedup_table_init(&t, PAGES));
    assert_true(t.sets * DEDUP_SET >= PAGES && (t.sets & (t.sets - 1)) == 0);
    uint64_t found = 0;
    for (unsigned round = 0; round < 2; round++)
        for (uint64_t g = 0; g < PAGES; g++) {
            enum dmm_candidate kind;
            uint64_t key = (g + 1) * UINT64_C(0x9e3779b97f4a7c15);
            mfn_t m = share_mfn_of(vms[0].s, p2m_read(&region_of(vms[0].s, gfn_of(g))->l1[g % 512]), P2M_RW);
            mfn_t got = dedup_table_find(&t, key, INVALID_MFN, &kind);
            if (mfn_valid(got)) {
                assert_int_equal(got.v, m.v);
                found++;
            } else {
                dedup_table_enter(&t, key, m, gfn_of(g), INVALID_MFN);
            }
        }
    assert_true(found >= PAGES - t.evictions - 8 && t.used <= PAGES);
    destroy_all(); /* all are stale now */
    for (uint64_t g = 0; g < PAGES; g++) {
        enum dmm_candidate kind;
        assert_false(mfn_valid(dedup_table_find(&t, (g + 1) * UINT64_C(0x9e3779b97f4a7c15), INVALID_MFN, &kind)));
    }
    assert_true(t.used < 16);
    dedup_table_fini(&t);
}

/* ---- digests --------------------------------------------------------------------------------------------------------------------- */

static void test_digest(void **state)
{
    mfn_t m = frame_alloc(0, FRAME_ZEROED, FRAME_HV_HEAP, NULL);
    uint64_t *page = mfn_to_hva(m);
    assert_int_equal(dmm_digest_page(m, INVALID_MFN).content, DMM_CONTENT_ZERO);
    uint64_t seen[1 + 512];
    for (unsigned n = 0; n < 512; n++) /* one bit somewhere in a page of zeros, or of one word */
        for (unsigned filled = 0; filled < 2; filled++) {
            make_page(page, filled);
            page[n] ^= UINT64_C(1) << host_random(64);
            assert_int_equal(dmm_digest_page(m, INVALID_MFN).content, DMM_CONTENT_DATA);
        }
    for (unsigned n = 0; n <= 512; n++) { /* a page, and its 512 neighbours of one bit: all differ */
        make_page(page, 1000);
        if (n)
            page[n - 1] ^= UINT64_C(1) << host_random(64);
        struct dmm_digest d = dmm_digest_page(m, n % 2 ? m : INVALID_MFN);
        assert_int_equal(d.content, DMM_CONTENT_DATA);
        assert_int_equal(d.key, dmm_digest_page(m, INVALID_MFN).key);
        for (unsigned k = 0; k < n; k++)
            assert_true(seen[k] != d.key);
        seen[n] = d.key;
    }
    make_page(page, 7);
    struct dmm_digest word = dmm_digest_page(m, INVALID_MFN);
    make_page(page, 8);
    struct dmm_digest other = dmm_digest_page(m, INVALID_MFN);
    assert_true(word.content == DMM_CONTENT_SAME_FILLED && other.content == DMM_CONTENT_SAME_FILLED && word.key != other.key);
    make_page(page, 1000);
    random_seed++; /* another boot, other keys */
    dmm_digest_init();
    assert_true(dmm_digest_page(m, INVALID_MFN).key != seen[0]);
    make_page(page, 7);
    assert_true(dmm_digest_page(m, INVALID_MFN).key != word.key);
    random_seed--;
    dmm_digest_init();
    frame_free(m, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table), cmocka_unit_test(test_one_sweep_finds_all), cmocka_unit_test(test_unchanged_costs_nothing),
        cmocka_unit_test(test_large_in_use), cmocka_unit_test(test_large_as_partner), cmocka_unit_test(test_large_is_not_the_only_partner),
        cmocka_unit_test(test_large_behind_the_sweep), cmocka_unit_test(test_large_breaks_no_others), cmocka_unit_test(test_shared_pages_are_merged),
        cmocka_unit_test(test_uncovered_is_tried_again), cmocka_unit_test(test_digest), cmocka_unit_test(test_what_breaks_is_left_alone),
        cmocka_unit_test(test_large_policy), cmocka_unit_test(test_against_writers),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
