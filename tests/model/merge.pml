/*
 * mm/dmm/merge.c (protect_partner, join), move.c (dmm_protect_page), fault.c (break_in_place, share_copy_out): a page is merged with a
 * partner that its guest may be writing to, and that somebody else may be protecting at the same time.
 *
 * The page to be merged is protected already and holds 0; so does the partner's frame, until its guest writes. Each `atomic` is what happens under the
 * lock of the partner's region, or the frame's.
 *
 * Holds: they hold the same when they become one, and nobody writes to the frame afterwards.
 *
 * BREAKS: -DNO_COUNT       the merger does not care whether another's flush is under way
 * BREAKS: -DLOOK_EARLY     it looks for that before it looks at the partner
 * BREAKS: -DCOUNT_LATE     the other counts its page when it has protected it
 * BREAKS: -DCOMPARE_FIRST  contents are compared before the page has joined the frame's users
 * BREAKS: -DNO_FLUSH       the merger does not flush for what it has protected
 * BREAKS: -DIN_PLACE       who writes to a shared page writes in place, whoever else has it
 */
#define ENTRIES 3

mtype = { RW, SHARED_RO, ELSEWHERE }; /* the partner's entry: the last is a copy on another frame */
mtype entry = RW;
byte users = 0;        /* of the frame, once it is shared */
byte unflushed = 0;    /* pages that the protector has not flushed for yet */
byte word = 0, generation = 1, seen = 0;
bool in_guest, interrupt, writable /* the translation that the CPU has */, merged;

inline flush(g) {
    g = generation;
    if
    :: in_guest -> interrupt = true
    :: else
    fi;
    (!in_guest || seen >= g)
}

/* Its guest wants to write all the time. */
active proctype vcpu() {
    byte g, n = 0;
    do
    :: n == ENTRIES -> break
    :: n < ENTRIES ->
        n++;
        in_guest = true; /* with a full fence */
        g = generation;
        if
        :: seen != g -> writable = false; seen = g
        :: else
        fi;
        do
        :: entry == RW -> writable = true
        :: writable -> assert(!merged); word = 1
        :: entry == SHARED_RO && !writable -> break /* nested fault */
        :: interrupt -> interrupt = false; break
        :: entry == ELSEWHERE && !writable -> break
        od;
        in_guest = false;
        atomic { /* the fault, if it was one */
            if
#ifdef IN_PLACE
            :: entry == SHARED_RO -> entry = RW
#else
            :: entry == SHARED_RO && users == 1 -> entry = RW; users = 0
            :: entry == SHARED_RO && users > 1 -> entry = ELSEWHERE; generation++; users-- /* its only CPU is outside */
#endif
            :: true
            fi
        }
    od
}

active proctype protector() {
    byte g;
    bool mine = false;
#ifndef COUNT_LATE
    unflushed++;
#endif
    atomic {
        if
        :: entry == RW -> entry = SHARED_RO; users = 1; generation++; mine = true
        :: else
        fi
    }
#ifdef COUNT_LATE
    unflushed++;
#endif
    if
    :: mine -> flush(g)
    :: else
    fi;
    unflushed--
}

active proctype merger() {
    byte g;
    bool flushes = false, joined = false, equal = false, may = true;
    atomic {
        if
        :: entry == RW -> entry = SHARED_RO; users = 1; generation++; flushes = true
        :: else
        fi
    }
#ifndef NO_FLUSH
    if
    :: flushes -> flush(g)
    :: else
    fi;
#endif
#ifdef COMPARE_FIRST
    equal = (word == 0);
#endif
#ifdef LOOK_EARLY
    may = (unflushed == 0);
#endif
    atomic {
#if !defined(NO_COUNT) && !defined(LOOK_EARLY)
        may = (unflushed == 0);
#endif
        if
        :: entry == SHARED_RO && users && may -> users++; joined = true
        :: else
        fi
    }
#ifndef COMPARE_FIRST
    equal = (word == 0);
#endif
    if
    :: joined && equal -> assert(word == 0); merged = true
    :: joined && !equal -> atomic { users-- }
    :: else
    fi
}
