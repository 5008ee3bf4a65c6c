/* From the CMOS clock's registers to Unix time: BCD or binary, 12 or 24 hours, with or without a century (MC146818A). */
#include "drivers/clocks.h"

#define STATUS_B_24H 0x02
#define STATUS_B_BINARY 0x04

static bool bcd(uint8_t raw, bool binary, unsigned *out)
{
    *out = binary ? raw : (raw >> 4) * 10u + (raw & 15);
    return binary || ((raw & 15) < 10 && raw >> 4 < 10);
}

/* Days from 1970-01-01 to the first of a month; years begin in March so that the leap day comes last. */
static uint64_t days_before(unsigned year, unsigned month)
{
    unsigned y = year - (month <= 2), m = (month + 9) % 12;
    return 365ull * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 - 719468;
}

bool cmos_decode(const struct cmos_time *t, uint64_t *unix_s)
{
    bool binary = t->status_b & STATUS_B_BINARY;
    unsigned second, minute, hour, day, month, year, century = 0;
    uint8_t raw_hour = t->status_b & STATUS_B_24H ? t->hour : t->hour & 0x7f;
    if (!bcd(t->second, binary, &second) || !bcd(t->minute, binary, &minute) || !bcd(raw_hour, binary, &hour) ||
        !bcd(t->day, binary, &day) || !bcd(t->month, binary, &month) || !bcd(t->year, binary, &year))
        return false;
    if (!(t->status_b & STATUS_B_24H)) {
        if (hour < 1 || hour > 12)
            return false;
        hour = hour % 12 + (t->hour & 0x80 ? 12 : 0);
    }
    if (!bcd(t->century, binary, &century) || century < 19 || century > 21)
        century = year >= 70 && year < 100 ? 19 : 20; /* no century register, or nothing sensible in it */
    year += century * 100;
    if (second > 60 || minute > 59 || hour > 23 || month < 1 || month > 12 || day < 1 || year < 1970 || year > 2199)
        return false;
    uint64_t first = days_before(year, month);
    if (day > days_before(year + month / 12, month % 12 + 1) - first)
        return false;
    *unix_s = ((first + day - 1) * 24 + hour) * 3600 + minute * 60 + second;
    return true;
}
