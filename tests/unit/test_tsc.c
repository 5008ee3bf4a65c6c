/* TEST-SOURCES: x86/tsc.c */
/*
 * The clock's arithmetic against 128-bit division over many frequencies, and calibration of this host's own TSC with
 * reference clocks of different frequency and width, honest and broken.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>
#include "x86/tsc.h"
#include <cmocka.h>

typedef unsigned __int128 u128;

static uint64_t random64(void)
{
    uint64_t v = 0;
    for (int i = 0; i < 5; i++)
        v = v << 15 ^ (uint64_t)rand();
    return v >> rand() % 64;
}

static void conversions(void **state)
{
    srand(3);
    for (int round = 0; round < 20000; round++) {
        uint64_t khz = 1000 + random64() % 20000000;
        tsc_set_khz(khz, "test");
        assert_int_equal(tsc_khz(), khz);
        uint64_t ticks = random64() >> 8;
        u128 exact = (u128)ticks * 1000000 / khz;
        uint64_t ns = tsc_to_ns(ticks);
        if (exact <= UINT64_MAX) {
            assert_true(ns <= exact);
            assert_true(exact - ns <= 1 + (u128)ticks / BIT64(43)); /* the fraction's last bit, times the interval */
        }
        /* A deadline converted to ticks and back is never early. */
        uint64_t want = random64() >> 12, t = ns_to_tsc(want);
        assert_true((u128)t * 1000000 >= (u128)want * khz);
        assert_true((u128)t * 1000000 <= (u128)want * khz + 2000000 + (u128)want * khz / BIT64(30));
    }
}

static void pvclock(void **state)
{
    static const uint64_t special[] = {1000, 999999, 1000000, 1000001, 2000000, 2596148, 4294967, 100000000};
    srand(4);
    for (unsigned round = 0; round < 20000; round++) {
        uint64_t khz = round < ARRAY_SIZE(special) ? special[round] : 1000 + random64() % 100000000;
        uint32_t mul;
        int8_t shift;
        tsc_set_khz(khz, "test");
        tsc_pvclock_scale(&mul, &shift);
        assert_true(mul >> 31);
        uint64_t ticks = khz * (1 + (uint64_t)rand() % 100000); /* up to 100 s */
        u128 shifted = shift >= 0 ? (u128)ticks << shift : ticks >> -shift;
        uint64_t ns = (uint64_t)(shifted * mul >> 32), exact = (uint64_t)((u128)ticks * 1000000 / khz);
        uint64_t error = ns > exact ? ns - exact : exact - ns;
        assert_true(error <= 2 + exact / BIT64(30));
    }
}

static uint64_t monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Clocks as PIT, PM timer and HPET see them, which wrap several times while the test runs. */
static uint64_t as_pit(void) { return (monotonic_ns() * 1193182 / 1000000000) & 0xffff; }
static uint64_t as_pmtimer(void) { return (uint64_t)((u128)monotonic_ns() * 3579545 / 1000000000) & 0xffffff; }
static uint64_t as_hpet(void) { return (monotonic_ns() / 10) & 0xffffffff; }
static uint64_t stuck(void) { return 0xffff; }

static void calibration(void **state)
{
    static const struct ref_clock clocks[] = {{"PIT", as_pit, 1193182, 16}, {"PM", as_pmtimer, 3579545, 24},
                                              {"HPET", as_hpet, 100000000, 32}};
    uint64_t khz[ARRAY_SIZE(clocks)];
    for (size_t i = 0; i < ARRAY_SIZE(clocks); i++) {
        assert_true(tsc_calibrate(&clocks[i]));
        assert_string_equal(tsc_source(), clocks[i].name);
        khz[i] = tsc_khz();
        uint64_t difference = khz[i] > khz[0] ? khz[i] - khz[0] : khz[0] - khz[i];
        assert_true(difference < khz[0] / 100);
    }
    tsc_mark_boot();
    tsc_set_epoch(1000);
    assert_in_range(tsc_epoch_s(), 999, 1000);
}

static void broken_references(void **state)
{
    tsc_set_khz(123456, "before");
    assert_false(tsc_calibrate(&(struct ref_clock){"stuck", stuck, 1193182, 16}));
    assert_int_equal(tsc_khz(), 123456);
    assert_string_equal(tsc_source(), "before");
    /* A frequency far from the truth gives a TSC that cannot be. */
    assert_false(tsc_calibrate(&(struct ref_clock){"wrong", as_hpet, 100, 32}));
    assert_int_equal(tsc_khz(), 123456);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(conversions), cmocka_unit_test(pvclock), cmocka_unit_test(calibration),
                                       cmocka_unit_test(broken_references)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
