/* TEST-SOURCES: vmx/log.c */
/*
 * A CPU that logs as the manual says (SDM 3, 29.3.6), and the log's readers beside it: each page is told of once, whoever reads, and none is lost when the
 * log is full, when it ends and begins anew, or when the vCPU has missed that.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "include/hv/dmm.h"
#include "vmx/vmx.h"

#define PROC2 0x14eau
#define PML BIT64(17)
#define FRAMES 4u

uint64_t host_vmcs[0x8000];
struct vmx_features vmx_feature_flags = {.pml = true, .proc2 = PROC2};
_Thread_local struct percpu host_percpu;
static struct vmx_vcpu s;
static struct vm vm;
static struct vcpu v = {.hvm = &s, .vm = &vm};
static uint64_t memory[FRAMES][512] __attribute__((aligned(4096)));
static bool used[FRAMES], no_frame;
static unsigned told[1 << 16], times_full, locks;

void spin_lock(struct spinlock *l) { assert_int_equal(locks++, 0), assert_ptr_equal(l, &s.log_lock); }
void spin_unlock(struct spinlock *l) { assert_int_equal(locks--, 1), assert_ptr_equal(l, &s.log_lock); }
void *mfn_to_hva(mfn_t m) { return memory[m.v]; }
mfn_t hva_to_mfn(const void *hva) { return mfn_of((uint64_t)((const uint64_t *)hva - memory[0]) / 512); }
void vmx_fetch(struct vcpu *c) { (void)c; }
void dmm_log_was_full(void) { times_full++; }

mfn_t frame_alloc(unsigned order, unsigned flags, enum frame_type type, struct dmm_space *owner)
{
    (void)flags, (void)owner;
    assert_true(order == 0 && type == FRAME_VM_STATE && !locks);
    for (unsigned n = 0; n < FRAMES && !no_frame; n++)
        if (!used[n]) {
            used[n] = true;
            memset(memory[n], 0x5a, sizeof(memory[n]));
            return mfn_of(n);
        }
    return INVALID_MFN;
}

void frame_free(mfn_t m, unsigned order)
{
    assert_true(order == 0 && used[m.v] && !locks);
    used[m.v] = false;
}

void dmm_log_written(struct dmm_space *d, uint64_t gpa)
{
    (void)d;
    assert_int_equal(gpa % PAGE_SIZE, 0);
    assert_true(gpa >> PAGE_SHIFT < ARRAY_SIZE(told));
    told[gpa >> PAGE_SHIFT]++;
}

static unsigned frames_used(void) { return (unsigned)used[0] + used[1] + used[2] + used[3]; }

static int fresh(void **state)
{
    (void)state;
    memset(host_vmcs, 0, sizeof(host_vmcs));
    memset(&s, 0, sizeof(s));
    memset(used, 0, sizeof(used));
    memset(told, 0, sizeof(told));
    host_vmcs[VMCS_PROC2_CONTROLS] = PROC2;
    s.ept_root = 0x7000;
    no_frame = false;
    times_full = 0;
    return 0;
}

/* ---- the CPU ------------------------------------------------------------------------------------------------------------------- */

/* As ops.c has it, after a flush. */
static void enter(void)
{
    if (s.ept_root != 0x7000) {
        s.ept_root = 0x7000;
        vmx_log_update(&s);
    }
}

/* The guest dirties a page; with bits of the address below a page, as some do. True: it was logged. */
static bool dirty(uint64_t gfn)
{
    if (!(host_vmcs[VMCS_PROC2_CONTROLS] & PML))
        return false;
    if (host_vmcs[VMCS_PML_INDEX] >= 512) {
        assert_int_equal(host_vmcs[VMCS_PML_INDEX], 0xffff);
        vmx_log_full(&v);
    }
    uint64_t n = host_vmcs[VMCS_PML_ADDRESS] / PAGE_SIZE;
    assert_true(n < FRAMES && used[n] && host_vmcs[VMCS_PML_ADDRESS] % PAGE_SIZE == 0);
    memory[n][host_vmcs[VMCS_PML_INDEX]] = gfn << PAGE_SHIFT | (rand() & 0xff8);
    host_vmcs[VMCS_PML_INDEX] = (uint16_t)(host_vmcs[VMCS_PML_INDEX] - 1);
    return true;
}

static void begin(void)
{
    assert_true(vmx_log_writes(&v, DMM_LOG_ALLOC));
    assert_true(vmx_log_writes(&v, DMM_LOG_BEGIN));
}

static void end(void)
{
    assert_true(vmx_log_writes(&v, DMM_LOG_END));
    enter();
    assert_true(vmx_log_writes(&v, DMM_LOG_FREE));
}

/* ---- tests ----------------------------------------------------------------------------------------------------------------------- */

static void it_begins_and_ends_with_an_entry(void **state)
{
    (void)state;
    enter();
    assert_false(dirty(1));
    begin();
    assert_int_equal(frames_used(), 1);
    assert_false(dirty(1));
    enter();
    assert_int_equal(host_vmcs[VMCS_PROC2_CONTROLS], PROC2 | PML);
    assert_int_equal(host_vmcs[VMCS_PML_INDEX], 511);
    assert_true(dirty(1));
    s.ept_root = 1; /* a fork: nothing of the log is to change */
    enter();
    assert_int_equal(host_vmcs[VMCS_PML_INDEX], 510);
    assert_true(dirty(2));
    vmx_log_writes(&v, DMM_LOG_END);
    assert_true(dirty(3));
    assert_int_equal(frames_used(), 1);
    enter();
    assert_int_equal(host_vmcs[VMCS_PROC2_CONTROLS], PROC2);
    assert_false(dirty(4));
    vmx_log_writes(&v, DMM_LOG_READ);
    assert_true(told[1] == 1 && told[2] == 1 && told[3] == 1 && !told[4]);
    vmx_log_writes(&v, DMM_LOG_FREE);
    assert_int_equal(frames_used(), 0);
    vmx_log_writes(&v, DMM_LOG_FREE); /* as for a vCPU that had got none */
    vmx_log_writes(&v, DMM_LOG_READ);
}

static void each_page_is_told_of_once(void **state)
{
    static unsigned logged[ARRAY_SIZE(told)];
    (void)state;
    srand(7);
    memset(logged, 0, sizeof(logged));
    begin();
    enter();
    for (unsigned n = 0; n < 200000; n++) {
        uint64_t gfn = (uint64_t)rand() % ARRAY_SIZE(told);
        assert_true(dirty(gfn));
        logged[gfn]++;
        if (rand() % (n / 20000 * 100 + 2) == 0) { /* now and then, up to some times for each log that is full, and less */
            static uint64_t before[512];
            memcpy(before, memory[0], sizeof(before));
            vmx_log_writes(&v, DMM_LOG_READ);
            assert_memory_equal(before, memory[0], sizeof(before)); /* the vCPU may be in the guest */
            if (n % 50 == 0)
                assert_memory_equal(told, logged, sizeof(told));
        }
    }
    assert_true(times_full >= 200000 / 512 - 1 && times_full <= 200000 / 512);
    vmx_log_writes(&v, DMM_LOG_READ);
    assert_memory_equal(told, logged, sizeof(told));
    end();
}

/* It was parked while logging ended and began again: its index is of the log that is gone. */
static void a_vcpu_that_missed_the_end(void **state)
{
    (void)state;
    for (unsigned elsewhere = 0; elsewhere < 2; elsewhere++) {
        begin();
        enter();
        for (uint64_t gfn = 0; gfn < 300; gfn++)
            dirty(gfn);
        vmx_log_writes(&v, DMM_LOG_END);
        vmx_log_writes(&v, DMM_LOG_FREE);
        used[0] = elsewhere; /* the same frame again, or another */
        begin();
        used[0] |= !elsewhere;
        enter();
        memset(told, 0, sizeof(told));
        assert_true(dirty(1000));
        vmx_log_writes(&v, DMM_LOG_READ);
        assert_int_equal(told[1000], 1);
        assert_int_equal(told[1], 0);
        end();
        used[0] = false;
    }
}

/* Between its exit because the log is full and what it does then, the log may go, or another come. */
static void full_when_it_is_gone(void **state)
{
    (void)state;
    begin();
    enter();
    for (uint64_t gfn = 0; gfn < 512; gfn++)
        dirty(gfn);
    vmx_log_writes(&v, DMM_LOG_END);
    vmx_log_writes(&v, DMM_LOG_FREE);
    vmx_log_full(&v);
    assert_int_equal(told[0] + told[511], 0);
    begin();
    vmx_log_full(&v);
    assert_int_equal(told[0] + told[511], 0);
    enter();
    assert_true(dirty(5));
    vmx_log_writes(&v, DMM_LOG_READ);
    assert_int_equal(told[5], 1);
    vmx_log_free(&s); /* the VM ends */
    assert_int_equal(frames_used(), 0);
}

/* The vCPU stores the root that it has found at the moment when somebody wants it to look: it looks all the same. */
static void a_wish_at_the_last_moment(void **state)
{
    (void)state;
    begin();
    s.ept_root = 0x7000; /* the wish for that is lost */
    vmx_log_update(&s);  /* but it was on its way to here */
    assert_int_equal(host_vmcs[VMCS_PROC2_CONTROLS], PROC2 | PML);
}

static void without_the_feature_or_a_frame(void **state)
{
    (void)state;
    no_frame = true;
    assert_false(vmx_log_writes(&v, DMM_LOG_ALLOC));
    no_frame = false;
    vmx_feature_flags.pml = false;
    assert_false(vmx_log_writes(&v, DMM_LOG_ALLOC));
    vmx_feature_flags.pml = true;
    assert_int_equal(frames_used(), 0);
    vmx_log_writes(&v, DMM_LOG_FREE);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup(f, fresh)
    const struct CMUnitTest tests[] = {
        TEST(it_begins_and_ends_with_an_entry), TEST(each_page_is_told_of_once), TEST(a_vcpu_that_missed_the_end), TEST(full_when_it_is_gone),
        TEST(a_wish_at_the_last_moment), TEST(without_the_feature_or_a_frame),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
