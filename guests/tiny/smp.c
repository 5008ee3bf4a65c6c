/*
 * Several vCPUs that check each other: `mode=mem|ipi|clock|lock|spin|all`, `cpus=N` (all that CPUID's topology leaf names), `loops=N`,
 * `pages=N`, `seed=S`, `seconds=N`, `forever`.
 *
 * mem    Pages change hands each round: the owner fills its pages with a pattern of place, round and owner, and after a barrier somebody else
 *        checks every word. Neighbouring pages have different owners, so faults of all vCPUs meet in the same 2 MiB.
 * ipi    A token goes round by interrupts, and everybody else sleeps in HLT: a lost wake-up is a guest that hangs. Then broadcasts and NMIs,
 *        each acknowledged by all.
 * clock  The TSC and KVM's clock record, read in turn: the next reader must not be earlier than the last.
 * lock   A ticket lock with PAUSE, and a counter that must be exact.
 * spin   Counts without an exit, for so many seconds; prints each vCPU's count.
 *
 * It ends with `smp: ok`, or with `smp: WRONG ...` and value 1.
 */
#include "tiny.h"

enum { CPUS_MAX = 64, STACK_BYTES = 8192, TRAMPOLINE = 0x8000, VECTOR_TOKEN = 0x50, VECTOR_ALL = 0x51 };
enum { APIC_BASE = 0x1b, APIC_ID = 0x802, APIC_EOI = 0x80b, APIC_SVR = 0x80f, APIC_ICR = 0x830, GS_BASE = 0xc0000101, KVM_CLOCK = 0x4b564d01 };

struct pvclock { volatile uint32_t version, pad; volatile uint64_t tsc, ns; volatile uint32_t mul; volatile int8_t shift; uint8_t flags, pad2[2]; };

static struct cpu {
    uint64_t index;
    volatile uint64_t token, acks, nmis, count;
    struct pvclock clock __attribute__((aligned(64)));
} cpus[CPUS_MAX] __attribute__((aligned(64)));
static uint8_t stacks[CPUS_MAX][STACK_BYTES] __attribute__((aligned(16)));
static uint64_t cpu_total, loops, seed, pages, memory;
static volatile uint64_t started, go, arrived, phase;
static volatile uint64_t wrong; /* set by the first that finds something; the fields below are its */
static uint64_t wrong_at, wrong_cpu, wrong_expected, wrong_found;
static const char *wrong_what;
struct idt_ptr { uint16_t limit; uint64_t base; } __attribute__((packed));
static struct idt_ptr idt_ptr;

/* ---- starting ------------------------------------------------------------------------------------------------------------------- */

extern char smp_start[], smp_end[];
void smp_main(uint64_t index);
asm(".pushsection .text\n"
    ".code16\n.globl smp_start, smp_end, smp_long\n"
    "smp_start: cli\n xor %ax, %ax\n mov %ax, %ds\n"
    "lgdtl (smp_gdt - smp_start + 0x8000)\n"
    "mov $0x620, %eax\n mov %eax, %cr4\n"
    "mov $tiny_pml4, %eax\n mov %eax, %cr3\n"
    "mov $0xc0000080, %ecx\n xor %edx, %edx\n mov $0x100, %eax\n wrmsr\n"
    "mov $0x80000031, %eax\n mov %eax, %cr0\n"
    "ljmpl $8, $smp_long\n"
    ".balign 8\nsmp_gdt: .word 63\n .long tiny_gdt\n"
    "smp_end:\n"
    ".code64\nsmp_long: mov $16, %eax\n mov %eax, %ds\n mov %eax, %es\n mov %eax, %ss\n"
    "mov $1, %edi\n lock xadd %rdi, smp_ticket(%rip)\n"
    "lea 1(%rdi), %rax\n shl $13, %rax\n lea smp_stacks(%rip), %rsp\n mov (%rsp), %rsp\n add %rax, %rsp\n"
    "xor %ebp, %ebp\n call smp_main\n ud2\n"
    ".popsection\n"
    ".pushsection .data\n .balign 8\nsmp_ticket: .quad 1\n.popsection\n");
uint64_t smp_stacks;
_Static_assert(STACK_BYTES == 1 << 13, "smp_long");

static struct cpu *me(void)
{
    struct cpu *c;
    asm("mov %%gs:0, %0" : "=r"(c));
    return c;
}

static void pause(void) { asm volatile("pause"); }
static uint64_t add(volatile uint64_t *p, uint64_t n) { return __atomic_fetch_add(p, n, __ATOMIC_SEQ_CST); }

static void command(uint64_t low, uint64_t dest) { wrmsr(APIC_ICR, dest << 32 | low); }

static struct cpu *self_of[CPUS_MAX];

static void init_this(uint64_t index)
{
    cpus[index].index = index;
    self_of[index] = &cpus[index];
    wrmsr(GS_BASE, (uint64_t)&self_of[index]);
    wrmsr(APIC_BASE, rdmsr(APIC_BASE) | 1 << 10 | 1 << 11);
    wrmsr(APIC_SVR, 0x1ff);
    wrmsr(KVM_CLOCK, (uint64_t)&cpus[index].clock | 1);
}

static void wait_ns(uint64_t ns);

/* The start order decides the index, so a token's next CPU is found by what its APIC says. */
static uint64_t apic_id_of[CPUS_MAX];

static void start_others(void)
{
    smp_stacks = (uint64_t)stacks;
    memcpy((void *)TRAMPOLINE, smp_start, (size_t)(smp_end - smp_start));
    asm volatile("sidt %0" : "=m"(idt_ptr));
    command(0x000c4500, 0);              /* INIT to all but self */
    wait_ns(10000000);
    for (unsigned n = 0; n < 2; n++) {
        command(0x000c4600 | TRAMPOLINE >> 12, 0);
        wait_ns(200000);
    }
    while (started + 1 < cpu_total)
        pause();
}

/* ---- together -------------------------------------------------------------------------------------------------------------------- */

static void barrier(void)
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

static void complain(const char *what, uint64_t at, uint64_t expected, uint64_t found)
{
    if (add(&wrong, 1))
        return;
    wrong_cpu = me()->index;
    wrong_at = at;
    wrong_expected = expected;
    wrong_found = found;
    wrong_what = what;
}

static uint64_t pattern(uint64_t page, uint64_t word, uint64_t round, uint64_t owner)
{
    uint64_t x = (page << 9 | word) * 0x9e3779b97f4a7c15 + round * 0xbf58476d1ce4e5b9 + owner * 0x94d049bb133111eb + seed;
    return x ^ x >> 29;
}

static uint64_t owner_of(uint64_t page, uint64_t round) { return (page + round) % cpu_total; }

/* In an order of its own: every other page is tried from the end. */
static void mem_round(uint64_t round)
{
    uint64_t i = me()->index, checks = (i + 1) % cpu_total;
    for (uint64_t n = 0; n < pages; n++) {
        uint64_t page = n & 1 ? pages - 1 - n / 2 : n / 2;
        volatile uint64_t *p = (void *)(memory + page * 4096);
        for (unsigned w = 0; owner_of(page, round) == i && w < 512; w++)
            p[w] = pattern(page, w, round, i);
    }
    barrier();
    for (uint64_t page = 0; page < pages; page++) {
        volatile uint64_t *p = (void *)(memory + page * 4096);
        for (unsigned w = 0; owner_of(page, round) == checks && w < 512; w++)
            if (p[w] != pattern(page, w, round, checks))
                complain("gpa", (uint64_t)&p[w], pattern(page, w, round, checks), p[w]);
    }
    barrier();
}

/* ---- interrupts ------------------------------------------------------------------------------------------------------------------- */

static volatile uint64_t all_acks, all_nmis;

static void interrupted(unsigned vector)
{
    if (vector == VECTOR_TOKEN)
        me()->token++;
    else if (vector == VECTOR_ALL)
        add(&all_acks, 1);
    wrmsr(APIC_EOI, 0);
}

static bool trapped(struct trap_frame *f)
{
    if (f->vector != 2)
        return false;
    add(&all_nmis, 1);
    return true;
}

/* STI's shadow covers the HLT: an interrupt between the look and the sleep ends the sleep. */
static void sleep_until(volatile uint64_t *value, uint64_t at_least)
{
    for (;;) {
        asm volatile("cli" ::: "memory");
        if (*value >= at_least)
            break;
        asm volatile("sti\n hlt" ::: "memory");
    }
    asm volatile("sti" ::: "memory");
}

static void token_round(uint64_t round)
{
    uint64_t i = me()->index;
    if (i == 0)
        command(VECTOR_TOKEN | 1 << 14, apic_id_of[1 % cpu_total]);
    sleep_until(&me()->token, round + 1);
    if (i)
        command(VECTOR_TOKEN | 1 << 14, apic_id_of[(i + 1) % cpu_total]);
}

static void broadcasts(uint64_t count)
{
    if (me()->index == 0)
        for (uint64_t n = 1; n <= count; n++) {
            uint64_t nmis = all_nmis;
            command(VECTOR_ALL | 1 << 14 | 3 << 18, 0);
            while (all_acks < n * (cpu_total - 1))
                pause();
            command(4 << 8 | 1 << 14 | 3 << 18, 0);
            while (all_nmis < nmis + cpu_total - 1)
                pause();
        }
    if (me()->index == 0 && (all_acks != count * (cpu_total - 1) || all_nmis != count * (cpu_total - 1)))
        complain("broadcasts", count, count * (cpu_total - 1), all_acks);
    if (me()->index)
        sleep_until(&all_acks, count * (cpu_total - 1));
    barrier();
}

static void ipi_rounds(void)
{
    asm volatile("sti");
    barrier();
    for (uint64_t r = 0; r < loops * 20; r++)
        token_round(r);
    barrier();
    me()->token = 0;
    if (cpu_total > 1)
        broadcasts(loops * 5);
    asm volatile("cli");
    barrier();
    if (me()->index == 0)
        all_acks = all_nmis = 0;
    barrier();
}

/* ---- time -------------------------------------------------------------------------------------------------------------------------- */

static uint64_t clock_ns(const struct pvclock *c)
{
    for (;;) {
        uint32_t version = c->version;
        uint64_t delta = rdtsc() - c->tsc;
        delta = c->shift < 0 ? delta >> -c->shift : delta << c->shift;
        uint64_t ns = c->ns + (uint64_t)((unsigned __int128)delta * c->mul >> 32);
        if (!(version & 1) && c->version == version)
            return ns;
    }
}

static void wait_ns(uint64_t ns)
{
    uint64_t begun = clock_ns(&cpus[0].clock);
    while (clock_ns(&cpus[0].clock) - begun < ns)
        pause();
}

static volatile uint64_t clock_turn, last_tsc, last_ns;

static void clock_rounds(void)
{
    uint64_t i = me()->index;
    for (uint64_t n = 0; n < loops * 100; n++) {
        while (clock_turn != n * cpu_total + i)
            pause();
        asm volatile("lfence");
        uint64_t tsc = rdtsc(), ns = clock_ns(&me()->clock);
        if (tsc < last_tsc)
            complain("tsc", n, last_tsc, tsc);
        if (ns < last_ns)
            complain("clock", n, last_ns, ns);
        last_tsc = tsc;
        last_ns = ns;
        __atomic_store_n(&clock_turn, clock_turn + 1, __ATOMIC_SEQ_CST);
    }
    barrier();
    if (i == 0)
        clock_turn = 0;
    barrier();
}

/* ---- lock, spin ----------------------------------------------------------------------------------------------------------------------- */

static volatile uint64_t ticket_next, ticket_owner, guarded;

static void lock_rounds(void)
{
    uint64_t before = guarded;
    barrier();
    for (uint64_t n = 0; n < loops * 100; n++) {
        uint64_t mine = add(&ticket_next, 1);
        while (ticket_owner != mine)
            pause();
        guarded = guarded + 1;
        __atomic_store_n(&ticket_owner, mine + 1, __ATOMIC_SEQ_CST);
    }
    barrier();
    if (me()->index == 0 && guarded - before != loops * 100 * cpu_total)
        complain("counter", 0, loops * 100 * cpu_total, guarded - before);
    barrier();
}

static void spin(uint64_t seconds)
{
    uint64_t end = clock_ns(&me()->clock) + seconds * 1000000000;
    while (clock_ns(&me()->clock) < end)
        me()->count++;
    barrier();
}

/* ---- modes ------------------------------------------------------------------------------------------------------------------------------ */

static bool wants(const char *mode)
{
    return arg_is("mode", mode) || (arg_is("mode", "all") && mode[0] != 's');
}

static volatile uint64_t stop;
static uint64_t seconds;
static bool do_mem, do_ipi, do_clock, do_lock, do_spin, do_forever; /* the argument parser has one buffer */

static void run(void)
{
    uint64_t round = 0, lap = 0;
    do {
        for (uint64_t n = 0; do_mem && n < loops; n++)
            mem_round(round++);
        if (do_ipi)
            ipi_rounds();
        if (do_clock)
            clock_rounds();
        if (do_lock)
            lock_rounds();
        if (do_spin)
            spin(seconds);
        barrier();
        if (me()->index == 0) {
            stop = wrong || !do_forever;
            if (!stop)
                print("smp: loop %lu ok\n", ++lap);
        }
        barrier();
    } while (!stop);
}

void smp_main(uint64_t index)
{
    asm volatile("lidt %0" :: "m"(idt_ptr));
    init_this(index);
    apic_id_of[index] = rdmsr(APIC_ID);
    add(&started, 1);
    while (!go)
        pause();
    run();
    for (;;)
        asm volatile("cli\n hlt");
}

int tiny_main(void)
{
    uint64_t end, all = cpuid(0xb, 1).b & 0xffff;
    cpu_total = arg_u64("cpus", all ? all : 1);
    loops = arg_u64("loops", 3);
    seed = arg_u64("seed", 1);
    seconds = arg_u64("seconds", 3);
    do_mem = wants("mem");
    do_ipi = wants("ipi");
    do_clock = wants("clock");
    do_lock = wants("lock");
    do_spin = arg_is("mode", "spin");
    do_forever = arg("forever");
    free_memory(&memory, &end);
    memory = (memory + 4095) & ~UINT64_C(4095);
    pages = arg_u64("pages", 2000);
    if (memory + pages * 4096 > end)
        pages = (end - memory) / 4096;
    if (cpu_total < 1 || cpu_total > CPUS_MAX || !(do_mem || do_ipi || do_clock || do_lock || do_spin)) {
        print("smp: no mode, or more than %u cpus\n", CPUS_MAX);
        return 2;
    }
    on_interrupt = interrupted;
    on_trap = trapped;
    init_this(0);
    apic_id_of[0] = rdmsr(APIC_ID);
    if (cpu_total > 1)
        start_others();
    print("smp: %lu vCPUs, %lu pages\n", cpu_total, pages);
    go = 1;
    run();
    for (uint64_t n = 0; do_spin && n < cpu_total; n++)
        print("smp: cpu %lu count %lu\n", n, cpus[n].count);
    if (wrong) {
        print("smp: WRONG %s=%lx cpu=%lu expected=%lx found=%lx (%lu in all)\n", wrong_what, wrong_at, wrong_cpu, wrong_expected, wrong_found, wrong);
        return 1;
    }
    print("smp: ok\n");
    return 0;
}
