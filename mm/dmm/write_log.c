/*
 * The CPUs' logs of written pages: which regions a scan may pass by unread.
 *
 * Dirty bits say which pages are unchanged at the price of reading every entry, twice a sweep. Some CPUs also write down which page it is whenever they
 * set a dirty bit. A region in which a scan has found nothing but unchanged pages (`at_rest`) then stays as it is until an entry of it is in a log, or we
 * change one ourselves; and a sweep passes it by at the price of reading that word. Changes of our own come in two kinds: first touches and breaks of
 * shared pages, which guests cause by the thousand, count anyway (filled_pages, breaks), and the word is compared with these counts; all others call
 * region_changed().
 *
 * What a CPU has logged lies in its log until somebody reads that. Nothing is lost for it:
 *
 *   before a sweep comes to a space   all its CPUs leave the guest once (dmm_flush_wait()), so that what they have logged is in memory; then it is read
 *   logged later                      the region is passed by once more, and looked at in the next sweep: as if it had been written to just afterwards
 *   during a scan of the region       the scan reads entries from first to last and then notes that all rest. A CPU may dirty one that was read
 *                                     already; it logs it, and if the log is read before the scan ends, the scan must not undo what that said. So it
 *                                     first says that it is under way, which the log's reader overwrites, and notes the rest only if that still stands
 *   dirty bits cleared by the scan    are of regions that are being scanned, and not at rest; a CPU that sets one again logs it again
 *   a page dirtied before logging     is dirty: its region is not at rest before a scan has cleared the bit
 *
 * Begin and end are flushes, too: what was said to the CPUs takes effect when they next enter the guest, and after the flush all have, or will first.
 * Since regions are marked only while `logs` is set, none is passed by for what was not logged.
 */
#include "mm/dmm/space.h"

static uint64_t times_full;
static unsigned spaces;

static void flush(struct dmm_space *s)
{
    __atomic_fetch_add(&s->translation.generation, 1, __ATOMIC_SEQ_CST);
    dmm_flush_wait(s);
}

static void forget_rest(struct dmm_space *s, uint64_t n, struct region *r)
{
    (void)s;
    (void)n;
    region_changed(r);
}

static bool begin(struct dmm_space *s)
{
    if (!s->log_writes || !s->format->dirty_mask())
        return false;
    if (!s->log_writes(s->owner, DMM_LOG_ALLOC)) {
        s->log_writes(s->owner, DMM_LOG_FREE);
        return false;
    }
    space_each_region(s, forget_rest); /* as an earlier time left them */
    s->logged = 0;
    s->log_writes(s->owner, DMM_LOG_BEGIN);
    flush(s);
    s->logs = true;
    __atomic_fetch_add(&spaces, 1, __ATOMIC_RELAXED);
    return true;
}

void write_log_forget(struct dmm_space *s)
{
    if (s->logs)
        __atomic_fetch_sub(&spaces, 1, __ATOMIC_RELAXED);
    s->logs = false;
}

static void end(struct dmm_space *s)
{
    write_log_forget(s);
    s->log_writes(s->owner, DMM_LOG_END);
    flush(s);
    s->log_writes(s->owner, DMM_LOG_FREE);
}

bool dmm_log_set(struct dmm_space *s, bool on)
{
    if (s->logs == on)
        return true;
    if (on)
        return begin(s);
    end(s);
    return true;
}

bool dmm_log_is_on(const struct dmm_space *s) { return s->logs; }

uint64_t dmm_log_read(struct dmm_space *s)
{
    if (!s->logs)
        return 0;
    flush(s);
    s->log_writes(s->owner, DMM_LOG_READ);
    return __atomic_exchange_n(&s->logged, 0, __ATOMIC_RELAXED);
}

bool dmm_scan_is_unchanged(const struct dmm_space *s, gfn_t gfn)
{
    const struct region *r = s->logs ? region_place(s, gfn) : NULL;
    return r && region_is_unchanged(r);
}

void dmm_log_written(struct dmm_space *s, uint64_t gpa)
{
    struct region *r = region_place(s, gpa_to_gfn(gpa));
    __atomic_fetch_add(&s->logged, 1, __ATOMIC_RELAXED);
    if (r)
        region_changed(r);
}

void dmm_log_was_full(void) { __atomic_fetch_add(&times_full, 1, __ATOMIC_RELAXED); }
unsigned dmm_log_spaces(void) { return __atomic_load_n(&spaces, __ATOMIC_RELAXED); }
uint64_t dmm_log_times_full(void) { return __atomic_load_n(&times_full, __ATOMIC_RELAXED); }
