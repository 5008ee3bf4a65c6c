/*
 * mm/dmm/scan.c (dmm_scan_region, note_rest), write_log.c (dmm_log_written): a region of two pages is scanned while a CPU writes to it, and while the
 * log in which the CPU notes what it has made dirty is read by somebody else.
 *
 * Holds: when all that was logged has been read, a region that is said to be at rest has no dirty page.
 *
 * BREAKS: -DNOTE_ANYWAY  the scan notes the rest whatever a log has said since it began
 * BREAKS: -DSAY_LATE     it says that it is under way when it has read the first page
 */
#define PAGES 2
#define CHANGED 0
#define BEING_SCANNED 1
#define RESTS 2

bool dirty[PAGES], logged[PAGES];
byte region = CHANGED, working = 3;

active proctype vcpu() {
    byte n = 0, p;
    do
    :: n == 2 -> break
    :: n < 2 ->
        n++;
        if
        :: p = 0
        :: p = 1
        fi;
        if
        :: !dirty[p] -> dirty[p] = true; logged[p] = true
        :: dirty[p]
        fi
    od;
    working--
}

inline read_log(p) {
    if
    :: logged[p] -> logged[p] = false; region = CHANGED
    :: else
    fi
}

active proctype reader() {
    read_log(0);
    read_log(1);
    read_log(0);
    working--
}

active proctype scanner() {
    byte n = 0;
    bool clean;
    do
    :: n == 2 -> break
    :: n < 2 ->
        n++;
#ifndef SAY_LATE
        region = BEING_SCANNED;
#endif
        clean = !dirty[0];
#ifdef SAY_LATE
        region = BEING_SCANNED;
#endif
        clean = clean && !dirty[1];
        if
        :: !clean -> region = CHANGED
        :: clean ->
#ifdef NOTE_ANYWAY
            region = RESTS
#else
            atomic { /* compare and exchange */
                if
                :: region == BEING_SCANNED -> region = RESTS
                :: else
                fi
            }
#endif
        fi
    od;
    working--
}

active proctype judge() {
    working == 0;
    read_log(0);
    read_log(1);
    assert(region != RESTS || (!dirty[0] && !dirty[1]))
}
