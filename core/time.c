/* The clock that the system sees: x86/tsc.c under its neutral names. */
#include "core/time.h"
#include "x86/cpu.h"
#include "x86/tsc.h"

uint64_t time_tsc(void) { return rdtsc(); }
uint64_t time_tsc_khz(void) { return tsc_khz(); }
uint64_t time_tsc_to_ns(uint64_t tsc_delta) { return tsc_to_ns(tsc_delta); }
uint64_t time_ns_to_tsc(uint64_t ns_delta) { return ns_to_tsc(ns_delta); }
uint64_t time_ns(void) { return tsc_to_ns(rdtsc() - tsc_boot()); }
uint64_t time_wallclock_s(void) { return tsc_epoch_s() + time_ns() / 1000000000; }
void time_pvclock_scale(uint32_t *mul, int8_t *shift) { tsc_pvclock_scale(mul, shift); }
