/*
 * I/O APIC, 82093AA with 24 pins (Intel 82093AA data sheet). Under the platform's irq_lock.
 *
 * Edge pins deliver on the rising edge, and an edge while masked is lost, as on the chip. Level pins deliver while the line is up, the pin
 * unmasked and Remote IRR clear; the local APIC's EOI broadcast clears it, and a line still up delivers again. Polarity is kept
 * but means nothing: lines here are logical ("asserted"), not volts.
 */
#include "vdev/platform.h"

#include "lib/string.h"

#define REDIR_REMOTE_IRR BIT64(14)
#define REDIR_LEVEL BIT64(15)
#define REDIR_MASKED BIT64(16)
#define REDIR_WRITABLE (GENMASK64(63, 56) | GENMASK64(16, 15) | BIT64(13) | GENMASK64(11, 0))

void vioapic_reset(struct vioapic *a)
{
    memset(a, 0, sizeof *a);
    for (unsigned n = 0; n < VIOAPIC_PINS; n++)
        a->redirect[n] = REDIR_MASKED;
}

static void fire(struct platform *p, unsigned pin)
{
    uint64_t *r = &p->ioapic.redirect[pin];
    bool level = *r & REDIR_LEVEL;
    if ((*r & REDIR_MASKED) || (level && (*r & REDIR_REMOTE_IRR)))
        return;
    enum apic_delivery mode = FIELD_GET64(*r, 10, 8);
    if (mode == APIC_SIPI)
        return; /* reserved here */
    if (level && (mode == APIC_FIXED || mode == APIC_LOWEST))
        *r |= REDIR_REMOTE_IRR;
    else
        level = false;
    if (!vlapic_route(p, (uint32_t)(*r >> 56), *r & BIT64(11), false, mode, (uint8_t)*r, level))
        *r &= ~REDIR_REMOTE_IRR; /* nobody took it: there will be no EOI */
}

void vioapic_set_line(struct platform *p, unsigned pin, bool level)
{
    uint32_t bit = 1u << pin, was = p->ioapic.lines & bit;
    if (pin >= VIOAPIC_PINS)
        return;
    p->ioapic.lines = level ? p->ioapic.lines | bit : p->ioapic.lines & ~bit;
    if (level && (!was || (p->ioapic.redirect[pin] & REDIR_LEVEL)))
        fire(p, pin);
}

void vioapic_eoi(struct platform *p, uint8_t vector)
{
    uint64_t flags = spin_lock_irqsave(&p->irq_lock);
    for (unsigned n = 0; n < VIOAPIC_PINS; n++) {
        uint64_t *r = &p->ioapic.redirect[n];
        if ((uint8_t)*r != vector || !(*r & REDIR_REMOTE_IRR))
            continue;
        *r &= ~REDIR_REMOTE_IRR;
        if (p->ioapic.lines >> n & 1)
            fire(p, n);
    }
    spin_unlock_irqrestore(&p->irq_lock, flags);
}

static void write_redirect(struct platform *p, unsigned reg, uint32_t val)
{
    unsigned pin = (reg - 0x10) / 2;
    uint64_t *r = &p->ioapic.redirect[pin], old = *r, half = reg & 1 ? GENMASK64(63, 32) : GENMASK64(31, 0);
    uint64_t new = (old & ~half) | ((uint64_t)val << (reg & 1 ? 32 : 0));
    *r = (new & REDIR_WRITABLE) | (old & REDIR_REMOTE_IRR);
    if (!(*r & REDIR_LEVEL))
        *r &= ~REDIR_REMOTE_IRR; /* Linux clears a stuck Remote IRR by switching to edge and back */
    if ((*r & REDIR_LEVEL) && (p->ioapic.lines >> pin & 1))
        fire(p, pin);
}

static uint32_t read_reg(const struct vioapic *a)
{
    unsigned reg = a->select;
    if (reg == 0 || reg == 2)
        return (uint32_t)a->id << 24;
    if (reg == 1)
        return 0x11 | (VIOAPIC_PINS - 1) << 16;
    if (reg >= 0x10 && reg < 0x10 + 2 * VIOAPIC_PINS)
        return (uint32_t)(a->redirect[(reg - 0x10) / 2] >> (reg & 1 ? 32 : 0));
    return 0xffffffff;
}

void vioapic_mmio(struct vcpu *v, void *dev, uint64_t offset, unsigned size, bool write, uint64_t *val)
{
    (void)v;
    struct platform *p = dev;
    struct vioapic *a = &p->ioapic;
    uint64_t flags = spin_lock_irqsave(&p->irq_lock);
    if (!write) {
        uint32_t r = (offset & ~3u) == 0 ? a->select : (offset & ~3u) == 0x10 ? read_reg(a) : 0;
        *val = r >> 8 * (offset & 3);
    } else if (offset == 0) {
        a->select = (uint8_t)*val;
    } else if (offset == 0x10 && size >= 4) {
        if (a->select == 0)
            a->id = *val >> 24 & 0xf;
        else if (a->select >= 0x10 && a->select < 0x10 + 2 * VIOAPIC_PINS)
            write_redirect(p, a->select, (uint32_t)*val);
    }
    spin_unlock_irqrestore(&p->irq_lock, flags);
}
