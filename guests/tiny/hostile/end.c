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

/* Reserved bits of CR3 are #GP on a CPU; a CPU in software may leave the guest for it, and then the VM is stopped. */
static bool cr3(void)
{
    uint64_t was = READ_CR(3);
    int vector = TRY("mov %0, %%cr3", :: "r"(was | BIT(59)) : "r15", "memory");
    return vector == VEC_GP || failed("cr3: vector %d", vector);
}

/* INIT to the boot processor: without firmware behind the reset vector there is nothing to go on with. */
static bool init(void)
{
    mmio_write(LAPIC + 0x310, 0);
    mmio_write(LAPIC + 0x300, 0x4500);
    return failed("init: still here");
}

const struct mode end_modes[] = {{"init", init, 0}, {"cr3", cr3, 0}, {"spin", spin, 0}, {"halt", halt, 0}, {"triple", triple, 0}, {}};
