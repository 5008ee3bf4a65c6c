/*
 * vm/run.c (vcpu_kick, look_around), vm/shortcut.h (vcpu_entry_begin): somebody wants something of a vCPU that is entering its guest, and that may
 * have moved to another CPU since it was last seen.
 *
 * Holds: the vCPU takes notice; it is not left in the guest, which may never exit by itself (the end state is checked).
 *
 * BREAKS: -DCHECK_FIRST  looks for a kick before it counts as in the guest
 * BREAKS: -DCPU_LATE     says on which CPU it is only after it counts as in the guest
 * BREAKS: -DKICK_LATE    the kicker looks where the vCPU is before it leaves its mark
 */
bool wanted, noticed, kick_pending, in_guest, interrupt[2];
byte pcpu = 0;

active proctype vcpu() {
    byte cpu = 0;
    do
    :: noticed -> break
    :: else ->
        if :: cpu = 0 :: cpu = 1 fi; /* it may have moved while it was out */
        kick_pending = false;
        if
        :: wanted -> noticed = true
        :: else ->
            interrupt[cpu] = false; /* what was pending here has been taken: interrupts were on */
#ifdef CHECK_FIRST
            if
            :: kick_pending -> skip
            :: else -> pcpu = cpu; in_guest = true; interrupt[cpu]; in_guest = false
            fi
#else
#ifndef CPU_LATE
            pcpu = cpu;
#endif
            in_guest = true; /* with a full fence */
            if
            :: kick_pending -> in_guest = false
            :: else ->
#ifdef CPU_LATE
                pcpu = cpu;
#endif
                interrupt[cpu];
                in_guest = false
            fi
#endif
        fi
    od
}

active proctype kicker() {
    byte where;
    wanted = true;
#ifdef KICK_LATE
    where = pcpu;
    if :: in_guest -> interrupt[where] = true :: else fi;
    kick_pending = true
#else
    kick_pending = true; /* with a full fence */
    where = pcpu;
    if :: in_guest -> interrupt[where] = true :: else fi
#endif
}
