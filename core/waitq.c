/*
 * Wait queues. The condition is evaluated under the queue's lock and the sleeper enqueues itself before it lets go, so a waker
 * (which changes the condition first, then takes the lock) either comes early enough for the sleeper to see the
 * condition, or late enough to find it on the queue. Woken threads look again: a wake-up is a hint, the condition is
 * the truth.
 *
 * A timeout is a timer that wakes this one thread; the state change RUNNING -> BLOCKED -> RUNNABLE arbitrates between the two
 * wakers, under the run queue's lock.
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
    t->timed_out = true;
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
        t->state = THREAD_BLOCKED;
        if (timed && t->timed_out) /* it fired between the check and BLOCKED, and found nobody to wake */
            t->state = THREAD_RUNNING;
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

static void wake(struct waitq *q, bool all)
{
    uint64_t flags = spin_lock_irqsave(&q->lock);
    while (!list_empty(&q->waiters)) {
        struct thread *t = list_first(&q->waiters, struct thread, wait_node);
        list_del(&t->wait_node);
        thread_make_runnable(t);
        if (!all)
            break;
    }
    spin_unlock_irqrestore(&q->lock, flags);
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
