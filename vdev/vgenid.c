/*
 * The generation id (Microsoft, "Virtual Machine Generation ID"): 16 bytes in the guest's memory that are different after whatever makes a
 * copy of the guest go on, or an old state of it. A guest that sees them change draws new random numbers, instead of the same ones
 * as the other copy. They lie in the page of the ACPI tables, which the guest's memory map says is reserved; the tables say where, and an
 * interrupt says when (acpi_tables.c). It is an edge of an I/O APIC pin that nothing else has; one that the guest has masked is lost, as its
 * driver will read the id when it starts.
 */
#include "vdev/platform.h"

#include "core/time.h"
#include "lib/string.h"
#include "x86/cpu.h"

/* Steele, Lea, Flood, "Fast splittable pseudorandom number generators": every input has an output of its own. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* Where the CPU has no generator, time and place in the sequence of all ids remain. */
void vgenid_make(uint8_t id[GUEST_GENID_BYTES])
{
    static uint64_t made;
    uint64_t n = __atomic_add_fetch(&made, 1, __ATOMIC_RELAXED);
    uint64_t words[] = {mix(cpu_random() + n), mix(cpu_random() ^ mix(time_wallclock_s()) ^ n)};
    _Static_assert(sizeof(words) == GUEST_GENID_BYTES, "two words");
    memcpy(id, words, sizeof(words));
}

enum dmm_fault_result vgenid_change(struct vm *vm, gfn_t *gfn)
{
    struct platform *p = vm->platform;
    uint8_t id[GUEST_GENID_BYTES];
    vgenid_make(id);
    *gfn = gpa_to_gfn(GUEST_ACPI_GPA);
    enum dmm_fault_result r = dmm_write_guest(vm->space, GUEST_ACPI_GPA + GUEST_GENID_OFFSET, id, sizeof(id));
    if (r != DMM_FAULT_RETRY)
        return r;
    uint64_t flags = spin_lock_irqsave(&p->irq_lock);
    vioapic_set_line(p, GUEST_GENID_PIN, true);
    vioapic_set_line(p, GUEST_GENID_PIN, false);
    spin_unlock_irqrestore(&p->irq_lock, flags);
    return DMM_FAULT_RETRY;
}
