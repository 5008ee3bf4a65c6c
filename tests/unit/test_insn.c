/* TEST-SOURCES: vm/insn.c */
/* TEST-LIBS: -lZydis -lZycore */
/*
 * The decoder against Zydis as oracle, on random instructions in the three code-segment modes. What Zydis decodes we
 * must decode with the same length, and its explicit memory operand, immediate and sizes must be ours. Every proper
 * prefix must ask for more, from a heap block of exactly that size, so that the sanitizer sees a byte read too far.
 * INSN_TEST_COUNT sets the number of instructions per mode, INSN_TEST_SEED the sequence.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <Zydis/Zydis.h>
#include "vm/insn.h"

static uint64_t rng_state;

static uint64_t rnd(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state;
}

static uint64_t env(const char *name, uint64_t otherwise)
{
    const char *s = getenv(name);
    return s ? strtoull(s, NULL, 0) : otherwise;
}

static void random_insn(uint8_t b[INSN_MAX_LEN], enum insn_mode mode)
{
    static const uint8_t prefixes[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x66, 0x67, 0x67, 0xf0, 0xf2, 0xf3};
    unsigned n = 0, style = rnd() % 16;
    for (unsigned k = 0; k < INSN_MAX_LEN; k++)
        b[k] = (uint8_t)rnd();
    if (style == 0)
        return;
    for (unsigned k = rnd() % 8 == 0 ? rnd() % 14 : rnd() % 4; k > 0; k--)
        b[n++] = prefixes[rnd() % sizeof prefixes];
    if (mode == INSN_MODE_64 && rnd() % 2 && n < 14)
        b[n++] = 0x40 | (rnd() & 15);
    if (n >= 11)
        return;
    if (style < 7) {
        b[n++] = 0x0f;
        if (style == 1)
            b[n++] = 0x38;
        else if (style == 2)
            b[n++] = 0x3a;
    } else if (style == 7) {
        static const uint8_t vector[] = {0xc4, 0xc5, 0x62, 0x8f};
        n = 0;
        b[n++] = vector[rnd() % 4];
        if (b[0] == 0x62) {
            b[1] = (b[1] & 0xf0) | (1 + rnd() % 6);
            b[2] |= 4;
        } else if (b[0] != 0xc5) {
            b[1] = (b[1] & 0xe0) | (b[0] == 0xc4 ? 1 + rnd() % 3 : 8 + rnd() % 3);
        }
        if (rnd() % 2)
            b[2] |= 0x78;
    }
}

struct tally { uint64_t decoded, operands, invalid, too_long, over_accepted; };

static void fail_at(const char *what, const uint8_t *b, enum insn_mode mode, long ours, long theirs)
{
    char hex[64] = "";
    for (unsigned k = 0; k < INSN_MAX_LEN; k++)
        snprintf(hex + 3 * k, sizeof hex - 3 * k, "%02x ", b[k]);
    fail_msg("%s: ours %ld (0x%lx), Zydis %ld (0x%lx); mode %d bytes %s", what, ours, ours, theirs, theirs, 16 << mode, hex);
}

#define SAME(what, a, b) do { if ((long)(a) != (long)(b)) fail_at(what, bytes, mode, (long)(a), (long)(b)); } while (0)

static long reg_number(ZydisRegister r)
{
    if (r == ZYDIS_REGISTER_NONE)
        return INSN_NO_REG;
    if (r == ZYDIS_REGISTER_RIP || r == ZYDIS_REGISTER_EIP)
        return INSN_RIP;
    return ZydisRegisterGetId(r);
}

static void compare_operands(const uint8_t *bytes, enum insn_mode mode, const struct insn *i, const ZydisDecodedInstruction *z,
    const ZydisDecodedOperand *ops)
{
    if (i->has_mem && !(i->map == INSN_MAP_0F && (i->opcode & 0xfe) == 0x1a)) /* MPX: always 64 */
        SAME("address size", i->addr_size, z->address_width / 8);
    SAME("lock", i->lock, (z->attributes & ZYDIS_ATTRIB_HAS_LOCK) != 0);
    if (i->map == INSN_MAP_ONE && z->operand_width > 8 && i->opcode >= 0x40 && !(i->opcode >= 0xd8 && i->opcode <= 0xdf) &&
        i->opcode != 0x8e && i->opcode != 0x63 && (i->opcode & 0xf4) != 0xe4 && (i->opcode & 0xfc) != 0x6c) /* port I/O: 4 at most */
        SAME("operand size", i->op_size, z->operand_width / 8);
    for (unsigned k = 0; k < z->operand_count_visible; k++) {
        const ZydisDecodedOperand *o = &ops[k];
        if (o->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
            continue;
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && (o->mem.type == ZYDIS_MEMOP_TYPE_MEM || o->mem.type == ZYDIS_MEMOP_TYPE_AGEN)) {
            SAME("has a memory operand", i->has_mem, 1);
            SAME("base", i->mem.base, reg_number(o->mem.base));
            SAME("index", i->mem.index, reg_number(o->mem.index));
            SAME("scale", i->mem.index == INSN_NO_REG ? 1 : i->mem.scale, i->mem.index == INSN_NO_REG ? 1 : o->mem.scale);
            uint64_t mask = i->addr_size == 8 ? ~0ull : BIT64(8 * i->addr_size) - 1; /* signs past the address size mean nothing */
            SAME("displacement", i->mem.disp & mask, o->mem.disp.value & mask);
            if (o->mem.type == ZYDIS_MEMOP_TYPE_MEM && !(z->attributes & ZYDIS_ATTRIB_HAS_NOTRACK)) /* DS for CET, too */
                SAME("segment", i->mem.seg, ZydisRegisterGetId(o->mem.segment));
        } else if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && i->imm_size) {
            uint64_t mask = i->imm_size == 8 ? ~0ull : BIT64(8 * i->imm_size) - 1;
            bool second = i->imm2_size && (o->imm.value.u & 0xffff) == i->imm2;
            if (!second)
                SAME("immediate", i->imm & mask, o->imm.value.u & mask);
        }
    }
}

static void check_one(const ZydisDecoder *d, enum insn_mode mode, const uint8_t *bytes, uint8_t *const exact[], struct tally *t)
{
    ZydisDecodedInstruction z;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    struct insn i;
    enum insn_result r = insn_decode(bytes, INSN_MAX_LEN, mode, &i);
    ZyanStatus s = ZydisDecoderDecodeFull(d, bytes, INSN_MAX_LEN, &z, ops);
    if (ZYAN_SUCCESS(s) && z.meta.isa_set >= ZYDIS_ISA_SET_KNCE && z.meta.isa_set <= ZYDIS_ISA_SET_KNC_PF_HINT)
        return; /* a dead product whose encodings collide with AVX */
    if (ZYAN_SUCCESS(s)) {
        t->decoded++;
        SAME("result", r, INSN_OK);
        SAME("length", i.len, z.length);
        if (i.encoding == INSN_LEGACY && i.map <= INSN_MAP_0F) {
            compare_operands(bytes, mode, &i, &z, ops);
            t->operands++;
        }
        for (unsigned n = 0; n < i.len; n++) {
            struct insn part;
            memcpy(exact[n], bytes, n);
            SAME("result of a part", insn_decode(exact[n], n, mode, &part), INSN_NEED_MORE);
        }
    } else if (r == INSN_TOO_LONG) {
        t->too_long++; /* 15 bytes were not enough: Zydis then says so, or finds it invalid earlier */
    } else if (r == INSN_OK) {
        t->over_accepted++;
        assert_in_range(i.len, 1, INSN_MAX_LEN);
    } else {
        assert_int_equal(r, INSN_INVALID);
        t->invalid++;
    }
}

static void test_against_zydis(void **state)
{
    static const ZydisMachineMode modes[] = {ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_MACHINE_MODE_LONG_64};
    static const ZydisStackWidth widths[] = {ZYDIS_STACK_WIDTH_16, ZYDIS_STACK_WIDTH_32, ZYDIS_STACK_WIDTH_64};
    (void)state;
    uint8_t *exact[INSN_MAX_LEN + 1];
    for (unsigned n = 0; n <= INSN_MAX_LEN; n++)
        exact[n] = malloc(n ? n : 1);
    uint64_t count = env("INSN_TEST_COUNT", 150000);
    rng_state = env("INSN_TEST_SEED", 0x9e3779b97f4a7c15);
    for (enum insn_mode mode = INSN_MODE_16; mode <= INSN_MODE_64; mode++) {
        ZydisDecoder d;
        struct tally t = {0};
        assert_true(ZYAN_SUCCESS(ZydisDecoderInit(&d, modes[mode], widths[mode])));
        for (uint64_t n = 0; n < count; n++) {
            uint8_t b[INSN_MAX_LEN];
            random_insn(b, mode);
            check_one(&d, mode, b, exact, &t);
        }
        printf("mode %d: %lu decoded alike (%lu with operands), %lu refused by both, %lu too long, %lu accepted by us only\n",
            16 << mode, t.decoded, t.operands, t.invalid, t.too_long, t.over_accepted);
        assert_true(t.decoded > count / 3); /* or the comparison would say nothing */
    }
    for (unsigned n = 0; n <= INSN_MAX_LEN; n++)
        free(exact[n]);
}

struct sample { enum insn_mode mode; unsigned len; uint8_t bytes[16]; enum insn_result result; };

static void test_corners(void **state)
{
    static const struct sample samples[] = {
        {INSN_MODE_64, 15, {0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90}, INSN_OK},
        {INSN_MODE_64, 16, {0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90}, INSN_TOO_LONG},
        {INSN_MODE_64, 1, {0x06}, INSN_INVALID},
        {INSN_MODE_32, 1, {0x06}, INSN_OK},
        {INSN_MODE_64, 0, {0}, INSN_NEED_MORE},
        {INSN_MODE_64, 10, {0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8}, INSN_OK},
        {INSN_MODE_64, 9, {0xa1, 1, 2, 3, 4, 5, 6, 7, 8}, INSN_OK},
        {INSN_MODE_16, 5, {0xea, 0, 0, 0, 0xf0}, INSN_OK},
        {INSN_MODE_64, 3, {0x0f, 0x01, 0xd9}, INSN_OK},
        {INSN_MODE_64, 2, {0x0f, 0xff}, INSN_NEED_MORE},
    };
    (void)state;
    for (unsigned k = 0; k < ARRAY_SIZE(samples); k++) {
        struct insn i;
        assert_int_equal(insn_decode(samples[k].bytes, samples[k].len, samples[k].mode, &i), samples[k].result);
        if (samples[k].result == INSN_OK)
            assert_int_equal(i.len, samples[k].len);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_corners), cmocka_unit_test(test_against_zydis)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
