/* TEST-SOURCES: core/ksyms.c */
/* Symbol lookup: boundaries, and random tables against a linear search. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include "core/ksyms.h"
#include "lib/string.h"
#include <cmocka.h>

const uint32_t ksym_count = 0, ksym_offsets[] = {0}, ksym_name_offsets[] = {0}; /* the image's own table: empty here */
const char ksym_names[] = "", hv_text_end[] = "";

#define BASE UINT64_C(0xffffffff80000000)

static const uint32_t offsets[] = {0x10, 0x40, 0x41, 0x1000}, name_offsets[] = {0, 6, 8, 14};
static const char names[] = "entry\0f\0other\0last";
static const struct ksym_table table = {BASE, 0x1800, 4, offsets, name_offsets, names};

static void expect(uint64_t addr, const char *name, uint32_t offset, uint32_t size)
{
    struct ksym s;
    assert_true(ksym_find(&table, addr, &s));
    assert_string_equal(s.name, name);
    assert_int_equal(s.offset, offset);
    assert_int_equal(s.size, size);
}

static void boundaries(void **state)
{
    struct ksym s;
    assert_false(ksym_find(&table, BASE + 0xf, &s));
    assert_false(ksym_find(&table, BASE - 1, &s));
    assert_false(ksym_find(&table, BASE + 0x1800, &s));
    assert_false(ksym_find(&table, 0, &s));
    assert_false(ksym_find(&table, UINT64_MAX, &s));
    expect(BASE + 0x10, "entry", 0, 0x30);
    expect(BASE + 0x3f, "entry", 0x2f, 0x30);
    expect(BASE + 0x40, "f", 0, 1);
    expect(BASE + 0x41, "other", 0, 0xfbf);
    expect(BASE + 0xfff, "other", 0xfbe, 0xfbf);
    expect(BASE + 0x17ff, "last", 0x7ff, 0x800);
}

static void empty_table(void **state)
{
    struct ksym_table none = table;
    struct ksym s;
    char buf[40];
    none.count = 0;
    assert_false(ksym_find(&none, BASE + 0x40, &s));
    assert_string_equal(ksym_format(buf, sizeof(buf), 0x1234), "0x1234");
}

static void against_linear_search(void **state)
{
    uint32_t off[64], name_off[64];
    srand(1);
    for (int round = 0; round < 300; round++) {
        uint32_t count = 1 + (uint32_t)rand() % 64, at = 0;
        for (uint32_t i = 0; i < count; i++) {
            off[i] = at += 1 + (uint32_t)rand() % 50;
            name_off[i] = 0;
        }
        struct ksym_table t = {BASE, at + 20, count, off, name_off, "x"};
        for (uint32_t a = 0; a < at + 30; a++) {
            struct ksym s;
            int want = -1;
            for (uint32_t i = 0; i < count && a < t.text_bytes; i++)
                if (off[i] <= a)
                    want = (int)i;
            assert_int_equal(ksym_find(&t, BASE + a, &s), want >= 0);
            if (want >= 0) {
                assert_int_equal(s.offset, a - off[want]);
                assert_int_equal(s.size, ((uint32_t)want + 1 < count ? off[want + 1] : t.text_bytes) - off[want]);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(boundaries), cmocka_unit_test(empty_table),
                                       cmocka_unit_test(against_linear_search)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
