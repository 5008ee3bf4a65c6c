/*
 * Locks held and interrupts off for too long, by place.
 *
 * A place is the address of the code that took the lock or turned interrupts off, or a handler. A small table keeps each place's worst
 * time and how often it was beyond the limit; `slow` shows it. It is filled from any context, so it takes no lock: an entry is claimed by a compare-and-swap of
 * its place and never given back, and a race between two CPUs at the same place costs one count. On a CPU in software the times include those
 * that its host spent elsewhere: look at what comes up again and again, not at the worst.
 */
#include "core/slow.h"
#include "core/console.h"
#include "core/ksyms.h"
#include "core/log.h"
#include "core/time.h"

#define PLACES 64

static struct place { const void *pc; const char *name; enum slow_kind kind; uint64_t count, worst_ns, shouted_ns; } places[PLACES];
static uint64_t left_out;

static const char *const kind_names[SLOW_KIND_COUNT] = {"lock held", "interrupts off", "interrupt handler"};

static struct place *place_of(const void *pc, const char *name, enum slow_kind kind)
{
    for (unsigned n = 0; n < PLACES; n++) {
        const void *free = NULL;
        if (__atomic_compare_exchange_n(&places[n].pc, &free, pc, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            places[n].name = name;
            places[n].kind = kind;
            return &places[n];
        }
        if (free == pc)
            return &places[n];
    }
    return NULL;
}

void slow_note(enum slow_kind kind, const char *name, const void *pc, uint64_t tsc_ticks)
{
    uint64_t ns = time_tsc_to_ns(tsc_ticks);
    if (ns < (kind == SLOW_LOCK ? SLOW_LOCK_NS : SLOW_IRQS_OFF_NS))
        return;
    struct place *p = place_of(pc, name, kind);
    if (!p) {
        left_out++;
        return;
    }
    p->count++;
    p->worst_ns = MAX(p->worst_ns, ns);
}

/* Not where it was noted, which may be under the log's own lock. */
void slow_report(void)
{
    char where[96];
    for (unsigned n = 0; n < PLACES && places[n].pc; n++) {
        struct place *p = &places[n];
        uint64_t worst_ns = p->worst_ns, shouted_ns = __atomic_load_n(&p->shouted_ns, __ATOMIC_RELAXED);
        if (worst_ns < SLOW_SHOUT_NS || worst_ns < 2 * shouted_ns ||
            !__atomic_compare_exchange_n(&p->shouted_ns, &shouted_ns, worst_ns, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            continue; /* nothing new, or another CPU says it */
        log_warn("slow: %s for %lu us: %s, at %s", kind_names[p->kind], worst_ns / 1000, p->name,
                 ksym_format(where, sizeof(where), (uintptr_t)p->pc));
    }
}

static enum cmd_result cmd_slow(struct cmd_ctx *c)
{
    if (c->argc != 1)
        return CMD_USAGE;
    if (!HV_DEBUG)
        return cmd_error(c, "only debug builds keep these times (make DEBUG=1)");
    if (c->want_json)
        json_array_begin(c->json);
    else
        con_printf("%-18s %-20s %10s %12s  %s\n", "what", "name", "times", "worst us", "where");
    for (unsigned n = 0; n < PLACES && places[n].pc; n++) {
        struct place *p = &places[n];
        char where[96];
        ksym_format(where, sizeof(where), (uintptr_t)p->pc);
        if (!c->want_json) {
            con_printf("%-18s %-20s %10lu %12lu  %s\n", kind_names[p->kind], p->name, p->count, p->worst_ns / 1000, where);
            continue;
        }
        json_object_begin(c->json);
        json_kv_string(c->json, "what", kind_names[p->kind]);
        json_kv_string(c->json, "name", p->name);
        json_kv_string(c->json, "where", where);
        json_kv_u64(c->json, "times", p->count);
        json_kv_u64(c->json, "worst_ns", p->worst_ns);
        json_object_end(c->json);
    }
    if (c->want_json)
        json_array_end(c->json);
    else if (left_out)
        con_printf("(%lu times at further places)\n", left_out);
    return CMD_OK;
}
CONSOLE_COMMAND(slow, cmd_slow, "slow [-j]",
                "debug builds: where locks were held for more than 5 ms, or interrupts were off for more than 1 ms");
