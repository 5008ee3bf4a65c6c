/* policies/insurance.c: keeps the covers of insured VMs up to date. */
#ifndef HV_POLICIES_INSURANCE_H
#define HV_POLICIES_INSURANCE_H
void insurance_policy_init(void);
void insurance_thread(void *arg); /* its thread's body; THREAD_PRIO_POLICY */
#endif
