/*
 * core/runq.c: a CPU that finds nothing to run halts, while another one queues a thread behind what it runs itself.
 *
 * Each store goes through a store buffer (`_sent` is what the CPU has written, the plain name what others see), as on x86; a fence waits
 * until it is empty. Holds: the thread is run, that is, the halted CPU is interrupted (the end state is checked).
 *
 * BREAKS: -DLOOK_FIRST    looks for work before it announces itself
 * BREAKS: -DNO_FENCE_IDLE does not wait for its announcement to be seen before it looks
 * BREAKS: -DNO_FENCE_BUSY does not wait for the queued thread to be seen before it looks for idle CPUs
 */
bool announced, announced_sent, queued, queued_sent, interrupt, ran;

active proctype buffers() {
end:
    do
    :: announced != announced_sent -> announced = announced_sent
    :: queued_sent && !queued && !ran -> queued = true
    od
}

active proctype idle_cpu() {
    bool found;
    do
    :: ran -> break
    :: else ->
#ifndef LOOK_FIRST
        announced_sent = true;
#ifndef NO_FENCE_IDLE
        announced == announced_sent;
#endif
#endif
        found = queued;
#ifdef LOOK_FIRST
        announced_sent = true;
        announced == announced_sent;
#endif
        if
        :: found -> ran = true
        :: else -> interrupt; interrupt = false /* STI; HLT */
        fi
    od
}

active proctype busy_cpu() {
    queued_sent = true;
#ifndef NO_FENCE_BUSY
    queued == queued_sent;
#endif
    if
    :: announced -> interrupt = true
    :: else
    fi
}
