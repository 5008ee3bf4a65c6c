/*
 * I/O APIC (82093AA data sheet). An index and a data register per chip: the pair is under one lock, interrupts off.
 * An entry is always written high half first with the low half masked, so that no half-made route can fire.
 */
#include "drivers/ioapic.h"
#include "core/lock.h"
#include "core/log.h"
#include "drivers/acpi_parse.h"
#include "include/hw/apic.h"
#include "mm/mm.h"

#define ISA_IRQS 16u

static struct { volatile uint32_t *regs; uint32_t gsi_base, pins; } chips[ACPI_MAX_IOAPICS];
static unsigned chip_count;
static struct { uint32_t gsi; bool active_low, level; } isa[ISA_IRQS];
static struct spinlock lock = SPINLOCK_INIT(LOCK_RANK_UART, "ioapic"); /* a leaf, like the serial port's */

static uint32_t chip_read(unsigned chip, uint32_t reg)
{
    chips[chip].regs[IOAPIC_REGSEL / 4] = reg;
    return chips[chip].regs[IOAPIC_WIN / 4];
}

static void chip_write(unsigned chip, uint32_t reg, uint32_t value)
{
    chips[chip].regs[IOAPIC_REGSEL / 4] = reg;
    chips[chip].regs[IOAPIC_WIN / 4] = value;
}

static void write_redirection(unsigned chip, uint32_t pin, uint64_t entry)
{
    uint64_t flags = spin_lock_irqsave(&lock);
    chip_write(chip, IOAPIC_REG_REDIR(pin), (uint32_t)REDIR_MASKED);
    chip_write(chip, IOAPIC_REG_REDIR(pin) + 1, (uint32_t)(entry >> 32));
    chip_write(chip, IOAPIC_REG_REDIR(pin), (uint32_t)entry);
    spin_unlock_irqrestore(&lock, flags);
}

static void add_chip(uint64_t hpa, uint32_t gsi_base)
{
    volatile void *window = map_mmio(hpa, IOAPIC_WIN + 4);
    if (!window)
        return;
    chips[chip_count].regs = window;
    uint32_t version = chip_read(chip_count, IOAPIC_REG_VER);
    uint32_t pins = (uint32_t)IOAPIC_VER_MAX_REDIR(version) + 1;
    if (version == UINT32_MAX || pins > 240) {
        log_error("ioapic: nothing answers at %#lx (version %#x)", hpa, version);
        return;
    }
    chips[chip_count].gsi_base = gsi_base;
    chips[chip_count].pins = pins;
    for (uint32_t pin = 0; pin < pins; pin++)
        write_redirection(chip_count, pin, REDIR_MASKED);
    log_info("ioapic: at %#lx, interrupts %u..%u", hpa, gsi_base, gsi_base + pins - 1);
    chip_count++;
}

bool ioapic_init(const struct acpi_madt *madt)
{
    for (unsigned irq = 0; irq < ISA_IRQS; irq++) {
        isa[irq].gsi = irq;
        if (!madt || !madt->overrides[irq].present)
            continue;
        isa[irq].gsi = madt->overrides[irq].gsi;
        isa[irq].active_low = ACPI_POLARITY(madt->overrides[irq].flags) == 3;
        isa[irq].level = ACPI_TRIGGER(madt->overrides[irq].flags) == 3;
    }
    if (!madt)
        add_chip(IOAPIC_DEFAULT_BASE, 0);
    for (uint32_t i = 0; madt && i < madt->ioapic_count; i++)
        add_chip(madt->ioapics[i].hpa, madt->ioapics[i].gsi_base);
    return chip_count;
}

static bool find_pin(uint32_t gsi, unsigned *chip, uint32_t *pin)
{
    for (unsigned i = 0; i < chip_count; i++)
        if (gsi >= chips[i].gsi_base && gsi - chips[i].gsi_base < chips[i].pins) {
            *chip = i;
            *pin = gsi - chips[i].gsi_base;
            return true;
        }
    return false;
}

bool ioapic_route(uint32_t gsi, uint8_t vector, uint32_t apic_id, bool active_low, bool level)
{
    unsigned chip;
    uint32_t pin;
    if (apic_id > 0xff || !find_pin(gsi, &chip, &pin))
        return false;
    write_redirection(chip, pin, (uint64_t)apic_id << REDIR_DEST_SHIFT | APIC_DM_FIXED | vector |
                      (active_low ? REDIR_ACTIVE_LOW : 0) | (level ? REDIR_LEVEL : 0));
    return true;
}

bool ioapic_route_isa(unsigned irq, uint8_t vector, uint32_t apic_id)
{
    return irq < ISA_IRQS && ioapic_route(isa[irq].gsi, vector, apic_id, isa[irq].active_low, isa[irq].level);
}
