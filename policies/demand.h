/* The demand-paging policy: how much to map at a first touch. Registered by demand_policy_init(), before the first VM. */
#ifndef HV_POLICIES_DEMAND_H
#define HV_POLICIES_DEMAND_H

void demand_policy_init(void);

#endif
