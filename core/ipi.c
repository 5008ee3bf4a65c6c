/*
 * Calls on other CPUs: for what must have happened everywhere before we go on, a translation forgotten, a store seen.
 *
 * One call at a time for the whole machine: these are rare, and a queue per CPU would be more to get wrong. Whoever waits, for its turn or for the
 * answers, does so with interrupts on, so two CPUs that call each other both answer. A CPU in a guest leaves it for the interrupt.
 * An answer that takes long is asked for again: CPUs in software lose an interrupt now and then.
 */
#include "core/ipi.h"
#include "core/lock.h"
#include "core/log.h"
#include "core/thread.h"
#include "core/time.h"
#include "x86/apic.h"
#include "x86/cpu.h"
#include "x86/idt.h"
#include "x86/percpu.h"

#define ASK_AGAIN_NS UINT64_C(10000000)

static struct {
    struct spinlock lock;
    void (*fn)(void *);
    void *arg;
    volatile unsigned pending;
    volatile bool wanted[MAX_PCPUS];
} call = {.lock = SPINLOCK_INIT(LOCK_RANK_IPI, "cpu call")};

static void call_interrupt(void *arg UNUSED)
{
    unsigned me = cpu_id();
    if (!__atomic_exchange_n(&call.wanted[me], false, __ATOMIC_ACQUIRE))
        return;
    call.fn(call.arg);
    __atomic_fetch_sub(&call.pending, 1, __ATOMIC_RELEASE);
}

static bool ask(unsigned pcpu)
{
    if (!sched_cpu_online(pcpu))
        return false;
    __atomic_fetch_add(&call.pending, 1, __ATOMIC_RELAXED);
    __atomic_store_n(&call.wanted[pcpu], true, __ATOMIC_RELEASE);
    lapic_send_ipi(percpu_of(pcpu)->apic_id, VECTOR_IPI_CALL);
    return true;
}

static void begin(void (*fn)(void *), void *arg)
{
    hv_assert(irqs_enabled());
    spin_lock(&call.lock);
    call.fn = fn;
    call.arg = arg;
}

static void end(void)
{
    uint64_t asked_ns = time_ns();
    for (; __atomic_load_n(&call.pending, __ATOMIC_ACQUIRE); cpu_pause()) {
        if (time_ns() - asked_ns < ASK_AGAIN_NS)
            continue;
        for (unsigned n = 0; n < cpu_count(); n++)
            if (call.wanted[n])
                lapic_send_ipi(percpu_of(n)->apic_id, VECTOR_IPI_CALL);
        asked_ns = time_ns();
    }
    spin_unlock(&call.lock);
}

void cpu_call_others(void (*fn)(void *arg), void *arg)
{
    unsigned count = cpu_count();
    if (count == 1)
        return;
    begin(fn, arg);
    for (unsigned n = 0; n < count; n++)
        if (n != cpu_id())
            ask(n);
    end();
}

void ipi_init(void)
{
    if (!irq_register(VECTOR_IPI_CALL, call_interrupt, NULL))
        panic("the vector of calls between CPUs is taken");
}
