/*
 * Reset: each known way in turn, from the one that firmware promises to the one that no CPU can refuse, a triple fault.
 * Power-off: S5 as ACPI has it (4.8.3.2.1; hardware-reduced: 4.8.3.7), the only way there is.
 * The registers are mapped at boot, so that nothing is allocated at the end.
 */
#include "drivers/power.h"
#include "core/log.h"
#include "drivers/acpi.h"
#include "drivers/uart.h"
#include "lib/string.h"
#include "x86/cpu.h"
#include "x86/tsc.h"

#define PM1_SCI_EN 0x0001u
#define PM1_SLP_TYP(n) ((uint32_t)(n) << 10)
#define PM1_SLP_TYP_MASK PM1_SLP_TYP(7)
#define PM1_SLP_EN 0x2000u
#define SLEEP_TYP(n) ((uint32_t)(n) << 2)
#define SLEEP_EN 0x20u
#define PORT_RESET_CONTROL 0xcf9
#define PORT_8042 0x64
#define WAIT_NS UINT64_C(100000000)
#define ACPI_ENABLE_TRIES 300u /* of 10 ms */

static struct acpi_register pm1a, pm1b, reset_register, sleep_control;
static bool have_pm1a, have_pm1b, have_reset, have_sleep_control;

void power_init(void)
{
    const struct acpi_fadt *f = &acpi()->fadt;
    have_pm1a = !f->hw_reduced && acpi_map_gas(&f->pm1a_cnt, &pm1a);
    have_pm1b = !f->hw_reduced && acpi_map_gas(&f->pm1b_cnt, &pm1b);
    have_reset = f->has_reset && acpi_map_gas(&f->reset, &reset_register);
    have_sleep_control = f->hw_reduced && acpi_map_gas(&f->sleep_control, &sleep_control);
    if (!acpi()->have_s5)
        log_warn("power: no _S5_ found in ACPI: poweroff will only halt");
}

static void say(const char *s) { uart_write_polled(s, strlen(s)); }

void power_reboot(void)
{
    cli();
    say("palimpsest: rebooting\n");
    if (have_reset) {
        acpi_write(&reset_register, 1, acpi()->fadt.reset_value);
        tsc_delay_ns(WAIT_NS);
    }
    out8(PORT_RESET_CONTROL, 0x02); /* hard reset, then the edge that does it */
    out8(PORT_RESET_CONTROL, 0x06);
    tsc_delay_ns(WAIT_NS);
    for (unsigned i = 0; i < 1000 && (in8(PORT_8042) & 2); i++) /* its input buffer is full */
        tsc_delay_ns(1000);
    out8(PORT_8042, 0xfe);
    tsc_delay_ns(WAIT_NS);
    lidt(&(struct descriptor_ptr){0});
    for (;;)
        asm volatile("int3");
}

/* Firmware hands the registers over when the SMI command port is told to (4.8.2.1.1). */
static void enter_acpi_mode(void)
{
    const struct acpi_fadt *f = &acpi()->fadt;
    if ((acpi_read(&pm1a, 2) & PM1_SCI_EN) || !f->smi_cmd || !f->acpi_enable)
        return;
    out8((uint16_t)f->smi_cmd, f->acpi_enable);
    for (unsigned i = 0; i < ACPI_ENABLE_TRIES && !(acpi_read(&pm1a, 2) & PM1_SCI_EN); i++)
        tsc_delay_ns(10000000);
}

static void enter_s5(const struct acpi_register *r, uint8_t slp_typ)
{
    uint32_t v = (acpi_read(r, 2) & ~PM1_SLP_TYP_MASK) | PM1_SLP_TYP(slp_typ);
    acpi_write(r, 2, v);
    acpi_write(r, 2, v | PM1_SLP_EN);
}

void power_off(void)
{
    cli();
    say("palimpsest: powering off\n");
    if (acpi()->have_s5 && have_pm1a) {
        enter_acpi_mode();
        enter_s5(&pm1a, acpi()->s5.slp_typ_a);
        if (have_pm1b)
            enter_s5(&pm1b, acpi()->s5.slp_typ_b);
    }
    if (acpi()->have_s5 && have_sleep_control)
        acpi_write(&sleep_control, 1, SLEEP_TYP(acpi()->s5.slp_typ_a) | SLEEP_EN);
    tsc_delay_ns(10 * WAIT_NS);
    say("palimpsest: halted: ACPI power-off is missing or had no effect; it is safe to switch off\n");
    for (;;)
        hlt();
}
