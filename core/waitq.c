/*
 * Wait queues. The condition is evaluated under the queue's lock and the sleeper enqueues itself before it lets go, so a waker
 * (which changes the condition first, then takes the lock) either comes early enough for the sleeper to see the
 * condition, or late enough to find it on the queue. Woken threads look again: a wake-up is a hint, the condition is
 * the truth.
 *
 * A timeout is a timer that wakes this one thread; the compare-and-swap BLOCKED -> RUNNABLE arbitrates between the two wakers. The thread
 * may have moved away from the CPU whose timer it is: the flag is set before the state is looked at there, and the state before the
 * flag here, so one of the two sees the other (tests/model/sleep_wake.pml).
 */
#include "core/log.h"
#include "core/sched.h"
#include "core/time.h"
#include "x86/cpu.h"

void waitq_init(struct waitq *q)
{
    spin_init(&q->lock, LOCK_RANK_WAITQ, "waitq");
    list_init(&q->waiters);
}

static void on_timeout(struct timer *timer)
{
    struct thread *t = timer->arg;
    __atomic_store_n(&t->timed_out, true, __ATOMIC_SEQ_CST);
    thread_make_runnable(t);
}

enum wait_result waitq_wait(struct waitq *q, bool (*cond)(void *), void *arg, uint64_t timeout_ns)
{
    struct thread *t = thread_current();
    struct timer timer;
    enum wait_result result = WAIT_DONE;
    bool timed = timeout_ns != WAIT_FOREVER;
    t->timed_out = false;
    if (timed) {
        uint64_t now = time_ns();
        timer_init(&timer, on_timeout, t);
        timer_arm(&timer, timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns);
    }
    uint64_t flags = spin_lock_irqsave(&q->lock);
    while (!cond(arg)) {
        if (t->timed_out) {
            result = WAIT_TIMEOUT;
            break;
        }
        list_add_tail(&q->waiters, &t->wait_node);
        t->waiting_on = q;
        __atomic_store_n(&t->state, THREAD_BLOCKED, __ATOMIC_SEQ_CST);
        if (timed && t->timed_out) /* it fired between the check and BLOCKED, and may have found nobody to wake */
            thread_make_runnable(t);
        spin_unlock_irqrestore(&q->lock, flags);
        thread_block_current();
        flags = spin_lock_irqsave(&q->lock);
        list_del(&t->wait_node);
        t->waiting_on = NULL;
    }
    spin_unlock_irqrestore(&q->lock, flags);
    if (timed)
        timer_cancel(&timer);
    return result;
}

static void wake_locked(struct waitq *q, bool all)
{
    while (!list_empty(&q->waiters)) {
        struct thread *t = list_first(&q->waiters, struct thread, wait_node);
        list_del(&t->wait_node);
        thread_make_runnable(t);
        if (!all)
            break;
    }
}

static void wake(struct waitq *q, bool all)
{
    uint64_t flags = spin_lock_irqsave(&q->lock);
    wake_locked(q, all);
    spin_unlock_irqrestore(&q->lock, flags);
}

void waitq_wake_all_locked(struct waitq *q)
{
    wake_locked(q, true);
}

void waitq_wake_all(struct waitq *q)
{
    wake(q, true);
}

void waitq_wake_one(struct waitq *q)
{
    wake(q, false);
}

static bool never(void *arg UNUSED)
{
    return false;
}

void thread_sleep_ns(uint64_t ns)
{
    struct waitq q;
    waitq_init(&q);
    waitq_wait(&q, never, NULL, ns);
}

/* Nobody who has a deadline subtracts the time from it: between a look whether it has passed and the subtraction it may pass. */
void thread_sleep_until_ns(uint64_t deadline_ns)
{
    uint64_t now = time_ns();
    if (deadline_ns > now)
        thread_sleep_ns(deadline_ns - now);
}
