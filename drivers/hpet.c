/* HPET's main counter (IA-PC HPET specification 1.0a, 2.3). Read as 32 bits: a 64-bit read may be torn on some chips. */
#include "core/log.h"
#include "drivers/acpi_parse.h"
#include "drivers/clocks.h"
#include "mm/mm.h"

#define HPET_CAPABILITIES 0x00 /* high half: femtoseconds per tick */
#define HPET_CONFIG 0x10
#define HPET_COUNTER 0xf0
#define CONFIG_ENABLE 1u
#define PERIOD_MAX_FS 100000000u /* the specification's 100 ns */

static volatile uint32_t *regs;

static uint64_t hpet_read(void) { return regs[HPET_COUNTER / 4]; }

const struct ref_clock *hpet_init(const struct acpi_hpet *hpet)
{
    static struct ref_clock clock = {.name = "HPET", .read = hpet_read, .bits = 32};
    regs = map_mmio(hpet->hpa, 0x400);
    if (!regs)
        return NULL;
    uint32_t period_fs = regs[HPET_CAPABILITIES / 4 + 1];
    if (!period_fs || period_fs > PERIOD_MAX_FS) {
        log_error("hpet: at %#lx claims %u fs per tick", hpet->hpa, period_fs);
        return NULL;
    }
    clock.hz = UINT64_C(1000000000000000) / period_fs;
    regs[HPET_CONFIG / 4] |= CONFIG_ENABLE;
    return &clock;
}
