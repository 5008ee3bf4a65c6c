/*
 * Vector registers to and from memory: the moves that memcpy_fromio and the like compile to. The mandatory prefix (the
 * last of F2/F3, else 66) selects among four instructions of one opcode; a row of the table is one of them. AMD APM
 * vol. 4.
 */
#include "vm/emulate_internal.h"

#include "lib/string.h"

enum { FLAG_ALIGNED = 1, FLAG_STORE = 2, FLAG_MERGE = 4 /* the rest of the register stays */ };
struct vector_move { uint8_t opcode, prefix, size /* 0: 4, or 8 with REX.W */, offset /* in the register */, flags; };

static const struct vector_move moves[] = {
    {0x10, 0x00, 16, 0, 0}, {0x10, 0x66, 16, 0, 0}, {0x10, 0xf3, 4, 0, 0}, {0x10, 0xf2, 8, 0, 0},       /* MOVUPS MOVUPD MOVSS MOVSD */
    {0x11, 0x00, 16, 0, FLAG_STORE}, {0x11, 0x66, 16, 0, FLAG_STORE}, {0x11, 0xf3, 4, 0, FLAG_STORE}, {0x11, 0xf2, 8, 0, FLAG_STORE},
    {0x12, 0x00, 8, 0, FLAG_MERGE}, {0x12, 0x66, 8, 0, FLAG_MERGE}, {0x13, 0x00, 8, 0, FLAG_STORE}, {0x13, 0x66, 8, 0, FLAG_STORE}, /* MOVLPx */
    {0x16, 0x00, 8, 8, FLAG_MERGE}, {0x16, 0x66, 8, 8, FLAG_MERGE}, {0x17, 0x00, 8, 8, FLAG_STORE}, {0x17, 0x66, 8, 8, FLAG_STORE}, /* MOVHPx */
    {0x28, 0x00, 16, 0, FLAG_ALIGNED}, {0x28, 0x66, 16, 0, FLAG_ALIGNED},                               /* MOVAPS MOVAPD */
    {0x29, 0x00, 16, 0, FLAG_ALIGNED | FLAG_STORE}, {0x29, 0x66, 16, 0, FLAG_ALIGNED | FLAG_STORE},
    {0x2b, 0x00, 16, 0, FLAG_ALIGNED | FLAG_STORE}, {0x2b, 0x66, 16, 0, FLAG_ALIGNED | FLAG_STORE},     /* MOVNTPS MOVNTPD */
    {0x6e, 0x66, 0, 0, 0}, {0x7e, 0x66, 0, 0, FLAG_STORE}, {0x7e, 0xf3, 8, 0, 0}, {0xd6, 0x66, 8, 0, FLAG_STORE}, /* MOVD MOVQ */
    {0x6f, 0x66, 16, 0, FLAG_ALIGNED}, {0x6f, 0xf3, 16, 0, 0},                                          /* MOVDQA MOVDQU */
    {0x7f, 0x66, 16, 0, FLAG_ALIGNED | FLAG_STORE}, {0x7f, 0xf3, 16, 0, FLAG_STORE},
    {0xe7, 0x66, 16, 0, FLAG_ALIGNED | FLAG_STORE}, {0xf0, 0xf2, 16, 0, 0},                             /* MOVNTDQ LDDQU */
};

static const struct vector_move *find_move(const struct insn *i)
{
    uint8_t prefix = i->rep ? i->rep : i->opsize_prefix ? 0x66 : 0;
    for (unsigned n = 0; n < ARRAY_SIZE(moves); n++)
        if (moves[n].opcode == i->opcode && moves[n].prefix == prefix)
            return &moves[n];
    return NULL;
}

enum emulate_result emulate_vector_move(struct emulation *e)
{
    const struct insn *i = e->i;
    const struct emulate_state *s = e->s;
    if (i->map != INSN_MAP_0F || i->encoding != INSN_LEGACY || !i->has_mem || !e->ops->get_xmm)
        return EMULATE_UNSUPPORTED;
    const struct vector_move *m = find_move(i);
    if (!m)
        return EMULATE_UNSUPPORTED;
    if (i->lock || (s->cr0 & BIT64(2)) || !(s->cr4 & BIT64(9))) /* EM; OSFXSR */
        return emulate_raise(e, VECTOR_UD);
    if (s->cr0 & BIT64(3)) /* TS */
        return emulate_raise(e, VECTOR_NM);
    unsigned size = m->size ? m->size : i->rex & 8 ? 8 : 4;
    uint8_t reg[16], data[16];
    uint64_t gva;
    if (!emulate_linear(s, i->mem.seg, emulate_offset(s, i), size, m->flags & FLAG_STORE, &gva, &e->out->fault))
        return EMULATE_FAULT;
    if ((m->flags & FLAG_ALIGNED) && (gva & 15))
        return emulate_raise(e, VECTOR_GP);
    e->ops->get_xmm(e->ctx, i->reg, reg);
    if (m->flags & FLAG_STORE)
        return e->ops->write(e->ctx, gva, reg + m->offset, size, e->out);
    enum emulate_result r = e->ops->read(e->ctx, gva, data, size, e->out);
    if (r != EMULATE_DONE)
        return r;
    if (!(m->flags & FLAG_MERGE))
        memset(reg, 0, sizeof reg);
    memcpy(reg + m->offset, data, size);
    e->ops->set_xmm(e->ctx, i->reg, reg);
    return EMULATE_DONE;
}
