/*
 * Ticket spinlocks: fair, so that no CPU starves, and 4 bytes. The rank check keeps, per CPU, the locks held in order of
 * acquisition; since ranks must ascend, the last one is the highest, and one comparison per acquisition finds every possible
 * deadlock by order on its first occurrence, not only when two CPUs meet. Locks may be released in any order. A lock that cannot be had for
 * STUCK_NS is a bug of another kind, and ends in a panic with both places.
 */
#include "core/lock.h"
#include "core/log.h"
#include "core/slow.h"
#include "core/time.h"
#include "x86/cpu.h"
#include "x86/percpu.h"

#define STUCK_NS UINT64_C(30000000000)

void spin_init(struct spinlock *l, enum lock_rank rank, const char *name)
{
    *l = (struct spinlock)SPINLOCK_INIT(rank, name);
}

#if HV_DEBUG
static void check_rank(const struct spinlock *l, const void *pc)
{
    struct percpu *cpu = this_cpu();
    if (cpu->held_count && cpu->held_ranks[cpu->held_count - 1] >= l->rank) {
        const struct spinlock *held = cpu->held_locks[cpu->held_count - 1];
        panic("lock order: %s (rank %u) wanted at %p while %s (rank %u, taken at %p) is held", l->name, l->rank, pc,
              held->name, held->rank, held->holder_pc);
    }
    hv_assert(cpu->held_count < PERCPU_MAX_HELD);
}

static void note_taken(struct spinlock *l, const void *pc)
{
    struct percpu *cpu = this_cpu();
    l->holder_cpu = (uint8_t)cpu->id;
    l->holder_pc = pc;
    l->taken_tsc = time_tsc();
    uint64_t flags = irq_save(); /* a handler's locks come and go in the same slots */
    cpu->held_ranks[cpu->held_count] = l->rank;
    cpu->held_locks[cpu->held_count++] = l;
    irq_restore(flags);
}

static void note_released(struct spinlock *l, enum slow_kind kind)
{
    if (kind != SLOW_KIND_COUNT)
        slow_note(kind, l->name, l->holder_pc, time_tsc() - l->taken_tsc);
    struct percpu *cpu = this_cpu();
    uint64_t flags = irq_save();
    unsigned i = cpu->held_count;
    while (i && cpu->held_locks[i - 1] != l)
        i--;
    if (!i)
        panic("lock %s released at %p by a CPU that does not hold it", l->name, __builtin_return_address(0));
    for (cpu->held_count--; i <= cpu->held_count; i++) {
        cpu->held_locks[i - 1] = cpu->held_locks[i];
        cpu->held_ranks[i - 1] = cpu->held_ranks[i];
    }
    irq_restore(flags);
}

void assert_no_locks_held(const char *where)
{
    const struct percpu *cpu = this_cpu();
    if (cpu->held_count) {
        const struct spinlock *held = cpu->held_locks[cpu->held_count - 1];
        panic("%s with lock %s (taken at %p) held", where, held->name, held->holder_pc);
    }
}
#else
static void check_rank(const struct spinlock *l UNUSED, const void *pc UNUSED) {}
static void note_taken(struct spinlock *l UNUSED, const void *pc UNUSED) {}
static void note_released(struct spinlock *l UNUSED, enum slow_kind kind UNUSED) {}
void assert_no_locks_held(const char *where UNUSED) {}
#endif

static void acquire(struct spinlock *l, const void *pc)
{
    check_rank(l, pc);
    uint16_t ticket = __atomic_fetch_add(&l->next, 1, __ATOMIC_RELAXED);
    for (uint64_t begun = HV_DEBUG ? time_tsc() : 0; __atomic_load_n(&l->owner, __ATOMIC_ACQUIRE) != ticket; cpu_pause())
        if (HV_DEBUG && time_tsc_to_ns(time_tsc() - begun) > STUCK_NS)
            panic("lock %s wanted at %p for %lu s: CPU %u holds it since %p", l->name, pc, STUCK_NS / 1000000000, l->holder_cpu, l->holder_pc);
    note_taken(l, pc);
}

void spin_lock(struct spinlock *l)
{
    acquire(l, __builtin_return_address(0));
}

bool spin_trylock(struct spinlock *l)
{
    uint16_t owner = __atomic_load_n(&l->owner, __ATOMIC_RELAXED), expected = owner;
    if (!__atomic_compare_exchange_n(&l->next, &expected, (uint16_t)(owner + 1), false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return false;
    note_taken(l, __builtin_return_address(0));
    return true;
}

static void release(struct spinlock *l, enum slow_kind kind)
{
    note_released(l, kind);
    __atomic_store_n(&l->owner, (uint16_t)(l->owner + 1), __ATOMIC_RELEASE);
}

void spin_unlock(struct spinlock *l)
{
    release(l, HV_DEBUG && !irqs_enabled() ? SLOW_IRQS_OFF : SLOW_LOCK);
}

uint64_t spin_lock_irqsave(struct spinlock *l)
{
    uint64_t flags = irq_save();
    if (HV_DEBUG && (flags & RFLAGS_IF))
        irqs_off_named(l->name, __builtin_return_address(0)); /* what is waited counts too */
    acquire(l, __builtin_return_address(0));
    return flags;
}

void spin_unlock_irqrestore(struct spinlock *l, uint64_t flags)
{
    release(l, flags & RFLAGS_IF ? SLOW_KIND_COUNT : SLOW_IRQS_OFF); /* the outermost is timed as such */
    irq_restore(flags);
}

bool spin_is_held(const struct spinlock *l)
{
    return __atomic_load_n(&l->owner, __ATOMIC_RELAXED) != __atomic_load_n(&l->next, __ATOMIC_RELAXED);
}
