/* Between the emulator's files: arithmetic with flags, registers, addressing. Pure. */
#ifndef HV_VM_EMULATE_INTERNAL_H
#define HV_VM_EMULATE_INTERNAL_H

#include "vm/emulate.h"

#define FLAG_CF UINT64_C(0x001)
#define FLAG_PF UINT64_C(0x004)
#define FLAG_AF UINT64_C(0x010)
#define FLAG_ZF UINT64_C(0x040)
#define FLAG_SF UINT64_C(0x080)
#define FLAG_DF UINT64_C(0x400)
#define FLAG_OF UINT64_C(0x800)
#define FLAG_VM UINT64_C(0x20000)
#define FLAGS_ARITH (FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF)

#define VECTOR_UD 6
#define VECTOR_NM 7
#define VECTOR_SS 12
#define VECTOR_GP 13
#define VECTOR_PF 14

/* One execution: what it works on and with. */
struct emulation {
    struct emulate_state *s;
    const struct emulate_ops *ops;
    void *ctx;
    const struct insn *i;
    struct emulate_outcome *out;
};

static inline uint64_t size_mask(unsigned size)
{
    return size >= 8 ? ~UINT64_C(0) : BIT64(8 * size) - 1;
}

static inline uint64_t sign_extend(uint64_t v, unsigned size)
{
    unsigned shift = 64 - 8 * size;
    return (uint64_t)((int64_t)(v << shift) >> shift);
}

/* The eight operations of opcodes 00-3F and group 1, in their order. */
enum alu_op { ALU_ADD, ALU_OR, ALU_ADC, ALU_SBB, ALU_AND, ALU_SUB, ALU_XOR, ALU_CMP };
/* Result of `size` bytes; *flags: the arithmetic flags replaced. */
uint64_t alu(enum alu_op op, uint64_t dst, uint64_t src, unsigned size, uint64_t *flags);

uint64_t emulate_get_reg(const struct emulate_state *s, const struct insn *i, unsigned reg, unsigned size);
void emulate_set_reg(struct emulate_state *s, const struct insn *i, unsigned reg, unsigned size, uint64_t val);
void emulate_advance(struct emulate_state *s, const struct insn *i);
enum emulate_result emulate_raise(struct emulation *e, uint8_t vector);

/* seg:offset of `size` <= 8 bytes. */
enum emulate_result emulate_load(struct emulation *e, unsigned seg, uint64_t offset, unsigned size, uint64_t *val);
enum emulate_result emulate_store(struct emulation *e, unsigned seg, uint64_t offset, unsigned size, uint64_t val);
enum emulate_result emulate_probe(struct emulation *e, unsigned seg, uint64_t offset, unsigned size, bool write);

bool emulate_is_string(const struct insn *i, enum emulate_kind kind);
enum emulate_result emulate_string(struct emulation *e);
enum emulate_result emulate_vector_move(struct emulation *e);

#endif
