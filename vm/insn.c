/*
 * The decoder's theory: an x86 instruction's length depends on prefixes, the opcode map, whether there is a ModRM byte,
 * and the kind of immediate. Only the last two vary by opcode, so one 16-bit word per opcode of the two old maps says
 * everything; the newer maps are regular (0F38 and VEX/EVEX maps have ModRM and no immediate, 0F3A has an 8-bit one).
 * The tables accept more than the CPU does (reserved group members, LOCK where it is not allowed): the CPU has
 * executed, or tried to execute, every instruction that comes here, and whoever acts on one checks for exactly what it
 * wants. The reverse, refusing what the CPU accepts, is the error that the comparison with a disassembler looks for
 * (tests/unit/test_insn.c).
 *
 * Where vendors differ (66 before a near branch in 64-bit mode) Intel's reading is used: branches never come here on
 * either.
 */
#include "vm/insn.h"

enum { /* what follows the opcode */
    N = 0,            /* nothing */
    M = 1,            /* ModRM */
    IB = 1 << 1,      /* imm8 */
    IZ = 2 << 1,      /* imm16 or imm32 by operand size */
    IV = 3 << 1,      /* imm16, imm32 or imm64 by operand size */
    IW = 4 << 1,      /* imm16 */
    EN = 5 << 1,      /* imm16 and imm8: ENTER */
    FP = 6 << 1,      /* far pointer: offset by operand size, selector */
    MO = 7 << 1,      /* moffs: address-size displacement */
    ID = 8 << 1,      /* imm32 */
    BB = 9 << 1,      /* two imm8: EXTRQ, INSERTQ */
    IMM = 15 << 1,
    X6 = 1 << 5,      /* not in 64-bit mode */
    D6 = 1 << 6,      /* operand size defaults to 64 in 64-bit mode */
    F6 = 1 << 7,      /* and cannot be changed */
    RG = 1 << 8,      /* register in the opcode's low three bits */
    UD = 1 << 9,      /* no such opcode */
    MI = M | IB, MZ = M | IZ, JB = IB | F6, JZ = IZ | F6, X1 = X6 | IB, NX = N | X6, PU = RG | D6, VB = RG | IB, VV = RG | IV,
};

static const uint16_t one_byte[256] = {
    /* 0 1 2 3 4 5 6 7 8 9 A B C D E F */
    /* 0 */   M,     M,     M,     M,     IB,    IZ,    NX,    NX,    M,     M,     M,     M,     IB,    IZ,    NX,    UD,
    /* 1 */   M,     M,     M,     M,     IB,    IZ,    NX,    NX,    M,     M,     M,     M,     IB,    IZ,    NX,    NX,
    /* 2 */   M,     M,     M,     M,     IB,    IZ,    UD,    NX,    M,     M,     M,     M,     IB,    IZ,    UD,    NX,
    /* 3 */   M,     M,     M,     M,     IB,    IZ,    UD,    NX,    M,     M,     M,     M,     IB,    IZ,    UD,    NX,
    /* 4 */   RG,    RG,    RG,    RG,    RG,    RG,    RG,    RG,    RG,    RG,    RG,    RG,    RG,    RG,    RG,    RG,
    /* 5 */   PU,    PU,    PU,    PU,    PU,    PU,    PU,    PU,    PU,    PU,    PU,    PU,    PU,    PU,    PU,    PU,
    /* 6 */   NX,    NX,    M|X6,  M,     UD,    UD,    UD,    UD,    IZ|D6, MZ,    IB|D6, MI,    N,     N,     N,     N,
    /* 7 */   JB,    JB,    JB,    JB,    JB,    JB,    JB,    JB,    JB,    JB,    JB,    JB,    JB,    JB,    JB,    JB,
    /* 8 */   MI,    MZ,    MI|X6, MI,    M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M|D6,
    /* 9 */   RG,    RG,    RG,    RG,    RG,    RG,    RG,    RG,    N,     N,     FP|X6, N,     D6,    D6,    N,     N,
    /* A */   MO,    MO,    MO,    MO,    N,     N,     N,     N,     IB,    IZ,    N,     N,     N,     N,     N,     N,
    /* B */   VB,    VB,    VB,    VB,    VB,    VB,    VB,    VB,    VV,    VV,    VV,    VV,    VV,    VV,    VV,    VV,
    /* C */   MI,    MI,    IW|F6, F6,    M|X6,  M|X6,  MI,    MZ,    EN|D6, D6,    IW,    N,     N,     IB,    NX,    N,
    /* D */   M,     M,     M,     M,     X1,    X1,    NX,    N,     M,     M,     M,     M,     M,     M,     M,     M,
    /* E */   JB,    JB,    JB,    JB,    IB,    IB,    IB,    IB,    JZ,    JZ,    FP|X6, JB,    N,     N,     N,     N,
    /* F */   UD,    N,     UD,    UD,    N,     N,     M,     M,     N,     N,     N,     N,     N,     N,     M,     M,
};

static const uint16_t two_byte[256] = {
    /* 0 1 2 3 4 5 6 7 8 9 A B C D E F */
    /* 0 */   M,     M,     M,     M,     UD,    N,     N,     N,     N,     N,     UD,    N,     UD,    M,     N,     MI,
    /* 1 */   M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,
    /* 2 */   M|F6,  M|F6,  M|F6,  M|F6,  UD,    UD,    UD,    UD,    M,     M,     M,     M,     M,     M,     M,     M,
    /* 3 */   N,     N,     N,     N,     N,     N,     UD,    N,     UD,    UD,    UD,    UD,    UD,    UD,    UD,    UD,
    /* 4 */   M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,
    /* 5 */   M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,
    /* 6 */   M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,
    /* 7 */   MI,    MI,    MI,    MI,    M,     M,     M,     N,     M,     M,     UD,    UD,    M,     M,     M,     M,
    /* 8 */   JZ,    JZ,    JZ,    JZ,    JZ,    JZ,    JZ,    JZ,    JZ,    JZ,    JZ,    JZ,    JZ,    JZ,    JZ,    JZ,
    /* 9 */   M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,
    /* A */   D6,    D6,    N,     M,     MI,    M,     M,     M,     D6,    D6,    N,     M,     MI,    M,     M,     M,
    /* B */   M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     MI,    M,     M,     M,     M,     M,
    /* C */   M,     M,     MI,    M,     MI,    MI,    MI,    M,     RG,    RG,    RG,    RG,    RG,    RG,    RG,    RG,
    /* D */   M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,
    /* E */   M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,
    /* F */   M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,     M,
};

struct cursor { const uint8_t *bytes; size_t len, pos; };

/* Little-endian number of `size` bytes; false leaves the position where reading ended. */
static bool take(struct cursor *c, unsigned size, uint64_t *val)
{
    *val = 0;
    if (c->len - c->pos < size) {
        c->pos = c->len;
        return false;
    }
    for (unsigned n = 0; n < size; n++)
        *val |= (uint64_t)c->bytes[c->pos++] << (8 * n);
    return true;
}

static bool peek(const struct cursor *c, uint8_t *byte)
{
    if (c->pos == c->len)
        return false;
    *byte = c->bytes[c->pos];
    return true;
}

/* Legacy prefixes in any order and number, then REX, which counts only right before the opcode. */
static bool decode_prefixes(struct cursor *c, struct insn *i)
{
    for (uint8_t b; peek(c, &b); c->pos++) {
        bool long_mode = i->mode == INSN_MODE_64;
        if (long_mode && (b & 0xf0) == 0x40) {
            i->rex = b;
            continue;
        }
        switch (b) {
        case 0x26: case 0x2e: case 0x36: case 0x3e:
            if (!long_mode) /* there these four are accepted and mean nothing */
                i->seg_override = (b >> 3) & 3;
            break;
        case 0x64: case 0x65: i->seg_override = 4 + (b & 1); break;
        case 0x66: i->opsize_prefix = true; break;
        case 0x67: i->addrsize_prefix = true; break;
        case 0xf0: i->lock = true; break;
        case 0xf2: case 0xf3: i->rep = b; break;
        default:
            i->has_rex = i->rex != 0;
            return true;
        }
        i->rex = 0;
    }
    return false;
}

/* VEX, EVEX and XOP pack REX's bits, the map and the operand size into two to three bytes after the first. */
static enum insn_result decode_vector_prefix(struct cursor *c, struct insn *i, uint8_t first, uint16_t *attr)
{
    uint64_t p0, p1 = 0, p2, op;
    if (i->has_rex || i->opsize_prefix || i->rep || i->lock)
        return INSN_INVALID;
    if (!take(c, 1, &p0))
        return INSN_NEED_MORE;
    i->encoding = first == 0x62 ? INSN_EVEX : first == 0x8f ? INSN_XOP : INSN_VEX;
    unsigned map = 1, wrxb = (~p0 >> 5) & 4, w = 0; /* C5: R only */
    if (first != 0xc5) {
        if (!take(c, 1, &p1))
            return INSN_NEED_MORE;
        map = p0 & (first == 0x62 ? 0x07 : 0x1f);
        wrxb = (~p0 >> 5) & 7;
        w = (p1 >> 7) & 1;
    } else {
        p1 = p0;
    }
    if (first == 0x62) {
        if ((p0 & 8) || !(p1 & 4))
            return INSN_INVALID;
        if (!take(c, 1, &p2))
            return INSN_NEED_MORE;
    }
    if (!take(c, 1, &op))
        return INSN_NEED_MORE;
    if (i->mode != INSN_MODE_64)
        wrxb = 0; /* the inverted bits are part of what tells it from LES, LDS, BOUND */
    i->rex = (uint8_t)(0x40 | w << 3 | wrxb);
    i->vvvv = (~p1 >> 3) & 15;
    i->opcode = (uint8_t)op;
    if (i->encoding == INSN_XOP) {
        if (map < 8 || map > 10)
            return INSN_INVALID;
        i->map = (uint8_t)(INSN_MAP_XOP8 + map - 8);
        *attr = (uint16_t[]){MI, M, M | ID}[map - 8];
        return INSN_OK;
    }
    switch (map) {
    case 1: i->map = INSN_MAP_0F; *attr = op == 0x77 ? N : M | (two_byte[op] & IMM); break; /* 77: VZEROUPPER */
    case 2: i->map = INSN_MAP_0F38; *attr = M; break;
    case 3: i->map = INSN_MAP_0F3A; *attr = MI; break;
    case 5: case 6:
        if (i->encoding == INSN_VEX)
            return INSN_INVALID;
        i->map = map == 5 ? INSN_MAP_EVEX5 : INSN_MAP_EVEX6;
        *attr = M;
        break;
    default: return INSN_INVALID;
    }
    /* What the old map has there (branches, BSWAP, double shifts) is not in this one. */
    bool refused = (op & 0xf0) == 0x80 || (op & 0xf8) == 0xc8 || op == 0xba || op == 0xa4 || op == 0xac;
    return map == 1 && refused ? INSN_INVALID : INSN_OK;
}

static enum insn_result decode_opcode(struct cursor *c, struct insn *i, uint16_t *attr)
{
    uint64_t b;
    uint8_t next;
    if (!take(c, 1, &b))
        return INSN_NEED_MORE;
    i->opcode = (uint8_t)b;
    if (b == 0xc4 || b == 0xc5 || b == 0x62 || b == 0x8f) {
        if (!peek(c, &next))
            return INSN_NEED_MORE;
        if (b == 0x8f ? (next & 0x1f) >= 8 : i->mode == INSN_MODE_64 || next >= 0xc0)
            return decode_vector_prefix(c, i, (uint8_t)b, attr);
    }
    *attr = one_byte[b];
    if (b != 0x0f)
        return INSN_OK;
    if (!take(c, 1, &b))
        return INSN_NEED_MORE;
    i->map = INSN_MAP_0F;
    i->opcode = (uint8_t)b;
    *attr = two_byte[b];
    if (b == 0x38 || b == 0x3a) {
        i->map = b == 0x38 ? INSN_MAP_0F38 : INSN_MAP_0F3A;
        *attr = b == 0x38 ? M : MI;
        if (!take(c, 1, &b))
            return INSN_NEED_MORE;
        i->opcode = (uint8_t)b;
    } else if (b == 0x78 && (i->opsize_prefix || i->rep == 0xf2)) {
        *attr = M | BB; /* EXTRQ, INSERTQ; without prefix it is VMREAD */
    }
    return INSN_OK;
}

/* 16-bit addressing forms, by ModRM.rm. */
static const uint8_t base16[8] = {3, 3, 5, 5, INSN_NO_REG, INSN_NO_REG, 5, 3};
static const uint8_t index16[8] = {6, 7, 6, 7, 6, 7, INSN_NO_REG, INSN_NO_REG};

static void memory16(struct insn *i)
{
    unsigned rm = i->modrm & 7;
    i->mem.base = base16[rm];
    i->mem.index = index16[rm];
    i->disp_size = i->mod == 1 ? 1 : i->mod == 2 ? 2 : 0;
    if (i->mod == 0 && rm == 6) {
        i->mem.base = INSN_NO_REG;
        i->disp_size = 2;
    }
    if (i->mem.base == INSN_NO_REG && i->mem.index != INSN_NO_REG) { /* [SI], [DI] */
        i->mem.base = i->mem.index;
        i->mem.index = INSN_NO_REG;
    }
}

static bool memory32(struct cursor *c, struct insn *i)
{
    uint64_t sib;
    unsigned b = i->rex & 1 ? 8 : 0, x = i->rex & 2 ? 8 : 0, rm = i->modrm & 7;
    i->disp_size = i->mod == 1 ? 1 : i->mod == 2 ? 4 : 0;
    if (rm == 4) {
        if (!take(c, 1, &sib))
            return false;
        i->has_sib = true;
        i->sib = (uint8_t)sib;
        unsigned index = ((sib >> 3) & 7) | x;
        i->mem.index = index == 4 ? INSN_NO_REG : (uint8_t)index;
        i->mem.scale = (uint8_t)(1 << (sib >> 6));
        rm = sib & 7;
    }
    i->mem.base = (uint8_t)(rm | b);
    if (rm == 5 && i->mod == 0) {
        i->disp_size = 4;
        i->mem.base = i->mode == INSN_MODE_64 && !i->has_sib ? INSN_RIP : INSN_NO_REG;
    }
    return true;
}

static enum insn_result decode_modrm(struct cursor *c, struct insn *i)
{
    uint64_t b;
    if (!take(c, 1, &b))
        return INSN_NEED_MORE;
    i->has_modrm = true;
    i->modrm = (uint8_t)b;
    i->mod = i->modrm >> 6;
    i->reg = ((i->modrm >> 3) & 7) | (i->rex & 4 ? 8 : 0);
    i->rm = (i->modrm & 7) | (i->rex & 1 ? 8 : 0);
    if (i->encoding == INSN_LEGACY && i->map == INSN_MAP_0F && i->opcode >= 0x20 && i->opcode <= 0x23)
        i->mod = 3; /* MOV to and from CR and DR: the field is ignored */
    if (i->mod == 3)
        return INSN_OK;
    i->has_mem = true;
    if (i->addr_size == 2)
        memory16(i);
    else if (!memory32(c, i))
        return INSN_NEED_MORE;
    /* RSP and RBP, but not R12 and R13, address the stack segment. */
    i->mem.seg = i->seg_override != INSN_NO_REG ? i->seg_override : i->mem.base == 4 || i->mem.base == 5 ? 2 : 3;
    if (i->disp_size && !take(c, i->disp_size, &b))
        return INSN_NEED_MORE;
    if (i->disp_size) {
        unsigned shift = 64 - 8 * i->disp_size;
        i->mem.disp = (int64_t)(b << shift) >> shift;
    }
    return INSN_OK;
}

static void operand_sizes(struct insn *i, uint16_t attr)
{
    if (i->mode == INSN_MODE_64) {
        bool by64 = attr & (D6 | F6);
        /* The near calls and jumps, and PUSH, of group 5 hide among ordinary members. */
        if (i->map == INSN_MAP_ONE && i->opcode == 0xff && ((i->reg & 7) == 2 || (i->reg & 7) == 4))
            attr |= F6;
        if (i->map == INSN_MAP_ONE && i->opcode == 0xff && (i->reg & 7) == 6)
            by64 = true;
        i->op_size = attr & F6 ? 8 : i->rex & 8 ? 8 : i->opsize_prefix ? 2 : by64 ? 8 : 4;
    } else {
        i->op_size = (i->mode == INSN_MODE_32) != i->opsize_prefix ? 4 : 2;
    }
}

static enum insn_result decode_immediate(struct cursor *c, struct insn *i, uint16_t attr)
{
    unsigned z = i->op_size == 2 ? 2 : 4, kind = attr & IMM;
    uint64_t v;
    if (i->map == INSN_MAP_ONE && (i->opcode & 0xfe) == 0xf6 && (i->reg & 7) < 2)
        kind = i->opcode & 1 ? IZ : IB; /* TEST is the only member of group 3 that has one */
    switch (kind) {
    case IB: i->imm_size = 1; break;
    case IZ: i->imm_size = (uint8_t)z; break;
    case IV: i->imm_size = i->op_size; break;
    case IW: i->imm_size = 2; break;
    case ID: i->imm_size = 4; break;
    case EN: i->imm_size = 2; i->imm2_size = 1; break;
    case BB: i->imm_size = 1; i->imm2_size = 1; break;
    case FP: i->imm_size = (uint8_t)z; i->imm2_size = 2; break;
    case MO:
        if (!take(c, i->addr_size, &v))
            return INSN_NEED_MORE;
        i->disp_size = i->addr_size;
        i->has_mem = true;
        i->mem.disp = (int64_t)v;
        i->mem.seg = i->seg_override != INSN_NO_REG ? i->seg_override : 3;
        return INSN_OK;
    default: return INSN_OK;
    }
    if (!take(c, i->imm_size, &i->imm) || !take(c, i->imm2_size, &v))
        return INSN_NEED_MORE;
    i->imm2 = (uint16_t)v;
    if (i->map == INSN_MAP_0F && i->opcode == 0x0f && i->encoding == INSN_LEGACY) { /* 3DNow!: opcode in the immediate's place */
        i->map = INSN_MAP_3DNOW;
        i->opcode = (uint8_t)i->imm;
        i->imm = i->imm_size = 0;
    }
    return INSN_OK;
}

static enum insn_result decode(struct cursor *c, struct insn *i)
{
    uint16_t attr = 0;
    enum insn_result r;
    if (!decode_prefixes(c, i))
        return INSN_NEED_MORE;
    if ((r = decode_opcode(c, i, &attr)) != INSN_OK)
        return r;
    if ((attr & UD) || ((attr & X6) && i->mode == INSN_MODE_64))
        return INSN_INVALID;
    if (i->mode == INSN_MODE_64)
        i->addr_size = i->addrsize_prefix ? 4 : 8;
    else
        i->addr_size = (i->mode == INSN_MODE_32) != i->addrsize_prefix ? 4 : 2;
    if ((attr & M) && (r = decode_modrm(c, i)) != INSN_OK)
        return r;
    if (attr & RG) {
        i->mod = 3;
        i->rm = (i->opcode & 7) | (i->rex & 1 ? 8 : 0);
    }
    operand_sizes(i, attr);
    return decode_immediate(c, i, attr);
}

enum insn_result insn_decode(const uint8_t *bytes, size_t len, enum insn_mode mode, struct insn *out)
{
    struct cursor c = {bytes, MIN(len, (size_t)INSN_MAX_LEN), 0};
    *out = (struct insn){.mode = (uint8_t)mode, .seg_override = INSN_NO_REG};
    out->mem = (struct insn_mem){.base = INSN_NO_REG, .index = INSN_NO_REG, .scale = 1, .seg = 3};
    enum insn_result r = decode(&c, out);
    if (r == INSN_NEED_MORE && c.len == INSN_MAX_LEN)
        return INSN_TOO_LONG;
    out->len = (uint8_t)c.pos;
    return r;
}

int64_t insn_simm(const struct insn *i)
{
    if (i->imm_size == 0)
        return 0;
    unsigned shift = 64 - 8 * i->imm_size;
    return (int64_t)(i->imm << shift) >> shift;
}
