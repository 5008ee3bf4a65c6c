/*
 * core/waitq.c, core/thread.c, core/runq.c: a thread T goes to sleep with a time limit while another CPU wakes it and a third one's timer
 * expires; two CPUs run what is in their queues and steal from each other.
 *
 * Holds: T is on at most one queue and runs on at most one CPU; it never runs before its registers are on its stack; it ends, that is,
 * neither the wake-up nor the timeout is lost (the end state is checked).
 *
 * The store of the state and the load of the flag are in this order for everybody only because there is a full fence between them: x86 may
 * otherwise perform the load first, which is what NO_FENCE does.
 *
 * BREAKS: -DNO_FENCE   the timer finds T not blocked yet, T finds the timer not expired yet
 * BREAKS: -DNO_ON_CPU  T is run elsewhere while its registers are on their way
 * BREAKS: -DNO_CAS     waker and timer both queue T
 */
mtype = { RUNNING, BLOCKED, RUNNABLE };
#define NONE 9

mtype state = RUNNING;
bool condition, timed_out, wait_lock, in_waitq, on_cpu = true, saved, ended;
byte pcpu = 0, queued = NONE, runs_on = 0;
chan resume = [0] of { byte };

inline place() { /* runq_place(): T is RUNNABLE and on no queue */
    if
#ifndef NO_ON_CPU
    :: on_cpu -> atomic { assert(queued == NONE); queued = pcpu }
    :: !on_cpu ->
#else
    :: true ->
#endif
        if
        :: atomic { assert(queued == NONE); queued = 0 }
        :: atomic { assert(queued == NONE); queued = 1 }
        fi
    fi
}

inline make_runnable() {
#ifdef NO_CAS
    if
    :: state == BLOCKED -> state = RUNNABLE; place()
    :: else
    fi
#else
    bool mine = false;
    atomic { if :: state == BLOCKED -> state = RUNNABLE; mine = true :: else fi }
    if
    :: mine -> place(); mine = false
    :: else
    fi
#endif
}

active proctype T() {
    byte cpu = 0;
    bool flag;
again:
    atomic { !wait_lock -> wait_lock = true }
    if
    :: condition || timed_out -> wait_lock = false; goto done
    :: else
    fi;
    in_waitq = true;
#ifdef NO_FENCE
    flag = timed_out;
    state = BLOCKED;
#else
    state = BLOCKED;
    flag = timed_out;
#endif
    if
    :: flag -> make_runnable()
    :: else
    fi;
    wait_lock = false;
    /* thread_block_current(): what this CPU runs next may be T itself */
    if
    :: atomic { queued == cpu -> queued = NONE; state = RUNNING }
    :: runs_on = NONE; saved = true; resume ? cpu
    fi;
    atomic { !wait_lock -> wait_lock = true }
    in_waitq = false;
    wait_lock = false;
    goto again;
done:
    ended = true
}

/* A CPU that T may have left: finishes the switch, then runs what it finds. */
proctype CPU(byte me) {
    do
    :: atomic { runs_on == NONE && saved && on_cpu && pcpu == me -> on_cpu = false } /* finish_switch() */
    :: atomic { queued == me && runs_on == NONE && !(on_cpu && pcpu == me && !saved) ->
                queued = NONE; assert(saved); saved = false; on_cpu = true; pcpu = me; state = RUNNING; runs_on = me }
       resume ! me
#ifdef NO_ON_CPU
    :: atomic { queued != NONE && queued != me && runs_on != me -> queued = me; pcpu = me }
       if
       :: atomic { queued == me -> queued = NONE; assert(saved && runs_on == NONE); saved = false; pcpu = me; state = RUNNING; runs_on = me }
          resume ! me
       :: else
       fi
#else
    :: atomic { queued != NONE && queued != me && !on_cpu -> queued = me } /* steals */
#endif
    :: ended -> break
    od
}

active proctype waker() {
    if
    :: goto silent /* then it is the timer's */
    :: condition = true
    fi;
    atomic { !wait_lock -> wait_lock = true }
    if
    :: in_waitq -> in_waitq = false; make_runnable()
    :: else
    fi;
    wait_lock = false;
silent:
    skip
}

active proctype timer() {
    timed_out = true;
    make_runnable()
}

init { run CPU(0); run CPU(1) }
