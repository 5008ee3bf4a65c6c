/* FUZZ-SOURCES: drivers/cmos_decode.c */
/* Any contents of the clock's registers: what is taken for a date is one, and the C library agrees about its second. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "drivers/clocks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned number(uint8_t raw, bool binary) { return binary ? raw : (raw >> 4) * 10u + (raw & 15); }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cmos_time t;
    uint64_t unix_s = 0;
    if (size < sizeof(t))
        return 0;
    memcpy(&t, data, sizeof(t));
    if (!cmos_decode(&t, &unix_s))
        return 0;
    bool binary = t.status_b & 4, hours_24 = t.status_b & 2;
    time_t seconds = (time_t)unix_s;
    struct tm tm;
    if (!gmtime_r(&seconds, &tm))
        abort();
    unsigned second = number(t.second, binary), hour = number(hours_24 ? t.hour : t.hour & 0x7f, binary);
    if (second == 60) { /* a leap second is the first of the next minute */
        seconds -= 60;
        if (!gmtime_r(&seconds, &tm))
            abort();
        second = 0;
    }
    if (!hours_24)
        hour = hour % 12 + (t.hour & 0x80 ? 12 : 0);
    if (tm.tm_sec != (int)second || tm.tm_min != (int)number(t.minute, binary) || tm.tm_hour != (int)hour ||
        tm.tm_mday != (int)number(t.day, binary) || tm.tm_mon + 1 != (int)number(t.month, binary) ||
        tm.tm_year % 100 != (int)number(t.year, binary) % 100 || tm.tm_year < 70 || tm.tm_year > 299)
        abort();
    return 0;
}
