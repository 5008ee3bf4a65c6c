/* The scanner's tests: VMs whose contents are known, a simulated time, and what the policy counts. For test_dedup*.c. */
#ifndef HV_TESTS_DEDUP_VMS_H
#define HV_TESTS_DEDUP_VMS_H

/* What the policies need of core and x86, none of which a test has. Time is simulated: it passes when it is asked for, as if work had been done,
 * and while somebody waits; then the test gets its turn every millisecond, and ends the thread, which itself never does. */
static uint64_t now_ns, work_ns_max = 1000, waited_ns, random_seed = UINT64_C(0x123456789abcdef1);
static void (*meanwhile)(void);
static jmp_buf thread_end;
static uint64_t thread_end_ns;

UNUSED static void wait_a_little(uint64_t ns)
{
    now_ns += ns;
    waited_ns += ns;
    if (meanwhile)
        meanwhile();
    if (thread_end_ns && now_ns >= thread_end_ns)
        longjmp(thread_end, 1);
}

uint64_t time_ns(void) { return now_ns += 1 + host_random(work_ns_max); }
void thread_sleep_ns(uint64_t ns) { wait_a_little(ns); }
enum wait_result waitq_wait(struct waitq *q, bool (*cond)(void *), void *arg, uint64_t timeout_ns)
{
    for (uint64_t left = timeout_ns; !cond(arg); left -= MIN(left, UINT64_C(1000000))) {
        if (!left)
            return WAIT_TIMEOUT;
        wait_a_little(MIN(left, UINT64_C(1000000)));
    }
    return WAIT_DONE;
}
uint64_t cpu_random(void) { return random_seed; }

#define VMS 4u
#define PAGES 3072u
static struct vm { struct dmm_space *s; unsigned group; uint64_t content[PAGES]; } vms[VMS];

#include "tests/unit/fake/dedup_host.h"

UNUSED static void put(struct vm *v, uint64_t g, uint64_t content)
{
    assert_int_equal(dmm_fault(v->s, gfn_of(g), DMM_WRITE), DMM_FAULT_RETRY);
    host_write(v, g, content);
}

UNUSED static void create(unsigned k, unsigned group, bool large)
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

UNUSED static void destroy_all(void)
{
    for (unsigned k = 0; k < VMS; k++)
        if (vms[k].s) {
            dmm_space_destroy(vms[k].s);
            vms[k].s = NULL;
        }
    host_audit();
    assert_int_equal(frame_count(FRAME_GUEST) + frame_count(FRAME_SHARED), 0);
}

UNUSED static void sweep(void)
{
    while (dedup_step() != DEDUP_STEP_SWEPT)
        if (host_random(20) == 0)
            host_audit();
    check_all();
}

UNUSED static uint64_t frames_used(void) { return frame_count(FRAME_GUEST) + frame_count(FRAME_SHARED); }

static uint64_t counter_value;
static const char *counter_name;
UNUSED static void pick_counter(const char *key, uint64_t value, void *arg)
{
    if (!strcmp(key, counter_name))
        counter_value = value;
}
UNUSED static uint64_t counter(const char *name)
{
    struct dmm_policy *p = dmm_policy_find("dedup");
    counter_name = name;
    counter_value = UINT64_MAX;
    p->show(p, pick_counter, NULL);
    assert_true(counter_value != UINT64_MAX);
    return counter_value;
}

UNUSED static uint64_t large_pages(unsigned k)
{
    struct dmm_usage u;
    dmm_space_usage(vms[k].s, &u);
    return u.resident_large;
}

/* Region 0 of each VM holds `equal` pages that the other's region 0 holds too; the rest is like no other. */
UNUSED static void two_with_equal_pages(bool large0, bool large1, unsigned equal)
{
    create(0, 1, large0);
    for (uint64_t g = 0; g < 512; g++)
        put(&vms[0], g, 10000 + g);
    create(1, 1, large1);
    for (uint64_t g = 0; g < 512; g++)
        put(&vms[1], g, g < equal ? 10000 + g : 20000 + g);
    assert_int_equal(large_pages(0), large0 ? 512 : 0);
    assert_int_equal(large_pages(1), large1 ? 512 : 0);
}

UNUSED static void short_of_memory(bool is) { dmm_policy_set(dmm_policy_find("dedup"), "short_percent", is ? 100 : 0); }

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

#endif
