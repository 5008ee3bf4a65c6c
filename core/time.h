/* Monotonic time. The TSC is calibrated once at boot against HPET, ACPI PM timer or PIT (x86/tsc.c). */
#ifndef HV_CORE_TIME_H
#define HV_CORE_TIME_H
#include "include/hv/types.h"
uint64_t time_ns(void);                    /* since boot */
uint64_t time_tsc(void);
uint64_t time_tsc_khz(void);
uint64_t time_tsc_to_ns(uint64_t tsc_delta);
uint64_t time_ns_to_tsc(uint64_t ns_delta);
uint64_t time_wallclock_s(void);           /* Unix seconds: CMOS clock at boot + time_ns() */
/* Multiplier/shift pair with ns = (tsc * mul) >> 32 after shifting tsc left (shift>=0) or right: as in KVM's pvclock. */
void time_pvclock_scale(uint32_t *mul, int8_t *shift);
#endif
