/*
 * Starting the machine's other CPUs: INIT, wait, two SIPIs (APM 2, 16.5; SDM 3, 9.4.4.1), a trampoline below 1 MiB (boot/trampoline.asm), and
 * then C on a stack of their own.
 *
 * One at a time: there is one trampoline, and what goes wrong can be told apart. A CPU takes the ticket that lies in the trampoline before it
 * uses anything there; the starter that gives up takes it back. So either the CPU is under way, and it is waited for, or it will
 * find no ticket, whenever it comes.
 *
 * Time. All CPUs' time-stamp counters must agree, or guests that move would see time run backwards. They are compared while the CPU is on its way:
 * both sides read theirs in turns, and a reading that is not later than the other side's latest one shows by how much. A CPU that is behind is
 * set forward and measured again; one that then still is not in step is left out.
 */
#include "drivers/smp.h"
#include "core/log.h"
#include "core/thread.h"
#include "core/time.h"
#include "drivers/acpi.h"
#include "drivers/init.h"
#include "include/abi/boot_info.h"
#include "include/hv/dmm.h"
#include "include/hw/apic.h"
#include "include/hw/paging.h"
#include "lib/string.h"
#include "mm/early.h"
#include "mm/mm.h"
#include "x86/apic.h"
#include "x86/cpu.h"
#include "x86/gdt.h"
#include "x86/idt.h"
#include "x86/percpu.h"
#include "x86/tsc.h"

#define STACK_BYTES 16384
#define IST_STACK_BYTES 8192
#define ANSWER_NS UINT64_C(500000000)
#define READY_NS UINT64_C(10000000000) /* it has the ticket: it runs our code, so only a bug keeps it */
#define LOW_TABLES 3
#define NO_ANSWER INT64_MIN
#define TSC_ROUNDS 24           /* a software CPU may need a time slice of its host for each hand-over */

extern const char trampoline_start[], trampoline_long[], trampoline_parameters[], trampoline_end[];

/* As trampoline.asm has them. */
struct PACKED parameters {
    uint64_t gdt[3];
    uint16_t gdt_limit;
    uint32_t gdt_base;
    uint32_t far_offset;
    uint16_t far_selector;
    volatile uint32_t ticket;
    uint32_t cr3, efer;
    uint64_t stack, area, entry;
};
_Static_assert(offsetof(struct parameters, ticket) == 36 && offsetof(struct parameters, stack) == 48, "trampoline.asm");

enum stage { STAGE_STARTED, STAGE_READY, STAGE_REFUSED };

static struct {
    uint64_t page_hpa, table_hpa[LOW_TABLES];
    bool have_low_memory;
    volatile enum stage stage;
    const char *why;
    bool (*ready)(const char **why);
    void *sched_memory, *stack;
    /* comparing time-stamp counters */
    volatile uint64_t latest;
    volatile uint32_t turn;
} smp;

NORETURN void smp_entry(struct percpu *area);

void smp_reserve_low_memory(void)
{
    smp.page_hpa = early_alloc_low(FRAME_HV_HEAP);
    smp.have_low_memory = smp.page_hpa;
    for (unsigned n = 0; n < LOW_TABLES; n++) {
        smp.table_hpa[n] = early_alloc_low(FRAME_HV_HEAP);
        smp.have_low_memory = smp.have_low_memory && smp.table_hpa[n];
    }
}

/* ---- time-stamp counters --------------------------------------------------------------------------------------------------------- */

/*
 * The two sides read in turns, so each reading is later than the other side's last. The least difference seen over all turns is at
 * most the time of one hand-over; a negative one is how far this side lags behind at least. Both run this at the same time.
 */
static int64_t compare_tsc(unsigned side)
{
    int64_t least = INT64_MAX;
    for (uint32_t n = side; n < 2 * TSC_ROUNDS; n += 2) {
        for (uint64_t begun = rdtsc(); smp.turn != n; cpu_pause())
            if (rdtsc() - begun > time_ns_to_tsc(ANSWER_NS))
                return NO_ANSWER;
        uint64_t now = rdtsc_ordered();
        if (n >= 2)
            least = MIN(least, (int64_t)(now - smp.latest));
        smp.latest = now;
        __atomic_store_n(&smp.turn, n + 1, __ATOMIC_RELEASE);
    }
    return least;
}

static struct { volatile int64_t boot_side, other_side; volatile unsigned wanted, done; } tsc;

static void compare_round(unsigned side)
{
    int64_t least = compare_tsc(side);
    *(side ? &tsc.other_side : &tsc.boot_side) = least;
    __atomic_fetch_add(&tsc.done, 1, __ATOMIC_RELEASE);
}

static void wait_done(unsigned count)
{
    while (__atomic_load_n(&tsc.done, __ATOMIC_ACQUIRE) < count) /* compare_tsc() has a limit */
        cpu_pause();
}

/* On the new CPU. Its counter minus the boot CPU's is between -other_side and boot_side; if 0 lies between, no difference can be seen. */
static bool join_time(void)
{
    for (unsigned attempt = 0; attempt < 3; attempt++) {
        __atomic_store_n(&tsc.wanted, attempt + 1, __ATOMIC_RELEASE);
        compare_round(1);
        wait_done(2 * attempt + 2);
        int64_t ahead = tsc.boot_side, behind = tsc.other_side;
        if (ahead == NO_ANSWER || behind == NO_ANSWER)
            return false;
        if (ahead >= 0 && behind >= 0)
            return true;
        wrmsr_safe(MSR_TSC, rdtsc() + (uint64_t)((behind - ahead) / -2));
    }
    return false;
}

/* ---- the new CPU ------------------------------------------------------------------------------------------------------------------ */

static NORETURN void refuse(const char *why)
{
    smp.why = why;
    __atomic_store_n(&smp.stage, STAGE_REFUSED, __ATOMIC_RELEASE);
    for (;;) {
        cli();
        hlt();
    }
}

NORETURN void smp_entry(struct percpu *area)
{
    const char *why = "?";
    write_cr3(hostmap_root_hpa());
    percpu_install(area);
    gdt_load(area);
    idt_load();
    cpu_init_this();
    lapic_init_this();
    lapic_timer_init_this();
    drivers_init_cpu();
    if (!join_time())
        refuse("its time-stamp counter cannot be brought in step with the boot CPU's");
    if (!frame_cpu_init())
        refuse("no frame left for its magazines");
    sti();
    if (!smp.ready(&why))
        refuse(why);
    cli();
    sched_init_cpu(smp.sched_memory, smp.stack, STACK_BYTES);
    __atomic_store_n(&smp.stage, STAGE_READY, __ATOMIC_RELEASE);
    sched_start();
}

/* ---- the starter -------------------------------------------------------------------------------------------------------------------- */

static struct parameters *parameters(void)
{
    return (struct parameters *)((char *)mfn_to_hva(hpa_to_mfn(smp.page_hpa)) + (trampoline_parameters - trampoline_start));
}

/* The first 2 MiB as they are, executable, and the hypervisor's half. For the time between paging and core's own tables. */
static void build_tables(void)
{
    uint64_t *t[LOW_TABLES];
    for (unsigned n = 0; n < LOW_TABLES; n++) {
        t[n] = mfn_to_hva(hpa_to_mfn(smp.table_hpa[n]));
        memset(t[n], 0, PAGE_SIZE);
    }
    memcpy(t[0] + 256, (uint64_t *)mfn_to_hva(hpa_to_mfn(hostmap_root_hpa())) + 256, PAGE_SIZE / 2);
    t[0][0] = smp.table_hpa[1] | PTE_P | PTE_W;
    t[1][0] = smp.table_hpa[2] | PTE_P | PTE_W;
    t[2][0] = PTE_P | PTE_W | PTE_PS;
}

static void build_trampoline(void)
{
    struct parameters *p = parameters();
    memcpy(mfn_to_hva(hpa_to_mfn(smp.page_hpa)), trampoline_start, (size_t)(trampoline_end - trampoline_start));
    p->gdt_base = (uint32_t)(smp.page_hpa + (uint64_t)(trampoline_parameters - trampoline_start));
    p->far_offset = (uint32_t)(smp.page_hpa + (uint64_t)(trampoline_long - trampoline_start));
    p->cr3 = (uint32_t)smp.table_hpa[0];
    p->efer = EFER_LME | EFER_NXE;
    p->entry = (uintptr_t)smp_entry;
    p->ticket = 0;
    build_tables();
}

static unsigned online_count(void)
{
    unsigned count = 0;
    for (unsigned n = 0; n < cpu_count(); n++)
        count += sched_cpu_online(n);
    return count;
}

static void release_low_memory(void)
{
    if (smp.page_hpa)
        frame_free(hpa_to_mfn(smp.page_hpa), 0);
    for (unsigned n = 0; n < LOW_TABLES; n++)
        if (smp.table_hpa[n])
            frame_free(hpa_to_mfn(smp.table_hpa[n]), 0);
}

/* What one CPU needs before its first instruction of ours; kept for it for ever once it has been announced. */
static struct percpu *make_area(void)
{
    struct percpu *area = kzalloc(sizeof(*area));
    smp.sched_memory = kzalloc(sched_cpu_bytes());
    smp.stack = stack_alloc(STACK_BYTES);
    bool ok = area && smp.sched_memory && smp.stack;
    for (enum ist slot = IST_NMI; ok && slot <= IST_COUNT; slot++) {
        void *stack = stack_alloc(IST_STACK_BYTES);
        if ((ok = stack))
            gdt_set_ist(area, slot, stack, IST_STACK_BYTES);
    }
    return ok ? area : NULL;
}

static void send_init(uint32_t apic_id)
{
    lapic_send_command(apic_id, (uint32_t)(APIC_DM_INIT | ICR_ASSERT | ICR_LEVEL));
    tsc_delay_ns(10000000);
}

static bool wait_ticket_taken(uint64_t limit_ns)
{
    for (uint64_t begun = time_ns(); time_ns() - begun < limit_ns; cpu_pause())
        if (!parameters()->ticket)
            return true;
    return !__atomic_exchange_n(&parameters()->ticket, 0, __ATOMIC_SEQ_CST); /* at the last moment? */
}

/* Takes part in the comparison of time-stamp counters, and waits for the end. */
static bool accompany(void)
{
    unsigned rounds = 0;
    for (uint64_t begun = time_ns(); time_ns() - begun < READY_NS; cpu_pause()) {
        enum stage s = __atomic_load_n(&smp.stage, __ATOMIC_ACQUIRE);
        if (s == STAGE_READY || s == STAGE_REFUSED)
            return s == STAGE_READY;
        if (__atomic_load_n(&tsc.wanted, __ATOMIC_ACQUIRE) == rounds)
            continue;
        smp.turn = 0;
        compare_round(0);
        wait_done(2 * ++rounds);
    }
    smp.why = "it has begun, but does not become ready";
    return false;
}

static bool start_cpu(uint32_t apic_id)
{
    struct parameters *p = parameters();
    struct percpu *area = make_area();
    smp.stage = STAGE_STARTED;
    smp.turn = UINT32_MAX;
    tsc.done = tsc.wanted = 0;
    if (!area || !percpu_add(area, apic_id)) {
        smp.why = area ? "there are too many" : "no memory for its stacks";
        return false;
    }
    p->stack = (uintptr_t)smp.stack + STACK_BYTES;
    p->area = (uintptr_t)area;
    __atomic_store_n(&p->ticket, 1, __ATOMIC_SEQ_CST);
    send_init(apic_id);
    for (unsigned n = 0; n < 2 && p->ticket; n++) { /* the second one, if the first was lost */
        lapic_send_command(apic_id, (uint32_t)(APIC_DM_SIPI | ICR_ASSERT | smp.page_hpa >> PAGE_SHIFT));
        tsc_delay_ns(200000);
    }
    if (!wait_ticket_taken(ANSWER_NS)) {
        smp.why = "it does not answer";
        send_init(apic_id); /* should it wake up late, it waits */
        return false;
    }
    return accompany();
}

void smp_start_all(bool (*ready)(const char **why))
{
    const struct acpi_madt *m = &acpi()->madt;
    unsigned left_out = 0;
    smp.ready = ready;
    for (uint32_t n = 0; n < m->cpu_count; n++) {
        uint32_t id = m->cpus[n].apic_id;
        if (id == lapic_id() || !m->cpus[n].enabled)
            continue;
        if (!smp.have_low_memory)
            smp.why = "no memory below 1 MiB to start it from";
        else if (id > 254 && !lapic_is_x2apic())
            smp.why = "its APIC id needs x2APIC mode, which the boot CPU does not have";
        else if (build_trampoline(), start_cpu(id))
            continue;
        left_out++;
        log_error("smp: the CPU with APIC id %u is left out: %s", id, smp.why);
    }
    if (m->cpus_ignored)
        log_error("smp: %u more CPUs are left out: at most %u are supported", m->cpus_ignored, ACPI_MAX_CPUS);
    log_info("smp: %u CPU%s, %u left out", online_count(), online_count() > 1 ? "s" : "", left_out);
    release_low_memory();
}
