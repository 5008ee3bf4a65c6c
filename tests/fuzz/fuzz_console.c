/* Any bytes typed at the console: the editor keeps its own bounds, and each line that it hands over is split into words that lie
 * within it.
 * FUZZ-SOURCES: core/console_edit.c core/console_parse.c lib/string.c */
#include <stdint.h>
#include <stdlib.h>

#include "core/console_edit.h"
#include "core/console_parse.h"
#include "lib/string.h"

#define MAX_WORDS 48

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct line_edit edit;

static void need(bool condition)
{
    if (!condition)
        abort();
}

/* The screen gets text, and of control codes only those that the editor itself uses. */
static void screen(const char *s, size_t len, void *arg)
{
    need(arg == &edit);
    for (size_t i = 0; i < len; i++)
        need((unsigned char)s[i] >= 0x20 || s[i] == '\r' || s[i] == '\n' || s[i] == '\a' || s[i] == '\x1b');
}

static void split(const char *line)
{
    char *argv[MAX_WORDS], *copy = strdup(line);
    size_t len = strlen(line);
    bool json;
    int argc;
    enum console_parse_result r = console_parse(copy, argv, MAX_WORDS, &argc, &json);
    need(argc >= 0 && argc <= MAX_WORDS && (r != CONSOLE_PARSE_OK || argc > 0) && (r != CONSOLE_PARSE_EMPTY || argc == 0));
    for (int n = 0; r == CONSOLE_PARSE_OK && n < argc; n++) {
        need(argv[n] >= copy && argv[n] + strlen(argv[n]) <= copy + len);
        need(n == 0 || argv[n] > argv[n - 1] + strlen(argv[n - 1])); /* words do not run into each other */
    }
    free(copy);
}

/* The first byte is the width of the terminal. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    edit_init(&edit, "palimpsest> ", data[0], screen, &edit);
    edit_begin(&edit);
    for (size_t i = 1; i < size; i++) {
        enum edit_event event = edit_input(&edit, data[i]);
        need(edit.len < EDIT_LINE_BYTES && edit.cursor <= edit.len && edit.left <= edit.cursor && edit.line[edit.len] == 0);
        need(edit.history_count <= EDIT_HISTORY && edit.history_pos >= -1 && edit.history_pos < EDIT_HISTORY);
        if (event == EDIT_COMPLETE)
            edit_insert(&edit, "completed ", data[i] % 11);
        if (event == EDIT_LINE)
            split(edit.line);
        if (event == EDIT_LINE || event == EDIT_CANCEL)
            edit_begin(&edit);
    }
    return 0;
}
