/*
 * Executes random bytes. What they can reach decides whether anything can be said of the end: at CPL 3 (`garbage`), with a few pages of
 * their own and nothing else mapped for them, they must come back by an exception or, from an endless loop, by an NMI,
 * whatever they are; that is checked. At CPL 0 (`garbage0`) they may mask, halt, reset or triple-fault the VM, and what counts is only
 * that nobody else notices.
 *
 * The pages of this guest are mapped read-only meanwhile, all gates use a stack of their own, and the way back begins
 * with the old page tables.
 */
#include "hostile/hostile.h"

enum { PTE_P = 1, PTE_W = 2, PTE_U = 4, CODE_PAGES = 2, DATA_PAGES = 4 };
enum { KERNEL_CS = 8, USER_DS = 0x20, USER_CS32 = 0x18, USER_CS64 = 0x28, USER_CS16 = 0x30, TSS = 0x38 };

struct tss { uint32_t reserved; uint64_t rsp[3], reserved1, ist[7], reserved2; uint16_t reserved3, iomap; } __attribute__((packed));

static uint8_t code[CODE_PAGES * 4096] __attribute__((aligned(4096)));
static uint8_t data[DATA_PAGES * 4096] __attribute__((aligned(4096)));
static uint8_t trap_stack[8192] __attribute__((aligned(4096)));
static uint64_t pml4[512] __attribute__((aligned(4096))), pdpt[512] __attribute__((aligned(4096))), pd[512] __attribute__((aligned(4096)));
static uint64_t pt[512] __attribute__((aligned(4096))), device_pd[512] __attribute__((aligned(4096))), device_pt[2][512] __attribute__((aligned(4096)));
static uint64_t gdt[9] __attribute__((aligned(16)));
static struct tss tss;
static struct gate idt[256];
static uint64_t good_cr0, good_cr4, good_efer;

/* ---- the cage ------------------------------------------------------------------------------------------------------------------- */

static void map(const void *p, uint64_t bytes, uint64_t flags)
{
    for (uint64_t at = (uint64_t)p & ~UINT64_C(4095); at < (uint64_t)p + bytes; at += 4096)
        pt[at >> 12 & 511] = at | flags;
}

static void make_tables(bool supervisor)
{
    uint64_t user = supervisor ? 0 : PTE_U;
    pml4[0] = (uint64_t)pdpt | PTE_P | PTE_W | PTE_U;
    pdpt[0] = (uint64_t)pd | PTE_P | PTE_W | PTE_U;
    pdpt[3] = (uint64_t)device_pd | PTE_P | PTE_W | PTE_U;
    pd[0] = (uint64_t)pt | PTE_P | PTE_W | PTE_U;
    map((void *)0x100000, (uint64_t)image_end - 0x100000, PTE_P);
    map(trap_stack, sizeof(trap_stack), PTE_P | PTE_W);
    map(code, sizeof(code), PTE_P | PTE_W | user);
    map(data, sizeof(data), PTE_P | PTE_W | user);
    if (!supervisor)
        return;
    device_pd[LAPIC >> 21 & 511] = (uint64_t)device_pt[0] | PTE_P | PTE_W;
    device_pd[IOAPIC >> 21 & 511] = (uint64_t)device_pt[1] | PTE_P | PTE_W;
    for (unsigned n = 0; n < 512; n++) /* the windows, and holes around them */
        device_pt[0][n] = ((LAPIC & ~0x1fffffu) + n * 4096) | PTE_P | PTE_W, device_pt[1][n] = ((IOAPIC & ~0x1fffffu) + n * 4096) | PTE_P | PTE_W;
}

/* One gate for each exception: back to the tables in which the handler may write. */
extern char cage_gates[];
enum { GATE_BYTES = 32 };
asm(".pushsection .text; .balign 32; cage_gates:\n"
    ".set n, 0; .rept 256; .balign 32; push %rax; mov $tiny_pml4, %rax; mov %rax, %cr3; pop %rax; jmp *(tiny_stubs + 8 * n); .set n, n + 1; .endr\n"
    ".popsection");

static void make_gates(void)
{
    for (unsigned n = 0; n < 256; n++) {
        uint64_t at = (uint64_t)cage_gates + n * GATE_BYTES, dpl = n == 3 || n == 4 || n > 0x40 ? 0x6000 : 0;
        idt[n] = (struct gate){(at & 0xffff) | KERNEL_CS << 16 | (0x8e00 | dpl | 1 /* IST */) << 32 | (at >> 16 & 0xffff) << 48, 0};
    }
    tss.ist[0] = tss.rsp[0] = (uint64_t)trap_stack + sizeof(trap_stack) - 64; /* INT n where an error code is expected pushes less */
    tss.iomap = sizeof(tss); /* none */
    const uint64_t base = (uint64_t)&tss, descriptors[] = {
        0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff, 0x008ffb000000ffff,
        (sizeof(tss) - 1) | (base & 0xffffff) << 16 | UINT64_C(0x89) << 40 | (base >> 24 & 0xff) << 56, base >> 32};
    memcpy(gdt, descriptors, sizeof(gdt));
}

/* After each round: whatever the bytes have changed that matters. */
static void restore_cpu(void)
{
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) gdt_ptr = {sizeof(gdt) - 1, (uint64_t)gdt}, idt_ptr = {sizeof(idt) - 1, (uint64_t)idt};
    WRITE_CR(0, good_cr0);
    WRITE_CR(4, good_cr4);
    wrmsr(0xc0000080, good_efer);
    asm volatile("mov %0, %%dr7" :: "r"(UINT64_C(0x400)));
    gdt[TSS / 8] &= ~(UINT64_C(2) << 40); /* LTR wants it not busy */
    asm volatile("lgdt %0; lidt %1; ltr %w2; lldt %w3" :: "m"(gdt_ptr), "m"(idt_ptr), "r"(TSS), "r"(0));
    asm volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%fs; mov %0, %%gs; mov %0, %%ss" :: "r"(0x10));
    asm volatile("pushq $2; popf; cld; fninit" ::: "memory", "cc");
}

/* ---- the bytes -------------------------------------------------------------------------------------------------------------------- */

static uint8_t *put(uint8_t *at, const char *bytes, unsigned n)
{
    memcpy(at, bytes, n);
    return at + n;
}

/* Evenly random bytes mostly end at once; so instructions worth executing are strewn in. */
static void fill_code(void)
{
    static const struct { uint8_t length; char bytes[7]; } spice[] = {
        {2, "\x0f\x01"}, {2, "\x0f\x00"}, {2, "\x0f\x20"}, {2, "\x0f\x22"}, {2, "\x0f\x21"}, {2, "\x0f\x23"}, {2, "\x0f\x30"}, {2, "\x0f\x32"},
        {2, "\x0f\xa2"}, {1, "\xcd"}, {1, "\xcf"}, {2, "\x48\xcf"}, {1, "\x8e"}, {1, "\x6c"}, {1, "\x6f"}, {2, "\xf3\x6d"}, {2, "\xf3\x6e"}, {1, "\xe4"},
        {1, "\xe7"}, {1, "\xed"}, {1, "\xee"}, {1, "\xf4"}, {1, "\xfa"}, {1, "\xfb"}, {2, "\x0f\x05"}, {2, "\x0f\x34"}, {2, "\x0f\x07"}, {1, "\xcb"},
        {1, "\x9d"}, {1, "\xf0"}, {1, "\xc4"}, {1, "\xc5"}, {1, "\x62"}, {2, "\x0f\xae"}, {2, "\x0f\xc7"}, {2, "\xeb\xfe"}, {2, "\xf3\xa4"},
        {3, "\x0f\x01\xd9"}, {3, "\x0f\x01\xd1"}, {1, "\xe8"}, {1, "\xc3"}, {1, "\xf1"}, {1, "\xcc"}, {1, "\xa4"}, {1, "\xaa"}, {1, "\x8b"}, {1, "\x89"}};
    for (uint8_t *at = code; at < code + sizeof(code) - 8;) {
        if (rnd_below(3)) {
            *at++ = (uint8_t)rnd();
        } else {
            unsigned k = (unsigned)rnd_below(sizeof(spice) / sizeof(*spice));
            at = put(at, spice[k].bytes, spice[k].length);
        }
    }
}

/* General registers in the hardware's order, then RIP, CS, RFLAGS, RSP, SS. */
struct launch { uint64_t gpr[16], frame[5]; };
void launch_body(void *launch);
asm(".pushsection .text; launch_body: sub $40, %rsp; mov %rsp, %rax\n"
    ".set n, 0; .rept 5; mov 128 + 8 * n(%rdi), %rcx; mov %rcx, 8 * n(%rax); .set n, n + 1; .endr\n"
    "mov cage_cr3(%rip), %rcx; mov %rcx, %cr3\n"
    "mov 0(%rdi), %rax; mov 8(%rdi), %rcx; mov 16(%rdi), %rdx; mov 24(%rdi), %rbx; mov 40(%rdi), %rbp; mov 48(%rdi), %rsi\n"
    "mov 64(%rdi), %r8; mov 72(%rdi), %r9; mov 80(%rdi), %r10; mov 88(%rdi), %r11; mov 96(%rdi), %r12; mov 104(%rdi), %r13; mov 112(%rdi), %r14\n"
    "mov 120(%rdi), %r15; mov 56(%rdi), %rdi; iretq; .popsection");
uint64_t cage_cr3;

/* To devices only now and then: sooner or later it is an instruction that the emulator has not got, and that is the end. */
static uint64_t random_pointer(bool devices)
{
    switch (rnd_below(devices ? 8 : 5)) {
    case 0: return rnd_value();
    case 1: return (uint64_t)code + rnd_below(sizeof(code));
    case 5: return LAPIC + rnd_below(4096);
    case 6: return IOAPIC + rnd_below(32);
    case 7: return LAPIC - 0x10000 + rnd_below(0x8000);
    default: return (uint64_t)data + 4096 + rnd_below(sizeof(data) - 8192);
    }
}

/* The NMI that ends endless loops: counter 0 by way of the I/O APIC's pin 2. */
static void start_watchdog(void)
{
    mmio_write(IOAPIC, 0x15);
    mmio_write(IOAPIC + 0x10, 0);
    mmio_write(IOAPIC, 0x14);
    mmio_write(IOAPIC + 0x10, 0x400);
    outb(0x43, 0x34);
    outb(0x40, 0);
    outb(0x40, 0x40); /* 14 ms */
    nmi_lands = true;
}

static bool run_garbage(bool supervisor)
{
    static const uint64_t selectors[] = {USER_CS64, USER_CS64, USER_CS32, USER_CS16};
    static uint64_t ended_by[33];
    good_cr0 = READ_CR(0), good_cr4 = READ_CR(4), good_efer = rdmsr(0xc0000080);
    make_tables(supervisor);
    make_gates();
    cage_cr3 = (uint64_t)pml4;
    for (uint64_t n = 0; n < count; n++) {
        struct launch l;
        if (n % 16 == 0)
            fill_code();
        restore_cpu();
        start_watchdog();
        for (unsigned k = 0; k < 16; k++)
            l.gpr[k] = random_pointer(supervisor && n % 50 == 49);
        l.gpr[4] = 0; /* RSP comes with the frame */
        l.frame[0] = (uint64_t)code + rnd_below(sizeof(code));
        l.frame[1] = supervisor ? KERNEL_CS : PICK(selectors) | 3;
        l.frame[2] = 2 | (rnd() & 0x200cd5) | (supervisor ? 0 : 0x200);
        l.frame[3] = (uint64_t)data + 8192;
        l.frame[4] = supervisor ? 0x10 : USER_DS | 3;
        int vector = attempt(launch_body, &l);
        if (vector < 0 || vector > 255)
            return failed("garbage: round %lu came back by %d", n, vector);
        ended_by[vector < 32 ? vector : 32]++; /* INT n counts as one */
    }
    nmi_lands = false;
    restore_cpu();
    outb(0x43, 0x30);
    mmio_write(IOAPIC, 0x14);
    mmio_write(IOAPIC + 0x10, 0x10000);
    for (unsigned n = 0; n < 33; n++)
        if (ended_by[n])
            print("hostile: %lu rounds ended by vector %u\n", ended_by[n], n);
    return true;
}

static bool garbage(void) { return run_garbage(false); }
static bool garbage0(void) { return run_garbage(true); }

const struct mode garbage_modes[] = {{"garbage", garbage, 2000}, {"garbage0", garbage0, 2000}, {}};
