/*
 * Timers: a sorted list per CPU in front of the one hardware timer. There are a few timers per VM at most and most are
 * re-armed near the front, so a list beats a heap's bookkeeping; the hardware is programmed only when the earliest
 * deadline changes.
 *
 * The list's lock is dropped around each callback, so that a callback may arm timers and take locks of any rank above those of
 * interrupt handlers. `running` names the timer whose callback is being run, for timer_cancel() on another CPU to wait for. A timer
 * is on the list of the CPU that armed it last; which one that is can change until that list's lock is held.
 */
#include "core/log.h"
#include "core/sched.h"
#include "core/time.h"
#include "x86/apic.h"
#include "x86/cpu.h"
#include "x86/percpu.h"

struct timer_queue {
    struct spinlock lock;
    struct list_head list;      /* by deadline */
    uint64_t armed_ns;          /* what the hardware is set to; UINT64_MAX: off */
    struct timer *running;
};

static struct timer_queue *queues[MAX_PCPUS];

static struct timer_queue *queue_of(unsigned pcpu) { return __atomic_load_n(&queues[pcpu], __ATOMIC_ACQUIRE); }
static struct timer_queue *this_queue(void) { return queue_of(cpu_id()); }

/* Interrupts off. */
static void program(struct timer_queue *q, uint64_t deadline_ns)
{
    if (deadline_ns == q->armed_ns)
        return;
    q->armed_ns = deadline_ns;
    uint64_t now = time_ns();
    if (deadline_ns == UINT64_MAX)
        lapic_timer_stop();
    else
        lapic_timer_arm_tsc(time_tsc() + (deadline_ns > now ? time_ns_to_tsc(deadline_ns - now) : 0));
}

static uint64_t earliest(const struct timer_queue *q)
{
    uint64_t slice = sched_slice_deadline();
    if (list_empty(&q->list))
        return slice;
    return MIN(slice, list_first(&q->list, struct timer, node)->deadline_ns);
}

void timer_slice_needed(void)
{
    struct timer_queue *q = this_queue();
    uint64_t slice = sched_slice_deadline();
    if (slice < q->armed_ns)
        program(q, slice);
}

void timer_init(struct timer *t, void (*fn)(struct timer *), void *arg)
{
    *t = (struct timer){.fn = fn, .arg = arg};
    list_init(&t->node);
}

/* Takes the timer off its list, whose CPU it returns; *running: its callback is being run there. Interrupts off. */
static struct timer_queue *unlink(struct timer *t, bool *running)
{
    for (;;) {
        unsigned pcpu = __atomic_load_n(&t->pcpu, __ATOMIC_ACQUIRE);
        struct timer_queue *q = queue_of(pcpu);
        spin_lock(&q->lock);
        bool same = t->pcpu == pcpu;
        if (same) {
            list_del(&t->node);
            t->armed = false;
            /* The hardware keeps its deadline: a spurious expiry is cheaper than programming it twice. */
            *running = pcpu != cpu_id() && q->running == t;
        }
        spin_unlock(&q->lock);
        if (same)
            return q;
    }
}

/* Does not wait for a callback on another CPU, which may want a lock that our caller holds: if it arms the timer too, one of the two wins. */
void timer_arm(struct timer *t, uint64_t deadline_ns)
{
    uint64_t flags = irq_save();
    struct timer_queue *q = this_queue();
    bool running;
    if (t->armed)
        unlink(t, &running);
    spin_lock(&q->lock);
    t->deadline_ns = deadline_ns;
    t->pcpu = cpu_id();
    t->armed = true;
    struct list_head *before = &q->list;
    list_for_each(it, &q->list, struct timer, node)
        if (it->deadline_ns > deadline_ns) {
            before = &it->node;
            break;
        }
    list_insert(&t->node, before->prev, before);
    if (deadline_ns < q->armed_ns)
        program(q, deadline_ns);
    spin_unlock(&q->lock);
    irq_restore(flags);
}

void timer_cancel(struct timer *t)
{
    bool running = true;
    while (running) { /* once more, if the callback was running: it may have armed the timer again */
        uint64_t flags = irq_save();
        struct timer_queue *q = unlink(t, &running);
        irq_restore(flags);
        while (running && __atomic_load_n(&q->running, __ATOMIC_ACQUIRE) == t)
            cpu_pause();
    }
}

static void expire(void)
{
    struct timer_queue *q = this_queue();
    uint64_t now = time_ns();
    q->armed_ns = UINT64_MAX;
    spin_lock(&q->lock);
    while (!list_empty(&q->list)) {
        struct timer *t = list_first(&q->list, struct timer, node);
        if (t->deadline_ns > now)
            break;
        list_del(&t->node);
        t->armed = false;
        __atomic_store_n(&q->running, t, __ATOMIC_RELEASE);
        void (*fn)(struct timer *) = t->fn;
        spin_unlock(&q->lock);
        fn(t);
        spin_lock(&q->lock);
        __atomic_store_n(&q->running, NULL, __ATOMIC_RELEASE);
    }
    spin_unlock(&q->lock);
    sched_check_slice(now);
    uint64_t next = earliest(q);
    program(q, next <= now && thread_need_resched() ? (list_empty(&q->list) ? UINT64_MAX :
            list_first(&q->list, struct timer, node)->deadline_ns) : next);
}

size_t timer_cpu_bytes(void) { return sizeof(struct timer_queue); }

void timer_init_this_cpu(void *memory)
{
    struct timer_queue *q = memory;
    spin_init(&q->lock, LOCK_RANK_TIMER, "timers");
    list_init(&q->list);
    q->armed_ns = UINT64_MAX;
    __atomic_store_n(&queues[cpu_id()], q, __ATOMIC_RELEASE);
    lapic_timer_set_handler(expire);
}
