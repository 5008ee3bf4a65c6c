/* Shared frames in the corners that the random test of DMM does not reach: maps of many users, no frame left, classes, fork families, damage.
 * TEST-SOURCES: mm/dmm/frame.c mm/dmm/frame_alloc.c mm/dmm/space.c mm/dmm/write_log.c mm/dmm/pool.c mm/dmm/p2m.c mm/dmm/fault.c mm/dmm/hist.c
   mm/dmm/guest_access.c mm/dmm/policy.c mm/dmm/audit.c mm/dmm/share.c mm/dmm/rmap.c mm/dmm/merge.c
   mm/dmm/scan.c mm/dmm/group.c mm/dmm/image.c mm/dmm/collapse.c mm/dmm/bill.c mm/dmm/move.c policies/demand.c
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

#include "include/hv/dmm_policy.h"
#include "mm/dmm/rmap.h"
#include "mm/dmm/share.h"
#include "policies/demand.h"
#include "tests/unit/fake/dmm_host.h"

static struct dmm_space *make(uint64_t pages, enum dmm_class class, unsigned group)
{
    struct dmm_space_config cfg = { .name = "s", .vm_id = 7, .pages = pages, .class = class, .group = group, .format = &p2m_format_fake };
    struct dmm_space *s;
    assert_int_equal(dmm_space_create(&cfg, &s), DMM_CREATE_OK);
    assert_true(dmm_space_add_ram(s, gfn_of(0), pages));
    return s;
}

/* Page g holds `stamp`, and its own number: not one word throughout. */
static enum dmm_fault_result put(struct dmm_space *s, uint64_t g, uint64_t stamp)
{
    static uint64_t page[512];
    for (unsigned n = 0; n < 512; n++)
        page[n] = stamp << 16 | n;
    return dmm_write_guest(s, g * PAGE_SIZE, page, PAGE_SIZE);
}

static void expect(struct dmm_space *s, uint64_t g, uint64_t stamp)
{
    static uint64_t page[512];
    assert_int_equal(dmm_read_guest(s, g * PAGE_SIZE, page, PAGE_SIZE), DMM_FAULT_RETRY);
    for (unsigned n = 0; n < 512; n++)
        if (page[n] != (stamp << 16 | n))
            fail_msg("gfn %lx: word %u is %lx, should be %lx", g, n, page[n], stamp << 16 | n);
}

static mfn_t frame_at(struct dmm_space *s, uint64_t g)
{
    unsigned level;
    return s->format->mfn_of(p2m_read(p2m_leaf(region_of(s, gfn_of(g)), gfn_of(g), &level)));
}

static enum dmm_merge_result merge(struct dmm_space *s, uint64_t g, mfn_t with)
{
    struct dmm_merge m = { .gfn = gfn_of(g), .mfn = frame_at(s, g), .with = with };
    assert_ptr_equal(dmm_space_acquire(s->id), s);
    dmm_merge(s, &m, 1);
    dmm_merge_finish();
    dmm_space_release(s);
    host_audit();
    return m.result;
}

/* ---- reverse maps --------------------------------------------------------------------------------------------------- */

static void test_rmap_against_a_list(void **state)
{
    static struct { uint16_t id; uint64_t gfn; } list[RMAP_MAX_USERS];
    unsigned count = 0, full = 0, most = 0;
    uint64_t pages, chunks;
    mfn_t m = frame_alloc(0, 0, FRAME_SHARED, NULL);
    struct frame *f = frame_of(m);
    for (unsigned step = 0; step < 60000; step++) {
        bool growing = step / 4000 % 2 == 0;
        if (count == 0 || host_random(10) < (growing ? 7 : 3)) {
            uint16_t id = (uint16_t)(1 + host_random(host_random(2) ? 3 : 2000));
            uint64_t gfn = host_random(host_random(2) ? 2 : UINT64_C(1) << 36);
            enum rmap_result r = count ? rmap_add(f, id, gfn) : (rmap_first(f, id, gfn), RMAP_OK);
            assert_int_equal(r, count == RMAP_MAX_USERS ? RMAP_FULL : RMAP_OK);
            full += r == RMAP_FULL;
            if (r == RMAP_OK) {
                list[count].id = id;
                list[count++].gfn = gfn;
            }
        } else {
            unsigned n = (unsigned)host_random(count);
            assert_int_equal(rmap_remove(f, list[n].id, list[n].gfn), count - 1);
            list[n] = list[--count];
        }
        most = MAX(most, count);
        assert_int_equal(f->refs, count);
        assert_int_equal(rmap_count(f), count);
        if (count) {
            unsigned n = (unsigned)host_random(count);
            assert_true(rmap_has(f, list[n].id, list[n].gfn));
            assert_false(rmap_has(f, 2040, 5));
        }
        rmap_census(&pages, &chunks);
        assert_true(chunks <= (count + 6) / 7 + 1 && pages * 63 >= chunks);
        assert_int_equal(pages, frame_count(FRAME_RMAP));
    }
    while (count) {
        count--;
        rmap_remove(f, list[count].id, list[count].gfn);
    }
    rmap_census(&pages, &chunks);
    assert_int_equal(chunks, 0);
    assert_true(full > 0 && most == RMAP_MAX_USERS);
    frame_free(m, 0);
    host_audit();
}

/* A frame takes so many users and no more; the next goes without, and an heir of one that is full gets a copy. */
static void test_full_map(void **state)
{
    struct dmm_space *s = make(2000, DMM_CLASS_BEST_EFFORT, 0);
    for (uint64_t g = 0; g < RMAP_MAX_USERS + 1; g++)
        put(s, g, 5);
    for (uint64_t g = 1; g < RMAP_MAX_USERS; g++) {
        struct dmm_merge m = { .gfn = gfn_of(g), .mfn = frame_at(s, g), .with = frame_at(s, 0) };
        dmm_merge(s, &m, 1);
        assert_int_equal(m.result, DMM_MERGE_DONE);
    }
    dmm_merge_finish();
    assert_int_equal(merge(s, RMAP_MAX_USERS, frame_at(s, 0)), DMM_MERGE_FULL);
    struct dmm_image *image;
    assert_int_equal(dmm_space_freeze(s, &image), DMM_FREEZE_OK);
    host_audit();
    for (uint64_t g = 0; g <= RMAP_MAX_USERS; g++) {
        assert_int_equal(dmm_fault(s, gfn_of(g), DMM_READ), DMM_FAULT_RETRY);
        expect(s, g, 5);
    }
    host_audit();
    dmm_space_destroy(s);
    dmm_image_release(image);
    host_audit();
    assert_int_equal(frame_count(FRAME_SHARED) + frame_count(FRAME_GUEST), 0);
}

/* Somebody else (dmm_protect_page()) is in the midst of protecting a page: its guest still writes. It is merged with nothing, and nothing with it. */
static struct dmm_space *watched;
static uint64_t watched_gfn;
static bool back_at_flush;    /* the guest writes, and the other protects the page again, just when the merge's flush is through */
static bool half_protected;

static void protect_half(void)
{
    struct region *r = region_of(watched, gfn_of(watched_gfn));
    bool outermost = dmm_enter();
    __atomic_fetch_add(&share_unflushed, 1, __ATOMIC_SEQ_CST);
    spin_lock(&r->lock);
    share_protect(watched, &r->l1[watched_gfn], gfn_of(watched_gfn));
    spin_unlock(&r->lock);
    dmm_leave(outermost);
    half_protected = true;
}

static void on_kick(void *owner, bool wait)
{
    if (!back_at_flush)
        return;
    back_at_flush = false;
    assert_int_equal(dmm_fault(watched, gfn_of(watched_gfn), DMM_WRITE), DMM_FAULT_RETRY);
    protect_half();
}

/* `own`: the page itself, else the partner. */
static void merge_half_protected(struct dmm_space *s, uint64_t g, bool own, bool late)
{
    watched_gfn = g;
    put(s, g, 5);
    put(watched, g, 5);
    half_protected = false;
    back_at_flush = late;
    if (!late)
        protect_half();
    mfn_t m = frame_at(watched, g);
    enum dmm_merge_result got = own ? merge(watched, g, frame_at(s, g)) : merge(s, g, m);
    assert_true(half_protected && (got == DMM_MERGE_GONE || got == DMM_MERGE_PARTNER_GONE));
    ((uint64_t *)mfn_to_hva(m))[1] = 4711; /* through the translation that its CPU has had all the time */
    uint64_t word;
    assert_true(dmm_peek_u64(watched, g * PAGE_SIZE + 8, &word) && word == 4711);
    expect(s, g, 5);
    __atomic_fetch_sub(&share_unflushed, 1, __ATOMIC_SEQ_CST);
    put(watched, g, 5);
    assert_int_equal(merge(s, g, frame_at(watched, g)), DMM_MERGE_DONE);
}

/* Nor does it become the zero page, for which it needs no partner, or sealed, for which it is alone. */
static void merge_alone_half_protected(bool zero, bool late)
{
    static const uint64_t zeros[PAGE_SIZE / 8];
    watched_gfn = 10;
    put(watched, 10, 6);
    if (zero)
        assert_int_equal(dmm_write_guest(watched, 10 * PAGE_SIZE, zeros, PAGE_SIZE), DMM_FAULT_RETRY);
    half_protected = false;
    back_at_flush = late;
    if (!late)
        protect_half();
    mfn_t m = frame_at(watched, 10);
    assert_int_equal(merge(watched, 10, zero ? INVALID_MFN : m), DMM_MERGE_GONE);
    assert_true(half_protected);
    ((uint64_t *)mfn_to_hva(m))[1] = 4712;
    uint64_t word;
    assert_true(dmm_peek_u64(watched, 10 * PAGE_SIZE + 8, &word) && word == 4712);
    __atomic_fetch_sub(&share_unflushed, 1, __ATOMIC_SEQ_CST);
}

static void test_page_is_just_being_protected(void **state)
{
    static const struct dmm_space_ops ops = { .kick = on_kick };
    struct dmm_space_config cfg = { .name = "t", .vm_id = 8, .pages = 512, .group = 1, .format = &p2m_format_fake, .ops = &ops };
    struct dmm_space *s = make(512, DMM_CLASS_BEST_EFFORT, 1);
    assert_int_equal(dmm_space_create(&cfg, &watched), DMM_CREATE_OK);
    assert_true(dmm_space_add_ram(watched, gfn_of(0), 512));
    for (unsigned n = 0; n < 4; n++)
        merge_half_protected(s, n, n & 1, n & 2);
    dmm_group_set_secure(1, true);
    for (unsigned n = 0; n < 4; n++)
        merge_alone_half_protected(n & 1, n & 2);
    dmm_group_set_secure(1, false);
    dmm_space_destroy(s);
    dmm_space_destroy(watched);
    assert_int_equal(share_unflushed, 0);
    host_audit();
}

/* ---- classes, and the last frame ------------------------------------------------------------------------------------------ */

static uint64_t fill_until_stalled(struct dmm_space *s)
{
    uint64_t g = 0;
    while (dmm_fault(s, gfn_of(g), DMM_WRITE) == DMM_FAULT_RETRY)
        g++;
    return g;
}

static void share_pairs(struct dmm_space *s, uint64_t pages)
{
    for (uint64_t g = 0; g < pages; g++)
        assert_int_equal(put(s, g, 1000 + g / 2), DMM_FAULT_RETRY);
    for (uint64_t g = 1; g < pages; g += 2)
        assert_int_equal(merge(s, g, frame_at(s, g - 1)), DMM_MERGE_DONE);
}

/* Writes to all pages until one has to wait; returns how many went through. */
static uint64_t write_all(struct dmm_space *s, uint64_t pages)
{
    uint64_t g = 0;
    while (g < pages && dmm_fault(s, gfn_of(g), DMM_WRITE) == DMM_FAULT_RETRY)
        g++;
    host_audit();
    return g;
}

static void test_everybody_writes(void **state)
{
    enum { PAGES = 600 };
    struct dmm_space *strict = make(PAGES, DMM_CLASS_STRICT, 0), *insured = make(PAGES, DMM_CLASS_INSURED, 0);
    struct dmm_space *effort = make(PAGES, DMM_CLASS_BEST_EFFORT, 0), *greedy = make(1 << 16, DMM_CLASS_BEST_EFFORT, 0);
    share_pairs(strict, PAGES);
    share_pairs(insured, PAGES);
    share_pairs(effort, PAGES);
    struct dmm_usage u;
    dmm_space_usage(strict, &u);
    assert_int_equal(u.covered, PAGES);
    dmm_space_usage(insured, &u);
    assert_true(u.covered >= PAGES / 20 && u.covered < PAGES);
    assert_int_equal(dmm_covered_pages(), PAGES + u.covered);
    dmm_policy_set(dmm_policy_find("demand"), "large_free_percent", 101);
    fill_until_stalled(greedy);
    host_audit();
    assert_int_equal(dmm_fault(greedy, gfn_of(1 << 15), DMM_WRITE), DMM_FAULT_STALLED);
    assert_true(write_all(effort, PAGES) < PAGES); /* waits */
    assert_false(pool_has_room(effort));
    uint64_t through = write_all(insured, PAGES);  /* for a while: half of its breaks are the last user's, in place */
    assert_true(through >= u.covered && through < PAGES);
    assert_int_equal(write_all(strict, PAGES), PAGES);
    for (uint64_t g = 0; g < PAGES; g++) {
        expect(strict, g, 1000 + g / 2);
        expect(insured, g, 1000 + g / 2);
        expect(effort, g, 1000 + g / 2);
    }
    dmm_space_destroy(greedy);
    assert_true(pool_has_room(effort));
    assert_int_equal(write_all(effort, PAGES), PAGES);
    assert_int_equal(write_all(insured, PAGES), PAGES);
    assert_int_equal(dmm_covered_pages(), 0);
    dmm_space_destroy(strict);
    dmm_space_destroy(insured);
    dmm_space_destroy(effort);
    dmm_policy_set(dmm_policy_find("demand"), "large_free_percent", 60);
    host_audit();
}

/* A VM says what it lacks, and does not look again before that could have changed. */
static void expect_stalled(struct dmm_space *s, uint64_t g, enum dmm_stall why)
{
    assert_int_equal(dmm_fault(s, gfn_of(g), DMM_WRITE), DMM_FAULT_STALLED);
    assert_int_equal(dmm_stall_reason(s), why);
    assert_false(pool_has_room(s));
}

static void test_what_a_stall_waits_for(void **state)
{
    enum { MAX = 8, PAGES = 200 };
    struct dmm_space_config cfg = { .name = "capped", .pages = 64, .max_pages = MAX, .format = &p2m_format_fake };
    struct dmm_space *capped, *strict = make(PAGES, DMM_CLASS_STRICT, 0), *effort = make(PAGES, DMM_CLASS_BEST_EFFORT, 0);
    struct dmm_space *greedy = make(1 << 16, DMM_CLASS_BEST_EFFORT, 0);
    assert_int_equal(dmm_space_create(&cfg, &capped), DMM_CREATE_OK);
    assert_true(dmm_space_add_ram(capped, gfn_of(0), 64));
    dmm_policy_set(dmm_policy_find("demand"), "large_free_percent", 101);
    assert_int_equal(dmm_fault(capped, gfn_of(0), DMM_WRITE), DMM_FAULT_RETRY);
    assert_int_equal(merge(capped, 0, INVALID_MFN), DMM_MERGE_ZEROED); /* no charge for it now */
    put(capped, 1, 5);
    put(capped, 2, 5);
    assert_int_equal(merge(capped, 2, frame_at(capped, 1)), DMM_MERGE_DONE);
    for (uint64_t g = 3; g <= MAX; g++)
        assert_int_equal(dmm_fault(capped, gfn_of(g), DMM_WRITE), DMM_FAULT_RETRY);
    expect_stalled(capped, 20, DMM_STALL_MAXIMUM);
    expect_stalled(capped, 0, DMM_STALL_MAXIMUM);
    share_pairs(strict, PAGES);
    share_pairs(effort, 20);
    expect_stalled(greedy, fill_until_stalled(greedy), DMM_STALL_SET_ASIDE);
    expect_stalled(effort, 0, DMM_STALL_SET_ASIDE);
    expect_stalled(effort, 100, DMM_STALL_SET_ASIDE);
    expect_stalled(capped, 1, DMM_STALL_SET_ASIDE); /* its maximum is none for a page that is charged */
    expect_stalled(capped, 0, DMM_STALL_MAXIMUM);
    assert_true(dmm_set_class(strict, DMM_CLASS_BEST_EFFORT, NULL));
    assert_int_equal(dmm_stall_reason(effort), DMM_STALL_NONE);
    assert_true(pool_has_room(effort));
    expect_stalled(greedy, fill_until_stalled(greedy), DMM_STALL_NO_FRAME);
    expect_stalled(effort, 0, DMM_STALL_NO_FRAME);
    dmm_space_destroy(greedy);
    assert_int_equal(write_all(effort, PAGES), PAGES);
    dmm_space_destroy(capped);
    dmm_space_destroy(strict);
    dmm_space_destroy(effort);
    dmm_policy_set(dmm_policy_find("demand"), "large_free_percent", 60);
    host_audit();
}

/* The scanner may not make a strict VM poorer than it was. */
static void test_strict_is_not_merged_uncovered(void **state)
{
    struct dmm_space *strict = make(100, DMM_CLASS_STRICT, 0), *greedy = make(1 << 16, DMM_CLASS_BEST_EFFORT, 0);
    put(strict, 0, 3);
    put(strict, 1, 3);
    fill_until_stalled(greedy);
    assert_int_equal(merge(strict, 1, frame_at(strict, 0)), DMM_MERGE_UNCOVERED);
    dmm_space_destroy(greedy);
    assert_int_equal(merge(strict, 1, frame_at(strict, 0)), DMM_MERGE_DONE);
    dmm_space_destroy(strict);
    host_audit();
}

/* To go back takes nothing that it has not got: what is set aside for it stays so. But for more it has to be there. */
static void test_strict_goes_back_while_memory_is_short(void **state)
{
    enum { PAGES = 300 };
    struct dmm_space *strict = make(PAGES, DMM_CLASS_STRICT, 0), *greedy = make(1 << 16, DMM_CLASS_BEST_EFFORT, 0);
    struct dmm_image *image;
    for (uint64_t g = 0; g < PAGES; g++)
        put(strict, g, 20 + g);
    assert_int_equal(dmm_space_freeze(strict, &image), DMM_FREEZE_OK);
    fill_until_stalled(greedy);
    host_audit();
    assert_true(dmm_space_restore(strict, image));
    host_audit();
    assert_int_equal(dmm_covered_pages(), PAGES);
    assert_int_equal(write_all(strict, PAGES), PAGES); /* and goes on */
    fill_until_stalled(greedy);
    assert_false(dmm_space_restore(strict, image));
    for (uint64_t g = 0; g < PAGES; g++)
        expect(strict, g, 20 + g);
    dmm_space_destroy(greedy);
    assert_true(dmm_space_restore(strict, image));
    expect(strict, 7, 27);
    dmm_image_release(image);
    dmm_space_destroy(strict);
    host_audit();
}

static void test_who_shares_too_much_can_not_become_strict(void **state)
{
    enum { PAGES = 100 };
    struct dmm_space *s = make(PAGES, DMM_CLASS_BEST_EFFORT, 0), *greedy = make(1 << 16, DMM_CLASS_BEST_EFFORT, 0);
    uint64_t lacking = 0;
    share_pairs(s, PAGES);
    fill_until_stalled(greedy);
    assert_false(dmm_set_class(s, DMM_CLASS_STRICT, &lacking));
    assert_in_range(lacking, 1, PAGES);
    assert_int_equal(dmm_get_class(s), DMM_CLASS_BEST_EFFORT);
    host_audit();
    dmm_space_destroy(greedy);
    assert_true(dmm_set_class(s, DMM_CLASS_STRICT, &lacking));
    assert_int_equal(dmm_covered_pages(), PAGES);
    dmm_space_destroy(s);
    host_audit();
}

static void test_insurance_follows_the_rate(void **state)
{
    enum { PAGES = 400 };
    struct dmm_space *s = make(PAGES, DMM_CLASS_INSURED, 0);
    share_pairs(s, PAGES);
    uint64_t calm = dmm_covered_pages();
    for (uint64_t g = 0; g < 40; g += 2) /* 20 breaks in a second: 200 in ten */
        assert_int_equal(dmm_fault(s, gfn_of(g), DMM_WRITE), DMM_FAULT_RETRY);
    dmm_insurance_tick(1000000000);
    host_audit();
    uint64_t stormy = dmm_covered_pages();
    assert_true(stormy > 5 * calm && stormy <= PAGES);
    struct dmm_bill bill;
    dmm_space_bill(s, &bill);
    assert_in_range(bill.break_rate_milli, 19900, 20100);
    assert_int_equal(bill.covered_pages, stormy);
    for (unsigned n = 0; n < 60; n++)
        dmm_insurance_tick(1000000000);
    assert_true(dmm_covered_pages() <= calm); /* it owes less, too */
    assert_true(dmm_set_class(s, DMM_CLASS_STRICT, NULL));
    host_audit();
    assert_true(dmm_set_class(s, DMM_CLASS_BEST_EFFORT, NULL));
    assert_int_equal(dmm_covered_pages(), 0);
    dmm_space_destroy(s);
    host_audit();
}

/* ---- families -------------------------------------------------------------------------------------------------------------- */

static struct dmm_space *child_of_image(struct dmm_image *image, uint64_t pages)
{
    struct dmm_space_config cfg = { .name = "child", .vm_id = 8, .pages = pages, .format = &p2m_format_fake };
    struct dmm_space *s;
    assert_int_equal(dmm_space_create_from(&cfg, image, &s), DMM_CREATE_OK);
    return s;
}

/* Frames are held once until somebody writes, and go when the last one who needs them does. */
static void test_family(void **state)
{
    enum { PAGES = 3000, CHILDREN = 5 };
    uint64_t before = frame_free_pages();
    struct dmm_space *parent = make(PAGES, DMM_CLASS_BEST_EFFORT, 0), *child[CHILDREN];
    for (uint64_t g = 0; g < PAGES; g++)
        put(parent, g, g);
    uint64_t filled = frame_count(FRAME_GUEST), p2m = frame_count(FRAME_P2M);
    struct dmm_image *image;
    assert_int_equal(dmm_space_freeze(parent, &image), DMM_FREEZE_OK);
    for (unsigned k = 0; k < CHILDREN; k++)
        child[k] = child_of_image(image, PAGES);
    assert_int_equal(frame_count(FRAME_GUEST), filled);       /* nothing was copied */
    assert_int_equal(frame_count(FRAME_P2M), p2m + 1 + CHILDREN); /* a root each */
    host_audit();
    struct dmm_usage u;
    dmm_space_usage(child[0], &u);
    assert_int_equal(u.inherited, PAGES);
    assert_int_equal(u.charged, PAGES);
    for (unsigned k = 0; k < CHILDREN; k++)
        for (uint64_t g = k; g < PAGES; g += 97)
            put(child[k], g, 100000 + k);
    for (uint64_t g = 50; g < PAGES; g += 97)
        put(parent, g, 200000);
    host_audit();
    for (unsigned k = 0; k < CHILDREN; k++)
        for (uint64_t g = 0; g < PAGES; g++)
            expect(child[k], g, g % 97 == k ? 100000 + k : g);
    for (uint64_t g = 0; g < PAGES; g++)
        expect(parent, g, g % 97 == 50 ? 200000 : g);
    dmm_image_release(image);
    for (unsigned k = 0; k < CHILDREN; k++) {
        dmm_space_destroy(child[k]);
        host_audit();
    }
    /* The parent is alone again: it gets its frames back in place, without a copy. */
    for (uint64_t g = 0; g < PAGES; g++)
        assert_int_equal(dmm_fault(parent, gfn_of(g), DMM_WRITE), DMM_FAULT_RETRY);
    assert_int_equal(frame_count(FRAME_GUEST), PAGES);
    assert_int_equal(frame_count(FRAME_SHARED), 0);
    dmm_space_destroy(parent);
    host_audit();
    assert_int_equal(frame_free_pages(), before);
}

/* A snapshot after another, with writes in between and old ones dropped: the line of images stays short, and nothing piles up. */
static void test_many_snapshots(void **state)
{
    enum { PAGES = 1200, KEPT = 3 };
    uint64_t before = frame_free_pages();
    struct dmm_space *s = make(PAGES, DMM_CLASS_BEST_EFFORT, 0);
    struct dmm_image *kept[KEPT] = { 0 };
    static uint64_t now[PAGES], then[KEPT][PAGES];
    for (unsigned round = 0; round < 60; round++) {
        for (unsigned n = 0; n < 40; n++) {
            uint64_t g = host_random(PAGES);
            put(s, g, now[g] = 1 + round * 1000 + n);
        }
        unsigned k = round % KEPT;
        if (kept[k])
            dmm_image_release(kept[k]);
        assert_int_equal(dmm_space_freeze(s, &kept[k]), DMM_FREEZE_OK);
        memcpy(then[k], now, sizeof(now));
        assert_true(s->depth <= 14);
        host_audit();
        if (host_random(5) == 0) {
            k = (unsigned)host_random(KEPT);
            if (kept[k] && dmm_space_restore(s, kept[k]))
                memcpy(now, then[k], sizeof(now));
            host_audit();
        }
        for (uint64_t g = 0; g < PAGES; g++)
            if (now[g])
                expect(s, g, now[g]);
        assert_true(frame_count(FRAME_GUEST) + frame_count(FRAME_SHARED) <= (KEPT + 2) * PAGES);
    }
    for (unsigned k = 0; k < KEPT; k++)
        dmm_image_release(kept[k]);
    dmm_space_destroy(s);
    host_audit();
    assert_int_equal(frame_free_pages(), before);
}

/* Out of frames in the middle of taking a region over: nothing has happened, and it works later. */
static void test_take_over_without_frames(void **state)
{
    enum { PAGES = 1024 };
    struct dmm_space *parent = make(PAGES, DMM_CLASS_BEST_EFFORT, 0), *greedy = make(1 << 16, DMM_CLASS_BEST_EFFORT, 0);
    struct dmm_image *image;
    for (uint64_t g = 0; g < PAGES; g++)
        put(parent, g, g);
    assert_int_equal(dmm_space_freeze(parent, &image), DMM_FREEZE_OK);
    struct dmm_space *child = child_of_image(image, PAGES);
    fill_until_stalled(greedy);
    uint64_t rest[4096], count = 0; /* and what only FRAME_RESERVE_OK gets, but for a few */
    for (mfn_t m; count < ARRAY_SIZE(rest) && mfn_valid(m = frame_alloc(0, FRAME_RESERVE_OK, FRAME_HV_HEAP, NULL)); count++)
        rest[count] = m.v;
    for (unsigned few = 0; few < 12; few++) {
        host_audit();
        for (uint64_t g = 0; g < PAGES; g += 512) {
            enum dmm_fault_result r = dmm_fault(child, gfn_of(g), DMM_READ);
            assert_true(r == DMM_FAULT_STALLED || r == DMM_FAULT_RETRY);
            expect(child, g + 1, g + 1); /* reading from outside needs no frame */
        }
        if (count)
            frame_free(mfn_of(rest[--count]), 0);
    }
    while (count)
        frame_free(mfn_of(rest[--count]), 0);
    dmm_space_destroy(greedy);
    for (uint64_t g = 0; g < PAGES; g++) {
        assert_int_equal(dmm_fault(child, gfn_of(g), DMM_WRITE), DMM_FAULT_RETRY);
        expect(child, g, g);
    }
    dmm_image_release(image);
    dmm_space_destroy(child);
    dmm_space_destroy(parent);
    host_audit();
}

/* ---- several CPUs --------------------------------------------------------------------------------------------------------------- */

static struct dmm_space *common[3];
static volatile bool stop;

static uint64_t breaks_so_far(void)
{
    uint64_t sum = 0;
    for (unsigned k = 0; k < 3; k++)
        sum += __atomic_load_n(&common[k]->breaks, __ATOMIC_RELAXED);
    return sum;
}

/* Each owns every third page of each space, and checks what it wrote there before. On a busy host the thread that merges may come late: they go on
 * until it has given them enough to break. */
static void *write_and_check(void *arg)
{
    enum { PAGES = 1500 };
    static _Thread_local uint64_t now[3][PAGES], page[512];
    unsigned me = (unsigned)(uintptr_t)arg;
    host_become_cpu(20 + me);
    for (unsigned n = 0; n < 6000 || (n < 1000000 && breaks_so_far() <= 100); n++) {
        unsigned k = (unsigned)(n * 7 + me) % 3;
        uint64_t g = ((uint64_t)n * 31 % (PAGES / 3)) * 3 + me, stamp = 1 + n % 5;
        assert_int_equal(dmm_read_guest(common[k], g * PAGE_SIZE, page, PAGE_SIZE), DMM_FAULT_RETRY);
        for (unsigned w = 0; w < 512; w++)
            assert_int_equal(page[w], now[k][g] ? now[k][g] << 16 | w : 0);
        for (unsigned w = 0; w < 512; w++)
            page[w] = stamp << 16 | w;
        assert_int_equal(dmm_write_guest(common[k], g * PAGE_SIZE, page, PAGE_SIZE), DMM_FAULT_RETRY);
        now[k][g] = stamp;
    }
    return NULL;
}

static void *merge_all_the_time(void *arg)
{
    static struct dmm_scan scan;
    static mfn_t known[8];
    struct dmm_merge m[DMM_MERGE_BATCH];
    host_become_cpu(30);
    while (!stop)
        for (unsigned k = 0; k < 3; k++) {
            struct dmm_space *s = dmm_space_acquire(common[k]->id);
            for (uint64_t g = 0; g < 1500; g += 512) {
                unsigned count = 0;
                dmm_scan_age(s, gfn_of(g));
                if (!dmm_scan_region(s, gfn_of(g), &scan))
                    continue;
                for (unsigned n = 0; n < scan.fresh && count < DMM_MERGE_BATCH; n++) {
                    uint64_t word = *(volatile uint64_t *)mfn_to_hva(scan.page[n].mfn) >> 16;
                    m[count++] = (struct dmm_merge){ gfn_of(g + scan.page[n].index), scan.page[n].mfn, word ? known[word % 8] : INVALID_MFN, 0 };
                    known[word % 8] = scan.page[n].mfn;
                }
                dmm_merge(s, m, count);
            }
            dmm_merge_finish();
            dmm_space_release(s);
        }
    return NULL;
}

static void test_writers_while_merging(void **state)
{
    pthread_t writer[3], merger;
    for (unsigned k = 0; k < 3; k++)
        common[k] = make(1500, DMM_CLASS_BEST_EFFORT, 1);
    stop = false;
    assert_int_equal(pthread_create(&merger, NULL, merge_all_the_time, NULL), 0);
    for (uintptr_t n = 0; n < 3; n++)
        assert_int_equal(pthread_create(&writer[n], NULL, write_and_check, (void *)n), 0);
    for (unsigned n = 0; n < 3; n++)
        pthread_join(writer[n], NULL);
    stop = true;
    pthread_join(merger, NULL);
    host_audit();
    assert_true(breaks_so_far() > 100);
    for (unsigned k = 0; k < 3; k++)
        dmm_space_destroy(common[k]);
    host_audit();
}

/* ---- the audit ------------------------------------------------------------------------------------------------------------------ */

static char found[256];
static void note(const char *line, void *arg) { snprintf(found, sizeof(found), "%s", line); }

static void expect_violation(const char *word)
{
    found[0] = 0;
    assert_true(dmm_audit(note, NULL) > 0);
    if (!strstr(found, word))
        fail_msg("said \"%s\", not \"%s\"", found, word);
}

static void test_audit_sees_damage(void **state)
{
    struct dmm_space *s = make(1200, DMM_CLASS_STRICT, 0);
    share_pairs(s, 4);
    struct frame *f = frame_of(frame_at(s, 0)), saved = *f;
    f->refs++;
    expect_violation("shared frames");
    f->refs--;
    f->owner = s->id;
    expect_violation("owner");
    *f = saved;
    p2m_entry_t *slot = &region_of(s, gfn_of(2))->l1[2], e = *slot;
    *slot = s->format->make_leaf(P2M_SHARED_RO, frame_at(s, 0), 1);
    expect_violation("SHARED_RO entry leads");
    *slot = e;
    s->owed++;
    expect_violation("owes");
    s->owed--;
    s->hard--;
    expect_violation("covers");
    s->hard++;
    struct dmm_image *image;
    assert_int_equal(dmm_space_freeze(s, &image), DMM_FREEZE_OK);
    s->inherited_charge++;
    expect_violation("inherited");
    s->inherited_charge--;
    host_audit();
    dmm_space_destroy(s);
    dmm_image_release(image);
    host_audit();
}

static int setup(void **state)
{
    host_machine_init(64);
    demand_policy_init();
    assert_int_equal(dmm_group_of("one"), 1);
    assert_int_equal(dmm_group_of("one"), 1);
    assert_int_equal(dmm_group_of(""), 0);
    assert_int_equal(dmm_group_find("two"), 0);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmap_against_a_list), cmocka_unit_test(test_full_map), cmocka_unit_test(test_family),
        cmocka_unit_test(test_many_snapshots), cmocka_unit_test(test_take_over_without_frames), cmocka_unit_test(test_everybody_writes),
        cmocka_unit_test(test_what_a_stall_waits_for), cmocka_unit_test(test_strict_is_not_merged_uncovered),
        cmocka_unit_test(test_strict_goes_back_while_memory_is_short),
        cmocka_unit_test(test_who_shares_too_much_can_not_become_strict),
        cmocka_unit_test(test_insurance_follows_the_rate),
        cmocka_unit_test(test_audit_sees_damage), cmocka_unit_test(test_page_is_just_being_protected),
        cmocka_unit_test(test_writers_while_merging),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
