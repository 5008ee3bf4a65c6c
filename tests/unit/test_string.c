/* lib/string.c and lib/printf.c as the hypervisor has them (no C library), against the C library, under other names; and the number
 * and size parsers against arithmetic in 128 bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#undef HV_HOST
#define HV_HOST 0
#define memcpy hv_memcpy
#define memmove hv_memmove
#define memset hv_memset
#define memcmp hv_memcmp
#define memchr hv_memchr
#define strlen hv_strlen
#define strnlen hv_strnlen
#define strcmp hv_strcmp
#define strncmp hv_strncmp
#define strchr hv_strchr
#define strstr hv_strstr
#define vsnprintf hv_vsnprintf
#define snprintf hv_snprintf
#include "lib/string.c"
#include "lib/printf.c"
#undef memcpy
#undef memmove
#undef memset
#undef memcmp
#undef memchr
#undef strlen
#undef strnlen
#undef strcmp
#undef strncmp
#undef strchr
#undef strstr
#undef vsnprintf
#undef snprintf

#define ROUNDS 20000

static uint64_t rnd(uint64_t below)
{
    static uint64_t x = 88172645463325252u;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return x % below;
}

static int sign(int v) { return (v > 0) - (v < 0); }

static void test_memory(void **state)
{
    unsigned char a[200], b[200];
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned i = 0; i < sizeof(a); i++)
            a[i] = b[i] = (unsigned char)rnd(3);
        size_t n = rnd(100), from = rnd(100), to = rnd(100);
        switch (rnd(5)) {
        case 0:
            assert_ptr_equal(hv_memmove(a + to, a + from, n), a + to);
            memmove(b + to, b + from, n);
            break;
        case 1:
            n = MIN(n, (size_t)(to > from ? to - from : from - to)); /* memcpy: they may touch, not overlap */
            assert_ptr_equal(hv_memcpy(a + to, a + from, n), a + to);
            memmove(b + to, b + from, n);
            break;
        case 2:
            assert_ptr_equal(hv_memset(a + to, (int)from, n), a + to);
            memset(b + to, (int)from, n);
            break;
        case 3:
            assert_int_equal(sign(hv_memcmp(a + to, a + from, n)), sign(memcmp(a + to, a + from, n)));
            memmove(a + to, a + from, n), memmove(b + to, b + from, n); /* and with a longer equal part */
            a[to + n] = b[to + n] = (unsigned char)rnd(256);
            if (to >= from + n || from >= to + n)
                assert_int_equal(sign(hv_memcmp(a + to, a + from, n + 1)), sign(memcmp(a + to, a + from, n + 1)));
            break;
        case 4: {
            int c = (int)rnd(4) + 256; /* only its low byte counts */
            assert_ptr_equal(hv_memchr(a + to, c, n), memchr(a + to, c, n));
            break;
        }
        }
        assert_memory_equal(a, b, sizeof(a));
    }
}

/* Few letters, so that parts of strings are found; some above 127, where the sign of char shows. */
static char *random_text(char *out, size_t max)
{
    size_t n = rnd(max);
    for (size_t i = 0; i < n; i++)
        out[i] = "ab\x80\xff"[rnd(4)];
    out[n] = 0;
    return out;
}

static void test_strings(void **state)
{
    char a[40], b[40];
    for (unsigned round = 0; round < ROUNDS; round++) {
        size_t n = rnd(40);
        random_text(a, 40);
        random_text(b, rnd(2) ? 5 : 40);
        assert_int_equal(hv_strlen(a), strlen(a));
        assert_int_equal(hv_strnlen(a, n), strnlen(a, n));
        assert_int_equal(sign(hv_strcmp(a, b)), sign(strcmp(a, b)));
        assert_int_equal(sign(hv_strncmp(a, b, n)), sign(strncmp(a, b, n)));
        assert_ptr_equal(hv_strstr(a, b), strstr(a, b));
        int c = "ab\x80\xff"[rnd(5)];
        assert_ptr_equal(hv_strchr(a, c), strchr(a, c));
        assert_ptr_equal(hv_memchr(a, c, strlen(a) + 1), memchr(a, c, strlen(a) + 1));
    }
}

static void test_str_copy(void **state)
{
    char out[8];
    for (size_t size = 0; size <= sizeof(out); size++)
        for (size_t len = 0; len < 12; len++) {
            const char *text = "abcdefghijklmno" + 15 - len;
            memset(out, 'x', sizeof(out));
            assert_int_equal(str_copy(out, size, text), len < size);
            size_t kept = size ? MIN(len, size - 1) : 0;
            assert_memory_equal(out, text, kept);
            assert_true(!size || out[kept] == 0);
            for (size_t i = size ? kept + 1 : 0; i < sizeof(out); i++)
                assert_int_equal(out[i], 'x');
        }
}

/* ---- printf ------------------------------------------------------------------------------------------------------- */

static void same(const char *fmt, ...) PRINTF_LIKE(1, 2);
static void same(const char *fmt, ...)
{
    char ours[300], libc[300];
    size_t size = rnd(4) ? sizeof(ours) : rnd(40);
    va_list ap, again;
    memset(ours, 'x', sizeof(ours));
    memset(libc, 'x', sizeof(libc));
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = hv_vsnprintf(ours, size, fmt, ap), m = vsnprintf(libc, size, fmt, again);
    va_end(ap);
    va_end(again);
    if (n != m || memcmp(ours, libc, size))
        fail_msg("\"%s\": \"%s\" (%d), C library \"%s\" (%d)", fmt, ours, n, libc, m);
    for (size_t i = size; i < sizeof(ours); i++)
        assert_int_equal(ours[i], 'x');
}

static uint64_t number(void)
{
    uint64_t v = rnd(4) ? rnd(UINT64_MAX) >> rnd(64) : (uint64_t[]){0, 1, INT64_MAX, INT64_MIN}[rnd(4)];
    return rnd(2) ? v : -v;
}

/* %[flags][width][.precision][length]conversion, only combinations that C defines. */
static void random_spec(char *out, char conversion, const char *length)
{
    bool is_signed = conversion == 'd' || conversion == 'i', is_number = conversion != 's' && conversion != 'c';
    *out++ = '<', *out++ = '%';
    if (rnd(3) == 0)
        *out++ = '-';
    if (rnd(3) == 0 && is_number)
        *out++ = '0';
    if (rnd(3) == 0 && is_signed)
        *out++ = '+';
    if (rnd(3) == 0 && is_signed)
        *out++ = ' ';
    if (rnd(3) == 0 && (conversion == 'x' || conversion == 'X' || conversion == 'o'))
        *out++ = '#';
    if (rnd(2))
        out += sprintf(out, "%u", (unsigned)rnd(30) + 1);
    if (rnd(3) == 0 && conversion != 'c')
        out += rnd(5) ? sprintf(out, ".%u", (unsigned)rnd(30)) : sprintf(out, ".");
    sprintf(out, "%s%c>", length, conversion);
}

#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#pragma GCC diagnostic ignored "-Wformat-security"

static void test_printf_random(void **state)
{
    static const char *const lengths[] = {"", "h", "hh", "l", "ll", "z", "j", "t"};
    char fmt[64], text[40];
    for (unsigned round = 0; round < ROUNDS; round++) {
        char conversion = "diuxXocs"[rnd(8)];
        unsigned length = (unsigned)rnd(ARRAY_SIZE(lengths));
        bool plain = conversion == 'c' || conversion == 's';
        random_spec(fmt, conversion, plain ? "" : lengths[length]);
        if (conversion == 's')
            same(fmt, random_text(text, sizeof(text)));
        else if (plain || length < 3)
            same(fmt, (int)number());
        else
            same(fmt, number());
    }
}

static void test_printf_cases(void **state)
{
    char out[32], *volatile nothing = NULL;
    for (int width = -12; width <= 12; width++)
        for (int precision = -3; precision <= 12; precision++) {
            same("[%*.*d]", width, precision, 1234);
            same("[%*.*s]", width, precision, "abcdef");
            same("[%0*x]", width < 0 ? -width : width, 0xbeefu);
            same("[%.*s]", precision, "no end"); /* need not be terminated within the precision */
        }
    same("%d%% of %s at %p%c", 50, "all", (void *)0x1000, '.');
    same("%s", "");
    same("plain");
    assert_int_equal(hv_snprintf(out, sizeof(out), "%s", nothing), 6);
    assert_string_equal(out, "(null)");
    assert_int_equal(hv_snprintf(NULL, 0, "%0100d", 1), 100);
    char unterminated[3] = {'x', 'y', 'z'};
    assert_int_equal(hv_snprintf(out, sizeof(out), "%.3s", unterminated), 3);
    assert_string_equal(out, "xyz");
}

/* ---- numbers ------------------------------------------------------------------------------------------------------- */

static void test_numbers(void **state)
{
    static const struct { const char *text; bool ok; uint64_t value; } cases[] = {
        {"0", true, 0}, {"18446744073709551615", true, UINT64_MAX}, {"18446744073709551616", false, 0}, {"0xffffffffffffffff", true, UINT64_MAX},
        {"0x10000000000000000", false, 0}, {"0XaB", true, 0xab}, {"", false, 0}, {"0x", false, 0}, {"-1", false, 0}, {"+1", false, 0},
        {" 1", false, 0}, {"1 ", false, 0}, {"12a", false, 0}, {"0xg", false, 0}, {"1K", false, 0}, {"99999999999999999999999", false, 0},
        {"010", true, 10}, {"x", false, 0}, {"1.5", false, 0}, {"00000000000000000000000000000001", true, 1},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(cases); n++) {
        uint64_t v = 77;
        assert_int_equal(str_to_u64(cases[n].text, &v), cases[n].ok);
        if (cases[n].ok)
            assert_int_equal(v, cases[n].value);
    }
}

static void test_sizes(void **state)
{
    static const char suffixes[] = "KMGTkmgt";
    char text[40];
    uint64_t v;
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint64_t base = rnd(UINT64_MAX) >> rnd(64);
        unsigned s = (unsigned)rnd(9);
        unsigned shift = s < 8 ? 10 * (s % 4 + 1) : 0;
        snprintf(text, sizeof(text), rnd(2) ? "%llu%.1s" : "0x%llx%.1s", (unsigned long long)base, s < 8 ? suffixes + s : "");
        bool fits = (unsigned __int128)base << shift <= UINT64_MAX;
        assert_int_equal(str_to_size(text, &v), fits);
        assert_true(!fits || v == base << shift);
    }
    assert_true(str_to_size("4K", &v) && v == 4096);
    static const char *const wrong[] = {"", "K", "4KB", "4 K", "4KK", "-4K", "4.5G", "4P", "0x", "1e3"};
    for (unsigned n = 0; n < ARRAY_SIZE(wrong); n++)
        assert_false(str_to_size(wrong[n], &v));
}

static void test_from_size(void **state)
{
    char text[32];
    assert_string_equal(str_from_size(text, sizeof(text), 0), "0 B");
    assert_string_equal(str_from_size(text, sizeof(text), 4096), "4 KiB");
    assert_string_equal(str_from_size(text, sizeof(text), MIB(512)), "512 MiB");
    assert_string_equal(str_from_size(text, sizeof(text), GIB(1) + MIB(512)), "1.5 GiB");
    assert_string_equal(str_from_size(text, sizeof(text), 1023), "1023 B");
    str_from_size(text, sizeof(text), UINT64_MAX);
    assert_non_null(strstr(text, "iB"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory), cmocka_unit_test(test_strings), cmocka_unit_test(test_str_copy),
        cmocka_unit_test(test_printf_random), cmocka_unit_test(test_printf_cases), cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_sizes), cmocka_unit_test(test_from_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
