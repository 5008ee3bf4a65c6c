/*
 * Back to where PCs come from: real mode, virtual-8086 mode and a hardware task switch, with everything that exits done there too, because
 * lengths, segments, limits and the stack are different. The 16-bit code is copied to 8000h; what it finds it leaves in
 * results that the 64-bit code checks.
 */
#include "hostile/hostile.h"

enum { LOW = 0x8000, LOW_BYTES = 0x3000, IVT_BYTES = 0x400 };
extern char rm_start[], rm_end[], rm_results[], rm_fault0[], rm_fault6[], rm_fault13[], rm_soft[], rm_irq[], rm_buffer[];
void real_mode(void);

/* Results, by number. */
enum { R_INT60, R_DIV, R_UD, R_GP, R_INT3, R_IN8, R_IN16, R_IN32, R_IN32_HIGH, R_CPUID, R_CPUID_HIGH, R_MSW, R_LAPIC, R_LAPIC_HIGH,
       R_HOLE, R_A20, R_INS, R_OUTS_SI, R_IRQ, R_MSR, R_MSR_HIGH, R_VMMCALL, R_WRAP, R_SP, R_MOVS, R_CR0, R_COUNT };

asm(".pushsection .text; .globl real_mode; real_mode:\n"
    "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "mov %rsp, rm_rsp(%rip); sidt rm_idt(%rip)\n"
    "pushq $0x18; lea rm_32(%rip), %rax; push %rax; lretq\n"
    ".code32; rm_32: mov $0x10, %eax; mov %eax, %ds; mov %eax, %ss; mov $0x9000, %esp\n"
    "mov %cr0, %eax; and $0x7fffffff, %eax; mov %eax, %cr0\n"
    "mov $0xc0000080, %ecx; rdmsr; and $~0x100, %eax; wrmsr\n"
    "ljmp $0x20, $(0x8000 + rm_pm16 - rm_start)\n"
    "rm_back: mov $0x10, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %ss; mov $0x9000, %esp\n"
    "mov $0xc0000080, %ecx; rdmsr; or $0x100, %eax; wrmsr\n"
    "mov %cr0, %eax; or $0x80000000, %eax; mov %eax, %cr0; ljmp $8, $rm_64\n"
    ".code64; rm_64: mov rm_rsp(%rip), %rsp; lidt rm_idt(%rip); mov $0x10, %eax; mov %eax, %fs; mov %eax, %gs\n"
    "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret; .popsection\n"
    ".pushsection .bss; rm_rsp: .skip 8; rm_idt: .skip 16; .popsection\n");

/* R(n): where result n lies for code whose DS and CS are 0800h. RESUME: where a fault goes on. */
#define STORE(n, reg) "mov " reg ", (rm_results - rm_start) + 2 * " n "\n"
#define RESUME(label) "movw $(" label " - rm_start), rm_resume - rm_start\n"
asm(".pushsection .rodata; .code16; .balign 16; rm_start:\n"
    "rm_pm16: mov $0x28, %ax; mov %ax, %ds; mov %ax, %es; mov %ax, %ss; mov %ax, %gs; mov $0x10, %ax; mov %ax, %fs\n" /* FS keeps 4 GiB */
    "lidtl %cs:(0x8000 + rm_ivt - rm_start)\n"
    "mov %cr0, %eax; and $~1, %eax; mov %eax, %cr0; ljmp $0x800, $(rm_real - rm_start)\n"
    "rm_ivt: .word 0x3ff; .long 0\n"
    "rm_real: mov %cs, %ax; mov %ax, %ds; mov %ax, %es; mov %ax, %ss; mov $0x0ff0, %sp; cld\n"
    "int $0x60\n" /* counts itself, as do the others */
    RESUME("1f") "xor %dx, %dx; mov %dx, %bx; div %bx; 1:\n"
    RESUME("1f") "ud2; 1:\n"
    RESUME("1f") "mov 0xffff, %ax; 1:\n" /* a word across the limit */
    "int3\n"
    "in $0x80, %al; mov $0, %ah\n" STORE("5", "%ax")
    "mov $0x1234, %dx; in %dx, %ax\n" STORE("6", "%ax")
    "in %dx, %eax; mov %ax, %bx; shr $16, %eax\n" STORE("7", "%bx") STORE("8", "%ax")
    "out %al, $0x80; out %eax, %dx; rep; nop\n"
    "xor %eax, %eax; cpuid; mov %bx, %ax; shr $16, %ebx\n" STORE("9", "%ax") STORE("10", "%bx")
    "smsw %ax; lmsw %ax\n" STORE("11", "%ax")
    "mov $0xfee00030, %esi; mov %fs:(%esi), %eax; mov %ax, %bx; shr $16, %eax\n" STORE("12", "%bx") STORE("13", "%ax")
    "movl $0, %fs:0x50(%esi); addl $0, %fs:0x50(%esi)\n"
    "mov $0xfeb00000, %esi; movb $0x5a, %fs:5(%esi); mov %fs:5(%esi), %ax\n" STORE("14", "%ax")
    "mov $0xffff, %ax; mov %ax, %gs; mov %gs:0x10, %ax\n" STORE("15", "%ax")
    "mov $0x1234, %dx; mov $(rm_buffer - rm_start), %di; mov $7, %cx; rep insw; mov %di, %ax; sub $(rm_buffer - rm_start), %ax\n" STORE("16", "%ax")
    "mov $0x80, %dx; mov $(rm_buffer - rm_start), %si; mov $9, %cx; rep outsb; mov %si, %ax; sub $(rm_buffer - rm_start), %ax\n" STORE("17", "%ax")
    "mov $0xfe, %al; out %al, $0x21; mov $0x34, %al; out %al, $0x43; mov $0, %al; out %al, $0x40; mov $8, %al; out %al, $0x40\n"
    "2: sti; hlt; cli; cmpw $3, rm_results - rm_start + 2 * 18; jb 2b\n"
    "mov $0x30, %al; out %al, $0x43; mov $0xff, %al; out %al, $0x21\n"
    "mov $0x277, %ecx; rdmsr; wrmsr; mov %ax, %bx; shr $16, %eax\n" STORE("19", "%bx") STORE("20", "%ax")
    RESUME("1f") "mov $0x77, %eax; vmmcall; 1: mov %ax, %bx\n" STORE("21", "%bx")
    "mov $0xfffe, %di; mov $0x1234, %dx; mov $4, %cx; mov $0x9000, %ax; mov %ax, %es; rep insb; mov %cs, %ax; mov %ax, %es\n" STORE("22", "%di")
    STORE("23", "%sp")
    "mov $0xfeb00000, %esi; mov $(rm_buffer - rm_start + 64), %edi; mov $5, %ecx; rep movsw %fs:(%esi), %es:(%edi)\n" STORE("24", "%si")
    "mov %cr0, %eax; mov %eax, %cr0; mov %cr0, %eax\n" STORE("25", "%ax")
    "cli; mov %cr0, %eax; or $1, %eax; mov %eax, %cr0; ljmpl $0x18, $rm_back\n"
    /* a fault goes on at rm_resume and counts in its result */
    ".macro fault name, slot; \\name: push %bp; mov %sp, %bp; push %ax; mov %cs:(rm_resume - rm_start), %ax; mov %ax, 2(%bp)\n"
    "incw %cs:(rm_results - rm_start + 2 * \\slot); pop %ax; pop %bp; iret; .endm\n"
    "fault rm_fault0, 1; fault rm_fault6, 2; fault rm_fault13, 3\n"
    "rm_soft: incw %cs:(rm_results - rm_start); iret\n"
    "rm_int3: incw %cs:(rm_results - rm_start + 8); iret\n"
    "rm_irq: push %ax; incw %cs:(rm_results - rm_start + 36); mov $0x20, %al; out %al, $0x20; pop %ax; iret\n"
    "rm_resume: .word 0; .balign 4; rm_results: .skip 64; rm_buffer: .skip 128; rm_end: .code64; .popsection\n");
extern char rm_int3[];

static uint8_t saved_low[LOW_BYTES + IVT_BYTES];

static uint32_t far_pointer(const char *handler) { return 0x800u << 16 | (uint32_t)(handler - rm_start); }

/* Without the optimizer's knowledge that nothing lies at address 0. */
static volatile uint8_t *low(uint64_t at) { asm volatile("" : "+r"(at)); return (volatile uint8_t *)at; }

static bool check_results(const volatile uint16_t *r, const volatile uint8_t *buffer)
{
    struct cpuid id = cpuid(0, 0);
    uint64_t pat = rdmsr(0x277);
    const struct { uint8_t number; uint16_t want; } rules[] = {
        {R_INT60, 1}, {R_DIV, 1}, {R_INT3, 1}, {R_IN8, 0xff}, {R_IN16, 0xffff}, {R_IN32, 0xffff}, {R_IN32_HIGH, 0xffff},
        {R_CPUID, (uint16_t)id.b}, {R_CPUID_HIGH, (uint16_t)(id.b >> 16)}, {R_MSW, (uint16_t)(READ_CR(0) & 0xfffe)}, {R_HOLE, 0xffff},
        {R_LAPIC, (uint16_t)mmio_read(LAPIC + 0x30)}, {R_LAPIC_HIGH, (uint16_t)(mmio_read(LAPIC + 0x30) >> 16)},
        {R_A20, *(volatile uint16_t *)0x100000}, {R_INS, 14}, {R_OUTS_SI, 9}, {R_MSR, (uint16_t)pat}, {R_MSR_HIGH, (uint16_t)(pat >> 16)},
        {R_WRAP, 2}, {R_SP, 0x0ff0}, {R_MOVS, 10}, {R_CR0, (uint16_t)(READ_CR(0) & 0xfffe)}};
    for (unsigned n = 0; n < sizeof(rules) / sizeof(*rules); n++)
        if (r[rules[n].number] != rules[n].want)
            return failed("realmode: result %u is %x instead of %x", rules[n].number, r[rules[n].number], rules[n].want);
    if (r[R_UD] < 1 || r[R_UD] > 2 || r[R_GP] > 1) /* VMMCALL may be one; CPUs in software know no limits */
        return failed("realmode: %u invalid opcodes, %u beyond the limit", r[R_UD], r[R_GP]);
    if (r[R_IRQ] < 3) /* a busy host may let two come at once */
        return failed("realmode: %u timer interrupts", r[R_IRQ]);
    for (unsigned n = 0; n < 74; n++)
        if (buffer[n] != (n < 14 || n >= 64 ? 0xff : 0))
            return failed("realmode: buffer byte %u is %02x", n, buffer[n]);
    return true;
}

static bool realmode(void)
{
    bool ok = true;
    for (uint64_t n = 0; n < count && ok; n++) {
        for (unsigned at = 0; at < sizeof(saved_low); at++)
            saved_low[at] = *low(at < LOW_BYTES ? LOW + at : at - LOW_BYTES);
        for (unsigned at = 0; at < LOW_BYTES; at++)
            *low(LOW + at) = rm_start + at < rm_end ? (uint8_t)rm_start[at] : 0;
        const struct { uint8_t vector; const char *handler; } vectors[] = {
            {0, rm_fault0}, {3, rm_int3}, {6, rm_fault6}, {13, rm_fault13}, {0x60, rm_soft}, {0x20, rm_irq}};
        for (unsigned k = 0; k < sizeof(vectors) / sizeof(*vectors); k++)
            *(volatile uint32_t *)low(4 * vectors[k].vector) = far_pointer(vectors[k].handler);
        mmio_write(LAPIC + 0x350, 0x700);
        real_mode();
        interrupts_sane();
        ok = check_results((volatile uint16_t *)low(LOW + (uint64_t)(rm_results - rm_start)), low(LOW + (uint64_t)(rm_buffer - rm_start)));
        for (unsigned at = 0; at < sizeof(saved_low); at++)
            *low(at < LOW_BYTES ? LOW + at : at - LOW_BYTES) = saved_low[at];
    }
    return ok;
}

/* ---- virtual-8086 mode and a task switch, under 32-bit and PAE paging ------------------------------------------------------------- */

extern char v86_start[], v86_end[], v86_results[], v86_buffer[], v86_gp[], v86_int[], v86_odd[], v86_task_b[], v86_stack_top[];
extern volatile uint32_t v86_gps, v86_tasks, v86_odds, v86_cr3, v86_cr4, v86_old_cr4, v86_switch;
struct pseudo { uint16_t limit; uint64_t base; } __attribute__((packed));
extern struct pseudo v86_gdt, v86_idt, v86_old_gdt;
void vm86_run(void);

asm(".pushsection .bss; .balign 16; v86_stack: .skip 4096; v86_stack_top:\n"
    ".macro cell name, bytes=4; .globl \\name; .balign 16; \\name: .skip \\bytes; .endm\n"
    "cell v86_gps; cell v86_tasks; cell v86_odds; cell v86_cr3; cell v86_cr4; cell v86_old_cr4; cell v86_switch\n"
    "cell v86_gdt 16; cell v86_idt 16; cell v86_old_gdt 16; .popsection\n"
    ".pushsection .text; .globl vm86_run; vm86_run: push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "mov %rsp, rm_rsp(%rip); sidt rm_idt(%rip); sgdt v86_old_gdt(%rip); lgdt v86_gdt(%rip); mov %cr4, %rax; mov %eax, v86_old_cr4(%rip)\n"
    "pushq $0x18; lea v86_32(%rip), %rax; push %rax; lretq\n"
    ".code32; v86_32: mov $0x10, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %ss; mov $v86_stack_top, %esp\n"
    "mov %cr0, %eax; and $0x7fffffff, %eax; mov %eax, %cr0; mov $0xc0000080, %ecx; rdmsr; and $~0x100, %eax; wrmsr\n"
    "mov v86_cr4, %eax; mov %eax, %cr4; mov v86_cr3, %eax; mov %eax, %cr3; mov %cr0, %eax; or $0x80000000, %eax; mov %eax, %cr0\n"
    "lidt v86_idt; mov $0x20, %eax; ltr %ax\n"
    "cmpl $0, v86_switch; je 1f; ljmp $0x28, $0; nop; incl v86_tasks; jmp v86_leave\n"
    "1: mov $0x800, %eax; push %eax; push %eax; push %eax; push %eax; push %eax; push $0x0ff0; push $0x23002; push %eax; push $0; iretl\n"
    "v86_task_b: incl v86_tasks; ljmp $0x20, $0\n"
    "v86_gp: add $4, %esp; incl %ss:v86_gps; incl (%esp); iretl\n" /* past a one-byte instruction */
    "v86_odd: incl %ss:v86_odds\n"
    "v86_int: mov $0x10, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %fs; mov %eax, %gs\n"
    "v86_leave: mov %cr0, %eax; and $0x7fffffff, %eax; mov %eax, %cr0; mov v86_old_cr4, %eax; mov %eax, %cr4; mov $tiny_pml4, %eax; mov %eax, %cr3\n"
    "jmp rm_back; .code64; .popsection\n"
    ".pushsection .rodata; .code16; .balign 16; v86_start: mov %cs, %ax; mov %ax, %ds; mov %ax, %es; cld\n"
    ".macro keep n, reg; mov \\reg, (v86_results - v86_start) + 2 * \\n; .endm\n"
    "in $0x80, %al; mov $0, %ah; keep 0, %ax; mov $0x1234, %dx; in %dx, %eax; keep 1, %ax; shr $16, %eax; keep 2, %ax\n"
    "mov $(v86_buffer - v86_start), %di; mov $7, %cx; rep insw; sub $(v86_buffer - v86_start), %di; keep 3, %di\n"
    "mov $0x80, %dx; xor %si, %si; mov $9, %cx; rep outsb; keep 4, %si; xor %eax, %eax; cpuid; keep 5, %bx\n"
    "smsw %ax; keep 6, %ax; mov $0xa000, %ax; mov %ax, %fs; mov %fs:0x30, %eax; keep 7, %ax; shr $16, %eax; keep 8, %ax\n"
    "movl $0x50, %fs:0x80; addl $0x10, %fs:0x80; mov %fs:0x80, %ax; keep 9, %ax; movl $0, %fs:0x80\n"
    "mov $0x30, %si; mov $(v86_buffer - v86_start + 32), %di; movsl %fs:(%si), %es:(%di); keep 10, %si\n"
    "pushf; pop %ax; keep 11, %ax; hlt; keep 12, %sp; int $0x70\n"
    ".balign 4; v86_results: .skip 32; v86_buffer: .skip 64; v86_end: .code64; .popsection\n");

static uint32_t pd32[1024] __attribute__((aligned(4096))), pt32[1024] __attribute__((aligned(4096)));
static uint64_t pdpt_pae[4] __attribute__((aligned(32))), pd_pae[2048] __attribute__((aligned(4096))), pt_pae[512] __attribute__((aligned(4096)));
static uint64_t gdt32[6] __attribute__((aligned(16))), idt32[256] __attribute__((aligned(16)));
/* 104 bytes, and a permission map that allows all ports: 8192 bytes and one of ones. */
static uint8_t tss_a[104 + 8193] __attribute__((aligned(4096))), tss_b[104] __attribute__((aligned(128)));

/* The first megabyte's video window leads to the local APIC. */
static void make_paging(bool pae)
{
    enum { P_W_U = 7, LARGE = 0x80 };
    for (uint32_t n = 0; n < 1024; n++) {
        pd32[n] = n << 22 | LARGE | P_W_U;
        pt32[n] = n << 12 | P_W_U;
    }
    for (uint64_t n = 0; n < 2048; n++)
        pd_pae[n] = n << 21 | LARGE | P_W_U;
    for (uint64_t n = 0; n < 512; n++)
        pt_pae[n] = n << 12 | P_W_U;
    pt32[0xa0] = LAPIC | P_W_U;
    pt_pae[0xa0] = LAPIC | P_W_U;
    pd32[0] = (uint32_t)(uint64_t)pt32 | P_W_U;
    pd_pae[0] = (uint64_t)pt_pae | P_W_U;
    for (unsigned n = 0; n < 4; n++)
        pdpt_pae[n] = (uint64_t)&pd_pae[512 * n] | 1;
    v86_cr3 = (uint32_t)(pae ? (uint64_t)pdpt_pae : (uint64_t)pd32);
    v86_cr4 = pae ? 0x20 : 0x10;
}

static void make_descriptors(void)
{
    const uint64_t a = (uint64_t)tss_a, b = (uint64_t)tss_b;
    const uint64_t d[] = {0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff,
                          (sizeof(tss_a) - 1) | (a & 0xffffff) << 16 | UINT64_C(0x89) << 40 | (a >> 24) << 56,
                          (sizeof(tss_b) - 1) | (b & 0xffffff) << 16 | UINT64_C(0x89) << 40 | (b >> 24) << 56};
    memcpy(gdt32, d, sizeof(d));
    for (unsigned n = 0; n < 256; n++) {
        uint64_t at = (uint64_t)(n == 13 ? v86_gp : n == 0x70 ? v86_int : v86_odd);
        idt32[n] = (at & 0xffff) | 0x18 << 16 | (n == 0x70 ? UINT64_C(0xee00) : UINT64_C(0x8e00)) << 32 | (at >> 16) << 48;
    }
    memset(tss_a, 0, sizeof(tss_a));
    memset(tss_b, 0, sizeof(tss_b));
    *(uint32_t *)(tss_a + 4) = (uint32_t)(uint64_t)v86_stack_top - 512;
    *(uint32_t *)(tss_a + 8) = 0x10;
    *(uint16_t *)(tss_a + 102) = 104;
    tss_a[sizeof(tss_a) - 1] = 0xff;
    *(uint32_t *)(tss_b + 28) = v86_cr3;
    *(uint32_t *)(tss_a + 28) = v86_cr3; /* a switch does not save it */
    *(uint32_t *)(tss_b + 32) = (uint32_t)(uint64_t)v86_task_b;
    *(uint32_t *)(tss_b + 36) = 2;
    *(uint32_t *)(tss_b + 56) = (uint32_t)(uint64_t)v86_stack_top - 1024;
    const uint8_t segments[] = {72, 80, 84, 88, 92}; /* ES SS DS FS GS */
    for (unsigned n = 0; n < sizeof(segments); n++)
        *(uint16_t *)(tss_b + segments[n]) = 0x10;
    *(uint16_t *)(tss_b + 76) = 0x18;
    v86_gdt = (struct pseudo){sizeof(gdt32) - 1, (uint64_t)gdt32};
    v86_idt = (struct pseudo){sizeof(idt32) - 1, (uint64_t)idt32};
}

static bool check_v86(const volatile uint16_t *r, const volatile uint8_t *buffer, bool pae)
{
    uint32_t version = mmio_read(LAPIC + 0x30), copied = *(const volatile uint32_t *)(buffer + 32);
    const uint16_t want[] = {0xff, 0xffff, 0xffff, 14, 9, (uint16_t)cpuid(0, 0).b, (uint16_t)READ_CR(0), (uint16_t)version, (uint16_t)(version >> 16),
                             0x60, 0x34, 0x3002, 0x0ff0};
    for (unsigned n = 0; n < sizeof(want) / sizeof(*want); n++)
        if (n == 11 ? (r[n] & 0x7002) != want[n] : r[n] != want[n])
            return failed("vm86: result %u is %x instead of %x%s", n, r[n], want[n], pae ? " (PAE)" : "");
    for (unsigned n = 0; n < 16; n++)
        if (buffer[n] != (n < 14 ? 0xff : 0))
            return failed("vm86: buffer byte %u is %02x", n, buffer[n]);
    return (copied == version && v86_gps == 1 && !v86_odds) || failed("vm86: copied %x, %u #GP, %u other traps", copied, v86_gps, v86_odds);
}

static bool legacy_round(bool pae)
{
    make_paging(pae);
    make_descriptors();
    v86_gps = v86_odds = v86_tasks = 0;
    vm86_run();
    asm volatile("lgdt %0" :: "m"(v86_old_gdt));
    return true;
}

static bool vm86(void)
{
    bool ok = true;
    v86_switch = 0;
    for (uint64_t n = 0; n < count && ok; n++) {
        for (unsigned at = 0; at < LOW_BYTES; at++) {
            saved_low[at] = *low(LOW + at);
            *low(LOW + at) = v86_start + at < v86_end ? (uint8_t)v86_start[at] : 0;
        }
        legacy_round(n & 1);
        ok = check_v86((volatile uint16_t *)low(LOW + (uint64_t)(v86_results - v86_start)), low(LOW + (uint64_t)(v86_buffer - v86_start)), n & 1);
        for (unsigned at = 0; at < LOW_BYTES; at++)
            *low(LOW + at) = saved_low[at];
    }
    return ok;
}

/* There and back by two far jumps to task state segments. A back end that must do this in software may stop the VM instead. */
static bool tasks(void)
{
    v86_switch = 1;
    for (uint64_t n = 0; n < count; n++) {
        legacy_round(n & 1);
        if (v86_tasks != 2 || v86_odds || v86_gps)
            return failed("tasks: %u of 2 arrivals, %u #GP, %u other traps", v86_tasks, v86_gps, v86_odds);
    }
    return true;
}

const struct mode real_modes[] = {{"realmode", realmode, 20}, {"vm86", vm86, 20}, {"tasks", tasks, 20}, {}};
