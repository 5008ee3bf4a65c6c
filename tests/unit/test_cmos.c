/* TEST-SOURCES: drivers/cmos_decode.c */
/* The CMOS calendar: formats, impossible dates, and every day of two centuries against the C library. */
#include <setjmp.h>
#include <stdarg.h>
#include <time.h>
#include "drivers/clocks.h"
#include <cmocka.h>

#define B_24H 2
#define B_BINARY 4

static uint64_t decode(struct cmos_time t)
{
    uint64_t s;
    return cmos_decode(&t, &s) ? s : UINT64_MAX;
}

static void formats(void **state)
{
    /* 2024-02-29 13:45:59 in BCD and binary, 24 and 12 hours, with and without a century */
    const uint64_t want = 1709214359;
    assert_int_equal(decode((struct cmos_time){0x59, 0x45, 0x13, 0x29, 0x02, 0x24, 0x20, B_24H}), want);
    assert_int_equal(decode((struct cmos_time){0x59, 0x45, 0x13, 0x29, 0x02, 0x24, 0, B_24H}), want);
    assert_int_equal(decode((struct cmos_time){0x59, 0x45, 0x81, 0x29, 0x02, 0x24, 0x20, 0}), want);
    assert_int_equal(decode((struct cmos_time){59, 45, 13, 29, 2, 24, 20, B_24H | B_BINARY}), want);
    assert_int_equal(decode((struct cmos_time){59, 45, 0x80 | 1, 29, 2, 24, 20, B_BINARY}), want);
    /* midnight and noon of the twelve-hour clock */
    assert_int_equal(decode((struct cmos_time){0, 0, 0x12, 0x01, 0x01, 0x00, 0x20, 0}), 946684800);
    assert_int_equal(decode((struct cmos_time){0, 0, 0x92, 0x01, 0x01, 0x00, 0x20, 0}), 946684800 + 43200);
    assert_int_equal(decode((struct cmos_time){0, 0, 0, 0x01, 0x01, 0x70, 0, B_24H}), 0);
}

static void impossible(void **state)
{
    const struct cmos_time good = {0x59, 0x45, 0x13, 0x28, 0x02, 0x23, 0x20, B_24H};
    struct cmos_time t;
    assert_true(decode(good) != UINT64_MAX);
#define BAD(field, value) (t = good, t.field = (value), assert_true(decode(t) == UINT64_MAX))
    BAD(second, 0x61);
    BAD(second, 0x0a);
    BAD(minute, 0x60);
    BAD(hour, 0x24);
    BAD(day, 0);
    BAD(day, 0x29); /* 2023 is no leap year */
    BAD(month, 0);
    BAD(month, 0x13);
    BAD(year, 0xff);
    t = (struct cmos_time){0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    assert_true(decode(t) == UINT64_MAX);
    t = (struct cmos_time){0};
    assert_true(decode(t) == UINT64_MAX);
}

static void every_day(void **state)
{
    for (long day = 0; day < 47500; day++) { /* to 2100-01-19 */
        time_t s = day * 86400 + 3661;
        struct tm tm;
        gmtime_r(&s, &tm);
        unsigned year = (unsigned)tm.tm_year + 1900;
        assert_int_equal(decode((struct cmos_time){(uint8_t)tm.tm_sec, (uint8_t)tm.tm_min, (uint8_t)tm.tm_hour, (uint8_t)tm.tm_mday,
                                                   (uint8_t)(tm.tm_mon + 1), (uint8_t)(year % 100), (uint8_t)(year / 100),
                                                   B_24H | B_BINARY}), s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(formats), cmocka_unit_test(impossible), cmocka_unit_test(every_day)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
