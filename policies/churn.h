/* policies/churn.c: a trial by fire, off by default. */
#ifndef HV_POLICIES_CHURN_H
#define HV_POLICIES_CHURN_H
void churn_policy_init(void);
void churn_thread(void *arg); /* its thread's body; THREAD_PRIO_POLICY */
#endif
