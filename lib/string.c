/*
 * Memory and string primitives for code that has no C library, and the number and size parsers that the configuration and the
 * console share. memcpy and memset are REP MOVSQ / STOSQ with the rest by bytes: the microcode of every CPU that can run us moves whole
 * cache lines, nothing else is possible without vector registers, and emulators do eight bytes in the time of one.
 */
#include "lib/string.h"

#if !HV_HOST
void *memcpy(void *d, const void *s, size_t n)
{
    void *ret = d;
    size_t words = n / 8, bytes = n % 8;
    asm volatile("rep movsq" : "+D"(d), "+S"(s), "+c"(words) : : "memory");
    asm volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(bytes) : : "memory");
    return ret;
}

void *memmove(void *d, const void *s, size_t n)
{
    if ((uintptr_t)d - (uintptr_t)s >= n)
        return memcpy(d, s, n);
    unsigned char *dst = (unsigned char *)d + n;
    const unsigned char *src = (const unsigned char *)s + n;
    while (n--)
        *--dst = *--src;
    return d;
}

void *memset(void *d, int c, size_t n)
{
    void *p = d;
    uint64_t pattern = UINT64_C(0x0101010101010101) * (uint8_t)c;
    size_t words = n / 8, bytes = n % 8;
    asm volatile("rep stosq" : "+D"(p), "+c"(words) : "a"(pattern) : "memory");
    asm volatile("rep stosb" : "+D"(p), "+c"(bytes) : "a"(pattern) : "memory");
    return d;
}

typedef uint64_t word_anywhere __attribute__((aligned(1), may_alias));

int memcmp(const void *a, const void *b, size_t n)
{
    const unsigned char *x = a, *y = b;
    for (; n >= 8 && *(const word_anywhere *)x == *(const word_anywhere *)y; n -= 8, x += 8, y += 8)
        ;
    for (; n; n--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

void *memchr(const void *s, int c, size_t n)
{
    for (const unsigned char *p = s; n--; p++)
        if (*p == (unsigned char)c)
            return (void *)p;
    return NULL;
}

size_t strlen(const char *s)
{
    const char *p = s;
    while (*p)
        p++;
    return (size_t)(p - s);
}

size_t strnlen(const char *s, size_t n)
{
    const char *end = memchr(s, 0, n);
    return end ? (size_t)(end - s) : n;
}

int strncmp(const char *a, const char *b, size_t n)
{
    for (; n; n--, a++, b++) {
        if (*a != *b)
            return (unsigned char)*a - (unsigned char)*b;
        if (!*a)
            break;
    }
    return 0;
}

int strcmp(const char *a, const char *b)
{
    return strncmp(a, b, SIZE_MAX);
}

char *strchr(const char *s, int c)
{
    for (;; s++) {
        if (*s == (char)c)
            return (char *)s;
        if (!*s)
            return NULL;
    }
}

char *strstr(const char *h, const char *n)
{
    size_t len = strlen(n);
    for (; *h; h++)
        if (!strncmp(h, n, len))
            return (char *)h;
    return len ? NULL : (char *)h;
}
#endif

bool str_copy(char *dst, size_t size, const char *src)
{
    size_t len = strnlen(src, size);
    bool fits = len < size;
    if (size == 0)
        return false;
    if (!fits)
        len = size - 1;
    memcpy(dst, src, len);
    dst[len] = 0;
    return fits;
}

static int digit_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
}

/* Digits from s up to the first character that is none; NULL if there were none or the value overflowed. */
static const char *parse_digits(const char *s, uint64_t *out)
{
    unsigned base = 10;
    if (s[0] == '0' && (s[1] | 0x20) == 'x') {
        base = 16;
        s += 2;
    }
    uint64_t v = 0;
    const char *first = s;
    for (; digit_value(*s) < (int)base; s++)
        if (__builtin_mul_overflow(v, base, &v) || __builtin_add_overflow(v, (uint64_t)digit_value(*s), &v))
            return NULL;
    *out = v;
    return s == first ? NULL : s;
}

bool str_to_u64(const char *s, uint64_t *out)
{
    uint64_t v;
    s = parse_digits(s, &v);
    if (!s || *s)
        return false;
    *out = v;
    return true;
}

bool str_to_size(const char *s, uint64_t *out_bytes)
{
    uint64_t v;
    unsigned shift = 0;
    s = parse_digits(s, &v);
    if (!s)
        return false;
    switch (*s | 0x20) {
    case 'k': shift = 10; break;
    case 'm': shift = 20; break;
    case 'g': shift = 30; break;
    case 't': shift = 40; break;
    }
    if (shift)
        s++;
    if (*s || (shift && v >> (64 - shift)))
        return false;
    *out_bytes = v << shift;
    return true;
}

char *str_from_size(char *buf, size_t size, uint64_t bytes)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    unsigned u = 0, shift = 0;
    while (u + 1 < ARRAY_SIZE(unit) && bytes >> shift >= 1024) {
        shift += 10;
        u++;
    }
    unsigned tenths = shift ? (unsigned)(((bytes >> (shift - 10)) & 1023) * 10 / 1024) : 0;
    if (tenths)
        snprintf(buf, size, "%llu.%u %s", (unsigned long long)(bytes >> shift), tenths, unit[u]);
    else
        snprintf(buf, size, "%llu %s", (unsigned long long)(bytes >> shift), unit[u]);
    return buf;
}
