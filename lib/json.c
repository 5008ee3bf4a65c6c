/*
 * A streaming JSON writer. The nesting depth and "does this level already have an item" are all the state there is, so a
 * command can print a listing of any length without a buffer. Misuse (too deep, unbalanced) is a bug of ours and shows as
 * invalid output in the tests that parse every command's -j line.
 */
#include "lib/json.h"
#include "lib/string.h"

static void put(struct json_writer *w, const char *s)
{
    w->put(s, strlen(s), w->arg);
}

void json_init(struct json_writer *w, void (*put_fn)(const char *, size_t, void *), void *arg)
{
    *w = (struct json_writer){.put = put_fn, .arg = arg};
}

static void item(struct json_writer *w)
{
    if (w->after_key) {
        w->after_key = false;
        return;
    }
    if (w->has_items & (1u << w->depth))
        put(w, ",");
    w->has_items |= 1u << w->depth;
}

static void open(struct json_writer *w, const char *bracket)
{
    item(w);
    put(w, bracket);
    if (w->depth + 1 < JSON_MAX_DEPTH)
        w->depth++;
    w->has_items &= ~(1u << w->depth);
}

static void close(struct json_writer *w, const char *bracket)
{
    if (w->depth)
        w->depth--;
    put(w, bracket);
}

void json_object_begin(struct json_writer *w) { open(w, "{"); }
void json_object_end(struct json_writer *w) { close(w, "}"); }
void json_array_begin(struct json_writer *w) { open(w, "["); }
void json_array_end(struct json_writer *w) { close(w, "]"); }

/* Length of the well-formed UTF-8 sequence at s (2..4), 0 if it is none (RFC 3629: no overlong forms, no surrogates). */
static unsigned utf8_sequence(const unsigned char *s)
{
    unsigned n = s[0] >= 0xc2 && s[0] <= 0xdf ? 2 : (s[0] & 0xf0) == 0xe0 ? 3 : s[0] >= 0xf0 && s[0] <= 0xf4 ? 4 : 0;
    for (unsigned i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
        (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

static void put_quoted(struct json_writer *w, const char *text)
{
    put(w, "\"");
    for (const unsigned char *s = (const unsigned char *)text; *s;) {
        unsigned n = *s < 0x80 ? 1 : utf8_sequence(s);
        char esc[8];
        if (*s == '"' || *s == '\\')
            snprintf(esc, sizeof(esc), "\\%c", *s);
        else if (*s == '\n' || *s == '\r' || *s == '\t')
            snprintf(esc, sizeof(esc), "\\%c", *s == '\n' ? 'n' : *s == '\r' ? 'r' : 't');
        else if (n == 0 || *s < 0x20 || *s == 0x7f) /* a byte that is no text: shown as its Latin-1 code point */
            snprintf(esc, sizeof(esc), "\\u%04x", *s);
        else {
            w->put((const char *)s, n, w->arg);
            s += n;
            continue;
        }
        put(w, esc);
        s++;
    }
    put(w, "\"");
}

void json_key(struct json_writer *w, const char *key)
{
    item(w);
    put_quoted(w, key);
    put(w, ":");
    w->after_key = true;
}

void json_string(struct json_writer *w, const char *s)
{
    item(w);
    put_quoted(w, s);
}

void json_u64(struct json_writer *w, uint64_t v)
{
    char buf[24];
    snprintf(buf, sizeof(buf), "%llu", (unsigned long long)v);
    item(w);
    put(w, buf);
}

void json_i64(struct json_writer *w, int64_t v)
{
    char buf[24];
    snprintf(buf, sizeof(buf), "%lld", (long long)v);
    item(w);
    put(w, buf);
}

void json_bool(struct json_writer *w, bool v)
{
    item(w);
    put(w, v ? "true" : "false");
}

void json_null(struct json_writer *w)
{
    item(w);
    put(w, "null");
}

void json_kv_string(struct json_writer *w, const char *key, const char *s)
{
    json_key(w, key);
    json_string(w, s);
}

void json_kv_u64(struct json_writer *w, const char *key, uint64_t v)
{
    json_key(w, key);
    json_u64(w, v);
}

void json_kv_bool(struct json_writer *w, const char *key, bool v)
{
    json_key(w, key);
    json_bool(w, v);
}
