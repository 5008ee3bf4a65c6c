/* The p2m: tables built for odd layouts of RAM, seen through a walker of the test's own; breaking and re-forming; entry changes while the
 * "hardware" sets accessed and dirty bits.
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
#include "mm/dmm/p2m.h"
#include "tests/unit/fake/dmm_host.h"

static struct dmm_space *make_space(uint64_t pages)
{
    struct dmm_space_config cfg = { .name = "p2m", .vm_id = 3, .pages = pages, .format = &p2m_format_fake };
    struct dmm_space *s;
    assert_int_equal(dmm_space_create(&cfg, &s), DMM_CREATE_OK);
    return s;
}

/* As the hardware would walk: from the root, by the format's bits alone. */
static p2m_entry_t *walk(struct dmm_space *s, gfn_t gfn, unsigned *level)
{
    p2m_entry_t *table = mfn_to_hva(hpa_to_mfn(dmm_space_root_hpa(s)));
    for (*level = 4;; --*level) {
        p2m_entry_t *e = &table[gfn.v >> (9 * (*level - 1)) & 511];
        if (*level == 1 || p2m_format_fake.type_of(*e, *level) != P2M_TABLE)
            return e;
        assert_int_equal(frame_get_type(p2m_format_fake.mfn_of(*e)), FRAME_P2M);
        table = mfn_to_hva(p2m_format_fake.mfn_of(*e));
    }
}

static enum p2m_type type_at(struct dmm_space *s, gfn_t gfn)
{
    unsigned level;
    p2m_entry_t *e = walk(s, gfn, &level);
    return p2m_format_fake.type_of(*e, level);
}

#define SPAN (5 * LARGE_PAGES * LARGE_PAGES / 4) /* 1.25 GiB of gfns, sampled */

static void test_layouts(void **state)
{
    for (unsigned round = 0; round < 40; round++) {
        struct dmm_space *s = make_space(SPAN);
        bool *ram = calloc(SPAN + 1, 1);
        uint64_t at = host_random(600), declared = 0;
        for (unsigned part = 0; part < 4 && at + 3000 < SPAN; part++) {
            uint64_t pages = 1 + host_random(host_random(2) ? 40 : 2500);
            assert_true(dmm_space_add_ram(s, gfn_of(at), pages));
            assert_false(dmm_space_add_ram(s, gfn_of(at + host_random(pages)), 1)); /* declared already */
            memset(ram + at, 1, pages);
            declared += pages;
            at += pages + host_random(part == 2 ? SPAN / 2 : 700);
            host_audit();
        }
        for (uint64_t g = 0; g < SPAN; g += g > 4096 && g % 512 > 2 && g % 512 < 510 ? 7 : 1) {
            assert_int_equal(dmm_gfn_is_ram(s, gfn_of(g)), ram[g]);
            if (ram[g] && !region_of(s, gfn_of(g)))
                assert_non_null(region_build(s, gfn_of(g)));
            assert_int_equal(type_at(s, gfn_of(g)), ram[g] ? P2M_EMPTY : P2M_HOLE);
        }
        struct dmm_usage u;
        dmm_space_usage(s, &u);
        assert_int_equal(u.empty, declared);
        assert_int_equal(u.resident, 0);
        assert_false(dmm_gfn_is_ram(s, gfn_of(UINT64_MAX)));
        assert_int_equal(dmm_fault(s, gfn_of(SPAN * 4), DMM_READ), DMM_FAULT_HOLE);
        dmm_space_destroy(s);
        host_audit();
        free(ram);
    }
}

static void test_refused_layouts(void **state)
{
    struct dmm_space *s = make_space(1000);
    assert_false(dmm_space_add_ram(s, gfn_of(0), 0));
    assert_false(dmm_space_add_ram(s, gfn_of(0), 1001));
    assert_false(dmm_space_add_ram(s, gfn_of(UINT64_MAX), 2));
    assert_false(dmm_space_add_ram(s, gfn_of(UINT64_C(1) << 36), 1));
    assert_true(dmm_space_add_ram(s, gfn_of(0), 1000));
    assert_false(dmm_space_add_ram(s, gfn_of(2000), 1));
    dmm_space_destroy(s);
    host_audit();
}

static void want_2m(struct dmm_policy *p, const struct dmm_touch *t, struct dmm_populate_plan *out)
{
    out->size = t->region_empty ? DMM_POPULATE_2M : DMM_POPULATE_4K;
}
static struct dmm_policy large_policy = { .name = "large", .enabled = true, .can_disable = true,
                                             .plan_populate = want_2m };

static void test_break_and_reform(void **state)
{
    struct dmm_space *s = make_space(4 * LARGE_PAGES);
    unsigned level;
    assert_true(dmm_space_add_ram(s, gfn_of(0), 4 * LARGE_PAGES));
    while (frame_zero_some(512))
        continue;
    assert_int_equal(dmm_fault(s, gfn_of(700), DMM_WRITE), DMM_FAULT_RETRY);
    mfn_t first = p2m_format_fake.mfn_of(*walk(s, gfn_of(700), &level));
    assert_int_equal(level, 2);
    uint8_t *page = mfn_to_hva(mfn_add(first, 700 - 512));
    page[5] = 77;
    host_audit();
    assert_int_equal(dmm_reform_large(s, gfn_of(700)), DMM_RESIZE_UNSUITABLE); /* is large */
    assert_int_equal(dmm_break_large(s, gfn_of(100)), DMM_RESIZE_UNSUITABLE);  /* is EMPTY */
    assert_int_equal(dmm_break_large(s, gfn_of(99999)), DMM_RESIZE_UNSUITABLE);
    for (unsigned round = 0; round < 20; round++) {
        uint64_t generation = dmm_space_flush_generation(s);
        /* Pins do not keep it whole, and stay where they were taken. */
        uint64_t pinned = 512 + (round & 1 ? 0 : host_random(512));
        assert_non_null(dmm_pin(s, gfn_of(pinned), false, NULL));
        assert_ptr_equal(dmm_pin(s, gfn_of(700), true, NULL), page);
        assert_int_equal(s->pinned_pages, LARGE_PAGES);
        assert_int_equal(dmm_break_large(s, gfn_of(512 + host_random(512))), DMM_RESIZE_OK);
        assert_true(dmm_space_flush_generation(s) > generation);
        assert_int_equal(s->pinned_pages, pinned == 700 ? 1 : 2);
        assert_int_equal(frame_of(mfn_add(first, 188))->refs, pinned == 700 ? 2 : 1);
        host_audit();
        dmm_unpin(s, gfn_of(700));
        assert_int_equal(frame_of(mfn_add(first, pinned - 512))->refs, 1);
        dmm_unpin(s, gfn_of(pinned));
        assert_int_equal(s->pinned_pages, 0);
        host_audit();
        for (uint64_t g = 512; g < 1024; g++) {
            p2m_entry_t *e = walk(s, gfn_of(g), &level);
            assert_int_equal(level, 1);
            assert_int_equal(p2m_format_fake.mfn_of(*e).v, first.v + g - 512);
            assert_true(p2m_format_fake.permits(*e, DMM_READ | DMM_WRITE | DMM_EXEC));
        }
        assert_non_null(dmm_pin(s, gfn_of(900), true, NULL));
        assert_int_equal(dmm_reform_large(s, gfn_of(600)), DMM_RESIZE_PINNED);
        dmm_unpin(s, gfn_of(900));
        generation = dmm_space_flush_generation(s);
        assert_int_equal(dmm_reform_large(s, gfn_of(600)), DMM_RESIZE_OK);
        assert_true(dmm_space_flush_generation(s) > generation);
        walk(s, gfn_of(600), &level);
        assert_int_equal(level, 2);
        assert_int_equal(page[5], 77);
        host_audit();
    }
    assert_int_equal(dmm_break_large(s, gfn_of(600)), DMM_RESIZE_OK);
    dmm_space_destroy(s); /* 512 single frames make a whole child again */
    host_audit();
}

struct hardware { struct dmm_space *s; volatile bool stop; };

/* A CPU that sets A and D in present leaves, with locked operations as a page walker does. */
static void *set_ad_bits(void *arg)
{
    struct hardware *h = arg;
    for (uint64_t n = 0; !h->stop; n++) {
        struct region *r = region_of(h->s, gfn_of(0));
        p2m_entry_t *slot = &r->l1[n % LARGE_PAGES], e = p2m_read(slot);
        if (p2m_format_fake.permits(e, DMM_READ))
            __atomic_compare_exchange_n(slot, &e, e | BIT64(10) | (n & 1 ? BIT64(11) : 0), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

static void test_against_ad_bits(void **state)
{
    struct dmm_space *s = make_space(LARGE_PAGES);
    assert_true(dmm_space_add_ram(s, gfn_of(0), LARGE_PAGES));
    dmm_policy_enable(&large_policy, false);
    assert_int_equal(dmm_fault(s, gfn_of(0), DMM_WRITE), DMM_FAULT_RETRY);
    struct hardware h = { .s = s };
    struct region *r = region_of(s, gfn_of(0));
    pthread_t cpu;
    assert_int_equal(pthread_create(&cpu, NULL, set_ad_bits, &h), 0);
    uint64_t seen = 0;
    mfn_t m = p2m_format_fake.mfn_of(p2m_read(&r->l1[0]));
    p2m_entry_t leaf = p2m_format_fake.make_leaf(P2M_RW, m, 1);
    for (unsigned n = 0; n < 200000; n++) { /* the same frame off and on */
        p2m_entry_t old = p2m_transition(s, &r->l1[0], 1, P2M_RW, P2M_EMPTY, s->empty);
        assert_int_equal(p2m_format_fake.mfn_of(old).v, m.v);
        assert_int_equal(p2m_read(&r->l1[0]), s->empty); /* no bit came too late */
        seen += p2m_format_fake.accessed(old);
        p2m_transition(s, &r->l1[0], 1, P2M_EMPTY, P2M_RW, leaf);
    }
    h.stop = true;
    pthread_join(cpu, NULL);
    (void)seen;
    host_audit();
    dmm_policy_enable(&large_policy, true);
    dmm_space_destroy(s);
    host_audit();
}

/* A payload must not look like a frame: in the address bits of a non-present entry there is no frame of this machine. */
static void test_payloads_are_no_frames(void **state)
{
    for (unsigned t = P2M_EMPTY; t <= P2M_LAST_NONPRESENT; t++)
        for (uint64_t payload = 0; payload < UINT64_C(1) << 40; payload = payload * 3 + 1) {
            p2m_entry_t e = p2m_format_fake.make_nonpresent((enum p2m_type)t, payload);
            assert_int_equal(p2m_format_fake.type_of(e, 1), t);
            assert_int_equal(p2m_format_fake.payload_of(e), payload);
            if (payload < FRAME_MAX_MFN / 2)
                assert_false(frame_exists(hpa_to_mfn(e & GENMASK64(51, 12))));
        }
}

static int setup(void **state)
{
    host_machine_init(96);
    dmm_policy_register(&large_policy);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts), cmocka_unit_test(test_refused_layouts), cmocka_unit_test(test_break_and_reform),
        cmocka_unit_test(test_against_ad_bits), cmocka_unit_test(test_payloads_are_no_frames),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
