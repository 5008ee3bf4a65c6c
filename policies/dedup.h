/* policies/dedup.c: finds equal pages and has them shared. */
#ifndef HV_POLICIES_DEDUP_H
#define HV_POLICIES_DEDUP_H

#include "include/hv/types.h"

void dedup_policy_init(void);
void dedup_thread(void *arg); /* its thread's body; THREAD_PRIO_POLICY */
/* One region's worth of scanning; for the thread, and for tests, which have none. */
enum dedup_step { DEDUP_STEP_MORE, DEDUP_STEP_SETTLE /* pages were just aged: give guests a moment to use them */, DEDUP_STEP_SWEPT };
enum dedup_step dedup_step(void);
/* One whole sweep, whatever the budget. dedup_prepare() has succeeded. */
void dedup_sweep(void);
/* Gets the memory for the table, if it is not there yet. False: there is none. */
bool dedup_prepare(void);

#endif
