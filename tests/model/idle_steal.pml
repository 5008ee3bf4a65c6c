/*
 * core/runq.c (runq_place, pull, runq_next, runq_finish, runq_has_work): three CPUs. CPU 0 is idle, or runs a thread P that gives way or goes to
 * sleep; CPU 1 is idle; CPU 2 runs something all the time. Two threads are woken and put on any queue: the CPU that was chosen may no longer be the best
 * one when the thread gets there. Whatever runs runs for ever, so what is left behind is left for good.
 *
 * Holds: when everything has come to rest, no CPU is halted while a thread waits that it could run.
 *
 * A store and a full fence at once are one step here. Where a variant has none the store goes through a store buffer, as on x86: `_sent` is what
 * the CPU has written, the plain name what others see. Queues change under their locks, `waiting` by locked instructions.
 *
 * Who calls an idle CPU takes its announcement away, so that two who wait call two, and marks it as called first. A CPU that has chosen
 * calls an idle one for each thread that waits on its own queue, whoever has put it there and why. And if it was called itself and runs
 * something before it has looked, it passes the call on: the caller has called nobody else. A mark without a call is a look too many, no more.
 *
 * BREAKS: -DLOOK_FIRST     an idle CPU looks for work before it announces itself
 * BREAKS: -DNO_FENCE_IDLE  it does not wait for its announcement to be seen before it looks
 * BREAKS: -DCALL_FIRST     a waker looks for idle CPUs before it has queued its thread
 * BREAKS: -DNO_FENCE_GONE  a CPU looks for waiting threads before others see that the one it left is gone
 * BREAKS: -DCALL_EARLY     it calls while the thread that it leaves still cannot be taken
 * BREAKS: -DNO_CALL        it calls nobody for those who wait on its queue
 * BREAKS: -DNOT_FROM_IDLE  it does not call when it was idle before
 * BREAKS: -DNOT_IF_STAYS   it does not call when it goes on with the thread that it has
 * BREAKS: -DKEEP_CALL      it was called, runs something and does not pass the call on
 * BREAKS: -DONE_CALL       it was called twice before it looked, finds the one and forgets the other
 * BREAKS: -DMARK_LATE      who calls takes the announcement away before it marks the CPU as called
 */
#define CPUS 2   /* that choose */
#define QUEUES 3
#define NONE 9
mtype = { IDLE, P, OTHER };

bool announced[CPUS], announced_sent[CPUS], called[CPUS], interrupt[QUEUES], need_resched[QUEUES], nothing_runs[QUEUES], halted[CPUS];
byte ready[QUEUES];       /* threads on each queue, without P */
byte waiting;            /* on all queues, with P */
byte p_queue = NONE;
bool p_blocked, p_on_cpu = true, p_on_cpu_sent = true; /* on CPU 0 */

inline put(q, t) {
    if
    :: t == P -> assert(p_queue == NONE); p_queue = q
    :: t == OTHER -> ready[q]++
    fi;
    waiting++
}

inline take(q, t) {
    if
    :: t == P -> p_queue = NONE
    :: t == OTHER -> ready[q]--
    fi;
    waiting--
}

inline announce(v) { d_step { announced_sent[me] = v; announced[me] = v } }

/* Somebody waits whom CPU o could run. One CPU is called, if it is idle. */
inline call(o) {
    if
    :: !has_called && announced[o] ->
#ifndef MARK_LATE
        called[o] = true;
#endif
        atomic {
            if
            :: announced[o] -> announced_sent[o] = false; announced[o] = false; has_called = true
            :: else
            fi
        };
        if
        :: has_called ->
#ifdef MARK_LATE
            called[o] = true;
#endif
            interrupt[o] = true
        :: else
        fi
    :: else
    fi
}

/* ---- a CPU that chooses what it runs; what is done under one queue's lock is one step ------------------------------- */

inline pull_from(o) {
    atomic {
        if
        :: got == IDLE && ready[o] -> got = OTHER; take(o, OTHER)
        :: got == IDLE && !ready[o] && p_queue == o && !(o == 0 && p_on_cpu) -> got = P; take(o, P)
        :: else
        fi
    }
}

inline pull() {
    pull_from(1 - me);
    pull_from(2);
    atomic {
        if
        :: got != IDLE -> put(me, got); got = IDLE; pulled = true
        :: else
        fi
    }
}

/* runq_finish */
inline call_idle() {
#ifndef NO_CALL
    calls = ready[me] + (p_queue == me);
    do
    :: calls -> calls--; call(1 - me); has_called = false
    :: else -> break
    od;
#endif
#ifndef KEEP_CALL
    if
    :: atomic { called[me] && next != IDLE -> called[me] = false };
        if :: waiting -> call(1 - me); has_called = false :: else fi
    :: else
    fi
#endif
}

inline choose() {
    if
    :: waiting -> pull() /* something more deserving */
    :: true
    fi;
    pulled = false;
    atomic {
        if
        :: ready[me] -> next = OTHER; take(me, OTHER)
        :: p_queue == me -> next = P; take(me, P)
        :: !ready[me] && p_queue != me -> next = IDLE
        fi;
        nothing_runs[me] = (next == IDLE);
        need_resched[me] = false
    };
#ifdef CALL_EARLY
    call_idle();
#endif
    atomic {
        if
        :: current == P && next != P -> /* its registers are on its stack */
            p_on_cpu_sent = false;
#ifndef NO_FENCE_GONE
            p_on_cpu = false
#endif
        :: else
        fi
    };
#if defined(NOT_FROM_IDLE)
    if :: current != IDLE -> call_idle() :: else fi;
#elif defined(NOT_IF_STAYS)
    if :: current != next -> call_idle() :: else fi;
#elif !defined(CALL_EARLY)
    call_idle();
#endif
    atomic { current = next; next = IDLE }
}

active [CPUS] proctype cpu() {
    mtype current = IDLE, next = IDLE, got = IDLE;
    byte me = _pid;
    bool work = false, pulled = false, was_called = false, has_called = false;
    byte calls = 0;
    atomic {
        nothing_runs[me] = true; /* CPU 0: while it chooses */
        if
        :: goto idle
        :: me == 0 -> current = P; put(0, P)       /* gives way */
        :: me == 0 -> current = P; p_blocked = true /* goes to sleep */
        fi
    };
    choose();
idle:
    do
    :: atomic { current != IDLE -> break }
    :: atomic { else -> interrupt[me] = false; /* interrupts were on until here */
#ifdef NO_FENCE_IDLE
        announced_sent[me] = true };
#elif defined(LOOK_FIRST)
        skip };
#else
        announce(true) };
#endif
        work = need_resched[me] || ready[me] || p_queue == me;
        if
        :: !work ->
            atomic { was_called = called[me]; called[me] = false };
            if :: waiting -> pull() :: else fi;
            atomic { /* it may have been called for two: what it has found, or was given while it looked, is one of them */
                work = pulled;
#ifndef ONE_CALL
                called[me] = called[me] || (was_called && (work || ready[me] || p_queue == me));
#endif
                pulled = false; was_called = false
            }
        :: else
        fi;
#ifdef LOOK_FIRST
        announce(true);
#endif
        if
        :: atomic { work -> work = false; announce(false) };
            choose()
        :: atomic { else -> halted[me] = true };
end_halt:   atomic { interrupt[me] -> halted[me] = false } /* STI; HLT */
        fi
    od;
end_runs:
    false
}

/* ---- somebody who wakes threads ------------------------------------------------------------------------------------- */

inline find_idle() {
    if :: !now && q != 0 -> call(0) :: else fi;
    if :: !now && q != 1 -> call(1) :: else fi;
    has_called = false
}

inline wake() {
    atomic {
        if
        :: p_blocked -> p_blocked = false; t = P /* compare and swap of its state */
        :: t = OTHER
        fi;
        if
        :: t == P && p_on_cpu -> q = 0
        :: else -> if :: q = 0 :: q = 1 :: q = 2 fi
        fi
    };
#ifdef CALL_FIRST
    find_idle();
#endif
    atomic {
        put(q, t);
        now = nothing_runs[q];
        need_resched[q] = need_resched[q] || now
    };
    if
    :: now -> atomic { announced_sent[q] = false; announced[q] = false }; interrupt[q] = true
    :: else
    fi;
#ifndef CALL_FIRST
    find_idle();
#endif
    now = false
}

active proctype waker() {
    mtype t = OTHER;
    byte q = 0;
    bool now = false, has_called = false;
    wake();
    wake()
}

/* ---- the rest ------------------------------------------------------------------------------------------------------- */

active proctype buffers() {
end:
    do
    :: atomic { announced[0] != announced_sent[0] && p_on_cpu == p_on_cpu_sent -> announced[0] = announced_sent[0] }
    :: atomic { announced[1] != announced_sent[1] -> announced[1] = announced_sent[1] }
    :: atomic { p_on_cpu != p_on_cpu_sent -> p_on_cpu = p_on_cpu_sent }
    od
}

active proctype at_rest() {
    timeout;
    assert(!waiting || !(halted[0] || halted[1]))
}
