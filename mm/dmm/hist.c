/* Reading of latency histograms; hist.h has the theory and the part that the fault path runs. */
#include "mm/dmm/hist.h"

uint64_t dmm_hist_bucket_top(unsigned n)
{
    const unsigned quarters = 1u << HIST_SUB_SHIFT;
    if (n < 2 * quarters)
        return n;
    unsigned shift = n / quarters - 1;
    return ((uint64_t)(n % quarters + quarters + 1) << shift) - 1;
}

void dmm_hist_merge(struct dmm_hist *dst, const struct dmm_hist *src)
{
    for (unsigned n = 0; n < HIST_BUCKETS; n++)
        dst->bucket[n] += __atomic_load_n(&src->bucket[n], __ATOMIC_RELAXED);
    dst->sum_tsc += __atomic_load_n(&src->sum_tsc, __ATOMIC_RELAXED);
    dst->max_tsc = MAX(dst->max_tsc, __atomic_load_n(&src->max_tsc, __ATOMIC_RELAXED));
}

static uint64_t quantile(const struct dmm_hist *h, uint64_t count, unsigned percent)
{
    uint64_t rank = (count * percent + 99) / 100, seen = 0;
    for (unsigned n = 0; n < HIST_BUCKETS; n++) {
        seen += h->bucket[n];
        if (seen >= rank)
            return n == HIST_BUCKETS - 1 ? h->max_tsc : MIN(dmm_hist_bucket_top(n), h->max_tsc);
    }
    return h->max_tsc;
}

void dmm_hist_summarize(const struct dmm_hist *h, struct dmm_hist_summary *out)
{
    *out = (struct dmm_hist_summary){ .max_tsc = h->max_tsc };
    for (unsigned n = 0; n < HIST_BUCKETS; n++)
        out->count += h->bucket[n];
    if (out->count == 0)
        return;
    out->mean_tsc = h->sum_tsc / out->count;
    out->p50_tsc = quantile(h, out->count, 50);
    out->p99_tsc = quantile(h, out->count, 99);
}
