/*
 * The console's view of policies: `policy`.
 */
#include "core/console.h"
#include "include/hv/dmm_policy.h"
#include "lib/string.h"

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
    json_key(c->json, "ranges");
    json_object_begin(c->json);
    for (unsigned n = 0; n < p->param_count; n++) {
        json_key(c->json, p->params[n].name);
        json_object_begin(c->json);
        json_kv_u64(c->json, "min", p->params[n].min);
        json_kv_u64(c->json, "max", p->params[n].max);
        json_kv_string(c->json, "help", p->params[n].help);
        json_object_end(c->json);
    }
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
