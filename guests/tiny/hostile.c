/*
 * The hostile guest: does what no well-behaved system does, in modes of which each tries one door. `mode=NAME seed=S count=N lenient=WHAT`,
 * or `list`. Where the right result is known (a hole reads as ones, VMRUN is #UD) it is checked; where it is not, what counts is that the
 * hypervisor, its other guests and, unless the mode is made to end it, this VM go on. The sequence depends on the seed alone.
 */
#include "hostile/hostile.h"

uint64_t seed, count;
struct trap_frame attempt_frame;
volatile uint64_t nmis, debug_traps;
volatile bool nmi_lands;

static uint64_t random_state;

uint64_t rnd(void) { return random_next(&random_state); }

uint64_t rnd_value(void)
{
    static const uint64_t edges[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX, BIT(63), BIT(47)};
    uint64_t v = rnd();
    switch (rnd_below(5)) {
    case 0: return PICK(edges);
    case 1: return v >> rnd_below(64);
    case 2: return BIT(rnd_below(64));
    case 3: return ~BIT(rnd_below(64));
    default: return v;
    }
}

bool lenient(const char *what)
{
    for (const char *list = arg("lenient"); list && *list;) {
        unsigned n = 0;
        while (what[n] && list[n] == what[n])
            n++;
        if (!what[n] && (!list[n] || list[n] == ','))
            return true;
        while (*list && *list++ != ',')
            ;
    }
    return false;
}

/* ---- known states ------------------------------------------------------------------------------------------------------------ */

void uart_sane(void)
{
    outb(0x3fb, 3);
    outb(0x3f9, 0);
    outb(0x3fa, 0);
    outb(0x3fc, 3);
}

void interrupts_sane(void)
{
    static const uint8_t init[2][4] = {{0x11, 0x20, 4, 1}, {0x11, 0x28, 2, 1}};
    for (uint16_t n = 0; n < 2; n++) {
        uint16_t port = n ? 0xa0 : 0x20;
        outb(port, init[n][0]);
        for (unsigned word = 1; word < 4; word++)
            outb(port + 1, init[n][word]);
        outb(port + 1, 0xff);
    }
    for (uint32_t lvt = 0x320; lvt <= 0x370; lvt += 0x10)
        mmio_write(LAPIC + lvt, 0x10000);
    mmio_write(LAPIC + 0x380, 0);
    mmio_write(LAPIC + 0x80, 0);
    mmio_write(LAPIC + 0xf0, 0x1ff);
}

/* ---- landing ------------------------------------------------------------------------------------------------------------------- */

/* landing_rsp: where the callee-saved registers lie; 0 when nothing is attempted. */
extern volatile uint64_t landing_rsp;
extern char attempt_landing[];
asm(".pushsection .data; landing_rsp: .quad 0; .popsection\n"
    ".pushsection .text; .globl attempt; attempt:\n"
    "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "mov %rsp, landing_rsp(%rip)\n"
    "mov %rdi, %rax; mov %rsi, %rdi; call *%rax\n"
    "mov $-1, %eax\n"
    "attempt_landing: movq $0, landing_rsp(%rip)\n"
    "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret; .popsection");

static bool land(struct trap_frame *f)
{
    if (f->vector == VEC_NMI) {
        nmis++;
        if (!nmi_lands || !landing_rsp)
            return true;
    }
    if (f->vector == VEC_DB && !landing_rsp) {
        debug_traps++;
        asm volatile("mov %0, %%dr7" :: "r"(UINT64_C(0x400)));
        f->rflags = (f->rflags | BIT(16)) & ~BIT(8);
        return true;
    }
    if (f->vector >= (nmi_lands ? 256 : 32) || !landing_rsp)
        return false;
    attempt_frame = *f;
    f->rax = f->vector;
    f->rip = (uint64_t)attempt_landing;
    f->rsp = landing_rsp;
    f->rflags = 2;
    f->cs = 8;
    f->ss = 0x10;
    landing_rsp = 0;
    return true;
}

/* ---- modes ------------------------------------------------------------------------------------------------------------------- */

static const struct mode *const groups[] = {io_modes, cpu_modes, memory_modes, interrupt_modes, garbage_modes, real_modes, end_modes};

static const struct mode *find_mode(void)
{
    for (unsigned g = 0; g < sizeof(groups) / sizeof(*groups); g++)
        for (const struct mode *m = groups[g]; m->name; m++)
            if (arg_is("mode", m->name))
                return m;
    return NULL;
}

int tiny_main(void)
{
    const struct mode *m = find_mode();
    for (unsigned g = 0; !m && g < sizeof(groups) / sizeof(*groups); g++)
        for (const struct mode *each = groups[g]; each->name; each++)
            print("hostile: mode=%s count=%lu\n", each->name, each->count);
    if (!m)
        return 2;
    seed = arg_u64("seed", 1);
    count = arg_u64("count", m->count);
    random_state = seed;
    on_trap = land;
    enable_sse();
    interrupts_sane();
    print("hostile: mode=%s seed=%lu count=%lu\n", m->name, seed, count);
    bool ok = m->run();
    uart_sane();
    if (ok)
        print("hostile: mode=%s survived\n", m->name);
    return !ok;
}
