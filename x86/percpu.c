/*
 * Per-CPU areas and the stack protector's guard.
 *
 * The boot CPU's area is static, because the first lock is taken before there is an allocator; the others' are brought by
 * whoever starts those CPUs. The guard value is one for the whole image (-mstack-protector-guard=global): a value per
 * CPU would have to follow threads that move.
 */
#include "x86/percpu.h"
#include "x86/cpu.h"

static struct percpu boot_area;
static struct percpu *areas[MAX_PCPUS];
static unsigned area_count;

uintptr_t __stack_chk_guard;

unsigned cpu_count(void) { return __atomic_load_n(&area_count, __ATOMIC_ACQUIRE); }

struct percpu *percpu_of(unsigned id) { return id < cpu_count() ? areas[id] : NULL; }

bool percpu_add(struct percpu *area, unsigned apic_id)
{
    if (!area || area_count == MAX_PCPUS)
        return false;
    area->self = area;
    area->id = area_count;
    area->apic_id = apic_id;
    areas[area_count] = area;
    __atomic_store_n(&area_count, area_count + 1, __ATOMIC_RELEASE);
    return true;
}

void percpu_install(struct percpu *area)
{
    wrmsr(MSR_GS_BASE, (uintptr_t)area);
    area->online = true;
}

__attribute__((no_stack_protector)) void percpu_init_boot(void)
{
    percpu_add(&boot_area, cpuid(CPUID_LEAF_FEATURES, 0).ebx >> 24);
    percpu_install(&boot_area);
    /* A zero low byte: a string that overruns its buffer cannot write it and go on. */
    __stack_chk_guard = cpu_random() & ~UINT64_C(0xff);
}
