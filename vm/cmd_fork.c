/* `vm fork`, `vm snapshot`, `vm snapshots`, `vm restore`, `vm snapshot-delete`: what vm/fork.c does, in words. */
#include "vm/cmd_vm.h"

#include "core/time.h"
#include "lib/string.h"

/* ---- fork ---------------------------------------------------------------------------------------------------------------------- */

struct fork_request { uint64_t count; const char *prefix; bool paused; };

static enum cmd_result parse_fork(struct cmd_ctx *c, struct fork_request *q)
{
    *q = (struct fork_request){.count = 1};
    for (int n = 3; n < c->argc; n++) {
        char *value = strchr(c->argv[n], '=');
        if (!value && n == 3 && str_to_u64(c->argv[n], &q->count))
            continue;
        if (!value)
            return cmd_error(c, "\"%.60s\" is neither a number of children nor key=value", c->argv[n]);
        *value++ = 0;
        if (!strcmp(c->argv[n], "name") && q->prefix)
            return cmd_error(c, "name is given twice");
        if (!strcmp(c->argv[n], "name") && *value)
            q->prefix = value;
        else if (!strcmp(c->argv[n], "paused") && (!strcmp(value, "yes") || !strcmp(value, "no")))
            q->paused = !strcmp(value, "yes");
        else
            return cmd_error(c, "%.40s=%.40s: there are name=PREFIX and paused=yes|no", c->argv[n], value);
    }
    if (!q->count || q->count > VM_FORK_MAX)
        return cmd_error(c, "%lu children: 1 to %u at a time", q->count, VM_FORK_MAX);
    return CMD_OK;
}

static void json_children(struct json_writer *w, const struct vm *parent, struct vm **children, uint64_t count, uint64_t ns)
{
    json_object_begin(w);
    json_kv_string(w, "name", parent->name);
    json_kv_string(w, "state", vm_state_name(parent->state));
    json_kv_u64(w, "ns", ns);
    json_key(w, "children");
    json_array_begin(w);
    for (uint64_t n = 0; n < count; n++) {
        json_object_begin(w);
        json_kv_u64(w, "id", children[n]->id);
        json_kv_string(w, "name", children[n]->name);
        json_kv_string(w, "state", vm_state_name(children[n]->state));
        json_object_end(w);
    }
    json_array_end(w);
    json_object_end(w);
}

enum cmd_result cmd_vm_fork(struct cmd_ctx *c, struct vm *vm)
{
    static struct vm *children[VM_FORK_MAX]; /* one console thread */
    char why[VM_WHY_MAX];
    struct fork_request q;
    enum cmd_result parsed = parse_fork(c, &q);
    if (parsed != CMD_OK)
        return parsed;
    uint64_t begin = time_ns();
    if (vm_fork(vm, q.prefix, (unsigned)q.count, q.paused, children, why) != VM_OK)
        return cmd_error(c, "%s", why);
    uint64_t ns = time_ns() - begin;
    if (c->want_json) {
        json_children(c->json, vm, children, q.count, ns);
        return CMD_OK;
    }
    con_printf("%s forked in %lu us:", vm->name, ns / 1000);
    for (uint64_t n = 0; n < q.count; n++)
        con_printf(" %s", children[n]->name);
    con_printf("%s\n", q.paused ? " (paused)" : "");
    return CMD_OK;
}

/* ---- snapshots ----------------------------------------------------------------------------------------------------------------- */

static enum cmd_result done(struct cmd_ctx *c, const struct vm *vm, const char *snapshot, const char *what)
{
    if (c->want_json) {
        json_object_begin(c->json);
        json_kv_string(c->json, "name", vm->name);
        json_kv_string(c->json, "state", vm_state_name(vm->state));
        json_kv_string(c->json, "snapshot", snapshot);
        json_object_end(c->json);
    } else {
        con_printf("%s: snapshot %s %s\n", vm->name, snapshot, what);
    }
    return CMD_OK;
}

enum cmd_result cmd_vm_snapshot(struct cmd_ctx *c, struct vm *vm)
{
    char why[VM_WHY_MAX];
    return vm_snapshot(vm, c->argv[3], why) == VM_OK ? done(c, vm, c->argv[3], "taken") : cmd_error(c, "%s", why);
}

enum cmd_result cmd_vm_restore(struct cmd_ctx *c, struct vm *vm)
{
    char why[VM_WHY_MAX];
    return vm_restore(vm, c->argv[3], why) == VM_OK ? done(c, vm, c->argv[3], "restored") : cmd_error(c, "%s", why);
}

enum cmd_result cmd_vm_snapshot_delete(struct cmd_ctx *c, struct vm *vm)
{
    char why[VM_WHY_MAX];
    return vm_snapshot_delete(vm, c->argv[3], why) == VM_OK ? done(c, vm, c->argv[3], "deleted") : cmd_error(c, "%s", why);
}

static uint64_t age_s(const struct vm_snapshot_info *s) { return (time_ns() - s->taken_ns) / 1000000000; }

void cmd_vm_json_snapshots(struct json_writer *w, struct vm *vm)
{
    struct vm_snapshot_info s;
    json_array_begin(w);
    for (unsigned n = 0; vm_snapshot_info(vm, n, &s); n++) {
        json_object_begin(w);
        json_kv_string(w, "name", s.name);
        json_kv_u64(w, "age_s", age_s(&s));
        json_kv_u64(w, "own_pages", s.own_pages);
        json_object_end(w);
    }
    json_array_end(w);
}

void cmd_vm_list_snapshots(struct vm *vm)
{
    struct vm_snapshot_info s;
    for (unsigned n = 0; vm_snapshot_info(vm, n, &s); n++)
        con_printf("snapshot   %s: %lu s old, holds %lu KiB that nobody else has\n", s.name, age_s(&s), s.own_pages * 4);
}

enum cmd_result cmd_vm_snapshots(struct cmd_ctx *c, struct vm *vm)
{
    struct vm_snapshot_info s;
    if (c->want_json) {
        json_object_begin(c->json);
        json_kv_string(c->json, "name", vm->name);
        json_key(c->json, "snapshots");
        cmd_vm_json_snapshots(c->json, vm);
        json_object_end(c->json);
    } else if (vm_snapshot_info(vm, 0, &s)) {
        cmd_vm_list_snapshots(vm);
    } else {
        con_printf("%s has no snapshot\n", vm->name);
    }
    return CMD_OK;
}

/* Arguments behind the VM's name. */
void cmd_vm_complete_fork(int argn, char **argv, void (*add)(const char *candidate, void *arg), void *arg)
{
    struct vm_snapshot_info s;
    if (!strcmp(argv[1], "fork")) {
        add("name=", arg);
        add("paused=", arg);
        return;
    }
    struct vm *vm = argn == 3 && (!strcmp(argv[1], "restore") || !strcmp(argv[1], "snapshot-delete")) ? vm_find(argv[2]) : NULL;
    for (unsigned n = 0; vm && vm_snapshot_info(vm, n, &s); n++)
        add(s.name, arg);
}
