/*
 * MOVS, CMPS, STOS, LODS, SCAS, INS, OUTS with REP. Each iteration is an instruction of its own: it probes what it will
 * write, then reads, then writes, then moves RSI, RDI and RCX; so a fault, a missing page or an interrupt between two
 * iterations leaves exactly the state from which the CPU (or we) can go on, with RIP still at the instruction.
 */
#include "vm/emulate_internal.h"

enum string_op { STRING_NONE, STRING_MOVS, STRING_CMPS, STRING_STOS, STRING_LODS, STRING_SCAS, STRING_INS, STRING_OUTS };

static enum string_op string_op(const struct insn *i)
{
    if (i->map != INSN_MAP_ONE || i->encoding != INSN_LEGACY)
        return STRING_NONE;
    switch (i->opcode & 0xfe) {
    case 0x6c: return STRING_INS;
    case 0x6e: return STRING_OUTS;
    case 0xa4: return STRING_MOVS;
    case 0xa6: return STRING_CMPS;
    case 0xaa: return STRING_STOS;
    case 0xac: return STRING_LODS;
    case 0xae: return STRING_SCAS;
    default: return STRING_NONE;
    }
}

bool emulate_is_string(const struct insn *i, enum emulate_kind kind)
{
    enum string_op op = string_op(i);
    return op != STRING_NONE && (op >= STRING_INS) == (kind == EMULATE_STRING_IO);
}

struct string_state { enum string_op op; unsigned size, seg; uint64_t step; };

/* Index and count registers are as wide as addresses; a 32-bit one in 64-bit mode is zero-extended when written. */
static void bump(struct emulation *e, unsigned reg, uint64_t by)
{
    uint64_t v = e->s->gpr[reg] + by;
    emulate_set_reg(e->s, e->i, reg, e->i->addr_size, v);
}

static enum emulate_result port_io(struct emulation *e, const struct string_state *t, uint64_t si, uint64_t di)
{
    uint64_t val = 0;
    uint32_t data = 0;
    uint16_t port = (uint16_t)e->s->gpr[EMULATE_RDX];
    enum emulate_result r;
    if (t->op == STRING_OUTS) {
        if ((r = emulate_load(e, t->seg, si, t->size, &val)) == EMULATE_DONE) {
            data = (uint32_t)val;
            e->ops->port(e->ctx, port, t->size, false, &data);
        }
        return r;
    }
    if ((r = emulate_probe(e, SEG_ES, di, t->size, true)) != EMULATE_DONE)
        return r; /* before the port is read: reading may change the device */
    e->ops->port(e->ctx, port, t->size, true, &data);
    return emulate_store(e, SEG_ES, di, t->size, data);
}

static enum emulate_result one_iteration(struct emulation *e, const struct string_state *t)
{
    struct emulate_state *s = e->s;
    uint64_t si = s->gpr[EMULATE_RSI] & size_mask(e->i->addr_size), di = s->gpr[EMULATE_RDI] & size_mask(e->i->addr_size), a, b;
    uint64_t acc = s->gpr[EMULATE_RAX] & size_mask(t->size);
    enum emulate_result r = EMULATE_DONE;
    switch (t->op) {
    case STRING_MOVS:
        if ((r = emulate_probe(e, SEG_ES, di, t->size, true)) == EMULATE_DONE &&
            (r = emulate_load(e, t->seg, si, t->size, &a)) == EMULATE_DONE)
            r = emulate_store(e, SEG_ES, di, t->size, a);
        break;
    case STRING_CMPS:
        if ((r = emulate_probe(e, SEG_ES, di, t->size, false)) == EMULATE_DONE &&
            (r = emulate_load(e, t->seg, si, t->size, &a)) == EMULATE_DONE &&
            (r = emulate_load(e, SEG_ES, di, t->size, &b)) == EMULATE_DONE)
            alu(ALU_CMP, a, b, t->size, &s->rflags);
        break;
    case STRING_STOS: r = emulate_store(e, SEG_ES, di, t->size, acc); break;
    case STRING_LODS:
        if ((r = emulate_load(e, t->seg, si, t->size, &a)) == EMULATE_DONE)
            emulate_set_reg(s, e->i, EMULATE_RAX, t->size, a);
        break;
    case STRING_SCAS:
        if ((r = emulate_load(e, SEG_ES, di, t->size, &b)) == EMULATE_DONE)
            alu(ALU_CMP, acc, b, t->size, &s->rflags);
        break;
    default: r = port_io(e, t, si, di); break;
    }
    if (r != EMULATE_DONE)
        return r;
    if (t->op != STRING_STOS && t->op != STRING_SCAS && t->op != STRING_INS)
        bump(e, EMULATE_RSI, t->step);
    if (t->op != STRING_LODS && t->op != STRING_OUTS)
        bump(e, EMULATE_RDI, t->step);
    return EMULATE_DONE;
}

enum emulate_result emulate_string(struct emulation *e)
{
    const struct insn *i = e->i;
    struct emulate_state *s = e->s;
    struct string_state t = {.op = string_op(i), .size = i->opcode & 1 ? i->op_size : 1};
    if (t.op >= STRING_INS && t.size == 8)
        t.size = 4; /* REX.W does not widen port I/O */
    t.seg = i->seg_override != INSN_NO_REG ? i->seg_override : SEG_DS;
    t.step = s->rflags & FLAG_DF ? -(uint64_t)t.size : t.size;
    bool compares = t.op == STRING_CMPS || t.op == STRING_SCAS;
    for (unsigned n = 0;; n++) {
        if (i->rep && (s->gpr[EMULATE_RCX] & size_mask(i->addr_size)) == 0)
            break;
        if (n == EMULATE_MAX_ITERATIONS || (n > 0 && e->ops->preempt && e->ops->preempt(e->ctx)))
            return EMULATE_AGAIN;
        enum emulate_result r = one_iteration(e, &t);
        if (r != EMULATE_DONE)
            return r;
        if (!i->rep)
            break;
        bump(e, EMULATE_RCX, -UINT64_C(1));
        if (compares && (i->rep == 0xf3) != !!(s->rflags & FLAG_ZF))
            break;
    }
    emulate_advance(s, i);
    return EMULATE_DONE;
}
