/* policies/large.c: makes 2 MiB mappings again. */
#ifndef HV_POLICIES_LARGE_H
#define HV_POLICIES_LARGE_H
void large_policy_init(void);
void large_thread(void *arg); /* its thread's body; THREAD_PRIO_POLICY */
void large_step(void);        /* one region; for the thread, and for tests */
#endif
