/*
 * The emulator bound to a vCPU: linear addresses go through the guest's own page tables with its own rights, then to
 * RAM (DMM) or to a device window. All pages of an access are translated, and RAM brought in, before the first byte
 * moves: an access either happens or leaves no trace, also when it straddles a page or a window's edge.
 *
 * A guest with several vCPUs may change the instruction, or the tables, between the exit and our look at them. Nothing
 * here trusts the exit for permission: every access is checked anew with the guest's CPL. Port strings are the
 * exception, because the CPU checked IOPL and the I/O bitmap for the port of the exit only; so the instruction found
 * must be that very access.
 */
#include "vm/emulate.h"

#include "include/hv/vdev.h"
#include "lib/string.h"
#include "vm/emulate_internal.h"
#include "vm/vm_internal.h"

_Static_assert((int)EMULATE_RDI == (int)GPR_RDI && (int)EMULATE_RSP == (int)GPR_RSP && SEG_GS == 5, "one register order everywhere");

struct piece { uint64_t gpa; unsigned size; bool ram; };

static enum emulate_result translate_page(struct vcpu *v, uint64_t gva, unsigned access, uint64_t *gpa, bool *ram,
    struct emulate_outcome *out)
{
    uint32_t error = 0;
    switch (guest_walk(v, gva, access, hvm()->cpl(v) == 3, gpa, &error)) {
    case GUEST_WALK_OK: break;
    case GUEST_WALK_FAULT:
        out->fault = (struct emulate_fault){.vector = VECTOR_PF, .has_error = true, .error_code = error, .cr2 = gva};
        return EMULATE_FAULT;
    default: return EMULATE_UNSUPPORTED; /* the guest's tables are no memory */
    }
    out->gfn = gpa_to_gfn(*gpa);
    *ram = dmm_gfn_is_ram(v->space, out->gfn);
    if (!*ram)
        return EMULATE_DONE;
    access = access & DMM_WRITE ? DMM_READ | DMM_WRITE : DMM_READ;
    if (dmm_is_mapped(v->space, out->gfn, access))
        return EMULATE_DONE;
    switch (dmm_fault(v->space, out->gfn, access)) {
    case DMM_FAULT_RETRY: return EMULATE_DONE;
    case DMM_FAULT_BLOCKED: return EMULATE_BLOCKED;
    case DMM_FAULT_STALLED: return EMULATE_STALLED;
    default: return EMULATE_UNSUPPORTED;
    }
}

/* Splits [gva, gva+size), size <= 16, at the page boundary; *count pieces. */
static enum emulate_result translate(struct vcpu *v, uint64_t gva, unsigned size, unsigned access, struct piece p[2], unsigned *count,
    struct emulate_outcome *out)
{
    for (*count = 0; size; ++*count) {
        struct piece *q = &p[*count];
        q->size = (unsigned)MIN((uint64_t)size, PAGE_SIZE - (gva & (PAGE_SIZE - 1)));
        enum emulate_result r = translate_page(v, gva, access, &q->gpa, &q->ram, out);
        if (r != EMULATE_DONE)
            return r;
        gva += q->size;
        size -= q->size;
        if (!(hvm()->get_reg(v, VCPU_EFER) & BIT64(10)))
            gva &= 0xffffffff; /* outside long mode linear addresses wrap at 4 GiB */
    }
    return EMULATE_DONE;
}

static enum emulate_result probe(void *ctx, uint64_t gva, unsigned size, bool write, struct emulate_outcome *out)
{
    struct piece p[2];
    unsigned count;
    return translate(ctx, gva, size, write ? DMM_READ | DMM_WRITE : DMM_READ, p, &count, out);
}

/* In naturally sized parts: a device sees 1, 2, 4 and 8 bytes. What no device claims reads as ones. */
static void device_access(struct vcpu *v, uint64_t gpa, uint8_t *buf, unsigned size, bool write)
{
    while (size) {
        unsigned part = size >= 8 ? 8 : size >= 4 ? 4 : size >= 2 ? 2 : 1;
        uint64_t val = 0;
        if (write)
            memcpy(&val, buf, part);
        if (!vdev_bus_mmio(v->vm->bus, v, gpa, part, write, &val) && !write)
            val = ~UINT64_C(0);
        if (!write)
            memcpy(buf, &val, part);
        gpa += part;
        buf += part;
        size -= part;
    }
}

static enum emulate_result of_dmm(enum dmm_fault_result r)
{
    return r == DMM_FAULT_RETRY ? EMULATE_DONE : r == DMM_FAULT_BLOCKED ? EMULATE_BLOCKED : r == DMM_FAULT_STALLED ? EMULATE_STALLED :
        EMULATE_UNSUPPORTED;
}

static enum emulate_result access_guest(struct vcpu *v, uint64_t gva, uint8_t *buf, unsigned size, bool write, struct emulate_outcome *out)
{
    struct piece p[2];
    unsigned count;
    enum emulate_result r = translate(v, gva, size, write ? DMM_READ | DMM_WRITE : DMM_READ, p, &count, out);
    for (unsigned n = 0; r == EMULATE_DONE && n < count; buf += p[n++].size) {
        if (!p[n].ram)
            device_access(v, p[n].gpa, buf, p[n].size, write);
        else if (write)
            r = of_dmm(dmm_write_guest(v->space, p[n].gpa, buf, p[n].size));
        else
            r = of_dmm(dmm_read_guest(v->space, p[n].gpa, buf, p[n].size));
    }
    return r;
}

static enum emulate_result read_guest(void *ctx, uint64_t gva, void *buf, unsigned size, struct emulate_outcome *out)
{
    return access_guest(ctx, gva, buf, size, false, out);
}

static enum emulate_result write_guest(void *ctx, uint64_t gva, const void *buf, unsigned size, struct emulate_outcome *out)
{
    uint8_t copy[16];
    memcpy(copy, buf, size);
    return access_guest(ctx, gva, copy, size, true, out);
}

static void port(void *ctx, uint16_t number, unsigned size, bool in, uint32_t *val)
{
    struct vcpu *v = ctx;
    vdev_bus_pio(v->vm->bus, v, number, size, in, val);
}

static bool preempt(void *ctx)
{
    struct vcpu *v = ctx;
    return v->kick_pending || thread_need_resched();
}

/* XSAVE image (AMD APM vol. 2 section 11.5): XMM0 at 160; the bit of XSTATE_BV at 512 makes XRSTOR load the XMM
 * registers from it. */
#define XSAVE_XMM_OFFSET 160
#define XSAVE_XSTATE_BV_OFFSET 512
#define XSTATE_SSE 2

static void get_xmm(void *ctx, unsigned reg, uint8_t val[16])
{
    struct vcpu *v = ctx;
    fpu_spill(v);
    memcpy(val, (const uint8_t *)v->fpu_area + XSAVE_XMM_OFFSET + 16 * reg, 16);
}

static void set_xmm(void *ctx, unsigned reg, const uint8_t val[16])
{
    struct vcpu *v = ctx;
    fpu_spill(v);
    memcpy((uint8_t *)v->fpu_area + XSAVE_XMM_OFFSET + 16 * reg, val, 16);
    ((uint8_t *)v->fpu_area)[XSAVE_XSTATE_BV_OFFSET] |= XSTATE_SSE;
}

static const struct emulate_ops vcpu_ops = {
    .probe = probe, .read = read_guest, .write = write_guest, .port = port, .get_xmm = get_xmm, .set_xmm = set_xmm, .preempt = preempt,
};

static void load_state(struct vcpu *v, struct emulate_state *s)
{
    memcpy(s->gpr, v->gpr, sizeof s->gpr);
    s->rip = v->rip;
    s->rflags = v->rflags;
    s->cr0 = hvm()->get_reg(v, VCPU_CR0);
    s->cr4 = hvm()->get_reg(v, VCPU_CR4);
    s->efer = hvm()->get_reg(v, VCPU_EFER);
    for (unsigned k = SEG_ES; k <= SEG_GS; k++)
        hvm()->get_seg(v, k, &s->seg[k]);
    s->cpl = (uint8_t)hvm()->cpl(v);
}

static void inject(struct vcpu *v, const struct emulate_fault *f)
{
    if (f->vector == VECTOR_PF)
        vcpu_inject_pf(v, f->cr2, f->error_code);
    else
        vcpu_inject_exception(v, f->vector, f->has_error, f->error_code);
}

/* Bytes at RIP up to the page's end, and beyond only if the instruction really goes on there. */
static enum emulate_result fetch(struct vcpu *v, const struct emulate_state *s, struct insn *i, struct emulate_outcome *out)
{
    enum insn_mode mode = emulate_mode(s);
    uint64_t gva = mode == INSN_MODE_64 ? s->rip : (s->seg[SEG_CS].base + s->rip) & 0xffffffff;
    enum insn_result r = INSN_NEED_MORE;
    out->byte_count = 0;
    if (v->exit.insn_bytes_len) {
        out->byte_count = MIN(v->exit.insn_bytes_len, (uint8_t)INSN_MAX_LEN);
        memcpy(out->bytes, v->exit.insn_bytes, out->byte_count);
        r = insn_decode(out->bytes, out->byte_count, mode, i);
        if (r == INSN_NEED_MORE)
            out->byte_count = 0; /* hardware stopped at the page's end: fetch it all again, to get the right fault */
    }
    while (r == INSN_NEED_MORE) {
        uint64_t at = gva + out->byte_count, gpa;
        unsigned room = INSN_MAX_LEN - out->byte_count, part = (unsigned)MIN((uint64_t)room, PAGE_SIZE - (at & (PAGE_SIZE - 1)));
        bool ram;
        if (mode != INSN_MODE_64)
            at &= 0xffffffff;
        enum emulate_result e = translate_page(v, at, DMM_EXEC, &gpa, &ram, out);
        if (e != EMULATE_DONE)
            return e;
        if (!ram)
            return EMULATE_UNSUPPORTED; /* executing from a device or a hole */
        e = of_dmm(dmm_read_guest(v->space, gpa, out->bytes + out->byte_count, part));
        if (e != EMULATE_DONE)
            return e;
        out->byte_count = (uint8_t)(out->byte_count + part);
        r = insn_decode(out->bytes, out->byte_count, mode, i);
    }
    if (r == INSN_OK) {
        out->byte_count = i->len;
        return EMULATE_DONE;
    }
    out->fault = (struct emulate_fault){.vector = r == INSN_INVALID ? VECTOR_UD : VECTOR_GP, .has_error = r != INSN_INVALID && (s->cr0 & 1)};
    return EMULATE_FAULT;
}

enum emulate_result emulate_vcpu_look(struct vcpu *v, struct emulate_state *s, struct insn *i, struct emulate_outcome *out)
{
    load_state(v, s);
    return fetch(v, s, i, out);
}

enum emulate_result emulate_vcpu_fetch(struct vcpu *v, struct insn *i, struct emulate_outcome *out)
{
    struct emulate_state s;
    enum emulate_result r = emulate_vcpu_look(v, &s, i, out);
    if (r == EMULATE_FAULT)
        inject(v, &out->fault);
    return r;
}

/* Is the string instruction at RIP the access that the CPU has checked the permission for? */
static bool same_port_access(const struct vcpu *v, const struct emulate_state *s, const struct insn *i)
{
    bool in = (i->opcode & 0xfe) == 0x6c;
    unsigned size = i->opcode & 1 ? MIN(i->op_size, 4) : 1;
    return v->exit.kind == VM_EXIT_PIO && v->exit.u.io.string && emulate_is_string(i, EMULATE_STRING_IO) && v->exit.u.io.in == in &&
        v->exit.u.io.size == size && v->exit.u.io.port == (uint16_t)s->gpr[EMULATE_RDX];
}

enum emulate_result emulate_vcpu(struct vcpu *v, enum emulate_kind kind, struct emulate_outcome *out)
{
    struct emulate_state s;
    struct insn i;
    *out = (struct emulate_outcome){0};
    load_state(v, &s);
    enum emulate_result r = fetch(v, &s, &i, out);
    if (r == EMULATE_DONE) {
        if (kind == EMULATE_STRING_IO && !same_port_access(v, &s, &i))
            return EMULATE_AGAIN;
        r = emulate_insn(&s, &vcpu_ops, v, &i, kind, out);
        memcpy(v->gpr, s.gpr, sizeof v->gpr); /* unchanged, or as far as a REP got */
        v->rflags = s.rflags;
    }
    if (r == EMULATE_DONE)
        vcpu_advance_rip(v, i.len);
    else if (r == EMULATE_FAULT)
        inject(v, &out->fault);
    return r;
}

enum emulate_result emulate_vcpu_cr(struct vcpu *v, struct emulate_cr *cr, struct emulate_outcome *out)
{
    struct emulate_state s;
    struct insn i;
    *out = (struct emulate_outcome){0};
    load_state(v, &s);
    enum emulate_result r = fetch(v, &s, &i, out);
    if (r == EMULATE_DONE && !emulate_decode_cr(&s, &i, cr))
        return EMULATE_UNSUPPORTED;
    if (r == EMULATE_DONE && cr->kind == EMULATE_LMSW && cr->gpr == INSN_NO_REG) {
        struct emulation e = {&s, &vcpu_ops, v, &i, out};
        r = emulate_load(&e, i.mem.seg, emulate_offset(&s, &i), 2, &cr->value);
    }
    if (r == EMULATE_FAULT)
        inject(v, &out->fault);
    return r;
}

enum emulate_result emulate_vcpu_cr_finish(struct vcpu *v, const struct emulate_cr *cr, uint64_t value, struct emulate_outcome *out)
{
    struct emulate_state s;
    struct insn i;
    enum emulate_result r = EMULATE_DONE;
    load_state(v, &s);
    bool long_mode = emulate_mode(&s) == INSN_MODE_64;
    if (cr->kind == EMULATE_MOV_FROM_CR || cr->kind == EMULATE_MOV_FROM_DR) {
        v->gpr[cr->gpr] = long_mode ? value : value & 0xffffffff;
    } else if (cr->kind == EMULATE_SMSW) {
        if ((r = fetch(v, &s, &i, out)) == EMULATE_DONE) {
            struct emulation e = {&s, &vcpu_ops, v, &i, out};
            if (cr->gpr == INSN_NO_REG && i.has_mem)
                r = emulate_store(&e, i.mem.seg, emulate_offset(&s, &i), 2, value);
            else if (cr->gpr != INSN_NO_REG) {
                emulate_set_reg(&s, &i, cr->gpr, i.op_size, value);
                v->gpr[cr->gpr] = s.gpr[cr->gpr];
            }
        }
        if (r == EMULATE_FAULT)
            inject(v, &out->fault);
    }
    if (r == EMULATE_DONE)
        vcpu_advance_rip(v, cr->len);
    return r;
}
