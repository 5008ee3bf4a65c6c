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

/* A fifth of a second by the PM timer, so that the lives of a VM that resets itself for ever can be counted. */
static void live_a_little(void)
{
    for (uint32_t begin = inl(0x608); inl(0x608) - begin < 3579545 / 5;)
        asm volatile("pause");
}

/* The boot processor's INIT starts the firmware, hence the machine. */
static bool init(void)
{
    live_a_little();
    mmio_write(LAPIC + 0x310, 0);
    mmio_write(LAPIC + 0x300, 0x4500);
    asm volatile("nop");
    return failed("init: still here");
}

static bool reset(void)
{
    live_a_little();
    outb(0xcf9, 6);
    return failed("reset: still here");
}

/* Translations through what is no memory. In the first three nothing can be fetched any more; a PC would shut down, here the VM is stopped. */
static uint64_t odd_table[512] __attribute__((aligned(4096)));

static bool walk_hole(void)
{
    WRITE_CR(3, (RAM_END + 0x200000) & ~UINT64_C(0xfff));
    return failed("walk-hole: still here");
}

static bool walk_mmio(void)
{
    WRITE_CR(3, LAPIC);
    return failed("walk-mmio: still here");
}

static bool walk_far(void) /* an address that the CPU has but no memory map mentions */
{
    WRITE_CR(3, UINT64_C(1) << 39);
    return failed("walk-far: still here");
}

/* A table that is its own child: well-formed, so the VM goes on for as long as the address is one that all levels agree on. */
static bool walk_self(void)
{
    for (unsigned n = 0; n < 512; n++)
        odd_table[n] = tiny_pml4[n];
    odd_table[511] = (uint64_t)odd_table | 3;
    WRITE_CR(3, (uint64_t)odd_table);
    const uint64_t *self = (const uint64_t *)UINT64_C(0xfffffffffffff000);
    if (self[511] != ((uint64_t)odd_table | 0x63) && self[511] != ((uint64_t)odd_table | 0x23))
        return failed("walk-self: reads %lx", self[511]);
    WRITE_CR(3, (uint64_t)tiny_pml4);
    return true;
}

/* A lower level in a hole: the walk ends outside memory for one address only. */
static bool walk_leaf(void)
{
    odd_table[0] = RAM_END | 3;
    tiny_pml4[2] = (uint64_t)odd_table | 3;
    WRITE_CR(3, (uint64_t)tiny_pml4);
    uint32_t read = *(volatile uint32_t *)(UINT64_C(2) << 39);
    return failed("walk-leaf: read %x", read);
}

/* The emulator has to walk tables outside memory: a port string whose buffer is mapped through a hole. */
static bool walk_string(void)
{
    odd_table[0] = RAM_END | 3;
    tiny_pml4[2] = (uint64_t)odd_table | 3;
    WRITE_CR(3, (uint64_t)tiny_pml4);
    ins(0x1234, 4, (void *)(UINT64_C(2) << 39), 16);
    return failed("walk-string: still here");
}

/* An exception, and an INT3, which comes again if its delivery fails. */
static bool stack_hole(void)
{
    uint64_t stack = RAM_END + 0x100000;
    asm volatile("mov %0, %%rsp\n ud2" :: "r"(stack));
    return failed("stack-hole: still here");
}

static bool stack_mmio(void)
{
    asm volatile("mov %0, %%rsp\n int3" :: "r"(UINT64_C(0xfee00800)));
    return failed("stack-mmio: still here");
}

/* CALL and RET on a stack in a hole: data accesses, but of instructions that no driver uses on devices. */
static bool stack_call(void)
{
    uint64_t stack = RAM_END + 0x100000;
    asm volatile("mov %0, %%rsp\n call 1f\n 1: ret" :: "r"(stack));
    return failed("stack-call: still here");
}

static bool idt_hole(void)
{
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) none = {4095, RAM_END};
    asm volatile("lidt %0\n int3" :: "m"(none));
    return failed("idt-hole: still here");
}

static bool gdt_mmio(void)
{
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) odd = {4095, LAPIC};
    asm volatile("lgdt %0\n mov %1, %%ds" :: "m"(odd), "r"(0x38));
    return failed("gdt-mmio: still here");
}

/* An instruction that the emulator has not got, on a device. */
static bool unemulated(void)
{
    asm volatile("fxsave (%0)" :: "r"((uint64_t)IOAPIC) : "memory");
    return failed("unemulated: still here");
}

/* A double fault that its own stack makes impossible: the CPU's way to shutdown, through the hypervisor's #DB and #AC intercepts. */
static bool fault_loop(void)
{
    for (unsigned n = 0; n < 32; n++)
        tiny_idt[n].low &= ~BIT(47); /* no gate is present */
    asm volatile("ud2");
    return failed("fault-loop: still here");
}

const struct mode end_modes[] = {
    {"cr3", cr3, 0}, {"init", init, 0}, {"reset", reset, 0}, {"spin", spin, 0}, {"halt", halt, 0}, {"triple", triple, 0}, {"walk-hole", walk_hole, 0},
    {"walk-mmio", walk_mmio, 0}, {"walk-far", walk_far, 0}, {"walk-self", walk_self, 0}, {"walk-leaf", walk_leaf, 0}, {"walk-string", walk_string, 0},
    {"stack-hole", stack_hole, 0}, {"stack-mmio", stack_mmio, 0}, {"stack-call", stack_call, 0}, {"idt-hole", idt_hole, 0}, {"gdt-mmio", gdt_mmio, 0},
    {"unemulated", unemulated, 0}, {"fault-loop", fault_loop, 0}, {}};
