/* FUZZ-SOURCES: vm/zero_store.c vm/emulate_vcpu.c vm/emulate.c vm/emulate_string.c vm/emulate_vector.c vm/insn.c */
/*
 * Stores of zeros without frames, for a guest whose code, registers, segments and page tables are whatever the input says, and may be other than those
 * that the exit was for. Either nothing has changed, nothing was injected and nothing stored; or the instruction is, by a decoder that is written
 * down here once more, REP STOS of zeros, and what was counted off is whole pages that it may write to, each of which reads as zero without a frame.
 */
#include <stdlib.h>
#include <string.h>
#include "core/time.h"
#include "include/hv/vdev.h"
#include "vm/emulate.h"
#include "vm/shortcut.h"
#include "vm/vm_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SCRIPT = 32, AT_ONCE = 64 };
enum { ABSENT = 1, READ_ONLY = 2, SUPERVISOR = 4, PRIVATE = 8, DEVICE = 16, NO_TABLE = 32, TROUBLE = 64 }; /* what a byte of the script says of a page */
static struct input {
    uint8_t code[INSN_MAX_LEN], assist; /* of the instruction, how many bytes the CPU has told */
    uint64_t rax, rcx, rdi, rip, rflags, fault_gpa;
    uint32_t es_base, es_limit, cs_base;
    uint16_t es_attr, cs_attr;
    uint8_t efer, cr, dr7, cpl, event, align;
    uint8_t page[SCRIPT];
} in;
static uint64_t code_gva, stored;
static unsigned calls;

static uint8_t page_of(uint64_t address) { return in.page[(address >> PAGE_SHIFT) % SCRIPT]; }
static bool in_64_bit(void) { return (in.efer & 1) && (in.cs_attr & 0x200); }

/* ---- what zero_store() stands on ------------------------------------------------------------------------------------------------------------- */

static uint64_t get_reg(struct vcpu *v, enum vcpu_reg r)
{
    (void)v;
    return r == VCPU_EFER ? (in.efer & 1 ? 0x500 : 0) : r == VCPU_CR0 ? (in.cr & 1) : r == VCPU_CR4 ? (in.cr & 2 ? BIT64(12) : 0) : r == VCPU_DR7 ? in.dr7 : 0;
}
static void get_seg(struct vcpu *v, enum vcpu_seg_id s, struct vcpu_seg *out)
{
    (void)v;
    *out = (struct vcpu_seg){.attr = 0xc93, .limit = UINT32_MAX};
    if (s == SEG_CS)
        *out = (struct vcpu_seg){.attr = in.cs_attr, .limit = UINT32_MAX, .base = in.cs_base};
    if (s == SEG_ES)
        *out = (struct vcpu_seg){.attr = in.es_attr, .limit = in.es_limit, .base = in.es_base};
}
static unsigned get_cpl(struct vcpu *v) { (void)v; return in.cpl % 4; }
static bool event_pending(struct vcpu *v) { (void)v; return in.event & 1; }
static const struct hvm_ops ops = {.get_reg = get_reg, .get_seg = get_seg, .cpl = get_cpl, .event_pending = event_pending};
const struct hvm_ops *hvm(void) { return &ops; }

enum guest_walk_result guest_walk(struct vcpu *v, uint64_t gva, unsigned access, bool user, uint64_t *gpa, uint32_t *error)
{
    (void)v;
    uint8_t page = page_of(gva);
    if (user != (in.cpl % 4 == 3) || ++calls > AT_ONCE + 3)
        abort();
    *error = 0;
    *gpa = gva & UINT64_C(0xfffffffffffff);
    if (page & NO_TABLE)
        return GUEST_WALK_BAD_GPA;
    bool fault = (page & ABSENT) || ((access & DMM_WRITE) && (page & READ_ONLY)) || (user && (page & SUPERVISOR));
    return fault ? GUEST_WALK_FAULT : GUEST_WALK_OK;
}

bool dmm_is_zero_without_frame(struct dmm_space *s, gfn_t gfn) { (void)s; return !(page_of(gfn.v << PAGE_SHIFT) & (PRIVATE | DEVICE)); }
bool dmm_gfn_is_ram(const struct dmm_space *s, gfn_t gfn) { (void)s; return !(page_of(gfn.v << PAGE_SHIFT) & DEVICE); }
bool dmm_is_mapped(struct dmm_space *s, gfn_t gfn, unsigned access) { (void)s, (void)access; return !(page_of(gfn.v << PAGE_SHIFT) & TROUBLE); }
enum dmm_fault_result dmm_fault(struct dmm_space *s, gfn_t gfn, unsigned access)
{
    (void)s;
    if (access & DMM_WRITE)
        abort(); /* what is to be stored to gets no frame here */
    return gfn.v & 1 ? DMM_FAULT_STALLED : gfn.v & 2 ? DMM_FAULT_BLOCKED : DMM_FAULT_RETRY;
}
enum dmm_fault_result dmm_read_guest(struct dmm_space *s, uint64_t gpa, void *buf, size_t len)
{
    (void)s;
    for (size_t n = 0; n < len; n++)
        ((uint8_t *)buf)[n] = in.code[(gpa - code_gva + n) % INSN_MAX_LEN];
    return DMM_FAULT_RETRY;
}
void dmm_zero_stored(struct dmm_space *s, uint64_t pages, uint64_t tsc) { (void)s, (void)tsc; stored += pages; }

enum dmm_fault_result dmm_write_guest(struct dmm_space *s, uint64_t gpa, const void *buf, size_t len) { (void)s, (void)gpa, (void)buf, (void)len; abort(); }
bool vdev_bus_mmio(struct vdev_bus *b, struct vcpu *v, uint64_t gpa, unsigned size, bool write, uint64_t *val)
{
    (void)b, (void)v, (void)gpa, (void)size, (void)write, (void)val;
    abort();
}
void vdev_bus_pio(struct vdev_bus *b, struct vcpu *v, uint16_t port, unsigned size, bool read, uint32_t *val)
{
    (void)b, (void)v, (void)port, (void)size, (void)read, (void)val;
    abort();
}
void vcpu_inject_exception(struct vcpu *v, uint8_t vector, bool has_error, uint32_t error) { (void)v, (void)vector, (void)has_error, (void)error; abort(); }
void vcpu_inject_pf(struct vcpu *v, uint64_t cr2, uint32_t error) { (void)v, (void)cr2, (void)error; abort(); }
void vcpu_advance_rip(struct vcpu *v, unsigned len) { v->rip += len; }
void fpu_spill(struct vcpu *v) { (void)v; abort(); }
bool thread_need_resched(void) { return false; }
uint64_t time_tsc(void) { return 1000; }

/* ---- what may have happened ------------------------------------------------------------------------------------------------------------------- */

static void require(bool holds)
{
    if (!holds)
        abort();
}

struct stos { unsigned len, size; uint64_t mask; };

/* Prefixes, then AA or AB; REP and no LOCK; 32- or 64-bit addresses. A REX prefix counts if it is the last. */
static struct stos decode(void)
{
    bool wide_op = false, other_size = false, other_address = false, rep = false, in_32_bit = in_64_bit() || ((in.cs_attr & 0x400) && !(in.rflags & BIT64(17)));
    unsigned n = 0;
    for (; n < INSN_MAX_LEN; n++) {
        bool rex = in_64_bit() && (in.code[n] & 0xf0) == 0x40;
        if (!rex && !memchr("\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3", in.code[n], 11))
            break;
        require(in.code[n] != 0xf0);
        wide_op = rex && in.code[n] & 8;
        other_size |= in.code[n] == 0x66;
        other_address |= in.code[n] == 0x67;
        rep |= in.code[n] == 0xf2 || in.code[n] == 0xf3;
    }
    require(n < INSN_MAX_LEN && (in.code[n] == 0xaa || in.code[n] == 0xab) && rep && in_32_bit && (in_64_bit() || !other_address));
    return (struct stos){n + 1, in.code[n] == 0xaa ? 1 : wide_op ? 8 : other_size ? 2 : 4, in_64_bit() && !other_address ? UINT64_MAX : UINT32_MAX};
}

static void check_page(uint64_t offset)
{
    uint64_t gva = in_64_bit() ? offset : (in.es_base + offset) & UINT32_MAX, last = offset + PAGE_SIZE - 1;
    require(gva % PAGE_SIZE == 0);
    require(!(page_of(gva) & (ABSENT | READ_ONLY | NO_TABLE | PRIVATE | DEVICE)) && !(in.cpl % 4 == 3 && page_of(gva) & SUPERVISOR));
    if (in_64_bit()) {
        unsigned unused = in.cr & 2 ? 7 : 16;
        require((uint64_t)((int64_t)(gva << unused) >> unused) == gva);
        return;
    }
    bool down = (in.es_attr & 0xc) == 4;
    require(down ? offset > in.es_limit : last <= in.es_limit);
    if (in.cr & 1) /* present, and data that may be written */
        require(!(in.es_attr & 0x8000) && (in.es_attr & 0x80) && (in.es_attr & 0xa) == 2);
}

static void check_stored(const struct vcpu *before, const struct vcpu *v)
{
    struct stos i = decode();
    uint64_t from = before->gpr[GPR_RDI] & i.mask, count = before->gpr[GPR_RCX] & i.mask, elements = stored * PAGE_SIZE / i.size;
    require(stored && stored <= AT_ONCE && count >= elements);
    require(!(before->rflags & (BIT64(8) | BIT64(10))) && !in.dr7 && !(in.event & 1) && !(before->exit.u.fault.gpa % PAGE_SIZE));
    require(!(before->gpr[GPR_RAX] & (i.size == 8 ? UINT64_MAX : BIT64(8 * i.size) - 1)));
    for (uint64_t n = 0; n < stored; n++)
        check_page((from + n * PAGE_SIZE) & i.mask);
    require(v->gpr[GPR_RDI] == ((from + stored * PAGE_SIZE) & i.mask) && v->gpr[GPR_RCX] == count - elements);
    require(v->rip == before->rip + (v->gpr[GPR_RCX] ? 0 : i.len));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct vcpu v, before;
    static struct vm vm;
    if (size < offsetof(struct input, page))
        return 0;
    memset(&in, 0, sizeof(in));
    memcpy(&in, data, size < sizeof(in) ? size : sizeof(in));
    memset(&v, 0, sizeof(v));
    v.vm = &vm;
    v.gpr[GPR_RAX] = in.rax;
    v.gpr[GPR_RCX] = in.rcx;
    v.gpr[GPR_RDI] = in.align & 1 ? in.rdi : in.rdi << PAGE_SHIFT;
    v.rip = in.rip;
    v.rflags = in.rflags;
    v.exit.u.fault.gpa = in.align & 2 ? in.fault_gpa : in.fault_gpa << PAGE_SHIFT;
    v.exit.insn_bytes_len = in.assist % (INSN_MAX_LEN + 1);
    memcpy(v.exit.insn_bytes, in.code, INSN_MAX_LEN);
    code_gva = (in_64_bit() ? in.rip : (in.cs_base + in.rip) & UINT32_MAX) & UINT64_C(0xfffffffffffff);
    stored = calls = 0;
    before = v;
    bool done = zero_store(&v);
    if (done)
        check_stored(&before, &v);
    else
        require(!stored && v.rip == before.rip);
    for (unsigned k = 0; k < 16; k++) {
        if (!done || (k != GPR_RCX && k != GPR_RDI))
            require(v.gpr[k] == before.gpr[k]);
        v.gpr[k] = before.gpr[k];
    }
    v.rip = before.rip;
    require(!memcmp(&v, &before, sizeof(v)));
    return 0;
}
