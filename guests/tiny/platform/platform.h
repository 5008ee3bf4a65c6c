/* What the parts of the platform guest share: how a check is told, what is known of the machine, waiting. */
#ifndef HV_GUESTS_TINY_PLATFORM_PLATFORM_H
#define HV_GUESTS_TINY_PLATFORM_PLATFORM_H

#include "tiny.h"

#define BIT(n) (UINT64_C(1) << (n))

extern unsigned good, bad;
extern bool bare, exact;      /* see platform.c */
extern uint64_t tsc_hz;       /* 1 GHz until the PM timer has told */

#define CHECK(what, condition, ...)                                                                        \
    do {                                                                                                   \
        if (condition) {                                                                                   \
            good++;                                                                                        \
            print("platform: %s ok\n", what);                                                              \
        } else {                                                                                           \
            bad++;                                                                                         \
            print("platform: %s FAILED ", what);                                                           \
            print(__VA_ARGS__);                                                                            \
            print("\n");                                                                                   \
        }                                                                                                  \
    } while (0)

enum { MSR_APIC_BASE = 0x1b };
uint8_t cmos(uint8_t reg);
void wait_tsc(uint64_t ticks);
/* Is what read() counts in `bits` bits as fast as it should be? */
void check_rate(const char *name, uint64_t (*read)(void), uint64_t hz, unsigned bits);
bool shown(const char *name); /* in CPUID: a name of features.c's table */
void check_features(void);
void check_interrupts(void);

#endif
