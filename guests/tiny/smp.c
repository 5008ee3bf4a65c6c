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
#include "lib/cpus.h"

enum { VECTOR_TOKEN = 0x50, VECTOR_ALL = 0x51, GS_BASE = 0xc0000101, KVM_CLOCK = 0x4b564d01 };

struct pvclock { volatile uint32_t version, pad; volatile uint64_t tsc, ns; volatile uint32_t mul; volatile int8_t shift; uint8_t flags, pad2[2]; };

static struct cpu {
    uint64_t index;
    volatile uint64_t token, acks, nmis, count;
    struct pvclock clock __attribute__((aligned(64)));
} cpus[CPUS_MAX] __attribute__((aligned(64)));
static uint64_t cpu_total, loops, seed, pages, memory;
static volatile uint64_t wrong; /* set by the first that finds something; the fields below are its */
static uint64_t wrong_at, wrong_cpu, wrong_expected, wrong_found;
static const char *wrong_what;

static struct cpu *me(void)
{
    struct cpu *c;
    asm("mov %%gs:0, %0" : "=r"(c));
    return c;
}

static struct cpu *self_of[CPUS_MAX];
/* The start order decides the index, so a token's next CPU is found by what its APIC says. */
static uint64_t apic_id_of[CPUS_MAX];

static void init_this(uint64_t index)
{
    cpus[index].index = index;
    self_of[index] = &cpus[index];
    wrmsr(GS_BASE, (uint64_t)&self_of[index]);
    wrmsr(KVM_CLOCK, (uint64_t)&cpus[index].clock | 1);
    apic_id_of[index] = rdmsr(APIC_ID);
}

/* ---- together -------------------------------------------------------------------------------------------------------------------- */

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
    cpus_barrier();
    for (uint64_t page = 0; page < pages; page++) {
        volatile uint64_t *p = (void *)(memory + page * 4096);
        for (unsigned w = 0; owner_of(page, round) == checks && w < 512; w++)
            if (p[w] != pattern(page, w, round, checks))
                complain("gpa", (uint64_t)&p[w], pattern(page, w, round, checks), p[w]);
    }
    cpus_barrier();
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
        send_ipi(VECTOR_TOKEN | 1 << 14, apic_id_of[1 % cpu_total]);
    sleep_until(&me()->token, round + 1);
    if (i)
        send_ipi(VECTOR_TOKEN | 1 << 14, apic_id_of[(i + 1) % cpu_total]);
}

static void broadcasts(uint64_t count)
{
    if (me()->index == 0)
        for (uint64_t n = 1; n <= count; n++) {
            uint64_t nmis = all_nmis;
            send_ipi(VECTOR_ALL | 1 << 14 | 3 << 18, 0);
            while (all_acks < n * (cpu_total - 1))
                pause();
            send_ipi(4 << 8 | 1 << 14 | 3 << 18, 0);
            while (all_nmis < nmis + cpu_total - 1)
                pause();
        }
    if (me()->index == 0 && (all_acks != count * (cpu_total - 1) || all_nmis != count * (cpu_total - 1)))
        complain("broadcasts", count, count * (cpu_total - 1), all_acks);
    if (me()->index)
        sleep_until(&all_acks, count * (cpu_total - 1));
    cpus_barrier();
}

static void ipi_rounds(void)
{
    asm volatile("sti");
    cpus_barrier();
    for (uint64_t r = 0; r < loops * 20; r++)
        token_round(r);
    cpus_barrier();
    me()->token = 0;
    if (cpu_total > 1)
        broadcasts(loops * 5);
    asm volatile("cli");
    cpus_barrier();
    if (me()->index == 0)
        all_acks = all_nmis = 0;
    cpus_barrier();
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
    cpus_barrier();
    if (i == 0)
        clock_turn = 0;
    cpus_barrier();
}

/* ---- lock, spin ----------------------------------------------------------------------------------------------------------------------- */

static volatile uint64_t ticket_next, ticket_owner, guarded;

static void lock_rounds(void)
{
    uint64_t before = guarded;
    cpus_barrier();
    for (uint64_t n = 0; n < loops * 100; n++) {
        uint64_t mine = add(&ticket_next, 1);
        while (ticket_owner != mine)
            pause();
        guarded = guarded + 1;
        __atomic_store_n(&ticket_owner, mine + 1, __ATOMIC_SEQ_CST);
    }
    cpus_barrier();
    if (me()->index == 0 && guarded - before != loops * 100 * cpu_total)
        complain("counter", 0, loops * 100 * cpu_total, guarded - before);
    cpus_barrier();
}

static void spin(uint64_t seconds)
{
    uint64_t end = clock_ns(&me()->clock) + seconds * 1000000000;
    while (clock_ns(&me()->clock) < end)
        me()->count++;
    cpus_barrier();
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
        cpus_barrier();
        if (me()->index == 0) {
            stop = wrong || !do_forever;
            if (!stop)
                print("smp: loop %lu ok\n", ++lap);
        }
        cpus_barrier();
    } while (!stop);
}

static void begin(uint64_t index)
{
    init_this(index);
    cpus_barrier();
    run();
    for (;;)
        asm volatile("cli\n hlt");
}

int tiny_main(void)
{
    uint64_t end;
    cpu_total = arg_u64("cpus", cpus_present());
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
    cpus_start(cpu_total, begin);
    init_this(0);
    print("smp: %lu vCPUs, %lu pages\n", cpu_total, pages);
    cpus_barrier();
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
