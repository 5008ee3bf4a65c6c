/* Who shares with whom: groups, and secure ones, in which the next access traps whether a page was merged or not.
 * TEST-SOURCES: policies/dedup.c policies/dedup_thread.c policies/dedup_table.c policies/large.c mm/dmm/digest.c mm/dmm/frame.c mm/dmm/frame_alloc.c
   mm/dmm/space.c mm/dmm/write_log.c
   mm/dmm/pool.c mm/dmm/p2m.c mm/dmm/fault.c mm/dmm/hist.c mm/dmm/guest_access.c mm/dmm/policy.c mm/dmm/audit.c mm/dmm/share.c mm/dmm/rmap.c
   mm/dmm/merge.c mm/dmm/scan.c mm/dmm/group.c mm/dmm/image.c mm/dmm/collapse.c mm/dmm/bill.c mm/dmm/move.c policies/demand.c
   tests/unit/fake/dmm_host.c tests/unit/fake/p2m_fake.c */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
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

static bool any_frame_in_common(const struct vm *a, const struct vm *b, bool data_only)
{
    for (uint64_t g = 0; g < PAGES; g++) {
        struct region *r = region_of(a->s, gfn_of(g));
        unsigned level;
        p2m_entry_t e = r ? p2m_read(p2m_leaf(r, gfn_of(g), &level)) : 0;
        enum p2m_type type = r ? a->s->format->type_of(e, level) : P2M_EMPTY;
        if ((type != P2M_SHARED_RO && type != P2M_SEALED) || (data_only && a->content[g] < 100))
            continue;
        const struct frame *f = frame_of(share_mfn_of(a->s, e, type));
        for (uint64_t h = 0; h < PAGES; h++)
            if (b->content[h] == a->content[g] && rmap_has(f, b->s->id, h))
                return true;
    }
    return false;
}

static void test_groups(void **state)
{
    create(0, 1, false);
    create(1, 1, false);
    create(2, 2, false);
    create(3, 0, false);
    for (unsigned k = 0; k < VMS; k++)
        for (uint64_t g = 0; g < PAGES; g++)
            put(&vms[k], g, g < 20 ? 7 : 100 + g);
    sweep();
    assert_true(any_frame_in_common(&vms[0], &vms[1], true));
    for (unsigned k = 2; k < VMS; k++) {
        assert_false(any_frame_in_common(&vms[0], &vms[k], true));
        assert_true(any_frame_in_common(&vms[0], &vms[k], false)); /* one word throughout */
    }
    assert_int_equal(counter("foreign"), 0);
    destroy_all();
}

static uint64_t cause_count(unsigned k, enum dmm_fault_cause c)
{
    struct dmm_hist_summary h;
    dmm_fault_summary(vms[k].s, c, &h);
    return h.count;
}

static void create_of_words(unsigned k, unsigned group, uint64_t word)
{
    create(k, group, false);
    for (uint64_t g = 0; g < 40; g++)
        put(&vms[k], g, word + g % 5);
}

/* That there is a page of one word somewhere is told to nobody outside a secure group, nor to anybody in it: whoever was there first. */
static void test_secure_group_keeps_words(void **state)
{
    uint64_t foreign = counter("foreign");
    dmm_group_set_secure(2, true);
    for (unsigned first = 0; first < 3; first++) { /* 2: all at once */
        for (unsigned n = 0; n < VMS; n++) {
            unsigned k = first == 1 ? n : VMS - 1 - n;
            create_of_words(k, k < 2 ? 2 : k == 2 ? 1 : 0, 10 * (first + 1)); /* of others each time: the table is still there */
            if (first < 2 && n == 1)
                sweep();
        }
        sweep();
        for (unsigned k = 0; k < VMS; k++)
            for (unsigned other = 0; other < VMS; other++)
                if (k != other)
                    assert_int_equal(any_frame_in_common(&vms[k], &vms[other], false), k / 2 == other / 2);
        assert_int_equal(frames_used(), 2 * 5);
        destroy_all();
    }
    assert_int_equal(counter("foreign"), foreign); /* nobody has even tried */
    dmm_group_set_secure(2, false);
}

static mfn_t frame_behind(struct vm *v, uint64_t g)
{
    unsigned level;
    return v->s->format->mfn_of(p2m_read(p2m_leaf(region_of(v->s, gfn_of(g)), gfn_of(g), &level)));
}

/* The same if the scanner proposes it, as it may: what it knows can be old. */
static void test_secure_group_refuses_words(void **state)
{
    for (unsigned secure = 0; secure < 3; secure++) { /* none, the one who asks, the partner */
        dmm_group_set_secure(secure, true);
        for (unsigned k = 0; k < 2; k++) {
            create(k, k + 1, false);
            put(&vms[k], 0, 50);
        }
        struct dmm_merge m = { .gfn = gfn_of(0), .mfn = frame_behind(&vms[0], 0), .with = frame_behind(&vms[1], 0) };
        dmm_merge(vms[0].s, &m, 1);
        dmm_merge_finish();
        assert_int_equal(m.result, secure ? DMM_MERGE_FOREIGN : DMM_MERGE_DONE);
        check_all();
        destroy_all();
        dmm_group_set_secure(secure, false);
    }
}

/* Merged or not, the next access traps, and brings another frame. */
static void test_secure_group(void **state)
{
    unsigned trapped = 0;
    dmm_group_set_secure(2, true);
    create(0, 2, false);
    create(1, 2, false);
    for (uint64_t g = 0; g < PAGES; g++) {
        put(&vms[0], g, 200 + g);
        put(&vms[1], g, g % 2 ? 200 + g : 9000000 + g); /* every other page has a partner */
    }
    sweep();
    for (unsigned k = 0; k < 2; k++)
        for (uint64_t g = 0; g < PAGES; g++) {
            bool sealed = !dmm_is_mapped(vms[k].s, gfn_of(g), DMM_READ);
            trapped += sealed;
            if (!sealed)
                fail_msg("vm %u gfn %lx is not sealed", k, g);
            assert_int_equal(dmm_fault(vms[k].s, gfn_of(g), DMM_READ), DMM_FAULT_RETRY);
            assert_true(dmm_is_mapped(vms[k].s, gfn_of(g), DMM_WRITE));
        }
    assert_int_equal(trapped, 2 * PAGES);
    check_all();
    dmm_group_set_secure(2, false);
    destroy_all();
}

static void expect_all_trap(unsigned k, uint64_t pages)
{
    uint64_t before[DMM_CAUSE_COUNT];
    for (uint64_t g = 0; g < pages; g++) {
        if (dmm_is_mapped(vms[k].s, gfn_of(g), DMM_READ))
            fail_msg("vm %u gfn %lx (content %lu) does not trap", k, g, vms[k].content[g]);
        for (unsigned c = 0; c < DMM_CAUSE_COUNT; c++)
            before[c] = cause_count(k, c);
        assert_int_equal(dmm_fault(vms[k].s, gfn_of(g), g % 3 ? DMM_READ : DMM_READ | DMM_WRITE), DMM_FAULT_RETRY);
        for (unsigned c = 0; c < DMM_CAUSE_COUNT; c++)
            assert_int_equal(cause_count(k, c), before[c] + (c == DMM_CAUSE_COW_SEALED));
        assert_true(dmm_is_mapped(vms[k].s, gfn_of(g), DMM_WRITE));
    }
}

/* A group becomes secure when it has long been scanned: what was merged, what was looked at in vain, what a fork shares and what is in a 2 MiB
 * mapping traps alike from the next sweep on. */
static void test_becomes_secure(void **state)
{
    struct dmm_image *image;
    for (unsigned k = 0; k < 3; k++) {
        create(k, 2, k == 2);
        for (uint64_t g = 0; g < PAGES; g++)
            put(&vms[k], g, g % 3 == k % 2 ? 9000000 + k * PAGES + g : 200 + g); /* two in three have partners */
    }
    sweep();
    sweep();
    assert_true(any_frame_in_common(&vms[0], &vms[1], true));
    assert_true(dmm_is_mapped(vms[0].s, gfn_of(0), DMM_READ | DMM_WRITE));
    assert_int_equal(dmm_space_freeze(vms[1].s, &image), DMM_FREEZE_OK);
    for (uint64_t g = 0; g < PAGES; g += 512)
        assert_int_equal(dmm_fault(vms[1].s, gfn_of(g), DMM_READ), DMM_FAULT_RETRY);
    uint64_t changes = dmm_group_changes();
    dmm_group_set_secure(2, true);
    assert_true(dmm_group_changes() != changes);
    sweep();
    for (unsigned k = 0; k < 3; k++)
        expect_all_trap(k, PAGES);
    check_all();
    dmm_image_release(image);
    dmm_group_set_secure(2, false);
    destroy_all();
}

/* Nor does a mapping's size tell anything. */
static void test_secure_group_with_large(void **state)
{
    dmm_group_set_secure(1, true);
    two_with_equal_pages(true, true, 3);
    sweep();
    for (unsigned k = 0; k < 2; k++)
        for (uint64_t g = 0; g < 512; g++)
            assert_false(dmm_is_mapped(vms[k].s, gfn_of(g), DMM_READ));
    assert_int_equal(frames_used(), 1024 - 3);
    assert_true(counter("sealed") > 0);
    dmm_group_set_secure(1, false);
    destroy_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups), cmocka_unit_test(test_secure_group), cmocka_unit_test(test_secure_group_keeps_words),
        cmocka_unit_test(test_secure_group_refuses_words), cmocka_unit_test(test_secure_group_with_large), cmocka_unit_test(test_becomes_secure),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
