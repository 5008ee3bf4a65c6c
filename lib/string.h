/* The part of <string.h>, <stdlib.h> and <stdio.h> that freestanding code needs. On the host (HV_HOST) the C library's. */
#ifndef HV_LIB_STRING_H
#define HV_LIB_STRING_H
#include "include/hv/types.h"
#if HV_HOST
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#else
#include <stdarg.h>
void *memcpy(void *d, const void *s, size_t n);
void *memmove(void *d, const void *s, size_t n);
void *memset(void *d, int c, size_t n);
int memcmp(const void *a, const void *b, size_t n);
void *memchr(const void *s, int c, size_t n);
size_t strlen(const char *s);
size_t strnlen(const char *s, size_t n);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t n);
char *strchr(const char *s, int c);
char *strstr(const char *h, const char *n);
/* %d %i %u %x %X %o %c %s %p %% with l, ll, z, h, hh, field width (also *), precision, flags - 0 + space #.
 * Return what would have been written, as C11. */
int vsnprintf(char *buf, size_t size, const char *fmt, va_list ap) PRINTF_LIKE(3, 0);
int snprintf(char *buf, size_t size, const char *fmt, ...) PRINTF_LIKE(3, 4);
#endif
/* Copies at most size-1 bytes and terminates; returns false if it had to cut. */
bool str_copy(char *dst, size_t size, const char *src);
/* Whole-string unsigned number, decimal or 0x hex; false on garbage, empty or overflow. */
bool str_to_u64(const char *s, uint64_t *out);
/* As above with an optional suffix K, M, G, T (powers of 1024), e.g. "512M". */
bool str_to_size(const char *s, uint64_t *out_bytes);
/* "512 MiB", "4 KiB", "1.5 GiB"... into buf; returns buf. */
char *str_from_size(char *buf, size_t size, uint64_t bytes);
#endif
