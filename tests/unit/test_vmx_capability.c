/* TEST-SOURCES: vmx/capability.c vmx/failure.c */
/*
 * Which CPUs are taken for VMX and how they are set up, from the raw capability MSRs of seven models (as Bochs's have them), with each bit
 * turned over, and with random ones. The judge has its own list of what we need, in bit numbers and words of SDM 3, tables 25-5 to 25-17.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "vmx/capability.h"

enum model { SNB, HSW, BDW, SKX, CNL, ICL, TGL, MODELS };

static const struct { uint32_t msr; uint64_t of[MODELS]; } raw[] = {
    {0x480, {0x00d810000000002b, 0x00d810000000002b, 0x00d810000000002b, 0x00d810000000002b, 0x00d810000000002b, 0x00d8100000000004, 0x01d8100000000004}},
    {0x481, {0x0000007f00000016, 0x0000007f00000016, 0x0000007f00000016, 0x0000007f00000016, 0x0000007f00000016, 0x0000007f00000016, 0x0000007f00000016}},
    {0x482, {0xf7f9fffe0401e172, 0xf7f9fffe0401e172, 0xf7f9fffe0401e172, 0xf7f9fffe0401e172, 0xf7f9fffe0401e172, 0xfff9fffe0401e172, 0xfff9fffe0401e172}},
    {0x483, {0x007fffff00036dff, 0x007fffff00036dff, 0x007fffff00036dff, 0x007fffff00036dff, 0x007fffff00036dff, 0x007fffff00036dff, 0x107fffff00036dff}},
    {0x484, {0x0000ffff000011ff, 0x0000ffff000011ff, 0x0000ffff000011ff, 0x0000ffff000011ff, 0x0000ffff000011ff, 0x0000ffff000011ff, 0x0010ffff000011ff}},
    {0x485, {0x00000000000401e0, 0x00000000200401e0, 0x00000000200401e0, 0x00000000600401e0, 0x00000000600401e0, 0x00000000600401e0, 0x00000000600401e0}},
    {0x486, {0x80000021, 0x80000021, 0x80000021, 0x80000021, 0x80000021, 0x80000021, 0x80000021}},
    {0x487, {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
    {0x488, {0x2000, 0x2000, 0x2000, 0x2000, 0x2000, 0x2000, 0x2000}},
    {0x489, {0x627ff, 0x1727ff, 0x3727ff, 0x3727ff, 0x772fff, 0x772fff, 0xf72fff}},
    {0x48a, {0x34, 0x34, 0x34, 0x34, 0x34, 0x34, 0x34}},
    {0x48b, {0x000000ff00000000, 0x00047fff00000000, 0x00057fff00000000, 0x02177fff00000000, 0x02157cff00000000, 0x02977fff00000000, 0x02977fff00000000}},
    {0x48c, {0x00000f0106114141, 0x00000f0106334141, 0x00000f0106334141, 0x00000f0106334141, 0x00000f0106334141, 0x00000f0106334141, 0x00000f0106b34141}},
    {0x48d, {0x0000007f00000016, 0x0000007f00000016, 0x0000007f00000016, 0x0000007f00000016, 0x0000007f00000016, 0x0000007f00000016, 0x0000007f00000016}},
    {0x48e, {0xf7f9fffe04006172, 0xf7f9fffe04006172, 0xf7f9fffe04006172, 0xf7f9fffe04006172, 0xf7f9fffe04006172, 0xfff9fffe04006172, 0xfff9fffe04006172}},
    {0x48f, {0x007fffff00036dfb, 0x007fffff00036dfb, 0x007fffff00036dfb, 0x007fffff00036dfb, 0x007fffff00036dfb, 0x007fffff00036dfb, 0x107fffff00036dfb}},
    {0x490, {0x0000ffff000011fb, 0x0000ffff000011fb, 0x0000ffff000011fb, 0x0000ffff000011fb, 0x0000ffff000011fb, 0x0000ffff000011fb, 0x0010ffff000011fb}},
};
_Static_assert(sizeof(raw) / sizeof(raw[0]) == MSR_VMX_LAST - MSR_VMX_BASIC + 1, "each once");

static struct vmx_msrs msrs_of(enum model model)
{
    struct vmx_msrs m;
    for (size_t n = 0; n < sizeof(raw) / sizeof(raw[0]); n++)
        m.value[raw[n].msr - 0x480] = raw[n].of[model];
    return m;
}

static struct vmx_features f;
static char why[VMX_WHY_BYTES];

static bool taken(const struct vmx_msrs *m)
{
    memset(why, 0, sizeof(why));
    return vmx_features_of(m, &f, why);
}

#define assert_refused(m, text) do { assert_false(taken(m)); if (!strstr(why, text)) fail_msg("\"%s\" is not in \"%s\"", text, why); } while (0)

/* ---- the judge -------------------------------------------------------------------------------------------------------------- */

enum need { NO_MATTER, REQUIRED, OPTIONAL, UNWANTED };

static const struct word {
    uint32_t msr, true_msr;
    const char *what;
    size_t result;
    struct { unsigned bit; enum need need; const char *name; } bits[20];
} judged[] = {
    {0x481, 0x48d, "pin-based", offsetof(struct vmx_features, pin),
     {{0, REQUIRED, "external-interrupt exiting"}, {3, REQUIRED, "NMI exiting"}, {5, REQUIRED, "virtual NMIs"},
      {6, OPTIONAL, "activate VMX-preemption timer"}}},
    {0x482, 0x48e, "processor-based", offsetof(struct vmx_features, proc),
     {{2, UNWANTED, "interrupt-window exiting"}, {3, REQUIRED, "use TSC offsetting"}, {7, REQUIRED, "HLT exiting"},
      {9, UNWANTED, "INVLPG exiting"}, {10, REQUIRED, "MWAIT exiting"}, {11, REQUIRED, "RDPMC exiting"}, {12, UNWANTED, "RDTSC exiting"},
      {15, UNWANTED, "CR3-load exiting"}, {16, UNWANTED, "CR3-store exiting"}, {21, OPTIONAL, "use TPR shadow"}, {22, UNWANTED, "NMI-window exiting"},
      {23, REQUIRED, "MOV-DR exiting"}, {24, REQUIRED, "unconditional I/O exiting"}, {28, REQUIRED, "use MSR bitmaps"},
      {29, REQUIRED, "MONITOR exiting"}, {30, UNWANTED, "PAUSE exiting"}, {31, REQUIRED, "activate secondary controls"}}},
    {0x48b, 0x48b, "secondary processor-based", offsetof(struct vmx_features, proc2),
     {{1, REQUIRED, "enable EPT"}, {3, OPTIONAL, "enable RDTSCP"}, {5, OPTIONAL, "enable VPID"}, {6, REQUIRED, "WBINVD exiting"},
      {7, REQUIRED, "unrestricted guest"},
      {10, OPTIONAL, "PAUSE-loop exiting"}, {12, OPTIONAL, "enable INVPCID"}}}, /* 17, "enable PML": on only while a log is read */
    {0x483, 0x48f, "VM-exit", offsetof(struct vmx_features, exit),
     {{2, REQUIRED, "save debug controls"}, {9, REQUIRED, "host address-space size"}, {15, UNWANTED, "acknowledge interrupt on exit"},
      {19, REQUIRED, "load IA32_PAT"}, {21, REQUIRED, "load IA32_EFER"}}},
    {0x484, 0x490, "VM-entry", offsetof(struct vmx_features, entry),
     {{2, REQUIRED, "load debug controls"}, {9, REQUIRED, "IA-32e mode guest"}, {10, UNWANTED, "entry to SMM"},
      {14, REQUIRED, "load IA32_PAT"}, {15, REQUIRED, "load IA32_EFER"}}},
};
#define WORDS (sizeof(judged) / sizeof(judged[0]))

static uint32_t result_of(const struct word *w) { return *(const uint32_t *)((const char *)&f + w->result); }

static enum need need_of(const struct word *w, unsigned bit, const char **name)
{
    for (size_t n = 0; n < 20; n++)
        if (w->bits[n].need != NO_MATTER && w->bits[n].bit == bit) {
            *name = w->bits[n].name;
            return w->bits[n].need;
        }
    return NO_MATTER;
}

/* Of a CPU that was taken: a VM entry with these words passes (27.2.1.1), and does what the rest of vmx/ counts on. */
static void judge(const struct vmx_msrs *m)
{
    bool has_true = vmx_msr(m, 0x480) >> 55 & 1;
    uint64_t ept = vmx_msr(m, 0x48c);
    for (const struct word *w = judged; w < judged + WORDS; w++) {
        uint64_t cap = vmx_msr(m, has_true ? w->true_msr : w->msr);
        uint32_t word = result_of(w);
        assert_int_equal((uint32_t)cap & ~word, 0);
        for (unsigned bit = 0; bit < 32; bit++) {
            const char *name;
            enum need need = need_of(w, bit, &name);
            bool set = word >> bit & 1, must = cap >> bit & 1, may = cap >> (32 + bit) & 1;
            if (need == REQUIRED)
                assert_true(set && may);
            if (need == UNWANTED)
                assert_false(set);
            if (need == OPTIONAL && !(w->msr == 0x48b && bit == 5)) /* VPID: below */
                assert_int_equal(set, must || may);
            if (need == NO_MATTER && !(w->msr == 0x482 && (bit == 19 || bit == 20))) /* CR8 exiting: below */
                assert_int_equal(set, must);
        }
    }
    assert_true(f.tpr_shadow ? f.proc >> 21 & 1 : (f.proc >> 19 & 3) == 3);
    assert_int_equal(f.preemption_timer, f.pin >> 6 & 1);
    assert_int_equal(f.vpid, f.proc2 >> 5 & 1);
    assert_int_equal(f.vpid, (vmx_msr(m, 0x48b) >> 37 & 1) && (ept >> 32 & 1) && (ept >> 42 & 1)); /* as INVVPID of all contexts is used */
    assert_true((ept >> 6 & 1) && (ept >> 14 & 1) && (ept >> 16 & 1) && (ept >> 20 & 1));
    assert_true(f.invept_type == 1 || f.invept_type == 2);
    assert_true(ept >> (24 + f.invept_type) & 1);
    assert_int_equal(f.eptp_bits, 6 | 3 << 3 | (ept >> 21 & 1) << 6);
    assert_int_equal(f.pml, (vmx_msr(m, 0x48b) >> 49 & 1) && (ept >> 21 & 1)); /* a log of dirty bits that are set */
}

/* ---- whole CPUs --------------------------------------------------------------------------------------------------------------- */

static void these_models_are_taken(void **state)
{
    for (enum model model = 0; model < MODELS; model++) {
        struct vmx_msrs m = msrs_of(model);
        assert_true(taken(&m));
        assert_string_equal(why, "");
        judge(&m);
        assert_int_equal(f.revision, model < ICL ? 0x2b : 4);
        assert_true(f.vpid && f.tpr_shadow && f.preemption_timer && f.ins_outs_info);
        assert_int_equal(f.eptp_bits, model == SNB ? 0x1e : 0x5e);
        assert_int_equal(f.cr0_fixed0, 0x20);
        assert_int_equal(f.cr0_fixed1, 0xffffffff);
        assert_int_equal(f.cr4_fixed0, 0x2000);
        assert_int_equal(f.cr4_fixed1, raw[9].of[model]);
        assert_int_equal(f.timer_shift, 0);
        assert_int_equal(f.pml, model == SKX || model >= ICL);
        assert_int_equal(f.timer_slice, 0); /* enable.c's */
    }
}

/* One of them in figures, worked out by hand. */
static void haswell_word_by_word(void **state)
{
    struct vmx_msrs m = msrs_of(HSW);
    assert_true(taken(&m));
    assert_int_equal(f.pin, 0x7f);
    assert_int_equal(f.proc, 0xb5a06dfa);
    assert_int_equal(f.proc2, 0x14ea);
    assert_int_equal(f.exit, 0x2b6fff);
    assert_int_equal(f.entry, 0xd3ff);
    assert_int_equal(f.invept_type, 1);
}

static void without_the_true_controls_cr3_exits_cannot_be_had_off(void **state)
{
    struct vmx_msrs m = msrs_of(HSW);
    m.value[0] &= ~BIT64(55);
    memset(m.value + 0xd, 0xff, 4 * sizeof(uint64_t)); /* do not exist */
    assert_refused(&m, "VMX without the processor-based control \"CR3-load exiting\" being optional (MSR 0x482 = 0xf7f9fffe0401e172)");
    m.value[2] &= ~(BIT64(15) | BIT64(16)); /* such a CPU could not be, but it shows which MSRs are looked at */
    assert_true(taken(&m));
    judge(&m);
}

static void the_texts_of_refusals(void **state)
{
    struct vmx_msrs m = msrs_of(HSW);
    m.value[0xb] &= ~BIT64(33);
    assert_refused(&m, "VMX without the secondary processor-based control \"enable EPT\" (MSR 0x48b = 0x47ffd00000000)");
    m.value[0xb] &= ~BIT64(39); /* both: the one that the other needs */
    assert_refused(&m, "\"enable EPT\"");
    m.value[0xb] |= BIT64(33);
    assert_refused(&m, "VMX without the secondary processor-based control \"unrestricted guest\" (MSR 0x48b");
    m = msrs_of(HSW);
    m.value[0xe] &= ~BIT64(63);
    assert_refused(&m, "VMX without the processor-based control \"activate secondary controls\" (MSR 0x48e");
    m = msrs_of(HSW);
    m.value[0xe] &= ~BIT64(53), m.value[2] &= ~(BIT64(53) | BIT64(51));
    assert_refused(&m, "VMX with neither \"use TPR shadow\" nor CR8 exiting");
}

/* ---- single bits ---------------------------------------------------------------------------------------------------------------- */

static void each_bit_of_each_control_word(void **state)
{
    for (unsigned model = 0; model < MODELS; model++)
        for (const struct word *w = judged; w < judged + WORDS; w++)
            for (unsigned bit = 0; bit < 32; bit++) {
                const char *name = NULL;
                char quoted[64];
                enum need need = need_of(w, bit, &name);
                struct vmx_msrs m = msrs_of((enum model)model);
                snprintf(quoted, sizeof(quoted), "the %s control \"%s\"", w->what, name);

                m.value[w->true_msr - 0x480] &= ~(BIT64(bit) | BIT64(32 + bit)); /* may not be 1 */
                if (need == REQUIRED)
                    assert_refused(&m, quoted);
                else {
                    assert_true(taken(&m));
                    judge(&m);
                }
                if (need == REQUIRED)
                    assert_null(strstr(why, "being optional"));

                m.value[w->true_msr - 0x480] |= BIT64(bit) | BIT64(32 + bit); /* must be 1 */
                if (need == UNWANTED) {
                    assert_refused(&m, quoted);
                    assert_non_null(strstr(why, "being optional"));
                } else {
                    assert_true(taken(&m));
                    judge(&m);
                }
            }
}

static void each_bit_of_the_ept_and_vpid_capabilities(void **state)
{
    static const struct { unsigned bit; const char *says; } needed[] = {
        {6, "EPT without page-walk length 4"}, {14, "EPT without write-back paging structures"}, {16, "EPT without 2-MByte pages"},
        {20, "EPT without INVEPT (IA32_VMX_EPT_VPID_CAP = "},
    };
    for (unsigned bit = 0; bit < 64; bit++) {
        struct vmx_msrs m = msrs_of(HSW);
        const char *says = NULL;
        m.value[0xc] &= ~BIT64(bit);
        for (size_t n = 0; n < sizeof(needed) / sizeof(needed[0]); n++)
            if (needed[n].bit == bit)
                says = needed[n].says;
        if (says) {
            assert_refused(&m, says);
            continue;
        }
        assert_true(taken(&m));
        judge(&m);
        assert_int_equal(f.vpid, bit != 32 && bit != 42);
        assert_int_equal(f.invept_type, bit == 25 ? 2 : 1);
        assert_int_equal(f.eptp_bits, bit == 21 ? 0x1e : 0x5e);
    }
    struct vmx_msrs m = msrs_of(HSW);
    m.value[0xc] &= ~(BIT64(25) | BIT64(26));
    assert_refused(&m, "INVEPT without a type");
}

static void a_log_wants_dirty_bits_too_and_all_cpus_alike(void **state)
{
    struct vmx_msrs m = msrs_of(SKX);
    assert_true(taken(&m) && f.pml);
    struct vmx_features boot = f;
    assert_int_equal(f.proc2 >> 17 & 1, 0); /* nobody reads one yet */
    m.value[0xb] &= ~BIT64(49);
    assert_true(taken(&m));
    assert_false(f.pml);
    assert_false(vmx_features_agree(&boot, &f, why));
    assert_non_null(strstr(why, "page-modification logging: 0 here, 0x1 on the boot CPU"));
    m = msrs_of(SKX);
    m.value[0xc] &= ~BIT64(21);
    assert_true(taken(&m));
    assert_false(f.pml);
}

static void nothing_optional_is_needed(void **state)
{
    struct vmx_msrs m = msrs_of(HSW);
    m.value[0xd] &= ~BIT64(38);                                              /* preemption timer */
    m.value[0xe] &= ~BIT64(53);                                              /* TPR shadow */
    m.value[0xb] &= ~(BIT64(35) | BIT64(37) | BIT64(42) | BIT64(44));        /* RDTSCP, VPID, PAUSE-loop exiting, INVPCID */
    m.value[0x0] &= ~BIT64(54);
    m.value[0x5] |= 5;
    assert_true(taken(&m));
    judge(&m);
    assert_false(f.preemption_timer || f.tpr_shadow || f.vpid || f.ins_outs_info);
    assert_int_equal(f.proc >> 19 & 7, 3);
    assert_int_equal(f.proc2, 0xc2);
    assert_int_equal(f.timer_shift, 5);
}

/* ---- several CPUs --------------------------------------------------------------------------------------------------------------- */

static void a_cpu_is_like_itself_and_no_other(void **state)
{
    static const char *const first_difference[MODELS] = {
        [SNB] = "secondary processor-based controls: 0xea here, 0x14ea on the boot CPU", [HSW] = NULL,
        [BDW] = "IA32_VMX_CR4_FIXED1: 0x3727ff here, 0x1727ff on the boot CPU", [SKX] = "IA32_VMX_CR4_FIXED1",
        [CNL] = "IA32_VMX_CR4_FIXED1: 0x772fff here", [ICL] = "VMCS revision identifier: 0x4 here, 0x2b on the boot CPU",
        [TGL] = "VMCS revision identifier",
    };
    struct vmx_msrs m = msrs_of(HSW);
    struct vmx_features boot;
    assert_true(taken(&m));
    boot = f;
    boot.timer_slice = 12345; /* enable.c's, for all */
    for (enum model model = 0; model < MODELS; model++) {
        m = msrs_of(model);
        assert_true(taken(&m));
        assert_int_equal(vmx_features_agree(&boot, &f, why), !first_difference[model]);
        if (first_difference[model])
            assert_non_null(strstr(why, first_difference[model]));
    }
}

/* Of two CPUs that agree, what a VM entry of one lets pass does the other's. */
static void cpus_that_agree_take_the_same_words(void **state)
{
    struct vmx_msrs m = msrs_of(SKX);
    assert_true(taken(&m));
    struct vmx_features boot = f;
    unsigned agreed = 0;
    for (unsigned msr = 0; msr < sizeof(raw) / sizeof(raw[0]); msr++)
        for (unsigned bit = 0; bit < 64; bit++) {
            m = msrs_of(SKX);
            m.value[msr] ^= BIT64(bit);
            if ((msr == 0xb && bit < 32) || !taken(&m))
                continue;
            struct vmx_features here = f;
            memset(why, 0, sizeof(why));
            bool same = vmx_features_agree(&boot, &here, why);
            agreed += same;
            assert_int_equal(same, !why[0]);
            if (msr == 0x6 || msr == 0x8) /* PE and PG are nothing to an unrestricted guest */
                assert_int_equal(same, msr == 6 && (bit == 0 || bit == 31));
            if (msr == 0x7 || msr == 0x9 || msr == 0xc)
                assert_false(same);
            if (msr == 0x5)
                assert_int_equal(same, bit > 4);
            f = boot;
            if (same)
                judge(&m);
        }
    assert_true(agreed > 100);
}

/* ---- nonsense ----------------------------------------------------------------------------------------------------------------- */

/* Taken or refused with a reason; what is taken can be entered. */
static void any_numbers_at_all(void **state)
{
    unsigned count[2] = {0, 0};
    srand(1);
    for (unsigned n = 0; n < 400000; n++) {
        struct vmx_msrs m = msrs_of((enum model)(n % MODELS));
        for (unsigned changes = 1 + (unsigned)rand() % 6; changes; changes--)
            m.value[rand() % (int)(sizeof(raw) / sizeof(raw[0]))] ^= BIT64(rand() % 64);
        if (n % 16 == 0)
            for (size_t k = 0; k < sizeof(m.value) / sizeof(m.value[0]); k++)
                m.value[k] = (uint64_t)rand() << 42 ^ (uint64_t)rand() << 21 ^ (uint64_t)rand();
        m.value[0xb] &= ~UINT64_C(0xffffffff); /* always 0 (A.3.3) */
        bool ok = taken(&m);
        count[ok]++;
        assert_int_equal(ok, !why[0]);
        if (ok)
            judge(&m);
    }
    assert_true(count[0] > 1000 && count[1] > 1000);
}

static void no_register_is_read_that_does_not_exist(void **state)
{
    struct vmx_msrs m = {{0}};
    for (uint32_t msr = 0x480; msr <= 0x48a; msr++)
        assert_true(vmx_msr_exists(&m, msr));
    for (uint32_t msr = 0x48b; msr <= 0x490; msr++)
        assert_false(vmx_msr_exists(&m, msr));
    m.value[2] = BIT64(63);
    assert_true(vmx_msr_exists(&m, 0x48b));
    assert_false(vmx_msr_exists(&m, 0x48c)); /* neither EPT nor VPID */
    m.value[0xb] = BIT64(33);
    assert_true(vmx_msr_exists(&m, 0x48c));
    m.value[0xb] = BIT64(37);
    assert_true(vmx_msr_exists(&m, 0x48c));
    m.value[2] = 0;
    assert_false(vmx_msr_exists(&m, 0x48c));
    m.value[0] = BIT64(55);
    for (uint32_t msr = 0x48d; msr <= 0x490; msr++)
        assert_true(vmx_msr_exists(&m, msr));
}

static void firmware_that_locked_it_and_firmware_that_forgot(void **state)
{
    for (uint64_t fc = 0; fc < 8; fc++) {
        uint64_t value = fc | 0x100000, before = value;
        bool allowed = vmx_feature_control_allows(&value);
        if (fc & 1) { /* locked: nothing to write, bit 2 decides; bit 1, inside SMX, is nothing to us */
            assert_int_equal(allowed, fc >> 2 & 1);
            assert_int_equal(value, before);
        } else {
            assert_true(allowed);
            assert_int_equal(value, before | 5);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(these_models_are_taken), cmocka_unit_test(haswell_word_by_word),
        cmocka_unit_test(without_the_true_controls_cr3_exits_cannot_be_had_off), cmocka_unit_test(the_texts_of_refusals),
        cmocka_unit_test(each_bit_of_each_control_word), cmocka_unit_test(each_bit_of_the_ept_and_vpid_capabilities),
        cmocka_unit_test(a_log_wants_dirty_bits_too_and_all_cpus_alike),
        cmocka_unit_test(nothing_optional_is_needed), cmocka_unit_test(a_cpu_is_like_itself_and_no_other),
        cmocka_unit_test(cpus_that_agree_take_the_same_words), cmocka_unit_test(any_numbers_at_all),
        cmocka_unit_test(no_register_is_read_that_does_not_exist), cmocka_unit_test(firmware_that_locked_it_and_firmware_that_forgot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
