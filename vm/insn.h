/*
 * The instruction decoder: bytes and mode in, lengths and operands out. Pure; the emulator, vcpu_insn_len() (CPUs that
 * do not report the next RIP) and the control-register exits without decode assists stand on it.
 *
 * Guest bytes are hostile: decoding never reads beyond `len`, never past 15 bytes, and has a named outcome for
 * everything. AMD APM vol. 3 chapter 1 and appendix A; Intel SDM vol. 2 chapter 2 and appendix A.
 */
#ifndef HV_VM_INSN_H
#define HV_VM_INSN_H

#include "include/hv/types.h"

#define INSN_MAX_LEN 15

enum insn_mode { INSN_MODE_16, INSN_MODE_32, INSN_MODE_64 }; /* of the code segment: real, virtual-8086 and D=0 are 16 */

enum insn_result {
    INSN_OK,
    INSN_NEED_MORE, /* the bytes given are a proper beginning: fetch more */
    INSN_INVALID,   /* no such instruction in this mode: #UD (or one too new for the tables) */
    INSN_TOO_LONG,  /* more than 15 bytes: #GP */
};

enum insn_map { INSN_MAP_ONE, INSN_MAP_0F, INSN_MAP_0F38, INSN_MAP_0F3A, INSN_MAP_3DNOW, INSN_MAP_XOP8, INSN_MAP_XOP9, INSN_MAP_XOPA,
    INSN_MAP_EVEX5, INSN_MAP_EVEX6 };
enum insn_encoding { INSN_LEGACY, INSN_VEX, INSN_EVEX, INSN_XOP };

#define INSN_NO_REG 0xff
#define INSN_RIP 0xfe  /* as a base */
/* Segment numbers are the hardware's: ES CS SS DS FS GS = 0..5, the order of enum vcpu_seg_id. */

struct insn_mem {          /* gva = seg.base + ((base + index * scale + disp) cut to addr_size) */
    uint8_t base, index;   /* GPR number, INSN_RIP (address of the next instruction) or INSN_NO_REG */
    uint8_t scale;         /* 1 2 4 8 */
    uint8_t seg;           /* effective segment, default or overridden */
    int64_t disp;
};

struct insn {
    uint8_t len;
    uint8_t mode;          /* enum insn_mode */
    uint8_t map, encoding; /* enum insn_map, enum insn_encoding */
    uint8_t opcode;        /* last opcode byte (3DNow!: the suffix) */
    bool lock, opsize_prefix, addrsize_prefix;
    uint8_t rep;           /* last of F2/F3, 0: none */
    uint8_t seg_override;  /* segment number or INSN_NO_REG */
    uint8_t rex;           /* 40..4F as given, or made of VEX/EVEX/XOP's bits; 0: none */
    bool has_rex;          /* a REX prefix: byte registers 4-7 are SPL..DIL */
    bool has_modrm, has_sib, has_mem;
    uint8_t modrm, sib;
    uint8_t mod, reg, rm;  /* ModRM fields; reg and rm extended by REX (opcode-embedded register: in rm, mod = 3) */
    uint8_t vvvv;          /* VEX/EVEX/XOP */
    uint8_t op_size;       /* operand size in bytes: 2 4 8, after prefixes and 64-bit defaults; byte forms keep it here too */
    uint8_t addr_size;     /* 2 4 8 */
    uint8_t disp_size, imm_size, imm2_size; /* bytes in the encoding, 0: none */
    struct insn_mem mem;   /* valid if has_mem: a ModRM operand in memory or a moffs; not the implied ones of strings and stack */
    uint64_t imm;          /* zero-extended as encoded; sign-extension is the instruction's business (insn_simm) */
    uint16_t imm2;         /* ENTER's level, a far pointer's selector */
};

/* Decodes one instruction from bytes[0..len). *out is complete only with INSN_OK. */
enum insn_result insn_decode(const uint8_t *bytes, size_t len, enum insn_mode mode, struct insn *out);
/* The immediate sign-extended from its encoded size. */
int64_t insn_simm(const struct insn *i);

#endif
