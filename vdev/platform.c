/*
 * Puts one VM's devices together, routes their interrupt lines, and keeps the VM's own clock.
 *
 * Each device could ask the host's clock, but then a VM that was paused for an hour would find its timers an hour
 * late and would be served the missed ticks at once. The platform's clock stops with the VM instead: pause cancels the host timers and
 * leaves due times alone; resume moves the offset by the pause and arms them again.
 */
#include "vdev/platform.h"

#include "core/log.h"
#include "core/time.h"
#include "lib/string.h"
#include "mm/mm.h"

/* ---- virtual time ------------------------------------------------------------------------------------------------- */

uint64_t platform_now_ns(const struct platform *p)
{
    return (p->paused ? p->paused_at_ns : time_ns()) - p->time_offset_ns;
}

static void vtimer_fire(struct timer *t)
{
    struct vtimer *vt = container_of(t, struct vtimer, timer);
    if (!vt->platform->paused)
        vt->fn(vt->dev);
}

void vtimer_init(struct vtimer *t, struct platform *p, void (*fn)(void *dev), void *dev)
{
    *t = (struct vtimer){.platform = p, .fn = fn, .dev = dev};
    timer_init(&t->timer, vtimer_fire, t);
    list_add_tail(&p->vtimers, &t->node);
}

void vtimer_arm(struct vtimer *t, uint64_t due_ns)
{
    t->due_ns = due_ns;
    t->active = true;
    if (!t->platform->paused)
        timer_arm(&t->timer, due_ns + t->platform->time_offset_ns);
}

void vtimer_cancel(struct vtimer *t)
{
    do { /* a callback that was running meanwhile may have armed it again */
        t->active = false;
        timer_cancel(&t->timer);
    } while (t->active);
}

bool vtimer_expired(struct vtimer *t)
{
    if (!t->active || platform_now_ns(t->platform) < t->due_ns)
        return false;
    t->active = false;
    return true;
}

void vtimer_fini(struct vtimer *t)
{
    vtimer_cancel(t);
    list_del(&t->node);
}

void vtimer_save(const struct vtimer *t, struct vtimer_saved *out) { *out = (struct vtimer_saved){.due_ns = t->due_ns, .active = t->active}; }

void vtimer_load(struct vtimer *t, const struct vtimer_saved *in)
{
    t->due_ns = in->due_ns;
    t->active = in->active;
}

uint64_t vtimer_next_ns(uint64_t due_ns, uint64_t period_ns, uint64_t now_ns)
{
    uint64_t next = due_ns + period_ns;
    return next > now_ns ? next : now_ns + period_ns - (now_ns - due_ns) % period_ns;
}

uint64_t ns_to_ticks(uint64_t ns, uint64_t hz)
{
    return ns / 1000000000 * hz + ns % 1000000000 * hz / 1000000000;
}

uint64_t ticks_to_ns(uint64_t ticks, uint64_t hz)
{
    return ticks / hz * 1000000000 + (ticks % hz * 1000000000 + hz - 1) / hz;
}

/* ---- lines and bytes ---------------------------------------------------------------------------------------------- */

void platform_set_isa_irq(struct platform *p, unsigned irq, bool level)
{
    uint64_t flags = spin_lock_irqsave(&p->irq_lock);
    vpic_set_line(p, irq, level);
    vioapic_set_line(p, irq == 0 ? 2 : irq, level);
    spin_unlock_irqrestore(&p->irq_lock, flags);
}

void pio_bytewise(void *dev, uint16_t port, unsigned size, bool in, uint32_t *val, pio_byte_fn *fn)
{
    uint32_t result = 0;
    for (unsigned n = 0; n < size && n < 4; n++)
        result |= (uint32_t)fn(dev, (uint16_t)(port + n), in, (uint8_t)(*val >> 8 * n)) << 8 * n;
    if (in)
        *val = result;
}

/* ---- vm_platform_ops ---------------------------------------------------------------------------------------------- */

static void devices_reset(struct platform *p)
{
    uint64_t flags = spin_lock_irqsave(&p->irq_lock);
    vpic_reset(&p->pic);
    vioapic_reset(&p->ioapic);
    spin_unlock_irqrestore(&p->irq_lock, flags);
    vpit_reset(&p->pit);
    vrtc_reset(&p->rtc);
    vuart_reset(&p->uart);
    vpm_reset(&p->pm);
    vreset_reset(&p->reset);
}

static bool attach(struct platform *p)
{
    const struct { uint16_t first, count; vdev_pio_fn *fn; void *dev; } ports[] = {
        {0x020, 2, vpic_pio, p}, {0x040, 4, vpit_pio, &p->pit}, {0x060, 1, vreset_8042_pio, &p->reset},
        {0x061, 1, vpit_port61_pio, &p->pit}, {0x064, 1, vreset_8042_pio, &p->reset}, {0x070, 2, vrtc_pio, &p->rtc},
        {0x092, 1, vreset_port92_pio, &p->reset}, {0x0a0, 2, vpic_pio, p}, {0x3f8, 8, vuart_pio, &p->uart},
        {0x4d0, 2, vpic_pio, p}, {GUEST_PM1_EVENT_PORT, 12, vpm_pio, &p->pm}, {0xcf8, 8, vreset_pci_pio, &p->reset},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(ports); n++)
        if (!vdev_bus_add_pio(p->vm->bus, ports[n].first, ports[n].count, ports[n].fn, ports[n].dev))
            return false;
    if (p->vm->config->debug_exit && !vdev_bus_add_pio(p->vm->bus, VDEBUGEXIT_PORT, 4, vdebugexit_pio, p))
        return false;
    return vdev_bus_add_mmio(p->vm->bus, GUEST_LAPIC_GPA, PAGE_SIZE, vlapic_mmio, p) &&
           vdev_bus_add_mmio(p->vm->bus, GUEST_IOAPIC_GPA, PAGE_SIZE, vioapic_mmio, p);
}

static void platform_destroy(struct vm *vm)
{
    struct platform *p = vm->platform;
    if (!p)
        return;
    list_for_each_safe(t, next, &p->vtimers, struct vtimer, node)
        vtimer_fini(t);
    vuart_fini(&p->uart);
    vm->platform = NULL;
    kfree(p);
}

static bool platform_create(struct vm *vm, char *why)
{
    struct platform *p = kzalloc(sizeof *p);
    if (!p) {
        snprintf(why, 160, "%s: no memory for the virtual platform (%zu bytes)", vm->name, sizeof *p);
        return false;
    }
    vm->platform = p;
    p->vm = vm;
    p->time_offset_ns = time_ns();
    list_init(&p->vtimers);
    spin_init(&p->irq_lock, LOCK_RANK_VIRQ, "virq");
    spin_init(&p->pm.dev_lock, LOCK_RANK_VDEV, "vpm");
    spin_init(&p->reset.dev_lock, LOCK_RANK_VDEV, "vreset");
    vpit_init(&p->pit, p);
    vrtc_init(&p->rtc, p);
    vuart_init(&p->uart, p);
    if (!attach(p)) {
        snprintf(why, 160, "%s: the device bus is full or ranges overlap", vm->name);
        platform_destroy(vm);
        return false;
    }
    return true;
}

static void platform_reset(struct vm *vm)
{
    struct platform *p = vm->platform;
    devices_reset(p);
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        if (vm->vcpus[n] && vm->vcpus[n]->vlapic)
            vlapic_reset(vm->vcpus[n]->vlapic, true);
}

static void platform_pause(struct vm *vm, bool paused)
{
    struct platform *p = vm->platform;
    if (p->paused == paused)
        return;
    if (paused) {
        p->paused_at_ns = time_ns();
        __atomic_store_n(&p->paused, true, __ATOMIC_SEQ_CST);
        list_for_each(t, &p->vtimers, struct vtimer, node)
            timer_cancel(&t->timer); /* `active` and the due time stay */
        return;
    }
    p->time_offset_ns += time_ns() - p->paused_at_ns;
    __atomic_store_n(&p->paused, false, __ATOMIC_SEQ_CST);
    list_for_each(t, &p->vtimers, struct vtimer, node)
        if (t->active)
            vtimer_arm(t, t->due_ns);
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        if (vm->vcpus[n] && vm->vcpus[n]->vlapic)
            vlapic_resumed(vm->vcpus[n]->vlapic);
}

static bool platform_vcpu_create(struct vcpu *v)
{
    v->vlapic = vlapic_create(v->vm->platform, v);
    return v->vlapic != NULL;
}

static void platform_vcpu_destroy(struct vcpu *v)
{
    vlapic_destroy(v->vlapic);
    v->vlapic = NULL;
}

/* INIT: the APIC base MSR survives (Intel SDM 3, 11.4.7.3). A power-on reset came through platform_reset(). */
static void platform_vcpu_reset(struct vcpu *v)
{
    vlapic_reset(v->vlapic, false);
}

static uint64_t platform_write_tables(struct vm *vm)
{
    enum { BUF_BYTES = 8192 };
    uint8_t *buf = kzalloc(BUF_BYTES);
    size_t used = buf ? acpi_tables_build(buf, BUF_BYTES, vm->vcpu_count) : 0;
    if (used)
        vgenid_make(buf + GUEST_GENID_OFFSET);
    bool ok = used && dmm_write_guest(vm->space, GUEST_ACPI_GPA, buf, used) == DMM_FAULT_RETRY;
    kfree(buf);
    return ok ? GUEST_ACPI_GPA : 0;
}

/* ---- copies --------------------------------------------------------------------------------------------------------- */

static void platform_save(struct vm *vm, void *out)
{
    struct platform *p = vm->platform;
    struct platform_saved *s = out;
    debug_assert(p->paused);
    s->now_ns = platform_now_ns(p);
    s->lowest_next = p->lowest_next;
    uint64_t flags = spin_lock_irqsave(&p->irq_lock);
    s->pic = p->pic;
    s->ioapic = p->ioapic;
    spin_unlock_irqrestore(&p->irq_lock, flags);
    vpit_save(&p->pit, &s->pit);
    vrtc_save(&p->rtc, &s->rtc);
    vuart_save(&p->uart, &s->uart);
    vpm_save(&p->pm, &s->pm);
    vreset_save(&p->reset, &s->reset);
}

static void platform_load(struct vm *vm, const void *in)
{
    struct platform *p = vm->platform;
    const struct platform_saved *s = in;
    debug_assert(p->paused);
    p->time_offset_ns = p->paused_at_ns - s->now_ns;
    p->lowest_next = s->lowest_next;
    uint64_t flags = spin_lock_irqsave(&p->irq_lock);
    p->pic = s->pic;
    p->ioapic = s->ioapic;
    spin_unlock_irqrestore(&p->irq_lock, flags);
    vpit_load(&p->pit, &s->pit);
    vrtc_load(&p->rtc, &s->rtc);
    vuart_load(&p->uart, &s->uart);
    vpm_load(&p->pm, &s->pm);
    vreset_load(&p->reset, &s->reset);
}

static void platform_vcpu_save(struct vcpu *v, void *out) { vlapic_save(v->vlapic, out); }
static void platform_vcpu_load(struct vcpu *v, const void *in) { vlapic_load(v->vlapic, in); }

const struct vm_platform_ops vdev_platform_ops = {
    .create = platform_create, .destroy = platform_destroy, .reset = platform_reset, .pause = platform_pause,
    .vcpu_create = platform_vcpu_create, .vcpu_destroy = platform_vcpu_destroy, .vcpu_reset = platform_vcpu_reset,
    .saved_bytes = sizeof(struct platform_saved), .vcpu_saved_bytes = sizeof(struct vlapic_saved),
    .save = platform_save, .load = platform_load, .vcpu_save = platform_vcpu_save, .vcpu_load = platform_vcpu_load,
    .change_generation = vgenid_change, .write_firmware_tables = platform_write_tables, .rdmsr = vlapic_rdmsr, .wrmsr = vlapic_wrmsr,
    .tsc_changed = vlapic_tsc_changed,
    .irq = {.pending = vlapic_pending, .masked = vlapic_masked, .accept = vlapic_accept, .has_any = vlapic_has_any,
            .tpr_changed = vlapic_tpr_changed, .get_cr8 = vlapic_get_cr8, .set_pv_eoi = vlapic_set_pv_eoi, .post = vlapic_post},
};
