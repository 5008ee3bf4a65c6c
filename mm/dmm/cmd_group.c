/*
 * The console's view of sharing groups: `group`.
 */
#include "core/console.h"
#include "core/time.h"
#include "include/hv/dmm.h"
#include "lib/string.h"

/* What a group has, over its VMs. */
struct group_sum { unsigned group, members; uint64_t shared_pages, sealed_pages, traps, trap_tsc; };

static bool add_member(struct dmm_space *s, void *arg)
{
    struct group_sum *g = arg;
    struct dmm_usage u;
    struct dmm_hist_summary traps;
    if (dmm_space_group(s) != g->group)
        return true;
    dmm_space_usage(s, &u);
    dmm_fault_summary(s, DMM_CAUSE_COW_SEALED, &traps);
    g->members++;
    g->shared_pages += u.shared;
    g->sealed_pages += u.sealed;
    g->traps += traps.count;
    g->trap_tsc += traps.count * traps.mean_tsc;
    return true;
}

static struct group_sum sum_of(unsigned group)
{
    struct group_sum g = { .group = group };
    dmm_for_each_space(add_member, &g);
    return g;
}

static uint64_t mean_trap_ns(const struct group_sum *g) { return g->traps ? time_tsc_to_ns(g->trap_tsc / g->traps) : 0; }

static void show_group(struct cmd_ctx *c, unsigned group)
{
    struct group_sum g = sum_of(group);
    if (!c->want_json) {
        con_printf("%-20s %-7s %7u %12lu %10lu %10lu %10lu\n", dmm_group_name(group), dmm_group_secure(group) ? "secure" : "", g.members,
                   g.shared_pages * 4, g.sealed_pages * 4, g.traps, mean_trap_ns(&g));
        return;
    }
    json_object_begin(c->json);
    json_kv_string(c->json, "name", dmm_group_name(group));
    json_kv_bool(c->json, "secure", dmm_group_secure(group));
    json_kv_u64(c->json, "members", g.members);
    json_kv_u64(c->json, "shared_pages", g.shared_pages);
    json_kv_u64(c->json, "sealed_pages", g.sealed_pages);
    json_kv_u64(c->json, "traps", g.traps);
    json_kv_u64(c->json, "mean_trap_ns", mean_trap_ns(&g));
    json_object_end(c->json);
}

static void heading(void)
{
    con_printf("%-20s %-7s %7s %12s %10s %10s %10s\n", "group", "", "members", "shared KiB", "sealed KiB", "traps", "ns each");
}

static enum cmd_result list(struct cmd_ctx *c)
{
    if (c->want_json)
        json_array_begin(c->json);
    else
        heading();
    for (unsigned g = 1; dmm_group_name(g); g++)
        show_group(c, g);
    if (c->want_json)
        json_array_end(c->json);
    return CMD_OK;
}

static enum cmd_result cmd_group(struct cmd_ctx *c)
{
    if (c->argc == 1 || (c->argc == 2 && strcmp(c->argv[1], "list") == 0))
        return list(c);
    bool on = c->argc == 4 && strcmp(c->argv[3], "on") == 0, off = c->argc == 4 && strcmp(c->argv[3], "off") == 0;
    if (strcmp(c->argv[1], "secure") != 0 || (!on && !off))
        return CMD_USAGE;
    unsigned group = dmm_group_find(c->argv[2]);
    if (!group)
        return cmd_error(c, "there is no group %s: VMs make them, with group = NAME", c->argv[2]);
    dmm_group_set_secure(group, on);
    if (!c->want_json)
        heading();
    show_group(c, group);
    return CMD_OK;
}

static void complete_group(int argn, char **argv, void (*add)(const char *candidate, void *arg), void *arg)
{
    if (argn == 1) {
        add("list", arg);
        add("secure", arg);
    }
    for (unsigned g = 1; argn == 2 && strcmp(argv[1], "secure") == 0 && dmm_group_name(g); g++)
        add(dmm_group_name(g), arg);
    if (argn == 3) {
        add("on", arg);
        add("off", arg);
    }
}

CONSOLE_COMMAND_C(group, cmd_group, "group [list]\ngroup secure NAME on|off",
                  "sharing groups: which there are, how many VMs each has, what they share, and what the secure mode has cost so far: accesses\n"
                  "that trapped and were copied, and the time for each. In a secure group every page that the scanner takes up traps at its\n"
                  "next access, merged or not; what it had taken up before, after the next sweep. Pages that are sealed when it is switched off are\n"
                  "unsealed as they are touched.", complete_group);
