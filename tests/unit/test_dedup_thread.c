/* The scanner's thread: its budget, its pauses, what ends them, and that it stops when it is told to.
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

static void run_thread(uint64_t ns, void (*what)(void))
{
    meanwhile = what;
    waited_ns = 0;
    thread_end_ns = now_ns + ns;
    if (!setjmp(thread_end))
        dedup_thread(NULL);
    thread_end_ns = 0;
    meanwhile = NULL;
}

static void write_somewhere(void)
{
    static uint64_t content = 7000000;
    for (unsigned n = 0; n < 20; n++)
        put(&vms[0], host_random(PAGES), ++content);
}

/* Whatever there is to do, it takes no more than its share of a CPU, nor hashes more than it may. */
static void test_budget(void **state)
{
    struct dmm_policy *p = dmm_policy_find("dedup");
    create(0, 0, false);
    for (uint64_t g = 0; g < PAGES; g++)
        put(&vms[0], g, 5000000 + g);
    dmm_policy_set(p, "idle_seconds", 0);
    work_ns_max = 60000000; /* a step is long */
    for (unsigned percent = 5; percent <= 50; percent += 45) {
        dmm_policy_set(p, "cpu_percent", percent);
        dmm_policy_set(p, "pages_per_second", 100000000);
        uint64_t cpu = counter("cpu_ms"), seconds = 200;
        run_thread(seconds * 1000000000, write_somewhere);
        cpu = counter("cpu_ms") - cpu;
        assert_true(cpu <= seconds * 10 * percent + 60);
        assert_true(cpu >= seconds * 10 * percent / 3); /* and does use it: there is always something to look at */
    }
    work_ns_max = 1000;
    dmm_policy_set(p, "cpu_percent", 100);
    dmm_policy_set(p, "pages_per_second", 500);
    uint64_t hashed = counter("pages_hashed");
    run_thread(UINT64_C(20000000000), write_somewhere);
    hashed = counter("pages_hashed") - hashed;
    if (hashed > 20 * 500 + 512 || hashed < 20 * 500 / 3)
        fail_msg("%lu pages hashed in 20 s", hashed);
    dmm_policy_set(p, "idle_seconds", 10);
    dmm_policy_set(p, "cpu_percent", 5);
    dmm_policy_set(p, "pages_per_second", 200000);
    check_all();
    destroy_all();
}

static uint64_t off_at_ns, regions_when_off, waiting_users;
static void switch_off(void)
{
    write_somewhere();
    waiting_users += vms[0].s->users;
    assert_int_equal(share_limbo_count(), 0); /* it never sleeps on frames, nor with a space in its hands */
    if (now_ns >= off_at_ns && dmm_policy_find("dedup")->enabled) {
        dmm_policy_enable(dmm_policy_find("dedup"), false);
        regions_when_off = counter("regions");
    }
}

static void test_stops_when_switched_off(void **state)
{
    create(0, 0, false);
    for (unsigned n = 0; n < 20; n++) {
        off_at_ns = now_ns + 1 + host_random(3000000000);
        run_thread(UINT64_C(8000000000), switch_off);
        assert_false(dmm_policy_find("dedup")->enabled);
        assert_int_equal(counter("regions"), regions_when_off);
        dmm_policy_enable(dmm_policy_find("dedup"), true);
    }
    assert_int_equal(waiting_users, 0);
    check_all();
    destroy_all();
}

static uint64_t act_at_ns, seen_at_ns, sweeps_before;
static bool acted;
static void (*act)(void);
static void act_then_watch(void)
{
    if (!acted && now_ns >= act_at_ns) {
        acted = true;
        sweeps_before = counter("sweeps");
        act();
    } else if (acted && !seen_at_ns && counter("sweeps") > sweeps_before) {
        seen_at_ns = now_ns;
    }
}

/* Milliseconds from what `fn` does, in the midst of a long pause, to the end of the next sweep. */
static uint64_t time_to_sweep_after(void (*fn)(void))
{
    run_thread(UINT64_C(5000000000), NULL); /* nothing is left to find */
    act = fn;
    acted = false;
    seen_at_ns = 0;
    act_at_ns = now_ns + UINT64_C(30000000000);
    run_thread(UINT64_C(500000000000), act_then_watch);
    assert_true(seen_at_ns);
    return (seen_at_ns - act_at_ns) / 1000000;
}

static void do_nothing(void) { }
static void memory_gets_short(void) { short_of_memory(true); }
static void vm_is_made(void) { create(1, 0, false); }

static void test_pauses(void **state)
{
    short_of_memory(false);
    dmm_policy_set(dmm_policy_find("dedup"), "idle_seconds", 300);
    create(0, 0, false);
    for (uint64_t g = 0; g < PAGES; g++)
        put(&vms[0], g, 5000000 + g);
    assert_true(time_to_sweep_after(do_nothing) > 200000);
    assert_true(time_to_sweep_after(vm_is_made) < 3000);
    assert_true(time_to_sweep_after(memory_gets_short) < 3000);
    dmm_policy_set(dmm_policy_find("dedup"), "idle_seconds", 10);
    short_of_memory(false);
    destroy_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_budget), cmocka_unit_test(test_stops_when_switched_off), cmocka_unit_test(test_pauses),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
