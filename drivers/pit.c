/*
 * 8254 channel 2 (Intel 8254 data sheet), whose gate is bit 0 of port 0x61 and whose output drives nothing but the
 * speaker. Mode 2 with the full count of 65536: the count falls by one per tick and wraps, 55 ms a turn.
 */
#include "drivers/clocks.h"
#include "x86/cpu.h"

#define PIT_CHANNEL2 0x42
#define PIT_COMMAND 0x43
#define PORT_B 0x61
#define PORT_B_GATE2 0x01
#define PORT_B_SPEAKER 0x02

static uint64_t pit_read(void)
{
    out8(PIT_COMMAND, 0x80); /* latch channel 2 */
    uint8_t low = in8(PIT_CHANNEL2);
    uint16_t count = (uint16_t)(low | in8(PIT_CHANNEL2) << 8);
    return (uint16_t)-count;
}

const struct ref_clock *pit_init(void)
{
    static const struct ref_clock clock = {.name = "PIT", .read = pit_read, .hz = 1193182, .bits = 16};
    out8(PORT_B, (uint8_t)((in8(PORT_B) & ~PORT_B_SPEAKER) | PORT_B_GATE2));
    out8(PIT_COMMAND, 0xb4); /* channel 2, both bytes, mode 2, binary */
    out8(PIT_CHANNEL2, 0);
    out8(PIT_CHANNEL2, 0);
    /* An absent PIT reads all ones for ever: the calibration finds out that it stands still. */
    return &clock;
}
