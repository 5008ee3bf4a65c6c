/*
 * The console's view of memory: `mem`, `mem audit`, `mem bill`; cmd_map.c has `mem map`.
 *
 * The numbers are exact: each is a counter that the audit proves, and none is derived from another by rounding.
 */
#include "core/console.h"
#include "include/hv/dmm.h"
#include "lib/string.h"
#include "mm/dmm/cmd_map.h"

#define PAGES_TO_KIB(n) ((unsigned long)(n) * 4)

static uint64_t overhead_bytes(const struct dmm_usage *u) { return (u->p2m_pages + u->state_pages) * PAGE_SIZE + u->heap_bytes; }

/* ---- mem ------------------------------------------------------------------------------------------------------- */

static bool mem_space_text(struct dmm_space *s, void *arg)
{
    struct dmm_usage u;
    (void)arg;
    dmm_space_usage(s, &u);
    con_printf("%-16s %10lu %9lu %9lu %9lu %9lu %9lu %9lu %9lu %7lu %8lu %8lu\n", dmm_space_name(s), PAGES_TO_KIB(u.configured),
               PAGES_TO_KIB(u.resident), PAGES_TO_KIB(u.resident_large), PAGES_TO_KIB(u.shared), PAGES_TO_KIB(u.image_shared), PAGES_TO_KIB(u.zero),
               PAGES_TO_KIB(u.inherited), PAGES_TO_KIB(u.empty), PAGES_TO_KIB(u.pinned), PAGES_TO_KIB(u.covered),
               (unsigned long)(overhead_bytes(&u) / 1024));
    return true;
}

static bool mem_space_json(struct dmm_space *s, void *arg)
{
    struct json_writer *w = arg;
    struct dmm_usage u;
    dmm_space_usage(s, &u);
    json_object_begin(w);
    json_kv_string(w, "name", dmm_space_name(s));
    json_kv_u64(w, "id", dmm_space_vm_id(s));
    json_kv_string(w, "class", dmm_class_name(dmm_get_class(s)));
    json_kv_string(w, "group", dmm_group_name(dmm_space_group(s)) ? dmm_group_name(dmm_space_group(s)) : "");
    const struct { const char *key; uint64_t value; } fields[] = {
        { "configured_pages", u.configured }, { "resident_pages", u.resident }, { "resident_large_pages", u.resident_large },
        { "image_shared_pages", u.image_shared }, { "shared_pages", u.shared }, { "zero_pages", u.zero },
        { "empty_pages", u.empty }, { "pinned_pages", u.pinned }, { "p2m_pages", u.p2m_pages },
        { "state_pages", u.state_pages }, { "heap_bytes", u.heap_bytes }, { "overhead_bytes", overhead_bytes(&u) },
        { "min_pages", u.min }, { "max_pages", u.max }, { "charged_pages", u.charged }, { "sealed_pages", u.sealed },
        { "inherited_pages", u.inherited }, { "covered_pages", u.covered },
    };
    for (unsigned n = 0; n < ARRAY_SIZE(fields); n++)
        json_kv_u64(w, fields[n].key, fields[n].value);
    json_object_end(w);
    return true;
}

static void mem_json(struct json_writer *w)
{
    json_object_begin(w);
    json_kv_u64(w, "total_pages", frame_total_pages());
    json_kv_u64(w, "free_pages", frame_free_pages());
    json_kv_u64(w, "saved_pages", dmm_saved_pages());
    json_kv_u64(w, "covered_pages", dmm_covered_pages());
    json_kv_u64(w, "promised_pages", dmm_promised_pages());
    json_kv_u64(w, "reserve_pages", dmm_reserve_pages());
    json_key(w, "frames");
    json_object_begin(w);
    for (unsigned t = FRAME_FREE; t < FRAME_TYPE_COUNT; t++)
        json_kv_u64(w, frame_type_name(t), frame_count(t));
    json_object_end(w);
    json_key(w, "vms");
    json_array_begin(w);
    dmm_for_each_space(mem_space_json, w);
    json_array_end(w);
    json_object_end(w);
}

static void mem_text(void)
{
    con_printf("%-16s %12s %12s\n", "frames", "pages", "KiB");
    for (unsigned t = FRAME_FREE; t < FRAME_TYPE_COUNT; t++)
        con_printf("%-16s %12lu %12lu\n", frame_type_name(t), (unsigned long)frame_count(t), PAGES_TO_KIB(frame_count(t)));
    con_printf("%-16s %12lu %12lu\n", "total", (unsigned long)frame_total_pages(), PAGES_TO_KIB(frame_total_pages()));
    con_printf("saved by sharing %12lu KiB; set aside: %lu KiB for un-sharing, %lu KiB for minima, %lu KiB reserve\n\n",
               PAGES_TO_KIB(dmm_saved_pages()), PAGES_TO_KIB(dmm_covered_pages()), PAGES_TO_KIB(dmm_promised_pages()), PAGES_TO_KIB(dmm_reserve_pages()));
    con_printf("%-16s %10s %9s %9s %9s %9s %9s %9s %9s %7s %8s %8s\n", "VM (KiB)", "configured", "resident", "in 2 MiB", "shared", "boot file",
               "zero", "inherited", "empty", "pinned", "cover", "overhead");
    dmm_for_each_space(mem_space_text, NULL);
}

/* ---- mem audit --------------------------------------------------------------------------------------------------- */

/* Violations are kept and printed when the gate is open again: printing may need what the gate holds back. */
#define KEPT_LINES 32
static char kept[KEPT_LINES][192];
static unsigned kept_count;

static void keep_line(const char *line, void *arg)
{
    (void)arg;
    if (kept_count < KEPT_LINES)
        str_copy(kept[kept_count++], sizeof(kept[0]), line);
}

static bool add_configured(struct dmm_space *s, void *arg)
{
    struct dmm_usage u;
    dmm_space_usage(s, &u);
    *(uint64_t *)arg += u.resident + u.image_shared + u.shared + u.zero + u.inherited + u.empty;
    return true;
}

static enum cmd_result mem_audit(struct cmd_ctx *c)
{
    uint64_t pages = 0;
    kept_count = 0;
    unsigned violations = dmm_audit(keep_line, NULL);
    dmm_for_each_space(add_configured, &pages);
    if (c->want_json) {
        json_object_begin(c->json);
        json_kv_bool(c->json, "ok", violations == 0);
        json_kv_u64(c->json, "frames", frame_total_pages());
        json_kv_u64(c->json, "pages", pages);
        json_kv_u64(c->json, "violations", violations);
        json_key(c->json, "lines");
        json_array_begin(c->json);
        for (unsigned n = 0; n < kept_count; n++)
            json_string(c->json, kept[n]);
        json_array_end(c->json);
        json_object_end(c->json);
        return CMD_OK;
    }
    for (unsigned n = 0; n < kept_count; n++)
        con_printf("%s\n", kept[n]);
    if (violations)
        con_printf("audit: %u violations\n", violations);
    else
        con_printf("audit: ok, %lu frames, %lu pages\n", (unsigned long)frame_total_pages(), (unsigned long)pages);
    return CMD_OK;
}

/* ---- mem bill ----------------------------------------------------------------------------------------------------- */

/* Thousandths of a frame as KiB. */
#define MILLI_TO_KIB(n) ((unsigned long)((n) / 250))

struct bill_of { struct cmd_ctx *c; const char *name; unsigned found; };

static uint64_t total_milli(const struct dmm_bill *b)
{
    return b->private_milli + b->shared_milli + b->image_milli + b->inherited_milli + b->overhead_milli;
}

/* What it has, and why. */
static void bill_text(struct dmm_space *s, const struct dmm_bill *b)
{
    struct dmm_usage u;
    dmm_space_usage(s, &u);
    const char *group = dmm_group_name(dmm_space_group(s));
    con_printf("%-16s %9lu %9lu %9lu %9lu %9lu %9lu\n", dmm_space_name(s), MILLI_TO_KIB(total_milli(b)), MILLI_TO_KIB(b->private_milli),
               MILLI_TO_KIB(b->shared_milli), MILLI_TO_KIB(b->image_milli), MILLI_TO_KIB(b->inherited_milli), MILLI_TO_KIB(b->overhead_milli));
    con_printf("    %lu KiB of %lu are its own", PAGES_TO_KIB(u.resident), PAGES_TO_KIB(u.configured));
    if (u.shared)
        con_printf("; %lu shared with up to %lu other pages", PAGES_TO_KIB(u.shared), b->sharers_max ? b->sharers_max - 1 : 0);
    if (u.inherited)
        con_printf("; %lu are still as at the fork or snapshot", PAGES_TO_KIB(u.inherited));
    con_printf("; %lu cost nothing: zero or never touched\n", PAGES_TO_KIB(u.zero + u.empty));
    con_printf("    %s%s, %s: %lu KiB set aside for when it writes; %lu.%03lu shares a second break, %lu have\n",
               group ? "in group " : "shares with itself only", group ? group : "", dmm_class_name(dmm_get_class(s)),
               PAGES_TO_KIB(b->covered_pages), b->break_rate_milli / 1000, b->break_rate_milli % 1000, b->breaks);
    if (dmm_waits_for_memory(s)) {
        char lacks[128];
        dmm_stall_text(s, lacks, sizeof(lacks));
        con_printf("    it waits: %s\n", lacks);
    } else if (u.charged >= u.max) {
        con_printf("    it has its maximum of %lu KiB, and waits if it wants more\n", PAGES_TO_KIB(u.max));
    } else if (u.min) {
        con_printf("    %lu KiB are promised to it, %lu are its maximum\n", PAGES_TO_KIB(u.min), PAGES_TO_KIB(u.max));
    }
}

static void bill_json(struct json_writer *w, struct dmm_space *s, const struct dmm_bill *b)
{
    char lacks[128] = "";
    if (dmm_waits_for_memory(s))
        dmm_stall_text(s, lacks, sizeof(lacks));
    json_object_begin(w);
    json_kv_string(w, "name", dmm_space_name(s));
    json_kv_string(w, "waits", lacks);
    const struct { const char *key; uint64_t value; } fields[] = {
        { "total_millipages", total_milli(b) }, { "private_millipages", b->private_milli }, { "shared_millipages", b->shared_milli },
        { "boot_file_millipages", b->image_milli }, { "inherited_millipages", b->inherited_milli }, { "overhead_millipages", b->overhead_milli },
        { "covered_pages", b->covered_pages }, { "sharers_max", b->sharers_max }, { "breaks", b->breaks },
        { "breaks_per_1000_s", b->break_rate_milli },
    };
    for (unsigned n = 0; n < ARRAY_SIZE(fields); n++)
        json_kv_u64(w, fields[n].key, fields[n].value);
    json_object_end(w);
}

static bool bill_one(struct dmm_space *s, void *arg)
{
    struct bill_of *of = arg;
    struct dmm_bill b;
    if (of->name && strcmp(of->name, dmm_space_name(s)) != 0)
        return true;
    of->found++;
    dmm_space_bill(s, &b);
    if (of->c->want_json)
        bill_json(of->c->json, s, &b);
    else
        bill_text(s, &b);
    return true;
}

static enum cmd_result mem_bill(struct cmd_ctx *c)
{
    struct bill_of of = { c, c->argc == 3 ? c->argv[2] : NULL, 0 };
    if (of.name && !dmm_space_named(of.name))
        return cmd_error(c, "there is no VM of the name %s", of.name);
    if (c->want_json)
        json_array_begin(c->json);
    else
        con_printf("%-16s %9s %9s %9s %9s %9s %9s\n", "VM (KiB)", "bill", "private", "shared/n", "boot/n", "inherited", "overhead");
    dmm_for_each_space(bill_one, &of);
    if (c->want_json)
        json_array_end(c->json);
    return CMD_OK;
}

/* ---- the command ---------------------------------------------------------------------------------------------------- */

static enum cmd_result cmd_mem(struct cmd_ctx *c)
{
    if (c->argc == 2 && strcmp(c->argv[1], "audit") == 0)
        return mem_audit(c);
    if ((c->argc == 2 || c->argc == 3) && strcmp(c->argv[1], "bill") == 0)
        return mem_bill(c);
    if (c->argc == 3 && strcmp(c->argv[1], "map") == 0)
        return cmd_mem_map(c, c->argv[2]);
    if (c->argc != 1)
        return CMD_USAGE;
    if (c->want_json)
        mem_json(c->json);
    else
        mem_text();
    return CMD_OK;
}

static bool add_space_name(struct dmm_space *s, void *arg)
{
    struct { void (*add)(const char *candidate, void *arg); void *arg; } *k = arg;
    k->add(dmm_space_name(s), k->arg);
    return true;
}

static void complete_mem(int argn, char **argv, void (*add)(const char *candidate, void *arg), void *arg)
{
    struct { void (*add)(const char *candidate, void *arg); void *arg; } k = { add, arg };
    if (argn == 1) {
        add("audit", arg);
        add("bill", arg);
        add("map", arg);
    } else if (argn == 2 && (strcmp(argv[1], "bill") == 0 || strcmp(argv[1], "map") == 0)) {
        dmm_for_each_space(add_space_name, &k);
    }
}

CONSOLE_COMMAND_C(mem, cmd_mem, "mem\nmem audit\nmem bill [VM]\nmem map VM",
                  "machine frames by type, what is set aside, and what each VM has in KiB: configured, resident (of which in 2 MiB mappings),\n"
                  "shared with other pages, with boot files, reading as the zero page, inherited from an image, never touched (empty), pinned,\n"
                  "set aside for its un-sharing, and our overhead for it.\n"
                  "audit checks that every frame and every page is accounted for exactly once.\n"
                  "bill charges a frame with n users 1/n to each, and says why a VM has what it has.\n"
                  "map shows the states of a VM's pages, in runs; with -j where its nested table and its images' are, and its group.", complete_mem);
