/* TEST-SOURCES: svm/exit.c vmx/exit.c vmx/ept.c */
/*
 * The same event as each vendor's CPU reports it, in raw numbers from the manuals, must become the same struct vm_exit; and any raw
 * number at all must become some kind, with a length that is possible and no read of a field that does not exist.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "core/log.h"
#include "svm/svm.h"
#include "vmx/vmx.h"

uint64_t host_vmcs[0x8000];
struct vmx_features vmx_feature_flags = {.ins_outs_info = true};
struct svm_features svm_feature_flags = {.nrips = true, .decode_assists = true};
_Thread_local struct percpu host_percpu;
static struct vmx_cpu cpu;
static struct vmx_vcpu xs;
static struct svm_vcpu as;
static struct vmcb vmcb;
static struct vm vm;
static struct vcpu xv = {.hvm = &xs, .vm = &vm}, av = {.hvm = &as, .vm = &vm};
static uint64_t ept_tables[4][512] __attribute__((aligned(4096)));
static struct dmm_translation translation;
static unsigned errors_logged, nmi_windows_off, logs_full;

void vmx_fetch(struct vcpu *v) { (void)v; }
void vmx_request_nmi_window(struct vcpu *v, bool on) { (void)v; nmi_windows_off += !on; }
void vmx_log_full(struct vcpu *v) { logs_full += v == &xv; }
void log_write(enum log_level level, const char *fmt, ...) { (void)fmt; errors_logged += level == LOG_ERROR; }
void *mfn_to_hva(mfn_t mfn) { return (void *)(uintptr_t)mfn_to_hpa(mfn); }
const char *p2m_type_name(enum p2m_type t) { (void)t; return "type"; }

#define GPRS(v) ((v)->gpr[GPR_RAX] = 0x1111222233334444, (v)->gpr[GPR_RCX] = 0xc0000081, (v)->gpr[GPR_RDX] = 0x55556666)

static struct vm_exit of_vmx(uint32_t reason, uint64_t qualification, unsigned length, uint64_t info)
{
    struct vm_exit x;
    memset(&x, 0, sizeof(x));
    GPRS(&xv);
    xs.reason = reason;
    host_vmcs[VMCS_EXIT_QUALIFICATION] = qualification;
    host_vmcs[VMCS_EXIT_INSTRUCTION_LENGTH] = length;
    host_vmcs[VMCS_EXIT_INSTRUCTION_INFO] = info;
    vmx_decode_exit(&xv, &x);
    return x;
}

static struct vm_exit of_svm(uint64_t code, uint64_t info1, uint64_t info2, uint64_t next_rip)
{
    struct vm_exit x;
    memset(&x, 0, sizeof(x));
    GPRS(&av);
    vmcb.s.rip = 0x1000;
    vmcb.c.exit_code = code;
    vmcb.c.exit_info1 = info1;
    vmcb.c.exit_info2 = info2;
    vmcb.c.next_rip = next_rip;
    svm_decode_exit(&av, &x);
    return x;
}

static int set_up(void **state)
{
    (void)state;
    host_percpu.slot[PERCPU_HVM] = &cpu;
    cpu.current = &xs;
    as.vmcb = &vmcb;
    translation.root_hpa = (uintptr_t)ept_tables[3];
    xv.space = av.space = (struct dmm_space *)&translation; /* begins with one */
    return 0;
}

static void same(struct vm_exit x, struct vm_exit a)
{
    assert_string_equal(vm_exit_kind_name(x.kind), vm_exit_kind_name(a.kind));
    assert_int_equal(x.insn_len, a.insn_len);
    assert_memory_equal(&x.u, &a.u, sizeof(x.u));
}

const char *vm_exit_kind_name(enum vm_exit_kind k)
{
    static const char *const names[] = {
#define X(id, name) name,
        VM_EXIT_KINDS(X)
#undef X
    };
    return names[k];
}

static void plain_instructions(void **state)
{
    static const struct { uint32_t vmx; uint64_t svm; enum vm_exit_kind kind; unsigned length; } rows[] = {
        {10, 0x72, VM_EXIT_CPUID, 2}, {12, 0x78, VM_EXIT_HLT, 1}, {13, 0x76, VM_EXIT_INVD, 2}, {54, 0x89, VM_EXIT_INVD, 2},
        {15, 0x6f, VM_EXIT_RDPMC, 2}, {16, 0x6e, VM_EXIT_RDTSC, 2}, {51, 0x87, VM_EXIT_RDTSC, 3}, {18, 0x81, VM_EXIT_HYPERCALL, 3},
        {17, 0x73, VM_EXIT_VIRT_INSN, 2}, {20, 0x80, VM_EXIT_VIRT_INSN, 3}, {36, 0x8b, VM_EXIT_MONITOR, 3},
        {39, 0x8a, VM_EXIT_MONITOR, 3}, {40, 0x77, VM_EXIT_PAUSE, 2}, {55, 0x8d, VM_EXIT_XSETBV, 3}, {31, 0x7c, VM_EXIT_RDMSR, 2},
    };
    (void)state;
    for (size_t n = 0; n < ARRAY_SIZE(rows); n++) {
        struct vm_exit x = of_vmx(rows[n].vmx, 0, rows[n].length, 0), a = of_svm(rows[n].svm, 0, 0, 0x1000 + rows[n].length);
        assert_int_equal(x.kind, rows[n].kind);
        assert_int_equal(x.insn_len, rows[n].length);
        same(x, a);
    }
    struct vm_exit w = of_vmx(32, 0, 2, 0);
    assert_int_equal(w.u.msr.index, 0xc0000081);
    assert_int_equal(w.u.msr.value, 0x5555666633334444);
    same(w, of_svm(0x7c, 1, 0, 0x1002));
}

static void events(void **state)
{
    static const struct { uint32_t vmx; uint64_t svm; enum vm_exit_kind kind; } rows[] = {
        {1, 0x60, VM_EXIT_INTR}, {5, 0x62, VM_EXIT_INTR}, {2, 0x7f, VM_EXIT_TRIPLE_FAULT}, {3, 0x63, VM_EXIT_INIT}, {7, 0x64, VM_EXIT_IRQ_WINDOW},
        {8, 0x74, VM_EXIT_NMI_WINDOW}, {9, 0x7d, VM_EXIT_TASK_SWITCH}, {0x80000021, UINT64_MAX, VM_EXIT_INVALID_STATE},
    };
    (void)state;
    for (size_t n = 0; n < ARRAY_SIZE(rows); n++) {
        struct vm_exit x = of_vmx(rows[n].vmx, 0, 0, 0);
        assert_int_equal(x.kind, rows[n].kind);
        same(x, of_svm(rows[n].svm, 0, 0, 0));
    }
    assert_int_equal(of_vmx(43, 0, 0, 0).kind, VM_EXIT_IRQ_WINDOW); /* CR8 is low enough: on the other vendor's CPUs its write exits */
    assert_int_equal(of_vmx(52, 0, 0, 0).kind, VM_EXIT_INTR); /* the preemption timer */
    assert_int_equal(logs_full, 0);
    assert_int_equal(of_vmx(62, 0, 0, 0).kind, VM_EXIT_INTR); /* a log is full: emptied at once, and nothing to do for anybody else */
    assert_int_equal(logs_full, 1);
    nmi_windows_off = 0;
    of_vmx(8, 0, 0, 0);
    assert_int_equal(nmi_windows_off, 1); /* else it would ring for ever */
    host_vmcs[VMCS_EXIT_INTERRUPTION] = 0x80000202;
    same(of_vmx(0, 0, 0, 0), of_svm(0x61, 0, 0, 0));
}

static void exceptions(void **state)
{
    (void)state;
    host_vmcs[VMCS_EXIT_INTERRUPTION] = 0x80000b11;
    host_vmcs[VMCS_EXIT_ERROR_CODE] = 0;
    same(of_vmx(0, 0, 0, 0), of_svm(0x51, 0, 0, 0));
    host_vmcs[VMCS_EXIT_INTERRUPTION] = 0x80000b0e;
    host_vmcs[VMCS_EXIT_ERROR_CODE] = 7;
    same(of_vmx(0, 0xdeadb000, 0, 0), of_svm(0x4e, 7, 0xdeadb000, 0));
    /* #DB: what the handler would find in DR6 and DR7, which the CPU has not written */
    host_vmcs[VMCS_EXIT_INTERRUPTION] = 0x80000301;
    host_vmcs[VMCS_GUEST_DR7] = 0x2401;
    xs.dr6 = 0xffff0ff8;
    struct vm_exit x = of_vmx(0, 0x4001, 0, 0);
    assert_int_equal(x.u.exc.vector, 1);
    assert_false(x.u.exc.has_error);
    assert_int_equal(xs.dr6, 0xffff4ff1);
    assert_int_equal(host_vmcs[VMCS_GUEST_DR7], 0x401);
    /* INT1 is a trap, but its exit comes before it */
    uint64_t rip = xv.rip;
    host_vmcs[VMCS_EXIT_INTERRUPTION] = 0x80000501;
    x = of_vmx(0, 0, 1, 0);
    assert_int_equal(x.u.exc.vector, 1);
    assert_int_equal(xv.rip - rip, 1);
}

static void control_and_debug_registers(void **state)
{
    (void)state;
    same(of_vmx(28, 0x0300, 3, 0), of_svm(0x10, BIT64(63) | 3, 0, 0x1003));   /* mov cr0, rbx */
    same(of_vmx(28, 0x0914, 4, 0), of_svm(0x04, BIT64(63) | 9, 0, 0x1004));   /* mov r9, cr4 */
    same(of_vmx(28, 0x0008, 4, 0), of_svm(0x18, BIT64(63), 0, 0x1004));       /* mov cr8, rax */
    same(of_vmx(29, 0x0207, 3, 0), of_svm(0x37, 2, 0, 0x1003));               /* mov dr7, rdx */
    same(of_vmx(29, 0x0816, 4, 0), of_svm(0x26, 8, 0, 0x1004));               /* mov r8, dr6 */
    /* CLTS and LMSW: the register is not told, so that vm/ looks at the instruction */
    struct vm_exit clts = of_vmx(28, 0x20, 2, 0), lmsw = of_vmx(28, 0x00010030, 3, 0);
    assert_int_equal(clts.u.cr.op, VM_CR_CLTS);
    assert_int_equal(clts.u.cr.gpr, 0xff);
    assert_int_equal(lmsw.u.cr.op, VM_CR_LMSW);
    assert_int_equal(lmsw.u.cr.gpr, 0xff);
    assert_int_equal(of_svm(0x10, 0, 0, 0x1003).u.cr.gpr, 0xff);
}

static void ports(void **state)
{
    (void)state;
    same(of_vmx(30, 0x03f80000, 1, 0), of_svm(0x7b, 0x03f80010 | 7 << 10, 0x1001, 0)); /* out dx, al; the segment has no meaning */
}

static void ports_in_strings(void **state)
{
    (void)state;
    struct vm_exit x = of_vmx(30, 0x01f00000 | 1 | 8 | 16 | 32, 3, 2 << 7 | 3 << 15); /* rep insw, 64 bits */
    struct vm_exit a = of_svm(0x7b, 0x01f00000 | 1 | 4 | 8 | 1 << 5 | 1 << 9 | 0 << 10, 0x1003, 0);
    same(x, a);
    assert_int_equal(x.u.io.seg, SEG_ES);
    x = of_vmx(30, 0x00e90000 | 16, 2, 1 << 7 | 4 << 15); /* outsb, fs, 32 bits */
    same(x, of_svm(0x7b, 0x00e90000 | 4 | 1 << 4 | 1 << 8 | 4 << 10, 0x1002, 0));
    assert_int_equal(x.u.io.seg, SEG_FS);
    vmx_feature_flags.ins_outs_info = false;
    x = of_vmx(30, 0x00e90000 | 16, 2, 1 << 7 | 4 << 15);
    assert_int_equal(x.u.io.seg, 0xff);
    assert_int_equal(x.u.io.addr_size, 0);
    vmx_feature_flags.ins_outs_info = true;
}

static void nested_faults(void **state)
{
    static const struct { uint64_t vmx, svm; bool write, exec, walk; } rows[] = { /* SVM: user bit always */
        {0x181, 0x100000004, false, false, false}, {0x182, 0x100000006, true, false, false}, {0x184, 0x100000014, false, true, false},
        {0x083, 0x200000006, true, false, true}, {0x1aa, 0x100000007, true, false, false},
    };
    (void)state;
    host_vmcs[VMCS_GUEST_PHYSICAL_ADDRESS] = 0xfee00080;
    host_vmcs[VMCS_GUEST_LINEAR_ADDRESS] = 0x12345678;
    for (size_t n = 0; n < ARRAY_SIZE(rows); n++) {
        struct vm_exit x = of_vmx(48, rows[n].vmx, 7, 0), a = of_svm(0x400, rows[n].svm, 0xfee00080, 0x1003);
        assert_int_equal(x.insn_len, 0); /* not defined for it */
        assert_true(x.u.fault.gva_valid && x.u.fault.gva == 0x12345678);
        x.u.fault.gva_valid = false; /* this vendor alone has it */
        x.u.fault.gva = 0;
        same(x, a);
        assert_true(x.u.fault.write == rows[n].write && x.u.fault.exec == rows[n].exec && x.u.fault.in_walk == rows[n].walk);
    }
    struct vm_exit x = of_vmx(48, 1, 0, 0);
    assert_false(x.u.fault.gva_valid);
    assert_false(x.u.fault.in_walk);
}

static void a_misconfigured_entry_is_reported_with_its_chain(void **state)
{
    (void)state;
    const uint64_t gpa = 0x0000008040201000;
    for (unsigned level = 4; level > 1; level--)
        ept_tables[level - 1][gpa >> (12 + 9 * (level - 1)) & 511] = p2m_format_ept.make_table((uintptr_t)ept_tables[level - 2]);
    ept_tables[0][gpa >> 12 & 511] = 0x123456002; /* write-only */
    host_vmcs[VMCS_GUEST_PHYSICAL_ADDRESS] = gpa;
    errors_logged = 0;
    assert_int_equal(of_vmx(49, 0, 0, 0).kind, VM_EXIT_OTHER);
    assert_int_equal(errors_logged, 5);
}

static void any_number(void **state)
{
    (void)state;
    srand(1);
    host_vmcs[VMCS_GUEST_PHYSICAL_ADDRESS] = 0;
    for (unsigned n = 0; n < 200000; n++) {
        uint32_t reason = n < 0x1000 ? n : (uint32_t)rand();
        uint64_t q = (uint64_t)rand() << 33 ^ (uint64_t)rand() << 11 ^ (uint64_t)rand();
        host_vmcs[VMCS_EXIT_INTERRUPTION] = (uint32_t)rand() << 1;
        struct vm_exit x = of_vmx(reason, q, (unsigned)rand() % 16, (uint32_t)rand() << 1);
        assert_true(x.kind < VM_EXIT_KIND_COUNT && x.insn_len <= 15);
        assert_true(x.kind != VM_EXIT_PIO || (x.u.io.seg == 0xff || x.u.io.seg < 6));
        vmcb.c.bytes_fetched = (uint8_t)rand();
        struct vm_exit a = of_svm(n < 0x1000 ? n : q, q, (uint64_t)rand(), 0x1000 + (unsigned)rand() % 32);
        assert_true(a.kind < VM_EXIT_KIND_COUNT && a.insn_len <= 15 && a.insn_bytes_len <= 15);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_instructions), cmocka_unit_test(events), cmocka_unit_test(exceptions),
        cmocka_unit_test(control_and_debug_registers), cmocka_unit_test(ports), cmocka_unit_test(ports_in_strings),
        cmocka_unit_test(nested_faults), cmocka_unit_test(a_misconfigured_entry_is_reported_with_its_chain), cmocka_unit_test(any_number),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
