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
 * A CPU that has chosen looks whether anything waits *anywhere*, and then calls whoever is idle. Its own queue is not enough: a waker calls
 * one CPU, and that one may take something else. Nor is it enough to look on behalf of the thread that it has just left: also one that was
 * sent here while the CPU looked idle is left behind if it runs something else.
 *
 * BREAKS: -DLOOK_FIRST     an idle CPU looks for work before it announces itself
 * BREAKS: -DNO_FENCE_IDLE  it does not wait for its announcement to be seen before it looks
 * BREAKS: -DCALL_FIRST     a waker looks for idle CPUs before it has queued its thread
 * BREAKS: -DNO_FENCE_GONE  a CPU looks for waiting threads before others see that the one it left is gone
 * BREAKS: -DCALL_EARLY     it calls while the thread that it leaves still cannot be taken
 * BREAKS: -DONLY_ITS_OWN   it calls only if something waits on its own queue
 * BREAKS: -DNOT_FROM_IDLE  it does not call when it was idle before
 * BREAKS: -DNOT_IF_STAYS   it does not call when it goes on with the thread that it has
 */
#define CPUS 2   /* that choose */
#define QUEUES 3
#define NONE 9
mtype = { IDLE, P, OTHER };

bool announced[CPUS], announced_sent[CPUS], interrupt[QUEUES], need_resched[QUEUES], nothing_runs[QUEUES], halted[CPUS];
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
        :: got != IDLE -> put(me, got); got = IDLE
        :: else
        fi
    }
}

inline call(o) {
    atomic {
        if
        :: calls && announced[o] -> interrupt[o] = true
        :: else
        fi
    }
}

#ifdef ONLY_ITS_OWN
#define MUST_CALL (ready[me] || p_queue == me)
#else
#define MUST_CALL (waiting > 0)
#endif

inline call_idle() {
    calls = MUST_CALL;
    atomic { call(1 - me); calls = false }
}

inline choose() {
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
    bool work = false, calls = false;
    atomic {
        nothing_runs[me] = true; /* CPU 0: while it chooses */
        if
        :: goto idle
        :: me == 0 -> current = P; put(0, P)       /* gives way */
        :: me == 0 -> current = P; p_blocked = true /* goes to sleep */
        fi
    };
    if
    :: waiting -> pull() /* something more deserving */
    :: true
    fi;
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
        :: !work && waiting -> pull(); work = ready[me] || p_queue == me
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

inline find_idle_but(o) { atomic { if :: !now && found == NONE && q != o && announced[o] -> found = o :: else fi } }

inline find_idle() {
    find_idle_but(0);
    find_idle_but(1)
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
        need_resched[q] = need_resched[q] || now;
        if
        :: now -> found = q
        :: else
        fi
    };
#ifndef CALL_FIRST
    find_idle();
#endif
    atomic {
        if
        :: found != NONE -> interrupt[found] = true; found = NONE
        :: else
        fi;
        now = false
    }
}

active proctype waker() {
    mtype t = OTHER;
    byte q = 0, found = NONE;
    bool now = false;
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
