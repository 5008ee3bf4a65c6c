/*
 * Which thread runs where: one queue per CPU, placement when a thread wakes, stealing when a CPU would rather run another's.
 *
 * One queue for all CPUs would be exactly fair and would move every thread all the time. Queues of their own keep caches warm, but need
 * something that evens them out. Here that is pulled, never pushed: whoever chooses what to run next looks whether something more deserving waits on
 * another CPU (core/fair.h says what that is for vCPUs; among priorities it is the higher one) and takes it. A CPU that is about to halt takes
 * anything. Looking is a few loads per CPU, once per slice; a global count of waiting threads skips it where nothing waits.
 *
 * No waiting thread is overlooked by a CPU that halts: the idle CPU announces itself *before* it looks, and whoever queues a thread
 * that must wait looks for announced CPUs *after* that (tests/model/idle_steal.pml). Whoever calls a CPU takes its announcement away, so that
 * two who wait call two; and a CPU that has been called but is given something else before it has looked passes the call on.
 *
 * A thread whose registers are not on its stack yet (on_cpu) may be queued, because a wake-up cannot wait for that, but only where it is
 * leaving; nobody steals it until runq_finish() of that CPU has seen it gone.
 *
 * Ready vCPUs are a sorted list, not a tree: how many *ready* ones wait for one CPU is a small number on any machine that is of use to
 * anybody; those who sleep are not in it.
 */
#include "core/runq.h"

#include "core/fair.h"
#include "core/log.h"
#include "core/time.h"
#include "lib/string.h"
#include "x86/apic.h"
#include "x86/cpu.h"
#include "x86/idt.h"

static struct run_queue *queues[MAX_PCPUS];
static unsigned waiting, waiting_vcpus; /* (a) threads in ready lists, on all CPUs */
static unsigned idle_cpus;     /* (a) that have announced themselves */

struct run_queue *runq_of(unsigned pcpu) { return pcpu < MAX_PCPUS ? __atomic_load_n(&queues[pcpu], __ATOMIC_ACQUIRE) : NULL; }

bool sched_cpu_online(unsigned pcpu) { return runq_of(pcpu); }

#define for_each_queue(q)                                   \
    for (unsigned n_ = 0; n_ < cpu_count(); n_++)           \
        for (struct run_queue *q = runq_of(n_); q; q = NULL)

void runq_init(struct run_queue *q, unsigned pcpu, void *stack_base, size_t stack_bytes)
{
    spin_init(&q->lock, LOCK_RANK_SCHED, "run queue");
    for (unsigned p = 0; p < THREAD_PRIO_MAX; p++)
        list_init(&q->ready[p]);
    q->id = pcpu;
    struct thread *t = &q->idle;
    t->stack_base = stack_base;
    t->stack_bytes = stack_bytes;
    snprintf(t->name, sizeof(t->name), "idle/%u", pcpu);
    t->prio = THREAD_PRIO_IDLE;
    t->state = THREAD_RUNNING;
    t->pcpu = pcpu;
    t->on_cpu = true;
    cpu_set_add(&t->affinity, pcpu);
    list_init(&t->run_node);
    list_init(&t->wait_node);
    q->current = t;
    q->current_prio = NOTHING_RUNS;
    q->charged_ns = time_ns();
}

void runq_publish(struct run_queue *q) { __atomic_store_n(&queues[q->id], q, __ATOMIC_RELEASE); }

/* ---- one queue: lock held ------------------------------------------------------------------------------------------------------ */

static bool is_vcpu(const struct thread *t) { return t->prio == THREAD_PRIO_VCPU; }
static bool runs_vcpu(const struct run_queue *q) { return q->current_prio == THREAD_PRIO_VCPU; }
static bool has_vcpus(const struct run_queue *q) { return runs_vcpu(q) || q->ready_weight; }

/* Also of another CPU's queue, roughly. */
static uint64_t all_weights(const struct run_queue *q)
{
    return __atomic_load_n(&q->ready_weight, __ATOMIC_RELAXED) + __atomic_load_n(&q->current_weight, __ATOMIC_RELAXED);
}

/* Places of runnable threads change only together with these. */
static void set_current_prio(struct run_queue *q, int prio)
{
    q->current_prio = prio;
    q->current_weight = prio == THREAD_PRIO_VCPU ? q->current->weight : 0;
}

/* At the end of this window it has something again: a debt of whole windows is paid by waiting for as many. */
static void pay_cap_debt(struct thread *t)
{
    uint64_t windows = (uint64_t)-t->cap_left_ns / t->cap_ns;
    t->cap_left_ns += (int64_t)(windows * t->cap_ns);
    t->cap_window_end_ns += windows * CAP_PERIOD_NS;
}

static void refill_cap(struct thread *t, uint64_t now)
{
    if (now < t->cap_window_end_ns)
        return;
    t->cap_window_end_ns = now + CAP_PERIOD_NS;
    t->cap_left_ns = MIN(t->cap_left_ns, 0) + (int64_t)t->cap_ns; /* what it overran is a debt */
}

/* For one that runs, and has paid until `now`. */
static void set_cap_end(struct thread *t, uint64_t now)
{
    t->cap_end_ns = t->cap_ns ? now + (uint64_t)MAX(t->cap_left_ns, 0) : UINT64_MAX;
}

static void advance_clock(struct run_queue *q)
{
    if (!has_vcpus(q))
        return;
    uint64_t least = runs_vcpu(q) ? q->current->vtime : q->head_vtime;
    if (q->ready_weight)
        least = fair_earlier(least, q->head_vtime);
    q->vclock = fair_later(q->vclock, least);
}

static bool is_queued(const struct thread *t) { return !list_empty(&t->run_node); }

/* The current thread pays for its time until now. If it is leaving and has been woken meanwhile, it is queued by the virtual time it had then. */
static void charge(struct run_queue *q, uint64_t now)
{
    struct thread *t = q->current;
    uint64_t ns = now > q->charged_ns ? now - q->charged_ns : 0;
    q->charged_ns = now;
    t->run_ns += ns;
    if (t == &q->idle)
        q->idle_ns += ns;
    if (!is_vcpu(t))
        return;
    if (!is_queued(t))
        t->vtime += fair_vtime(ns, t->weight);
    t->cap_left_ns -= t->cap_ns ? (int64_t)ns : 0;
    advance_clock(q);
}

/* Virtual time where other CPUs are; false: none of them has vCPUs. */
static bool others_vclock(const struct run_queue *q, uint64_t *least)
{
    bool any = false;
    for_each_queue(o) {
        if (o == q || !has_vcpus(o))
            continue;
        uint64_t v = o->vclock;
        *least = any ? fair_earlier(*least, v) : v;
        any = true;
    }
    return any;
}

/* A queue that had no vCPU for a while has missed virtual time going on. */
static void wake_clock(struct run_queue *q)
{
    uint64_t least;
    if (!has_vcpus(q) && others_vclock(q, &least))
        q->vclock = fair_later(q->vclock, least);
}

static void insert_by_vtime(struct run_queue *q, struct thread *t)
{
    struct list_head *after = q->ready[THREAD_PRIO_VCPU].prev;
    while (after != &q->ready[THREAD_PRIO_VCPU] && fair_before(t->vtime, list_entry(after, struct thread, run_node)->vtime))
        after = after->prev;
    list_insert(&t->run_node, after, after->next);
    t->queued_weight = t->weight;
    q->ready_weight += t->queued_weight;
    q->head_vtime = list_first(&q->ready[THREAD_PRIO_VCPU], struct thread, run_node)->vtime;
}

static void enqueue(struct run_queue *q, struct thread *t, uint64_t now)
{
    t->pcpu = q->id;
    t->ready_since_ns = now;
    if (is_vcpu(t)) {
        insert_by_vtime(q, t);
        if (runs_vcpu(q)) { /* the others' slices get shorter with each that comes */
            uint64_t slice_end = q->charged_ns + fair_slice_ns(q->current->weight, all_weights(q));
            q->current->slice_end_ns = MIN(q->current->slice_end_ns, slice_end);
        }
    } else {
        list_add_tail(&q->ready[t->prio], &t->run_node);
    }
    q->ready_mask |= 1u << t->prio;
    __atomic_fetch_add(&waiting, 1, __ATOMIC_RELAXED);
    if (is_vcpu(t))
        __atomic_fetch_add(&waiting_vcpus, 1, __ATOMIC_RELAXED);
}

static void dequeue(struct run_queue *q, struct thread *t)
{
    list_del(&t->run_node);
    struct list_head *l = &q->ready[t->prio];
    if (list_empty(l))
        q->ready_mask &= ~(1u << t->prio);
    if (is_vcpu(t)) {
        q->ready_weight -= t->queued_weight;
        if (!list_empty(l))
            q->head_vtime = list_first(l, struct thread, run_node)->vtime;
    }
    if (q->buddy == t)
        q->buddy = NULL;
    __atomic_fetch_sub(&waiting, 1, __ATOMIC_RELAXED);
    if (is_vcpu(t))
        __atomic_fetch_sub(&waiting_vcpus, 1, __ATOMIC_RELAXED);
}

static int best_ready_prio(const struct run_queue *q)
{
    uint32_t mask = q->ready_mask;
    return mask ? 31 - __builtin_clz(mask) : NOTHING_RUNS;
}

/* The thread to run next stays queued; NULL: none. */
static struct thread *best_ready(struct run_queue *q)
{
    int prio = best_ready_prio(q);
    if (prio == NOTHING_RUNS)
        return NULL;
    struct thread *t = list_first(&q->ready[prio], struct thread, run_node), *b = q->buddy;
    if (prio == THREAD_PRIO_VCPU && b && fair_before(b->vtime, t->vtime + fair_vtime(FAVOUR_NS, all_weights(q))))
        return b;
    return t;
}

/* ---- choosing a CPU ------------------------------------------------------------------------------------------------------------ */

static bool may_run_on(const struct thread *t, const struct run_queue *q) { return cpu_set_has(&t->affinity, q->id); }

/* The last CPU if it would run it now; else one that is idle or does something less urgent; else the one with the least to do. */
static struct run_queue *choose_queue(const struct thread *t)
{
    struct run_queue *last = runq_of(t->pcpu), *best = NULL;
    if (t->on_cpu)
        return last; /* nobody else may run it before its registers are saved: outcast, if it may not stay */
    bool may_stay = t->switches && last && may_run_on(t, last); /* a new thread has nothing there to keep warm */
    if (may_stay && last->current_prio < (int)t->prio && !(last->ready_mask >> t->prio))
        return last;
    for_each_queue(q) {
        if (!may_run_on(t, q))
            continue;
        int load = MAX(q->current_prio, best_ready_prio(q)), best_load = best ? MAX(best->current_prio, best_ready_prio(best)) : 0;
        if (!best || load < best_load || (load == best_load && is_vcpu(t) && all_weights(q) < all_weights(best)))
            best = q;
    }
    if (may_stay && best && MAX(best->current_prio, best_ready_prio(best)) >= (int)t->prio)
        return last;
    return best ? best : last;
}

static void interrupt_cpu(unsigned pcpu)
{
    if (pcpu != cpu_id())
        lapic_send_ipi(percpu_of(pcpu)->apic_id, VECTOR_IPI_KICK);
}

/* The CPU is no longer announced as idle: because it isn't, or because it has been called for one thread, and the next must call another.
 * False: it was not. */
static bool withdraw(struct run_queue *q)
{
    bool was = q->announced_idle && __atomic_exchange_n(&q->announced_idle, false, __ATOMIC_SEQ_CST);
    if (was)
        __atomic_fetch_sub(&idle_cpus, 1, __ATOMIC_SEQ_CST);
    return was;
}

/* A thread has to wait on q. Is there a CPU that would take it, had it known? NULL: whatever waits anywhere. */
static void call_idle_cpu(const struct run_queue *q, const struct thread *t)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!__atomic_load_n(&idle_cpus, __ATOMIC_RELAXED))
        return;
    for_each_queue(o)
        if (o != q && (!t || may_run_on(t, o)) && o->announced_idle) {
            o->called = true; /* before it can go on: it looks at this at its next switch. In vain, if it was faster: no harm */
            if (!withdraw(o))
                continue;
            interrupt_cpu(o->id);
            return;
        }
}

/* At a switch: those who wait here may have been passed over, because their registers were on their way, or have come when it seemed
 * that they would run here at once. */
static void call_idle_cpus(struct run_queue *q)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!q->ready_mask || !__atomic_load_n(&idle_cpus, __ATOMIC_RELAXED))
        return;
    spin_lock(&q->lock);
    for (unsigned p = 0; p < THREAD_PRIO_MAX; p++)
        list_for_each(t, &q->ready[p], struct thread, run_node)
            call_idle_cpu(q, t);
    spin_unlock(&q->lock);
}

/* `t` waits on q: slices that had no end get one, and an idle CPU may take it. */
static void announce_rival(const struct run_queue *q, const struct thread *t)
{
    if (q->id == cpu_id())
        timer_slice_needed();
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    for_each_queue(o)
        if (o->unwatched && (o == q || (is_vcpu(t) && runs_vcpu(o))))
            interrupt_cpu(o->id);
    call_idle_cpu(q, t);
}

/* Lock held: must the CPU leave what it runs for `t`? A vCPU only for one that is behind by more than a short slice. */
static bool preempts(const struct run_queue *q, const struct thread *t, uint64_t now)
{
    if ((int)t->prio != q->current_prio || !is_vcpu(t))
        return (int)t->prio > q->current_prio;
    uint64_t current = q->current->vtime + fair_vtime(now > q->charged_ns ? now - q->charged_ns : 0, q->current->weight);
    return fair_before(t->vtime + fair_vtime(2 * MIN_SLICE_NS, t->weight), current);
}

static void settle_vtime(struct run_queue *q, struct thread *t, uint64_t credit_ns)
{
    wake_clock(q);
    uint64_t weights = all_weights(q) + t->weight;
    t->vtime = fair_arrive(t->vtime, q->vclock, fair_vtime(credit_ns, weights), fair_vtime(LAG_NS, weights));
}

void runq_place(struct thread *t)
{
    uint64_t flags = irq_save(), now = time_ns();
    struct run_queue *q = choose_queue(t);
    struct percpu *cpu = percpu_of(q->id);
    spin_lock(&q->lock);
    charge(q, now); /* or else somebody who has long run alone would have used nothing yet */
    if (is_vcpu(t))
        settle_vtime(q, t, WAKE_CREDIT_NS);
    t->migrations += t->pcpu != q->id;
    enqueue(q, t, now);
    bool now_please = preempts(q, t, now);
    if (now_please) {
        cpu->need_resched = true;
        withdraw(q);
    }
    spin_unlock(&q->lock);
    if (now_please)
        interrupt_cpu(q->id);
    else
        announce_rival(q, t);
    irq_restore(flags);
}

/* ---- taking from others ---------------------------------------------------------------------------------------------------------- */

/* From one queue the first thread of that priority that may leave; a vCPU only if it is further behind than `vtime`. */
static struct thread *take_from(struct run_queue *o, const struct run_queue *q, int prio, bool by_vtime, uint64_t vtime)
{
    struct thread *found = NULL;
    spin_lock(&o->lock);
    list_for_each(t, &o->ready[prio], struct thread, run_node) {
        if (by_vtime && !fair_before(t->vtime, vtime))
            break;
        if (!may_run_on(t, q) || __atomic_load_n(&t->on_cpu, __ATOMIC_ACQUIRE))
            continue;
        found = t;
        dequeue(o, t);
        break;
    }
    spin_unlock(&o->lock);
    return found;
}

/* How far behind of q's next vCPU one that waits on o must be to be taken: as virtual time. No lock is held: each number is read once, or
 * a comparison could choose what is no more when it is read again. */
static uint64_t steal_lag(const struct run_queue *q, const struct run_queue *o)
{
    uint64_t ours = all_weights(q), theirs = all_weights(o), most = MAX(ours, theirs);
    return fair_vtime(STEAL_NS, most ? most : 1);
}

/* What waits elsewhere and deserves this CPU more than what it would run next: `prio`, and if that is vCPUs', `vtime`. NULL: nothing. */
static struct thread *steal(struct run_queue *q, int prio, uint64_t vtime)
{
    struct run_queue *first = NULL;
    uint64_t first_vtime = 0;
    for_each_queue(o) { /* of the vCPUs the one furthest behind */
        if (o == q || prio != THREAD_PRIO_VCPU || best_ready_prio(o) != THREAD_PRIO_VCPU)
            continue;
        uint64_t head = o->head_vtime;
        if (fair_before(head, vtime - steal_lag(q, o)) && (!first || fair_before(head, first_vtime))) {
            first = o;
            first_vtime = head;
        }
    }
    struct thread *t = first ? take_from(first, q, THREAD_PRIO_VCPU, true, vtime - steal_lag(q, first)) : NULL;
    if (t)
        return t;
    for (unsigned n = 1; n < cpu_count(); n++) {
        struct run_queue *o = runq_of((q->id + n) % cpu_count());
        if (!o || !o->ready_mask)
            continue;
        for (int p = THREAD_PRIO_MAX - 1; p >= MAX(prio, 0); p--) {
            bool same = p == prio;
            if (!(o->ready_mask >> p & 1) || (same && p != THREAD_PRIO_VCPU))
                continue;
            t = take_from(o, q, p, same, vtime - steal_lag(q, o));
            if (t)
                return t;
        }
    }
    return NULL;
}

/* If something is found it is queued here. Lock not held. */
static bool pull(struct run_queue *q)
{
    spin_lock(&q->lock);
    int prio = best_ready_prio(q);
    struct thread *own = best_ready(q);
    uint64_t vtime = own ? own->vtime : 0;
    spin_unlock(&q->lock);
    struct thread *t = __atomic_load_n(&waiting, __ATOMIC_RELAXED) ? steal(q, prio, vtime) : NULL;
    if (!t)
        return false;
    spin_lock(&q->lock);
    if (is_vcpu(t))
        settle_vtime(q, t, LAG_NS);
    uint64_t since = t->ready_since_ns;
    enqueue(q, t, since); /* it has been waiting all the time */
    t->migrations++;
    q->steals++;
    spin_unlock(&q->lock);
    return true;
}

/* Virtual time here has stayed behind all others', though nobody could take anything from here: a vCPU that is owed more than one
 * CPU, or vCPUs that may run nowhere else. What cannot be made up for is forgotten, equally for all of them, except for those that are
 * not behind: a light one beside one that is owed more than the CPU could otherwise go neither forward nor away. */
static uint64_t caught_up(uint64_t vtime, uint64_t by, uint64_t others)
{
    return fair_before(vtime, others) ? fair_earlier(vtime + by, others) : vtime;
}

static void catch_up(struct run_queue *q)
{
    uint64_t least;
    if (!has_vcpus(q) || !others_vclock(q, &least))
        return;
    uint64_t goal = least - fair_vtime(LAG_NS, all_weights(q)), by = goal - q->vclock;
    if (!fair_before(q->vclock, goal))
        return;
    q->vclock += by;
    q->head_vtime = caught_up(q->head_vtime, by, least);
    if (runs_vcpu(q))
        q->current->vtime = caught_up(q->current->vtime, by, least);
    list_for_each(t, &q->ready[THREAD_PRIO_VCPU], struct thread, run_node) /* keeps its order */
        t->vtime = caught_up(t->vtime, by, least);
}

/* ---- what the switch asks for ------------------------------------------------------------------------------------------------------- */

static void cap_expired(struct timer *timer)
{
    struct thread *t = timer->arg;
    enum thread_state throttled = THREAD_THROTTLED;
    if (__atomic_compare_exchange_n(&t->state, &throttled, THREAD_RUNNABLE, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
        runq_place(t);
}

/* Where does the current thread go that could go on? */
static void put_back(struct run_queue *q, struct thread *t, uint64_t now)
{
    if (t->cap_ns && t->cap_left_ns <= 0 && now < t->cap_window_end_ns) {
        t->state = THREAD_THROTTLED;
        pay_cap_debt(t);
        timer_init(&t->cap_timer, cap_expired, t);
        timer_arm(&t->cap_timer, t->cap_window_end_ns); /* interrupts are off: not before we have switched */
        return;
    }
    t->state = THREAD_RUNNABLE;
    if (may_run_on(t, q)) {
        enqueue(q, t, now);
    } else {
        hv_assert(!q->outcast);
        q->outcast = t;
    }
}

/* Its part of a round, but not beyond the point where somebody who waits elsewhere would be taken instead. (Who is beyond that and has not been
 * taken cannot come here.) */
static uint64_t vcpu_slice_ns(const struct run_queue *q, const struct thread *t)
{
    uint64_t ns = fair_slice_ns(t->weight, all_weights(q));
    for_each_queue(o) {
        if (o == q || best_ready_prio(o) != THREAD_PRIO_VCPU)
            continue;
        uint64_t until = o->head_vtime + steal_lag(q, o);
        if (fair_before(t->vtime, until))
            ns = MIN(ns, fair_ns(until - t->vtime, t->weight));
    }
    return MAX(ns, MIN_SLICE_NS);
}

static void make_current(struct run_queue *q, struct thread *t, uint64_t now)
{
    t->state = THREAD_RUNNING;
    t->on_cpu = true;
    q->current = t;
    set_current_prio(q, t == &q->idle ? NOTHING_RUNS : (int)t->prio);
    if (t == &q->idle)
        return;
    t->wait_ns += now > t->ready_since_ns ? now - t->ready_since_ns : 0;
    t->slice_end_ns = now + (is_vcpu(t) ? vcpu_slice_ns(q, t) : ROUND_NS);
    if (t->cap_ns)
        refill_cap(t, now);
    set_cap_end(t, now);
}

struct thread *runq_next(struct run_queue *q, bool again)
{
    uint64_t now = time_ns();
    spin_lock(&q->lock);
    struct thread *t = q->current;
    charge(q, now);
    set_current_prio(q, NOTHING_RUNS); /* in between; `current` stays for whoever looks under the lock */
    if (again && t != &q->idle)
        put_back(q, t, now);
    catch_up(q);
    spin_unlock(&q->lock);
    if (__atomic_load_n(&waiting, __ATOMIC_RELAXED))
        pull(q);
    spin_lock(&q->lock);
    struct thread *next = best_ready(q);
    if (next)
        dequeue(q, next);
    else
        next = &q->idle;
    make_current(q, next, now);
    advance_clock(q);
    percpu_of(q->id)->need_resched = next != &q->idle && !may_run_on(next, q); /* woken here while it was leaving: out again */
    spin_unlock(&q->lock);
    return next;
}

bool runq_has_work(struct run_queue *q)
{
    if (!q->announced_idle) {
        __atomic_fetch_add(&idle_cpus, 1, __ATOMIC_SEQ_CST);
        __atomic_store_n(&q->announced_idle, true, __ATOMIC_SEQ_CST);
    }
    bool work = this_cpu()->need_resched || q->ready_mask;
    if (!work) {
        bool called = q->called;
        q->called = false; /* before looking */
        work = pull(q);
        if (!work && called && q->ready_mask)
            q->called = true; /* this came while we looked, perhaps for nothing less: we have not seen all */
    }
    if (work)
        withdraw(q);
    return work;
}

void runq_finish(struct run_queue *q)
{
    struct thread *prev = q->previous, *outcast = q->outcast;
    q->previous = q->outcast = NULL;
    if (prev)
        __atomic_store_n(&prev->on_cpu, false, __ATOMIC_RELEASE);
    if (outcast)
        runq_place(outcast);
    call_idle_cpus(q);
    if (q->called && q->current != &q->idle) { /* something else came first: somebody else must look in our place */
        q->called = false;
        call_idle_cpu(q, NULL);
    }
}

/* ---- slices ---------------------------------------------------------------------------------------------------------------------------- */

bool thread_vcpus_wait(void) { return __atomic_load_n(&waiting_vcpus, __ATOMIC_RELAXED); }

/* When the timer interrupt must look at the current thread again; UINT64_MAX: it has no rival. Interrupts off. */
uint64_t sched_slice_deadline(void)
{
    struct run_queue *q = runq_of(cpu_id());
    const struct thread *t = this_cpu()->current;
    if (t == &q->idle)
        return UINT64_MAX;
    __atomic_store_n(&q->unwatched, true, __ATOMIC_SEQ_CST); /* before looking: a rival that comes now sees it */
    bool rivals = q->ready_mask >> t->prio & 1 || (is_vcpu(t) && thread_vcpus_wait());
    uint64_t end = rivals ? MIN(t->slice_end_ns, t->cap_end_ns) : t->cap_end_ns;
    q->unwatched = !rivals;
    return end;
}

void sched_check_slice(uint64_t now_ns)
{
    if (sched_slice_deadline() <= now_ns)
        this_cpu()->need_resched = true;
}

/* ---- settings, from any thread ------------------------------------------------------------------------------------------------------------ */

/* The queue that a thread is on, or was on last, locked. If it is on that queue it cannot leave; if it is on none, as one that moves is for a
 * moment, it may come to another one meanwhile: is_queued_on() tells. */
static struct run_queue *lock_queue(struct thread *t)
{
    for (;;) {
        struct run_queue *q = runq_of(t->pcpu);
        spin_lock(&q->lock);
        if (q == runq_of(t->pcpu))
            return q;
        spin_unlock(&q->lock);
    }
}

/* enqueue() says where before it links the thread, so whoever sees the link sees where. */
static bool is_queued_on(const struct thread *t, const struct run_queue *q)
{
    if (__atomic_load_n(&t->run_node.next, __ATOMIC_ACQUIRE) == &t->run_node)
        return false;
    return t->pcpu == q->id;
}

void thread_set_weight(struct thread *t, uint32_t weight)
{
    uint64_t flags = irq_save();
    struct run_queue *q = lock_queue(t);
    weight = MAX(1u, MIN(weight, THREAD_WEIGHT_MAX));
    t->weight = weight; /* counts from the next time that it is queued */
    if (q->current == t && runs_vcpu(q))
        q->current_weight = weight;
    spin_unlock(&q->lock);
    irq_restore(flags);
}

void thread_set_cap(struct thread *t, unsigned percent)
{
    uint64_t flags = irq_save(), now = time_ns();
    struct run_queue *q = lock_queue(t);
    charge(q, now);
    t->cap_ns = MIN(percent, 100u) * (CAP_PERIOD_NS / 100);
    if (percent >= 100)
        t->cap_ns = 0;
    t->cap_left_ns = (int64_t)t->cap_ns;
    t->cap_window_end_ns = now + CAP_PERIOD_NS;
    if (q->current == t)
        set_cap_end(t, now);
    enum thread_state throttled = THREAD_THROTTLED; /* what it has waited for may be long, and is no more */
    bool release = __atomic_compare_exchange_n(&t->state, &throttled, THREAD_RUNNABLE, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    unsigned pcpu = q->id;
    spin_unlock(&q->lock);
    if (release) {
        timer_cancel(&t->cap_timer);
        runq_place(t);
    }
    interrupt_cpu(pcpu); /* its timer may be off */
    irq_restore(flags);
}

bool thread_set_affinity(struct thread *t, const struct cpu_set *set)
{
    bool any = false;
    for_each_queue(q)
        any |= cpu_set_has(set, q->id);
    if (!any)
        return false;
    uint64_t flags = irq_save();
    struct run_queue *q = lock_queue(t);
    t->affinity = *set;
    bool leave = !may_run_on(t, q), moves = leave && is_queued_on(t, q) && !t->on_cpu, runs = leave && q->current == t;
    if (moves)
        dequeue(q, t);
    if (runs)
        percpu_of(q->id)->need_resched = true;
    if (is_queued(t))
        call_idle_cpu(q, t); /* which might not take it so far */
    spin_unlock(&q->lock);
    if (moves)
        runq_place(t);
    if (runs)
        interrupt_cpu(q->id);
    irq_restore(flags);
    return true;
}

void thread_times(struct thread *t, uint64_t *run_ns, uint64_t *wait_ns)
{
    uint64_t flags = irq_save(), now = time_ns();
    struct run_queue *q = lock_queue(t);
    *run_ns = t->run_ns + (q->current == t && now > q->charged_ns ? now - q->charged_ns : 0);
    *wait_ns = t->wait_ns + (is_queued_on(t, q) && now > t->ready_since_ns ? now - t->ready_since_ns : 0);
    spin_unlock(&q->lock);
    irq_restore(flags);
}

uint64_t thread_wait_ns(const struct thread *t) { return __atomic_load_n(&t->wait_ns, __ATOMIC_RELAXED); }

void sched_cpu_times(unsigned pcpu, uint64_t *idle_ns, uint64_t *steals)
{
    struct run_queue *q = runq_of(pcpu);
    uint64_t flags = spin_lock_irqsave(&q->lock), now = time_ns();
    *idle_ns = q->idle_ns + (q->current == &q->idle && now > q->charged_ns ? now - q->charged_ns : 0);
    *steals = q->steals;
    spin_unlock_irqrestore(&q->lock, flags);
}

void thread_yield_to(struct thread *t)
{
    uint64_t flags = irq_save();
    struct run_queue *q = lock_queue(t);
    bool waits = is_queued_on(t, q) && is_vcpu(t), here = q->id == cpu_id();
    if (waits) {
        q->buddy = t;
        percpu_of(q->id)->need_resched |= runs_vcpu(q);
    }
    spin_unlock(&q->lock);
    if (waits && !here)
        interrupt_cpu(q->id);
    irq_restore(flags);
    thread_yield();
}
