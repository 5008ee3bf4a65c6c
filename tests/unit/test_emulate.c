/* TEST-SOURCES: vm/emulate.c vm/emulate_string.c vm/emulate_vector.c vm/insn.c */
/*
 * The emulator against the CPU this test runs on: a random instruction with random registers and memory is emulated on
 * one copy and executed natively on the other; then registers, RFLAGS (but for flags that the manuals leave undefined),
 * XMM registers and all memory must be equal, and a fault on one side must be a fault on the other. EMULATE_TEST_COUNT,
 * EMULATE_TEST_SEED as in test_insn.c.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <asm/prctl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "vm/emulate.h"

/* ---- the CPU as oracle --------------------------------------------------------------------------------------- */

struct native { uint64_t gpr[16], rflags, code, saved_rsp, pad; uint8_t xmm[16][16]; };
struct native native_regs __attribute__((aligned(16)));
void native_run(void);
void native_return(void);
/* Everything lives in native_regs, RIP-relative: no register, RSP included, is free while the instruction runs. */
asm(".text\n"
    ".globl native_run\nnative_run:\n"
    "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; pushfq\n"
    "mov %rsp, native_regs+144(%rip)\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n movdqa native_regs+160+16*\\n(%rip), %xmm\\n\n .endr\n"
    "push native_regs+128(%rip); popfq\n"
    "mov native_regs+0(%rip), %rax; mov native_regs+8(%rip), %rcx; mov native_regs+16(%rip), %rdx; mov native_regs+24(%rip), %rbx\n"
    "mov native_regs+32(%rip), %rsp; mov native_regs+40(%rip), %rbp; mov native_regs+48(%rip), %rsi; mov native_regs+56(%rip), %rdi\n"
    "mov native_regs+64(%rip), %r8; mov native_regs+72(%rip), %r9; mov native_regs+80(%rip), %r10; mov native_regs+88(%rip), %r11\n"
    "mov native_regs+96(%rip), %r12; mov native_regs+104(%rip), %r13; mov native_regs+112(%rip), %r14; mov native_regs+120(%rip), %r15\n"
    "jmp *native_regs+136(%rip)\n"
    ".globl native_return\nnative_return:\n"
    "mov %rax, native_regs+0(%rip); mov %rcx, native_regs+8(%rip); mov %rdx, native_regs+16(%rip); mov %rbx, native_regs+24(%rip)\n"
    "mov %rsp, native_regs+32(%rip); mov %rbp, native_regs+40(%rip); mov %rsi, native_regs+48(%rip); mov %rdi, native_regs+56(%rip)\n"
    "mov %r8, native_regs+64(%rip); mov %r9, native_regs+72(%rip); mov %r10, native_regs+80(%rip); mov %r11, native_regs+88(%rip)\n"
    "mov %r12, native_regs+96(%rip); mov %r13, native_regs+104(%rip); mov %r14, native_regs+112(%rip); mov %r15, native_regs+120(%rip)\n"
    "mov native_regs+144(%rip), %rsp\n"
    "pushfq; pop native_regs+128(%rip)\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n movdqa %xmm\\n, native_regs+160+16*\\n(%rip)\n .endr\n"
    "popfq; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "ret\n");
_Static_assert(offsetof(struct native, xmm) == 160 && offsetof(struct native, saved_rsp) == 144, "as the assembly has it");

static sigjmp_buf on_signal;
static void handler(int sig) { siglongjmp(on_signal, sig); }

/* 0, or the signal that the instruction raised. */
static int run_native(void)
{
    int sig = sigsetjmp(on_signal, 0);
    if (sig == 0)
        native_run();
    return sig;
}

/* ---- one case ------------------------------------------------------------------------------------------------ */

#define DATA_BYTES 16384u
#define GS_BASE 0x3210u
static uint8_t *code, *data;         /* executable page; the CPU's memory, below 2 GiB for absolute and 32-bit addresses */
static uint8_t shadow[DATA_BYTES];   /* the emulator's */
static uint8_t shadow_xmm[16][16];
static uint64_t rng_state;

static uint64_t rnd(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state;
}

/* Values near the edges find carry and sign mistakes that uniform ones miss. */
static uint64_t interesting(void)
{
    static const uint64_t edge[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff,
        0x7fffffffffffffff, 0x8000000000000000, ~0ull};
    return rnd() % 2 ? rnd() : edge[rnd() % ARRAY_SIZE(edge)] + rnd() % 3 - 1;
}

static uint8_t *place(uint64_t gva, unsigned size)
{
    uint64_t base = (uint64_t)(uintptr_t)data;
    if (gva < base || gva - base > DATA_BYTES - size)
        fail_msg("emulator accesses 0x%lx+%u outside the data", gva, size);
    return shadow + (gva - base);
}

static enum emulate_result op_probe(void *ctx, uint64_t gva, unsigned size, bool write, struct emulate_outcome *out)
{
    (void)ctx, (void)write, (void)out;
    place(gva, size);
    return EMULATE_DONE;
}
static enum emulate_result op_read(void *ctx, uint64_t gva, void *buf, unsigned size, struct emulate_outcome *out)
{
    (void)ctx, (void)out;
    memcpy(buf, place(gva, size), size);
    return EMULATE_DONE;
}
static enum emulate_result op_write(void *ctx, uint64_t gva, const void *buf, unsigned size, struct emulate_outcome *out)
{
    (void)ctx, (void)out;
    memcpy(place(gva, size), buf, size);
    return EMULATE_DONE;
}
static void op_get_xmm(void *ctx, unsigned reg, uint8_t val[16]) { (void)ctx; memcpy(val, shadow_xmm[reg], 16); }
static void op_set_xmm(void *ctx, unsigned reg, const uint8_t val[16]) { (void)ctx; memcpy(shadow_xmm[reg], val, 16); }
static const struct emulate_ops ops = {.probe = op_probe, .read = op_read, .write = op_write, .get_xmm = op_get_xmm, .set_xmm = op_set_xmm};

static unsigned random_bytes(uint8_t *b)
{
    static const uint8_t one[] = {0x00, 0x01, 0x02, 0x03, 0x63, 0x80, 0x81, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8f, 0xa0,
        0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf, 0xc6, 0xc7, 0xf6, 0xf7, 0xfe, 0xff};
    static const uint8_t two[] = {0xa3, 0xab, 0xb3, 0xbb, 0xba, 0xb0, 0xb1, 0xb6, 0xb7, 0xbe, 0xbf, 0xc0, 0xc1, 0xc3, 0x10, 0x11, 0x12, 0x13,
        0x16, 0x17, 0x28, 0x29, 0x2b, 0x6e, 0x6f, 0x7e, 0x7f, 0xd6, 0xe7, 0xf0};
    static const uint8_t prefix[] = {0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x65, 0x3e};
    unsigned n = 0;
    for (unsigned k = rnd() % 3; k > 0; k--)
        b[n++] = prefix[rnd() % sizeof prefix];
    if (rnd() % 2)
        b[n++] = 0x40 | (rnd() & 15);
    unsigned map = rnd() % 16;
    if (map < 9) {
        b[n] = one[rnd() % sizeof one];
        if (b[n] < 4)
            b[n] |= (rnd() % 8) << 3;
        n++;
    } else if (map < 15) {
        b[n++] = 0x0f;
        b[n++] = two[rnd() % sizeof two];
    } else {
        b[n++] = 0x0f;
        b[n++] = 0x38;
        b[n++] = 0xf0 | (rnd() & 1);
    }
    for (unsigned k = n; k < 24; k++)
        b[k] = (uint8_t)rnd();
    return n;
}

static void patch(uint8_t *b, const struct insn *i, uint64_t disp)
{
    memcpy(b + i->len - i->imm_size - i->imm2_size - i->disp_size, &disp, i->disp_size);
}

/* Makes the operand's address `target`; false if this combination of registers cannot. */
static bool aim(struct emulate_state *s, uint8_t *b, struct insn *i, uint64_t target)
{
    struct insn_mem *m = &i->mem;
    uint64_t garbage = i->addr_size == 4 ? rnd() << 32 : 0;
    if (m->seg == SEG_GS)
        target -= GS_BASE;
    if (m->base == INSN_RIP || (m->base == INSN_NO_REG && m->index == INSN_NO_REG)) {
        patch(b, i, m->base == INSN_RIP ? target - (s->rip + i->len) : target);
        return true;
    }
    if (m->base == m->index)
        return false;
    if (m->base == INSN_NO_REG) {
        if ((target - (uint64_t)m->disp) % m->scale)
            return false;
        s->gpr[m->index] = (target - (uint64_t)m->disp) / m->scale;
        return true;
    }
    uint64_t index = m->index == INSN_NO_REG ? 0 : s->gpr[m->index] * m->scale;
    s->gpr[m->base] = target - index - (uint64_t)m->disp;
    if (garbage)
        s->gpr[m->base] = (s->gpr[m->base] & 0xffffffff) | garbage;
    return true;
}

static bool set_up(struct emulate_state *s, uint8_t *b, struct insn *i)
{
    uint64_t base = (uint64_t)(uintptr_t)data, low = base + DATA_BYTES / 2, garbage = i->addr_size == 4 ? rnd() << 32 : 0;
    uint8_t op = i->opcode & 0xfe;
    for (unsigned k = 0; k < 16; k++)
        s->gpr[k] = interesting();
    s->rflags = 0x202 | (rnd() & 0x8d5) | (rnd() & 0x400);
    if (i->map == INSN_MAP_ONE && (op == 0xa4 || op == 0xa6 || op == 0xaa || op == 0xac || op == 0xae)) {
        s->gpr[EMULATE_RCX] = (rnd() % 40) | garbage;
        s->gpr[EMULATE_RSI] = (low + rnd() % 2048 - (i->seg_override == SEG_GS ? GS_BASE : 0)) | garbage;
        s->gpr[EMULATE_RDI] = (rnd() % 4 ? low + rnd() % 2048 : ((s->gpr[EMULATE_RSI] & 0xffffffff) + rnd() % 64 - 32)) | garbage;
        if (i->seg_override == SEG_GS)
            s->gpr[EMULATE_RDI] = (low + rnd() % 2048) | garbage;
        for (unsigned k = 0; rnd() % 2 && k < 4096; k++)
            data[DATA_BYTES / 2 - 1024 + k] = 0x5a; /* runs of equal bytes make REPE and REPNE go on */
        return true;
    }
    if (!i->has_mem)
        return false;
    bool bit_reg = i->map == INSN_MAP_0F && (i->opcode & 0xe7) == 0xa3;
    if (bit_reg)
        s->gpr[i->reg] = rnd() % 16384 - 8192;
    if (i->map == INSN_MAP_ONE && (i->opcode == 0xff || i->opcode == 0x8f))
        s->gpr[EMULATE_RSP] = low + 4096 + rnd() % 512;
    uint64_t before = s->gpr[i->reg], sp = s->gpr[EMULATE_RSP];
    if (!aim(s, b, i, low + (rnd() % 2 ? rnd() % 512 * 16 % 4096 : rnd() % 512)))
        return false;
    if (bit_reg && s->gpr[i->reg] != before)
        return false;
    if (i->map == INSN_MAP_ONE && (i->opcode == 0xff || i->opcode == 0x8f) && s->gpr[EMULATE_RSP] != sp)
        return i->mem.index == INSN_NO_REG && i->addr_size == 8 && s->gpr[EMULATE_RSP] - base - 64 < DATA_BYTES - 128 && i->mem.disp < 4096 &&
            i->mem.disp > -4096;
    return true;
}

static uint64_t undefined_flags(const struct insn *i)
{
    uint8_t op = i->opcode;
    if (i->map == INSN_MAP_0F && ((op & 0xe7) == 0xa3 || op == 0xba))
        return 0x894; /* BT and its kin define CF and keep ZF */
    bool logic = i->map == INSN_MAP_ONE && ((op < 0x40 && ((op >> 3) == 1 || (op >> 3) == 4 || (op >> 3) == 6)) || (op & 0xfe) == 0x84 ||
        ((op & 0xfc) == 0x80 && (i->reg == 1 || i->reg == 4 || i->reg == 6 || (i->reg & 7) == 1 || (i->reg & 7) == 4 || (i->reg & 7) == 6)) ||
        ((op & 0xfe) == 0xf6 && (i->reg & 7) < 2));
    return logic ? 0x10 : 0;
}

static void complain(const struct insn *i, const uint8_t *b, const char *what, uint64_t ours, uint64_t theirs)
{
    char hex[64] = "";
    for (unsigned k = 0; k < i->len; k++)
        snprintf(hex + 3 * k, sizeof hex - 3 * k, "%02x ", b[k]);
    fail_msg("%s: emulated 0x%lx, CPU 0x%lx: %s", what, ours, theirs, hex);
}

struct tally { uint64_t done, faults, unsupported, skipped; uint64_t by_opcode[2][256]; };

static void one_case(struct tally *t)
{
    struct emulate_state s = {.rip = (uint64_t)(uintptr_t)code, .cr0 = 0x80000011, .cr4 = 0x620, .efer = 0x500, .cpl = 3}, before;
    struct emulate_outcome out = {0};
    struct insn i;
    uint8_t b[24];
    s.seg[SEG_CS] = (struct vcpu_seg){.attr = 0xafb, .limit = 0xffffffff};
    s.seg[SEG_GS].base = GS_BASE;
    random_bytes(b);
    if (insn_decode(b, INSN_MAX_LEN, INSN_MODE_64, &i) != INSN_OK || !set_up(&s, b, &i) ||
        insn_decode(b, INSN_MAX_LEN, INSN_MODE_64, &i) != INSN_OK) {
        t->skipped++;
        return;
    }
    for (unsigned k = 0; k < 64; k += 8) /* fresh values where the operand is likely to be */
        ((uint64_t *)(void *)(data + DATA_BYTES / 2))[rnd() % 512] = interesting();
    if (i.map == INSN_MAP_0F && (i.opcode & 0xfe) == 0xb0 && rnd() % 2) {
        uint64_t at = emulate_offset(&s, &i) + (i.mem.seg == SEG_GS ? GS_BASE : 0) - (uint64_t)(uintptr_t)data;
        memcpy(&s.gpr[EMULATE_RAX], data + at, 8); /* CMPXCHG that succeeds, unless RAX is part of the address */
        if (i.mem.base == EMULATE_RAX || i.mem.index == EMULATE_RAX)
            return;
    }
    memcpy(shadow, data, DATA_BYTES);
    for (unsigned k = 0; k < 16 * 16; k++)
        native_regs.xmm[k / 16][k % 16] = (uint8_t)rnd();
    memcpy(shadow_xmm, native_regs.xmm, sizeof shadow_xmm);
    memcpy(native_regs.gpr, s.gpr, sizeof s.gpr);
    native_regs.rflags = s.rflags;
    native_regs.code = s.rip;

    before = s;
    enum emulate_result r = emulate_insn(&s, &ops, NULL, &i, EMULATE_MEMORY, &out);
    if (r == EMULATE_UNSUPPORTED) {
        assert_memory_equal(&s, &before, sizeof s);
        t->unsupported++;
        return;
    }
    static const uint8_t jump[] = {0xff, 0x25, 0, 0, 0, 0};
    uint64_t back = (uint64_t)(uintptr_t)native_return;
    memcpy(code, b, i.len);
    memcpy(code + i.len, jump, sizeof jump);
    memcpy(code + i.len + sizeof jump, &back, 8);
    int sig = run_native();
    if (r == EMULATE_FAULT) {
        assert_memory_equal(&s, &before, sizeof s);
        if (sig != (out.fault.vector == 6 ? SIGILL : out.fault.vector == 12 ? SIGBUS : SIGSEGV))
            complain(&i, b, "fault", out.fault.vector, (uint64_t)sig);
        t->faults++;
        return;
    }
    if (r != EMULATE_DONE || sig != 0)
        complain(&i, b, "result", r, (uint64_t)sig);
    if (s.rip != before.rip + i.len)
        complain(&i, b, "RIP", s.rip, before.rip + i.len);
    for (unsigned k = 0; k < 16; k++)
        if (s.gpr[k] != native_regs.gpr[k])
            complain(&i, b, "register", s.gpr[k], native_regs.gpr[k]);
    uint64_t flags = ~(undefined_flags(&i) | BIT64(16)); /* RF comes and goes with signals */
    if ((s.rflags ^ native_regs.rflags) & flags)
        complain(&i, b, "RFLAGS", s.rflags, native_regs.rflags);
    if (memcmp(shadow, data, DATA_BYTES)) {
        unsigned at = 0;
        while (shadow[at] == data[at])
            at++;
        complain(&i, b, "memory", shadow[at], data[at]);
    }
    if (memcmp(shadow_xmm, native_regs.xmm, sizeof shadow_xmm))
        complain(&i, b, "XMM", shadow_xmm[i.reg][0], native_regs.xmm[i.reg][0]);
    t->done++;
    t->by_opcode[i.map != INSN_MAP_ONE][i.opcode]++;
}

static void test_against_cpu(void **state)
{
    static uint8_t alt_stack[65536];
    stack_t alt = {.ss_sp = alt_stack, .ss_size = sizeof alt_stack};
    struct sigaction sa = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_NODEFER};
    struct tally t = {0};
    (void)state;
    sigaltstack(&alt, NULL); /* here, not in the fixture: cmocka sets handlers of its own around that */
    sigaction(SIGILL, &sa, NULL);
    sigaction(SIGSEGV, &sa, NULL);
    sigaction(SIGBUS, &sa, NULL);
    const char *count = getenv("EMULATE_TEST_COUNT"), *seed = getenv("EMULATE_TEST_SEED");
    rng_state = seed ? strtoull(seed, NULL, 0) : 0x853c49e6748fea9b;
    for (uint64_t n = count ? strtoull(count, NULL, 0) : 120000; n > 0; n--)
        one_case(&t);
    unsigned opcodes = 0;
    for (unsigned k = 0; k < 512; k++)
        opcodes += t.by_opcode[k / 256][k % 256] != 0;
    printf("%lu executed alike (%u opcodes), %lu faulted alike, %lu unsupported, %lu not set up\n", t.done, opcodes, t.faults, t.unsupported,
        t.skipped);
    assert_true(opcodes >= 90);
}

/* ---- what user code on this CPU cannot show: other modes, ports, faults in the middle
 * ------------------------------------ */

struct small { uint8_t mem[65536]; uint64_t fault_at; enum emulate_result fault_as; uint32_t ports[8]; unsigned port_count, port_size; };
static struct small small; /* 64 KiB of guest memory whose upper part may fault */

static enum emulate_result small_probe(void *ctx, uint64_t gva, unsigned size, bool write, struct emulate_outcome *out)
{
    struct small *m = ctx;
    (void)write;
    assert_true(gva + size <= sizeof m->mem);
    if (gva + size <= m->fault_at)
        return EMULATE_DONE;
    out->fault = (struct emulate_fault){.vector = 14, .has_error = true, .error_code = 2, .cr2 = gva};
    return m->fault_as;
}
static enum emulate_result small_read(void *ctx, uint64_t gva, void *buf, unsigned size, struct emulate_outcome *out)
{
    enum emulate_result r = small_probe(ctx, gva, size, false, out);
    if (r == EMULATE_DONE)
        memcpy(buf, small.mem + gva, size);
    return r;
}
static enum emulate_result small_write(void *ctx, uint64_t gva, const void *buf, unsigned size, struct emulate_outcome *out)
{
    enum emulate_result r = small_probe(ctx, gva, size, true, out);
    if (r == EMULATE_DONE)
        memcpy(small.mem + gva, buf, size);
    return r;
}
static void small_port(void *ctx, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    struct small *m = ctx;
    assert_int_equal(port, 0x3f8);
    m->port_size = size;
    if (in)
        *val = 0x11111111 * ++m->port_count;
    else
        m->ports[m->port_count++ % 8] = *val;
}
static const struct emulate_ops small_ops = {.probe = small_probe, .read = small_read, .write = small_write, .port = small_port};

static struct emulate_state small_state(enum insn_mode mode)
{
    struct emulate_state s = {.rip = 0x7000, .rflags = 2, .cr0 = 0x11};
    for (unsigned k = 0; k < 6; k++)
        s.seg[k] = (struct vcpu_seg){.attr = mode == INSN_MODE_16 ? 0x93 : 0xc93, .limit = mode == INSN_MODE_16 ? 0xffff : 0xffffffff};
    s.seg[SEG_CS].attr = mode == INSN_MODE_64 ? 0xa9b : mode == INSN_MODE_32 ? 0xc9b : 0x9b;
    if (mode == INSN_MODE_64)
        s.efer = 0x500;
    s.gpr[EMULATE_RDX] = 0x3f8;
    small.fault_at = UINT64_MAX;
    small.port_count = 0;
    return s;
}

static enum emulate_result run(struct emulate_state *s, const char *bytes, unsigned len, enum emulate_kind kind, struct emulate_outcome *out)
{
    struct insn i;
    assert_int_equal(insn_decode((const uint8_t *)bytes, len, emulate_mode(s), &i), INSN_OK);
    assert_int_equal(i.len, len);
    return emulate_insn(s, &small_ops, &small, &i, kind, out);
}
#define RUN(s, b, kind) run(&(s), b, sizeof(b) - 1, kind, &out)

static void test_rep_restart(void **state)
{
    struct emulate_outcome out;
    struct emulate_state s = small_state(INSN_MODE_64);
    (void)state;
    s.gpr[EMULATE_RCX] = 3000;
    s.gpr[EMULATE_RDI] = 0x1000;
    s.gpr[EMULATE_RAX] = 0xabcd;
    for (unsigned left = 3000; left > EMULATE_MAX_ITERATIONS;) {
        assert_int_equal(RUN(s, "\x66\xf3\xab", EMULATE_MEMORY), EMULATE_AGAIN);
        left -= EMULATE_MAX_ITERATIONS;
        assert_int_equal(s.gpr[EMULATE_RCX], left);
        assert_int_equal(s.rip, 0x7000);
    }
    assert_int_equal(RUN(s, "\x66\xf3\xab", EMULATE_MEMORY), EMULATE_DONE);
    assert_int_equal(s.gpr[EMULATE_RDI], 0x1000 + 6000);
    assert_int_equal(s.rip, 0x7003);
    /* a fault, or a missing page, after five iterations */
    for (enum emulate_result as = EMULATE_FAULT; as <= EMULATE_STALLED; as++) {
        s = small_state(INSN_MODE_64);
        s.gpr[EMULATE_RCX] = 9;
        s.gpr[EMULATE_RSI] = 0x1000;
        s.gpr[EMULATE_RDI] = 0x3000;
        small.fault_at = 0x3014;
        small.fault_as = as;
        assert_int_equal(RUN(s, "\xf3\xa5", EMULATE_MEMORY), as);
        if (as == EMULATE_FAULT)
            assert_int_equal(out.fault.cr2, 0x3014);
        assert_int_equal(s.gpr[EMULATE_RCX], 4);
        assert_int_equal(s.gpr[EMULATE_RSI], 0x1014);
        assert_int_equal(s.rip, 0x7000);
        small.fault_at = UINT64_MAX;
        assert_int_equal(RUN(s, "\xf3\xa5", EMULATE_MEMORY), EMULATE_DONE);
        assert_memory_equal(small.mem + 0x3000, small.mem + 0x1000, 36);
    }
}

static void test_port_strings(void **state)
{
    struct emulate_outcome out;
    (void)state;
    for (enum insn_mode mode = INSN_MODE_16; mode <= INSN_MODE_64; mode++) {
        struct emulate_state s = small_state(mode);
        uint64_t upper = mode == INSN_MODE_64 ? 0 : mode == INSN_MODE_32 ? 0 : 0x10000; /* above the address size: untouched */
        s.gpr[EMULATE_RSI] = upper | 0x2000;
        s.gpr[EMULATE_RCX] = upper | 3;
        memcpy(small.mem + 0x2000, "abc", 3);
        assert_int_equal(RUN(s, "\xf3\x6e", EMULATE_STRING_IO), EMULATE_DONE);
        assert_int_equal(small.port_count, 3);
        assert_int_equal(small.ports[2], 'c');
        assert_int_equal(s.gpr[EMULATE_RSI], upper | 0x2003);
        assert_int_equal(s.gpr[EMULATE_RCX], upper);
        /* INS downwards; the port is not read when the memory is not writable */
        s = small_state(mode);
        s.rflags |= BIT64(10);
        s.gpr[EMULATE_RDI] = 0x2008;
        s.gpr[EMULATE_RCX] = 2;
        assert_int_equal(mode == INSN_MODE_16 ? RUN(s, "\xf3\x66\x6d", EMULATE_STRING_IO) : RUN(s, "\xf3\x6d", EMULATE_STRING_IO), EMULATE_DONE);
        assert_int_equal(small.port_size, 4);
        assert_int_equal(s.gpr[EMULATE_RDI], 0x2000);
        assert_memory_equal(small.mem + 0x2004, "\x22\x22\x22\x22\x11\x11\x11\x11", 8);
        s.rip = 0x7000;
        s.gpr[EMULATE_RCX] = 1;
        small.fault_at = 0;
        small.fault_as = EMULATE_FAULT;
        assert_int_equal(RUN(s, "\xf3\x6c", EMULATE_STRING_IO), EMULATE_FAULT);
        assert_int_equal(small.port_count, 2);
    }
    struct emulate_state s = small_state(INSN_MODE_64);
    assert_int_equal(RUN(s, "\x6c", EMULATE_MEMORY), EMULATE_UNSUPPORTED);
    assert_int_equal(RUN(s, "\xa4", EMULATE_STRING_IO), EMULATE_UNSUPPORTED);
    s.gpr[EMULATE_RSI] = 0x2000;
    assert_int_equal(RUN(s, "\x48\x6f", EMULATE_STRING_IO), EMULATE_DONE);
    assert_int_equal(small.port_size, 4); /* REX.W does not widen it */
}

static void test_segments(void **state)
{
    struct emulate_outcome out;
    (void)state;
    /* real mode: base, wrap of the 16-bit offset, limit without error code */
    struct emulate_state s = small_state(INSN_MODE_16);
    s.cr0 = 0x10;
    s.seg[SEG_DS].base = 0x1000;
    s.gpr[EMULATE_RBX] = 0xfff0;
    s.gpr[EMULATE_RSI] = 0x20;
    small.mem[0x1010 + 0x34] = 0x99;
    assert_int_equal(RUN(s, "\x8a\x40\x34", EMULATE_MEMORY), EMULATE_DONE);
    assert_int_equal(s.gpr[EMULATE_RAX], 0x99);
    s.gpr[EMULATE_RBX] = 0xffff;
    assert_int_equal(RUN(s, "\x8b\x07", EMULATE_MEMORY), EMULATE_FAULT); /* a word at FFFF */
    assert_int_equal(out.fault.vector, 13);
    assert_false(out.fault.has_error);
    s.gpr[EMULATE_RBP] = 0xffff;
    assert_int_equal(RUN(s, "\x8b\x46\x00", EMULATE_MEMORY), EMULATE_FAULT);
    assert_int_equal(out.fault.vector, 12);
    /* protected mode */
    static const struct { uint16_t attr; uint32_t limit; uint64_t offset; bool write, ok; } cases[] = {
        {0xc93, 0xffffffff, 0xfffc, true, true}, {0xc91, 0xffffffff, 0, true, false}, {0xc91, 0xffffffff, 0, false, true},
        {0xc99, 0xffffffff, 0, false, false}, {0xc9b, 0xffffffff, 0, false, true}, {0xc9b, 0xffffffff, 0, true, false},
        {0xc13, 0xffffffff, 0, false, false}, {0x8c93, 0xffffffff, 0, false, false}, {0x493, 0x0fff, 0xffc, true, true},
        {0x493, 0x0fff, 0xffd, true, false}, {0x497, 0x0fff, 0xfff, false, false}, {0x497, 0x0fff, 0x1000, false, true},
        {0x097, 0x0fff, 0xfffc, false, true}, {0x097, 0x0fff, 0xfffd, false, false}, {0x497, 0x0fff, 0xfffffffd, false, false},
    };
    for (unsigned k = 0; k < ARRAY_SIZE(cases); k++) {
        struct emulate_fault f = {0};
        uint64_t gva;
        s = small_state(INSN_MODE_32);
        s.seg[SEG_ES].attr = cases[k].attr;
        s.seg[SEG_ES].limit = cases[k].limit;
        if (emulate_linear(&s, SEG_ES, cases[k].offset, 4, cases[k].write, &gva, &f) != cases[k].ok)
            fail_msg("segment case %u", k);
        assert_int_equal(f.vector, cases[k].ok ? 0 : 13);
    }
    /* 64-bit mode: canonical addresses; FS has a base, DS has none */
    struct emulate_fault f;
    uint64_t gva;
    s = small_state(INSN_MODE_64);
    s.seg[SEG_DS].base = s.seg[SEG_FS].base = 0x500;
    assert_true(emulate_linear(&s, SEG_DS, 0x10, 8, true, &gva, &f) && gva == 0x10);
    assert_true(emulate_linear(&s, SEG_FS, 0x10, 8, true, &gva, &f) && gva == 0x510);
    assert_false(emulate_linear(&s, SEG_DS, 0x7ffffffffff9, 8, true, &gva, &f));
    assert_true(emulate_linear(&s, SEG_DS, 0x7ffffffffff8, 8, true, &gva, &f));
    assert_false(emulate_linear(&s, SEG_SS, 0x800000000000, 8, true, &gva, &f));
    assert_int_equal(f.vector, 12);
    s.cr4 = BIT64(12);
    assert_true(emulate_linear(&s, SEG_SS, 0x800000000000, 8, true, &gva, &f));
}

static void test_decode_cr(void **state)
{
    static const struct { const char *bytes; enum insn_mode mode; bool is; enum emulate_cr_kind kind; unsigned reg, gpr; uint64_t value; } cases[] = {
        {"\x0f\x22\xc3", INSN_MODE_64, true, EMULATE_MOV_TO_CR, 0, 3, 0x1111111122222222},
        {"\x0f\x22\xc3", INSN_MODE_32, true, EMULATE_MOV_TO_CR, 0, 3, 0x22222222},
        {"\x45\x0f\x20\xc3", INSN_MODE_64, true, EMULATE_MOV_FROM_CR, 8, 11, 0},
        {"\xf0\x0f\x20\xc3", INSN_MODE_32, true, EMULATE_MOV_FROM_CR, 8, 3, 0x22222222},
        {"\x0f\x23\xfb", INSN_MODE_64, true, EMULATE_MOV_TO_DR, 7, 3, 0x1111111122222222},
        {"\x0f\x21\x3b", INSN_MODE_64, true, EMULATE_MOV_FROM_DR, 7, 3, 0x1111111122222222}, /* mod is ignored */
        {"\x0f\x06\x90", INSN_MODE_64, true, EMULATE_CLTS, 0, INSN_NO_REG, 0},
        {"\x0f\x01\xf3", INSN_MODE_64, true, EMULATE_LMSW, 0, 3, 0x2222},
        {"\x0f\x01\x23", INSN_MODE_64, true, EMULATE_SMSW, 0, INSN_NO_REG, 0},
        {"\x0f\x01\x3b", INSN_MODE_64, true, EMULATE_INVLPG, 0, INSN_NO_REG, 0x1111111122222222},
        {"\x0f\x01\xf9", INSN_MODE_64, false, 0, 0, 0, 0}, /* RDTSCP */
        {"\x0f\xa2\x90", INSN_MODE_64, false, 0, 0, 0, 0},
    };
    (void)state;
    for (unsigned k = 0; k < ARRAY_SIZE(cases); k++) {
        struct emulate_state s = small_state(cases[k].mode);
        struct emulate_cr cr;
        struct insn i;
        s.gpr[EMULATE_RBX] = 0x1111111122222222;
        assert_int_equal(insn_decode((const uint8_t *)cases[k].bytes, strlen(cases[k].bytes), cases[k].mode, &i), INSN_OK);
        assert_int_equal(emulate_decode_cr(&s, &i, &cr), cases[k].is);
        if (!cases[k].is)
            continue;
        if (cr.kind != cases[k].kind || cr.reg != cases[k].reg || cr.gpr != cases[k].gpr || cr.value != cases[k].value || cr.len != i.len)
            fail_msg("control register case %u: kind %d reg %u gpr %u value 0x%lx", k, cr.kind, cr.reg, cr.gpr, cr.value);
    }
}

static int start(void **state)
{
    (void)state;
    code = mmap(NULL, 8192 + DATA_BYTES + 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (code == MAP_FAILED)
        return -1;
    data = code + 8192;
    rng_state = 1;
    for (unsigned k = 0; k < DATA_BYTES; k++)
        data[k] = (uint8_t)rnd();
    return (int)syscall(SYS_arch_prctl, ARCH_SET_GS, GS_BASE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rep_restart), cmocka_unit_test(test_port_strings), cmocka_unit_test(test_segments),
        cmocka_unit_test(test_decode_cr), cmocka_unit_test_setup(test_against_cpu, start)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
