/*
 * The console's view of memory: `mem`, `mem audit`, `policy`.
 *
 * The numbers are exact: each is a counter that the audit proves, and none is derived from another by rounding.
 */
#include "core/console.h"
#include "include/hv/dmm.h"
#include "include/hv/dmm_policy.h"
#include "lib/string.h"

#define PAGES_TO_KIB(n) ((unsigned long)(n) * 4)

static uint64_t overhead_bytes(const struct dmm_usage *u) { return (u->p2m_pages + u->state_pages) * PAGE_SIZE + u->heap_bytes; }

/* ---- mem ------------------------------------------------------------------------------------------------------- */

static bool mem_space_text(struct dmm_space *s, void *arg)
{
    struct dmm_usage u;
    (void)arg;
    dmm_space_usage(s, &u);
    con_printf("%-16s %10lu %10lu %10lu %10lu %10lu %10lu %10lu %10lu\n", dmm_space_name(s), PAGES_TO_KIB(u.configured),
               PAGES_TO_KIB(u.resident), PAGES_TO_KIB(u.resident_large), PAGES_TO_KIB(u.image_shared + u.shared),
               PAGES_TO_KIB(u.zero), PAGES_TO_KIB(u.empty), PAGES_TO_KIB(u.pinned), (unsigned long)(overhead_bytes(&u) / 1024));
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
    const struct { const char *key; uint64_t value; } fields[] = {
        { "configured_pages", u.configured }, { "resident_pages", u.resident }, { "resident_large_pages", u.resident_large },
        { "image_shared_pages", u.image_shared }, { "shared_pages", u.shared }, { "zero_pages", u.zero },
        { "empty_pages", u.empty }, { "pinned_pages", u.pinned }, { "p2m_pages", u.p2m_pages },
        { "state_pages", u.state_pages }, { "heap_bytes", u.heap_bytes }, { "overhead_bytes", overhead_bytes(&u) },
        { "min_pages", u.min }, { "max_pages", u.max }, { "charged_pages", u.charged },
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
    con_printf("%-16s %12lu %12lu\n\n", "total", (unsigned long)frame_total_pages(), PAGES_TO_KIB(frame_total_pages()));
    con_printf("%-16s %10s %10s %10s %10s %10s %10s %10s %10s\n", "VM (KiB)", "configured", "resident", "in 2 MiB", "shared",
               "zero", "empty", "pinned", "overhead");
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
    *(uint64_t *)arg += u.resident + u.image_shared + u.shared + u.zero + u.empty;
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

static enum cmd_result cmd_mem(struct cmd_ctx *c)
{
    if (c->argc == 2 && strcmp(c->argv[1], "audit") == 0)
        return mem_audit(c);
    if (c->argc != 1)
        return CMD_USAGE;
    if (c->want_json)
        mem_json(c->json);
    else
        mem_text();
    return CMD_OK;
}

static void complete_mem(int argn, char **argv, void (*add)(const char *candidate, void *arg), void *arg)
{
    (void)argv;
    if (argn == 1)
        add("audit", arg);
}

CONSOLE_COMMAND_C(mem, cmd_mem, "mem\nmem audit",
                  "machine frames by type, and what each VM has in KiB: configured, resident (of which in 2 MiB mappings),\n"
                  "shared with boot files, reading as the zero page, never touched (empty), pinned, and our overhead for it.\n"
                  "audit checks that every frame and every page is accounted for exactly once.", complete_mem);

/* ---- policy ------------------------------------------------------------------------------------------------------- */

static bool list_text(struct dmm_policy *p, void *arg)
{
    (void)arg;
    con_printf("%-12s %-4s %s\n", p->name, p->enabled ? "on" : "off", p->help);
    return true;
}

static bool list_json(struct dmm_policy *p, void *arg)
{
    struct json_writer *w = arg;
    json_object_begin(w);
    json_kv_string(w, "name", p->name);
    json_kv_bool(w, "enabled", p->enabled);
    json_kv_string(w, "help", p->help);
    json_object_end(w);
    return true;
}

static void kv_text(const char *key, uint64_t value, void *arg)
{
    (void)arg;
    con_printf("  %-24s %lu\n", key, (unsigned long)value);
}

static void kv_json(const char *key, uint64_t value, void *arg) { json_kv_u64(arg, key, value); }

static enum cmd_result policy_show(struct cmd_ctx *c, struct dmm_policy *p)
{
    if (!c->want_json) {
        con_printf("%s: %s, %s\n", p->name, p->enabled ? "on" : "off", p->help);
        for (unsigned n = 0; n < p->param_count; n++)
            con_printf("  %-24s %lu  (%lu..%lu) %s\n", p->params[n].name, (unsigned long)p->params[n].value,
                       (unsigned long)p->params[n].min, (unsigned long)p->params[n].max, p->params[n].help);
        if (p->show)
            p->show(p, kv_text, NULL);
        return CMD_OK;
    }
    json_object_begin(c->json);
    json_kv_string(c->json, "name", p->name);
    json_kv_bool(c->json, "enabled", p->enabled);
    json_key(c->json, "params");
    json_object_begin(c->json);
    for (unsigned n = 0; n < p->param_count; n++)
        json_kv_u64(c->json, p->params[n].name, p->params[n].value);
    json_object_end(c->json);
    json_key(c->json, "counters");
    json_object_begin(c->json);
    if (p->show)
        p->show(p, kv_json, c->json);
    json_object_end(c->json);
    json_object_end(c->json);
    return CMD_OK;
}

static enum cmd_result policy_set(struct cmd_ctx *c, struct dmm_policy *p)
{
    uint64_t value;
    if (!str_to_size(c->argv[4], &value))
        return cmd_error(c, "%s is not a number", c->argv[4]);
    switch (dmm_policy_set(p, c->argv[3], value)) {
    case DMM_POLICY_NO_PARAM:
        return cmd_error(c, "%s has no parameter %s", p->name, c->argv[3]);
    case DMM_POLICY_RANGE:
        for (unsigned n = 0; n < p->param_count; n++)
            if (strcmp(p->params[n].name, c->argv[3]) == 0)
                return cmd_error(c, "%s must be %lu to %lu", c->argv[3], (unsigned long)p->params[n].min,
                                 (unsigned long)p->params[n].max);
        return CMD_USAGE;
    default:
        return policy_show(c, p);
    }
}

static enum cmd_result cmd_policy(struct cmd_ctx *c)
{
    const char *verb = c->argc > 1 ? c->argv[1] : "list";
    struct dmm_policy *p = c->argc > 2 ? dmm_policy_find(c->argv[2]) : NULL;
    if (strcmp(verb, "list") == 0 && c->argc <= 2) {
        if (c->want_json) {
            json_array_begin(c->json);
            dmm_policy_for_each(list_json, c->json);
            json_array_end(c->json);
        } else {
            dmm_policy_for_each(list_text, NULL);
        }
        return CMD_OK;
    }
    if (c->argc > 2 && !p)
        return cmd_error(c, "no policy %s", c->argv[2]);
    if (strcmp(verb, "show") == 0 && c->argc == 3)
        return policy_show(c, p);
    if (strcmp(verb, "set") == 0 && c->argc == 5)
        return policy_set(c, p);
    bool on = strcmp(verb, "on") == 0;
    if ((!on && strcmp(verb, "off") != 0) || c->argc != 3)
        return CMD_USAGE;
    if (dmm_policy_enable(p, on) == DMM_POLICY_CANNOT_DISABLE)
        return cmd_error(c, "%s cannot be switched off: nothing else does its work", p->name);
    return policy_show(c, p);
}

struct completion { void (*add)(const char *candidate, void *arg); void *arg; };

static bool add_policy_name(struct dmm_policy *p, void *arg)
{
    struct completion *k = arg;
    k->add(p->name, k->arg);
    return true;
}

static void complete_policy(int argn, char **argv, void (*add)(const char *candidate, void *arg), void *arg)
{
    static const char *const verbs[] = { "list", "show", "on", "off", "set" };
    struct completion k = { add, arg };
    struct dmm_policy *p = argn == 3 ? dmm_policy_find(argv[2]) : NULL;
    for (unsigned n = 0; argn == 1 && n < ARRAY_SIZE(verbs); n++)
        add(verbs[n], arg);
    if (argn == 2)
        dmm_policy_for_each(add_policy_name, &k);
    for (unsigned n = 0; p && n < p->param_count; n++)
        add(p->params[n].name, arg);
}

CONSOLE_COMMAND_C(policy, cmd_policy,
                  "policy [list]\npolicy show NAME\npolicy on|off NAME\npolicy set NAME PARAMETER VALUE",
                  "memory policies: which there are, what they decided, and their parameters.", complete_policy);
