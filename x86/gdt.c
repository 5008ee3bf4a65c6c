/*
 * GDT and TSS. Long mode needs almost nothing of them: a code segment, a data segment for SS, and the TSS for its
 * interrupt stack table. NMI, double fault and machine check get stacks of their own: they can arrive when the current
 * stack is unusable (its guard page hit, or anything at all for the other two). All other vectors stay on the
 * current stack.
 */
#include "x86/gdt.h"
#include "x86/cpu.h"
#include "x86/percpu.h"

#define DESC_CODE64 UINT64_C(0x00af9b000000ffff) /* present, DPL 0, execute/read, accessed, L */
#define DESC_DATA UINT64_C(0x00cf93000000ffff)   /* present, DPL 0, read/write, accessed */
#define DESC_TSS_AVAILABLE (UINT64_C(0x89) << 40)

struct PACKED tss { /* APM 2, figure 12-8 */
    uint32_t reserved0;
    uint64_t rsp[3];
    uint64_t reserved1;
    uint64_t ist[7];
    uint64_t reserved2;
    uint16_t reserved3, iomap_base;
};
_Static_assert(sizeof(struct tss) == 104 && sizeof(struct tss) == sizeof(((struct percpu *)0)->tss), "TSS");
_Static_assert(offsetof(struct tss, ist) == 36 && offsetof(struct tss, iomap_base) == 102, "TSS");

/* Until drivers/init.c brings guarded ones. */
static uint8_t early_ist_stack[8192] __attribute__((aligned(16)));

void gdt_set_ist(struct percpu *area, enum ist slot, void *base, size_t bytes)
{
    struct tss *tss = (struct tss *)area->tss;
    area->ist_stack[slot - 1] = base;
    area->ist_stack_bytes = bytes;
    tss->ist[slot - 1] = (uintptr_t)base + bytes;
}

/* APM 2, 4.8.3: the descriptor of a TSS takes two slots. */
static void set_tss_descriptor(struct percpu *area)
{
    uint64_t base = (uintptr_t)area->tss;
    area->gdt[SELECTOR_TSS / 8] = (sizeof(struct tss) - 1) | (base & 0xffffff) << 16 | DESC_TSS_AVAILABLE |
                                  FIELD_GET64(base, 31, 24) << 56;
    area->gdt[SELECTOR_TSS / 8 + 1] = base >> 32;
}

void gdt_reload_tss(struct percpu *area)
{
    set_tss_descriptor(area); /* LTR refuses a busy one */
    ltr(SELECTOR_TSS);
}

void gdt_load(struct percpu *area)
{
    struct tss *tss = (struct tss *)area->tss;
    tss->iomap_base = sizeof(*tss);
    area->gdt[SELECTOR_CODE / 8] = DESC_CODE64;
    area->gdt[SELECTOR_DATA / 8] = DESC_DATA;
    lgdt(&(struct descriptor_ptr){sizeof(area->gdt) - 1, (uintptr_t)area->gdt});
    /* A far return is the only 64-bit way to load CS with an immediate selector. The null selectors in FS and GS would clear
     * their bases on some CPUs: GS is left alone. */
    asm volatile("pushq %0\n leaq 1f(%%rip), %%rax\n pushq %%rax\n lretq\n 1:\n"
                 "mov %1, %%ss\n mov %1, %%ds\n mov %1, %%es\n"
                 :: "i"(SELECTOR_CODE), "r"(SELECTOR_DATA) : "rax", "memory");
    gdt_reload_tss(area);
}

void gdt_init_boot(void)
{
    for (enum ist i = IST_NMI; i <= IST_COUNT; i++)
        gdt_set_ist(this_cpu(), i, early_ist_stack, sizeof(early_ist_stack));
    gdt_load(this_cpu());
}
