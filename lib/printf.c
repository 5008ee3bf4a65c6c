/*
 * Formatted output without a C library: the conversions that this code base uses, with C11's meaning, so that the
 * compiler's format checking applies. Nothing is allocated; output that does not fit is counted, not written.
 */
#include "lib/string.h"

#if !HV_HOST

struct sink { char *buf; size_t size, len; };

static void put(struct sink *s, char c)
{
    if (s->len + 1 < s->size)
        s->buf[s->len] = c;
    s->len++;
}

static void pad(struct sink *s, char c, int n)
{
    while (n-- > 0)
        put(s, c);
}

struct spec { bool left, zero, plus, space, alt; int width, precision /* -1: none */; };

static void put_text(struct sink *s, const struct spec *f, const char *text, size_t len)
{
    if (!f->left)
        pad(s, ' ', f->width - (int)len);
    for (size_t i = 0; i < len; i++)
        put(s, text[i]);
    if (f->left)
        pad(s, ' ', f->width - (int)len);
}

static void put_number(struct sink *s, const struct spec *f, uint64_t v, unsigned base, bool upper, const char *prefix)
{
    char digits[24];
    int n = 0, plen = (int)strlen(prefix), zeros;
    for (uint64_t rest = v; rest; rest /= base)
        digits[n++] = (upper ? "0123456789ABCDEF" : "0123456789abcdef")[rest % base];
    if (n == 0 && f->precision != 0)
        digits[n++] = '0';
    if (f->precision >= 0)
        zeros = f->precision - n;
    else
        zeros = f->zero && !f->left ? f->width - plen - n : 0;
    if (base == 8 && f->alt && zeros <= 0 && (n == 0 || digits[n - 1] != '0'))
        zeros = 1;
    if (zeros < 0)
        zeros = 0;
    if (!f->left)
        pad(s, ' ', f->width - plen - zeros - n);
    while (*prefix)
        put(s, *prefix++);
    pad(s, '0', zeros);
    for (int i = n; i-- > 0;)
        put(s, digits[i]);
    if (f->left)
        pad(s, ' ', f->width - plen - zeros - n);
}

enum length { LEN_CHAR, LEN_SHORT, LEN_INT, LEN_64 };

static enum length parse_length(const char **fmt)
{
    enum length len = LEN_INT;
    for (;; (*fmt)++) {
        if (**fmt == 'l' || **fmt == 'z' || **fmt == 'j' || **fmt == 't')
            len = LEN_64;
        else if (**fmt == 'h')
            len = len == LEN_SHORT ? LEN_CHAR : LEN_SHORT;
        else
            return len;
    }
}

static const char *parse_flags(const char *fmt, struct spec *f)
{
    for (;; fmt++) {
        switch (*fmt) {
        case '-': f->left = true; break;
        case '0': f->zero = true; break;
        case '+': f->plus = true; break;
        case ' ': f->space = true; break;
        case '#': f->alt = true; break;
        default: return fmt;
        }
    }
}

int vsnprintf(char *buf, size_t size, const char *fmt, va_list ap)
{
    struct sink s = {buf, size, 0};
    for (; *fmt; fmt++) {
        if (*fmt != '%') {
            put(&s, *fmt);
            continue;
        }
        struct spec f = {.precision = -1};
        fmt = parse_flags(fmt + 1, &f);
        if (*fmt == '*') {
            f.width = va_arg(ap, int);
            if (f.width < 0) {
                f.left = true;
                f.width = -f.width;
            }
            fmt++;
        }
        for (; *fmt >= '0' && *fmt <= '9'; fmt++)
            f.width = f.width * 10 + (*fmt - '0');
        if (*fmt == '.') {
            f.precision = 0;
            if (*++fmt == '*') {
                f.precision = va_arg(ap, int);
                fmt++;
            }
            for (; *fmt >= '0' && *fmt <= '9'; fmt++)
                f.precision = f.precision * 10 + (*fmt - '0');
        }
        enum length len = parse_length(&fmt);
        switch (*fmt) {
        case 'd':
        case 'i': {
            int64_t v = len == LEN_64 ? va_arg(ap, int64_t) : va_arg(ap, int);
            v = len == LEN_SHORT ? (short)v : len == LEN_CHAR ? (signed char)v : v;
            put_number(&s, &f, v < 0 ? -(uint64_t)v : (uint64_t)v, 10, false, v < 0 ? "-" : f.plus ? "+" : f.space ? " " : "");
            break;
        }
        case 'u':
        case 'o':
        case 'x':
        case 'X': {
            uint64_t v = len == LEN_64 ? va_arg(ap, uint64_t) : va_arg(ap, unsigned);
            v = len == LEN_SHORT ? (unsigned short)v : len == LEN_CHAR ? (unsigned char)v : v;
            unsigned base = *fmt == 'u' ? 10 : *fmt == 'o' ? 8 : 16;
            put_number(&s, &f, v, base, *fmt == 'X', base == 16 && f.alt && v ? (*fmt == 'X' ? "0X" : "0x") : "");
            break;
        }
        case 'p':
            put_number(&s, &f, (uintptr_t)va_arg(ap, void *), 16, false, "0x");
            break;
        case 'c': {
            char c = (char)va_arg(ap, int);
            put_text(&s, &f, &c, 1);
            break;
        }
        case 's': {
            const char *text = va_arg(ap, const char *);
            if (!text)
                text = "(null)";
            put_text(&s, &f, text, f.precision >= 0 ? strnlen(text, (size_t)f.precision) : strlen(text));
            break;
        }
        case '%':
            put(&s, '%');
            break;
        default: /* a conversion we do not have: show it rather than guess at the arguments */
            put(&s, '%');
            if (!*fmt)
                fmt--;
            else
                put(&s, *fmt);
            break;
        }
    }
    if (size)
        buf[s.len < size ? s.len : size - 1] = 0;
    return (int)s.len;
}

int snprintf(char *buf, size_t size, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(buf, size, fmt, ap);
    va_end(ap);
    return n;
}
#endif
