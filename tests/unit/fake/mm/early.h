/* Early boot memory for host tests: dmm_host.c hands it out from the fake machine's memory. */
#ifndef HV_MM_EARLY_H
#define HV_MM_EARLY_H
#include "include/hv/dmm.h"
#define HOSTMAP_RW 1u
uint64_t early_alloc(uint64_t bytes, uint64_t align, enum frame_type purpose);
bool hostmap_map(uint64_t va, uint64_t hpa, uint64_t bytes, unsigned flags);
void early_for_each_taken(void (*cb)(uint64_t hpa, uint64_t bytes, enum frame_type purpose, void *arg), void *arg);
#endif
