/* What sharing saves, beside a count of distinct frames: VMs that are forked, merged, written to, put back and destroyed at random, and snapshots that
 * outlive what they were taken of. What a page's frame is, is found by walking nested tables from their roots, the images' behind the VM's own.
 * TEST-SOURCES: mm/dmm/frame.c mm/dmm/frame_alloc.c mm/dmm/space.c mm/dmm/write_log.c mm/dmm/pool.c mm/dmm/p2m.c mm/dmm/fault.c mm/dmm/hist.c
   mm/dmm/guest_access.c mm/dmm/policy.c mm/dmm/audit.c mm/dmm/share.c mm/dmm/rmap.c mm/dmm/merge.c mm/dmm/savings.c
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

#include "include/hv/dmm_policy.h"
#include "mm/dmm/share.h"
#include "policies/demand.h"
#include "tests/unit/fake/dmm_host.h"

enum { SPACES = 6, KEPT = 3, PAGES = 1300 };
static struct dmm_space *spaces[SPACES];
static struct dmm_image *kept[KEPT];
static bool have[1 << 22];

/* ---- counting ------------------------------------------------------------------------------------------------------------------------ */

/* The entry for gfn in one tree, and its level; 0: there is none. */
static p2m_entry_t find(uint64_t root_hpa, uint64_t gfn, unsigned *level)
{
    const p2m_entry_t *table = mfn_to_hva(hpa_to_mfn(root_hpa));
    for (*level = 4;; --*level) {
        p2m_entry_t e = table[gfn >> (9 * (*level - 1)) & 511];
        if (*level == 1 || p2m_format_fake.type_of(e, *level) != P2M_TABLE)
            return e;
        table = mfn_to_hva(p2m_format_fake.mfn_of(e));
    }
}

static p2m_entry_t find_inherited(const struct dmm_space *s, uint64_t gfn, unsigned *level)
{
    p2m_entry_t e = 0;
    for (; s; s = s->base) {
        e = find(dmm_space_root_hpa(s), gfn, level);
        if (e && p2m_format_fake.type_of(e, *level) != P2M_INHERITED)
            break;
    }
    return e;
}

static uint64_t counted(void)
{
    uint64_t pages = 0, frames = 0;
    memset(have, 0, sizeof(have));
    for (unsigned k = 0; k < SPACES; k++)
        for (uint64_t g = 0; spaces[k] && g < PAGES; g++) {
            unsigned level;
            p2m_entry_t e = find_inherited(spaces[k], g, &level);
            enum p2m_type type = p2m_format_fake.type_of(e, level);
            if (type < P2M_TABLE && type != P2M_SEALED)
                continue;
            pages++;
            if (type == P2M_ZERO_RO || type == P2M_IMAGE_RO)
                continue;
            mfn_t m = mfn_add(share_mfn_of(spaces[k], e, type), level == 2 ? g % LARGE_PAGES : 0);
            frames += !have[m.v];
            have[m.v] = true;
        }
    return pages - frames;
}

/* ---- what happens ----------------------------------------------------------------------------------------------------------------------- */

static struct dmm_space_config config(void)
{
    return (struct dmm_space_config){ .name = "s", .vm_id = 1, .pages = PAGES, .group = dmm_group_of(host_random(2) ? "open" : "secure"),
                                      .format = &p2m_format_fake };
}

static void make(unsigned k, unsigned from)
{
    struct dmm_space_config cfg = config();
    if (kept[from]) {
        assert_int_equal(dmm_space_create_from(&cfg, kept[from], &spaces[k]), DMM_CREATE_OK);
    } else {
        assert_int_equal(dmm_space_create(&cfg, &spaces[k]), DMM_CREATE_OK);
        assert_true(dmm_space_add_ram(spaces[k], gfn_of(0), PAGES));
        assert_int_equal(dmm_map_boot_file(spaces[k], gfn_of(host_random(PAGES - 100)), host_file_mfn(), HOST_FILE_PAGES), DMM_FAULT_RETRY);
    }
}

static void put(struct dmm_space *s, uint64_t g)
{
    static uint64_t page[512];
    uint64_t stamp = host_random(3);
    for (unsigned n = 0; n < 512; n++)
        page[n] = stamp << 10 | n;
    assert_int_equal(dmm_write_guest(s, g * PAGE_SIZE, page, PAGE_SIZE), DMM_FAULT_RETRY);
}

static unsigned merged, most_saved;
static void merge(struct dmm_space *s, uint64_t g, const struct dmm_space *t, uint64_t h)
{
    unsigned level;
    p2m_entry_t e = find(dmm_space_root_hpa(s), g, &level), with = find(dmm_space_root_hpa(t), h, &level);
    enum p2m_type type = p2m_format_fake.type_of(with, level);
    struct dmm_merge m = { .gfn = gfn_of(g), .mfn = p2m_format_fake.mfn_of(e), .with = share_mfn_of(t, with, type) };
    if (host_random(20) == 0)
        m.with = INVALID_MFN;
    if (level != 1 || (type != P2M_RW && type != P2M_SHARED_RO && type != P2M_SEALED) || !dmm_space_acquire(s->id))
        return;
    dmm_merge(s, &m, 1);
    dmm_merge_finish();
    dmm_space_release(s);
    merged += m.result == DMM_MERGE_DONE;
}

static void keep(unsigned k, unsigned n)
{
    struct dmm_image *image;
    if (dmm_space_freeze(spaces[k], &image) != DMM_FREEZE_OK)
        return;
    if (kept[n])
        dmm_image_release(kept[n]);
    kept[n] = image;
}

static void step(void)
{
    unsigned k = (unsigned)host_random(SPACES), n = (unsigned)host_random(KEPT);
    struct dmm_space *s = spaces[k], *t = spaces[host_random(SPACES)];
    uint64_t g = host_random(PAGES), h = host_random(PAGES);
    if (!s) {
        make(k, n);
        return;
    }
    switch (host_random(40)) {
    case 0: dmm_space_destroy(s), spaces[k] = NULL; break;
    case 1: case 2: keep(k, n); break;
    case 3: if (kept[n]) assert_true(dmm_space_restore(s, kept[n])); break;
    case 4: if (kept[n]) dmm_image_release(kept[n]), kept[n] = NULL; break;
    case 5: dmm_collapse_large(s, gfn_of(g)); break;
    case 6: dmm_space_clear(s); break;
    case 7: for (h = ALIGN_DOWN(g, 512); h < MIN(ALIGN_DOWN(g, 512) + 512, (uint64_t)PAGES); h++) put(s, h); break;
    case 8: for (h = 0; h < PAGES; h += 512) assert_int_equal(dmm_fault(s, gfn_of(h), DMM_READ), DMM_FAULT_RETRY); break;
    case 9: case 10: assert_int_equal(dmm_fault(s, gfn_of(g), DMM_READ), DMM_FAULT_RETRY); break;
    case 11: case 12: case 13: case 14: case 15: case 16:
        for (unsigned i = 0; t && i < 40; i++)
            merge(s, host_random(PAGES), t, host_random(PAGES));
        break;
    default:
        for (unsigned i = 0; i < 10; i++)
            put(s, (g + i) % PAGES);
    }
}

static void test_beside_a_count(void **state)
{
    unsigned images = 0;
    for (unsigned n = 0; n < 4000; n++) {
        step();
        uint64_t said = dmm_saved_pages(), want = counted();
        if (said != want)
            fail_msg("step %u: %lu pages are saved, it says %lu", n, want, said);
        most_saved = MAX(most_saved, (unsigned)want);
        for (unsigned k = 0; k < KEPT; k++)
            images += kept[k] != NULL;
        host_audit();
    }
    print_message("%u merges, at most %u pages saved, %u times with an image kept\n", merged, most_saved, images);
    assert_true(merged > 100 && most_saved > 1500 && images > 2000);
    for (unsigned k = 0; k < SPACES; k++)
        if (spaces[k])
            dmm_space_destroy(spaces[k]);
    for (unsigned n = 0; n < KEPT; n++)
        if (kept[n])
            dmm_image_release(kept[n]);
    assert_int_equal(dmm_saved_pages(), 0);
    assert_int_equal(frame_count(FRAME_GUEST) + frame_count(FRAME_SHARED), 0);
    host_audit();
}

static int setup(void **state)
{
    host_machine_init(96);
    demand_policy_init();
    dmm_group_set_secure(dmm_group_of("secure"), true);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_beside_a_count) };
    return cmocka_run_group_tests(tests, setup, NULL);
}
