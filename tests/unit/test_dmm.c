/* DMM as a whole against a simple model: what each page of each VM must read as. Guests access memory as a CPU does, through a TLB
 * that is only emptied when the flush generation says so: a change without its flush reads or writes a stale frame here, as on a
 * real machine and unlike on an emulator. Until they have acknowledged a change, other CPUs go on writing through what they have: so the
 * kick that asks for it writes here and there first. The ledger is audited after every step.
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
#include "mm/dmm/frame.h"
#include "mm/dmm/p2m.h"
#include "mm/dmm/rmap.h"
#include "mm/dmm/share.h"
#include "policies/demand.h"
#include "tests/unit/fake/dmm_host.h"

#define VMS 4
#define VM_PAGES 2600u  /* five regions and a bit, the first with a hole in it */
#define HOLE_FIRST 160u
#define HOLE_END 256u

struct vm_model {
    struct dmm_space *s;
    uint64_t stamp[VM_PAGES];       /* what the page's every word is; 0: zero */
    struct { mfn_t mfn; bool valid, writable; } tlb[VM_PAGES];
    uint64_t tlb_generation, kicks, generation_at_kick;
    unsigned pins[VM_PAGES], pin_total;
    unsigned id;
    bool parked;                    /* no CPU is in the guest */
    uint64_t busy_first, busy_end;  /* the test itself is writing there: the model could not tell who came last */
};
static struct vm_model vms[VMS];
static uint64_t next_stamp = 100; /* lower ones are contents that many pages have */
static unsigned disturbed[2];   /* write-protected, moved */
static unsigned merges[DMM_MERGE_RESULT_COUNT];

static void fill(uint64_t *page, uint64_t stamp);

static void write_late(struct vm_model *v)
{
    for (unsigned n = 0; n < 200; n++) {
        uint64_t g = host_random(VM_PAGES);
        if (v->tlb[g].valid && v->tlb[g].writable && (g < v->busy_first || g >= v->busy_end))
            fill(mfn_to_hva(v->tlb[g].mfn), v->stamp[g] = next_stamp++);
    }
}

static void kick(void *owner, bool wait)
{
    struct vm_model *v = owner;
    v->kicks++;
    assert_true(wait);
    assert_true(dmm_space_flush_generation(v->s) != v->generation_at_kick); /* bumped before, not after */
    if (!v->parked && v->tlb_generation == v->generation_at_kick) /* the CPUs have entered since the last change */
        write_late(v);
    v->generation_at_kick = dmm_space_flush_generation(v->s);
}
static const struct dmm_space_ops ops = { .kick = kick };

static bool is_hole(uint64_t g) { return g >= VM_PAGES || (g >= HOLE_FIRST && g < HOLE_END); }

/* The n-th word of a page with that stamp: small stamps, and boot files, fill it with one word. */
static uint64_t word_at(uint64_t stamp, uint64_t n) { return stamp < 20 || stamp >> 32 ? stamp : stamp << 16 | (n % 512); }

static void check_page(const uint64_t *page, uint64_t stamp)
{
    unsigned at[] = { 0, 511, (unsigned)host_random(512) };
    for (unsigned n = 0; n < 3; n++)
        if (page[at[n]] != word_at(stamp, at[n]))
            fail_msg("a page reads %lx, should be %lx", page[at[n]], word_at(stamp, at[n]));
}

static void fill(uint64_t *page, uint64_t stamp)
{
    for (unsigned n = 0; n < 512; n++)
        page[n] = word_at(stamp, n);
}

/* The address a CPU would use for this access, or NULL: nested fault. */
static uint64_t *translate(struct vm_model *v, uint64_t g, bool write)
{
    if (v->tlb_generation != dmm_space_flush_generation(v->s)) { /* as before each guest entry */
        memset(v->tlb, 0, sizeof(v->tlb));
        v->tlb_generation = dmm_space_flush_generation(v->s);
    }
    if (!v->tlb[g].valid || (write && !v->tlb[g].writable)) {
        p2m_entry_t *table = mfn_to_hva(hpa_to_mfn(dmm_space_root_hpa(v->s))), *e;
        unsigned level = 4;
        for (;; level--) {
            e = &table[g >> (9 * (level - 1)) & 511];
            if (level == 1 || p2m_format_fake.type_of(*e, level) != P2M_TABLE)
                break;
            table = mfn_to_hva(p2m_format_fake.mfn_of(*e));
        }
        if (!p2m_format_fake.permits(*e, write ? DMM_WRITE : DMM_READ))
            return NULL;
        v->tlb[g].valid = true;
        v->tlb[g].writable = p2m_format_fake.permits(*e, DMM_WRITE);
        v->tlb[g].mfn = mfn_add(p2m_format_fake.mfn_of(*e), level == 2 ? g % 512 : 0);
    }
    return mfn_to_hva(v->tlb[g].mfn);
}

/* False: stalled. */
static bool guest_access(struct vm_model *v, uint64_t g, bool write)
{
    for (unsigned tries = 0; tries < 4; tries++) {
        uint64_t *page = is_hole(g) ? NULL : translate(v, g, write);
        if (page) {
            check_page(page, v->stamp[g]);
            if (write) /* often what others have too */
                fill(page, v->stamp[g] = host_random(3) ? 1 + host_random(40) : host_random(4) ? next_stamp++ : 0);
            return true;
        }
        enum dmm_fault_result r = dmm_fault(v->s, gfn_of(g), write ? DMM_READ | DMM_WRITE : host_random(2) ? DMM_READ : DMM_EXEC);
        if (is_hole(g)) {
            assert_int_equal(r, DMM_FAULT_HOLE);
            return true;
        }
        if (r == DMM_FAULT_STALLED)
            return false;
        assert_int_equal(r, DMM_FAULT_RETRY);
        assert_true(dmm_is_mapped(v->s, gfn_of(g), DMM_READ) && (!write || dmm_is_mapped(v->s, gfn_of(g), DMM_WRITE)));
    }
    fail_msg("no progress at gfn %lx", g);
    return false;
}

static unsigned cleared[2]; /* with a frame, without */

/* The guest stores zeros to the whole page with one instruction, and its caller of dmm_fault() can do without a frame. */
static void guest_clears(struct vm_model *v, uint64_t g)
{
    struct dmm_usage before, after;
    for (unsigned tries = 0; tries < 4 && !is_hole(g); tries++) {
        uint64_t *page = translate(v, g, true);
        if (page) {
            fill(page, v->stamp[g] = 0);
            cleared[0]++;
            return;
        }
        dmm_space_usage(v->s, &before);
        enum dmm_fault_result r = dmm_fault(v->s, gfn_of(g), DMM_READ | DMM_WRITE | DMM_MAY_CLEAR);
        dmm_space_usage(v->s, &after);
        if (r == DMM_FAULT_STALLED)
            return;
        if (r == DMM_FAULT_ZERO_STORE) {
            assert_true(dmm_is_zero_without_frame(v->s, gfn_of(g)) && v->stamp[g] == 0);
            assert_int_equal(after.charged, before.charged);
            dmm_zero_stored(v->s, 1, 100);
            cleared[1]++;
            return;
        }
        assert_int_equal(r, DMM_FAULT_RETRY);
    }
    assert_true(is_hole(g));
}

static void map_file(struct vm_model *v, uint64_t g)
{
    unsigned first = (unsigned)host_random(HOST_FILE_PAGES), pages = 1 + (unsigned)host_random(HOST_FILE_PAGES - first);
    bool hole = false;
    for (unsigned n = 0; n < pages; n++)
        hole |= is_hole(g + n);
    v->busy_first = g;
    v->busy_end = g + pages;
    enum dmm_fault_result r = dmm_map_boot_file(v->s, gfn_of(g), mfn_add(host_file_mfn(), first), pages);
    v->busy_end = 0;
    assert_true(r == DMM_FAULT_STALLED || (r == DMM_FAULT_HOLE) == hole);
    for (unsigned n = 0; n < pages; n++) { /* what was done before it ended is done */
        uint64_t word, file = host_file_byte(first + n) * UINT64_C(0x0101010101010101);
        if (is_hole(g + n) || !dmm_peek_u64(v->s, (g + n) * PAGE_SIZE, &word))
            break;
        if (r == DMM_FAULT_RETRY)
            assert_int_equal(word, file);
        if (word == file)
            v->stamp[g + n] = file;
    }
}

/* Copies across page ends, from and to anything: the model is kept in whole pages, so parts are put back. */
static void copy(struct vm_model *v, uint64_t g)
{
    static uint64_t buf[3 * 512], expect[3 * 512];
    uint64_t skip = host_random(PAGE_SIZE), len = 1 + host_random(2 * PAGE_SIZE);
    bool hole = false;
    for (unsigned n = 0; n < 3; n++) {
        hole |= n * PAGE_SIZE < skip + len && is_hole(g + n);
        fill(&expect[n * 512], is_hole(g + n) ? 0 : v->stamp[g + n]);
    }
    enum dmm_fault_result r = dmm_read_guest(v->s, g * PAGE_SIZE + skip, buf, len);
    assert_int_equal(r, hole ? DMM_FAULT_HOLE : DMM_FAULT_RETRY); /* reading needs no frame, ever */
    if (hole)
        return;
    assert_memory_equal(buf, (uint8_t *)expect + skip, len);
    v->busy_first = g;
    v->busy_end = g + 3;
    if (host_random(2)) { /* write the same bytes back: contents stay, states may change */
        r = dmm_write_guest(v->s, g * PAGE_SIZE + skip, buf, len);
        assert_true(r == DMM_FAULT_RETRY || r == DMM_FAULT_STALLED);
    }
    if (host_random(3) == 0 && (r = dmm_zero_guest(v->s, g * PAGE_SIZE, PAGE_SIZE)) == DMM_FAULT_RETRY)
        v->stamp[g] = 0;
    v->busy_end = 0;
}

static void pin(struct vm_model *v, uint64_t g)
{
    enum dmm_fault_result why;
    uint64_t *page = dmm_pin(v->s, gfn_of(g), host_random(2), &why);
    if (!page) {
        assert_int_equal(why, is_hole(g) ? DMM_FAULT_HOLE : DMM_FAULT_STALLED);
        return;
    }
    check_page(page, v->stamp[g]);
    fill(page, v->stamp[g] = next_stamp++);
    v->pins[g]++;
    v->pin_total++;
}

static void unpin_one(struct vm_model *v)
{
    uint64_t g = host_random(VM_PAGES);
    for (unsigned n = 0; v->pin_total && n < VM_PAGES; n++, g = (g + 1) % VM_PAGES)
        if (v->pins[g]) {
            dmm_unpin(v->s, gfn_of(g));
            v->pins[g]--;
            v->pin_total--;
            return;
        }
}

/* What was frozen: some VMs are made from it, others go back to it. */
static struct { struct dmm_image *image; uint64_t stamp[VM_PAGES]; } images[4];
static unsigned inherited[3]; /* frozen, made from an image, restored */

static void create(struct vm_model *v, uint64_t max)
{
    struct dmm_space_config cfg = { .name = "model", .vm_id = v->id, .pages = VM_PAGES - (HOLE_END - HOLE_FIRST), .max_pages = max,
                                    .class = (enum dmm_class)host_random(3), .group = (unsigned)host_random(3),
                                    .format = &p2m_format_fake, .ops = &ops, .owner = v };
    unsigned id = v->id;
    memset(v, 0, sizeof(*v));
    v->id = id;
    unsigned from = (unsigned)host_random(ARRAY_SIZE(images) + 1);
    if (from < ARRAY_SIZE(images) && images[from].image) {
        cfg.max_pages = 0;
        if (dmm_space_create_from(&cfg, images[from].image, &v->s) == DMM_CREATE_OK) {
            memcpy(v->stamp, images[from].stamp, sizeof(v->stamp));
            inherited[1]++;
        }
        return;
    }
    assert_int_equal(dmm_space_create(&cfg, &v->s), DMM_CREATE_OK);
    assert_true(dmm_space_add_ram(v->s, gfn_of(0), HOLE_FIRST));
    assert_true(dmm_space_add_ram(v->s, gfn_of(HOLE_END), VM_PAGES - HOLE_END));
}

static void destroy(struct vm_model *v)
{
    v->parked = true;
    while (v->pin_total)
        unpin_one(v);
    dmm_space_destroy(v->s);
    v->s = NULL;
}

/* A VM that stops or is reset: as if just created, and it can go on. */
static void clear(struct vm_model *v)
{
    struct dmm_usage u;
    v->parked = true;
    while (v->pin_total)
        unpin_one(v);
    dmm_space_clear(v->s);
    v->parked = false;
    memset(v->stamp, 0, sizeof(v->stamp));
    dmm_space_usage(v->s, &u);
    assert_int_equal(u.resident + u.image_shared + u.shared + u.zero + u.charged + u.resident_large, 0);
    assert_int_equal(u.empty, VM_PAGES - (HOLE_END - HOLE_FIRST));
}

static unsigned collapsed;
static void collapse(struct vm_model *v, uint64_t g)
{
    struct dmm_bill bill;
    struct dmm_usage u;
    if (host_random(2)) /* else it is hardly ever full enough */
        for (uint64_t n = ALIGN_DOWN(g, 512); n < ALIGN_DOWN(g, 512) + 512; n++)
            guest_access(v, n, true);
    if (dmm_collapse_large(v->s, gfn_of(g)) == DMM_RESIZE_OK) {
        dmm_space_usage(v->s, &u);
        assert_true(u.resident_large >= 512);
        collapsed++;
    }
    dmm_space_usage(v->s, &u);
    dmm_space_bill(v->s, &bill);
    assert_int_equal(bill.private_milli, u.resident * 1000);
    assert_true(bill.shared_milli <= u.shared * 1000 && bill.inherited_milli <= u.inherited * 1000);
    assert_true(bill.image_milli <= u.image_shared * 1000);
}

static void freeze(struct vm_model *v, unsigned k)
{
    struct dmm_image *image = NULL;
    enum dmm_freeze_result r = dmm_space_freeze(v->s, &image);
    if (v->pin_total)
        assert_int_equal(r, DMM_FREEZE_PINNED);
    if (r != DMM_FREEZE_OK)
        return;
    if (images[k].image)
        dmm_image_release(images[k].image);
    images[k].image = image;
    memcpy(images[k].stamp, v->stamp, sizeof(v->stamp));
    inherited[0]++;
}

static void restore(struct vm_model *v, unsigned k)
{
    while (v->pin_total)
        unpin_one(v);
    v->parked = true;
    if (images[k].image && dmm_space_restore(v->s, images[k].image)) {
        memcpy(v->stamp, images[k].stamp, sizeof(v->stamp));
        inherited[2]++;
    }
    v->parked = false;
}

static void release_image(unsigned k)
{
    if (images[k].image)
        dmm_image_release(images[k].image);
    images[k].image = NULL;
}

static void freeze_or_thaw(struct vm_model *v)
{
    unsigned k = (unsigned)host_random(ARRAY_SIZE(images));
    switch (host_random(4)) {
    case 0: case 1: v->parked = true, freeze(v, k), v->parked = false; break;
    case 2: restore(v, k); break;
    case 3: release_image(k); break;
    }
}

/* What a policy's thread does, through the door that it must use. */
static void disturb(struct vm_model *v, uint64_t g, bool move)
{
    struct dmm_space *s = dmm_space_acquire(v->s->id);
    assert_ptr_equal(s, v->s);
    enum dmm_move_result r = move ? dmm_move_page(s, gfn_of(g)) : dmm_protect_page(s, gfn_of(g));
    dmm_space_release(s);
    if (r == DMM_MOVE_OK) {
        assert_true(!is_hole(g) && !v->pins[g]);
        assert_true(dmm_is_mapped(v->s, gfn_of(g), DMM_READ) && dmm_is_mapped(v->s, gfn_of(g), DMM_WRITE) == move);
        disturbed[move]++;
    }
    if (r == DMM_MOVE_PINNED)
        assert_true(v->pins[g]);
}

static p2m_entry_t entry_at(struct vm_model *v, uint64_t g, unsigned *level)
{
    struct region *r = region_of(v->s, gfn_of(g));
    *level = 1;
    return r ? p2m_read(p2m_leaf(r, gfn_of(g), level)) : 0;
}

/* A frame that page g of v could be merged with: often one with the same contents, sometimes none of the kind, its own, or the zero page. */
static mfn_t partner_for(struct vm_model *v, uint64_t g, mfn_t own, uint64_t *stamp)
{
    unsigned level;
    *stamp = v->stamp[g];
    if (v->stamp[g] == 0 || host_random(8) == 0) {
        *stamp = 0;
        return INVALID_MFN;
    }
    if (host_random(16) == 0)
        return own;
    for (unsigned n = 0; n < 400; n++) {
        struct vm_model *w = &vms[host_random(VMS)];
        uint64_t h = host_random(VM_PAGES);
        if (!w->s || is_hole(h) || (w->stamp[h] != v->stamp[g] && host_random(100)))
            continue;
        p2m_entry_t e = entry_at(w, h, &level);
        enum p2m_type t = p2m_format_fake.type_of(e, level);
        *stamp = w->stamp[h];
        if (t == P2M_RW || t == P2M_SHARED_RO || t == P2M_SEALED)
            return mfn_add(share_mfn_of(w->s, e, t), level == 2 ? h % 512 : 0);
    }
    *stamp = UINT64_MAX;
    return mfn_of(host_random(1 << 15)); /* anything: the machine has to look */
}

static void merge_batch(struct vm_model *v, struct dmm_merge *m, const uint64_t *want, unsigned count)
{
    uint64_t shared_before = frame_count(FRAME_SHARED) + frame_count(FRAME_GUEST);
    dmm_merge(v->s, m, count);
    for (unsigned n = 0; n < count; n++) {
        merges[m[n].result]++;
        uint64_t word;
        assert_true(dmm_peek_u64(v->s, m[n].gfn.v * PAGE_SIZE, &word));
        assert_int_equal(word, word_at(v->stamp[m[n].gfn.v], 0));
        if (m[n].result == DMM_MERGE_DONE && mfn_valid(m[n].with))
            assert_true(want[n] == v->stamp[m[n].gfn.v] || want[n] == UINT64_MAX);
        if (m[n].result == DMM_MERGE_ZEROED)
            assert_int_equal(v->stamp[m[n].gfn.v], 0);
        if (m[n].result <= DMM_MERGE_ALREADY)
            assert_false(dmm_is_mapped(v->s, m[n].gfn, DMM_WRITE));
    }
    assert_true(frame_count(FRAME_SHARED) + frame_count(FRAME_GUEST) <= shared_before);
}

/* What the scanner's thread does with a region, with better luck and worse. */
static void scan(struct vm_model *v, uint64_t g)
{
    static struct dmm_scan scan;
    struct dmm_merge m[DMM_MERGE_BATCH];
    uint64_t want[DMM_MERGE_BATCH];
    unsigned count = 0;
    struct dmm_space *s = dmm_space_acquire(v->s->id);
    assert_ptr_equal(s, v->s);
    dmm_scan_age(s, gfn_of(g));
    if (host_random(3) == 0)
        dmm_scan_forget(s);
    bool found = dmm_scan_region(s, gfn_of(g), &scan);
    if (found && scan.large && host_random(2))
        dmm_break_large(s, gfn_of(g));
    for (unsigned n = 0; found && n < scan.fresh; n++) {
        uint64_t at = ALIGN_DOWN(g, 512) + scan.page[n].index;
        assert_false(is_hole(at));
        m[count] = (struct dmm_merge){ .gfn = gfn_of(at), .mfn = scan.page[n].mfn, .result = DMM_MERGE_RESULT_COUNT };
        m[count].with = partner_for(v, at, scan.page[n].mfn, &want[count]);
        if (++count == DMM_MERGE_BATCH || n + 1 == scan.fresh) {
            merge_batch(v, m, want, count);
            count = 0;
            host_audit();
        }
    }
    dmm_merge_finish();
    dmm_space_release(s);
}

static void check_everything(struct vm_model *v)
{
    uint64_t word;
    for (uint64_t g = 0; v->s && g < VM_PAGES; g++) {
        uint64_t n = host_random(512);
        assert_int_equal(dmm_peek_u64(v->s, g * PAGE_SIZE + 8 * n, &word), !is_hole(g));
        if (!is_hole(g))
            assert_int_equal(word, word_at(v->stamp[g], n));
    }
}

static void step(void)
{
    struct vm_model *v = &vms[host_random(VMS)];
    static uint64_t walk_at;
    uint64_t g = host_random(50) ? host_random(VM_PAGES) : VM_PAGES + host_random(5000);
    if (!v->s) {
        create(v, host_random(3) ? 0 : 300);
        return;
    }
    if (host_random(2)) /* some locality: walks up and down */
        g = (walk_at += host_random(8) ? 1 : host_random(VM_PAGES)) % VM_PAGES;
    switch (host_random(33)) {
    case 0: map_file(v, g); break;
    case 1: copy(v, g); break;
    case 2: if (v->pin_total < 50) pin(v, g); break;
    case 3: case 4: unpin_one(v); break;
    case 5: dmm_break_large(v->s, gfn_of(g)); break;
    case 6: dmm_reform_large(v->s, gfn_of(g)); break;
    case 7: if (host_random(12) == 0) destroy(v); else if (host_random(20) == 0) clear(v); break;
    case 8: frame_zero_some((unsigned)host_random(700)); break;
    case 9: dmm_policy_set(dmm_policy_find("demand"), host_random(2) ? "zero_read" : "zero_store", host_random(3)); break;
    case 10: dmm_policy_set(dmm_policy_find("demand"), "large_free_percent", host_random(2) ? 0 : 101); break;
    case 11: disturb(v, g, true); break;
    case 12: disturb(v, g, false); break;
    case 13: case 14: case 15: scan(v, g); break;
    case 19: disturb(v, g, host_random(2)); break;
    case 16: dmm_insurance_tick(1 + host_random(2000000000)); break;
    case 17: if (host_random(10) == 0) dmm_set_class(v->s, (enum dmm_class)host_random(3), &(uint64_t){0}); break;
    case 20: freeze_or_thaw(v); break;
    case 21: collapse(v, g); break;
    case 22: guest_clears(v, g); break;
    case 18: if (host_random(10) == 0) dmm_group_set_secure(1 + (unsigned)host_random(2), host_random(2)); break;
    default:
        for (unsigned n = 0; n < 4; n++)
            guest_access(v, (g + n) % (VM_PAGES + 7), host_random(2));
    }
}

static void test_random_against_model(void **state)
{
    uint64_t free_before = frame_free_pages();
    for (unsigned n = 0; n < 6000; n++) {
        step();
        host_audit();
        if (n % 250 == 0)
            for (unsigned k = 0; k < VMS; k++)
                check_everything(&vms[k]);
    }
    for (unsigned k = 0; k < VMS; k++)
        if (vms[k].s)
            destroy(&vms[k]);
    for (unsigned k = 0; k < ARRAY_SIZE(images); k++)
        release_image(k);
    host_audit();
    print_message("frozen %u, made from an image %u, restored %u\n", inherited[0], inherited[1], inherited[2]);
    assert_true(collapsed > 10);
    assert_true(inherited[0] > 10 && inherited[1] > 1 && inherited[2] > 3);
    assert_int_equal(frame_free_pages(), free_before);
    struct dmm_hist_summary h;
    for (unsigned c = 0; c < DMM_CAUSE_COUNT; c++)
        dmm_fault_summary(NULL, (enum dmm_fault_cause)c, &h);
    assert_int_equal(frame_count(FRAME_GUEST) + frame_count(FRAME_SHARED), 0);
    assert_true(disturbed[0] > 10 && disturbed[1] > 10);
    assert_true(cleared[0] > 20 && cleared[1] > 20);
    for (unsigned n = 0; n < DMM_MERGE_RESULT_COUNT; n++)
        print_message("merges %s: %u\n", dmm_merge_result_name((enum dmm_merge_result)n), merges[n]);
    assert_true(merges[DMM_MERGE_DONE] > 100 && merges[DMM_MERGE_ZEROED] > 100 && merges[DMM_MERGE_DIFFERENT] > 20);
    assert_true(merges[DMM_MERGE_PARTNER_GONE] > 5 && merges[DMM_MERGE_FOREIGN] > 5 && merges[DMM_MERGE_ALREADY] > 5);
}

/* A frame that a guest had never shows its contents to another. */
static void test_no_leak_between_guests(void **state)
{
    static uint64_t page[512];
    for (unsigned round = 0; round < 6; round++) {
        create(&vms[0], 0);
        for (uint64_t g = HOLE_END; g < VM_PAGES; g++)
            assert_true(guest_access(&vms[0], g, true));
        destroy(&vms[0]);
        create(&vms[1], 0);
        for (uint64_t g = HOLE_END; g < VM_PAGES; g++) {
            assert_int_equal(dmm_fault(vms[1].s, gfn_of(g), DMM_READ), DMM_FAULT_RETRY);
            assert_int_equal(dmm_read_guest(vms[1].s, g * PAGE_SIZE, page, PAGE_SIZE), DMM_FAULT_RETRY);
            for (unsigned n = 0; n < 512; n++)
                assert_int_equal(page[n], 0);
        }
        destroy(&vms[1]);
        frame_zero_some((unsigned)host_random(4000));
        host_audit();
    }
}

/* The same boot file in several VMs: no frames, references, and copies that part ways. */
static void test_boot_file_is_shared(void **state)
{
    struct dmm_usage u;
    uint64_t word;
    for (unsigned k = 0; k < 3; k++) {
        create(&vms[k], 0);
        assert_int_equal(dmm_map_boot_file(vms[k].s, gfn_of(300), host_file_mfn(), HOST_FILE_PAGES), DMM_FAULT_RETRY);
        dmm_space_usage(vms[k].s, &u);
        assert_int_equal(u.image_shared, HOST_FILE_PAGES);
        assert_int_equal(u.resident, 0);
        for (unsigned n = 0; n < HOST_FILE_PAGES; n++)
            vms[k].stamp[300 + n] = host_file_byte(n) * UINT64_C(0x0101010101010101);
    }
    assert_int_equal(frame_of(host_file_mfn())->refs, 3);
    assert_true(guest_access(&vms[0], 300, false));
    uint64_t kicks = vms[0].kicks;
    assert_true(guest_access(&vms[0], 300, true));
    assert_int_equal(vms[0].kicks, kicks + 1);
    assert_int_equal(frame_of(host_file_mfn())->refs, 2);
    assert_true(guest_access(&vms[1], 300, false));
    assert_true(dmm_peek_u64(vms[1].s, 300 * PAGE_SIZE, &word) && word == vms[1].stamp[300]);
    assert_int_equal(dmm_map_boot_file(vms[0].s, gfn_of(400), mfn_of(hpa_to_mfn(MIB(8)).v), 1), DMM_FAULT_DENIED);
    assert_int_equal(dmm_map_boot_file(vms[0].s, gfn_of(HOLE_FIRST), host_file_mfn(), 1), DMM_FAULT_HOLE);
    host_audit();
    for (unsigned k = 0; k < 3; k++)
        destroy(&vms[k]);
    assert_int_equal(frame_of(host_file_mfn())->refs, 0);
    host_audit();
}

/* ---- no memory ----------------------------------------------------------------------------------------------------- */

static struct dmm_space *plain_space(uint64_t pages, uint64_t min, uint64_t max, enum dmm_create_result want)
{
    struct dmm_space_config cfg = { .name = "plain", .vm_id = 9, .pages = pages, .min_pages = min, .max_pages = max,
                                    .format = &p2m_format_fake };
    struct dmm_space *s = NULL;
    assert_int_equal(dmm_space_create(&cfg, &s), want);
    if (s)
        assert_true(dmm_space_add_ram(s, gfn_of(0), pages));
    return s;
}

static uint64_t fill_until_stalled(struct dmm_space *s)
{
    uint64_t g = 0;
    while (dmm_fault(s, gfn_of(g), DMM_WRITE) == DMM_FAULT_RETRY)
        g++;
    return g;
}

struct waiter { struct dmm_space *s; volatile bool through; unsigned cpu; };

static void *stalled_vcpu(void *arg)
{
    struct waiter *w = arg;
    host_become_cpu(w->cpu);
    while (dmm_fault(w->s, gfn_of(50000), DMM_WRITE) == DMM_FAULT_STALLED)
        dmm_wait_memory(w->s, UINT64_C(20000000000));
    w->through = true;
    return NULL;
}

static void test_stall_and_resume(void **state)
{
    uint64_t before = frame_free_pages();
    struct dmm_space *small = plain_space(2000, 0, 0, DMM_CREATE_OK), *greedy = plain_space(1 << 16, 0, 0, DMM_CREATE_OK);
    for (uint64_t g = 0; g < 2000; g++)
        assert_int_equal(dmm_fault(small, gfn_of(g), DMM_WRITE), DMM_FAULT_RETRY);
    dmm_policy_set(dmm_policy_find("demand"), "large_free_percent", 101);
    fill_until_stalled(greedy);
    assert_int_equal(dmm_fault(greedy, gfn_of(40000), DMM_WRITE), DMM_FAULT_STALLED);
    assert_true(frame_free_pages() >= frame_reserve_pages()); /* the reserve is untouched */
    host_audit();
    struct waiter w = { .s = greedy, .cpu = 5 };
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, stalled_vcpu, &w), 0);
    while (!frame_waiters)
        sched_yield();
    assert_false(w.through);
    dmm_space_destroy(small);
    pthread_join(t, NULL);
    assert_true(w.through);
    host_audit();
    struct dmm_hist_summary h;
    dmm_fault_summary(greedy, DMM_CAUSE_STALL, &h);
    assert_true(h.count >= 3);
    dmm_space_destroy(greedy);
    host_audit();
    assert_true(frame_free_pages() + 1 == before); /* the second CPU's magazines stay */
}

static void test_pool_limits(void **state)
{
    struct dmm_space *capped = plain_space(5000, 0, 700, DMM_CREATE_OK);
    assert_int_equal(fill_until_stalled(capped), 700);
    struct dmm_usage u;
    dmm_space_usage(capped, &u);
    assert_int_equal(u.charged, 700);
    host_audit();
    /* Promises: what is promised to one is not given to another, and not promised twice. */
    struct dmm_space *promised = plain_space(5000, 5000, 0, DMM_CREATE_OK), *greedy = plain_space(1 << 16, 0, 0, DMM_CREATE_OK);
    plain_space(frame_free_pages(), frame_free_pages(), 0, DMM_CREATE_OVERCOMMITTED_MIN);
    fill_until_stalled(greedy);
    host_audit();
    for (uint64_t g = 0; g < 4900; g++) /* all but what its tables take */
        assert_int_equal(dmm_fault(promised, gfn_of(g), DMM_WRITE), DMM_FAULT_RETRY);
    host_audit();
    dmm_space_destroy(greedy);
    dmm_space_destroy(promised);
    dmm_space_destroy(capped);
    host_audit();
}

/* ---- several CPUs in one space ------------------------------------------------------------------------------------------ */

static struct dmm_space *common;
static void *touch_all(void *arg)
{
    unsigned cpu = (unsigned)(uintptr_t)arg;
    host_become_cpu(cpu);
    for (uint64_t n = 0; n < 3000; n++) {
        uint64_t g = (n * 7 + (cpu & 1 ? 0 : n)) % 3000, v;
        assert_int_equal(dmm_fault(common, gfn_of(g), DMM_WRITE), DMM_FAULT_RETRY);
        assert_int_equal(dmm_write_guest(common, g * PAGE_SIZE + 8 * cpu, &n, 8), DMM_FAULT_RETRY);
        assert_true(dmm_peek_u64(common, g * PAGE_SIZE + 8 * cpu, &v) && v == n);
    }
    return NULL;
}

static void test_threads(void **state)
{
    for (unsigned round = 0; round < 5; round++) {
        pthread_t t[3];
        common = plain_space(3000, 0, 0, DMM_CREATE_OK);
        assert_int_equal(dmm_map_boot_file(common, gfn_of(600), host_file_mfn(), HOST_FILE_PAGES), DMM_FAULT_RETRY);
        for (uintptr_t n = 0; n < 3; n++)
            assert_int_equal(pthread_create(&t[n], NULL, touch_all, (void *)(n + 1 + 10 * round)), 0);
        for (unsigned n = 0; n < 3; n++)
            pthread_join(t[n], NULL);
        host_audit();
        dmm_space_destroy(common);
        host_audit();
    }
}

/* ---- the audit finds what is wrong -------------------------------------------------------------------------------------- */

static char found[256];
static void note(const char *line, void *arg) { snprintf(found, sizeof(found), "%s", line); }

#define EXPECT_VIOLATION(damage, repair, word) do {                                                        \
    damage;                                                                                                \
    found[0] = 0;                                                                                          \
    assert_true(dmm_audit(note, NULL) > 0);                                                                \
    if (!strstr(found, word)) fail_msg("said \"%s\", not \"%s\"", found, word);                            \
    repair;                                                                                                \
    host_audit();                                                                                          \
} while (0)

static void test_audit_sees_damage(void **state)
{
    struct dmm_space *s = plain_space(2000, 100, 0, DMM_CREATE_OK);
    assert_int_equal(dmm_map_boot_file(s, gfn_of(600), host_file_mfn(), 4), DMM_FAULT_RETRY);
    dmm_fault(s, gfn_of(700), DMM_WRITE);
    struct region *r = region_of(s, gfn_of(700));
    p2m_entry_t *slot = &r->l1[700 % 512], e = *slot;
    struct frame *f = frame_of(s->format->mfn_of(e)), *file = frame_of(host_file_mfn()), saved = *f;
    host_audit();
    EXPECT_VIOLATION(f->gfn++, f->gfn--, "frame");
    EXPECT_VIOLATION(f->owner = 77, f->owner = saved.owner, "nobody");
    EXPECT_VIOLATION(f->type = FRAME_HV_HEAP, f->type = saved.type, "records");
    EXPECT_VIOLATION(*slot = s->empty, *slot = e, "entry there is EMPTY");
    EXPECT_VIOLATION(*slot = s->format->make_leaf(P2M_RW, mfn_of(512 * 4), 1), *slot = e, "frame");
    EXPECT_VIOLATION(file->refs++, file->refs--, "boot file");
    EXPECT_VIOLATION(s->charged++, s->charged--, "promised");
    EXPECT_VIOLATION(s->frames[FRAME_P2M]++, s->frames[FRAME_P2M]--, "nested tables");
    EXPECT_VIOLATION(r->filled_pages--, r->filled_pages++, "filled");
    EXPECT_VIOLATION(s->entries[P2M_IMAGE_RO]++, s->entries[P2M_IMAGE_RO]--, "IMAGE_RO");
    EXPECT_VIOLATION(frame_cpu()->type_count[FRAME_FREE]++, frame_cpu()->type_count[FRAME_FREE]--, "free");
    EXPECT_VIOLATION(((uint8_t *)mfn_to_hva(dmm_zero_mfn))[800] = 1, ((uint8_t *)mfn_to_hva(dmm_zero_mfn))[800] = 0, "zero page");
    struct frame_cpu *c = frame_cpu();
    assert_true(c->dirty.count > 0 || (frame_free(frame_alloc(0, 0, FRAME_HV_HEAP, NULL), 0), c->dirty.count > 0));
    EXPECT_VIOLATION(c->dirty.count--, c->dirty.count++, "magazines");
    dmm_space_destroy(s);
    host_audit();
}

static int setup(void **state)
{
    host_machine_init(96);
    demand_policy_init();
    dmm_group_of("one");
    dmm_group_of("two");
    for (unsigned k = 0; k < VMS; k++)
        vms[k].id = k + 1;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_boot_file_is_shared), cmocka_unit_test(test_no_leak_between_guests),
        cmocka_unit_test(test_random_against_model), cmocka_unit_test(test_audit_sees_damage), cmocka_unit_test(test_pool_limits),
        cmocka_unit_test(test_stall_and_resume), cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
