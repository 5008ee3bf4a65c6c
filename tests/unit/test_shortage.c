/* Every operation on memory with the n-th allocation failing, for n = 1, 2, ... until it needs no more. Whatever fails is named, loses nothing and
 * changes no byte of any guest; the ledger is as it should be; with memory back the same operation succeeds; and if everything is torn down instead,
 * while there still is no memory, every frame returns.
 * TEST-SOURCES: mm/dmm/frame.c mm/dmm/frame_alloc.c mm/dmm/space.c mm/dmm/write_log.c mm/dmm/pool.c mm/dmm/p2m.c mm/dmm/fault.c mm/dmm/hist.c
   mm/dmm/guest_access.c mm/dmm/policy.c mm/dmm/audit.c mm/dmm/share.c mm/dmm/rmap.c mm/dmm/merge.c
   mm/dmm/scan.c mm/dmm/group.c mm/dmm/image.c mm/dmm/collapse.c mm/dmm/bill.c mm/dmm/move.c policies/demand.c
   tests/unit/fake/dmm_host.c tests/unit/fake/p2m_fake.c */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <limits.h>

#include "include/hv/dmm_policy.h"
#include "mm/dmm/rmap.h"
#include "mm/dmm/share.h"
#include "policies/demand.h"
#include "tests/unit/fake/dmm_host.h"

/* Two full regions between two that are RAM in part. */
#define PAGES 1700u
#define HOLE_FIRST 160u
#define HOLE_END 256u
#define LARGE_AT 512u   /* one 2 MiB mapping, where a scenario says so */
#define SMALL_AT 1024u
#define EMPTY_AT 1536u
enum { SPACES = 6, CHILD = 3 };

struct model { struct dmm_space *s; uint64_t stamp[PAGES]; };
static struct model vms[SPACES];
static struct { struct dmm_image *image; uint64_t stamp[PAGES]; } kept;
static unsigned secure_group;

static bool is_ram(uint64_t g) { return g < HOLE_FIRST || (g >= HOLE_END && g < PAGES); }

/* ---- memory that ends ------------------------------------------------------------------------------------------------------------------ */

static mfn_t hoard[1 << 15];
static unsigned hoarded;
static uint64_t heap_allocations, heap_fails_at; /* 0: never */

void *kzalloc(size_t bytes)
{
    if (heap_fails_at && ++heap_allocations == heap_fails_at)
        return NULL;
    void *p = aligned_alloc(64, ALIGN_UP(bytes, 64));
    return p ? memset(p, 0, bytes) : NULL;
}

/* All frames but `left` go away; these are in this CPU's magazine, where every kind of request takes them first. */
static void leave_frames(unsigned left)
{
    for (mfn_t m; mfn_valid(m = frame_alloc(0, FRAME_RESERVE_OK, FRAME_HV_HEAP, NULL));) {
        assert_true(hoarded < ARRAY_SIZE(hoard));
        hoard[hoarded++] = m;
    }
    struct frame_cpu *c = frame_cpu();
    assert_int_equal(c->dirty.count + c->zeroed.count, 0);
    for (unsigned n = 0; n < left; n++) {
        assert_true(left <= MAGAZINE_FRAMES);
        mfn_t m = hoard[--hoarded];
        frame_of(m)->where = GFN_NONE;
        frame_of(m)->what = FRAME_WHAT(FRAME_FREE, 0, 0);
        c->type_count[FRAME_HV_HEAP]--;
        c->type_count[FRAME_FREE]++;
        c->dirty.mfn[c->dirty.count++] = m.v;
    }
    host_audit();
}

static void give_all_back(void)
{
    while (hoarded)
        frame_free(hoard[--hoarded], 0);
}

/* ---- guests ------------------------------------------------------------------------------------------------------------------------------ */

/* Large stamps, and 0, are what every word is: of a boot file's page. */
static uint64_t word_of(uint64_t stamp, uint64_t n) { return stamp >> 32 || !stamp ? stamp : stamp << 16 | n; }

static enum dmm_fault_result put(struct model *v, uint64_t g, uint64_t stamp)
{
    static uint64_t page[512];
    for (unsigned n = 0; n < 512; n++)
        page[n] = word_of(stamp, n);
    enum dmm_fault_result r = dmm_write_guest(v->s, g * PAGE_SIZE, page, PAGE_SIZE);
    if (r == DMM_FAULT_RETRY)
        v->stamp[g] = stamp;
    return r;
}

static void must_put(struct model *v, uint64_t g, uint64_t stamp) { assert_int_equal(put(v, g, stamp), DMM_FAULT_RETRY); }

static void expect_contents(void)
{
    for (struct model *v = vms; v < vms + SPACES; v++)
        for (uint64_t g = 0; v->s && g < PAGES; g++) {
            uint64_t word, n = host_random(512);
            assert_int_equal(dmm_peek_u64(v->s, g * PAGE_SIZE + 8 * n, &word), is_ram(g));
            if (is_ram(g) && word != word_of(v->stamp[g], n))
                fail_msg("space %u, gfn %lx: word %lu is %lx, should be %lx", (unsigned)(v - vms), g, n, word, word_of(v->stamp[g], n));
        }
}

static struct dmm_space_config config_of(struct model *v, enum dmm_class class, unsigned group)
{
    return (struct dmm_space_config){ .name = "short", .vm_id = 1 + (unsigned)(v - vms), .pages = PAGES - (HOLE_END - HOLE_FIRST), .class = class,
                                      .group = group, .format = &p2m_format_fake };
}

static void make(unsigned k, enum dmm_class class, unsigned group)
{
    struct dmm_space_config cfg = config_of(&vms[k], class, group);
    memset(&vms[k], 0, sizeof(vms[k]));
    assert_int_equal(dmm_space_create(&cfg, &vms[k].s), DMM_CREATE_OK);
    assert_true(dmm_space_add_ram(vms[k].s, gfn_of(0), HOLE_FIRST));
    assert_true(dmm_space_add_ram(vms[k].s, gfn_of(HOLE_END), PAGES - HOLE_END));
}

static mfn_t frame_at(struct model *v, uint64_t g)
{
    unsigned level;
    p2m_entry_t e = p2m_read(p2m_leaf(region_of(v->s, gfn_of(g)), gfn_of(g), &level));
    return mfn_add(share_mfn_of(v->s, e, v->s->format->type_of(e, level)), level == 2 ? g % LARGE_PAGES : 0);
}

static enum dmm_merge_result merge(struct model *v, uint64_t g, mfn_t with)
{
    struct dmm_merge m = { .gfn = gfn_of(g), .mfn = frame_at(v, g), .with = with };
    assert_ptr_equal(dmm_space_acquire(v->s->id), v->s);
    dmm_merge(v->s, &m, 1);
    dmm_merge_finish();
    dmm_space_release(v->s);
    return m.result;
}

static void must_merge(struct model *v, uint64_t g, mfn_t with) { assert_int_equal(merge(v, g, with), DMM_MERGE_DONE); }

/* ---- outcomes ------------------------------------------------------------------------------------------------------------------------------- */

/* For what is asked on behalf of a guest there are two: it goes on, or waits for a reason that is true: there is no frame. (What takes many gives
 * back those that it got; then there are some.) */
static bool faulted(struct model *v, enum dmm_fault_result r)
{
    if (r == DMM_FAULT_RETRY)
        return true;
    assert_int_equal(r, DMM_FAULT_STALLED);
    assert_int_equal(dmm_stall_reason(v->s), frame_available_hint() ? DMM_STALL_NONE : DMM_STALL_NO_FRAME);
    assert_int_equal(pool_has_room(v->s), frame_available_hint() != 0);
    return false;
}

static bool touch(unsigned k, uint64_t g, unsigned access) { return faulted(&vms[k], dmm_fault(vms[k].s, gfn_of(g), access)); }

/* ---- what there was before ---------------------------------------------------------------------------------------------------------------- */

static void one_space(void) { make(0, DMM_CLASS_BEST_EFFORT, 0); }

static void file_page(uint64_t g)
{
    assert_int_equal(dmm_map_boot_file(vms[0].s, gfn_of(g), host_file_mfn(), 1), DMM_FAULT_RETRY);
    vms[0].stamp[g] = host_file_byte(0) * UINT64_C(0x0101010101010101);
}
static void space_with_file(void) { one_space(); file_page(SMALL_AT); }

/* Something of everything: a 2 MiB mapping, pages of its own, shared ones (two users, one user), zero and boot file pages. */
static void full_space(void)
{
    one_space();
    for (uint64_t g = LARGE_AT; g < LARGE_AT + LARGE_PAGES; g++)
        must_put(&vms[0], g, 1000 + g);
    assert_int_equal(dmm_collapse_large(vms[0].s, gfn_of(LARGE_AT)), DMM_RESIZE_OK);
    for (uint64_t g = SMALL_AT; g < SMALL_AT + 40; g++)
        must_put(&vms[0], g, 2000 + g / 2);
    for (uint64_t g = SMALL_AT; g < SMALL_AT + 20; g += 2)
        must_merge(&vms[0], g, frame_at(&vms[0], g + 1));
    assert_int_equal(dmm_protect_page(vms[0].s, gfn_of(SMALL_AT + 22)), DMM_MOVE_OK);
    must_put(&vms[0], SMALL_AT + 50, 0);
    assert_int_equal(merge(&vms[0], SMALL_AT + 50, INVALID_MFN), DMM_MERGE_ZEROED);
    file_page(SMALL_AT + 60);
    must_put(&vms[0], 3, 78);
}

static void keep(unsigned k)
{
    assert_int_equal(dmm_space_freeze(vms[k].s, &kept.image), DMM_FREEZE_OK);
    memcpy(kept.stamp, vms[k].stamp, sizeof(kept.stamp));
}

static uint64_t child_max;
static enum dmm_create_result make_child(unsigned k)
{
    struct dmm_space_config cfg = config_of(&vms[k], DMM_CLASS_BEST_EFFORT, 0);
    cfg.max_pages = child_max;
    enum dmm_create_result r = dmm_space_create_from(&cfg, kept.image, &vms[k].s);
    if (r == DMM_CREATE_OK)
        memcpy(vms[k].stamp, kept.stamp, sizeof(kept.stamp));
    else
        vms[k].s = NULL;
    return r;
}

static void frozen_space(void) { full_space(); keep(0); }
static void parent_and_child(void)
{
    frozen_space();
    assert_int_equal(make_child(1), DMM_CREATE_OK);
}
/* It may have what it inherits, and no page more: which is no reason to wait for a table. */
static void parent_and_full_child(void)
{
    frozen_space();
    child_max = vms[0].s->charged;
    assert_int_equal(make_child(1), DMM_CREATE_OK);
    child_max = 0;
}
/* An image of an image, so that a region is found further up the line, and a third heir. */
static void grandchildren(void)
{
    parent_and_child();
    must_put(&vms[1], 5, 91);
    dmm_image_release(kept.image);
    keep(1);
    assert_int_equal(make_child(2), DMM_CREATE_OK);
    must_put(&vms[2], SMALL_AT, 92);
}

static void two_in(unsigned group, enum dmm_class class)
{
    for (unsigned k = 0; k < 2; k++) {
        make(k, class, group);
        must_put(&vms[k], SMALL_AT, 5);
        must_put(&vms[k], SMALL_AT + 1 + k, 5);
    }
}
static void two_spaces(void) { two_in(dmm_group_of("plain"), DMM_CLASS_BEST_EFFORT); }
static void pair_of(enum dmm_class class, unsigned group)
{
    two_in(group, class);
    must_merge(&vms[0], SMALL_AT, frame_at(&vms[1], SMALL_AT + 2));
    must_merge(&vms[1], SMALL_AT, frame_at(&vms[1], SMALL_AT + 2));
}
static void shared_pair(void) { pair_of(DMM_CLASS_BEST_EFFORT, dmm_group_of("plain")); }
static void insured_pair(void) { pair_of(DMM_CLASS_INSURED, dmm_group_of("plain")); }
static void strict_pair(void) { pair_of(DMM_CLASS_STRICT, dmm_group_of("plain")); }
static void sealed_pair(void) { pair_of(DMM_CLASS_BEST_EFFORT, secure_group); }

static void sealed_and_child(void)
{
    sealed_pair();
    dmm_space_destroy(vms[1].s);
    keep(0);
    assert_int_equal(make_child(1), DMM_CREATE_OK);
}

static void zero_page(void)
{
    one_space();
    must_put(&vms[0], SMALL_AT, 0);
    must_put(&vms[0], SMALL_AT, 1);
    must_put(&vms[0], SMALL_AT, 0);
    assert_int_equal(merge(&vms[0], SMALL_AT, INVALID_MFN), DMM_MERGE_ZEROED);
}

static void large_mapping(void)
{
    one_space();
    for (uint64_t g = LARGE_AT; g < LARGE_AT + LARGE_PAGES; g++)
        must_put(&vms[0], g, 3000 + g);
    assert_int_equal(dmm_collapse_large(vms[0].s, gfn_of(LARGE_AT)), DMM_RESIZE_OK);
    must_put(&vms[0], SMALL_AT, 3000 + LARGE_AT + 7);
}
static void broken_mapping(void)
{
    large_mapping();
    assert_int_equal(dmm_break_large(vms[0].s, gfn_of(LARGE_AT)), DMM_RESIZE_OK);
}
/* Nearly full, and scattered. */
static void scattered(void)
{
    broken_mapping();
    assert_int_equal(dmm_move_page(vms[0].s, gfn_of(LARGE_AT + 9)), DMM_MOVE_OK);
    must_put(&vms[0], LARGE_AT + 10, 0);
    assert_int_equal(merge(&vms[0], LARGE_AT + 10, INVALID_MFN), DMM_MERGE_ZEROED);
}

/* The image's page has as many users as a map takes: an heir gets copies. */
static void full_map(void)
{
    one_space();
    for (uint64_t g = EMPTY_AT + 100 - RMAP_MAX_USERS; g < EMPTY_AT + 100; g++) {
        must_put(&vms[0], g, 6);
        if (g > EMPTY_AT + 100 - RMAP_MAX_USERS)
            must_merge(&vms[0], g, frame_at(&vms[0], EMPTY_AT + 100 - RMAP_MAX_USERS));
    }
    keep(0);
    assert_int_equal(make_child(1), DMM_CREATE_OK);
}

static void long_line(void)
{
    full_space();
    for (unsigned n = 0; n < 12; n++) {
        if (kept.image)
            dmm_image_release(kept.image);
        keep(0);
        must_put(&vms[0], HOLE_END + n, 50 + n);
    }
    assert_int_equal(vms[0].s->depth, 12);
}

/* ---- operations: true once they are done ------------------------------------------------------------------------------------------------------ */

static bool first_touch(void) { return touch(0, EMPTY_AT, DMM_WRITE); }
static bool first_read(void) { return touch(0, SMALL_AT + 5, DMM_READ); }
static bool write_page(void)
{
    if (!faulted(&vms[0], put(&vms[0], SMALL_AT, 4711)))
        return false;
    assert_true(dmm_is_mapped(vms[0].s, gfn_of(SMALL_AT), DMM_WRITE));
    return true;
}
static bool write_other(void) { return faulted(&vms[1], put(&vms[1], SMALL_AT, 4712)); }
static bool read_sealed(void) { return touch(0, SMALL_AT, DMM_READ); }

static bool map_file(void)
{
    struct model *v = &vms[0];
    if (!faulted(v, dmm_map_boot_file(v->s, gfn_of(SMALL_AT), host_file_mfn(), 1)))
        return false;
    v->stamp[SMALL_AT] = host_file_byte(0) * UINT64_C(0x0101010101010101);
    return true;
}

static bool pin(void)
{
    enum dmm_fault_result why;
    if (!dmm_pin(vms[0].s, gfn_of(SMALL_AT), true, &why))
        return faulted(&vms[0], why);
    dmm_unpin(vms[0].s, gfn_of(SMALL_AT));
    return true;
}

/* Three different gfns on one frame need a chunk of a map; the first two as well, as they differ. */
static bool merge_two(void)
{
    enum dmm_merge_result r = merge(&vms[0], SMALL_AT, frame_at(&vms[1], SMALL_AT + 2));
    assert_true(r == DMM_MERGE_DONE || r == DMM_MERGE_NO_MEMORY || r == DMM_MERGE_ALREADY);
    if (r == DMM_MERGE_NO_MEMORY)
        assert_true(dmm_is_mapped(vms[0].s, gfn_of(SMALL_AT), DMM_WRITE));
    return r != DMM_MERGE_NO_MEMORY;
}
static bool merge_with_large(void)
{
    enum dmm_merge_result r = merge(&vms[0], SMALL_AT, frame_at(&vms[0], LARGE_AT + 7));
    assert_true(r == DMM_MERGE_DONE || r == DMM_MERGE_NO_MEMORY || r == DMM_MERGE_PARTNER_GONE);
    return r == DMM_MERGE_DONE;
}
static bool move_page(void)
{
    enum dmm_move_result r = dmm_move_page(vms[0].s, gfn_of(SMALL_AT));
    assert_true(r == DMM_MOVE_OK || r == DMM_MOVE_NO_MEMORY);
    return r == DMM_MOVE_OK;
}

static bool resized(enum dmm_resize_result r)
{
    assert_true(r == DMM_RESIZE_OK || r == DMM_RESIZE_NO_MEMORY);
    return r == DMM_RESIZE_OK;
}
static bool break_large(void) { return resized(dmm_break_large(vms[0].s, gfn_of(LARGE_AT + 3))); }
static bool reform(void) { return resized(dmm_reform_large(vms[0].s, gfn_of(LARGE_AT + 3))); }
static bool collapse(void) { return resized(dmm_collapse_large(vms[0].s, gfn_of(LARGE_AT))); }

static bool snapshot_of(unsigned k)
{
    struct dmm_image *image = kept.image;
    enum dmm_freeze_result r = dmm_space_freeze(vms[k].s, &image);
    assert_true(r == DMM_FREEZE_OK || r == DMM_FREEZE_NO_MEMORY);
    if (r != DMM_FREEZE_OK)
        return false;
    if (kept.image)
        dmm_image_release(kept.image);
    kept.image = image;
    memcpy(kept.stamp, vms[k].stamp, sizeof(kept.stamp));
    return true;
}

static bool snapshot(void) { return snapshot_of(0); }

/* As `vm fork` does it: all children or none. */
static bool fork_three_of(unsigned parent)
{
    if (!snapshot_of(parent))
        return false;
    for (unsigned k = CHILD; k < CHILD + 3; k++) {
        enum dmm_create_result r = make_child(k);
        if (r == DMM_CREATE_OK)
            continue;
        assert_int_equal(r, DMM_CREATE_NO_MEMORY);
        dmm_image_release(kept.image);
        kept.image = NULL;
        while (--k >= CHILD) {
            dmm_space_destroy(vms[k].s);
            vms[k].s = NULL;
        }
        return false;
    }
    return true;
}

static bool fork_three(void) { return fork_three_of(0); }
static bool fork_grandchild(void) { return fork_three_of(2); }

static bool restore(void)
{
    if (!dmm_space_restore(vms[0].s, kept.image))
        return false;
    memcpy(vms[0].stamp, kept.stamp, sizeof(kept.stamp));
    return touch(0, LARGE_AT, DMM_READ);
}
static bool restore_and_freeze(void) { return restore() && snapshot(); }

static bool inherit_untouched(void) { return touch(1, 5, DMM_READ); }
static bool inherit_large(void) { return touch(1, LARGE_AT + 1, DMM_READ) && faulted(&vms[1], put(&vms[1], LARGE_AT + 1, 93)); }
static bool inherit_small(void) { return touch(1, SMALL_AT, DMM_READ); }
static bool inherit_copies(void) { return touch(1, EMPTY_AT, DMM_WRITE); }
static bool inherit_further_up(void) { return touch(2, LARGE_AT, DMM_READ) && touch(1, SMALL_AT, DMM_READ) && touch(1, 5, DMM_READ); }
static bool destroy_parent(void)
{
    if (!touch(1, LARGE_AT, DMM_READ) || !touch(1, SMALL_AT, DMM_READ))
        return false;
    dmm_space_destroy(vms[0].s);
    vms[0].s = NULL;
    if (kept.image)
        dmm_image_release(kept.image);
    kept.image = NULL;
    return true;
}

/* ---- the loop ----------------------------------------------------------------------------------------------------------------------------------- */

/* `least`: it takes so many frames, or one of 2 MiB, for which there is no half-way. */
#define ONE_LARGE UINT_MAX
struct scenario { const char *name; void (*before)(void); bool (*op)(void); unsigned least; };

static const struct scenario scenarios[] = {
    { "first touch of a space", one_space, first_touch, 6 },
    { "first read", one_space, first_read, 6 },
    { "pin", one_space, pin, 6 },
    { "boot file", one_space, map_file, 6 },
    { "write to a boot file's page", space_with_file, write_page, 1 },
    { "write to the zero page", zero_page, write_page, 1 },
    { "write to a shared page", shared_pair, write_page, 1 },
    { "write to a shared page, insured", insured_pair, write_page, 1 },
    { "write to a shared page, strict", strict_pair, write_other, 1 },
    { "read of a sealed page", sealed_pair, read_sealed, 1 },
    { "merge", two_spaces, merge_two, 1 },
    { "merge with a piece of 2 MiB", large_mapping, merge_with_large, 2 },
    { "move", two_spaces, move_page, 1 },
    { "break", large_mapping, break_large, 1 },
    { "re-form", broken_mapping, reform, 0 },
    { "collapse", scattered, collapse, ONE_LARGE },
    { "collapse of what was taken over", parent_and_child, destroy_parent, 5 },
    { "freeze", full_space, snapshot, 1 },
    { "fork", full_space, fork_three, 4 },
    { "fork of a fork", grandchildren, fork_grandchild, 4 },
    { "restore", frozen_space, restore, 5 },
    { "restore and freeze", parent_and_child, restore_and_freeze, 6 },
    { "taking over a region that is RAM in part", parent_and_child, inherit_untouched, 4 },
    { "taking over 2 MiB", parent_and_child, inherit_large, 6 },
    { "taking over, and at its maximum", parent_and_full_child, inherit_small, 4 },
    { "taking over shared pages", parent_and_child, inherit_small, 4 },
    { "taking over sealed pages", sealed_and_child, inherit_small, 5 },
    { "taking over copies", full_map, inherit_copies, 104 },
    { "taking over from further up", grandchildren, inherit_further_up, 7 },
    { "freeze at the end of a line", long_line, snapshot, 5 },
};

static void tear_down(void)
{
    if (kept.image)
        dmm_image_release(kept.image);
    kept.image = NULL;
    for (unsigned k = 0; k < SPACES; k++)
        if (vms[k].s)
            dmm_space_destroy(vms[k].s);
    memset(vms, 0, sizeof(vms));
    host_audit();
}

/* True: it was done with so little. `again`: with memory back, else it is given up. */
static bool attempt(const struct scenario *c, unsigned frames, uint64_t heap, bool again)
{
    uint64_t before = frame_free_pages();
    c->before();
    host_audit();
    expect_contents();
    if (!heap)
        leave_frames(frames);
    heap_allocations = 0;
    heap_fails_at = heap;
    bool done = c->op();
    bool short_of_heap = heap && heap_allocations >= heap;
    heap_fails_at = 0;
    host_audit();
    expect_contents();
    if (again) {
        give_all_back();
        if (!done)
            assert_true(c->op());
        host_audit();
        expect_contents();
    }
    tear_down();
    give_all_back();
    host_audit();
    assert_int_equal(frame_free_pages(), before);
    assert_int_equal(frame_count(FRAME_GUEST) + frame_count(FRAME_SHARED) + frame_count(FRAME_RMAP), 0);
    return heap ? !short_of_heap : done;
}

static void test_every_allocation_fails(void **state)
{
    for (unsigned k = 0; k < ARRAY_SIZE(scenarios); k++) {
        const struct scenario *c = &scenarios[k];
        unsigned frames = 0, heap = 1;
        print_message("%s:", c->name);
        while (!attempt(c, frames, 0, true) && c->least != ONE_LARGE)
            attempt(c, frames++, 0, false);
        while (!attempt(c, 0, heap, true))
            attempt(c, 0, heap++, false);
        print_message(" %u frames, %u of the heap\n", frames, heap - 1);
        assert_true(frames >= c->least || c->least == ONE_LARGE);
    }
}

static int setup(void **state)
{
    host_machine_init(40);
    demand_policy_init();
    secure_group = dmm_group_of("secure");
    dmm_group_set_secure(secure_group, true);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_every_allocation_fails) };
    return cmocka_run_group_tests(tests, setup, NULL);
}
