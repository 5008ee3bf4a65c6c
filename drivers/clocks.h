/* The machine's slow clocks of known frequency, for calibrating the TSC, and its calendar. Each _init() says whether the
 * clock is there and runs; the reference is then valid for ever. */
#ifndef HV_DRIVERS_CLOCKS_H
#define HV_DRIVERS_CLOCKS_H

#include "include/hv/types.h"
#include "x86/tsc.h"

struct acpi_hpet;
struct acpi_fadt;

const struct ref_clock *hpet_init(const struct acpi_hpet *hpet);
const struct ref_clock *pmtimer_init(const struct acpi_fadt *fadt);
const struct ref_clock *pit_init(void);

/* The CMOS clock's registers, as read. */
struct cmos_time { uint8_t second, minute, hour, day, month, year, century, status_b; };
/* Unix seconds (the clock is taken to run in UTC). False: no possible date. */
bool cmos_decode(const struct cmos_time *t, uint64_t *unix_s);
/* Reads the clock; `century_reg` from the FADT, 0: none. 0: no clock there, or nonsense in it. */
uint64_t cmos_read_time(uint8_t century_reg);

#endif
