/* Modes that do not come back: the VM runs for ever, sleeps for ever or is stopped with a reason. */
#include "hostile/hostile.h"

static bool spin(void)
{
    for (;;)
        asm volatile("cli\n 1: jmp 1b");
    return false;
}

static bool halt(void)
{
    for (;;)
        asm volatile("cli\n hlt");
    return false;
}

static bool triple(void)
{
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) none = {0, 0};
    asm volatile("lidt %0\n int3" :: "m"(none));
    return failed("triple: still here");
}

const struct mode end_modes[] = {{"spin", spin, 0}, {"halt", halt, 0}, {"triple", triple, 0}, {}};
