/* TEST-SOURCES: vm/emulate_vcpu.c vm/emulate.c vm/emulate_string.c vm/emulate_vector.c vm/insn.c */
/*
 * The emulator bound to a vCPU whose memory, page tables and devices are fakes: gva = gpa; 16 pages of RAM from 0, a device from
 * 0x10000. What is checked is the glue: pieces of an access that straddles pages, fetching across a page, faults injected, missing
 * pages reported before anything moved, and that a changed string instruction is not executed with another's permission.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include "include/hv/vdev.h"
#include "vm/emulate.h"
#include "vm/vm_internal.h"

static uint8_t ram[65536];
static uint64_t absent_page = UINT64_MAX, blocked_page = UINT64_MAX; /* faults in the guest's tables; not there in DMM */
static struct { uint64_t gpa, val; unsigned size; bool write; } log[16];
static unsigned logged, port_outs, injected_vector, advanced;
static uint64_t injected_cr2;
static uint32_t injected_error;
static struct vcpu_seg segs[6];
static uint64_t efer;
static unsigned cpl;
static uint8_t fpu[1024];
static struct vm vm;
static struct vcpu v;

static uint64_t get_reg(struct vcpu *c, enum vcpu_reg r) { (void)c; return r == VCPU_EFER ? efer : r == VCPU_CR0 ? 0x80000011 : r == VCPU_CR4 ? 0x620 : 0; }
static void get_seg(struct vcpu *c, enum vcpu_seg_id s, struct vcpu_seg *out) { (void)c; *out = segs[s]; }
static unsigned get_cpl(struct vcpu *c) { (void)c; return cpl; }
static const struct hvm_ops fake_hvm = {.get_reg = get_reg, .get_seg = get_seg, .cpl = get_cpl};
const struct hvm_ops *hvm(void) { return &fake_hvm; }
void fpu_spill(struct vcpu *unused) { (void)unused; }
bool thread_need_resched(void) { return false; }
void vcpu_advance_rip(struct vcpu *c, unsigned len) { c->rip += len; advanced += len; }
void vcpu_inject_exception(struct vcpu *c, uint8_t vector, bool has_error, uint32_t e)
{
    (void)c, (void)has_error;
    injected_vector = vector;
    injected_error = e;
}
void vcpu_inject_pf(struct vcpu *c, uint64_t cr2, uint32_t e)
{
    vcpu_inject_exception(c, 14, true, e);
    injected_cr2 = cr2;
}
enum guest_walk_result guest_walk(struct vcpu *c, uint64_t gva, unsigned access, bool user, uint64_t *gpa, uint32_t *e)
{
    (void)c;
    *gpa = gva;
    *e = (access & DMM_WRITE ? 2u : 0) | (user ? 4u : 0) | (access & DMM_EXEC ? 16u : 0);
    return gva >> 12 == absent_page ? GUEST_WALK_FAULT : GUEST_WALK_OK;
}
bool dmm_gfn_is_ram(const struct dmm_space *s, gfn_t gfn) { (void)s; return gfn.v < 16; }
bool dmm_is_mapped(struct dmm_space *s, gfn_t gfn, unsigned access) { (void)s, (void)gfn, (void)access; return false; }
enum dmm_fault_result dmm_fault(struct dmm_space *s, gfn_t gfn, unsigned access)
{
    (void)s, (void)access;
    return gfn.v == blocked_page ? DMM_FAULT_STALLED : DMM_FAULT_RETRY;
}
enum dmm_fault_result dmm_read_guest(struct dmm_space *s, uint64_t gpa, void *buf, size_t len)
{
    (void)s;
    assert_true(gpa + len <= sizeof ram);
    memcpy(buf, ram + gpa, len);
    return DMM_FAULT_RETRY;
}
enum dmm_fault_result dmm_write_guest(struct dmm_space *s, uint64_t gpa, const void *buf, size_t len)
{
    (void)s;
    assert_true(gpa + len <= sizeof ram);
    memcpy(ram + gpa, buf, len);
    return DMM_FAULT_RETRY;
}
bool vdev_bus_mmio(struct vdev_bus *b, struct vcpu *c, uint64_t gpa, unsigned size, bool write, uint64_t *val)
{
    (void)b, (void)c;
    if (gpa >= 0x20000)
        return false;
    if (!write)
        *val = 0x8877665544332211;
    assert_true(logged < 16);
    log[logged].gpa = gpa;
    log[logged].size = size;
    log[logged].write = write;
    log[logged++].val = *val;
    return true;
}
void vdev_bus_pio(struct vdev_bus *b, struct vcpu *c, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    (void)b, (void)c, (void)port, (void)size, (void)in, (void)val;
    port_outs++;
}

static void fresh(uint64_t rip, const char *bytes, unsigned len)
{
    memset(&v, 0, sizeof v);
    memset(ram, 0, sizeof ram);
    memcpy(ram + rip, bytes, len);
    v.vm = &vm;
    v.rip = rip;
    v.rflags = 2;
    v.fpu_area = fpu;
    for (unsigned k = 0; k < 6; k++)
        segs[k] = (struct vcpu_seg){.attr = 0xc93, .limit = 0xffffffff};
    segs[SEG_CS].attr = 0xa9b;
    efer = 0x500;
    cpl = logged = port_outs = injected_vector = advanced = 0;
    absent_page = blocked_page = UINT64_MAX;
}
#define FRESH(rip, b) fresh(rip, b, sizeof(b) - 1)

static struct emulate_outcome out;

static void test_device(void **state)
{
    (void)state;
    FRESH(0xffe, "\x48\x8b\x03"); /* mov rax, [rbx], the instruction crossing a page */
    v.gpr[GPR_RBX] = 0x10008;
    assert_int_equal(emulate_vcpu(&v, EMULATE_MEMORY, &out), EMULATE_DONE);
    assert_int_equal(v.gpr[GPR_RAX], 0x8877665544332211);
    assert_int_equal(v.rip, 0x1001);
    assert_int_equal(logged, 1);
    assert_int_equal(log[0].size, 8);
    FRESH(0x1000, "\x48\x89\x03"); /* mov [rbx], rax: 3 bytes of RAM, 5 of the device as 4 + 1 */
    v.gpr[GPR_RBX] = 0xfffd;
    v.gpr[GPR_RAX] = 0x0807060504030201;
    assert_int_equal(emulate_vcpu(&v, EMULATE_MEMORY, &out), EMULATE_DONE);
    assert_memory_equal(ram + 0xfffd, "\1\2\3", 3);
    assert_int_equal(logged, 2);
    assert_int_equal(log[0].gpa, 0x10000);
    assert_int_equal(log[0].size, 4);
    assert_int_equal(log[0].val, 0x07060504);
    assert_int_equal(log[1].gpa, 0x10004);
    assert_int_equal(log[1].val, 8);
    FRESH(0x1000, "\x8b\x03"); /* nobody there: ones */
    v.gpr[GPR_RBX] = 0x20000;
    assert_int_equal(emulate_vcpu(&v, EMULATE_MEMORY, &out), EMULATE_DONE);
    assert_int_equal(v.gpr[GPR_RAX], 0xffffffff);
    FRESH(0x1000, "\x0f\x10\x0b"); /* movups xmm1, [rbx] */
    v.gpr[GPR_RBX] = 0x10000;
    assert_int_equal(emulate_vcpu(&v, EMULATE_MEMORY, &out), EMULATE_DONE);
    assert_int_equal(fpu[160 + 16], 0x11);
    assert_int_equal(fpu[160 + 31], 0x88);
    assert_int_equal(fpu[512] & 2, 2);
}

static void test_nothing_moves_early(void **state)
{
    (void)state;
    FRESH(0x1000, "\xa4"); /* movsb from the device to a page that is absent, then one without a frame */
    v.gpr[GPR_RSI] = 0x10000;
    v.gpr[GPR_RDI] = 0x5000;
    absent_page = 5;
    cpl = 3;
    assert_int_equal(emulate_vcpu(&v, EMULATE_MEMORY, &out), EMULATE_FAULT);
    assert_int_equal(injected_vector, 14);
    assert_int_equal(injected_cr2, 0x5000);
    assert_int_equal(injected_error, 6);
    absent_page = UINT64_MAX;
    blocked_page = 5;
    assert_int_equal(emulate_vcpu(&v, EMULATE_MEMORY, &out), EMULATE_STALLED);
    assert_int_equal(out.gfn.v, 5);
    assert_int_equal(logged, 0); /* the device was not read */
    assert_int_equal(v.rip, 0x1000);
    assert_int_equal(v.gpr[GPR_RSI], 0x10000);
    FRESH(0x1ffe, "\x48\x89\x03"); /* the rest of the instruction is on an absent page */
    absent_page = 2;
    assert_int_equal(emulate_vcpu(&v, EMULATE_MEMORY, &out), EMULATE_FAULT);
    assert_int_equal(injected_cr2, 0x2000);
    assert_int_equal(injected_error, 16);
    FRESH(0x1000, "\x0f\x04"); /* no instruction at all; one that is not ours; code in a device */
    assert_int_equal(emulate_vcpu(&v, EMULATE_MEMORY, &out), EMULATE_FAULT);
    assert_int_equal(injected_vector, 6);
    FRESH(0x1000, "\xd9\x03");
    assert_int_equal(emulate_vcpu(&v, EMULATE_MEMORY, &out), EMULATE_UNSUPPORTED);
    char text[48];
    assert_string_equal(emulate_bytes_text(&out, text, sizeof text), "d9 03");
    v.rip = 0x10000;
    assert_int_equal(emulate_vcpu(&v, EMULATE_MEMORY, &out), EMULATE_UNSUPPORTED);
}

static void test_port_permission(void **state)
{
    (void)state;
    FRESH(0x1000, "\xf3\x6e"); /* rep outsb */
    v.gpr[GPR_RSI] = 0x3000;
    v.gpr[GPR_RCX] = 4;
    v.gpr[GPR_RDX] = 0x3f8;
    v.exit.kind = VM_EXIT_PIO;
    v.exit.u.io.port = 0x3f9;
    v.exit.u.io.size = 1;
    v.exit.u.io.string = true;
    assert_int_equal(emulate_vcpu(&v, EMULATE_STRING_IO, &out), EMULATE_AGAIN); /* permission was for another port */
    v.exit.u.io.port = 0x3f8;
    v.exit.u.io.in = true;
    assert_int_equal(emulate_vcpu(&v, EMULATE_STRING_IO, &out), EMULATE_AGAIN);
    assert_int_equal(port_outs, 0);
    v.exit.u.io.in = false;
    assert_int_equal(emulate_vcpu(&v, EMULATE_STRING_IO, &out), EMULATE_DONE);
    assert_int_equal(port_outs, 4);
    assert_int_equal(advanced, 2);
}

static void test_control_registers(void **state)
{
    struct emulate_cr cr;
    (void)state;
    FRESH(0x1000, "\x0f\x01\x33"); /* lmsw [rbx] */
    v.gpr[GPR_RBX] = 0x3000;
    memcpy(ram + 0x3000, "\x34\x12\x78", 3);
    assert_int_equal(emulate_vcpu_cr(&v, &cr, &out), EMULATE_DONE);
    assert_int_equal(cr.kind, EMULATE_LMSW);
    assert_int_equal(cr.value, 0x1234);
    assert_int_equal(emulate_vcpu_cr_finish(&v, &cr, 0, &out), EMULATE_DONE);
    assert_int_equal(v.rip, 0x1003);
    FRESH(0x1000, "\x0f\x01\x23"); /* smsw [rbx] */
    v.gpr[GPR_RBX] = 0x3000;
    assert_int_equal(emulate_vcpu_cr(&v, &cr, &out), EMULATE_DONE);
    assert_int_equal(emulate_vcpu_cr_finish(&v, &cr, 0x80050033, &out), EMULATE_DONE);
    assert_memory_equal(ram + 0x3000, "\x33\x00\x00", 3);
    FRESH(0x1000, "\x0f\x20\xe3"); /* mov rbx, cr4 */
    assert_int_equal(emulate_vcpu_cr(&v, &cr, &out), EMULATE_DONE);
    assert_int_equal(cr.reg, 4);
    assert_int_equal(emulate_vcpu_cr_finish(&v, &cr, 0x6f0, &out), EMULATE_DONE);
    assert_int_equal(v.gpr[GPR_RBX], 0x6f0);
    FRESH(0x1000, "\x90");
    assert_int_equal(emulate_vcpu_cr(&v, &cr, &out), EMULATE_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_device), cmocka_unit_test(test_nothing_moves_early),
        cmocka_unit_test(test_port_permission), cmocka_unit_test(test_control_registers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
