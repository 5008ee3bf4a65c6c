/* The line editor against a naive one (a string and a cursor), with a terminal behind it: after every key the terminal must show the
 * prompt and the part of the line around the cursor, with its own cursor in the right place, and nothing may ever wrap.
 * TEST-SOURCES: core/console_edit.c lib/string.c */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "core/console_edit.h"
#include "lib/string.h"

#define COLUMNS 40u
#define PROMPT "> "

/* ---- the terminal ----------------------------------------------------------------------------------------------------- */

static struct { char row[COLUMNS + 1]; unsigned column, bells, lines; char escape[8]; unsigned escape_len; } term;

static void term_escape(char c)
{
    term.escape[term.escape_len++] = c;
    term.escape[term.escape_len] = 0;
    assert_true(term.escape_len < sizeof(term.escape) - 1);
    if (term.escape_len == 1 ? c == '[' : c < '@')
        return;
    if (!strcmp(term.escape, "[K")) {
        memset(term.row + term.column, ' ', COLUMNS - term.column);
    } else if (!strcmp(term.escape, "[2J")) {
        memset(term.row, ' ', COLUMNS);
    } else if (!strcmp(term.escape, "[H")) {
        term.column = 0;
    } else {
        fail_msg("the terminal does not know ESC %s", term.escape);
    }
    term.escape_len = 0;
    term.escape[0] = 0;
}

static bool in_escape;

static void term_put(const char *s, size_t len, void *arg)
{
    assert_ptr_equal(arg, &term);
    for (size_t i = 0; i < len; i++) {
        if (in_escape) {
            term_escape(s[i]);
            in_escape = term.escape_len != 0;
        } else if (s[i] == '\x1b') {
            in_escape = true;
        } else if (s[i] == '\r') {
            term.column = 0;
        } else if (s[i] == '\n') {
            term.lines++;
            memset(term.row, ' ', COLUMNS);
        } else if (s[i] == '\a') {
            term.bells++;
        } else {
            assert_true((unsigned char)s[i] >= 0x20 && s[i] != 0x7f); /* nothing typed reaches the screen as a control code */
            if (term.column >= COLUMNS)
                fail_msg("the terminal wraps");
            term.row[term.column++] = s[i];
        }
    }
}

/* ---- the naive editor ------------------------------------------------------------------------------------------------- */

static struct {
    char text[EDIT_LINE_BYTES], saved[EDIT_LINE_BYTES];
    unsigned cursor;
    char history[2000][256];
    unsigned count;
    int pos;
} model;

static void model_delete(unsigned from, unsigned to)
{
    memmove(model.text + from, model.text + to, strlen(model.text + to) + 1);
    model.cursor = from;
}

static void model_insert(const char *s)
{
    for (; *s && strlen(model.text) < EDIT_LINE_BYTES - 1; s++) {
        memmove(model.text + model.cursor + 1, model.text + model.cursor, strlen(model.text + model.cursor) + 1);
        model.text[model.cursor++] = *s;
    }
}

static void model_history(int step)
{
    int to = model.pos + step;
    if (to < -1 || to >= (int)MIN(model.count, EDIT_HISTORY))
        return;
    if (model.pos == -1)
        strcpy(model.saved, model.text);
    strcpy(model.text, to == -1 ? model.saved : model.history[model.count - 1 - (unsigned)to]);
    model.cursor = (unsigned)strlen(model.text);
    model.pos = to;
}

static void model_word_back(void)
{
    unsigned from = model.cursor, to = model.cursor;
    while (from && model.text[from - 1] == ' ')
        from--;
    while (from && model.text[from - 1] != ' ')
        from--;
    model_delete(from, to);
}

static void model_clear(void)
{
    model.text[0] = 0;
    model.cursor = 0;
    model.pos = -1;
}

static void model_enter(void)
{
    size_t len = strlen(model.text);
    if (len && len < 256 && (!model.count || strcmp(model.history[model.count - 1], model.text)))
        strcpy(model.history[model.count++], model.text);
}

enum action { LEFT, RIGHT, UP, DOWN, HOME, END, BACKSPACE, DELETE, KILL_TO_END, KILL_TO_START, KILL_WORD, REDRAW, NOTHING, ENTER, TAB, CANCEL };
static const struct { const char *bytes; enum action action; } keys[] = {
    {"\x1b[D", LEFT}, {"\x02", LEFT}, {"\x1bOD", LEFT}, {"\x1b[C", RIGHT}, {"\x06", RIGHT}, {"\x1b[A", UP}, {"\x10", UP}, {"\x1b[B", DOWN},
    {"\x0e", DOWN}, {"\x1b[H", HOME}, {"\x1b[1~", HOME}, {"\x1b[7~", HOME}, {"\x01", HOME}, {"\x1bOH", HOME}, {"\x1b[F", END}, {"\x1b[4~", END},
    {"\x1b[8~", END}, {"\x05", END}, {"\x7f", BACKSPACE}, {"\x08", BACKSPACE}, {"\x1b[3~", DELETE}, {"\x04", DELETE}, {"\x0b", KILL_TO_END},
    {"\x15", KILL_TO_START}, {"\x17", KILL_WORD}, {"\x0c", REDRAW}, {"\x1b[5~", NOTHING}, {"\x1b[15~", NOTHING}, {"\x1bx", NOTHING},
    {"\x1b[Z", NOTHING}, {"\x1b[200~", NOTHING}, {"\x07", NOTHING}, {"\x1a", NOTHING}, {"\t", TAB}, {"\x03", CANCEL},
    {"\r", ENTER}, {"\n", ENTER}, {"\r\n", ENTER},
};

static void model_act(enum action a)
{
    unsigned len = (unsigned)strlen(model.text);
    switch (a) {
    case LEFT: model.cursor -= model.cursor > 0; break;
    case RIGHT: model.cursor += model.cursor < len; break;
    case UP: model_history(1); break;
    case DOWN: model_history(-1); break;
    case HOME: model.cursor = 0; break;
    case END: model.cursor = len; break;
    case BACKSPACE:
        if (model.cursor)
            model_delete(model.cursor - 1, model.cursor);
        break;
    case DELETE:
        if (model.cursor < len)
            model_delete(model.cursor, model.cursor + 1);
        break;
    case KILL_TO_END: model.text[model.cursor] = 0; break;
    case KILL_TO_START: model_delete(0, model.cursor); break;
    case KILL_WORD: model_word_back(); break;
    case ENTER: model_enter(); break;
    case REDRAW: case NOTHING: case TAB: case CANCEL: break;
    }
}

/* ---- both together ---------------------------------------------------------------------------------------------------- */

static struct line_edit edit;

static void check(void)
{
    const unsigned prompt = sizeof(PROMPT) - 1;
    assert_string_equal(edit.line, model.text);
    assert_int_equal(edit.len, strlen(model.text));
    assert_int_equal(edit.cursor, model.cursor);
    assert_true(edit.left <= edit.cursor && !in_escape);
    assert_int_equal(term.column, prompt + edit.cursor - edit.left);
    assert_true(term.column < COLUMNS); /* else the terminal's cursor stands where no column is */
    assert_memory_equal(term.row, PROMPT, prompt);
    for (unsigned i = prompt; i < COLUMNS - 1; i++) {
        unsigned at = edit.left + i - prompt;
        if (term.row[i] != (at < edit.len ? edit.line[at] : ' '))
            fail_msg("column %u shows '%c'; the line is <%s>, left %u cursor %u", i, term.row[i], edit.line, edit.left, edit.cursor);
    }
}

static enum edit_event type(const char *bytes)
{
    enum edit_event event = EDIT_NONE;
    for (; *bytes; bytes++) {
        enum edit_event e = edit_input(&edit, (uint8_t)*bytes);
        assert_true(e == EDIT_NONE || event == EDIT_NONE);
        event = e != EDIT_NONE ? e : event;
    }
    return event;
}

static void begin(void)
{
    model_clear();
    edit_begin(&edit);
    check();
}

static void start(void)
{
    memset(&model, 0, sizeof(model));
    memset(&term, 0, sizeof(term));
    memset(term.row, ' ', COLUMNS);
    edit_init(&edit, PROMPT, COLUMNS, term_put, &term);
    begin();
}

static void press(unsigned key)
{
    static const enum edit_event events[] = {[ENTER] = EDIT_LINE, [TAB] = EDIT_COMPLETE, [CANCEL] = EDIT_CANCEL};
    enum action a = keys[key].action;
    enum edit_event event = type(keys[key].bytes);
    assert_int_equal(event, events[a]);
    model_act(a);
    if (a == ENTER) /* the caller reads the line now */
        assert_string_equal(edit.line, model.text);
    if (a == ENTER || a == CANCEL)
        begin();
    else
        check();
}

static void test_random(void **state)
{
    srand(1);
    start();
    for (unsigned round = 0; round < 60000; round++) {
        unsigned pick = (unsigned)rand() % 100;
        if (pick < 70) {
            char text[2] = {"ab  cd\xc3\xa9"[rand() % 8], 0};
            assert_int_equal(type(text), EDIT_NONE);
            model_insert(text);
            check();
        } else if (pick < 74) { /* what completion does */
            edit_insert(&edit, "inserted", 8);
            model_insert("inserted");
            check();
        } else {
            unsigned key = (unsigned)rand() % ARRAY_SIZE(keys);
            if ((keys[key].action == ENTER || keys[key].action == CANCEL) && rand() % 4) /* let lines grow */
                continue;
            if (model.count + 1 < ARRAY_SIZE(model.history))
                press(key);
        }
    }
    assert_true(model.count > EDIT_HISTORY);
}

static void test_full_line(void **state)
{
    start();
    for (unsigned n = 0; n < EDIT_LINE_BYTES + 100; n++) {
        type("x");
        model_insert("x");
    }
    check();
    assert_int_equal(edit.len, EDIT_LINE_BYTES - 1);
    assert_int_equal(term.bells, 101);
    edit_insert(&edit, "yy", 2);
    check();
    press(8); /* Ctrl-N: nothing newer */
    check();
    assert_int_equal(type("\r"), EDIT_LINE);
    assert_int_equal(edit.history_count, 0); /* too long to keep */
}

static void test_history_limit(void **state)
{
    start();
    for (unsigned n = 0; n < EDIT_HISTORY + 10; n++) {
        char text[16];
        snprintf(text, sizeof(text), "line %u", n);
        type(text);
        model_insert(text);
        press(ARRAY_SIZE(keys) - 1);
    }
    for (unsigned n = 0; n < EDIT_HISTORY + 5; n++)
        press(5); /* up, past the oldest */
    assert_string_equal(edit.line, "line 10");
    assert_true(term.bells >= 5);
    for (unsigned n = 0; n < EDIT_HISTORY + 5; n++)
        press(7);
    assert_string_equal(edit.line, "");
}

static void test_any_bytes(void **state)
{
    srand(2);
    start();
    for (unsigned n = 0; n < 300000; n++) {
        enum edit_event e = edit_input(&edit, (uint8_t)(rand() % 3 ? rand() : "\x1b[;9~\r\n"[rand() % 7]));
        assert_true(edit.len < EDIT_LINE_BYTES && edit.cursor <= edit.len && edit.left <= edit.cursor && edit.line[edit.len] == 0);
        assert_true(edit.history_count <= EDIT_HISTORY && edit.history_pos >= -1 && edit.history_pos < (int)edit.history_count + !edit.history_count);
        if (e == EDIT_LINE || e == EDIT_CANCEL)
            edit_begin(&edit);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random), cmocka_unit_test(test_full_line), cmocka_unit_test(test_history_limit), cmocka_unit_test(test_any_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
