/* TEST-SOURCES: vmx/msr.c vmx/inject.c */
/*
 * What a VM entry would check (SDM 3, 27.2.1.3 and 27.3.1), written down a second time as a judge: whatever registers and events come in
 * from above, the VMCS that goes to the CPU must pass. And what comes out must be what went in, but for bits that no CPU holds.
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
#include "x86/idt.h"

#define CR4_FIXED0 0x2000
#define CR4_FIXED1 0x3727ff

uint64_t host_vmcs[0x8000];
struct vmx_features vmx_feature_flags = {
    .cr0_fixed0 = 0x20, .cr0_fixed1 = 0xffffffff, .cr4_fixed0 = CR4_FIXED0, .cr4_fixed1 = CR4_FIXED1, .preemption_timer = true, .timer_slice = 1000,
};
_Thread_local struct percpu host_percpu;
static struct vmx_cpu cpu;
static struct vmx_vcpu s;
static struct vm vm;
static struct vcpu v = {.hvm = &s, .vm = &vm};
static struct cpu_info info = {.phys_bits = 40};
static uint64_t tables[4];
static enum dmm_fault_result read_result;
static uint64_t read_at;
static unsigned waits;

const struct cpu_info *cpu_info(void) { return &info; }
void vmx_fetch(struct vcpu *c) { (void)c; }
void dmm_wait(struct dmm_space *d, gfn_t g, uint64_t ns) { (void)d, (void)g, (void)ns; waits++; }
void dmm_wait_memory(struct dmm_space *d, uint64_t ns) { (void)d, (void)ns; waits++; }
enum dmm_fault_result dmm_read_guest(struct dmm_space *d, uint64_t gpa, void *buf, size_t len)
{
    (void)d;
    read_at = gpa;
    memcpy(buf, tables, len);
    return read_result;
}

static uint64_t random64(void) { return (uint64_t)rand() << 42 ^ (uint64_t)rand() << 21 ^ (uint64_t)rand(); }
static bool canonical(uint64_t a) { return (uint64_t)((int64_t)(a << 16) >> 16) == a; }

static int fresh(void **state)
{
    (void)state;
    memset(host_vmcs, 0, sizeof(host_vmcs));
    memset(&s, 0, sizeof(s));
    s.entry_controls = 0x1000;
    host_percpu.slot[PERCPU_HVM] = &cpu;
    cpu.current = &s;
    v.rflags = 2;
    waits = 0;
    return 0;
}

/* ---- the judge ------------------------------------------------------------------------------------------------------------- */

static void judge_segment(unsigned n)
{
    uint64_t rights = host_vmcs[VMCS_GUEST_ES_RIGHTS + 2 * n], limit = host_vmcs[VMCS_GUEST_ES_LIMIT + 2 * n], base = host_vmcs[VMCS_GUEST_ES_BASE + 2 * n];
    bool usable = !(rights & BIT64(16));
    assert_true(n != SEG_TR || usable);
    if (n >= SEG_FS)
        assert_true(canonical(base));
    else if (usable || n == SEG_CS)
        assert_int_equal(base >> 32, 0);
    if (n >= SEG_LDTR)
        assert_false(host_vmcs[VMCS_GUEST_ES_SELECTOR + 2 * n] & 4);
    if (!usable)
        return;
    assert_true(rights & 0x80);
    assert_int_equal(rights & ~UINT64_C(0xf0ff), 0);
    assert_false((limit & 0xfff) != 0xfff && (rights & 0x8000));
    assert_false(limit >> 20 && !(rights & 0x8000));
    if (n < SEG_LDTR)
        assert_int_equal(rights & 0x11, 0x11); /* code or data, accessed */
    if (n == SEG_LDTR)
        assert_int_equal(rights & 0x1f, 2);
    if (n == SEG_TR)
        assert_true((rights & 0x1f) == 11 || ((rights & 0x1f) == 3 && !(s.entry_controls & VMX_ENTRY_GUEST_IA32E)));
}

static void judge_control_registers(void)
{
    uint64_t cr0 = host_vmcs[VMCS_GUEST_CR0], cr4 = host_vmcs[VMCS_GUEST_CR4], efer = host_vmcs[VMCS_GUEST_EFER];
    assert_true(cr0 & CR0_NE);
    assert_false(cr0 & (CR0_CD | CR0_NW));
    assert_int_equal(cr4 & CR4_FIXED0, CR4_FIXED0);
    assert_int_equal(cr4 & ~(uint64_t)CR4_FIXED1, 0);
    assert_int_equal(!!(efer & EFER_LMA), !!(host_vmcs[VMCS_ENTRY_CONTROLS] & VMX_ENTRY_GUEST_IA32E));
    assert_int_equal(host_vmcs[VMCS_GUEST_DR7] >> 32, 0);
    assert_true(canonical(host_vmcs[VMCS_GUEST_SYSENTER_ESP]) && canonical(host_vmcs[VMCS_GUEST_SYSENTER_EIP]));
    assert_true(canonical(host_vmcs[VMCS_GUEST_GDTR_BASE]) && canonical(host_vmcs[VMCS_GUEST_IDTR_BASE]));
    assert_int_equal((host_vmcs[VMCS_GUEST_GDTR_LIMIT] | host_vmcs[VMCS_GUEST_IDTR_LIMIT]) >> 16, 0);
}

static void judge_event(void)
{
    uint32_t e = (uint32_t)host_vmcs[VMCS_ENTRY_INTERRUPTION], shadow = (uint32_t)host_vmcs[VMCS_INTERRUPTIBILITY];
    unsigned type = e >> 8 & 7, vector = e & 0xff;
    if ((shadow & 3) && (v.rflags & RFLAGS_TF))
        assert_true(host_vmcs[VMCS_PENDING_DEBUG] & BIT64(14));
    if ((shadow & 3) && !(v.rflags & RFLAGS_TF))
        assert_false(host_vmcs[VMCS_PENDING_DEBUG] & BIT64(14));
    if (!(e & BIT64(31)))
        return;
    assert_int_equal(e & 0x7ffff000, 0);
    assert_true(type != 1 && type != 7);
    assert_true(type != 2 || vector == 2);
    assert_true(type != 3 || vector < 32);
    bool may = (s.cr0 & CR0_PE) && type == 3 && vector < 32 && (0x27d00u >> vector & 1);
    assert_int_equal(!!(e & BIT64(11)), may);
    if (may)
        assert_int_equal(host_vmcs[VMCS_ENTRY_ERROR_CODE] >> 16, 0);
    if (type >= 4)
        assert_true(host_vmcs[VMCS_ENTRY_INSTRUCTION_LENGTH] >= 1 && host_vmcs[VMCS_ENTRY_INSTRUCTION_LENGTH] <= 15);
    if (type == 0)
        assert_true((v.rflags & RFLAGS_IF) && !(shadow & 3));
    if (type == 2)
        assert_false(shadow & 10);
}

/* ---- registers ---------------------------------------------------------------------------------------------------------------- */

static struct vcpu_sregs random_sregs(void)
{
    struct vcpu_sregs r;
    memset(&r, 0, sizeof(r));
    for (unsigned n = 0; n < SEG_COUNT; n++)
        r.seg[n] = (struct vcpu_seg){.selector = (uint16_t)rand(), .attr = (uint16_t)(rand() & 0x8fff), .limit = (uint32_t)random64(),
                                     .base = random64()};
    r.gdtr.base = random64();
    r.gdtr.limit = r.idtr.limit = (uint32_t)random64();
    r.idtr.base = random64();
    r.cr0 = random64() & 0xe005003f;
    r.cr2 = random64();
    r.cr3 = random64() & GENMASK64(39, 0);
    r.cr4 = random64() & 0x3707ff;
    r.cr8 = (uint64_t)rand() & 15;
    r.efer = random64() & (EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE);
    r.dr6 = 0xffff0ff0;
    r.dr7 = random64();
    r.pat = 0x0007040600070406;
    r.star = random64();
    r.lstar = r.cstar = r.kernel_gs_base = r.sysenter_esp = r.sysenter_eip = random64();
    r.sfmask = random64();
    r.sysenter_cs = random64();
    return r;
}

static void any_registers_can_be_entered(void **state)
{
    (void)state;
    srand(2);
    for (unsigned n = 0; n < 50000; n++) {
        struct vcpu_sregs in = random_sregs();
        vmx_set_sregs(&v, &in);
        for (unsigned k = 0; k < SEG_COUNT; k++)
            judge_segment(k);
        judge_control_registers();
        assert_true(s.flush_linear && s.pdptes_stale);
        assert_true(canonical(s.lazy[VMX_LAZY_LSTAR]) && canonical(s.lazy[VMX_LAZY_KERNEL_GS_BASE]) && !(s.lazy[VMX_LAZY_SFMASK] >> 32));
        vmx_set_reg(&v, VCPU_EFER, in.efer ^ EFER_LMA); /* as a guest that enters or leaves long mode */
        judge_segment(SEG_TR);
        judge_control_registers();
    }
}

static void what_goes_in_comes_out(void **state)
{
    (void)state;
    srand(3);
    for (unsigned n = 0; n < 10000; n++) {
        struct vcpu_sregs in = random_sregs(), out;
        for (unsigned k = 0; k < SEG_COUNT; k++)
            in.seg[k] = (struct vcpu_seg){.selector = (uint16_t)(rand() & ~4), .attr = k == SEG_TR ? 0x8b : k == SEG_LDTR ? 0x82 : 0xc93 | (rand() & 0x60),
                                          .limit = 0xffffffff, .base = k <= SEG_DS ? (uint32_t)random64() : (uint64_t)rand()};
        in.seg[SEG_TR].limit = in.seg[SEG_LDTR].limit = 0xffff;
        in.gdtr.base = in.idtr.base = in.lstar = in.cstar = in.kernel_gs_base = in.sysenter_esp = in.sysenter_eip = 0xffff800000000000 | (uint64_t)rand();
        in.gdtr.limit &= 0xffff;
        in.idtr.limit &= 0xffff;
        in.dr7 = (uint32_t)in.dr7;
        in.sfmask = (uint32_t)in.sfmask;
        in.sysenter_cs = (uint32_t)in.sysenter_cs;
        in.cr0 |= CR0_ET;
        vmx_set_sregs(&v, &in);
        vmx_get_sregs(&v, &out);
        assert_memory_equal(&in, &out, sizeof(in));
        assert_int_equal(vmx_cpl(&v), in.seg[SEG_SS].attr >> 5 & 3);
        assert_int_equal(host_vmcs[VMCS_CR0_SHADOW], in.cr0);
        host_vmcs[VMCS_GUEST_CR0] ^= CR0_TS; /* the guest changes what it owns */
        host_vmcs[VMCS_GUEST_CR4] ^= CR4_PGE;
        assert_int_equal(vmx_get_reg(&v, VCPU_CR0), in.cr0 ^ CR0_TS);
        assert_int_equal(vmx_get_reg(&v, VCPU_CR4), in.cr4 ^ CR4_PGE);
    }
}

static void cr8_with_and_without_a_tpr_shadow(void **state)
{
    static uint8_t page[4096];
    (void)state;
    vmx_set_cr8(&v, 0x1f);
    assert_int_equal(vmx_get_cr8(&v), 15);
    s.apic_page = page;
    vmx_set_cr8(&v, 9);
    assert_int_equal(page[0x80], 0x90);
    page[0x80] = 0x50;
    assert_int_equal(vmx_get_cr8(&v), 5);
    vmx_set_tpr_alarm(&v, 5);
    assert_int_equal(host_vmcs[VMCS_TPR_THRESHOLD], 5);
    vmx_set_cr8(&v, 6);
    assert_int_equal(host_vmcs[VMCS_TPR_THRESHOLD], 5);
    vmx_set_cr8(&v, 4); /* a threshold above the shadow would have the entry refused (27.2.1.1) */
    assert_int_equal(host_vmcs[VMCS_TPR_THRESHOLD], 0);
}

static void page_directory_pointers_are_loaded_when_the_mode_has_them(void **state)
{
    (void)state;
    s.pdptes_stale = true;
    s.cr0 = CR0_PE;
    s.cr4 = CR4_PAE;
    host_vmcs[VMCS_GUEST_CR3] = 0xfff000003fe0; /* PAE ignores what is above 4 GiB */
    read_at = 1;
    assert_true(vmx_load_pdptes(&v)); /* no paging */
    assert_int_equal(read_at, 1);
    s.pdptes_stale = true;
    s.cr0 |= CR0_PG;
    tables[0] = 0x1001;
    tables[1] = 0x2001 | BIT64(40); /* beyond the physical width */
    tables[2] = 0x3000;
    tables[3] = 0x4003; /* reserved bit */
    read_result = DMM_FAULT_BLOCKED;
    assert_false(vmx_load_pdptes(&v));
    assert_true(s.pdptes_stale && waits == 1);
    read_result = DMM_FAULT_RETRY;
    assert_true(vmx_load_pdptes(&v));
    assert_int_equal(read_at, 0x3fe0);
    assert_int_equal(host_vmcs[VMCS_GUEST_PDPTE0], 0x1001);
    assert_int_equal(host_vmcs[VMCS_GUEST_PDPTE1] | host_vmcs[VMCS_GUEST_PDPTE2] | host_vmcs[VMCS_GUEST_PDPTE3], 0);
    assert_false(s.pdptes_stale);
}

static void the_msr_bitmap_lets_through_just_what_is_the_guests(void **state)
{
    static uint8_t map[4096];
    static const uint32_t own[] = {0x174, 0x175, 0x176, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102};
    unsigned clear = 0;
    (void)state;
    vmx_msr_bitmap_fill(map);
    for (unsigned n = 0; n < sizeof(own) / sizeof(own[0]); n++) {
        unsigned bit = (own[n] & 0x1fff) + (own[n] >> 31) * 8192;
        assert_false(map[bit / 8] & 1 << bit % 8);
        assert_false(map[2048 + bit / 8] & 1 << bit % 8);
    }
    for (unsigned n = 0; n < sizeof(map); n++)
        clear += 8 - (unsigned)__builtin_popcount(map[n]);
    assert_int_equal(clear, 20);
}

/* ---- events -------------------------------------------------------------------------------------------------------------------- */

static void enter(void)
{
    host_vmcs[VMCS_ENTRY_INTERRUPTION] = 0;
    vmx_inject_entering(&v);
    judge_event();
}

static void any_event_can_be_entered(void **state)
{
    (void)state;
    srand(4);
    for (unsigned n = 0; n < 200000; n++) {
        s.cr0 = rand() & 1 ? CR0_PE : 0;
        s.event = 0;
        s.rflags = 2 | (rand() & (RFLAGS_TF | RFLAGS_IF));
        v.rflags = s.rflags ^ (rand() % 4 ? 0 : RFLAGS_TF);
        unsigned shadow = (unsigned)rand() % 3;
        host_vmcs[VMCS_INTERRUPTIBILITY] = shadow | (rand() & 8);
        bool by_debug = rand() % 4 == 0; /* an exit by #DB leaves nothing pending */
        host_vmcs[VMCS_PENDING_DEBUG] = shadow && (s.rflags & RFLAGS_TF) && !by_debug ? BIT64(14) : 0; /* as another exit leaves it */
        struct vm_event ev = {.type = (enum vm_event_type)(rand() % 5), .vector = (uint8_t)rand(), .has_error = rand() & 1,
                              .error_code = (uint32_t)rand(), .insn_len = (uint8_t)(rand() % 16), .cr2 = random64()};
        if (ev.type == VM_EVENT_EXCEPTION)
            ev.vector %= 32;
        if (ev.type == VM_EVENT_EXCEPTION && (0x27d00u >> ev.vector & 1))
            ev.has_error = true;
        if ((ev.type == VM_EVENT_INTR && !vmx_can_inject_intr(&v)) || (ev.type == VM_EVENT_NMI && vmx_nmi_blocked(&v)))
            continue; /* as vm/ does: it asks for a window */
        assert_true(vmx_inject(&v, &ev));
        assert_int_equal(vmx_event_pending(&v), ev.type != VM_EVENT_NONE);
        assert_int_equal(vmx_inject(&v, &ev), ev.type == VM_EVENT_NONE); /* one at a time */
        if (ev.type == VM_EVENT_EXCEPTION && ev.vector == X86_PF)
            assert_int_equal(s.cr2, ev.cr2);
        enter();
    }
}

static void a_delivery_that_ended_in_an_exit_is_repeated(void **state)
{
    static const struct { uint32_t event; unsigned length; } rows[] = {
        {0x80000031, 0}, {0x80000202, 0}, {0x80000b0e, 0}, {0x80000480, 2}, {0x80000501, 1}, {0x80000603, 1}, {0x80000306, 0},
    };
    (void)state;
    s.cr0 = CR0_PE;
    v.rflags = s.rflags = 2 | RFLAGS_IF;
    for (size_t n = 0; n < sizeof(rows) / sizeof(rows[0]); n++) {
        s.reason = VMX_REASON_EPT_VIOLATION;
        host_vmcs[VMCS_IDT_VECTORING] = rows[n].event | 0x1000; /* bit 12 is undefined */
        host_vmcs[VMCS_IDT_VECTORING_ERROR_CODE] = 6;
        host_vmcs[VMCS_EXIT_INSTRUCTION_LENGTH] = rows[n].length;
        host_vmcs[VMCS_INTERRUPTIBILITY] = (rows[n].event & 0x700) == 0x200 ? 8 : 0; /* an NMI blocks itself */
        vmx_inject_exited(&v);
        assert_true(vmx_event_pending(&v));
        assert_false(vmx_can_inject_intr(&v));
        enter();
        assert_int_equal(host_vmcs[VMCS_ENTRY_INTERRUPTION], rows[n].event);
        if (rows[n].event & 0x800)
            assert_int_equal(host_vmcs[VMCS_ENTRY_ERROR_CODE], 6);
        if (rows[n].length)
            assert_int_equal(host_vmcs[VMCS_ENTRY_INSTRUCTION_LENGTH], rows[n].length);
    }
    s.reason = VMX_REASON_TRIPLE_FAULT;
    vmx_inject_exited(&v);
    assert_false(vmx_event_pending(&v));
    vmx_inject(&v, &(struct vm_event){.type = VM_EVENT_EXCEPTION, .vector = X86_UD});
    s.reason = VMX_REASON_INVALID_GUEST_STATE | VMX_REASON_ENTRY_FAILURE; /* nothing was delivered */
    vmx_inject_exited(&v);
    assert_true(vmx_event_pending(&v));
    s.reason = VMX_REASON_HLT;
    host_vmcs[VMCS_IDT_VECTORING] = 0;
    vmx_inject_exited(&v);
    assert_false(vmx_event_pending(&v));
}

static void an_iret_that_faulted_has_not_unblocked_nmis(void **state)
{
    (void)state;
    for (unsigned n = 0; n < 6; n++) { /* 4, 5: its stack's page was to be logged, and the log was full */
        host_vmcs[VMCS_INTERRUPTIBILITY] = 0;
        host_vmcs[VMCS_EXIT_QUALIFICATION] = n == 0 || n == 4 ? BIT64(12) : 0;
        host_vmcs[VMCS_EXIT_INTERRUPTION] = n == 1 ? 0x80001b11 : 0x80001308; /* #AC; #DF says nothing of IRET */
        s.reason = n == 0 || n == 3 ? VMX_REASON_EPT_VIOLATION : n >= 4 ? VMX_REASON_PML_FULL : VMX_REASON_EXCEPTION_OR_NMI;
        vmx_inject_exited(&v);
        assert_int_equal(vmx_nmi_blocked(&v), n < 2 || n == 4);
    }
}

static void windows_and_shadow(void **state)
{
    (void)state;
    vmx_request_irq_window(&v, true);
    assert_int_equal(host_vmcs[VMCS_PROC_CONTROLS], 1u << 2);
    vmx_request_nmi_window(&v, true);
    vmx_request_irq_window(&v, false);
    assert_int_equal(host_vmcs[VMCS_PROC_CONTROLS], 1u << 22);
    vmx_request_nmi_window(&v, false);
    assert_int_equal(host_vmcs[VMCS_PROC_CONTROLS], 0);
    host_vmcs[VMCS_INTERRUPTIBILITY] = 9;
    v.rflags = 0x202;
    assert_false(vmx_can_inject_intr(&v));
    vmx_clear_interrupt_shadow(&v);
    assert_int_equal(host_vmcs[VMCS_INTERRUPTIBILITY], 8);
    assert_true(vmx_can_inject_intr(&v));
}

static void a_guest_with_interrupts_off_is_bounded(void **state)
{
    (void)state;
    v.rflags = 2;
    enter();
    assert_int_equal(host_vmcs[VMCS_PREEMPTION_TIMER], 1000);
    v.rflags = 0x202;
    enter();
    assert_int_equal(host_vmcs[VMCS_PREEMPTION_TIMER], UINT32_MAX);
}

/* What the next entry is given must not depend on whose VMCS it is, nor on what that held before. */
static void a_copy_is_entered_like_the_original(void **state)
{
    (void)state;
    srand(6);
    for (unsigned n = 0; n < 20000; n++) {
        struct vcpu_sregs sregs = random_sregs(), again;
        struct hvm_saved saved, saved_again;
        memset(&saved, 0, sizeof(saved)), memset(&saved_again, 0, sizeof(saved_again));
        vmx_set_sregs(&v, &sregs);
        vmx_get_sregs(&v, &sregs);
        s.rflags = 2 | (rand() & (RFLAGS_TF | RFLAGS_IF));
        v.rflags = s.rflags ^ (rand() % 4 ? 0 : RFLAGS_TF);
        unsigned shadow = (unsigned)rand() % 3;
        host_vmcs[VMCS_INTERRUPTIBILITY] = shadow | (rand() & 8);
        host_vmcs[VMCS_PENDING_DEBUG] = shadow && (s.rflags & RFLAGS_TF) ? BIT64(14) : 0;
        s.pdptes_stale = rand() & 1;
        for (unsigned k = 0; k < 4; k++)
            host_vmcs[VMCS_GUEST_PDPTE0 + 2 * k] = random64();
        s.event = 0;
        struct vm_event ev = {.type = rand() & 1 ? VM_EVENT_EXCEPTION : VM_EVENT_NONE, .vector = X86_GP, .has_error = true, .error_code = (uint32_t)rand()};
        assert_true(vmx_inject(&v, &ev));
        vmx_save(&v, &saved);

        uint64_t vmcs[0x8000];
        struct vmx_vcpu mine = s;
        memcpy(vmcs, host_vmcs, sizeof(vmcs));
        vmx_inject_entering(&v); /* the original goes on */
        uint64_t event = host_vmcs[VMCS_ENTRY_INTERRUPTION], error = host_vmcs[VMCS_ENTRY_ERROR_CODE], debug = host_vmcs[VMCS_PENDING_DEBUG];
        memset(host_vmcs, rand(), sizeof(host_vmcs)); /* another VMCS, with a past */
        s.event = (uint32_t)rand(), s.rflags = random64(), s.pdptes_stale = true, s.proc_controls |= VMX_PROC_IRQ_WINDOW | VMX_PROC_NMI_WINDOW;
        host_vmcs[VMCS_ENTRY_INTERRUPTION] = host_vmcs[VMCS_ENTRY_ERROR_CODE] = 0;
        vmx_set_sregs(&v, &sregs);
        vmx_load(&v, &saved);
        assert_int_equal(s.proc_controls & (VMX_PROC_IRQ_WINDOW | VMX_PROC_NMI_WINDOW), 0);
        vmx_get_sregs(&v, &again);
        assert_memory_equal(&sregs, &again, sizeof(sregs));
        vmx_save(&v, &saved_again);
        assert_memory_equal(&saved, &saved_again, sizeof(saved));
        for (unsigned k = 0; k < 4; k++)
            assert_int_equal(host_vmcs[VMCS_GUEST_PDPTE0 + 2 * k], vmcs[VMCS_GUEST_PDPTE0 + 2 * k]);
        assert_true(s.event == mine.event && s.event_error == mine.event_error && s.pdptes_stale == mine.pdptes_stale);
        vmx_inject_entering(&v);
        judge_event();
        if (event & BIT64(31))
            assert_true(host_vmcs[VMCS_ENTRY_INTERRUPTION] == event && (!(event & BIT64(11)) || host_vmcs[VMCS_ENTRY_ERROR_CODE] == error));
        assert_int_equal(host_vmcs[VMCS_PENDING_DEBUG], debug);
        fresh(NULL);
    }
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup(f, fresh)
    const struct CMUnitTest tests[] = {
        TEST(any_registers_can_be_entered), TEST(what_goes_in_comes_out), TEST(cr8_with_and_without_a_tpr_shadow),
        TEST(page_directory_pointers_are_loaded_when_the_mode_has_them), TEST(the_msr_bitmap_lets_through_just_what_is_the_guests),
        TEST(any_event_can_be_entered), TEST(a_delivery_that_ended_in_an_exit_is_repeated), TEST(an_iret_that_faulted_has_not_unblocked_nmis),
        TEST(a_copy_is_entered_like_the_original), TEST(windows_and_shadow), TEST(a_guest_with_interrupts_off_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
