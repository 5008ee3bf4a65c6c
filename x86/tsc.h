/* The time-stamp counter as the machine's clock; core/time.h is what the rest of the system uses. */
#ifndef HV_X86_TSC_H
#define HV_X86_TSC_H

#include "include/hv/types.h"

/* A clock of known frequency to calibrate against; drivers supply it. Counts up and wraps at `bits`. */
struct ref_clock {
    const char *name;
    uint64_t (*read)(void);
    uint64_t hz;
    unsigned bits;
};

/* Measures against `ref`. False: the reference does not advance or contradicts itself, nothing changed. */
bool tsc_calibrate(const struct ref_clock *ref);
/* Takes a frequency from elsewhere (tests, a hypervisor's word). */
void tsc_set_khz(uint64_t khz, const char *source);
uint64_t tsc_khz(void);                  /* 0: not yet calibrated */
const char *tsc_source(void);            /* what it was calibrated against */
uint64_t tsc_boot(void);                 /* TSC at tsc_mark_boot() */
void tsc_mark_boot(void);                /* time_ns() counts from here */
uint64_t tsc_to_ns(uint64_t tsc);        /* of an interval; rounds down */
uint64_t ns_to_tsc(uint64_t ns);         /* rounds up; saturates */
/* ns = ((shift >= 0 ? tsc << shift : tsc >> -shift) * mul) >> 32, as in KVM's pvclock; mul has its top bit set. */
void tsc_pvclock_scale(uint32_t *mul, int8_t *shift);
/* Spins at least that long; works uncalibrated (assumes a fast 4 GHz clock). */
void tsc_delay_ns(uint64_t ns);
/* Unix time at TSC value tsc_boot(). */
void tsc_set_epoch(uint64_t unix_seconds_now);
uint64_t tsc_epoch_s(void);              /* at tsc_boot(); 0: unknown */

#endif
