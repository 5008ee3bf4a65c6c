/*
 * Commands about the machine and the hypervisor itself. Ending the machine goes through ops, since drivers are above core.
 */
#include "core/cmd_core.h"
#include "core/console.h"
#include "core/log.h"
#include "core/thread.h"
#include "core/time.h"
#include "include/abi/boot_info.h"
#include "lib/string.h"
#include "x86/cpu.h"
#include "x86/percpu.h"

#ifndef HV_VERSION
#define HV_VERSION "0.1"
#endif

static const struct core_power_ops *power;
static const struct boot_info *boot;

const char *hv_version(void)
{
    return HV_VERSION;
}

void cmd_core_init(const struct boot_info *bi, const struct core_power_ops *ops)
{
    boot = bi;
    power = ops;
}

static enum cmd_result cmd_version(struct cmd_ctx *c)
{
    uint64_t up_ms = time_ns() / 1000000;
    if (c->argc != 1)
        return CMD_USAGE;
    if (c->want_json) {
        json_object_begin(c->json);
        json_kv_string(c->json, "version", HV_VERSION);
        json_kv_bool(c->json, "debug", HV_DEBUG);
        json_kv_string(c->json, "loader", boot->loader);
        json_kv_u64(c->json, "image_bytes", boot->image_size);
        json_kv_u64(c->json, "uptime_ms", up_ms);
        json_object_end(c->json);
        return CMD_OK;
    }
    con_printf("palimpsest %s%s, booted by %s, image %lu KiB, up %lu.%03lu s\n", HV_VERSION, HV_DEBUG ? " (debug)" : "",
               boot->loader, boot->image_size / 1024, up_ms / 1000, up_ms % 1000);
    return CMD_OK;
}
CONSOLE_COMMAND(version, cmd_version, "version [-j]", "version, loader, image size, time since boot");

static void show_cpu_line(const char *key, const char *value, void *arg)
{
    struct cmd_ctx *c = arg;
    if (c->want_json)
        json_kv_string(c->json, key, value);
    else
        con_printf("%-16s %s\n", key, value);
}

static unsigned online_cpus(void)
{
    unsigned count = 0;
    for (unsigned n = 0; n < cpu_count(); n++)
        count += sched_cpu_online(n);
    return count;
}

/* Of a VM that does not say where it wants to run. One text, for one thread: the console's. */
static const char *guest_cpus(void)
{
    static char text[64];
    struct cpu_set set;
    sched_guest_cpus(&set);
    for (unsigned n = 0; n < cpu_count(); n++)
        if (!sched_cpu_online(n))
            cpu_set_remove(&set, n);
    cpu_set_format(&set, cpu_count(), text, sizeof(text));
    return text;
}

static enum cmd_result cmd_cpu(struct cmd_ctx *c)
{
    if (c->argc != 1)
        return CMD_USAGE;
    if (c->want_json)
        json_object_begin(c->json);
    cpu_describe(show_cpu_line, c);
    if (c->want_json) {
        json_kv_u64(c->json, "tsc_khz", time_tsc_khz());
        json_kv_u64(c->json, "online", online_cpus());
        json_kv_string(c->json, "guests_on", guest_cpus());
        json_object_end(c->json);
    } else {
        con_printf("%-16s %lu.%03lu MHz\n", "TSC", time_tsc_khz() / 1000, time_tsc_khz() % 1000);
        con_printf("%-16s %u; guests run on %s%s\n", "CPUs in use", online_cpus(), guest_cpus(),
                   cpu_info()->tcg && online_cpus() > 1 ? " (QEMU's emulation can not run any safely on its first CPU beside others)" : "");
    }
    return CMD_OK;
}
CONSOLE_COMMAND(cpu, cmd_cpu, "cpu [-j]", "the processor: model, features that matter here, TSC");

static const char *const level_names[] = {"error", "warn", "info", "debug"};

static void show_log_line(const char *line, void *arg)
{
    struct cmd_ctx *c = arg;
    if (c->want_json) {
        json_string(c->json, line);
        return;
    }
    con_puts(line);
    con_puts("\n");
}

static enum cmd_result cmd_log(struct cmd_ctx *c)
{
    if (c->argc == 3 && !strcmp(c->argv[1], "level")) {
        for (unsigned i = 0; i < ARRAY_SIZE(level_names); i++)
            if (!strcmp(c->argv[2], level_names[i])) {
                log_set_console_level((enum log_level)i);
                if (c->want_json) {
                    json_object_begin(c->json);
                    json_kv_string(c->json, "level", level_names[i]);
                    json_object_end(c->json);
                }
                return CMD_OK;
            }
        return cmd_error(c, "\"%s\" is none of error, warn, info, debug", c->argv[2]);
    }
    if (c->argc != 1)
        return CMD_USAGE;
    if (c->want_json)
        json_array_begin(c->json);
    log_replay(show_log_line, c);
    if (c->want_json)
        json_array_end(c->json);
    return CMD_OK;
}

static void complete_log(int argn, char **argv, void (*add)(const char *, void *), void *arg)
{
    if (argn == 1)
        add("level", arg);
    for (unsigned i = 0; argn == 2 && !strcmp(argv[1], "level") && i < ARRAY_SIZE(level_names); i++)
        add(level_names[i], arg);
}
CONSOLE_COMMAND_C(log, cmd_log, "log [-j] | log level error|warn|info|debug",
                  "the log since boot (64 KiB are kept, of all levels)\n`log level` sets what is shown as it happens", complete_log);

static const char *const state_names[] = {"new", "ready", "running", "blocked", "capped", "dead"};
static const char *const prio_names[] = {"idle", "vcpu", "policy", "console"};

struct thread_row { char name[24]; enum thread_prio prio; enum thread_state state; unsigned pcpu; uint64_t run_ns, switches; };
struct thread_rows { struct thread_row row[192]; unsigned count, left_out; };

/* Copies: the list is locked with interrupts off, and printing takes its time. */
static bool take_thread_row(struct thread *t, void *arg)
{
    struct thread_rows *rows = arg;
    if (rows->count == ARRAY_SIZE(rows->row)) {
        rows->left_out++;
        return true;
    }
    struct thread_row *r = &rows->row[rows->count++];
    uint64_t wait_ns;
    *r = (struct thread_row){.prio = t->prio, .state = t->state, .pcpu = t->pcpu, .switches = t->switches};
    thread_times(t, &r->run_ns, &wait_ns);
    str_copy(r->name, sizeof(r->name), t->name);
    return true;
}

static void show_thread_row(struct cmd_ctx *c, const struct thread_row *r)
{
    if (!c->want_json) {
        con_printf("%-24s %-8s %-8s %4u %12lu.%06lu %10lu\n", r->name, prio_names[r->prio], state_names[r->state], r->pcpu,
                   r->run_ns / 1000000000, r->run_ns / 1000 % 1000000, r->switches);
        return;
    }
    json_object_begin(c->json);
    json_kv_string(c->json, "name", r->name);
    json_kv_string(c->json, "priority", prio_names[r->prio]);
    json_kv_string(c->json, "state", state_names[r->state]);
    json_kv_u64(c->json, "pcpu", r->pcpu);
    json_kv_u64(c->json, "run_ns", r->run_ns);
    json_kv_u64(c->json, "switches", r->switches);
    json_object_end(c->json);
}

static enum cmd_result cmd_threads(struct cmd_ctx *c)
{
    static struct thread_rows rows; /* one console thread */
    if (c->argc != 1)
        return CMD_USAGE;
    rows.count = rows.left_out = 0;
    thread_for_each(take_thread_row, &rows);
    if (c->want_json)
        json_array_begin(c->json);
    else
        con_printf("%-24s %-8s %-8s %4s %19s %10s\n", "THREAD", "PRIORITY", "STATE", "PCPU", "CPU SECONDS", "SWITCHES");
    for (unsigned i = 0; i < rows.count; i++)
        show_thread_row(c, &rows.row[i]);
    if (c->want_json)
        json_array_end(c->json);
    else if (rows.left_out)
        con_printf("(and %u more)\n", rows.left_out);
    return CMD_OK;
}
CONSOLE_COMMAND(threads, cmd_threads, "threads [-j]", "hypervisor threads: priority, state, CPU time");

static enum cmd_result cmd_module(struct cmd_ctx *c)
{
    if (c->argc != 2 || strcmp(c->argv[1], "list"))
        return CMD_USAGE;
    if (c->want_json)
        json_array_begin(c->json);
    else
        con_printf("%-40s %14s %14s\n", "FILE", "BYTES", "AT");
    for (uint32_t i = 0; i < boot->file_count; i++) {
        const struct boot_file *f = &boot->files[i];
        if (!c->want_json) {
            con_printf("%-40s %14lu %#14lx\n", f->name, f->size, f->hpa);
            continue;
        }
        json_object_begin(c->json);
        json_kv_string(c->json, "name", f->name);
        json_kv_u64(c->json, "bytes", f->size);
        json_kv_u64(c->json, "hpa", f->hpa);
        json_object_end(c->json);
    }
    if (c->want_json)
        json_array_end(c->json);
    return CMD_OK;
}

static void complete_module(int argn, char **argv UNUSED, void (*add)(const char *, void *), void *arg)
{
    if (argn == 1)
        add("list", arg);
}
CONSOLE_COMMAND_C(module, cmd_module, "module list [-j]", "files that were loaded at boot: kernels, initrds, modules", complete_module);

static enum cmd_result cmd_reboot(struct cmd_ctx *c)
{
    if (c->argc != 1)
        return CMD_USAGE;
    log_info("reboot: asked for on the console");
    power->reboot();
    return CMD_OK;
}
CONSOLE_COMMAND(reboot, cmd_reboot, "reboot", "resets the machine; guests are not asked");

static enum cmd_result cmd_poweroff(struct cmd_ctx *c)
{
    if (c->argc != 1)
        return CMD_USAGE;
    log_info("poweroff: asked for on the console");
    power->off();
    return CMD_OK;
}
CONSOLE_COMMAND(poweroff, cmd_poweroff, "poweroff", "switches the machine off; guests are not asked");
