/*
 * The PC's ways to reset or end itself, and the PCI configuration ports of a machine without PCI.
 *
 * 0CF9h shares its dword with CONFIG_ADDRESS: only a byte access is the reset register. CONFIG_ADDRESS itself reads as all ones, so an
 * OS that writes and reads it back learns at once that mechanism 1 is absent instead of asking for every device.
 */
#include "vdev/platform.h"

void vreset_reset(struct vreset *d)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    d->port92 = 2; /* A20 is open, for ever */
    d->cf9 = d->kbd_command = 0;
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

void vreset_save(struct vreset *d, struct vreset_saved *out)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    *out = (struct vreset_saved){.port92 = d->port92, .cf9 = d->cf9, .kbd_command = d->kbd_command};
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

void vreset_load(struct vreset *d, const struct vreset_saved *in)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    d->port92 = in->port92;
    d->cf9 = in->cf9;
    d->kbd_command = in->kbd_command;
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

static void set_all_ones(unsigned size, uint32_t *val) { *val = size >= 4 ? 0xffffffffu : (1u << 8 * size) - 1; }

void vreset_port92_pio(struct vcpu *v, void *dev, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    struct vreset *d = dev;
    (void)port;
    if (in) {
        set_all_ones(size, val);
        *val = (*val & ~0xffu) | d->port92;
        return;
    }
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    bool reset = (*val & 1) && !(d->port92 & 1);
    d->port92 = (*val & 0xfd) | 2;
    spin_unlock_irqrestore(&d->dev_lock, flags);
    if (reset)
        vm_request_reset(v->vm, "port 92h");
}

/* A keyboard controller with nothing attached: buffers empty; command FEh pulses the reset line, D1h writes the output port. */
void vreset_8042_pio(struct vcpu *v, void *dev, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    struct vreset *d = dev;
    if (in) {
        set_all_ones(size, val);
        if (port == 0x64)
            *val = (*val & ~0xffu) | 0x14; /* self-test passed, not inhibited, both buffers empty */
        return;
    }
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    uint8_t byte = (uint8_t)*val;
    bool reset = port == 0x64 ? byte == 0xfe : d->kbd_command == 0xd1 && !(byte & 1);
    d->kbd_command = port == 0x64 ? byte : 0;
    spin_unlock_irqrestore(&d->dev_lock, flags);
    if (reset)
        vm_request_reset(v->vm, "keyboard controller");
}

void vreset_pci_pio(struct vcpu *v, void *dev, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    struct vreset *d = dev;
    bool is_cf9 = port == 0xcf9 && size == 1;
    if (in) {
        set_all_ones(size, val);
        if (is_cf9)
            *val = d->cf9;
        return;
    }
    if (!is_cf9)
        return;
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    bool reset = (*val & 4) && !(d->cf9 & 4); /* the rising edge of RST_CPU */
    d->cf9 = *val & 0x0a;
    spin_unlock_irqrestore(&d->dev_lock, flags);
    if (reset)
        vm_request_reset(v->vm, "port CF9h");
}
