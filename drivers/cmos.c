/*
 * The CMOS calendar (MC146818A data sheet). Registers may change while they are read: wait for the update flag to be clear,
 * read all, and believe them only when two readings agree. Everything is bounded: an absent clock reads all ones.
 */
#include "drivers/clocks.h"
#include "lib/string.h"
#include "x86/cpu.h"

#define CMOS_INDEX 0x70
#define CMOS_DATA 0x71
#define NMI_OFF 0x80 /* of the index port; left clear: NMIs stay on */
#define STATUS_A_UPDATING 0x80

static uint8_t cmos_read(uint8_t reg)
{
    out8(CMOS_INDEX, reg & (uint8_t)~NMI_OFF);
    return in8(CMOS_DATA);
}

static struct cmos_time read_registers(uint8_t century_reg)
{
    return (struct cmos_time){.second = cmos_read(0), .minute = cmos_read(2), .hour = cmos_read(4), .day = cmos_read(7),
                              .month = cmos_read(8), .year = cmos_read(9), .status_b = cmos_read(0x0b),
                              .century = century_reg && century_reg < 0x80 ? cmos_read(century_reg) : 0};
}

uint64_t cmos_read_time(uint8_t century_reg)
{
    struct cmos_time before, after = {0};
    uint64_t unix_s;
    for (unsigned tries = 0; tries < 10; tries++) {
        for (unsigned i = 0; (cmos_read(0x0a) & STATUS_A_UPDATING) && i < 2500; i++) /* an update takes 2 ms */
            tsc_delay_ns(1000);
        before = read_registers(century_reg);
        after = read_registers(century_reg);
        if (!memcmp(&before, &after, sizeof(before)))
            return cmos_decode(&after, &unix_s) ? unix_s : 0;
    }
    return 0;
}
