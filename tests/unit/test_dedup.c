/* The scanner itself, over memory with known duplicates: what it finds against what an oracle says there is, and never a byte changed.
 * TEST-SOURCES: policies/dedup.c policies/dedup_table.c policies/large.c mm/dmm/digest.c mm/dmm/frame.c mm/dmm/frame_alloc.c mm/dmm/space.c
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

/* What the policies need of core and x86, none of which a test has. */
static uint64_t now_ns;
uint64_t time_ns(void) { return now_ns += 1000; }
void thread_sleep_ns(uint64_t ns) { now_ns += ns; }
uint64_t cpu_random(void) { return UINT64_C(0x123456789abcdef1); }
void con_printf(const char *fmt, ...) { }
enum cmd_result cmd_error(struct cmd_ctx *c, const char *fmt, ...) { return CMD_FAILED; }
void json_object_begin(struct json_writer *w) { }
void json_object_end(struct json_writer *w) { }
void json_kv_u64(struct json_writer *w, const char *key, uint64_t value) { }

#define VMS 4u
#define PAGES 3072u
static struct vm { struct dmm_space *s; unsigned group; uint64_t content[PAGES]; } vms[VMS];

/* A content: 0 is zero, up to 99 one word throughout, above that a page like no other. */
static void make_page(uint64_t *page, uint64_t content)
{
    for (unsigned n = 0; n < 512; n++)
        page[n] = content < 100 ? content * UINT64_C(0x0101010101010101) : (content * 512 + n) * UINT64_C(0x9e3779b97f4a7c15);
}

static void put(struct vm *v, uint64_t g, uint64_t content)
{
    static uint64_t page[512];
    make_page(page, content);
    assert_int_equal(dmm_fault(v->s, gfn_of(g), DMM_WRITE), DMM_FAULT_RETRY);
    assert_int_equal(dmm_write_guest(v->s, g * PAGE_SIZE, page, PAGE_SIZE), DMM_FAULT_RETRY);
    v->content[g] = content;
}

static void check_all(void)
{
    static uint64_t page[512], want[512];
    for (unsigned k = 0; k < VMS; k++)
        for (uint64_t g = 0; vms[k].s && g < PAGES; g++) {
            make_page(want, vms[k].content[g]);
            assert_int_equal(dmm_read_guest(vms[k].s, g * PAGE_SIZE, page, PAGE_SIZE), DMM_FAULT_RETRY);
            if (memcmp(page, want, PAGE_SIZE))
                fail_msg("vm %u gfn %lx does not hold content %lu", k, g, vms[k].content[g]);
        }
    host_audit();
}

static void create(unsigned k, unsigned group, bool large)
{
    struct dmm_space_config cfg = { .name = "vm", .vm_id = k + 1, .pages = PAGES, .group = group, .format = &p2m_format_fake };
    dmm_policy_set(dmm_policy_find("demand"), "large_free_percent", large ? 0 : 101);
    while (large && frame_zero_some(512))
        continue;
    memset(&vms[k], 0, sizeof(vms[k]));
    vms[k].group = group;
    assert_int_equal(dmm_space_create(&cfg, &vms[k].s), DMM_CREATE_OK);
    assert_true(dmm_space_add_ram(vms[k].s, gfn_of(0), PAGES));
}

static void destroy_all(void)
{
    for (unsigned k = 0; k < VMS; k++)
        if (vms[k].s) {
            dmm_space_destroy(vms[k].s);
            vms[k].s = NULL;
        }
    host_audit();
    assert_int_equal(frame_count(FRAME_GUEST) + frame_count(FRAME_SHARED), 0);
}

static void sweep(void)
{
    while (dedup_step() != DEDUP_STEP_SWEPT)
        if (host_random(20) == 0)
            host_audit();
    check_all();
}

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

static uint64_t frames_used(void) { return frame_count(FRAME_GUEST) + frame_count(FRAME_SHARED); }

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
        sweep();
        expect_found(before, large ? 900 : 980); /* two that are both in 2 MiB mappings at their first sight are found by the next sweep */
        sweep();
        expect_found(before, 980);
        uint64_t used = frames_used();
        sweep();
        assert_true(frames_used() <= used);
        destroy_all();
    }
    dmm_policy_set(dmm_policy_find("dedup"), "break_large_percent", 25);
}

static uint64_t counter_value;
static const char *counter_name;
static void pick_counter(const char *key, uint64_t value, void *arg)
{
    if (!strcmp(key, counter_name))
        counter_value = value;
}
static uint64_t counter(const char *name)
{
    struct dmm_policy *p = dmm_policy_find("dedup");
    counter_name = name;
    counter_value = UINT64_MAX;
    p->show(p, pick_counter, NULL);
    assert_true(counter_value != UINT64_MAX);
    return counter_value;
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

static bool any_frame_in_common(const struct vm *a, const struct vm *b, bool data_only)
{
    for (uint64_t g = 0; g < PAGES; g++) {
        struct region *r = region_of(a->s, gfn_of(g));
        unsigned level;
        p2m_entry_t e = r ? p2m_read(p2m_leaf(r, gfn_of(g), &level)) : 0;
        if (!r || a->s->format->type_of(e, level) != P2M_SHARED_RO || (data_only && a->content[g] < 100))
            continue;
        const struct frame *f = frame_of(a->s->format->mfn_of(e));
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
            mfn_t got = dedup_table_find(&t, key, &kind);
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
        assert_false(mfn_valid(dedup_table_find(&t, (g + 1) * UINT64_C(0x9e3779b97f4a7c15), &kind)));
    }
    assert_true(t.used < 16);
    dedup_table_fini(&t);
}

static int setup(void **state)
{
    host_machine_init(160);
    demand_policy_init();
    dedup_policy_init();
    large_policy_init();
    dmm_group_of("one");
    dmm_group_of("two");
    return dedup_prepare() ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table), cmocka_unit_test(test_one_sweep_finds_all), cmocka_unit_test(test_unchanged_costs_nothing),
        cmocka_unit_test(test_groups), cmocka_unit_test(test_secure_group), cmocka_unit_test(test_what_breaks_is_left_alone),
        cmocka_unit_test(test_large_policy), cmocka_unit_test(test_against_writers),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
