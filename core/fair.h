/*
 * The arithmetic of sharing CPUs among vCPUs by weight.
 *
 * A vCPU's virtual time is the CPU time it has used, divided by its weight: if all had advanced equally, each would have had exactly its
 * share. So each CPU runs the one that is furthest behind, for a slice, and the slices of one round over a queue add up to ROUND_NS:
 * nobody is ever further behind than a round. Across CPUs the same numbers are compared: a CPU takes a vCPU that waits elsewhere and
 * is further behind than its own best one by STEAL_NS worth of a round, on the one of the two that has more to do; and no slice leads further
 * than that. This bounds the unfairness of an uneven distribution, 3 vCPUs on 2 CPUs, and leaves caches alone below it.
 *
 * Virtual time is compared by the sign of the difference: it may wrap.
 */
#ifndef HV_CORE_FAIR_H
#define HV_CORE_FAIR_H

#include "include/hv/types.h"

#define ROUND_NS UINT64_C(16000000)
#define MIN_SLICE_NS UINT64_C(500000)
#define STEAL_NS UINT64_C(8000000)
#define LAG_NS (4 * ROUND_NS)          /* further apart than this are only CPUs between which nothing can move */
#define FAVOUR_NS (2 * ROUND_NS)       /* who is given way to may be further ahead by what each has in that time: one slice is normal */
#define WAKE_CREDIT_NS UINT64_C(4000000) /* what a sleeper may have saved up: it answers its interrupt now, not after a round */
#define CAP_PERIOD_NS UINT64_C(20000000)
#define VTIME_SCALE UINT64_C(102400)   /* of one ns at weight 1: 1024 at the default weight */

static inline uint64_t fair_vtime(uint64_t ns, uint64_t weight)
{
    return ns / weight * VTIME_SCALE + ns % weight * VTIME_SCALE / weight;
}

/* The way back: how long until somebody's virtual time has advanced by that. */
static inline uint64_t fair_ns(uint64_t vtime, uint64_t weight)
{
    return vtime / VTIME_SCALE * weight + vtime % VTIME_SCALE * weight / VTIME_SCALE;
}

static inline bool fair_before(uint64_t a, uint64_t b) { return (int64_t)(a - b) < 0; }
static inline uint64_t fair_later(uint64_t a, uint64_t b) { return fair_before(a, b) ? b : a; }
static inline uint64_t fair_earlier(uint64_t a, uint64_t b) { return fair_before(a, b) ? a : b; }

/* Its part of a round among `all_weights`, itself included. */
static inline uint64_t fair_slice_ns(uint64_t weight, uint64_t all_weights)
{
    uint64_t ns = ROUND_NS * weight / all_weights;
    return ns < MIN_SLICE_NS ? MIN_SLICE_NS : ns;
}

/* Virtual time of somebody who arrives where it is `now`: what it was ahead or behind, within the bounds. */
static inline uint64_t fair_arrive(uint64_t vtime, uint64_t now, uint64_t behind_at_most, uint64_t ahead_at_most)
{
    return fair_earlier(fair_later(vtime, now - behind_at_most), now + ahead_at_most);
}

#endif
