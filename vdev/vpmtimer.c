/*
 * ACPI fixed hardware (ACPI 6.4, 4.8): PM1a event and control block, PM timer. The platform is always in ACPI mode (SCI_EN
 * reads 1, there is no SMI command port), and no fixed event ever happens: there are no buttons.
 */
#include "vdev/platform.h"

#define PM_TIMER_HZ 3579545u
#define PM1_SCI_EN 1u
#define PM1_SLP_EN (1u << 13)

void vpm_reset(struct vpm *d)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    d->status = d->enable = 0;
    d->control = PM1_SCI_EN;
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

void vpm_save(struct vpm *d, struct vpm_saved *out)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    *out = (struct vpm_saved){.status = d->status, .enable = d->enable, .control = d->control};
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

void vpm_load(struct vpm *d, const struct vpm_saved *in)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    d->status = in->status;
    d->enable = in->enable;
    d->control = in->control;
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

static uint16_t *reg_at(struct vpm *d, uint16_t port)
{
    switch (port & ~1u) {
    case GUEST_PM1_EVENT_PORT: return &d->status;
    case GUEST_PM1_EVENT_PORT + 2: return &d->enable;
    case GUEST_PM1_CONTROL_PORT: return &d->control;
    }
    return NULL;
}

static uint8_t pm_byte(void *dev, uint16_t port, bool in, uint8_t val)
{
    struct vpm *d = dev;
    uint16_t *r = reg_at(d, port);
    unsigned shift = port & 1 ? 8 : 0;
    if (!r)
        return in && (port & ~1u) == GUEST_PM1_CONTROL_PORT + 2 ? 0 : 0xff;
    if (in)
        return (uint8_t)(*r >> shift);
    if (r == &d->status)
        *r &= (uint16_t) ~(val << shift); /* write 1 to clear */
    else
        *r = (uint16_t)((*r & ~(0xffu << shift)) | (unsigned)val << shift);
    if (r == &d->control)
        *r |= PM1_SCI_EN;
    return 0;
}

void vpm_pio(struct vcpu *v, void *dev, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    struct vpm *d = dev;
    struct platform *p = v->vm->platform;
    if (port >= GUEST_PM_TIMER_PORT) {
        if (in)
            *val = (uint32_t)ns_to_ticks(platform_now_ns(p), PM_TIMER_HZ) >> 8 * (port & 3);
        return;
    }
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    pio_bytewise(d, port, size, in, val, pm_byte);
    uint16_t control = d->control;
    d->control &= (uint16_t)~PM1_SLP_EN; /* write-only: reads as 0 */
    spin_unlock_irqrestore(&d->dev_lock, flags);
    if ((control & PM1_SLP_EN) && (control >> 10 & 7) == GUEST_S5_SLP_TYP)
        vm_request_stop(v->vm, -1, "guest powered off");
}
