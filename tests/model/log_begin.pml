/*
 * vmx/ops.c (forget_nested, renew_nested), vmx/log.c (want, vmx_log_update), mm/dmm/write_log.c (begin): the scanner wants a vCPU to log what it writes
 * to. The vCPU looks for that only if it takes note of a flush and the root of its table is not the one that it has stored.
 *
 * Holds: when the flush is over, the guest runs only with its log on.
 *
 * BREAKS: -DLOOK_FIRST   the vCPU looks what is wanted before it stores the root
 * BREAKS: -DROOT_FIRST   the scanner takes the root away before it says that something is wanted
 * BREAKS: -DNO_WAIT      and does not wait for the flush
 */
#define ENTRIES 3

bool wanted, changed, root_stored /* at first it is another */, logs, in_guest, begun;
byte generation = 1, seen = 0;

inline look() {
    atomic { /* exchange */
        found = changed;
        changed = false
    }
}

active proctype vcpu() {
    byte g, n = 0;
    bool found;
    do
    :: n == ENTRIES -> break
    :: n < ENTRIES ->
        n++;
        in_guest = true; /* with a full fence */
        g = generation;
        if
        :: seen != g ->
            if
            :: !root_stored ->
#ifdef LOOK_FIRST
                look();
                root_stored = true;
#else
                root_stored = true;
                look();
#endif
                if
                :: found -> logs = wanted
                :: else
                fi
            :: root_stored
            fi;
            seen = g
        :: else
        fi;
        assert(!begun || logs); /* the guest */
        in_guest = false
    od
}

active proctype scanner() {
    byte g;
    wanted = true;
#ifdef ROOT_FIRST
    root_stored = false;
    changed = true;
#else
    changed = true;
    root_stored = false;
#endif
    generation++;
    g = generation;
#ifndef NO_WAIT
    (!in_guest || seen >= g);
#endif
    begun = true
}
