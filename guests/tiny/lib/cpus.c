/* The other vCPUs: INIT and SIPI to all but this one, a trampoline below 1 MiB that goes from real mode straight to 64-bit mode, a barrier. */
#include "lib/cpus.h"

enum { STACK_BYTES = 8192, TRAMPOLINE = 0x8000, PATIENCE_TICKS = 1 << 20 };

static uint8_t stacks[CPUS_MAX][STACK_BYTES] __attribute__((aligned(16)));
static struct { uint16_t limit; uint64_t base; } __attribute__((packed)) idt_ptr;
static uint64_t cpu_total = 1;
static void (*begin)(uint64_t index);
static volatile uint64_t started, arrived, phase;

extern char cpus_first[], cpus_last[];
void cpus_entry(uint64_t index);
asm(".pushsection .text\n"
    ".code16\n.globl cpus_first, cpus_last, cpus_long\n"
    "cpus_first: cli\n xor %ax, %ax\n mov %ax, %ds\n"
    "lgdtl (cpus_gdt - cpus_first + 0x8000)\n"
    "mov $0x620, %eax\n mov %eax, %cr4\n"
    "mov $tiny_pml4, %eax\n mov %eax, %cr3\n"
    "mov $0xc0000080, %ecx\n xor %edx, %edx\n mov $0x100, %eax\n wrmsr\n"
    "mov $0x80000031, %eax\n mov %eax, %cr0\n"
    "ljmpl $8, $cpus_long\n"
    ".balign 8\ncpus_gdt: .word 63\n .long tiny_gdt\n"
    "cpus_last:\n"
    ".code64\ncpus_long: mov $16, %eax\n mov %eax, %ds\n mov %eax, %es\n mov %eax, %ss\n"
    "mov $1, %edi\n lock xadd %rdi, cpus_ticket(%rip)\n"
    "lea 1(%rdi), %rax\n shl $13, %rax\n lea cpus_stacks(%rip), %rsp\n mov (%rsp), %rsp\n add %rax, %rsp\n"
    "xor %ebp, %ebp\n call cpus_entry\n ud2\n"
    ".popsection\n"
    ".pushsection .data\n .balign 8\ncpus_ticket: .quad 1\n.popsection\n");
uint64_t cpus_stacks;
_Static_assert(STACK_BYTES == 1 << 13, "cpus_long");

uint64_t cpus_present(void)
{
    uint64_t all = cpuid(0xb, 1).b & 0xffff;
    return all ? all : 1;
}

void apic_enable(void)
{
    wrmsr(APIC_BASE, rdmsr(APIC_BASE) | 1 << 10 | 1 << 11);
    wrmsr(APIC_SVR, 0x1ff);
}

void cpus_entry(uint64_t index)
{
    asm volatile("lidt %0" :: "m"(idt_ptr));
    apic_enable();
    add(&started, 1);
    begin(index);
}

static bool have_come(uint64_t ticks)
{
    for (uint64_t since = rdtsc(); started + 1 < cpu_total && rdtsc() - since < ticks;)
        pause();
    return started + 1 == cpu_total;
}

void cpus_start(uint64_t total, void (*entry)(uint64_t index))
{
    cpu_total = total;
    begin = entry;
    cpus_stacks = (uint64_t)stacks;
    apic_enable();
    memcpy((void *)TRAMPOLINE, cpus_first, (size_t)(cpus_last - cpus_first));
    asm volatile("sidt %0" : "=m"(idt_ptr));
    if (total > 1)
        send_ipi(0x000c4500, 0);         /* INIT to all but self */
    have_come(PATIENCE_TICKS);
    for (unsigned n = 0; n < 2 && !have_come(n * PATIENCE_TICKS); n++)
        send_ipi(0x000c4600 | TRAMPOLINE >> 12, 0);
    have_come(UINT64_MAX);
}

void cpus_barrier(void)
{
    uint64_t now = phase;
    if (add(&arrived, 1) + 1 == cpu_total) {
        arrived = 0;
        __atomic_store_n(&phase, now + 1, __ATOMIC_SEQ_CST);
        return;
    }
    while (phase == now)
        pause();
}
