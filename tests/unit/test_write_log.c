/* CPUs that log what they write to: the scanner passes by what is unchanged, and must find in the end, and between sweeps even at once, what it finds when it
 * looks at everything.
 * TEST-SOURCES: policies/dedup.c policies/dedup_thread.c policies/dedup_table.c mm/dmm/digest.c mm/dmm/frame.c mm/dmm/frame_alloc.c mm/dmm/space.c
   mm/dmm/write_log.c
   mm/dmm/pool.c mm/dmm/p2m.c mm/dmm/fault.c mm/dmm/hist.c mm/dmm/guest_access.c mm/dmm/policy.c mm/dmm/audit.c mm/dmm/share.c mm/dmm/rmap.c
   mm/dmm/merge.c mm/dmm/scan.c mm/dmm/group.c mm/dmm/image.c mm/dmm/collapse.c mm/dmm/bill.c mm/dmm/move.c policies/demand.c
   tests/unit/fake/dmm_host.c tests/unit/fake/p2m_fake.c */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "core/console.h"
#include "core/thread.h"
#include "core/time.h"
#include "include/hv/dmm_policy.h"
#include "mm/dmm/frame.h"
#include "mm/dmm/share.h"
#include "policies/dedup.h"
#include "policies/demand.h"
#include "tests/unit/fake/dmm_host.h"
#include "x86/cpu.h"

uint64_t time_ns(void)
{
    static uint64_t now;
    return now += 1000;
}
void thread_sleep_ns(uint64_t ns) { }
uint64_t cpu_random(void) { return UINT64_C(0x123456789abcdef1); }

#define VMS 2u
#define REGIONS 12u
#define PAGES (REGIONS * LARGE_PAGES)
#define LOG_ENTRIES 16u /* it is full often */

/* A VM of one CPU. Its log as in vmx/log.c: what is to be takes effect with the next flush, and what was logged since then nobody can read. */
static struct vm {
    struct dmm_space *s;
    uint64_t content[PAGES];
    bool wanted, logs;
    mfn_t frame;
    uint64_t log[LOG_ENTRIES];
    unsigned logged, visible;
    unsigned times_full, flushes;
} vms[VMS];
static bool can_log = true;
static struct p2m_format format; /* the fake one, but for this: */
static void (*while_scanning)(void), (*while_flushing)(void);

static enum p2m_type type_of_hooked(p2m_entry_t e, unsigned level)
{
    void (*fn)(void) = while_scanning;
    while_scanning = NULL;
    if (fn)
        fn();
    return p2m_format_fake.type_of(e, level);
}

static void read_log(struct vm *v, unsigned upto)
{
    for (unsigned n = 0; n < upto; n++)
        dmm_log_written(v->s, v->log[n] | host_random(PAGE_SIZE)); /* within a page it is no matter */
    memmove(v->log, v->log + upto, (v->logged - upto) * sizeof(v->log[0]));
    v->logged -= upto;
    v->visible = 0;
}

static void kick(void *owner, bool wait)
{
    struct vm *v = owner;
    void (*fn)(void) = while_flushing;
    while_flushing = NULL;
    if (fn)
        fn();
    v->visible = v->logged;
    v->flushes++;
    if (v->logs != v->wanted)
        v->logged = v->visible = 0;
    v->logs = v->wanted;
}

static bool log_writes(void *owner, enum dmm_log_step step)
{
    struct vm *v = owner;
    switch (step) {
    case DMM_LOG_ALLOC:
        assert_false(v->wanted || v->logs || mfn_valid(v->frame));
        v->frame = can_log ? frame_alloc(0, 0, FRAME_VM_STATE, v->s) : INVALID_MFN;
        return mfn_valid(v->frame);
    case DMM_LOG_BEGIN: v->wanted = true; break;
    case DMM_LOG_READ: read_log(v, v->visible); break;
    case DMM_LOG_END: v->wanted = false; break;
    case DMM_LOG_FREE:
        assert_false(v->wanted || v->logs);
        if (mfn_valid(v->frame))
            frame_free(v->frame, 0);
        v->frame = INVALID_MFN;
    }
    return true;
}

static const struct dmm_space_ops ops = { .kick = kick, .log_writes = log_writes };

static void create(unsigned k, unsigned group, bool large)
{
    struct dmm_space_config cfg = { .name = "vm", .vm_id = k + 1, .pages = PAGES, .group = group, .format = &format, .ops = &ops, .owner = &vms[k] };
    dmm_policy_set(dmm_policy_find("demand"), "large_free_percent", large ? 0 : 101);
    while (large && frame_zero_some(512))
        continue;
    vms[k] = (struct vm){ .frame = INVALID_MFN };
    assert_int_equal(dmm_space_create(&cfg, &vms[k].s), DMM_CREATE_OK);
    assert_true(dmm_space_add_ram(vms[k].s, gfn_of(0), PAGES));
}

static void destroy(unsigned k)
{
    dmm_space_close(vms[k].s);
    if (mfn_valid(vms[k].frame)) /* as with a vCPU */
        frame_free(vms[k].frame, 0);
    dmm_space_destroy(vms[k].s);
    vms[k].s = NULL;
}

#include "tests/unit/fake/dedup_host.h"

static p2m_entry_t *leaf(const struct vm *v, uint64_t g, unsigned *level)
{
    struct region *r = region_of(v->s, gfn_of(g));
    return r ? p2m_leaf(r, gfn_of(g), level) : NULL;
}

static void log_page(struct vm *v, uint64_t g)
{
    if (v->logged == LOG_ENTRIES) { /* an exit: all that it has is in memory */
        read_log(v, v->logged);
        dmm_log_was_full();
        v->times_full++;
    }
    v->log[v->logged++] = g * PAGE_SIZE;
}

/* A store by the guest. */
static void cpu_write(struct vm *v, uint64_t g, uint64_t content)
{
    unsigned level = 1;
    p2m_entry_t *slot;
    while (!(slot = leaf(v, g, &level)) || !v->s->format->permits(p2m_read(slot), DMM_WRITE))
        assert_int_equal(dmm_fault(v->s, gfn_of(g), DMM_READ | DMM_WRITE), DMM_FAULT_RETRY);
    p2m_entry_t was = __atomic_fetch_or(slot, format.dirty_mask() | format.accessed_mask(), __ATOMIC_RELAXED);
    if (!(was & format.dirty_mask()) && v->logs)
        log_page(v, g);
    make_page(mfn_to_hva(mfn_add(format.mfn_of(was), level == 2 ? g % LARGE_PAGES : 0)), content);
    v->content[g] = content;
}

/* ---- the scanner --------------------------------------------------------------------------------------------------------------- */

static void sweep(void (*between)(void))
{
    while (dedup_step() != DEDUP_STEP_SWEPT)
        if (between)
            between();
}

static void find_counter(const char *key, uint64_t value, void *arg)
{
    struct { const char *key; uint64_t value; } *wanted = arg;
    if (!strcmp(key, wanted->key))
        wanted->value = value;
}

static uint64_t counter(const char *key)
{
    struct dmm_policy *p = dmm_policy_find("dedup");
    struct { const char *key; uint64_t value; } wanted = { key, UINT64_MAX };
    p->show(p, find_counter, &wanted);
    assert_true(wanted.value != UINT64_MAX);
    return wanted.value;
}

/* What is passed by is as a scan has seen it, once what was logged before a flush has been read. */
static unsigned count_unchanged(struct vm *v)
{
    unsigned count = 0;
    dmm_log_read(v->s);
    for (uint64_t g = 0; g < PAGES; g += LARGE_PAGES) {
        if (!dmm_scan_is_unchanged(v->s, gfn_of(g)))
            continue;
        count++;
        for (uint64_t n = g; n < g + LARGE_PAGES; n++) {
            unsigned level;
            p2m_entry_t e = p2m_read(leaf(v, n, &level));
            enum p2m_type type = format.type_of(e, level);
            if (format.dirty(e) || ((type == P2M_RW || type == P2M_SHARED_RO) && !(e & format.mark)))
                fail_msg("gfn %lx: %s entry %lx is passed by", n, p2m_type_name(type), e);
        }
    }
    return count;
}

/* ---- the same with logs and without -------------------------------------------------------------------------------------------- */

static uint64_t seed;
static uint64_t draw(uint64_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (seed >> 11) % below;
}

static uint64_t draw_content(void)
{
    switch (draw(6)) {
    case 0: return draw(4) ? 1 + draw(6) : 0;
    case 1: return 1000000 + draw(100000000);
    default: return 100 + draw(1500);
    }
}

static void pin_and_write(struct vm *v, uint64_t g, uint64_t content)
{
    uint64_t *page = dmm_pin(v->s, gfn_of(g), true, NULL);
    assert_non_null(page);
    make_page(page, content);
    v->content[g] = content;
    dmm_unpin(v->s, gfn_of(g));
}

static void write_somehow(void)
{
    struct vm *v = &vms[draw(VMS)];
    uint64_t g = draw(3) * LARGE_PAGES * 5 + draw(LARGE_PAGES), content = draw_content();
    switch (draw(12)) {
    case 0: host_write(v, g, content); break;
    case 1: pin_and_write(v, g, content); break;
    case 2: dmm_fault(v->s, gfn_of(g), DMM_READ); break;
    case 3: dmm_move_page(v->s, gfn_of(g)); break;
    case 4: dmm_protect_page(v->s, gfn_of(g)); break;
    case 5: dmm_fault(v->s, gfn_of(g), DMM_READ | DMM_WRITE); break; /* and the store never comes */
    default: cpu_write(v, g, content);
    }
}

static void do_something(unsigned n)
{
    struct dmm_image *image;
    for (uint64_t writes = draw(40); writes; writes--)
        write_somehow();
    if (n % 40 == 39 && dmm_space_freeze(vms[n % VMS].s, &image) == DMM_FREEZE_OK)
        dmm_image_release(image);
    if (n % 31 == 30) {
        unsigned k = (unsigned)draw(VMS);
        destroy(k);
        create(k, 1, draw(2));
        for (uint64_t g = 0; g < PAGES; g++)
            cpu_write(&vms[k], g, draw_content());
    }
}

/* Which pages are one frame: for each the first that is on the same; those that read as zero without a frame are on the same, too. */
#define ALL_PAGES (VMS * PAGES)
static void partition(uint32_t *out)
{
    static uint32_t first[FRAME_MAX_MFN < (1 << 20) ? FRAME_MAX_MFN : 1 << 20]; /* 4 GiB of fake machine */
    memset(first, 0xff, sizeof(first));
    for (uint32_t n = 0; n < ALL_PAGES; n++) {
        unsigned level = 1;
        p2m_entry_t *slot = leaf(&vms[n / PAGES], n % PAGES, &level), e = slot ? p2m_read(slot) : 0;
        enum p2m_type type = format.type_of(e, level);
        bool has = slot && (type == P2M_RW || type == P2M_SHARED_RO || type == P2M_ZERO_RO);
        uint64_t mfn = has ? share_mfn_of(vms[n / PAGES].s, e, type).v + (level == 2 ? n % LARGE_PAGES : 0) : 0;
        if (has && first[mfn] == UINT32_MAX)
            first[mfn] = n;
        out[n] = has ? first[mfn] : UINT32_MAX - 1 - (uint32_t)type;
    }
}

enum { ROUNDS = 60, LOOK_ANYWAY = 32 };
static uint32_t (*found)[ALL_PAGES];

/* Is a page of this content shared with nobody any more? No log tells when the others have left; the scan that looks anyway finds it, some sweeps later. */
static bool one_is_left_alone(uint64_t content)
{
    for (uint32_t n = 0; n < ALL_PAGES; n++) {
        const struct vm *v = &vms[n / PAGES];
        unsigned level = 1;
        p2m_entry_t *slot = leaf(v, n % PAGES, &level), e = slot ? p2m_read(slot) : 0;
        if (v->content[n % PAGES] == content && slot && format.type_of(e, level) == P2M_SHARED_RO && frame_of(format.mfn_of(e))->refs == 1)
            return true;
    }
    return false;
}

static void expect_same(unsigned round, const uint32_t *now, const uint32_t *without, bool looked_anyway)
{
    for (uint32_t p = 0; p < ALL_PAGES; p++)
        if (now[p] != without[p] && (looked_anyway || !one_is_left_alone(vms[p / PAGES].content[p % PAGES])))
            fail_msg("round %u: page %u is with %u, without logs with %u", round, p, now[p], without[p]);
}

static void run(uint64_t from, bool log, bool large, void (*between)(void), uint64_t *passed_by)
{
    static uint32_t now[ALL_PAGES];
    dmm_policy_set(dmm_policy_find("dedup"), "log_pages_max", log ? 512 : 0);
    seed = from;
    for (unsigned k = 0; k < VMS; k++) {
        create(k, 1, large);
        for (uint64_t g = 0; g < PAGES; g++)
            cpu_write(&vms[k], g, draw_content());
    }
    uint64_t before = counter("regions_unchanged");
    for (unsigned n = 0; n < ROUNDS; n++) {
        do_something(n);
        sweep(between);
        bool looked_anyway = n % 10 == 9;
        for (unsigned rest = looked_anyway ? LOOK_ANYWAY + 2 : between ? 2 : 0; rest; rest--) /* what was written while it swept, it finds later */
            sweep(NULL);
        partition(log ? now : found[n]);
        if (log)
            expect_same(n, now, found[n], looked_anyway);
        for (unsigned k = 0; k < VMS && n % 8 == 0; k++)
            count_unchanged(&vms[k]);
        if (n % 16 == 0)
            check_all();
    }
    *passed_by = counter("regions_unchanged") - before;
    check_all();
    for (unsigned k = 0; k < VMS; k++)
        destroy(k);
    host_audit();
    assert_int_equal(counter("vms_that_log"), 0);
}

static void write_between(void)
{
    if (draw(4) == 0)
        write_somehow();
}

/* In a process of its own: all that the scanner remembers is as at the start. */
static void run_apart(uint64_t from, bool log, bool large, void (*between)(void))
{
    uint64_t passed_by;
    int status;
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        setenv("CMOCKA_TEST_ABORT", "1", 1);
        run(from, log, large, between, &passed_by);
        if (log ? passed_by < ROUNDS * REGIONS / 2 : passed_by)
            fail_msg("%lu regions were passed by", passed_by);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void compare(void (*between)(void))
{
    found = mmap(NULL, sizeof(*found) * ROUNDS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(found != MAP_FAILED);
    for (unsigned n = 0; n < 4; n++) {
        uint64_t from = UINT64_C(0x9e3779b97f4a7c15) + host_random(1000000);
        run_apart(from, false, n % 2, between);
        run_apart(from, true, n % 2, between);
    }
    munmap(found, sizeof(*found) * ROUNDS);
}

static void test_writes_between_sweeps(void **state) { compare(NULL); }
static void test_writes_during_sweeps(void **state) { compare(write_between); }

/* ---- one thing at a time ---------------------------------------------------------------------------------------------------------- */

/* One VM whose CPU logs and whose regions are at rest: 0 has pages like no others, 1 is half empty, 2 reads as zero, 3 and 4 hold the same. */
static void all_at_rest(bool large)
{
    dmm_policy_set(dmm_policy_find("dedup"), "log_pages_max", 512);
    create(0, 0, large);
    struct vm *v = &vms[0];
    for (uint64_t g = 0; g < PAGES; g++)
        if (g / LARGE_PAGES != 1 || g % 2)
            cpu_write(v, g, g / LARGE_PAGES == 2 ? 0 : g / LARGE_PAGES == 4 ? 1000 + g - LARGE_PAGES : 1000 + g);
    for (unsigned n = 0; n < 4; n++)
        sweep(NULL);
    assert_true(v->logs);
    assert_int_equal(count_unchanged(v), REGIONS);
}

static uint64_t at; /* the page that it is done to */
static void op_nothing(void) { dmm_fault(vms[0].s, gfn_of(at), DMM_READ); }
static void op_cpu_write(void) { cpu_write(&vms[0], at, 77); }
static void op_touch(void) { assert_int_equal(dmm_fault(vms[0].s, gfn_of(at), DMM_READ), DMM_FAULT_RETRY); }
static void op_fault(void) { assert_int_equal(dmm_fault(vms[0].s, gfn_of(at), DMM_READ | DMM_WRITE), DMM_FAULT_RETRY); }
static void op_other_breaks_then_fault(void)
{
    assert_int_equal(dmm_fault(vms[0].s, gfn_of(at + LARGE_PAGES), DMM_READ | DMM_WRITE), DMM_FAULT_RETRY);
    assert_true(dmm_scan_is_unchanged(vms[0].s, gfn_of(at)));
    op_fault();
}
static void op_fault_that_was_counted(void)
{
    op_fault();
    assert_int_equal(dmm_scan_breaks(vms[0].s, gfn_of(at)), 1);
}
static void op_our_write(void) { host_write(&vms[0], at, 77); }
static void op_zero(void) { assert_int_equal(dmm_zero_guest(vms[0].s, at * PAGE_SIZE, PAGE_SIZE), DMM_FAULT_RETRY), vms[0].content[at] = 0; }
static void op_pin(void) { pin_and_write(&vms[0], at, 77); }
static void scan_it(void)
{
    static struct dmm_scan scan;
    dmm_scan_region(vms[0].s, gfn_of(at), &scan);
}
static void op_move(void)
{
    while_flushing = scan_it; /* on another CPU, while the page is nowhere */
    assert_int_equal(dmm_move_page(vms[0].s, gfn_of(at)), DMM_MOVE_OK);
}
static void op_protect(void) { assert_int_equal(dmm_protect_page(vms[0].s, gfn_of(at)), DMM_MOVE_OK); }
static void op_break(void) { assert_int_equal(dmm_break_large(vms[0].s, gfn_of(at)), DMM_RESIZE_OK); }
static void op_collapse(void)
{
    assert_int_equal(dmm_collapse_large(vms[0].s, gfn_of(at)), DMM_RESIZE_OK);
}
static void op_forget(void) { dmm_scan_forget_region(vms[0].s, gfn_of(at)); }
static void op_boot_file(void)
{
    assert_int_equal(dmm_map_boot_file(vms[0].s, gfn_of(at), host_file_mfn(), 1), DMM_FAULT_RETRY);
    memset(&vms[0].content[at], 0xff, sizeof(uint64_t));
}
static mfn_t frame_at(uint64_t g)
{
    unsigned level;
    return format.mfn_of(p2m_read(leaf(&vms[0], g, &level)));
}
static void merge_in_vain(uint64_t g, uint64_t with)
{
    struct dmm_merge m = { .gfn = gfn_of(g), .mfn = frame_at(g), .with = frame_at(with) };
    dmm_merge(vms[0].s, &m, 1);
    assert_int_equal(m.result, DMM_MERGE_DIFFERENT);
    dmm_merge_finish();
}
static void op_merge(void) { merge_in_vain(5 * LARGE_PAGES, at); }
static void op_merge_of_one_alone(void)
{
    assert_int_equal(dmm_fault(vms[0].s, gfn_of(at + LARGE_PAGES), DMM_READ | DMM_WRITE), DMM_FAULT_RETRY);
    merge_in_vain(at, 5 * LARGE_PAGES);
}

static void test_each_change_is_noticed(void **state)
{
    static const struct { const char *what; void (*op)(void); uint64_t at; bool large, same; } rows[] = {
        { "a read", op_nothing, 9, false, true }, { "a read of a shared page", op_nothing, 3 * LARGE_PAGES + 9, false, true },
        { "a read of a large page", op_nothing, 9, true, true }, { "a write", op_cpu_write, 9, false, false },
        { "a write to a large page", op_cpu_write, 5 * LARGE_PAGES + 9, true, false },
        { "a write to the zero page", op_cpu_write, 2 * LARGE_PAGES + 9, false, false },
        { "a write to a shared page", op_cpu_write, 3 * LARGE_PAGES + 9, false, false }, { "a first read", op_touch, LARGE_PAGES + 2, false, false },
        { "a first write", op_fault, LARGE_PAGES + 2, false, false }, { "a fault on the zero page", op_fault, 2 * LARGE_PAGES + 9, false, false },
        { "a fault on a shared page", op_fault, 3 * LARGE_PAGES + 9, false, false },
        { "a fault on a shared page, counted since", op_fault_that_was_counted, 3 * LARGE_PAGES + 9, false, false },
        { "a fault on one that is shared no more", op_other_breaks_then_fault, 3 * LARGE_PAGES + 9, false, false },
        { "our write", op_our_write, 9, false, false }, { "our write to a large page", op_our_write, 9, true, false },
        { "our zeroes", op_zero, 9, false, false },
        { "a pin", op_pin, 9, false, false }, { "a move", op_move, 9, false, false }, { "a protection", op_protect, 9, false, false },
        { "a break", op_break, 5 * LARGE_PAGES, true, false }, { "a collapse", op_collapse, 5 * LARGE_PAGES, false, false },
        { "that all is forgotten", op_forget, 9, false, false }, { "a boot file's page", op_boot_file, LARGE_PAGES + 2, false, false },
        { "another's wish to merge", op_merge, 9, false, false },
        { "a merge that failed", op_merge_of_one_alone, 3 * LARGE_PAGES + 9, false, false },
    };
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        all_at_rest(rows[n].large);
        at = rows[n].at;
        rows[n].op();
        count_unchanged(&vms[0]);
        if (dmm_scan_is_unchanged(vms[0].s, gfn_of(at)) != rows[n].same)
            fail_msg("%s: the region is %spassed by", rows[n].what, rows[n].same ? "not " : "");
        for (uint64_t g = 6 * LARGE_PAGES; g < PAGES; g += LARGE_PAGES)
            assert_true(dmm_scan_is_unchanged(vms[0].s, gfn_of(g)));
        host_audit();
        destroy(0);
    }
}

/* In place again: what was one mapping. */
static void test_reform_is_noticed(void **state)
{
    all_at_rest(true);
    assert_int_equal(dmm_break_large(vms[0].s, gfn_of(5 * LARGE_PAGES)), DMM_RESIZE_OK);
    for (unsigned n = 0; n < 4; n++)
        sweep(NULL);
    assert_true(dmm_scan_is_unchanged(vms[0].s, gfn_of(5 * LARGE_PAGES)));
    assert_int_equal(dmm_reform_large(vms[0].s, gfn_of(5 * LARGE_PAGES)), DMM_RESIZE_OK);
    assert_false(dmm_scan_is_unchanged(vms[0].s, gfn_of(5 * LARGE_PAGES)));
    destroy(0);
}

/* A page that the scan has read already is dirtied, and the log read, before the scan is over. The zero page in the region is where it looks twice. */
static void dirtied_behind_the_scan(void)
{
    cpu_write(&vms[0], 3, 77);
    read_log(&vms[0], vms[0].logged);
}

static void dirtied_and_still_in_the_log(void) { cpu_write(&vms[0], 3, 78); }

static void scan_with(void (*fn)(void))
{
    static struct dmm_scan scan;
    dmm_scan_forget_region(vms[0].s, gfn_of(0));
    dmm_scan_age(vms[0].s, gfn_of(0));
    dmm_scan_region(vms[0].s, gfn_of(0), &scan);
    while_scanning = fn;
    dmm_scan_region(vms[0].s, gfn_of(0), &scan);
    assert_null(while_scanning);
    assert_true(scan.at_rest);
}

static void test_dirtied_while_being_scanned(void **state)
{
    all_at_rest(false);
    cpu_write(&vms[0], 400, 0);
    for (unsigned n = 0; n < 4; n++)
        sweep(NULL);
    scan_with(dirtied_behind_the_scan);
    assert_false(dmm_scan_is_unchanged(vms[0].s, gfn_of(0)));
    scan_with(dirtied_and_still_in_the_log);
    assert_true(dmm_scan_is_unchanged(vms[0].s, gfn_of(0)));
    dmm_log_read(vms[0].s);
    assert_false(dmm_scan_is_unchanged(vms[0].s, gfn_of(0)));
    check_all();
    destroy(0);
}

/* ---- when it is worth it ---------------------------------------------------------------------------------------------------------------- */

static void test_who_writes_a_lot_does_without(void **state)
{
    all_at_rest(false);
    dmm_policy_set(dmm_policy_find("dedup"), "log_pages_max", 64);
    struct vm *v = &vms[0];
    sweep(NULL);
    assert_true(v->logs);
    for (unsigned n = 0; n < 3; n++) { /* 600 pages in two regions are less than 64 for each of the ten others; 1100 in three are more */
        for (uint64_t g = 0; g < 600; g++)
            cpu_write(v, 5 * LARGE_PAGES + g, 5000000 + n * PAGES + g);
        if (n == 2)
            for (uint64_t g = 0; g < 500; g++)
                cpu_write(v, 8 * LARGE_PAGES + g, 9000000 + g);
        assert_true(v->times_full > 10);
        sweep(NULL);
        assert_int_equal(v->logs, n < 2);
        assert_int_equal(counter("vms_that_log"), n < 2);
        assert_int_equal(mfn_valid(v->frame), n < 2);
    }
    assert_true(counter("log_full") > 10 && counter("log_pages") > 1800);
    assert_int_equal(count_unchanged(v), 0);
    for (unsigned n = 0; n < 3; n++) { /* it begins at half of that */
        for (uint64_t g = 0; g < 500; g++)
            cpu_write(v, 5 * LARGE_PAGES + g, 6000000 + n * PAGES + g);
        sweep(NULL);
        assert_false(v->logs);
    }
    sweep(NULL);
    sweep(NULL);
    assert_true(v->logs);
    check_all();
    destroy(0);
}

/* What was left alone because it broke so often is trusted again, step by step, though nothing changes there any more. */
static void test_trust_comes_back(void **state)
{
    const gfn_t gfn = gfn_of(3 * LARGE_PAGES);
    uint64_t content = 7000000;
    all_at_rest(false);
    for (unsigned n = 0; n < 5; n++) { /* each time it is left alone for twice as long, and then breaks again */
        for (uint64_t g = 0; g < 20; g++)
            cpu_write(&vms[0], gfn.v + 20 * n + g, ++content);
        for (unsigned rest = 0; rest <= 2u << n; rest++)
            sweep(NULL);
    }
    assert_int_equal(dmm_scan_get_note(vms[0].s, gfn) >> 8, 5);
    for (unsigned n = 0; n < 6; n++)
        sweep(NULL);
    assert_int_equal(dmm_scan_get_note(vms[0].s, gfn), 0);
    assert_int_equal(count_unchanged(&vms[0]), REGIONS);
    check_all();
    destroy(0);
}

/* What was at rest when logging ended tells nothing when it begins anew. */
static void test_an_end_forgets(void **state)
{
    all_at_rest(false);
    assert_true(dmm_log_set(vms[0].s, false));
    assert_int_equal(count_unchanged(&vms[0]), 0);
    cpu_write(&vms[0], 9, 77);
    assert_true(dmm_log_set(vms[0].s, true));
    assert_true(vms[0].logs); /* all its CPUs do, before anything is taken to be at rest */
    assert_int_equal(count_unchanged(&vms[0]), 0);
    for (unsigned n = 0; n < 4; n++)
        sweep(NULL);
    assert_int_equal(count_unchanged(&vms[0]), REGIONS);
    destroy(0);
}

static void test_cpus_without_a_log_are_left_in_peace(void **state)
{
    can_log = false;
    create(0, 0, false);
    for (uint64_t g = 0; g < PAGES; g++)
        cpu_write(&vms[0], g, 1000000 + g);
    unsigned flushes = vms[0].flushes;
    for (unsigned n = 0; n < 5; n++)
        sweep(NULL);
    assert_int_equal(vms[0].flushes, flushes);
    assert_int_equal(counter("vms_that_log"), 0);
    can_log = true;
    destroy(0);
}

/* Any number in a log: no RAM, beyond all memory, above the tables' reach. */
static void test_any_address(void **state)
{
    all_at_rest(false);
    for (unsigned n = 0; UINT64_MAX >> n >= PAGES * PAGE_SIZE; n++)
        dmm_log_written(vms[0].s, UINT64_MAX >> n);
    dmm_log_written(vms[0].s, PAGES * PAGE_SIZE);
    assert_int_equal(count_unchanged(&vms[0]), REGIONS);
    dmm_log_written(vms[0].s, PAGES * PAGE_SIZE - 1);
    assert_int_equal(count_unchanged(&vms[0]), REGIONS - 1);
    destroy(0);
}

static int setup(void **state)
{
    host_machine_init(300);
    format = p2m_format_fake;
    format.type_of = type_of_hooked;
    demand_policy_init();
    dedup_policy_init();
    dmm_group_of("one");
    return dedup_prepare() ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_change_is_noticed), cmocka_unit_test(test_reform_is_noticed), cmocka_unit_test(test_dirtied_while_being_scanned),
        cmocka_unit_test(test_who_writes_a_lot_does_without), cmocka_unit_test(test_trust_comes_back), cmocka_unit_test(test_an_end_forgets),
        cmocka_unit_test(test_cpus_without_a_log_are_left_in_peace), cmocka_unit_test(test_any_address),
        cmocka_unit_test(test_writes_between_sweeps), cmocka_unit_test(test_writes_during_sweeps),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
