/* TEST-SOURCES: vm/zero_store.c vm/emulate_vcpu.c vm/emulate.c vm/emulate_string.c vm/emulate_vector.c vm/insn.c */
/*
 * Stores of zeros without frames against the CPU this test runs on. A guest executes REP STOS over pages of which some have a frame: a plain loop is
 * its CPU, faults on pages without one go through zero_store() as from an exit, and where that declines the page gets a frame. The same bytes
 * of code run natively on a copy; registers and all memory must be equal in the end. After each call: what was skipped was whole pages,
 * writable by the guest and without a frame, or nothing has changed at all. Nothing is ever injected: that is left to the CPU.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "core/time.h"
#include "include/hv/vdev.h"
#include "vm/emulate.h"
#include "vm/shortcut.h"
#include "vm/vm_internal.h"
#include "x86/cpu.h"

#define AREA UINT64_C(0x20000000)   /* gva, and the address of the native copy: 32-bit addresses reach it */
#define AREA_PAGES 200u
#define FIRST_GFN 0x1000u
#define CODE UINT64_C(0x1000)       /* gva */
#define MAX_AT_ONCE 64u

enum state { EMPTY, ZERO, PRIVATE };
static struct { enum state state; bool present, writable, user; } page[AREA_PAGES];
static uint8_t memory[AREA_PAGES * PAGE_SIZE], code[2 * PAGE_SIZE];
static uint64_t code_absent = UINT64_MAX; /* page of gva that is not in the guest's tables */
static struct vcpu_seg segs[6];
static uint64_t efer, dr7, stored;
static unsigned cpl, injected;
static bool event;
static struct vm vm;
static struct vcpu v;

/* ---- what zero_store() stands on ------------------------------------------------------------------------------ */

static uint64_t get_reg(struct vcpu *c, enum vcpu_reg r)
{
    (void)c;
    return r == VCPU_EFER ? efer : r == VCPU_CR0 ? 0x80010011 : r == VCPU_CR4 ? 0x620 : r == VCPU_DR7 ? dr7 : 0;
}
static void get_seg(struct vcpu *c, enum vcpu_seg_id s, struct vcpu_seg *out) { (void)c; *out = segs[s]; }
static unsigned get_cpl(struct vcpu *c) { (void)c; return cpl; }
static bool event_pending(struct vcpu *c) { (void)c; return event; }
static const struct hvm_ops fake_hvm = {.get_reg = get_reg, .get_seg = get_seg, .cpl = get_cpl, .event_pending = event_pending};
const struct hvm_ops *hvm(void) { return &fake_hvm; }
void fpu_spill(struct vcpu *c) { (void)c; }
bool thread_need_resched(void) { return false; }
uint64_t time_tsc(void) { return __builtin_ia32_rdtsc(); }
void vcpu_advance_rip(struct vcpu *c, unsigned len) { c->rip += len; }
void vcpu_inject_exception(struct vcpu *c, uint8_t vector, bool has_error, uint32_t error) { (void)c, (void)vector, (void)has_error, (void)error; injected++; }
void vcpu_inject_pf(struct vcpu *c, uint64_t cr2, uint32_t error) { (void)c, (void)cr2, (void)error; injected++; }

/* The guest's memory is scattered: neighbours in its address space are none in gfns. */
static unsigned gfn_of_page(unsigned n) { return FIRST_GFN + n * 77 % AREA_PAGES; }
static unsigned page_of_gfn(uint64_t gfn)
{
    for (unsigned n = 0; n < AREA_PAGES; n++)
        if (gfn_of_page(n) == gfn)
            return n;
    return AREA_PAGES;
}

enum guest_walk_result guest_walk(struct vcpu *c, uint64_t gva, unsigned access, bool user, uint64_t *gpa, uint32_t *error)
{
    (void)c;
    *error = 0;
    *gpa = gva;
    if (gva < CODE + sizeof code)
        return gva >> PAGE_SHIFT == code_absent ? GUEST_WALK_FAULT : GUEST_WALK_OK;
    uint64_t n = (gva - AREA) >> PAGE_SHIFT;
    if (n >= AREA_PAGES || !page[n].present || (user && !page[n].user) || ((access & DMM_WRITE) && !page[n].writable))
        return GUEST_WALK_FAULT;
    *gpa = (uint64_t)gfn_of_page((unsigned)n) << PAGE_SHIFT | (gva & (PAGE_SIZE - 1));
    return GUEST_WALK_OK;
}

bool dmm_is_zero_without_frame(struct dmm_space *s, gfn_t gfn)
{
    (void)s;
    unsigned n = page_of_gfn(gfn.v);
    return n < AREA_PAGES && page[n].state != PRIVATE;
}
void dmm_zero_stored(struct dmm_space *s, uint64_t pages, uint64_t tsc)
{
    (void)s, (void)tsc;
    assert_in_range(pages, 1, MAX_AT_ONCE);
    stored += pages;
}
bool dmm_gfn_is_ram(const struct dmm_space *s, gfn_t gfn) { (void)s, (void)gfn; return true; }
bool dmm_is_mapped(struct dmm_space *s, gfn_t gfn, unsigned access) { (void)s, (void)gfn, (void)access; return true; }
enum dmm_fault_result dmm_fault(struct dmm_space *s, gfn_t gfn, unsigned access) { (void)s, (void)gfn, (void)access; return DMM_FAULT_RETRY; }
enum dmm_fault_result dmm_read_guest(struct dmm_space *s, uint64_t gpa, void *buf, size_t len)
{
    (void)s;
    assert_true(gpa >= CODE && gpa + len <= CODE + sizeof code);
    memcpy(buf, code + (gpa - CODE), len);
    return DMM_FAULT_RETRY;
}
enum dmm_fault_result dmm_write_guest(struct dmm_space *s, uint64_t gpa, const void *buf, size_t len)
{
    (void)s, (void)gpa, (void)buf, (void)len;
    fail_msg("a store was carried out");
    return DMM_FAULT_DENIED;
}
bool vdev_bus_mmio(struct vdev_bus *b, struct vcpu *c, uint64_t gpa, unsigned size, bool write, uint64_t *val)
{
    (void)b, (void)c, (void)gpa, (void)size, (void)write, (void)val;
    return false;
}
void vdev_bus_pio(struct vdev_bus *b, struct vcpu *c, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    (void)b, (void)c, (void)port, (void)size, (void)in, (void)val;
}

/* ---- one guest -------------------------------------------------------------------------------------------------- */

static uint64_t seed = 88172645463325252;
static uint64_t rnd(uint64_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % n;
}

static void fresh(const char *bytes, size_t len)
{
    memset(&v, 0, sizeof v);
    memcpy(code + 0x800, bytes, len);
    v.vm = &vm;
    v.rip = CODE + 0x800;
    v.rflags = 2;
    for (unsigned k = 0; k < 6; k++)
        segs[k] = (struct vcpu_seg){.attr = 0xc93, .limit = 0xffffffff};
    segs[SEG_CS].attr = 0xa9b;
    efer = 0x500;
    dr7 = cpl = injected = 0;
    event = false;
    code_absent = UINT64_MAX;
    stored = 0;
    for (unsigned n = 0; n < AREA_PAGES; n++) {
        page[n].state = EMPTY;
        page[n].present = page[n].writable = page[n].user = true;
    }
    memset(memory, 0, sizeof memory);
}
#define FRESH(b) fresh(b, sizeof(b) - 1)

/* The exit for a write to gva, as vm/shortcut.h and vm/nfault.c handle it; and what must hold afterwards. */
static bool exit_at(uint64_t gva)
{
    struct vcpu before = v;
    uint32_t error;
    uint64_t stored_before = stored;
    assert_int_equal(guest_walk(&v, gva, DMM_WRITE, cpl == 3, &v.exit.u.fault.gpa, &error), GUEST_WALK_OK);
    before.exit = v.exit;
    bool done = vcpu_may_clear_page(&v) && zero_store(&v);
    assert_int_equal(injected, 0);
    if (!done) {
        assert_memory_equal(&v, &before, sizeof v);
        assert_int_equal(stored, stored_before);
        return false;
    }
    uint64_t from = (uint32_t)before.gpr[GPR_RDI], bytes = v.gpr[GPR_RDI] - from; /* with 32-bit addresses the rest means nothing, and is gone */
    assert_true(bytes && bytes % PAGE_SIZE == 0 && from % PAGE_SIZE == 0 && bytes == (stored - stored_before) * PAGE_SIZE);
    for (uint64_t n = (from - AREA) / PAGE_SIZE; n < (from - AREA + bytes) / PAGE_SIZE; n++)
        assert_true(page[n].state != PRIVATE && page[n].present && page[n].writable && (cpl != 3 || page[n].user));
    before.gpr[GPR_RDI] = v.gpr[GPR_RDI];
    before.gpr[GPR_RCX] = v.gpr[GPR_RCX];
    before.rip = v.gpr[GPR_RCX] ? before.rip : v.rip;
    assert_memory_equal(&v, &before, sizeof v);
    return true;
}

/* ---- random runs beside the CPU ----------------------------------------------------------------------------------- */

struct form { bool rep, repne, addr32, opsize, rex_w, wide, backwards; };

static unsigned encode(const struct form *f, uint8_t *out)
{
    unsigned n = 0;
    if (f->opsize)
        out[n++] = 0x66;
    if (f->addr32)
        out[n++] = 0x67;
    if (f->rep || f->repne)
        out[n++] = f->rep ? 0xf3 : 0xf2;
    if (f->rex_w)
        out[n++] = 0x48;
    out[n++] = f->wide ? 0xab : 0xaa;
    return n;
}

static unsigned width(const struct form *f) { return !f->wide ? 1 : f->rex_w ? 8 : f->opsize ? 2 : 4; }

static uint8_t *native_code; /* [std] instruction [cld] ret */

static void run_native(const struct form *f, uint64_t *di, uint64_t *cx, uint64_t ax)
{
    uint8_t *p = native_code;
    *p++ = f->backwards ? 0xfd : 0xfc;
    p += encode(f, p);
    *p++ = 0xfc;
    *p = 0xc3;
    asm volatile("call *%3" : "+D"(*di), "+c"(*cx) : "a"(ax), "r"(native_code) : "memory", "cc");
}

/* The guest's CPU: one iteration, or the page without a frame that it needs. */
static bool store_element(const struct form *f, uint64_t mask, uint64_t *fault_gva)
{
    uint64_t at = v.gpr[GPR_RDI] & mask, step = f->backwards ? -(uint64_t)width(f) : width(f);
    for (unsigned k = 0; k < width(f); k++)
        if (page[(at + k - AREA) / PAGE_SIZE].state != PRIVATE) {
            *fault_gva = at + k;
            return false;
        }
    memcpy(memory + (at - AREA), &v.gpr[GPR_RAX], width(f));
    v.gpr[GPR_RDI] = (v.gpr[GPR_RDI] + step) & mask;
    return true;
}

/* To the end of the instruction; returns how many pages got a frame. */
static unsigned run_guest(const struct form *f, unsigned len)
{
    uint64_t mask = f->addr32 ? UINT32_MAX : UINT64_MAX, start = v.rip, fault;
    bool repeated = f->rep || f->repne;
    unsigned frames = 0;
    for (;;) {
        if (repeated && !(v.gpr[GPR_RCX] & mask))
            break;
        if (!store_element(f, mask, &fault)) {
            if (!exit_at(fault)) {
                page[(fault - AREA) / PAGE_SIZE].state = PRIVATE;
                frames++;
            }
            if (v.rip != start)
                return frames;
            continue;
        }
        if (!repeated)
            break;
        v.gpr[GPR_RCX] = (v.gpr[GPR_RCX] - 1) & mask;
    }
    v.rip += len;
    return frames;
}

/* What fits between AREA and its end, in this direction. */
static void choose_registers(const struct form *f, uint64_t *di, uint64_t *cx, uint64_t *ax)
{
    unsigned w = width(f);
    uint64_t offset = rnd(AREA_PAGES * PAGE_SIZE - 16);
    if (rnd(3))
        offset &= ~(uint64_t)(PAGE_SIZE - 1);
    else if (rnd(2))
        offset &= ~UINT64_C(7);
    uint64_t room = f->backwards ? offset / w : (AREA_PAGES * PAGE_SIZE - offset) / w, count = rnd(rnd(2) ? 150 * PAGE_SIZE : 3 * PAGE_SIZE) / w;
    if (rnd(3) == 0)
        count = ALIGN_DOWN(count, PAGE_SIZE / w);
    *di = AREA + offset;
    *cx = MIN(count, room);
    *ax = rnd(6) ? 0 : rnd(2) ? rnd(UINT64_MAX) : rnd(UINT64_MAX) << (8 * w % 64);
}

static void test_beside_the_cpu(void **state)
{
    (void)state;
    uint8_t *copy = mmap((void *)AREA, sizeof memory, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    native_code = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_equal(copy, (void *)AREA);
    assert_true(native_code != MAP_FAILED);
    uint64_t skipped = 0, given = 0;
    for (unsigned n = 0; n < 1500; n++) {
        struct form f = {.rep = rnd(8) != 0, .addr32 = rnd(3) == 0, .opsize = rnd(5) == 0, .rex_w = rnd(2), .wide = rnd(4) != 0, .backwards = rnd(10) == 0};
        f.repne = !f.rep && rnd(3);
        uint8_t bytes[8];
        uint64_t di, cx, ax;
        unsigned len = encode(&f, bytes);
        fresh((char *)bytes, len);
        for (unsigned k = 0, sparse = 1 + (unsigned)rnd(60); k < AREA_PAGES; k++) {
            page[k].state = rnd(sparse) == 0 ? PRIVATE : rnd(2) ? EMPTY : ZERO;
            if (page[k].state == PRIVATE)
                memory[k * PAGE_SIZE + rnd(PAGE_SIZE)] = (uint8_t)rnd(256);
        }
        memcpy(copy, memory, sizeof memory);
        choose_registers(&f, &di, &cx, &ax);
        v.gpr[GPR_RDI] = di | (f.addr32 && rnd(2) ? rnd(1000) << 32 : 0);
        v.gpr[GPR_RCX] = cx | (f.addr32 && rnd(2) ? rnd(1000) << 32 : 0);
        v.gpr[GPR_RAX] = ax;
        v.rflags |= f.backwards ? RFLAGS_DF : 0;
        di = v.gpr[GPR_RDI];
        cx = v.gpr[GPR_RCX];
        run_native(&f, &di, &cx, ax);
        given += run_guest(&f, len);
        skipped += stored;
        assert_int_equal(v.gpr[GPR_RDI] & (f.addr32 ? UINT32_MAX : UINT64_MAX), di & (f.addr32 ? UINT32_MAX : UINT64_MAX));
        assert_int_equal(v.gpr[GPR_RCX] & (f.addr32 ? UINT32_MAX : UINT64_MAX), cx & (f.addr32 ? UINT32_MAX : UINT64_MAX));
        assert_int_equal(v.rip, CODE + 0x800 + len);
        if (memcmp(copy, memory, sizeof memory))
            fail_msg("run %u: memory differs", n);
    }
    assert_true(skipped > 5000 && given > 1000); /* both ways were taken */
    munmap(copy, sizeof memory);
    munmap(native_code, PAGE_SIZE);
}

/* ---- one thing at a time ------------------------------------------------------------------------------------------- */

static void aim(uint64_t di, uint64_t cx, uint64_t ax)
{
    v.gpr[GPR_RDI] = di;
    v.gpr[GPR_RCX] = cx;
    v.gpr[GPR_RAX] = ax;
}

static void test_progress(void **state)
{
    (void)state;
    FRESH("\xf3\x48\xab"); /* rep stosq */
    aim(AREA, 100 * 512 + 5, 0);
    assert_true(exit_at(AREA)); /* bounded */
    assert_int_equal(v.gpr[GPR_RDI], AREA + MAX_AT_ONCE * PAGE_SIZE);
    assert_int_equal(v.gpr[GPR_RCX], 36 * 512 + 5);
    assert_int_equal(v.rip, CODE + 0x800);
    assert_true(exit_at(v.gpr[GPR_RDI]));
    assert_int_equal(v.gpr[GPR_RCX], 5); /* the rest of a page is the CPU's */
    assert_int_equal(v.rip, CODE + 0x800);
    assert_false(exit_at(v.gpr[GPR_RDI]));
    FRESH("\xf3\xaa"); /* rep stosb, to the last byte */
    aim(AREA + PAGE_SIZE, 2 * PAGE_SIZE, 0);
    assert_true(exit_at(AREA + PAGE_SIZE));
    assert_int_equal(v.gpr[GPR_RCX], 0);
    assert_int_equal(v.rip, CODE + 0x802);
    FRESH("\xf3\xaa"); /* up to a page with a frame, one that is not there, one that is not writable, one of the supervisor's */
    for (unsigned n = 0; n < 4; n++) {
        FRESH("\xf3\xaa");
        aim(AREA, 8 * PAGE_SIZE, 0);
        if (n == 0)
            page[3].state = PRIVATE;
        page[3].present = n != 1;
        page[3].writable = n != 2;
        page[3].user = n != 3;
        cpl = 3;
        assert_true(exit_at(AREA));
        assert_int_equal(v.gpr[GPR_RDI], AREA + 3 * PAGE_SIZE);
        assert_int_equal(v.gpr[GPR_RCX], 5 * PAGE_SIZE);
        assert_int_equal(v.rip, CODE + 0x800);
    }
}

static void test_left_to_the_cpu(void **state)
{
    (void)state;
    FRESH("\xf3\x48\xab");
    aim(AREA, 512, 0);
    v.rflags |= RFLAGS_DF;
    assert_false(exit_at(AREA));
    v.rflags = 2 | RFLAGS_TF;
    assert_false(exit_at(AREA));
    v.rflags = 2;
    event = true; /* an interrupt was being delivered, and its stack is the page */
    assert_false(exit_at(AREA));
    event = false;
    dr7 = 1;
    assert_false(exit_at(AREA));
    dr7 = 0x400;
    code_absent = CODE >> PAGE_SHIFT; /* another vCPU took the code away: its fetch will fault by itself */
    assert_false(exit_at(AREA));
    code_absent = UINT64_MAX;
    v.gpr[GPR_RAX] = UINT64_C(0x100000000); /* not all of it is zero */
    assert_false(exit_at(AREA));
    v.gpr[GPR_RAX] = 0;
    v.gpr[GPR_RCX] = 511;
    assert_false(exit_at(AREA));
    v.gpr[GPR_RCX] = 512;
    v.gpr[GPR_RDI] = AREA + 8;
    assert_false(exit_at(AREA + 8));
    v.gpr[GPR_RDI] = AREA;
    assert_true(exit_at(AREA)); /* and nothing but that was in the way */
    static const struct { const char *bytes; size_t len; } others[] = {
        {"\x48\xab", 2}, {"\xf3\x48\xa5", 3}, {"\xf0\xf3\xaa", 3}, {"\xf3\x48\xad", 3}, {"\x48\x89\x07", 3}, /* no REP; MOVS; LOCK; LODS; MOV */
        {"\x62\xf1\x7c\x48\x11\x07", 6}, {"\x0f\x04", 2}, {"\xff\xff", 2}, {"\x0f\x0b", 2},                 /* unknown to us, or to all */
        {"\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\xf3\xaa\xaa", 16},                             /* 15 bytes: fine, see below */
    };
    for (unsigned n = 0; n < ARRAY_SIZE(others); n++) {
        fresh(others[n].bytes, others[n].len);
        aim(AREA, 512 * 8, 0);
        assert_int_equal(exit_at(AREA), n == ARRAY_SIZE(others) - 1);
    }
    FRESH("\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\xf3\xaa"); /* 16 */
    aim(AREA, 512 * 8, 0);
    assert_false(exit_at(AREA));
}

/* 32-bit code: segments have bases and limits, and registers are half as wide. */
static void test_32_bit(void **state)
{
    (void)state;
    for (unsigned n = 0; n < 8; n++) {
        FRESH("\xf3\xab");
        segs[SEG_CS].attr = 0xc9b;
        efer = 0;
        aim(AREA | UINT64_C(0x500000000), 4 * 1024, 0);
        switch (n) {
        case 1: segs[SEG_ES].limit = AREA + 2 * PAGE_SIZE + 100; break; /* within the third page */
        case 2: segs[SEG_ES].attr = 0xc91; break;                       /* read-only */
        case 3: segs[SEG_ES].base = 8; v.gpr[GPR_RDI] -= PAGE_SIZE; break;
        case 4: segs[SEG_ES].base = PAGE_SIZE; v.gpr[GPR_RDI] -= PAGE_SIZE; break;
        case 5: segs[SEG_ES].attr = 0xc97; segs[SEG_ES].limit = AREA + PAGE_SIZE; break; /* expands down: nothing below is inside */
        case 6: segs[SEG_CS].attr = 0x89b; break;                       /* 16-bit code */
        case 7: segs[SEG_ES].attr = 0x8000; break;
        default: break;
        }
        bool fits = n == 0 || n == 1 || n == 4;
        /* What the CPU's registers say is looked at only; exit_at() would take them for linear addresses. */
        uint32_t error;
        assert_int_equal(guest_walk(&v, AREA, DMM_WRITE, false, &v.exit.u.fault.gpa, &error), GUEST_WALK_OK);
        uint64_t from = v.gpr[GPR_RDI];
        assert_int_equal(zero_store(&v), fits);
        assert_int_equal(injected, 0);
        uint64_t pages = n == 1 ? 2 : 4;
        assert_int_equal(v.gpr[GPR_RDI], fits ? (uint32_t)from + pages * PAGE_SIZE : from);
        assert_int_equal(v.gpr[GPR_RCX], fits ? (4 - pages) * 1024 : 4 * 1024);
        assert_int_equal(v.rip, CODE + 0x800 + (fits && pages == 4 ? 2 : 0));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_beside_the_cpu), cmocka_unit_test(test_progress), cmocka_unit_test(test_left_to_the_cpu), cmocka_unit_test(test_32_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
