/* Histograms: buckets partition the numbers; quantiles bound the true ones from above by at most a quarter.
 * TEST-SOURCES: mm/dmm/hist.c */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "mm/dmm/hist.h"

static void test_buckets_partition(void **state)
{
    for (unsigned n = 0; n + 1 < HIST_BUCKETS; n++) {
        uint64_t top = dmm_hist_bucket_top(n);
        assert_int_equal(dmm_hist_bucket(top), n);
        assert_int_equal(dmm_hist_bucket(top + 1), n + 1);
        if (n > 8)
            assert_true((top - dmm_hist_bucket_top(n - 1)) * 4 <= top + 1); /* no wider than a quarter of its values */
    }
    assert_int_equal(dmm_hist_bucket(0), 0);
    assert_int_equal(dmm_hist_bucket(UINT64_MAX), HIST_BUCKETS - 1);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void check_quantiles(uint64_t *v, size_t count)
{
    struct dmm_hist *h = calloc(1, sizeof(*h)), *twice = calloc(1, sizeof(*h));
    struct dmm_hist_summary s;
    uint64_t sum = 0;
    for (size_t n = 0; n < count; n++) {
        dmm_hist_add(h, v[n]);
        sum += v[n];
    }
    qsort(v, count, sizeof(*v), by_value);
    dmm_hist_summarize(h, &s);
    assert_int_equal(s.count, count);
    assert_int_equal(s.mean_tsc, sum / count);
    assert_int_equal(s.max_tsc, v[count - 1]);
    const struct { unsigned percent; uint64_t got; } q[] = { { 50, s.p50_tsc }, { 99, s.p99_tsc } };
    for (unsigned k = 0; k < 2; k++) {
        uint64_t exact = v[(count * q[k].percent + 99) / 100 - 1];
        assert_true(q[k].got >= exact && q[k].got <= exact + exact / 4 + 1);
    }
    dmm_hist_merge(twice, h);
    dmm_hist_merge(twice, h);
    dmm_hist_summarize(twice, &s);
    assert_int_equal(s.count, 2 * count);
    assert_int_equal(s.mean_tsc, sum / count);
    free(h);
    free(twice);
}

static void test_quantiles(void **state)
{
    uint64_t v[1000];
    struct dmm_hist_summary s;
    struct dmm_hist none = { 0 };
    for (unsigned round = 0; round < 200; round++) {
        size_t count = 1 + (size_t)rand() % 1000;
        for (size_t n = 0; n < count; n++)
            v[n] = (uint64_t)rand() >> (rand() % 31);
        check_quantiles(v, count);
    }
    dmm_hist_summarize(&none, &s);
    assert_int_equal(s.count, 0);
    assert_int_equal(s.p99_tsc, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_buckets_partition), cmocka_unit_test(test_quantiles) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
