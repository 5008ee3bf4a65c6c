/* The command line splitter against a slow one written from its contract, on random lines of the bytes that matter.
 * TEST-SOURCES: core/console_parse.c */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "core/console_parse.h"

#define MAX_WORDS 6

struct words { enum console_parse_result result; int count; bool json; char word[MAX_WORDS][64]; };

static struct words split(const char *line)
{
    struct words w = {0};
    char *argv[MAX_WORDS], *copy = strdup(line); /* exact size: what is written or read behind it is caught */
    w.result = console_parse(copy, argv, MAX_WORDS, &w.count, &w.json);
    for (int n = 0; w.result == CONSOLE_PARSE_OK && n < w.count; n++) {
        assert_true(argv[n] >= copy && argv[n] + strlen(argv[n]) <= copy + strlen(line));
        strcpy(w.word[n], argv[n]);
    }
    free(copy);
    return w;
}

static bool blank(char c) { return c == ' ' || c == '\t'; }

static struct words model(const char *s)
{
    struct words w = {0};
    for (;;) {
        char word[64] = "";
        size_t n = 0;
        bool quoted = false, in_quotes = false;
        while (blank(*s))
            s++;
        if (!*s || *s == '#')
            break;
        while (*s && (in_quotes || !blank(*s))) {
            if (*s == '"')
                quoted = true, in_quotes = !in_quotes, s++;
            else if (*s == '\\' && s[1])
                quoted = true, word[n++] = s[1], s += 2;
            else
                word[n++] = *s++;
        }
        word[n] = 0;
        if (in_quotes) {
            w.result = CONSOLE_PARSE_QUOTE;
            return w;
        }
        if (!quoted && !strcmp(word, "-j")) {
            w.json = true;
        } else if (w.count == MAX_WORDS) {
            w.result = CONSOLE_PARSE_TOO_MANY;
            return w;
        } else {
            strcpy(w.word[w.count++], word);
        }
    }
    w.result = w.count ? CONSOLE_PARSE_OK : CONSOLE_PARSE_EMPTY;
    return w;
}

static void same(const char *line)
{
    struct words got = split(line), expected = model(line);
    if (got.result != expected.result)
        fail_msg("<%s>: result %d, expected %d", line, got.result, expected.result);
    if (got.result != CONSOLE_PARSE_OK)
        return;
    assert_int_equal(got.count, expected.count);
    assert_int_equal(got.json, expected.json);
    for (int n = 0; n < got.count; n++)
        if (strcmp(got.word[n], expected.word[n]))
            fail_msg("<%s>: word %d is <%s>, expected <%s>", line, n, got.word[n], expected.word[n]);
}

static void test_cases(void **state)
{
    struct words w = split("vm create \"a b\" cmdline=\"x  y\" \\-j -j # tail \"");
    assert_int_equal(w.result, CONSOLE_PARSE_OK);
    assert_int_equal(w.count, 5);
    assert_true(w.json);
    assert_string_equal(w.word[2], "a b");
    assert_string_equal(w.word[3], "cmdline=x  y");
    assert_string_equal(w.word[4], "-j");
    assert_int_equal(split("").result, CONSOLE_PARSE_EMPTY);
    assert_int_equal(split(" \t# x").result, CONSOLE_PARSE_EMPTY);
    assert_int_equal(split("-j").result, CONSOLE_PARSE_EMPTY);
    assert_int_equal(split("a \"b").result, CONSOLE_PARSE_QUOTE);
    assert_int_equal(split("\"\"").count, 1); /* an empty word is a word */
    assert_int_equal(split("1 2 3 4 5 6").count, 6);
    assert_int_equal(split("1 2 3 4 5 6 -j").count, 6);
    assert_int_equal(split("1 2 3 4 5 6 7").result, CONSOLE_PARSE_TOO_MANY);
    assert_string_equal(split("a#b").word[0], "a#b");
    assert_string_equal(split("a\\").word[0], "a\\"); /* nothing to take as it is */
    assert_string_equal(split("\"-j\"").word[0], "-j");
    same("\"-j\" x");
}

static void test_random(void **state)
{
    char line[40];
    srand(1);
    for (unsigned round = 0; round < 300000; round++) {
        size_t n = (size_t)rand() % (sizeof(line) - 1);
        for (size_t i = 0; i < n; i++)
            line[i] = "aab-j  \t\"\\#"[rand() % 11];
        line[n] = 0;
        same(line);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_cases), cmocka_unit_test(test_random) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
