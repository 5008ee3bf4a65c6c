/*
 * A host-side world for the device models: a clock that moves only when told to, timers on it, one VM with `n` vCPUs, a port and
 * MMIO bus, guest memory for the ACPI tables. Include it in exactly one file of a test.
 */
#ifndef HV_TESTS_VDEV_FAKES_H
#define HV_TESTS_VDEV_FAKES_H
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/time.h"
#include "mm/mm.h"
#include "vdev/platform.h"

static uint64_t fake_now = 1000000000, fake_kicks, fake_wakes, fake_wall = 1700000000;
static unsigned fake_locks;
static uint8_t fake_lock_rank[16];
static struct list_head fake_timers = LIST_INIT(fake_timers);
static bool fake_in_timer;

#define FAKE_CHECK(c) do { if (!(c)) { fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #c); abort(); } } while (0)

uint64_t time_ns(void) { return fake_now; }
uint64_t time_tsc(void) { return fake_now * 2; }
uint64_t time_tsc_khz(void) { return 2000000; }
uint64_t time_tsc_to_ns(uint64_t t) { return t / 2; }
uint64_t time_ns_to_tsc(uint64_t n) { return n * 2; }
uint64_t time_wallclock_s(void) { return fake_wall + fake_now / 1000000000; }

#ifdef HV_CORE_LOCK_H /* the real header's prototypes */
void spin_init(struct spinlock *l, enum lock_rank rank, const char *name) { *l = (struct spinlock){.rank = rank, .name = name}; }
uint64_t spin_lock_irqsave(struct spinlock *l)
{
    FAKE_CHECK(l->next == l->owner && fake_locks < 16);
    FAKE_CHECK(fake_locks == 0 || fake_lock_rank[fake_locks - 1] < l->rank);
    fake_lock_rank[fake_locks++] = l->rank;
    l->next++;
    return 0x202;
}
void spin_unlock_irqrestore(struct spinlock *l, uint64_t flags)
{
    FAKE_CHECK(flags == 0x202 && l->next == (uint16_t)(l->owner + 1) && fake_locks > 0);
    l->owner++;
    fake_locks--;
}
#endif
void waitq_init(struct waitq *q) { list_init(&q->waiters); }
void waitq_wake_all(struct waitq *q) { (void)q; fake_wakes++; }

void timer_init(struct timer *t, void (*fn)(struct timer *), void *arg) { *t = (struct timer){.fn = fn, .arg = arg}; list_init(&t->node); }
void timer_cancel(struct timer *t)
{
    FAKE_CHECK(fake_locks == 0 && !fake_in_timer); /* would wait for a callback that may want the lock */
    list_del(&t->node);
    t->armed = false;
}
void timer_arm(struct timer *t, uint64_t deadline_ns)
{
    list_del(&t->node);
    t->deadline_ns = deadline_ns;
    t->armed = true;
    list_add_tail(&fake_timers, &t->node);
}
static struct timer *fake_next_timer(void)
{
    struct timer *best = NULL;
    list_for_each(t, &fake_timers, struct timer, node)
        if (!best || t->deadline_ns < best->deadline_ns)
            best = t;
    return best;
}
static UNUSED unsigned fake_advance(uint64_t ns) /* returns the number of callbacks */
{
    uint64_t end = fake_now + ns;
    unsigned fired = 0;
    for (struct timer *t; (t = fake_next_timer()) && t->deadline_ns <= end && fired < 1000000; fired++) {
        fake_now = MAX(fake_now, t->deadline_ns);
        list_del(&t->node);
        t->armed = false;
        fake_in_timer = true;
        t->fn(t);
        fake_in_timer = false;
    }
    fake_now = end;
    return fired;
}

NORETURN void panic(const char *fmt, ...) { fprintf(stderr, "panic: %s\n", fmt); abort(); }
uint64_t cpu_random(void) { static uint64_t n; return ++n * UINT64_C(0x9e3779b97f4a7c15); }
void *kzalloc(size_t bytes) { return calloc(1, bytes); }
void kfree(void *p) { free(p); }

static UNUSED uint8_t fake_acpi[GUEST_ACPI_SIZE];
#ifndef FAKE_GUEST_MEMORY_IS_ELSEWHERE
enum dmm_fault_result dmm_write_guest(struct dmm_space *s, uint64_t gpa, const void *buf, size_t len)
{
    (void)s;
    FAKE_CHECK(gpa >= GUEST_ACPI_GPA && gpa + len <= GUEST_ACPI_GPA + GUEST_ACPI_SIZE);
    memcpy(fake_acpi + (gpa - GUEST_ACPI_GPA), buf, len);
    return DMM_FAULT_RETRY;
}
#endif
void vm_alloc_late(struct vm *vm, void **slot, size_t bytes) { (void)vm; FAKE_CHECK(fake_locks == 0 && !*slot); *slot = calloc(1, bytes); }

void vcpu_kick(struct vcpu *v) { v->kick_pending = true; fake_kicks++; }
static uint8_t fake_cr8;
static void fake_set_cr8(struct vcpu *v, uint8_t c) { (void)v; FAKE_CHECK(c < 16); fake_cr8 = c; }
static unsigned fake_cpl;
static unsigned fake_get_cpl(struct vcpu *v) { (void)v; return fake_cpl; }
static void fake_set_tsc_offset(struct vcpu *v, uint64_t offset) { (void)v, (void)offset; }
static const struct hvm_ops fake_hvm_ops = {.name = "fake", .set_cr8 = fake_set_cr8, .cpl = fake_get_cpl, .set_tsc_offset = fake_set_tsc_offset};
const struct hvm_ops *hvm(void) { return &fake_hvm_ops; }
void vm_request_stop(struct vm *vm, int exit_code, const char *fmt, ...)
{
    va_list ap;
    FAKE_CHECK(fake_locks == 0);
    va_start(ap, fmt);
    vsnprintf(vm->stop_reason, sizeof vm->stop_reason, fmt, ap);
    va_end(ap);
    vm->exit_code = exit_code;
    vm->stop_requested = true;
}
void vm_request_reset(struct vm *vm, const char *why) { FAKE_CHECK(fake_locks == 0 && why); vm->reset_requested = true; }

struct vdev_bus { struct { uint64_t at, size; vdev_pio_fn *pio; vdev_mmio_fn *mmio; void *dev; } range[64]; unsigned n; };
struct vdev_bus *vdev_bus_create(void) { return calloc(1, sizeof(struct vdev_bus)); }
bool vdev_bus_add_pio(struct vdev_bus *b, uint16_t first, uint16_t count, vdev_pio_fn *fn, void *dev)
{
    FAKE_CHECK(b->n < 64);
    b->range[b->n].at = first, b->range[b->n].size = count, b->range[b->n].pio = fn, b->range[b->n++].dev = dev;
    return true;
}
bool vdev_bus_add_mmio(struct vdev_bus *b, uint64_t gpa, uint64_t size, vdev_mmio_fn *fn, void *dev)
{
    FAKE_CHECK(b->n < 64);
    b->range[b->n].at = gpa, b->range[b->n].size = size, b->range[b->n].mmio = fn, b->range[b->n++].dev = dev;
    return true;
}

static const struct config_vm fake_config = {.debug_exit = true, .memory_bytes = MIB(128)};

/* Without a state: for one that is loaded. */
UNUSED static struct vm *fake_vm_made(unsigned vcpus)
{
    struct vm *vm = calloc(1, sizeof *vm);
    char why[160];
    vm->bus = vdev_bus_create();
    vm->config = &fake_config;
    vm->vcpus = calloc(vcpus, sizeof *vm->vcpus);
    vm->vcpu_count = vcpus;
    FAKE_CHECK(vdev_platform_ops.create(vm, why));
    for (unsigned n = 0; n < vcpus; n++) {
        struct vcpu *v = vm->vcpus[n] = calloc(1, sizeof *v);
        v->vm = vm, v->id = n;
        FAKE_CHECK(vdev_platform_ops.vcpu_create(v));
    }
    return vm;
}
UNUSED static struct vm *fake_vm(unsigned vcpus)
{
    struct vm *vm = fake_vm_made(vcpus);
    vdev_platform_ops.reset(vm);
    return vm;
}
static void fake_vm_free(struct vm *vm)
{
    for (unsigned n = 0; n < vm->vcpu_count; n++) {
        vdev_platform_ops.vcpu_destroy(vm->vcpus[n]);
        free(vm->vcpus[n]);
    }
    vdev_platform_ops.destroy(vm);
    FAKE_CHECK(list_empty(&fake_timers) && fake_locks == 0);
    free(vm->vcpus), free(vm->bus), free(vm);
}

/* As vm/bus.c: a device sees an access whole only if all of it is the device's, and else by bytes. */
static void fake_pio(struct vm *vm, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    struct vdev_bus *b = vm->bus;
    uint32_t ones = size == 4 ? ~0u : (1u << 8 * size) - 1, byte;
    for (unsigned n = 0; n < b->n; n++)
        if (b->range[n].pio && port >= b->range[n].at && port + size <= b->range[n].at + b->range[n].size) {
            *val = in ? ones : *val & ones;
            b->range[n].pio(vm->vcpus[0], b->range[n].dev, port, size, in, val);
            FAKE_CHECK(fake_locks == 0);
            return;
        }
    for (unsigned n = 0; size > 1 && n < size; n++) {
        byte = *val >> 8 * n & 0xff;
        fake_pio(vm, (uint16_t)(port + n), 1, in, &byte);
        if (in)
            *val = (*val & ~(0xffu << 8 * n)) | (byte & 0xff) << 8 * n;
    }
    if (in && size == 1)
        *val = 0xff;
}
static UNUSED uint32_t inp(struct vm *vm, uint16_t port, unsigned size)
{
    uint32_t val = 0xdeadbeef;
    fake_pio(vm, port, size, true, &val);
    return size == 4 ? val : val & ((1u << 8 * size) - 1);
}
static UNUSED void outp(struct vm *vm, uint16_t port, unsigned size, uint32_t val) { fake_pio(vm, port, size, false, &val); }
static UNUSED uint8_t inb(struct vm *vm, uint16_t port) { return (uint8_t)inp(vm, port, 1); }
static UNUSED void outb(struct vm *vm, uint16_t port, uint8_t val) { outp(vm, port, 1, val); }
static UNUSED uint64_t mmio(struct vcpu *v, uint64_t gpa, unsigned size, bool write, uint64_t val)
{
    struct vdev_bus *b = v->vm->bus;
    for (unsigned n = 0; n < b->n; n++)
        if (b->range[n].mmio && gpa >= b->range[n].at && gpa < b->range[n].at + b->range[n].size) {
            b->range[n].mmio(v, b->range[n].dev, gpa - b->range[n].at, size, write, &val);
            FAKE_CHECK(fake_locks == 0);
            return val;
        }
    return ~UINT64_C(0);
}
static UNUSED uint32_t lapic_read(struct vcpu *v, uint32_t reg) { return (uint32_t)mmio(v, GUEST_LAPIC_GPA + reg, 4, false, 0); }
static UNUSED void lapic_write(struct vcpu *v, uint32_t reg, uint32_t val) { mmio(v, GUEST_LAPIC_GPA + reg, 4, true, val); }
static UNUSED void ioapic_write(struct vm *vm, uint8_t reg, uint32_t val)
{
    mmio(vm->vcpus[0], GUEST_IOAPIC_GPA, 4, true, reg);
    mmio(vm->vcpus[0], GUEST_IOAPIC_GPA + 0x10, 4, true, val);
}
static UNUSED uint32_t ioapic_read(struct vm *vm, uint8_t reg)
{
    mmio(vm->vcpus[0], GUEST_IOAPIC_GPA, 4, true, reg);
    return (uint32_t)mmio(vm->vcpus[0], GUEST_IOAPIC_GPA + 0x10, 4, false, 0);
}
static UNUSED struct platform *platform_of(struct vm *vm) { return vm->platform; }
static UNUSED int pending(struct vcpu *v) { return vdev_platform_ops.irq.pending(v); }
static UNUSED int take(struct vcpu *v) /* as the run loop: the highest deliverable vector is taken */
{
    int vector = pending(v);
    if (vector >= 0)
        vdev_platform_ops.irq.accept(v, (uint8_t)vector);
    return vector;
}
static UNUSED uint64_t fake_seed = 0x9e3779b97f4a7c15;
static UNUSED uint64_t rnd(void)
{
    fake_seed ^= fake_seed << 13, fake_seed ^= fake_seed >> 7, fake_seed ^= fake_seed << 17;
    return fake_seed;
}
#endif
