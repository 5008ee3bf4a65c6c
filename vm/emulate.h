/*
 * Executes one guest instruction in software: one whose memory operand lies in a device window, or a string port
 * instruction. Pure: registers and segments are in a neutral state, everything else is behind callbacks, so the very
 * same code is compared on the host with the real CPU, instruction by instruction. The glue to a vCPU is at the end.
 *
 * The rule that makes every outcome but DONE and AGAIN restartable: an instruction first finds out whether all its
 * accesses are allowed and its pages present (probe), then reads, then writes memory, and only then changes registers.
 */
#ifndef HV_VM_EMULATE_H
#define HV_VM_EMULATE_H

#include "include/hv/hvm_ops.h"
#include "include/hv/types.h"
#include "vm/insn.h"

enum emulate_result {
    EMULATE_DONE,        /* executed; RIP is behind it */
    EMULATE_FAULT,       /* raises outcome.fault; nothing has changed (REP: iterations before it have been counted off) */
    EMULATE_AGAIN,       /* REP not finished or the guest changed the code under us: enter the guest, it comes back by itself */
    EMULATE_BLOCKED,     /* guest page outcome.gfn needs dmm_wait(); then enter the guest. REP as with FAULT */
    EMULATE_STALLED,     /* no frame left for outcome.gfn: dmm_wait_memory(); then enter the guest */
    EMULATE_UNSUPPORTED, /* not in the emulator's repertoire: outcome.bytes says what it was */
};

struct emulate_fault { uint8_t vector; bool has_error; uint32_t error_code; uint64_t cr2; };

struct emulate_outcome {
    struct emulate_fault fault;  /* EMULATE_FAULT */
    gfn_t gfn;                   /* BLOCKED, STALLED */
    uint8_t bytes[INSN_MAX_LEN]; /* the instruction, as far as it was fetched */
    uint8_t byte_count;
};

#define EMULATE_MAX_ITERATIONS 1024 /* of a REP per call, so that nobody waits long for this vCPU */

enum emulate_gpr { EMULATE_RAX, EMULATE_RCX, EMULATE_RDX, EMULATE_RBX, EMULATE_RSP, EMULATE_RBP, EMULATE_RSI, EMULATE_RDI };

struct emulate_state {
    uint64_t gpr[16], rip, rflags; /* gpr in enum gpr's order, which is the hardware's */
    uint64_t cr0, cr4, efer;
    struct vcpu_seg seg[6];        /* SEG_ES..SEG_GS */
    uint8_t cpl;
};

/* `gva` is a linear address; an access may straddle pages. Each returns EMULATE_DONE, FAULT (fills out->fault with the
 * #PF), BLOCKED or STALLED (fills out->gfn), and has then had no effect. */
struct emulate_ops {
    /* May [gva, gva+size) be read (write=false) or written? Brings absent pages in; touches no device. */
    enum emulate_result (*probe)(void *ctx, uint64_t gva, unsigned size, bool write, struct emulate_outcome *out);
    enum emulate_result (*read)(void *ctx, uint64_t gva, void *buf, unsigned size, struct emulate_outcome *out);
    enum emulate_result (*write)(void *ctx, uint64_t gva, const void *buf, unsigned size, struct emulate_outcome *out);
    void (*port)(void *ctx, uint16_t port, unsigned size, bool in, uint32_t *val);
    /* XMM registers; NULL: vector moves are EMULATE_UNSUPPORTED. */
    void (*get_xmm)(void *ctx, unsigned reg, uint8_t val[16]);
    void (*set_xmm)(void *ctx, unsigned reg, const uint8_t val[16]);
    /* True: end a REP after this iteration (an interrupt waits). NULL: never. */
    bool (*preempt)(void *ctx);
};

enum emulate_kind { EMULATE_MEMORY, EMULATE_STRING_IO }; /* what the caller exited for; the other kind is UNSUPPORTED */

/* Executes `i`, which was decoded from the bytes at s->rip. s changes only with DONE (all of the instruction); of a REP
 * the iterations so far also count with every other outcome (RIP unmoved). */
enum emulate_result emulate_insn(struct emulate_state *s, const struct emulate_ops *ops, void *ctx, const struct insn *i,
    enum emulate_kind kind, struct emulate_outcome *out);

/* Code segment's mode; linear address of seg:offset with the checks of an access of `size` bytes (#GP, #SS in *f). */
enum insn_mode emulate_mode(const struct emulate_state *s);
bool emulate_linear(const struct emulate_state *s, unsigned seg, uint64_t offset, unsigned size, bool write, uint64_t *gva,
    struct emulate_fault *f);
/* Offset (before the segment base) of a decoded memory operand. */
uint64_t emulate_offset(const struct emulate_state *s, const struct insn *i);

/* Control- and debug-register instructions. False: `i` is none of them. */
enum emulate_cr_kind { EMULATE_MOV_TO_CR, EMULATE_MOV_FROM_CR, EMULATE_MOV_TO_DR, EMULATE_MOV_FROM_DR, EMULATE_CLTS, EMULATE_LMSW,
    EMULATE_SMSW, EMULATE_INVLPG };
struct emulate_cr {
    enum emulate_cr_kind kind;
    uint8_t reg;      /* CRn, DRn */
    uint8_t gpr;      /* register operand, INSN_NO_REG: memory operand or none */
    uint8_t len;      /* of the instruction */
    uint64_t value;   /* MOV_TO_*, LMSW: the source; INVLPG: the gva */
};
bool emulate_decode_cr(const struct emulate_state *s, const struct insn *i, struct emulate_cr *out);

/* ---- bound to a vCPU (vm/emulate_vcpu.c); on the vCPU's thread ----------------------------------------------- */
struct vcpu;

/* Fetches and decodes the instruction at RIP. DONE: *i. FAULT: the exception was injected. */
enum emulate_result emulate_vcpu_fetch(struct vcpu *v, struct insn *i, struct emulate_outcome *out);
/* The same for whoever can leave the instruction to the CPU: a fault is only told, in outcome.fault. *s: the registers it was found with. */
enum emulate_result emulate_vcpu_look(struct vcpu *v, struct emulate_state *s, struct insn *i, struct emulate_outcome *out);
/* Executes the instruction at RIP. DONE: registers and RIP moved (vcpu_advance_rip). FAULT: the exception was injected.
 * BLOCKED, STALLED: the caller waits (dmm_wait, dmm_wait_memory) and enters the guest again, which comes back.
 * UNSUPPORTED: nothing has changed; the caller decides (report and stop). Vector moves use the image in v->fpu_area, into which
 * they spill the guest's registers first (vm/fpu.c). STRING_IO: checks what it finds against v->exit.u.io, and answers AGAIN if
 * the guest has exchanged the instruction since. */
enum emulate_result emulate_vcpu(struct vcpu *v, enum emulate_kind kind, struct emulate_outcome *out);
/* For CR/DR exits without decode assists: what does the instruction at RIP want? UNSUPPORTED: it is no such instruction
 * (the guest changed it): just enter the guest. With DONE the caller acts, then calls finish (MOV_FROM_*, SMSW: `value`
 * goes to the destination; others ignore it), which advances RIP; or injects a fault instead. */
enum emulate_result emulate_vcpu_cr(struct vcpu *v, struct emulate_cr *cr, struct emulate_outcome *out);
enum emulate_result emulate_vcpu_cr_finish(struct vcpu *v, const struct emulate_cr *cr, uint64_t value, struct emulate_outcome *out);
/* "0f 01 d0 ..." of outcome.bytes into buf, for reports. */
const char *emulate_bytes_text(const struct emulate_outcome *out, char *buf, size_t size);

#endif
