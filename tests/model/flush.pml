/*
 * mm/dmm (p2m_transition, dmm_flush_wait), vm/run.c (vm_kick_for_flush), svm|vmx/ops.c (prepare_translation): a page is taken from a guest whose
 * vCPU runs on another CPU, and its frame is used for something else.
 *
 * Holds: after the frame has been reused no CPU reads it through the old translation, and the remover is not kept waiting for ever.
 *
 * BREAKS: -DREAD_EARLY  the vCPU reads the generation before it counts as in the guest
 * BREAKS: -DNO_WAIT     the remover interrupts and does not wait
 * BREAKS: -DNO_FLUSH    the vCPU forgets nothing when the generation has moved
 */
#define ENTRIES 3

bool present = true, in_guest, interrupt, translation, reused, removed;
byte generation = 1, seen = 0;

active proctype vcpu() {
    byte g, n = 0;
    do
    :: n == ENTRIES -> break
    :: n < ENTRIES ->
        n++;
#ifdef READ_EARLY
        g = generation;
#endif
        in_guest = true; /* with a full fence */
#ifndef READ_EARLY
        g = generation;
#endif
        if
        :: seen != g ->
#ifndef NO_FLUSH
            translation = false;
#endif
            seen = g
        :: else
        fi;
        do /* the guest */
        :: present -> translation = true
        :: translation -> assert(!reused)
        :: interrupt -> interrupt = false; break
        :: !interrupt -> break /* it exits for a reason of its own */
        od;
        in_guest = false
    od
}

active proctype remover() {
    byte g;
    present = false;
    generation++;
    g = generation;
    if
    :: in_guest -> interrupt = true
    :: else
    fi;
#ifndef NO_WAIT
    (!in_guest || seen >= g);
#endif
    reused = true;
    removed = true
}
