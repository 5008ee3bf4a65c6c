/* FUZZ-SOURCES: vm/emulate.c vm/emulate_string.c vm/emulate_vector.c vm/insn.c */
/*
 * The emulator on arbitrary state and code, over a memory that faults, blocks and stalls as the input says. Whatever
 * happens: no access after a failed one, a bounded number of accesses, RIP moves only with DONE, and without REP
 * nothing changes unless DONE.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "vm/emulate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct env { const uint8_t *script; size_t script_len, pos; unsigned accesses; bool failed; };

static enum emulate_result next(struct env *e, uint64_t gva, unsigned size, struct emulate_outcome *out)
{
    if (e->failed || size == 0 || size > 16)
        abort();
    e->accesses++;
    uint8_t b = e->script_len ? e->script[e->pos++ % e->script_len] : 0;
    if (b < 0xf0)
        return EMULATE_DONE;
    e->failed = true;
    out->fault = (struct emulate_fault){.vector = 14, .has_error = true, .cr2 = gva};
    return b < 0xf6 ? EMULATE_FAULT : b < 0xfb ? EMULATE_BLOCKED : EMULATE_STALLED;
}

static enum emulate_result op_probe(void *ctx, uint64_t gva, unsigned size, bool write, struct emulate_outcome *out)
{
    (void)write;
    return next(ctx, gva, size, out);
}
static enum emulate_result op_read(void *ctx, uint64_t gva, void *buf, unsigned size, struct emulate_outcome *out)
{
    memset(buf, (int)(gva * 31), size);
    return next(ctx, gva, size, out);
}
static enum emulate_result op_write(void *ctx, uint64_t gva, const void *buf, unsigned size, struct emulate_outcome *out)
{
    uint8_t copy[16];
    if (size <= sizeof copy)
        memcpy(copy, buf, size); /* all of it must be readable */
    return next(ctx, gva, size, out);
}
static void op_port(void *ctx, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    struct env *e = ctx;
    e->accesses++;
    if (e->failed || (size != 1 && size != 2 && size != 4))
        abort();
    if (in)
        *val = port;
}
static void op_get_xmm(void *ctx, unsigned reg, uint8_t val[16])
{
    (void)ctx;
    if (reg > 15)
        abort();
    memset(val, (int)reg, 16);
}
static void op_set_xmm(void *ctx, unsigned reg, const uint8_t val[16])
{
    (void)val;
    if (reg > 15 || ((struct env *)ctx)->failed)
        abort();
}
static const struct emulate_ops ops = {.probe = op_probe, .read = op_read, .write = op_write, .port = op_port, .get_xmm = op_get_xmm,
    .set_xmm = op_set_xmm};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct emulate_state s, before;
    uint8_t code[INSN_MAX_LEN];
    struct insn i;
    struct emulate_outcome out = {0};
    if (size < sizeof code + 1 + 16)
        return 0;
    memcpy(code, data, sizeof code);
    uint8_t kind = data[sizeof code];
    data += sizeof code + 1;
    size -= sizeof code + 1;
    memset(&s, 0, sizeof s);
    memcpy(&s, data + 16, size - 16 < sizeof s ? size - 16 : sizeof s);
    struct env env = {.script = data, .script_len = 16};
    if (insn_decode(code, sizeof code, emulate_mode(&s), &i) != INSN_OK)
        return 0;
    before = s;
    struct emulate_cr cr;
    if (emulate_decode_cr(&s, &i, &cr) && (cr.reg > 15 || (cr.gpr > 15 && cr.gpr != INSN_NO_REG)))
        abort();
    enum emulate_result r = emulate_insn(&s, &ops, &env, &i, kind & 1 ? EMULATE_STRING_IO : EMULATE_MEMORY, &out);
    if (env.accesses > 4 * EMULATE_MAX_ITERATIONS)
        abort();
    if (r != EMULATE_DONE && (s.rip != before.rip || (!i.rep && memcmp(&s, &before, sizeof s) != 0)))
        abort();
    if (env.failed && r == EMULATE_DONE)
        abort();
    if (memcmp(s.seg, before.seg, sizeof s.seg) != 0 || s.cr0 != before.cr0 || s.cpl != before.cpl)
        abort();
    if ((s.rflags ^ before.rflags) & ~UINT64_C(0x8d5))
        abort();
    return 0;
}
