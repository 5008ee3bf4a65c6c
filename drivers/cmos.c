/*
 * The CMOS calendar (MC146818A data sheet). Registers may change while they are read: wait for the update flag to be clear,
 * read all, and believe them only when two readings agree. Everything is bounded: an absent clock reads all ones.
 */
#include "drivers/clocks.h"
#include "lib/string.h"
#include "x86/cpu.h"

#define CMOS_INDEX 0x70
#define CMOS_DATA 0x71
#define NMI_OFF 0x80 /* of the index port; left clear: NMIs stay on */
#define STATUS_A_UPDATING 0x80
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

static uint8_t cmos_read(uint8_t reg)
{
    out8(CMOS_INDEX, reg & (uint8_t)~NMI_OFF);
    return in8(CMOS_DATA);
}

static struct cmos_time read_registers(uint8_t century_reg)
{
    return (struct cmos_time){.second = cmos_read(0), .minute = cmos_read(2), .hour = cmos_read(4), .day = cmos_read(7),
                              .month = cmos_read(8), .year = cmos_read(9), .status_b = cmos_read(0x0b),
                              .century = century_reg && century_reg < 0x80 ? cmos_read(century_reg) : 0};
}

uint64_t cmos_read_time(uint8_t century_reg)
{
    struct cmos_time before, after = {0};
    uint64_t unix_s;
    for (unsigned tries = 0; tries < 10; tries++) {
        for (unsigned i = 0; (cmos_read(0x0a) & STATUS_A_UPDATING) && i < 2500; i++) /* an update takes 2 ms */
            tsc_delay_ns(1000);
        before = read_registers(century_reg);
        after = read_registers(century_reg);
        if (!memcmp(&before, &after, sizeof(before)))
            return cmos_decode(&after, &unix_s) ? unix_s : 0;
    }
    return 0;
}
