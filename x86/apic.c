/*
 * The local APIC, in xAPIC mode through a mapped page or in x2APIC mode through MSRs.
 *
 * x2APIC is taken where the CPU has it: no window, one write per IPI. The mode is never switched back: a disabled local
 * APIC cannot be enabled again everywhere. All xAPIC accesses are 32 bits wide; others are undefined (APM 2, 16.3.2).
 *
 * Timer: TSC deadline mode is exact and needs no conversion. Otherwise one-shot with a divider of 16: about 16 ns of
 * resolution and a minute of range at the usual 1 GHz; what exceeds the range fires early and is armed again.
 */
#include "x86/apic.h"
#include "include/hw/apic.h"
#include "x86/cpu.h"
#include "x86/idt.h"
#include "x86/percpu.h"
#include "x86/tsc.h"

#define PIC1_CMD 0x20
#define PIC1_DATA 0x21
#define PIC2_CMD 0xa0
#define PIC2_DATA 0xa1

#define TIMER_DIVIDE_BY_16 3u
#define CALIBRATE_NS UINT64_C(10000000)
#define CALIBRATE_ROUNDS 3
#define ICR_SPINS 1000000u

static volatile uint32_t *xapic; /* NULL: x2APIC, or not initialized */
static bool x2apic, ready, deadline_mode;
static uint64_t timer_hz;
static uint64_t ticks_per_tsc;   /* 32.32 fixed point */
static void (*timer_handler)(void);
static uint64_t error_count;

static uint32_t reg_read(uint32_t reg)
{
    return x2apic ? (uint32_t)rdmsr(MSR_X2APIC_BASE + (reg >> 4)) : xapic[reg / 4];
}

static void reg_write(uint32_t reg, uint32_t value)
{
    if (x2apic)
        wrmsr(MSR_X2APIC_BASE + (reg >> 4), value);
    else
        xapic[reg / 4] = value;
}

bool lapic_is_x2apic(void) { return x2apic; }
uint32_t lapic_id(void) { return x2apic ? reg_read(LAPIC_ID) : reg_read(LAPIC_ID) >> 24; }

void lapic_eoi(void)
{
    if (ready)
        reg_write(LAPIC_EOI, 0);
}

uint64_t lapic_window_hpa(void)
{
    if (cpu_has(CPUID_X2APIC))
        return 0;
    return rdmsr(MSR_APIC_BASE) & APIC_BASE_ADDRESS_MASK & GENMASK64(cpu_info()->phys_bits - 1, 0);
}

/* The 8259 pair is moved away from the exception vectors and masked; a spurious IRQ 7 or 15 can still come. */
static void pic_mask_all(void)
{
    out8(PIC1_CMD, 0x11); /* ICW1: edge, cascade, ICW4 follows */
    out8(PIC2_CMD, 0x11);
    out8(PIC1_DATA, VECTOR_PIC_FIRST);
    out8(PIC2_DATA, VECTOR_PIC_FIRST + 8);
    out8(PIC1_DATA, 4);   /* ICW3: the second one on IRQ 2 */
    out8(PIC2_DATA, 2);
    out8(PIC1_DATA, 1);   /* ICW4: 8086 mode */
    out8(PIC2_DATA, 1);
    out8(PIC1_DATA, 0xff);
    out8(PIC2_DATA, 0xff);
}

static void error_interrupt(void *arg UNUSED)
{
    reg_write(LAPIC_ESR, 0); /* latches; the next read would tell which */
    error_count++;
}

static void timer_interrupt(void *arg UNUSED)
{
    if (timer_handler)
        timer_handler();
}

/* Interrupts that firmware took and never ended would hold back everything of their priority. */
static void end_leftover_interrupts(void)
{
    for (unsigned guard = 0; guard < 256; guard++) {
        uint32_t in_service = 0;
        for (unsigned i = 0; i < 8; i++)
            in_service |= reg_read(LAPIC_ISR + 16 * i);
        if (!in_service)
            return;
        reg_write(LAPIC_EOI, 0);
    }
}

void lapic_init_this(void)
{
    uint64_t base = rdmsr(MSR_APIC_BASE);
    uint64_t want = base | APIC_BASE_ENABLE;
    if (x2apic)
        want |= APIC_BASE_X2APIC;
    if (want != base)
        wrmsr(MSR_APIC_BASE, want);

    unsigned max_lvt = LAPIC_VERSION_MAX_LVT(reg_read(LAPIC_VERSION));
    reg_write(LAPIC_SVR, LAPIC_SVR_ENABLE | VECTOR_LAPIC_SPURIOUS);
    reg_write(LAPIC_TPR, 0);
    reg_write(LAPIC_LVT_TIMER, LVT_MASKED | VECTOR_LAPIC_TIMER);
    reg_write(LAPIC_LVT_LINT0, LVT_MASKED);      /* the 8259s' way in */
    reg_write(LAPIC_LVT_LINT1, APIC_DM_NMI);
    reg_write(LAPIC_LVT_ERROR, VECTOR_LAPIC_ERROR);
    if (max_lvt >= 4)
        reg_write(LAPIC_LVT_PERF, LVT_MASKED);
    if (max_lvt >= 5)
        reg_write(LAPIC_LVT_THERMAL, LVT_MASKED);
    reg_write(LAPIC_ESR, 0);
    end_leftover_interrupts();
    ready = true;
    this_cpu()->apic_id = lapic_id();
}

void lapic_set_nmi_input(unsigned lint, bool active_low, bool level)
{
    reg_write(lint ? LAPIC_LVT_LINT1 : LAPIC_LVT_LINT0,
              (uint32_t)(APIC_DM_NMI | (active_low ? LVT_ACTIVE_LOW : 0) | (level ? LVT_LEVEL : 0)));
}

bool lapic_init(volatile void *window)
{
    if (!cpu_has(CPUID_APIC))
        return false;
    x2apic = cpu_has(CPUID_X2APIC);
    if (!x2apic && !window)
        return false;
    xapic = x2apic ? NULL : window;
    pic_mask_all();
    if (!irq_register(VECTOR_LAPIC_ERROR, error_interrupt, NULL) || !irq_register(VECTOR_LAPIC_TIMER, timer_interrupt, NULL))
        return false;
    lapic_init_this();
    return true;
}

void lapic_send_command(uint32_t apic_id, uint32_t icr_low)
{
    if (x2apic) {
        mfence(); /* the WRMSR does not wait for earlier stores, which the other CPU is told to look at */
        wrmsr(MSR_X2APIC_BASE + (LAPIC_ICR >> 4), (uint64_t)apic_id << 32 | icr_low);
        return;
    }
    uint64_t flags = irq_save(); /* a handler that sends too must not come between the halves */
    for (unsigned i = 0; i < ICR_SPINS && (reg_read(LAPIC_ICR) & ICR_PENDING); i++)
        cpu_pause();
    reg_write(LAPIC_ICR_HIGH, apic_id << 24);
    reg_write(LAPIC_ICR, icr_low);
    irq_restore(flags);
}

void lapic_send_ipi(uint32_t apic_id, uint8_t vector)
{
    lapic_send_command(apic_id, (uint32_t)(APIC_DM_FIXED | ICR_ASSERT) | vector);
}

/* ---- timer ------------------------------------------------------------------------------------------------ */

/* One measurement: the counter runs down from its maximum while the TSC says CALIBRATE_NS. 0: it stands still. */
static uint64_t measure_timer_hz(void)
{
    reg_write(LAPIC_TIMER_INITIAL, UINT32_MAX);
    uint64_t tsc0 = rdtsc_ordered();
    uint32_t count0 = reg_read(LAPIC_TIMER_CURRENT);
    tsc_delay_ns(CALIBRATE_NS);
    uint64_t tsc1 = rdtsc_ordered();
    uint32_t count1 = reg_read(LAPIC_TIMER_CURRENT);
    reg_write(LAPIC_TIMER_INITIAL, 0);
    return mul_div64(count0 - count1, tsc_khz() * 1000, tsc1 - tsc0);
}

void lapic_timer_init_this(void)
{
    if (deadline_mode) {
        reg_write(LAPIC_LVT_TIMER, (uint32_t)LVT_TIMER_TSC_DEADLINE | VECTOR_LAPIC_TIMER);
        mfence(); /* Intel SDM 3, 11.5.4.1: orders the mapped write before the first deadline */
        return;
    }
    reg_write(LAPIC_TIMER_DIVIDE, TIMER_DIVIDE_BY_16);
    reg_write(LAPIC_LVT_TIMER, (uint32_t)LVT_TIMER_ONESHOT | VECTOR_LAPIC_TIMER);
}

bool lapic_timer_init(void)
{
    deadline_mode = cpu_has(CPUID_TSC_DEADLINE);
    if (deadline_mode) {
        lapic_timer_init_this();
        return true;
    }
    reg_write(LAPIC_TIMER_DIVIDE, TIMER_DIVIDE_BY_16);
    /* An interruption by SMM or a busy host makes one round wrong in either direction: take the middle one. */
    uint64_t hz[CALIBRATE_ROUNDS];
    for (unsigned i = 0; i < CALIBRATE_ROUNDS; i++) {
        uint64_t m = measure_timer_hz();
        unsigned j = i;
        for (; j > 0 && hz[j - 1] > m; j--)
            hz[j] = hz[j - 1];
        hz[j] = m;
    }
    timer_hz = hz[CALIBRATE_ROUNDS / 2];
    if (!timer_hz)
        return false;
    ticks_per_tsc = mul_div64(timer_hz, BIT64(32), tsc_khz() * 1000);
    lapic_timer_init_this();
    return true;
}

void lapic_timer_set_handler(void (*fn)(void)) { timer_handler = fn; }
uint64_t lapic_timer_hz(void) { return timer_hz; }

void lapic_timer_arm_tsc(uint64_t tsc_deadline)
{
    if (deadline_mode) {
        wrmsr(MSR_TSC_DEADLINE, tsc_deadline ? tsc_deadline : 1); /* 0 would disarm */
        return;
    }
    uint64_t now = rdtsc(), ticks = 1; /* 0 would stop the timer */
    if (tsc_deadline > now) {
        unsigned __int128 t = ((unsigned __int128)(tsc_deadline - now) * ticks_per_tsc >> 32) + 1;
        ticks = t > UINT32_MAX ? UINT32_MAX : (uint64_t)t;
    }
    reg_write(LAPIC_TIMER_INITIAL, (uint32_t)ticks);
}

void lapic_timer_stop(void)
{
    if (deadline_mode)
        wrmsr(MSR_TSC_DEADLINE, 0);
    else
        reg_write(LAPIC_TIMER_INITIAL, 0);
}
