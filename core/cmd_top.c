/*
 * `top`: what every CPU and thread did during an interval, from two readings of counters that are kept anyway.
 *
 * STEAL is the time that a thread was ready and others ran: for a vCPU what its guest sees as stolen. A thread that came or went during the
 * interval is not shown.
 */
#include "core/console.h"
#include "core/thread.h"
#include "core/time.h"
#include "lib/string.h"
#include "x86/percpu.h"

#define ROWS_MAX 256
#define SECONDS_MAX 60

struct row {
    const struct thread *thread;
    char name[24];
    enum thread_prio prio;
    enum thread_state state;
    unsigned pcpu;
    uint64_t run_ns, wait_ns, switches, migrations;
};
struct rows { unsigned count, left_out; struct row row[ROWS_MAX]; };

static bool take(struct thread *t, void *arg)
{
    struct rows *rows = arg;
    if (rows->count == ROWS_MAX) {
        rows->left_out++;
        return true;
    }
    struct row *r = &rows->row[rows->count++];
    *r = (struct row){.thread = t, .prio = t->prio, .state = t->state, .pcpu = t->pcpu, .switches = t->switches, .migrations = t->migrations};
    str_copy(r->name, sizeof(r->name), t->name);
    thread_times(t, &r->run_ns, &r->wait_ns);
    return true;
}

/* Leaves in `now` the differences to `before`, the busiest first. */
static void subtract(struct rows *now, const struct rows *before)
{
    unsigned kept = 0;
    for (unsigned n = 0; n < now->count; n++) {
        struct row r = now->row[n];
        const struct row *b = NULL;
        for (unsigned k = 0; k < before->count && !b; k++)
            if (before->row[k].thread == r.thread && !strcmp(before->row[k].name, r.name) && before->row[k].run_ns <= r.run_ns)
                b = &before->row[k];
        if (!b)
            continue;
        r.run_ns -= b->run_ns;
        r.wait_ns -= MIN(b->wait_ns, r.wait_ns);
        r.switches -= b->switches;
        r.migrations -= b->migrations;
        unsigned at = kept++;
        for (; at && now->row[at - 1].run_ns < r.run_ns; at--)
            now->row[at] = now->row[at - 1];
        now->row[at] = r;
    }
    now->count = kept;
}

struct cpu_row { uint64_t idle_ns, steals; };

static void take_cpus(struct cpu_row *rows)
{
    for (unsigned n = 0; n < cpu_count(); n++)
        if (sched_cpu_online(n))
            sched_cpu_times(n, &rows[n].idle_ns, &rows[n].steals);
}

static const char *const prio_names[] = {"idle", "vcpu", "policy", "console"};

static void show_json(struct cmd_ctx *c, const struct rows *rows, const struct cpu_row *cpus, uint64_t ns)
{
    json_object_begin(c->json);
    json_kv_u64(c->json, "interval_ns", ns);
    json_key(c->json, "pcpus");
    json_array_begin(c->json);
    for (unsigned n = 0; n < cpu_count(); n++) {
        if (!sched_cpu_online(n))
            continue;
        json_object_begin(c->json);
        json_kv_u64(c->json, "id", n);
        json_kv_u64(c->json, "idle_ns", cpus[n].idle_ns);
        json_kv_u64(c->json, "steals", cpus[n].steals);
        json_object_end(c->json);
    }
    json_array_end(c->json);
    json_key(c->json, "threads");
    json_array_begin(c->json);
    for (unsigned n = 0; n < rows->count; n++) {
        const struct row *r = &rows->row[n];
        json_object_begin(c->json);
        json_kv_string(c->json, "name", r->name);
        json_kv_string(c->json, "priority", prio_names[r->prio]);
        json_kv_u64(c->json, "pcpu", r->pcpu);
        json_kv_u64(c->json, "run_ns", r->run_ns);
        json_kv_u64(c->json, "steal_ns", r->wait_ns);
        json_kv_u64(c->json, "switches", r->switches);
        json_kv_u64(c->json, "migrations", r->migrations);
        json_object_end(c->json);
    }
    json_array_end(c->json);
    json_object_end(c->json);
}

/* In tenths of a percent of one CPU. */
static void percent(char *buf, size_t size, uint64_t part, uint64_t ns)
{
    uint64_t tenths = part * 1000 / ns;
    snprintf(buf, size, "%lu.%lu", tenths / 10, tenths % 10);
}

static void show_text(const struct rows *rows, const struct cpu_row *cpus, uint64_t ns)
{
    char a[24], b[24];
    con_printf("%-6s %7s %8s\n", "pcpu", "idle %", "stolen");
    for (unsigned n = 0; n < cpu_count(); n++) {
        percent(a, sizeof(a), MIN(cpus[n].idle_ns, ns), ns);
        if (sched_cpu_online(n))
            con_printf("%-6u %7s %8lu\n", n, a, cpus[n].steals);
    }
    con_printf("\n%-24s %-8s %4s %7s %7s %9s %6s\n", "thread", "priority", "pcpu", "cpu %", "steal %", "switches", "moves");
    for (unsigned n = 0; n < rows->count; n++) {
        const struct row *r = &rows->row[n];
        if (r->prio == THREAD_PRIO_IDLE && !strncmp(r->name, "idle/", 5))
            continue; /* said above */
        percent(a, sizeof(a), r->run_ns, ns);
        percent(b, sizeof(b), r->wait_ns, ns);
        con_printf("%-24s %-8s %4u %7s %7s %9lu %6lu\n", r->name, prio_names[r->prio], r->pcpu, a, b, r->switches, r->migrations);
    }
    if (rows->left_out)
        con_printf("(and %u more)\n", rows->left_out);
}

static enum cmd_result cmd_top(struct cmd_ctx *c)
{
    static struct rows before, now; /* one console thread */
    static struct cpu_row cpus_before[MAX_PCPUS], cpus_now[MAX_PCPUS];
    uint64_t seconds = 1;
    if (c->argc > 2)
        return CMD_USAGE;
    if (c->argc == 2 && (!str_to_u64(c->argv[1], &seconds) || seconds < 1 || seconds > SECONDS_MAX))
        return cmd_error(c, "\"%s\" is no number of seconds between 1 and %d", c->argv[1], SECONDS_MAX);
    uint64_t begun = time_ns();
    before.count = now.count = before.left_out = now.left_out = 0;
    thread_for_each(take, &before);
    take_cpus(cpus_before);
    thread_sleep_ns(seconds * 1000000000);
    thread_for_each(take, &now);
    take_cpus(cpus_now);
    uint64_t ns = time_ns() - begun;
    for (unsigned n = 0; n < cpu_count(); n++) {
        cpus_now[n].idle_ns -= cpus_before[n].idle_ns;
        cpus_now[n].steals -= cpus_before[n].steals;
    }
    subtract(&now, &before);
    if (c->want_json)
        show_json(c, &now, cpus_now, ns);
    else
        show_text(&now, cpus_now, ns);
    return CMD_OK;
}
CONSOLE_COMMAND(top, cmd_top, "top [-j] [SECONDS]",
                "what CPUs and threads do during a second, or so many: CPU time, time ready while others ran (steal),\n"
                "moves between CPUs");
