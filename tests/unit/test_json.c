/* The JSON writer: random documents are written, read back by a strict reader of our own (RFC 8259), and come out the same.
 * TEST-SOURCES: lib/json.c lib/string.c */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "lib/json.h"
#include "lib/string.h"

static char out[1 << 18];
static size_t out_len;

static void put(const char *s, size_t len, void *arg)
{
    assert_ptr_equal(arg, out);
    assert_true(out_len + len < sizeof(out));
    memcpy(out + out_len, s, len);
    out_len += len;
    out[out_len] = 0;
}

static struct json_writer *begin(void)
{
    static struct json_writer w;
    out_len = 0;
    json_init(&w, put, out);
    return &w;
}

static void test_shapes(void **state)
{
    struct json_writer *w = begin();
    json_object_begin(w);
    json_kv_string(w, "a", "b");
    json_key(w, "empty");
    json_object_begin(w);
    json_object_end(w);
    json_key(w, "list");
    json_array_begin(w);
    json_null(w);
    json_bool(w, true);
    json_i64(w, INT64_MIN);
    json_u64(w, UINT64_MAX);
    json_array_begin(w);
    json_array_end(w);
    json_object_begin(w);
    json_kv_bool(w, "x", false);
    json_object_end(w);
    json_array_end(w);
    json_kv_u64(w, "z", 0);
    json_object_end(w);
    assert_string_equal(out, "{\"a\":\"b\",\"empty\":{},\"list\":[null,true,-9223372036854775808,18446744073709551615,[],{\"x\":false}],\"z\":0}");
}

static void test_strings(void **state)
{
    static const struct { const char *in, *expected; } cases[] = {
        {"", "\"\""}, {"\"\\/", "\"\\\"\\\\/\""}, {"\n\r\t\b\x1f\x7f", "\"\\n\\r\\t\\u0008\\u001f\\u007f\""},
        {"h\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", "\"h\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\""},
        {"\x80", "\"\\u0080\""}, {"\xc3", "\"\\u00c3\""}, {"\xc0\xaf", "\"\\u00c0\\u00af\""},              /* alone, cut, overlong */
        {"\xed\xa0\x80", "\"\\u00ed\\u00a0\\u0080\""}, {"\xf4\x90\x80\x80", "\"\\u00f4\\u0090\\u0080\\u0080\""}, /* surrogate, too high */
        {"\xe2\x82" "a", "\"\\u00e2\\u0082a\""}, {"\xe0\x9f\xbf", "\"\\u00e0\\u009f\\u00bf\""},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(cases); n++) {
        json_string(begin(), cases[n].in);
        assert_string_equal(out, cases[n].expected);
    }
}

/* ---- the reader ------------------------------------------------------------------------------------------------------- */

static const char *at;

static void need(const char *literal)
{
    size_t n = strlen(literal);
    if (strncmp(at, literal, n))
        fail_msg("expected %s at ...%.40s", literal, at);
    at += n;
}

static unsigned hex4(void)
{
    unsigned v = 0;
    for (int i = 0; i < 4; i++, at++) {
        const char *digit = strchr("0123456789abcdef", *at);
        assert_true(*at && digit);
        v = v * 16 + (unsigned)(digit - "0123456789abcdef");
    }
    return v;
}

/* A string of which every code point came from one input byte, or is UTF-8 as it was; the result is what was meant to be written. */
static void read_string(char *text)
{
    need("\"");
    while (*at != '"') {
        assert_true((unsigned char)*at >= 0x20);
        if (*at != '\\') {
            *text++ = *at++;
            continue;
        }
        at++;
        switch (*at++) {
        case '"': *text++ = '"'; break;
        case '\\': *text++ = '\\'; break;
        case 'n': *text++ = '\n'; break;
        case 'r': *text++ = '\r'; break;
        case 't': *text++ = '\t'; break;
        case 'u': {
            unsigned v = hex4();
            assert_in_range(v, 1, 255);
            *text++ = (char)v;
            break;
        }
        default: fail_msg("unknown escape \\%c", at[-1]);
        }
    }
    *text = 0;
    at++;
}

/* ---- random documents: the same seed drives the writer and the reader -------------------------------------------------- */

static unsigned seed;

static unsigned rnd(unsigned below)
{
    seed = seed * 1103515245u + 12345u;
    return (seed >> 16) % below;
}

static void random_text(char *text)
{
    unsigned n = rnd(20);
    for (unsigned i = 0; i < n; i++)
        text[i] = (char)(rnd(3) ? 1 + rnd(255) : (unsigned char)"\"\\\n\xc3\xa9\xf0"[rnd(6)]);
    text[n] = 0;
}

static uint64_t random_number(void)
{
    uint64_t v = (uint64_t)rnd(32768) << 45 | (uint64_t)rnd(32768) << 30 | rnd(32768) << 15 | rnd(32768);
    return v << rnd(5);
}

static void write_value(struct json_writer *w, unsigned depth)
{
    char text[24];
    unsigned kind = rnd(depth < 12 ? 7 : 5), count;
    switch (kind) {
    case 0: json_null(w); break;
    case 1: json_bool(w, rnd(2)); break;
    case 2: json_u64(w, random_number()); break;
    case 3: json_i64(w, -(int64_t)random_number()); break;
    case 4: random_text(text), json_string(w, text); break;
    default:
        kind == 5 ? json_array_begin(w) : json_object_begin(w);
        for (count = rnd(5); count; count--) {
            if (kind == 6)
                random_text(text), json_key(w, text);
            write_value(w, depth + 1);
        }
        kind == 5 ? json_array_end(w) : json_object_end(w);
    }
}

static void check_value(unsigned depth)
{
    char text[24], got[128], number[32];
    unsigned kind = rnd(depth < 12 ? 7 : 5), count;
    switch (kind) {
    case 0: need("null"); break;
    case 1: need(rnd(2) ? "true" : "false"); break;
    case 2: snprintf(number, sizeof(number), "%llu", (unsigned long long)random_number()), need(number); break;
    case 3: snprintf(number, sizeof(number), "%lld", (long long)-(int64_t)random_number()), need(number); break;
    case 4: random_text(text), read_string(got), assert_string_equal(got, text); break;
    default:
        need(kind == 5 ? "[" : "{");
        count = rnd(5);
        for (unsigned n = 0; n < count; n++) {
            if (n)
                need(",");
            if (kind == 6) {
                random_text(text), read_string(got), assert_string_equal(got, text);
                need(":");
            }
            check_value(depth + 1);
        }
        need(kind == 5 ? "]" : "}");
    }
}

static void test_random_documents(void **state)
{
    unsigned longest = 0;
    for (unsigned round = 1; round <= 3000; round++) {
        struct json_writer *w = begin();
        seed = round;
        write_value(w, 0);
        longest = MAX(longest, (unsigned)out_len);
        seed = round;
        at = out;
        check_value(0);
        assert_int_equal(*at, 0);
    }
    assert_true(longest > 500);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_shapes), cmocka_unit_test(test_strings), cmocka_unit_test(test_random_documents) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
