/* What the scanner (dedup.c) and its thread (dedup_thread.c) have in common. */
#ifndef HV_POLICIES_DEDUP_INTERNAL_H
#define HV_POLICIES_DEDUP_INTERNAL_H

#include "include/hv/dmm.h"
#include "include/hv/dmm_policy.h"
#include "policies/dedup.h"
#include "policies/dedup_table.h"

enum dedup_param { DEDUP_CPU_PERCENT, DEDUP_PAGES_PER_SECOND, DEDUP_IDLE_SECONDS,
                   DEDUP_BREAK_LARGE_PERCENT, DEDUP_SHORT_PERCENT, DEDUP_BREAKS_MAX,
                   DEDUP_LOG_PAGES_MAX, DEDUP_PARAM_COUNT };
uint64_t dedup_param(enum dedup_param which);
bool dedup_memory_is_short(void);
extern struct dmm_policy dedup_policy;

/* Of the policy since boot. Written by its thread only. */
extern struct dedup_counts {
    uint64_t sweeps, regions, skipped, unchanged_regions, waiting, large_broken, large_in_use;
    uint64_t logged;
    uint64_t hashed, unchanged, dirty, unstable, shared, zero, pinned, same_filled, sealed; /* pages */
    uint64_t cpu_ns, last_sweep_ns, last_hashed, last_found, pause_ns;
    uint64_t result[DMM_MERGE_RESULT_COUNT];
} dedup_counts;

extern struct dedup_table dedup_table;

/* The next dedup_step() is the first of a sweep. thorough: as if memory were short, and nothing is left alone. */
void dedup_begin_sweep(bool thorough);
/* It has broken a mapping that it may have passed already: the pieces have not been looked at since. */
bool dedup_broke_behind(void);
/* No VM's CPUs log what they write to any more. */
void dedup_end_logs(void);

#endif
