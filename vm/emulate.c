/*
 * The emulator's theory: of the thousand x86 instructions, those that drivers use on device registers are moves, the
 * two-operand arithmetic of the first 64 opcodes, bit tests, exchanges and string operations; everything else is
 * refused by name rather than half done. Flags are computed, not borrowed from the host CPU: the code is the same on
 * every machine and the host test compares it with the CPU's own result. LOCK is accepted and means nothing here: a
 * device window serializes in its device, and the window's accesses are not atomic on a real bus either.
 */
#include "vm/emulate_internal.h"

#include "lib/string.h"

/* ---- registers and flags ------------------------------------------------------------------------------------- */

static bool high_byte(const struct insn *i, unsigned reg, unsigned size)
{
    return size == 1 && !i->has_rex && reg >= 4 && reg < 8; /* AH CH DH BH */
}

uint64_t emulate_get_reg(const struct emulate_state *s, const struct insn *i, unsigned reg, unsigned size)
{
    return high_byte(i, reg, size) ? (s->gpr[reg - 4] >> 8) & 0xff : s->gpr[reg] & size_mask(size);
}

void emulate_set_reg(struct emulate_state *s, const struct insn *i, unsigned reg, unsigned size, uint64_t val)
{
    val &= size_mask(size);
    if (high_byte(i, reg, size))
        s->gpr[reg - 4] = (s->gpr[reg - 4] & ~UINT64_C(0xff00)) | val << 8;
    else if (size >= 4)
        s->gpr[reg] = val; /* 32-bit results are zero-extended */
    else
        s->gpr[reg] = (s->gpr[reg] & ~size_mask(size)) | val;
}

void emulate_advance(struct emulate_state *s, const struct insn *i)
{
    s->rip += i->len;
    if (i->mode != INSN_MODE_64)
        s->rip &= i->mode == INSN_MODE_32 ? 0xffffffff : 0xffff;
}

uint64_t alu(enum alu_op op, uint64_t dst, uint64_t src, unsigned size, uint64_t *flags)
{
    uint64_t mask = size_mask(size), top = BIT64(8 * size - 1), r, carries = 0, overflow = 0, f = 0;
    uint64_t carry_in = (op == ALU_ADC || op == ALU_SBB) ? *flags & FLAG_CF : 0;
    dst &= mask;
    src &= mask;
    switch (op) {
    case ALU_ADD: case ALU_ADC:
        r = dst + src + carry_in;
        carries = (dst & src) | ((dst | src) & ~r);
        overflow = (dst ^ r) & (src ^ r);
        f = (dst ^ src ^ r) & FLAG_AF;
        break;
    case ALU_SUB: case ALU_SBB: case ALU_CMP:
        r = dst - src - carry_in;
        carries = (~dst & src) | ((~dst | src) & r);
        overflow = (dst ^ src) & (dst ^ r);
        f = (dst ^ src ^ r) & FLAG_AF;
        break;
    case ALU_OR: r = dst | src; break;
    case ALU_AND: r = dst & src; break;
    default: r = dst ^ src; break;
    }
    r &= mask;
    f |= (carries & top ? FLAG_CF : 0) | (overflow & top ? FLAG_OF : 0) | (r & top ? FLAG_SF : 0) | (r == 0 ? FLAG_ZF : 0);
    f |= __builtin_parity((unsigned)(r & 0xff)) ? 0 : FLAG_PF;
    *flags = (*flags & ~FLAGS_ARITH) | f;
    return r;
}

/* ---- addressing ---------------------------------------------------------------------------------------------- */

enum insn_mode emulate_mode(const struct emulate_state *s)
{
    if ((s->efer & BIT64(10)) && (s->seg[SEG_CS].attr & 0x200))
        return INSN_MODE_64;
    return (s->seg[SEG_CS].attr & 0x400) && !(s->rflags & FLAG_VM) ? INSN_MODE_32 : INSN_MODE_16;
}

uint64_t emulate_offset(const struct emulate_state *s, const struct insn *i)
{
    uint64_t off = (uint64_t)i->mem.disp;
    if (i->mem.base == INSN_RIP)
        off += s->rip + i->len;
    else if (i->mem.base != INSN_NO_REG)
        off += s->gpr[i->mem.base];
    if (i->mem.index != INSN_NO_REG)
        off += s->gpr[i->mem.index] * i->mem.scale;
    return off & size_mask(i->addr_size);
}

/* Segment limit and type as AMD APM vol. 2 section 4.7 has them; offsets are at most 32 bits here. */
static bool segment_permits(const struct emulate_state *s, const struct vcpu_seg *g, uint64_t offset, unsigned size, bool write)
{
    bool code = g->attr & 8, down = !code && (g->attr & 4);
    uint64_t last = offset + size - 1;
    if ((s->cr0 & 1) && !(s->rflags & FLAG_VM)) {
        if ((g->attr & 0x8000) || !(g->attr & 0x80))
            return false;
        if (write ? code || !(g->attr & 2) : code && !(g->attr & 2))
            return false;
    }
    if (down)
        return offset > g->limit && last <= (g->attr & 0x400 ? 0xffffffff : 0xffff);
    return last <= g->limit;
}

bool emulate_linear(const struct emulate_state *s, unsigned seg, uint64_t offset, unsigned size, bool write, uint64_t *gva,
    struct emulate_fault *f)
{
    const struct vcpu_seg *g = &s->seg[seg];
    bool ok;
    if (emulate_mode(s) == INSN_MODE_64) {
        unsigned unused = s->cr4 & BIT64(12) ? 7 : 16; /* LA57 or not: the upper bits repeat the highest one in use */
        *gva = offset + (seg == SEG_FS || seg == SEG_GS ? g->base : 0);
        uint64_t last = *gva + size - 1;
        ok = (uint64_t)((int64_t)(*gva << unused) >> unused) == *gva && (uint64_t)((int64_t)(last << unused) >> unused) == last;
    } else {
        *gva = (g->base + offset) & 0xffffffff;
        ok = segment_permits(s, g, offset, size, write);
    }
    if (!ok)
        *f = (struct emulate_fault){.vector = seg == SEG_SS ? VECTOR_SS : VECTOR_GP, .has_error = s->cr0 & 1};
    return ok;
}

enum emulate_result emulate_raise(struct emulation *e, uint8_t vector)
{
    e->out->fault = (struct emulate_fault){.vector = vector, .has_error = vector >= VECTOR_SS && (e->s->cr0 & 1)};
    return EMULATE_FAULT;
}

enum emulate_result emulate_probe(struct emulation *e, unsigned seg, uint64_t offset, unsigned size, bool write)
{
    uint64_t gva;
    if (!emulate_linear(e->s, seg, offset, size, write, &gva, &e->out->fault))
        return EMULATE_FAULT;
    return e->ops->probe(e->ctx, gva, size, write, e->out);
}

enum emulate_result emulate_load(struct emulation *e, unsigned seg, uint64_t offset, unsigned size, uint64_t *val)
{
    uint64_t gva;
    *val = 0;
    if (!emulate_linear(e->s, seg, offset, size, false, &gva, &e->out->fault))
        return EMULATE_FAULT;
    return e->ops->read(e->ctx, gva, val, size, e->out);
}

enum emulate_result emulate_store(struct emulation *e, unsigned seg, uint64_t offset, unsigned size, uint64_t val)
{
    uint64_t gva;
    if (!emulate_linear(e->s, seg, offset, size, true, &gva, &e->out->fault))
        return EMULATE_FAULT;
    return e->ops->write(e->ctx, gva, &val, size, e->out);
}

/* ---- what an instruction does
 * ---------------------------------------------------------------------------------------- */

enum action {
    ACT_NONE,
    ACT_LOAD,      /* reg <- mem, zero- or sign-extended */
    ACT_STORE,     /* mem <- src */
    ACT_ALU_MEM,   /* mem op= src (CMP: flags only) */
    ACT_ALU_REG,   /* reg op= mem */
    ACT_TEST,      /* flags of mem & src */
    ACT_NOT, ACT_NEG, ACT_INC, ACT_DEC,
    ACT_XCHG, ACT_XADD, ACT_CMPXCHG,
    ACT_BIT,       /* op: 0 BT, 1 BTS, 2 BTR, 3 BTC */
    ACT_PUSH, ACT_POP,
};

struct plan {
    enum action act;
    unsigned size;         /* of the memory operand */
    unsigned reg_size;     /* of the register operand */
    unsigned op;           /* alu_op, or BIT's */
    bool sign, swap;       /* LOAD: sign-extend; LOAD, STORE: byte-swap (MOVBE) */
    bool from_imm;         /* the source is the immediate */
    bool lockable;
    unsigned reg;
};

static void plan_one_byte(const struct insn *i, struct plan *p)
{
    uint8_t op = i->opcode, sub = i->modrm >> 3 & 7;
    p->size = p->reg_size = op & 1 ? i->op_size : 1;
    if (op < 0x40 && (op & 7) < 4) {
        p->act = op & 2 ? ACT_ALU_REG : ACT_ALU_MEM;
        p->op = op >> 3;
        p->lockable = p->act == ACT_ALU_MEM && p->op != ALU_CMP;
        return;
    }
    switch (op) {
    case 0x63:
        p->act = i->mode == INSN_MODE_64 ? ACT_LOAD : ACT_NONE; /* elsewhere ARPL */
        p->size = MIN(i->op_size, 4);
        p->reg_size = i->op_size;
        p->sign = true;
        break;
    case 0x80: case 0x81: case 0x82: case 0x83:
        p->act = ACT_ALU_MEM;
        p->op = sub;
        p->from_imm = true;
        p->lockable = sub != ALU_CMP;
        break;
    case 0x84: case 0x85: p->act = ACT_TEST; break;
    case 0x86: case 0x87: p->act = ACT_XCHG; p->lockable = true; break;
    case 0x88: case 0x89: case 0xa2: case 0xa3: p->act = ACT_STORE; break;
    case 0x8a: case 0x8b: case 0xa0: case 0xa1: p->act = ACT_LOAD; break;
    case 0x8f: p->act = sub == 0 ? ACT_POP : ACT_NONE; break;
    case 0xc6: case 0xc7: p->act = sub == 0 ? ACT_STORE : ACT_NONE; p->from_imm = true; break;
    case 0xf6: case 0xf7:
        p->act = sub < 2 ? ACT_TEST : sub == 2 ? ACT_NOT : sub == 3 ? ACT_NEG : ACT_NONE;
        p->from_imm = true;
        p->lockable = sub == 2 || sub == 3;
        break;
    case 0xfe: p->act = sub == 0 ? ACT_INC : sub == 1 ? ACT_DEC : ACT_NONE; p->lockable = true; break;
    case 0xff:
        p->act = sub == 0 ? ACT_INC : sub == 1 ? ACT_DEC : sub == 6 ? ACT_PUSH : ACT_NONE;
        p->lockable = sub < 2;
        break;
    default: break;
    }
}

static void plan_0f(const struct insn *i, struct plan *p)
{
    uint8_t op = i->opcode, sub = i->modrm >> 3 & 7;
    p->size = p->reg_size = i->op_size;
    switch (op) {
    case 0xa3: case 0xab: case 0xb3: case 0xbb: p->act = ACT_BIT; p->op = (op >> 3) & 3; p->lockable = p->op != 0; break;
    case 0xba:
        p->act = sub >= 4 ? ACT_BIT : ACT_NONE;
        p->op = sub & 3;
        p->from_imm = true;
        p->lockable = p->op != 0;
        break;
    case 0xb0: case 0xb1: p->act = ACT_CMPXCHG; break;
    case 0xb6: case 0xb7: case 0xbe: case 0xbf:
        p->act = ACT_LOAD;
        p->size = op & 1 ? 2 : 1;
        p->sign = op >= 0xbe;
        break;
    case 0xc0: case 0xc1: p->act = ACT_XADD; break;
    case 0xc3: p->act = i->rep || i->opsize_prefix ? ACT_NONE : ACT_STORE; break; /* MOVNTI */
    default: break;
    }
    if (p->act == ACT_CMPXCHG || p->act == ACT_XADD) {
        p->size = p->reg_size = op & 1 ? i->op_size : 1;
        p->lockable = true;
    }
}

static struct plan plan_of(const struct insn *i)
{
    struct plan p = {.act = ACT_NONE, .reg = i->reg};
    if (i->encoding != INSN_LEGACY || !i->has_mem)
        return p;
    if (i->map == INSN_MAP_ONE) {
        plan_one_byte(i, &p);
        if (!i->has_modrm)
            p.reg = EMULATE_RAX; /* moffs */
    } else if (i->map == INSN_MAP_0F) {
        plan_0f(i, &p);
    } else if (i->map == INSN_MAP_0F38 && (i->opcode & 0xfe) == 0xf0 && !i->rep) { /* MOVBE */
        p.act = i->opcode & 1 ? ACT_STORE : ACT_LOAD;
        p.size = p.reg_size = i->op_size;
        p.swap = true;
    }
    return p;
}

static uint64_t byte_swap(uint64_t v, unsigned size)
{
    return __builtin_bswap64(v) >> (64 - 8 * size);
}

static enum emulate_result do_push(struct emulation *e, unsigned size, uint64_t offset)
{
    struct emulate_state *s = e->s;
    unsigned width = e->i->mode == INSN_MODE_64 ? 8 : s->seg[SEG_SS].attr & 0x400 ? 4 : 2;
    uint64_t sp = (s->gpr[EMULATE_RSP] - size) & size_mask(width), val;
    enum emulate_result r = emulate_probe(e, SEG_SS, sp, size, true);
    if (r != EMULATE_DONE || (r = emulate_load(e, e->i->mem.seg, offset, size, &val)) != EMULATE_DONE ||
        (r = emulate_store(e, SEG_SS, sp, size, val)) != EMULATE_DONE)
        return r;
    emulate_set_reg(s, e->i, EMULATE_RSP, width, sp);
    return EMULATE_DONE;
}

/* The destination's address is computed with RSP already moved. */
static enum emulate_result do_pop(struct emulation *e, unsigned size)
{
    struct emulate_state *s = e->s, moved = *s;
    unsigned width = e->i->mode == INSN_MODE_64 ? 8 : s->seg[SEG_SS].attr & 0x400 ? 4 : 2;
    uint64_t sp = s->gpr[EMULATE_RSP] & size_mask(width), val;
    emulate_set_reg(&moved, e->i, EMULATE_RSP, width, sp + size);
    uint64_t offset = emulate_offset(&moved, e->i);
    enum emulate_result r = emulate_probe(e, e->i->mem.seg, offset, size, true);
    if (r != EMULATE_DONE || (r = emulate_load(e, SEG_SS, sp, size, &val)) != EMULATE_DONE ||
        (r = emulate_store(e, e->i->mem.seg, offset, size, val)) != EMULATE_DONE)
        return r;
    s->gpr[EMULATE_RSP] = moved.gpr[EMULATE_RSP];
    return EMULATE_DONE;
}

/* Reads, computes, writes, and only then changes registers and flags. */
static enum emulate_result do_modify(struct emulation *e, const struct plan *p, uint64_t offset, uint64_t src)
{
    struct emulate_state *s = e->s;
    uint64_t flags = s->rflags, old, val, mask = size_mask(p->size), keep_cf;
    enum emulate_result r = emulate_probe(e, e->i->mem.seg, offset, p->size, true);
    if (r != EMULATE_DONE || (r = emulate_load(e, e->i->mem.seg, offset, p->size, &old)) != EMULATE_DONE)
        return r;
    keep_cf = flags & FLAG_CF;
    switch (p->act) {
    case ACT_ALU_MEM: val = alu(p->op, old, src, p->size, &flags); break;
    case ACT_NOT: val = ~old & mask; break;
    case ACT_NEG: val = alu(ALU_SUB, 0, old, p->size, &flags); break;
    case ACT_INC: val = alu(ALU_ADD, old, 1, p->size, &flags); flags = (flags & ~FLAG_CF) | keep_cf; break;
    case ACT_DEC: val = alu(ALU_SUB, old, 1, p->size, &flags); flags = (flags & ~FLAG_CF) | keep_cf; break;
    case ACT_XADD: val = alu(ALU_ADD, old, src, p->size, &flags); break;
    case ACT_CMPXCHG:
        alu(ALU_CMP, s->gpr[EMULATE_RAX], old, p->size, &flags);
        val = flags & FLAG_ZF ? src : old; /* the CPU writes in either case */
        break;
    default: val = src; break; /* XCHG */
    }
    if ((r = emulate_store(e, e->i->mem.seg, offset, p->size, val)) != EMULATE_DONE)
        return r;
    if (p->act == ACT_XCHG || p->act == ACT_XADD)
        emulate_set_reg(s, e->i, p->reg, p->size, old);
    if (p->act == ACT_CMPXCHG && !(flags & FLAG_ZF))
        emulate_set_reg(s, e->i, EMULATE_RAX, p->size, old);
    s->rflags = flags;
    return EMULATE_DONE;
}

/* A register as bit number reaches beyond the operand, in both directions. */
static enum emulate_result do_bit(struct emulation *e, const struct plan *p, uint64_t offset, uint64_t src)
{
    unsigned bits = 8 * p->size, bit = (unsigned)(src & (bits - 1));
    uint64_t val, one = BIT64(bit);
    if (!p->from_imm) {
        int64_t index = (int64_t)sign_extend(src, p->size) >> (p->size == 8 ? 6 : p->size == 4 ? 5 : 4);
        offset = (offset + (uint64_t)index * p->size) & size_mask(e->i->addr_size);
    }
    enum emulate_result r = emulate_probe(e, e->i->mem.seg, offset, p->size, p->op != 0);
    if (r != EMULATE_DONE || (r = emulate_load(e, e->i->mem.seg, offset, p->size, &val)) != EMULATE_DONE)
        return r;
    uint64_t was = (val >> bit) & 1;
    val = p->op == 1 ? val | one : p->op == 2 ? val & ~one : val ^ one;
    if (p->op != 0 && (r = emulate_store(e, e->i->mem.seg, offset, p->size, val)) != EMULATE_DONE)
        return r;
    e->s->rflags = (e->s->rflags & ~FLAG_CF) | was;
    return EMULATE_DONE;
}

static enum emulate_result do_load(struct emulation *e, const struct plan *p, uint64_t offset)
{
    struct emulate_state *s = e->s;
    uint64_t val;
    enum emulate_result r = emulate_load(e, e->i->mem.seg, offset, p->size, &val);
    if (r != EMULATE_DONE)
        return r;
    if (p->act == ACT_ALU_REG) {
        uint64_t result = alu(p->op, emulate_get_reg(s, e->i, p->reg, p->size), val, p->size, &s->rflags);
        if (p->op != ALU_CMP)
            emulate_set_reg(s, e->i, p->reg, p->size, result);
        return EMULATE_DONE;
    }
    if (p->swap)
        val = byte_swap(val, p->size);
    emulate_set_reg(s, e->i, p->reg, p->reg_size, p->sign ? sign_extend(val, p->size) : val);
    return EMULATE_DONE;
}

static enum emulate_result do_plan(struct emulation *e, const struct plan *p)
{
    struct emulate_state *s = e->s;
    const struct insn *i = e->i;
    uint64_t offset = emulate_offset(s, i), val;
    uint64_t src = p->from_imm ? (uint64_t)insn_simm(i) : emulate_get_reg(s, i, p->reg, p->reg_size);
    enum emulate_result r;
    switch (p->act) {
    case ACT_LOAD: case ACT_ALU_REG: return do_load(e, p, offset);
    case ACT_STORE: return emulate_store(e, i->mem.seg, offset, p->size, p->swap ? byte_swap(src, p->size) : src & size_mask(p->size));
    case ACT_ALU_MEM:
        if (p->op != ALU_CMP)
            return do_modify(e, p, offset, src);
        __attribute__((fallthrough));
    case ACT_TEST:
        if ((r = emulate_load(e, i->mem.seg, offset, p->size, &val)) == EMULATE_DONE)
            alu(p->act == ACT_TEST ? ALU_AND : ALU_CMP, val, src, p->size, &s->rflags);
        return r;
    case ACT_BIT: return do_bit(e, p, offset, src);
    case ACT_PUSH: return do_push(e, i->op_size, offset);
    case ACT_POP: return do_pop(e, i->op_size);
    default: return do_modify(e, p, offset, src);
    }
}

enum emulate_result emulate_insn(struct emulate_state *s, const struct emulate_ops *ops, void *ctx, const struct insn *i,
    enum emulate_kind kind, struct emulate_outcome *out)
{
    struct emulation e = {s, ops, ctx, i, out};
    if (emulate_is_string(i, kind))
        return i->lock ? emulate_raise(&e, VECTOR_UD) : emulate_string(&e);
    if (kind == EMULATE_STRING_IO)
        return EMULATE_UNSUPPORTED;
    struct plan p = plan_of(i);
    enum emulate_result r;
    if (p.act == ACT_NONE)
        r = emulate_vector_move(&e);
    else if (i->lock && !p.lockable)
        return emulate_raise(&e, VECTOR_UD);
    else
        r = do_plan(&e, &p);
    if (r == EMULATE_DONE)
        emulate_advance(s, i);
    return r;
}

/* ---- control registers
 * ------------------------------------------------------------------------------------------------ */

bool emulate_decode_cr(const struct emulate_state *s, const struct insn *i, struct emulate_cr *out)
{
    if (i->map != INSN_MAP_0F || i->encoding != INSN_LEGACY)
        return false;
    *out = (struct emulate_cr){.gpr = INSN_NO_REG, .len = i->len};
    uint64_t width = size_mask(i->mode == INSN_MODE_64 ? 8 : 4);
    unsigned sub = i->modrm >> 3 & 7;
    switch (i->opcode) {
    case 0x06: out->kind = EMULATE_CLTS; return true;
    case 0x20: case 0x21: case 0x22: case 0x23:
        out->kind = (enum emulate_cr_kind[]){EMULATE_MOV_FROM_CR, EMULATE_MOV_FROM_DR, EMULATE_MOV_TO_CR, EMULATE_MOV_TO_DR}[i->opcode & 3];
        out->reg = i->lock && i->reg == 0 && !(i->opcode & 1) ? 8 : i->reg; /* AMD: LOCK MOV CR0 is CR8 outside 64-bit mode */
        out->gpr = i->rm;
        out->value = s->gpr[i->rm] & width;
        return true;
    case 0x01:
        if (sub == 7 && i->has_mem) {
            out->kind = EMULATE_INVLPG;
            struct emulate_fault unused;
            /* A non-canonical or out-of-limit address is no fault here; it just invalidates nothing. */
            emulate_linear(s, i->mem.seg, emulate_offset(s, i), 1, false, &out->value, &unused);
            return true;
        }
        if (sub != 4 && sub != 6)
            return false;
        out->kind = sub == 4 ? EMULATE_SMSW : EMULATE_LMSW;
        if (!i->has_mem) {
            out->gpr = i->rm;
            out->value = s->gpr[i->rm] & 0xffff;
        }
        return true;
    default: return false;
    }
}

const char *emulate_bytes_text(const struct emulate_outcome *out, char *buf, size_t size)
{
    size_t at = 0;
    if (size)
        buf[0] = '\0';
    for (unsigned k = 0; k < out->byte_count && at + 4 <= size; k++)
        at += (size_t)snprintf(buf + at, size - at, "%s%02x", k ? " " : "", out->bytes[k]);
    return buf;
}
