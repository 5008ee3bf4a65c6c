/*
 * Bringing the machine's devices up, in dependency order: tables, interrupt controllers, reference clock, timer, and
 * then the serial port's interrupts. What the system cannot do without ends in a panic that names it; the rest in a log line.
 */
#include "drivers/init.h"
#include "core/console.h"
#include "core/log.h"
#include "core/panic.h"
#include "drivers/acpi.h"
#include "drivers/clocks.h"
#include "drivers/fbcon.h"
#include "drivers/ioapic.h"
#include "drivers/power.h"
#include "drivers/uart.h"
#include "include/abi/boot_info.h"
#include "include/hw/apic.h"
#include "mm/mm.h"
#include "x86/apic.h"
#include "x86/cpu.h"
#include "x86/gdt.h"
#include "x86/idt.h"
#include "x86/percpu.h"
#include "x86/tsc.h"

#define IST_STACK_BYTES 8192

void drivers_init_early(const struct boot_info *bi)
{
    tsc_mark_boot();
    if (uart_init(115200))
        panic_add_output(uart_write_polled);
    /* The loader's tables map the first 4 GiB. */
    bool reachable = bi->fb.hpa + (uint64_t)bi->fb.pitch * bi->fb.height <= GIB(4);
    if (fbcon_init(&bi->fb, reachable ? (void *)(HV_DIRECTMAP_BASE + bi->fb.hpa) : NULL))
        panic_add_output(fbcon_write);
    console_set_sink(drivers_console_write);
}

void drivers_console_write(const char *s, size_t len)
{
    uart_write(s, len);
    fbcon_write(s, len);
}

void drivers_set_baud(unsigned baud) { uart_init(baud); }

/* The early ones share one stack without a guard. */
static void guard_interrupt_stacks(void)
{
    for (enum ist slot = IST_NMI; slot <= IST_COUNT; slot++) {
        void *stack = stack_alloc(IST_STACK_BYTES);
        if (!stack)
            panic("no memory for interrupt stacks");
        gdt_set_ist(this_cpu(), slot, stack, IST_STACK_BYTES);
    }
}

static void init_lapic(void)
{
    uint64_t hpa = lapic_window_hpa();
    void *window = hpa ? map_mmio(hpa, LAPIC_WINDOW_BYTES) : NULL;
    if (!lapic_init(window))
        panic("this CPU has no usable local APIC (window at %#lx)", hpa);
}

/* NMI inputs that the MADT describes for this CPU or for all. */
static void set_nmi_inputs(const struct acpi_madt *m)
{
    uint32_t uid = ACPI_ALL_CPUS;
    for (uint32_t i = 0; i < m->cpu_count; i++)
        if (m->cpus[i].apic_id == lapic_id())
            uid = m->cpus[i].uid;
    for (uint32_t i = 0; i < m->nmi_count; i++)
        if (m->nmis[i].uid == ACPI_ALL_CPUS || m->nmis[i].uid == uid)
            lapic_set_nmi_input(m->nmis[i].lint, ACPI_POLARITY(m->nmis[i].flags) == 3, ACPI_TRIGGER(m->nmis[i].flags) == 3);
}

static bool try_clock(const struct ref_clock *clock)
{
    if (!clock)
        return false;
    if (tsc_calibrate(clock))
        return true;
    log_warn("time: %s does not advance steadily, not used", clock->name);
    return false;
}

static void init_time(void)
{
    const struct acpi_info *a = acpi();
    if (!(a->have_hpet && try_clock(hpet_init(&a->hpet))) && !(a->have_fadt && try_clock(pmtimer_init(&a->fadt))) &&
        !try_clock(pit_init()))
        panic("no reference clock: HPET, ACPI PM timer and PIT are all absent or stand still");
    if (!lapic_timer_init())
        panic("the local APIC's timer does not run");
    uint64_t now = cmos_read_time(a->fadt.century);
    if (!now)
        log_warn("time: no CMOS clock, or no date in it: wall clock starts at 1970");
    tsc_set_epoch(now);
    log_info("time: TSC %lu.%03lu MHz by %s%s; local APIC %s, %s", tsc_khz() / 1000, tsc_khz() % 1000, tsc_source(),
             cpu_info()->tsc_invariant ? "" : " (not invariant)", lapic_is_x2apic() ? "x2APIC" : "xAPIC",
             lapic_timer_hz() ? "one-shot timer" : "TSC deadline timer");
}

static void init_serial_irq(void)
{
    int vector = irq_alloc_vector();
    if (!uart_present())
        log_warn("uart: no serial port answers");
    else if (vector < 0 || !uart_enable_irq((uint8_t)vector, console_input_isr) ||
             !ioapic_route_isa(uart_isa_irq(), (uint8_t)vector, this_cpu()->apic_id))
        log_error("uart: interrupt %u cannot be routed: no console input", uart_isa_irq());
}

void drivers_init_cpu(void) { set_nmi_inputs(&acpi()->madt); }

void drivers_map_screen(void) { fbcon_remap(map_mmio); }

void drivers_init(const struct boot_info *bi)
{
    guard_interrupt_stacks();
    init_lapic();
    acpi_init(bi);
    if (!ioapic_init(acpi()->have_madt ? &acpi()->madt : NULL))
        log_error("ioapic: none found: devices have no interrupts");
    set_nmi_inputs(&acpi()->madt);
    power_init();
    init_time();
    init_serial_irq();
}
