/*
 * Ticket spinlocks with ranks. A CPU may only take a lock whose rank is higher than every lock it holds; debug
 * builds (HV_DEBUG=1) check that at each acquisition and panic with both names. docs/locking.md has the order.
 * No lock may be held where a thread can block (thread_block() asserts it).
 *
 * spin_lock() is for locks never taken in interrupt context; a lock that is must always be taken with
 * spin_lock_irqsave().
 */
#ifndef HV_CORE_LOCK_H
#define HV_CORE_LOCK_H

#include "include/hv/types.h"

enum lock_rank { /* taken in ascending order */
    LOCK_RANK_NONE = 0,
    LOCK_RANK_VM_LIST,     /* vm/: the list of VMs */
    LOCK_RANK_VM,          /* vm/: one VM's life cycle */
    LOCK_RANK_WRITE_LOG,   /* a back end: what a vCPU has logged as written */
    LOCK_RANK_POOL,        /* mm/dmm: pool list */
    LOCK_RANK_SPACE,       /* mm/dmm: the upper levels of one space */
    LOCK_RANK_P2M,         /* mm/dmm: one 2 MiB region of one space */
    LOCK_RANK_IMAGE,       /* mm/dmm: one 2 MiB region of an image */
    LOCK_RANK_UNSEALED,    /* mm/dmm: sealed pages that were left */
    LOCK_RANK_SHARE,       /* mm/dmm: shared frames */
    LOCK_RANK_RMAP,        /* mm/dmm: storage for reverse maps */
    LOCK_RANK_COVER,       /* mm/dmm: what is set aside for one space */
    LOCK_RANK_SLAB,        /* mm: slab classes */
    LOCK_RANK_VMAP,        /* mm: map of the virtual region */
    LOCK_RANK_HOSTMAP,     /* mm: our page tables (their pages come from the frame allocator) */
    LOCK_RANK_FRAME,       /* mm/dmm: frame allocator slow path */
    LOCK_RANK_IPI,         /* core: calls on other CPUs; waits with interrupts on */
    /* From here on: taken in interrupt handlers too, so above everything that is held with interrupts on. */
    LOCK_RANK_VDEV,        /* vdev/: one VM's device models */
    LOCK_RANK_VIRQ,        /* vdev/: interrupt controllers (below devices: devices raise lines) */
    LOCK_RANK_WAITQ,       /* core: wait queues */
    LOCK_RANK_THREADS,     /* core: the list of all threads */
    LOCK_RANK_SCHED,       /* core: run queues */
    LOCK_RANK_TIMER,       /* core: timer queues */
    LOCK_RANK_CONSOLE,     /* core: console input, guest console rings */
    LOCK_RANK_LOG,         /* core: log ring */
    LOCK_RANK_UART,        /* drivers: serial port */
    LOCK_RANK_MAX,
};

struct spinlock {
    uint16_t next, owner;  /* ticket taken next, ticket being served */
    uint8_t rank;          /* enum lock_rank */
    uint8_t holder_cpu;    /* for reports only; low 8 bits of the pcpu id */
    const char *name;
    const void *holder_pc; /* debug builds: where it was taken, and when */
    uint64_t taken_tsc;
};

#define SPINLOCK_INIT(rank_, name_) { .rank = (rank_), .name = (name_) }

void spin_init(struct spinlock *l, enum lock_rank rank, const char *name);
void spin_lock(struct spinlock *l);
bool spin_trylock(struct spinlock *l);
void spin_unlock(struct spinlock *l);
/* Returns RFLAGS to give back to the unlock; interrupts are off in between. */
uint64_t spin_lock_irqsave(struct spinlock *l);
void spin_unlock_irqrestore(struct spinlock *l, uint64_t flags);
bool spin_is_held(const struct spinlock *l); /* by anyone; for assertions */

/* The same as spin_lock() and spin_unlock(), without a call where nothing is checked: for the few paths whose every instruction counts. */
#if HV_DEBUG || HV_HOST
static inline void spin_lock_here(struct spinlock *l) { spin_lock(l); }
static inline void spin_unlock_here(struct spinlock *l) { spin_unlock(l); }
#else
static inline void spin_lock_here(struct spinlock *l)
{
    uint16_t ticket = __atomic_fetch_add(&l->next, 1, __ATOMIC_RELAXED);
    while (unlikely(__atomic_load_n(&l->owner, __ATOMIC_ACQUIRE) != ticket))
        __builtin_ia32_pause();
}
static inline void spin_unlock_here(struct spinlock *l)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* the CPU keeps stores in order, the compiler is told */
    l->owner++;                              /* the holder's alone, and so small that it changes at once */
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}
#endif
/* Panics (debug builds) if this CPU holds any spinlock. */
void assert_no_locks_held(const char *where);

#endif
