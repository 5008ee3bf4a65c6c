/*
 * The screen is a dumb one: all that is used of it is carriage return, "erase to end of line" and printing, so any
 * terminal will do and a lost byte heals with the next redraw. A line longer than the screen is wide scrolls sideways, because
 * a wrapped line cannot be redrawn without knowing where the terminal wrapped it. Typing at the end of a short
 * line, the usual case, costs one byte of output.
 */
#include "core/console_edit.h"
#include "lib/string.h"

enum { KEY_UP = 256, KEY_DOWN, KEY_LEFT, KEY_RIGHT, KEY_HOME, KEY_END, KEY_DELETE, KEY_NONE };

static void put(struct line_edit *e, const char *s)
{
    e->put(s, strlen(s), e->arg);
}

void edit_init(struct line_edit *e, const char *prompt, unsigned columns, void (*put_fn)(const char *, size_t, void *), void *arg)
{
    memset(e, 0, sizeof(*e));
    e->prompt = prompt;
    e->columns = columns;
    e->put = put_fn;
    e->arg = arg;
    e->history_pos = -1;
}

static unsigned visible(const struct line_edit *e)
{
    unsigned prompt = (unsigned)strlen(e->prompt);
    return e->columns > prompt + 8 ? e->columns - prompt - 1 : 8;
}

void edit_redraw(struct line_edit *e)
{
    unsigned room = visible(e);
    if (e->cursor < e->left)
        e->left = e->cursor;
    else if (e->cursor - e->left >= room)
        e->left = e->cursor - room + 1;
    put(e, "\r");
    put(e, e->prompt);
    e->put(e->line + e->left, MIN(e->len - e->left, room), e->arg);
    put(e, "\x1b[K\r");
    put(e, e->prompt);
    e->put(e->line + e->left, e->cursor - e->left, e->arg);
}

void edit_begin(struct line_edit *e)
{
    e->len = e->cursor = e->left = 0;
    e->line[0] = 0;
    e->history_pos = -1;
    put(e, e->prompt);
}

void edit_insert(struct line_edit *e, const char *s, size_t len)
{
    size_t take = MIN(len, EDIT_LINE_BYTES - 1 - e->len);
    bool at_end = e->cursor == e->len;
    if (take < len)
        put(e, "\a");
    memmove(e->line + e->cursor + take, e->line + e->cursor, e->len - e->cursor);
    memcpy(e->line + e->cursor, s, take);
    e->len += (unsigned)take;
    e->cursor += (unsigned)take;
    e->line[e->len] = 0;
    if (at_end && e->cursor - e->left < visible(e))
        e->put(s, take, e->arg);
    else if (take)
        edit_redraw(e);
}

static void delete_range(struct line_edit *e, unsigned from, unsigned to)
{
    if (from >= to)
        return;
    memmove(e->line + from, e->line + to, e->len - to);
    e->len -= to - from;
    e->line[e->len] = 0;
    e->cursor = from;
    edit_redraw(e);
}

static unsigned word_start(const struct line_edit *e)
{
    unsigned i = e->cursor;
    while (i && e->line[i - 1] == ' ')
        i--;
    while (i && e->line[i - 1] != ' ')
        i--;
    return i;
}

static void replace(struct line_edit *e, const char *s)
{
    str_copy(e->line, sizeof(e->line), s);
    e->len = e->cursor = (unsigned)strlen(e->line);
    e->left = 0;
    edit_redraw(e);
}

static void walk_history(struct line_edit *e, int step)
{
    int to = e->history_pos + step;
    if (to < -1 || to >= (int)e->history_count) {
        put(e, "\a");
        return;
    }
    if (e->history_pos == -1)
        str_copy(e->saved, sizeof(e->saved), e->line);
    e->history_pos = to;
    replace(e, to == -1 ? e->saved : e->history[to]);
}

static void remember(struct line_edit *e)
{
    if (!e->len || e->len >= sizeof(e->history[0]) || (e->history_count && !strcmp(e->history[0], e->line)))
        return;
    if (e->history_count < EDIT_HISTORY)
        e->history_count++;
    memmove(e->history[1], e->history[0], (e->history_count - 1) * sizeof(e->history[0]));
    str_copy(e->history[0], sizeof(e->history[0]), e->line);
}

/* ESC [ A..D H F, ESC [ n ~, ESC O A..; everything else is swallowed to its final byte. */
static int decode_escape(struct line_edit *e, uint8_t byte)
{
    if (e->escape == 1) {
        e->escape = byte == '[' || byte == 'O' ? 2 : 0;
        e->escape_param = 0;
        return KEY_NONE;
    }
    if (byte >= '0' && byte <= '9') {
        e->escape_param = (uint8_t)(e->escape_param * 10 + (byte - '0'));
        return KEY_NONE;
    }
    if (byte == ';')
        return KEY_NONE;
    e->escape = 0;
    switch (byte) {
    case 'A': return KEY_UP;
    case 'B': return KEY_DOWN;
    case 'C': return KEY_RIGHT;
    case 'D': return KEY_LEFT;
    case 'H': return KEY_HOME;
    case 'F': return KEY_END;
    case '~': break;
    default: return KEY_NONE;
    }
    switch (e->escape_param) {
    case 1: case 7: return KEY_HOME;
    case 4: case 8: return KEY_END;
    case 3: return KEY_DELETE;
    default: return KEY_NONE;
    }
}

static void move_to(struct line_edit *e, unsigned cursor)
{
    e->cursor = cursor;
    edit_redraw(e);
}

static enum edit_event act(struct line_edit *e, int key)
{
    switch (key) {
    case '\r': case '\n':
        put(e, "\r\n");
        remember(e);
        return EDIT_LINE;
    case '\t': return EDIT_COMPLETE;
    case 0x03:
        put(e, "^C\r\n");
        return EDIT_CANCEL;
    case 0x01: case KEY_HOME: move_to(e, 0); break;
    case 0x05: case KEY_END: move_to(e, e->len); break;
    case 0x02: case KEY_LEFT:
        if (e->cursor)
            move_to(e, e->cursor - 1);
        break;
    case 0x06: case KEY_RIGHT:
        if (e->cursor < e->len)
            move_to(e, e->cursor + 1);
        break;
    case 0x10: case KEY_UP: walk_history(e, 1); break;
    case 0x0e: case KEY_DOWN: walk_history(e, -1); break;
    case 0x08: case 0x7f:
        if (e->cursor)
            delete_range(e, e->cursor - 1, e->cursor);
        break;
    case 0x04: case KEY_DELETE:
        if (e->cursor < e->len)
            delete_range(e, e->cursor, e->cursor + 1);
        break;
    case 0x0b: delete_range(e, e->cursor, e->len); break;
    case 0x15: delete_range(e, 0, e->cursor); break;
    case 0x17: delete_range(e, word_start(e), e->cursor); break;
    case 0x0c:
        put(e, "\x1b[2J\x1b[H");
        edit_redraw(e);
        break;
    default:
        if ((key >= 0x20 && key < 0x7f) || (key >= 0x80 && key < 0x100)) {
            char c = (char)key;
            edit_insert(e, &c, 1);
        }
        break;
    }
    return EDIT_NONE;
}

enum edit_event edit_input(struct line_edit *e, uint8_t byte)
{
    uint8_t last = e->last;
    e->last = byte;
    if (byte == '\n' && last == '\r')
        return EDIT_NONE;
    if (byte == 0x1b) {
        e->escape = 1;
        return EDIT_NONE;
    }
    return act(e, e->escape ? decode_escape(e, byte) : byte);
}
