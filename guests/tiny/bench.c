/*
 * Costs as the guest sees them, in TSC ticks: `bench: NAME median=.. p99=.. n=..`. Under instruction counting a tick is an instruction, and
 * two runs agree to the last digit. `n=` samples each (default 1000); the cost of reading the clock twice is taken off.
 * first_touch_4k touches every third page, so that no neighbour is mapped along; whether these are 4 KiB mappings is up to the policy.
 * `only=sequential` and `only=large` (8 touches, 2 MiB apart) do just that, so that the counters of the VM are theirs; `only=ipi`, for two vCPUs,
 * has an interrupt go from one to the other, which is halted, and back.
 *
 * With `share` on the command line it fills pages in equal pairs, prints `bench: waiting` and waits for a key, until when somebody has had
 * them shared; then it writes to one of each pair, which is copied, and to the other, which is alone then and is not. With `secure` it does nothing
 * but fill equal pairs with a page that is like no other between them, and as many that are all equal, wait, and read one of each pair, then those
 * like no other, then those that are all equal.
 */
#include "lib/cpus.h"

#define MAX_SAMPLES 4096

static uint64_t sample[MAX_SAMPLES], overhead;

static void sort(uint64_t n)
{
    for (uint64_t gap = n / 2; gap; gap /= 2)
        for (uint64_t i = gap; i < n; i++) {
            uint64_t v = sample[i], j = i;
            for (; j >= gap && sample[j - gap] > v; j -= gap)
                sample[j] = sample[j - gap];
            sample[j] = v;
        }
}

static void report(const char *name, uint64_t n)
{
    sort(n);
    for (uint64_t i = 0; i < n; i++)
        sample[i] = sample[i] > overhead ? sample[i] - overhead : 0;
    print("bench: %s median=%lu p99=%lu n=%lu\n", name, sample[n / 2], sample[n * 99 / 100], n);
}

#define MEASURE(name, count, statement)                                                                    \
    do {                                                                                                   \
        for (uint64_t i_ = 0; i_ < (count); i_++) {                                                        \
            uint64_t begin_ = rdtsc();                                                                     \
            statement;                                                                                     \
            sample[i_] = rdtsc() - begin_;                                                                 \
        }                                                                                                  \
        report(name, count);                                                                               \
    } while (0)

static void hypercall_amd(void) { uint64_t a = 99; asm volatile("vmmcall" : "+a"(a) :: "memory"); }
static void hypercall_intel(void) { uint64_t a = 99; asm volatile("vmcall" : "+a"(a) :: "memory"); }

static void touch(uint64_t gpa) { *(volatile uint64_t *)gpa = gpa; }

static uint64_t untouched, memory_end;

/* One every `step`, each its own fault. */
static void bench_first_touch(const char *name, uint64_t n, uint64_t step)
{
    if (untouched + n * step >= memory_end)
        return;
    MEASURE(name, n, (touch(untouched), untouched += step));
    untouched = (untouched + (2 << 20) - 1) & ~UINT64_C(0x1fffff);
}

static void bench_sequential(void)
{
    if (untouched + (64 << 20) > memory_end)
        return;
    uint64_t begin = rdtsc();
    for (uint64_t k = 0; k < 64 << 20; k += 4096)
        touch(untouched + k);
    print("bench: touch_64m_sequential median=%lu p99=%lu n=1\n", rdtsc() - begin, UINT64_C(0));
    untouched += 64 << 20;
}

/* Walking through so much memory uses up what the hypervisor has cleared ahead, for nothing is idle: the next touches find frames that are not. */
static void bench_touch(uint64_t n)
{
    bench_first_touch("first_touch_4k", n, 3 * 4096);
    bench_sequential();
    bench_first_touch("first_touch_4k_cleared", n, 3 * 4096);
}

/*
 * From the deadline of the APIC timer to the interrupt handler of a halted guest. A deadline that is over before the HLT would
 * measure something else, so it lies a good way off. The handler takes the time; what is after it is not the wake-up's.
 */
static volatile uint64_t woken;

static void wake(unsigned vector)
{
    (void)vector;
    woken = rdtsc();
    wrmsr(APIC_EOI, 0);
}

static void bench_halt(uint64_t n)
{
    enum { VECTOR = 0x40, AHEAD = 2000000, LVT_TIMER = 0x832, TSC_DEADLINE_MODE = 2 << 17, DEADLINE = 0x6e0 };
    if ((cpuid(1, 0).c & (1u << 21 | 1u << 24)) != (1u << 21 | 1u << 24)) /* x2APIC and deadline mode: not in every emulator */
        return;
    on_interrupt = wake;
    apic_enable();
    wrmsr(LVT_TIMER, TSC_DEADLINE_MODE | VECTOR);
    asm volatile("mfence"); /* SDM 3, 11.5.4.1 */
    for (uint64_t k = 0; k < n; k++) {
        uint64_t due = rdtsc() + AHEAD;
        wrmsr(DEADLINE, due);
        asm volatile("sti\n hlt\n cli");
        sample[k] = woken - due + overhead; /* the deadline is no reading: nothing is to be taken off */
    }
    report("hlt_timer", n);
}

/* From the write of the command to the handler: the exit, the delivery and the entry. */
static void bench_ipi(uint64_t n)
{
    enum { VECTOR = 0x41, SELF_IPI = 0x83f };
    if (!(cpuid(1, 0).c & 1u << 21))
        return;
    on_interrupt = wake;
    apic_enable();
    for (uint64_t k = 0; k < n; k++) {
        woken = 0;
        asm volatile("sti");
        uint64_t begin = rdtsc();
        wrmsr(SELF_IPI, VECTOR);
        while (!woken)
            pause();
        asm volatile("cli");
        sample[k] = woken - begin;
    }
    report("ipi_self", n);
}

/* To another vCPU and back: both sleep while it is the other's turn, so nothing of what is counted is waiting. Their TSCs are not compared. */
enum { VECTOR_BALL = 0x42 }; /* and the next: each is for one of the two */
static volatile uint64_t balls[2];

static void caught(unsigned vector)
{
    balls[vector - VECTOR_BALL]++;
    wrmsr(APIC_EOI, 0);
}

/* STI's shadow covers the HLT. */
static void sleep_until(volatile uint64_t *count, uint64_t at_least)
{
    while (*count < at_least)
        asm volatile("sti\n hlt\n cli" ::: "memory");
}

static void other_player(uint64_t index)
{
    (void)index;
    for (uint64_t k = 1;; k++) {
        sleep_until(&balls[1], k);
        send_ipi(VECTOR_BALL | 1 << 14, 0);
    }
}

static void bench_ipi_other(uint64_t n)
{
    on_interrupt = caught;
    if (cpus_present() < 2)
        return;
    cpus_start(2, other_player);
    for (uint64_t k = 0; k < n; k++) {
        uint64_t begin = rdtsc();
        send_ipi((VECTOR_BALL + 1) | 1 << 14, 1);
        sleep_until(&balls[0], k + 1);
        sample[k] = rdtsc() - begin;
    }
    report("ipi_other", n);
}

/* The same work as a copy by the hypervisor, for comparison: the two pages are the guest's own. */
static void copy_page(uint64_t to, uint64_t from)
{
    uint64_t words = 512;
    asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) :: "memory");
}

/* Two neighbours are equal, and every third page is like no other. */
static uint64_t fill_pages(uint64_t pages)
{
    uint64_t base, end;
    free_memory(&base, &end);
    base = end - pages * 4096; /* what nobody has touched yet */
    for (uint64_t k = 0; k < pages; k++)
        for (uint64_t n = 0; n < 512; n++)
            ((volatile uint64_t *)base)[k * 512 + n] = ((k % 3 == 1 ? k - 1 : k) * 512 + n + 1) * UINT64_C(0x9e3779b97f4a7c15);
    return base;
}

/* Until a key comes. */
static void wait_for_key(void)
{
    enum { COM1 = 0x3f8, LSR_DATA = 1 };
    print("bench: waiting\n");
    while (!(inb(COM1 + 5) & LSR_DATA))
        pause();
    inb(COM1);
}

static void bench_share(uint64_t n)
{
    uint64_t base = fill_pages(3 * n), at = base, other = base + 4096;
    MEASURE("copy_page", n, copy_page(base, base + 4096));
    wait_for_key();
    MEASURE("cow_break", n, (touch(at), at += 3 * 4096));
    MEASURE("cow_alone", n, (touch(other), other += 3 * 4096));
}

static uint64_t look(uint64_t gpa) { return *(volatile uint64_t *)gpa; }

static uint64_t time_to_look(uint64_t gpa)
{
    uint64_t begin = rdtsc();
    look(gpa);
    return rdtsc() - begin;
}

/* One of each kind in turn: what a read costs may depend on how many pages were unsealed before it, and must not depend on the kind. */
enum { KINDS = 3 };
static uint64_t samples_of[KINDS][MAX_SAMPLES];

static void bench_secure(uint64_t n)
{
    uint64_t base = fill_pages(4 * n), at = base, alone = base + 2 * 4096, many = base + 3 * n * 4096;
    for (uint64_t k = 0; k < n; k++)
        copy_page(many + k * 4096, base + 3 * n * 4096);
    wait_for_key();
    const struct { const char *name; uint64_t first, step; } kinds[KINDS] = {
        {"read_equal", at, 3 * 4096}, {"read_alone", alone, 3 * 4096}, {"read_many", many, 4096},
    };
    for (uint64_t k = 0; k < n; k++)
        for (unsigned kind = 0; kind < KINDS; kind++)
            samples_of[kind][k] = time_to_look(kinds[kind].first + k * kinds[kind].step);
    for (unsigned kind = 0; kind < KINDS; kind++) {
        for (uint64_t k = 0; k < n; k++)
            sample[k] = samples_of[kind][k];
        report(kinds[kind].name, n);
    }
    MEASURE("read_again", n, (look(at), at += 3 * 4096));
}

int tiny_main(void)
{
    uint64_t n = arg_u64("n", 1000);
    bool amd = on_amd(), share = arg("share"), secure = arg("secure");
    n = n > MAX_SAMPLES ? MAX_SAMPLES : n < 10 ? 10 : n;
    /* Not on a bare machine; and the first one has its length looked up. */
    bool hypercalls = (amd ? TRY("vmmcall", ::: "rax", "r15", "memory") : TRY("vmcall", ::: "rax", "r15", "memory")) < 0;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t begin = rdtsc();
        sample[i] = rdtsc() - begin;
    }
    sort(n);
    overhead = sample[n / 2];
    print("bench: overhead median=%lu p99=%lu n=%lu\n", overhead, sample[n * 99 / 100], n);
    uint64_t base;
    free_memory(&base, &memory_end);
    untouched = (base + (2 << 20) - 1) & ~UINT64_C(0x1fffff);
    if (arg("only")) {
        if (arg_is("only", "sequential"))
            bench_sequential();
        else if (arg_is("only", "ipi"))
            bench_ipi_other(n < 200 ? n : 200);
        else
            bench_first_touch("first_touch_2m", 8, 2 << 20);
        print("bench: done\n");
        return 0;
    }
    if (secure) {
        bench_secure(n);
        print("bench: done\n");
        return 0;
    }
    MEASURE("cpuid", n, cpuid(0, 0));
    MEASURE("cpuid_features", n, cpuid(1, 0));
    if (hypercalls && amd)
        MEASURE("hypercall", n, hypercall_amd());
    else if (hypercalls)
        MEASURE("hypercall", n, hypercall_intel());
    MEASURE("port_out_absent", n, outb(0x80, 0));
    MEASURE("port_in_absent", n, inb(0x80));
    MEASURE("port_in_uart", n, inb(0x3fd));
    MEASURE("rdmsr_apic_base", n, rdmsr(0x1b));
    bench_touch(n);
    if (share)
        bench_share(n);
    bench_ipi(n);
    bench_halt(n < 200 ? n : 200); /* the last: an idle CPU clears frames ahead, and the first touches would be cheaper */
    print("bench: done\n");
    return 0;
}
