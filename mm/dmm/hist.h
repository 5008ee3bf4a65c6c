/*
 * Latency histograms: constant memory, a few instructions per sample, quantiles to within a quarter of an octave.
 *
 * A sample of TSC ticks falls into one of four buckets per power of two. Adding is two locked additions and a comparison, so
 * that any CPU may add at any time; readers see each counter exactly and their combination to within what is being added.
 */
#ifndef HV_MM_DMM_HIST_H
#define HV_MM_DMM_HIST_H

#include "include/hv/dmm.h"

#define HIST_SUB_SHIFT 2u
#define HIST_OCTAVES 40u  /* 2^41 ticks: a quarter of an hour; the last bucket takes the rest */
#define HIST_BUCKETS (HIST_OCTAVES << HIST_SUB_SHIFT)

struct dmm_hist {
    uint64_t sum_tsc, max_tsc;
    uint32_t bucket[HIST_BUCKETS];
};

/* Ticks 0..7 have a bucket each; above, the two bits after the leading one choose the quarter. */
static inline unsigned dmm_hist_bucket(uint64_t tsc)
{
    unsigned log = 63 - (unsigned)__builtin_clzll(tsc | (1u << HIST_SUB_SHIFT));
    unsigned n = ((log - HIST_SUB_SHIFT) << HIST_SUB_SHIFT) + (unsigned)(tsc >> (log - HIST_SUB_SHIFT));
    return n < HIST_BUCKETS ? n : HIST_BUCKETS - 1;
}

static inline void dmm_hist_add(struct dmm_hist *h, uint64_t tsc)
{
    __atomic_fetch_add(&h->bucket[dmm_hist_bucket(tsc)], 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&h->sum_tsc, tsc, __ATOMIC_RELAXED);
    uint64_t max = __atomic_load_n(&h->max_tsc, __ATOMIC_RELAXED);
    while (unlikely(tsc > max) &&
           !__atomic_compare_exchange_n(&h->max_tsc, &max, tsc, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
}

/* The largest value that falls into bucket n. */
uint64_t dmm_hist_bucket_top(unsigned n);
/* Adds src to dst, for sums over spaces. dst is the caller's alone. */
void dmm_hist_merge(struct dmm_hist *dst, const struct dmm_hist *src);
/* Quantiles are upper bounds: the top of the bucket that holds the sample of that rank, but never above the maximum. */
void dmm_hist_summarize(const struct dmm_hist *h, struct dmm_hist_summary *out);

#endif
