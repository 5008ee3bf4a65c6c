/*
 * The console's view of VMs: `vm ...` and `stat`.
 *
 * Commands run on the console's thread and may block; what they show of a running VM is read without stopping it.
 */
#include "vm/cmd_vm.h"

#include "core/time.h"
#include "include/hv/vdev.h"
#include "lib/string.h"

#define DETACH_KEY 0x1d /* Ctrl-] */

/* ---- what a VM looks like ------------------------------------------------------------------------------------------------- */

static bool any_vcpu(const struct vm *vm, enum vcpu_state s)
{
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        if (vm->vcpus[n]->state == s)
            return true;
    return false;
}

/* What there is to say about its state, in words; "" if nothing. */
static void describe(struct vm *vm, char *buf, size_t size)
{
    char lacks[VM_WHY_MAX - 16];
    buf[0] = 0;
    spin_lock(&vm->lock);
    if (vm->state == VM_STOPPED)
        snprintf(buf, size, "%s", vm->stop_reason);
    spin_unlock(&vm->lock);
    if (vm->state != VM_RUNNING || !any_vcpu(vm, VCPU_STALLED))
        return;
    dmm_stall_text(vm->space, lacks, sizeof(lacks));
    snprintf(buf, size, "stalled: %s", lacks);
}

static const char *shown_state(const struct vm *vm)
{
    return vm->state == VM_RUNNING && any_vcpu(vm, VCPU_STALLED) ? "stalled" : vm_state_name(vm->state);
}

static bool list_text(struct vm *vm, void *arg)
{
    char why[VM_WHY_MAX];
    struct dmm_usage u;
    (void)arg;
    dmm_space_usage(vm->space, &u);
    describe(vm, why, sizeof(why));
    con_printf("%-4u %-20s %-8s %5u %8lu %10lu %7lu  %s\n", vm->id, vm->name, shown_state(vm), vm->vcpu_count,
               vm->config->memory_bytes >> 20, u.resident * 4, vm->reboots, why);
    return true;
}

static void json_usage(struct json_writer *w, const struct dmm_usage *u)
{
    json_kv_u64(w, "memory_bytes", u->configured * PAGE_SIZE);
    json_kv_u64(w, "resident_pages", u->resident);
    json_kv_u64(w, "image_shared_pages", u->image_shared);
    json_kv_u64(w, "charged_pages", u->charged);
    json_kv_u64(w, "overhead_bytes", (u->p2m_pages + u->state_pages) * PAGE_SIZE + u->heap_bytes);
}

static uint64_t exits_of(const struct vcpu *v)
{
    uint64_t sum = 0;
    for (unsigned k = 0; k < VM_EXIT_KIND_COUNT; k++)
        sum += v->stats[k].count;
    return sum;
}

static void json_vcpus(struct json_writer *w, struct vm *vm)
{
    json_key(w, "vcpus");
    json_array_begin(w);
    for (unsigned n = 0; n < vm->vcpu_count; n++) {
        json_object_begin(w);
        json_kv_string(w, "state", vcpu_state_name(vm->vcpus[n]->state));
        json_kv_u64(w, "exits", exits_of(vm->vcpus[n]));
        char rip[24];
        snprintf(rip, sizeof(rip), "%#lx", vm->vcpus[n]->rip);
        json_kv_string(w, "rip", rip);
        json_kv_u64(w, "pcpu", vm->vcpus[n]->thread.pcpu);
        uint64_t run_ns, steal_ns;
        thread_times(&vm->vcpus[n]->thread, &run_ns, &steal_ns);
        json_kv_u64(w, "run_ns", run_ns);
        json_kv_u64(w, "steal_ns", steal_ns);
        json_object_end(w);
    }
    json_array_end(w);
}

/* What `vm show` says beyond a line of `vm list`. */
static void json_details(struct json_writer *w, struct vm *vm, const struct dmm_usage *u)
{
    const struct config_vm *c = vm->config;
    const struct { const char *key; uint64_t value; } numbers[] = {
        {"age_s", (time_ns() - vm->created_ns) / 1000000000}, {"resident_large_pages", u->resident_large}, {"shared_pages", u->shared},
        {"zero_pages", u->zero}, {"empty_pages", u->empty}, {"min_pages", u->min}, {"max_pages", u->max}, {"weight", c->weight},
        {"p2m_pages", u->p2m_pages}, {"state_pages", u->state_pages}, {"heap_bytes", u->heap_bytes},
    };
    json_kv_string(w, "kernel", c->kernel);
    json_kv_string(w, "initrd", c->initrd);
    json_kv_string(w, "cmdline", c->cmdline);
    json_key(w, "modules");
    json_array_begin(w);
    for (uint32_t n = 0; n < c->module_count; n++) {
        json_object_begin(w);
        json_kv_string(w, "file", c->modules[n].file);
        json_kv_string(w, "arguments", c->modules[n].args);
        json_object_end(w);
    }
    json_array_end(w);
    for (size_t n = 0; n < ARRAY_SIZE(numbers); n++)
        json_kv_u64(w, numbers[n].key, numbers[n].value);
}

static void json_vm(struct json_writer *w, struct vm *vm, bool details)
{
    char why[VM_WHY_MAX];
    struct dmm_usage u;
    dmm_space_usage(vm->space, &u);
    describe(vm, why, sizeof(why));
    json_object_begin(w);
    json_kv_u64(w, "id", vm->id);
    json_kv_string(w, "name", vm->name);
    json_kv_string(w, "state", shown_state(vm));
    json_kv_string(w, "reason", why);
    json_key(w, "exit_code");
    if (vm->exit_code < 0)
        json_null(w);
    else
        json_u64(w, (uint64_t)vm->exit_code);
    json_kv_u64(w, "reboots", vm->reboots);
    json_usage(w, &u);
    json_kv_string(w, "group", vm->config->group);
    json_kv_string(w, "class", dmm_class_name(dmm_get_class(vm->space)));
    json_kv_u64(w, "output_dropped_bytes", vuart_console.output_dropped(vm));
    json_vcpus(w, vm);
    json_kv_string(w, "forked_from", vm->forked_from);
    json_key(w, "snapshots");
    cmd_vm_json_snapshots(w, vm);
    if (details)
        json_details(w, vm, &u);
    json_object_end(w);
}

static bool list_json(struct vm *vm, void *arg)
{
    json_vm(arg, vm, false);
    return true;
}

static enum cmd_result list(struct cmd_ctx *c)
{
    if (c->argc != 2)
        return CMD_USAGE;
    if (c->want_json) {
        json_object_begin(c->json);
        json_key(c->json, "vms");
        json_array_begin(c->json);
        vm_for_each(list_json, c->json);
        json_array_end(c->json);
        json_object_end(c->json);
        return CMD_OK;
    }
    con_printf("%-4s %-20s %-8s %5s %8s %10s %7s\n", "id", "name", "state", "vcpus", "MiB", "resident K", "resets");
    vm_for_each(list_text, NULL);
    return CMD_OK;
}

static void show_text(struct vm *vm)
{
    const struct config_vm *c = vm->config;
    char why[VM_WHY_MAX];
    struct dmm_usage u;
    dmm_space_usage(vm->space, &u);
    describe(vm, why, sizeof(why));
    con_printf("name       %s (id %u)\nstate      %s%s%s\n", vm->name, vm->id, shown_state(vm), why[0] ? ": " : "", why);
    if (vm->exit_code >= 0)
        con_printf("exit code  %d\n", vm->exit_code);
    con_printf("age        %lu s, %lu resets\n", (time_ns() - vm->created_ns) / 1000000000, vm->reboots);
    if (vm->forked_from[0])
        con_printf("forked     from %s\n", vm->forked_from);
    con_printf("kernel     %s\n", c->kernel);
    if (c->initrd[0])
        con_printf("initrd     %s\n", c->initrd);
    con_printf("cmdline    %s\n", c->cmdline);
    for (uint32_t n = 0; n < c->module_count; n++)
        con_printf("module     %s %s\n", c->modules[n].file, c->modules[n].args);
    con_printf("memory     %lu KiB: resident %lu (in 2 MiB mappings %lu), from boot files %lu, shared %lu, zero %lu, never touched %lu\n",
               u.configured * 4, u.resident * 4, u.resident_large * 4, u.image_shared * 4, u.shared * 4, u.zero * 4, u.empty * 4);
    con_printf("pool       holds %lu KiB, min %lu, max %lu, weight %u\n", u.charged * 4, u.min * 4, u.max * 4, c->weight);
    con_printf("sharing    %s%s, %s: %lu KiB set aside for when it writes\n", c->group[0] ? "in group " : "with itself only", c->group,
               dmm_class_name(dmm_get_class(vm->space)), u.covered * 4);
    con_printf("overhead   nested tables %lu KiB, state %lu KiB, records %lu bytes\n", u.p2m_pages * 4, u.state_pages * 4, u.heap_bytes);
    for (unsigned n = 0; n < vm->vcpu_count; n++) {
        const struct vcpu *v = vm->vcpus[n];
        con_printf("vcpu%-6u %s, rip %#lx, %lu exits\n", n, vcpu_state_name(v->state), v->rip, exits_of(v));
    }
    cmd_vm_list_snapshots(vm);
}

/* ---- commands on one VM ------------------------------------------------------------------------------------------------------ */

static enum cmd_result done(struct cmd_ctx *c, const struct vm *vm, const char *what)
{
    if (c->want_json) {
        json_object_begin(c->json);
        json_kv_string(c->json, "name", vm->name);
        json_kv_string(c->json, "state", vm_state_name(vm->state));
        json_object_end(c->json);
    } else {
        con_printf("%s %s\n", vm->name, what);
    }
    return CMD_OK;
}

static enum cmd_result show(struct cmd_ctx *c, struct vm *vm)
{
    if (c->want_json)
        json_vm(c->json, vm, true);
    else
        show_text(vm);
    return CMD_OK;
}

static enum cmd_result start(struct cmd_ctx *c, struct vm *vm)
{
    char why[VM_WHY_MAX];
    if (vm->state == VM_RUNNING)
        return done(c, vm, "runs already");
    if (vm->state == VM_PAUSED)
        return cmd_error(c, "%s is paused: resume goes on with it, stop and start boot it anew", vm->name);
    return vm_start(vm, why) == VM_OK ? done(c, vm, "started") : cmd_error(c, "%s: %s", vm->name, why);
}

static enum cmd_result pause(struct cmd_ctx *c, struct vm *vm)
{
    char why[VM_WHY_MAX];
    return vm_pause(vm, why) == VM_OK ? done(c, vm, "paused") : cmd_error(c, "%s", why);
}

static enum cmd_result resume(struct cmd_ctx *c, struct vm *vm)
{
    char why[VM_WHY_MAX];
    return vm_resume(vm, why) == VM_OK ? done(c, vm, "resumed") : cmd_error(c, "%s", why);
}

static enum cmd_result stop(struct cmd_ctx *c, struct vm *vm)
{
    char why[VM_WHY_MAX];
    return vm_stop(vm, why) == VM_OK ? done(c, vm, "stopped") : cmd_error(c, "%s", why);
}

static enum cmd_result destroy(struct cmd_ctx *c, struct vm *vm)
{
    char why[VM_WHY_MAX], name[CONFIG_NAME_MAX];
    str_copy(name, sizeof(name), vm->name);
    if (vm_destroy(vm, why) != VM_OK)
        return cmd_error(c, "%s", why);
    if (c->want_json) {
        json_object_begin(c->json);
        json_kv_string(c->json, "name", name);
        json_kv_string(c->json, "state", "destroyed");
        json_object_end(c->json);
    } else {
        con_printf("%s destroyed\n", name);
    }
    return CMD_OK;
}

/* ---- create ----------------------------------------------------------------------------------------------------------------------- */

static struct config_vm new_config; /* too large for a stack; the console thread's own */

/* A key is taken once, as in the file; but `module`, whose order counts. */
static bool given_before(struct cmd_ctx *c, int n)
{
    for (int m = 3; m < n; m++)
        if (!strcmp(c->argv[m], c->argv[n]) && strcmp(c->argv[n], "module"))
            return true;
    return false;
}

/* CMD_OK, or the error has been said. */
static enum cmd_result parse_new_config(struct cmd_ctx *c)
{
    struct config_error err = {0};
    if (!config_name_valid(c->argv[2]))
        return cmd_error(c, "\"%.60s\" is no name for a VM: letters, digits, _ . and -, at most %u", c->argv[2], CONFIG_NAME_MAX - 1);
    config_vm_defaults(&new_config, c->argv[2]);
    for (int n = 3; n < c->argc; n++) {
        char *value = strchr(c->argv[n], '=');
        if (!value)
            return cmd_error(c, "%.60s: expected key=value", c->argv[n]);
        *value++ = 0;
        if (given_before(c, n))
            return cmd_error(c, "%s is given twice", c->argv[n]);
        if (!config_set_vm_key(&new_config, c->argv[n], value, &err))
            return cmd_error(c, "%s", err.text);
    }
    return config_vm_check(&new_config, &err) ? CMD_OK : cmd_error(c, "%s", err.text);
}

static enum vm_result create_one(const char *name, char *why)
{
    char ignored[VM_WHY_MAX];
    struct vm *vm;
    enum vm_result r = vm_create(&new_config, name, &vm, why);
    if (r == VM_OK && new_config.autostart && (r = vm_start(vm, why)) != VM_OK)
        vm_destroy(vm, ignored);
    return r;
}

/* What was made before something failed stays, as with VMs of the file. */
static enum cmd_result create_failed(struct cmd_ctx *c, const char *name, uint32_t made, const char *why)
{
    char first[CONFIG_NAME_MAX];
    config_instance_name(&new_config, 0, first, sizeof(first));
    return made ? cmd_error(c, "%s: %s (there are %u from %s on)", name, why, made, first) : cmd_error(c, "%s: %s", name, why);
}

static enum cmd_result create(struct cmd_ctx *c)
{
    char name[CONFIG_NAME_MAX], why[VM_WHY_MAX];
    if (c->argc < 3)
        return CMD_USAGE;
    enum cmd_result parsed = parse_new_config(c);
    if (parsed != CMD_OK)
        return parsed;
    for (uint32_t n = 0; n < new_config.count; n++) {
        config_instance_name(&new_config, n, name, sizeof(name)); /* config_vm_check() knows that it fits */
        if (create_one(name, why) != VM_OK)
            return create_failed(c, name, n, why);
        if (!c->want_json)
            con_printf("%s created%s\n", name, new_config.autostart ? " and started" : "");
    }
    if (c->want_json && new_config.count > 1)
        json_array_begin(c->json);
    for (uint32_t n = 0; c->want_json && n < new_config.count; n++) {
        config_instance_name(&new_config, n, name, sizeof(name));
        done(c, vm_find(name), ""); /* only this thread removes VMs */
    }
    if (c->want_json && new_config.count > 1)
        json_array_end(c->json);
    return CMD_OK;
}

/* ---- console ------------------------------------------------------------------------------------------------------------------------ */

static char typed[1024]; /* for the guest, and not yet taken */
static size_t typed_count;

static bool something_to_do(void *arg)
{
    struct vm *vm = arg;
    return console_input_pending() || vuart_console.output_pending(vm) || vm->state == VM_STOPPED ||
           (typed_count && vuart_console.input_ready(vm));
}

/* What there is, but not what a guest on another CPU adds for ever meanwhile; nor the rest, if keys are to be looked at. */
static void show_output(struct vm *vm, bool until_key)
{
    enum { AT_ONCE = 16384 };
    char buf[256];
    size_t n;
    for (size_t shown = 0; shown < AT_ONCE && !(until_key && console_input_pending()); shown += n) {
        n = vuart_console.read_output(vm, buf, sizeof(buf));
        if (!n)
            break;
        console_write_raw(buf, n);
    }
}

/* False: Ctrl-]. It is seen at once however much the guest has left unread; beyond the buffer keys are lost, as on a line without flow
 * control. */
static bool take_keys(void)
{
    while (console_input_pending()) {
        char c = (char)console_getc(0);
        if (c == DETACH_KEY)
            return false;
        if (typed_count < sizeof(typed))
            typed[typed_count++] = c;
    }
    return true;
}

static void offer_keys(struct vm *vm)
{
    size_t n = typed_count ? vuart_console.write_input(vm, typed, typed_count) : 0;
    memmove(typed, typed + n, typed_count - n);
    typed_count -= n;
}

static void attach(struct vm *vm)
{
    typed_count = 0;
    vuart_console.watch(vm, console_input_waitq());
    for (;;) {
        show_output(vm, true);
        if (vm->state == VM_STOPPED && !console_input_pending())
            break;
        waitq_wait(console_input_waitq(), something_to_do, vm, WAIT_FOREVER);
        bool stays = take_keys();
        offer_keys(vm);
        if (!stays)
            break;
    }
    if (typed_count)
        con_printf("\n(the guest has not taken the last %zu bytes typed: they are lost)", typed_count);
    show_output(vm, false);
    vuart_console.watch(vm, NULL);
}

static enum cmd_result console(struct cmd_ctx *c, struct vm *vm)
{
    if (c->want_json)
        return cmd_error(c, "vm console has no JSON form");
    con_printf("console of %s; Ctrl-] leaves it\n", vm->name);
    uint64_t lost = vuart_console.output_dropped(vm);
    if (lost != vm->output_lost_told)
        con_printf("(%lu bytes of older output are lost)\n", lost - vm->output_lost_told);
    vm->output_lost_told = lost;
    attach(vm);
    con_printf("\nleft the console of %s%s%s\n", vm->name, vm->state == VM_STOPPED ? ": it has stopped: " : "",
               vm->state == VM_STOPPED ? vm->stop_reason : "");
    return CMD_OK;
}

/* ---- the command ----------------------------------------------------------------------------------------------------------------------- */

/* vm set NAME key=value...: what may change while it runs. All or nothing. */
static enum cmd_result set(struct cmd_ctx *c)
{
    static const char *const settable[] = {"affinity", "cpu-weight", "cpu-cap", "class"};
    static struct config_vm cfg; /* one console thread */
    char why[VM_WHY_MAX];
    struct config_error err = {0};
    if (c->argc < 4)
        return CMD_USAGE;
    struct vm *vm = vm_find(c->argv[2]);
    if (!vm)
        return cmd_error(c, "there is no VM of the name %s", c->argv[2]);
    cfg = *vm->config;
    for (int n = 3; n < c->argc; n++) {
        char *value = strchr(c->argv[n], '=');
        bool known = false;
        if (!value)
            return cmd_error(c, "\"%.60s\" is not key=value", c->argv[n]);
        *value++ = 0;
        for (size_t k = 0; k < ARRAY_SIZE(settable); k++)
            known |= !strcmp(c->argv[n], settable[k]);
        if (!known)
            return cmd_error(c, "%.40s can not be changed: affinity, cpu-weight, cpu-cap and class can", c->argv[n]);
        if (!config_set_vm_key(&cfg, c->argv[n], value, &err))
            return cmd_error(c, "%s", err.text);
    }
    if (vm_set_scheduling(vm, &cfg, why) != VM_OK)
        return cmd_error(c, "%s", why);
    if (!c->want_json)
        return done(c, vm, "changed");
    json_vm(c->json, vm, true);
    return CMD_OK;
}

/* With so many words beside the VM's name. */
static const struct { const char *name; enum cmd_result (*run)(struct cmd_ctx *c, struct vm *vm); int more_min, more_max; } on_one[] = {
    {"show", show, 0, 0}, {"start", start, 0, 0}, {"pause", pause, 0, 0}, {"resume", resume, 0, 0}, {"stop", stop, 0, 0},
    {"destroy", destroy, 0, 0}, {"console", console, 0, 0}, {"fork", cmd_vm_fork, 0, 3}, {"snapshot", cmd_vm_snapshot, 1, 1},
    {"snapshots", cmd_vm_snapshots, 0, 0}, {"restore", cmd_vm_restore, 1, 1}, {"snapshot-delete", cmd_vm_snapshot_delete, 1, 1},
};

static enum cmd_result cmd_vm(struct cmd_ctx *c)
{
    if (c->argc < 2)
        return CMD_USAGE;
    if (!strcmp(c->argv[1], "list"))
        return list(c);
    if (!strcmp(c->argv[1], "create"))
        return create(c);
    if (!strcmp(c->argv[1], "set"))
        return set(c);
    for (size_t n = 0; n < ARRAY_SIZE(on_one); n++) {
        if (strcmp(c->argv[1], on_one[n].name))
            continue;
        if (c->argc < 3 + on_one[n].more_min || c->argc > 3 + on_one[n].more_max)
            return CMD_USAGE;
        struct vm *vm = vm_find(c->argv[2]);
        return vm ? on_one[n].run(c, vm) : cmd_error(c, "there is no VM of the name %s", c->argv[2]);
    }
    return CMD_USAGE;
}

struct adder { void (*add)(const char *candidate, void *arg); void *arg; };

static bool add_name(struct vm *vm, void *arg)
{
    struct adder *a = arg;
    a->add(vm->name, a->arg);
    return true;
}

static void complete_vm(int argn, char **argv, void (*add)(const char *candidate, void *arg), void *arg)
{
    struct adder a = {add, arg};
    if (argn == 1) {
        add("list", arg);
        add("create", arg);
        add("set", arg);
        for (size_t n = 0; n < ARRAY_SIZE(on_one); n++)
            add(on_one[n].name, arg);
    } else if (argn == 2 && strcmp(argv[1], "list") && strcmp(argv[1], "create")) {
        vm_for_each(add_name, &a);
    } else if (!strcmp(argv[1], "set")) {
        add("affinity=", arg);
        add("cpu-weight=", arg);
        add("cpu-cap=", arg);
        add("class=", arg);
    } else if (!strcmp(argv[1], "create")) {
        static const char *const keys[] = {"memory=", "vcpus=", "kernel=", "initrd=", "cmdline=", "module=", "autostart=", "count=", "min=",
                                           "max=", "weight=", "cpu-weight=", "cpu-cap=", "affinity=", "debug-exit=",
                                           "group=", "class="};
        for (size_t n = 0; n < ARRAY_SIZE(keys); n++)
            add(keys[n], arg);
    } else {
        cmd_vm_complete_fork(argn, argv, add, arg);
    }
}

CONSOLE_COMMAND_C(vm, cmd_vm,
                  "vm list\nvm show NAME\nvm create NAME kernel=FILE [key=value]...\nvm set NAME affinity=CPUS|cpu-weight=N|cpu-cap=PERCENT|class=CLASS...\n"
                  "vm start|pause|resume|stop|destroy NAME\nvm console NAME\nvm fork NAME [COUNT] [name=PREFIX] [paused=yes]\n"
                  "vm snapshot|restore|snapshot-delete NAME SNAPSHOT\nvm snapshots NAME",
                  "virtual machines. create takes the keys of a [vm] section (\"cmdline=a b\" in quotes) and starts the VM unless\n"
                  "autostart=no. set changes where its vCPUs may run (0-3 for all, 0/1/2 for one after the other), their weight\n"
                  "against other vCPUs and the most that each may use, or its class (strict, insured, best-effort: see `mem bill`).\n"
                  "stop switches it off, start boots it anew, destroy gives back everything.\n"
                  "console connects the terminal to its serial port; Ctrl-] leaves it. fork makes COUNT (1) copies of a VM that runs or\n"
                  "is paused, which share its memory until they write: NAME-f0, NAME-f1, ... or PREFIX0, ..., whatever numbers are free.\n"
                  "A snapshot is such a copy at rest; restore returns the VM to it, as often as wanted. At most 16 each; destroy drops them.",
                  complete_vm);

/* ---- stat ------------------------------------------------------------------------------------------------------------------------------------ */

struct exit_sums { struct vm_exit_stat kind[VM_EXIT_KIND_COUNT]; };

static bool add_exits(struct vm *vm, void *arg)
{
    struct exit_sums *sums = arg;
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        for (unsigned k = 0; k < VM_EXIT_KIND_COUNT; k++) {
            sums->kind[k].count += vm->vcpus[n]->stats[k].count;
            sums->kind[k].tsc += vm->vcpus[n]->stats[k].tsc;
        }
    return true;
}

/*
 * Faults that the back end resolves on the spot have their time in DMM's histograms only. A store of zeros is carried out by the exit's handler;
 * mapping boot files is the loader's work, and no exit.
 */
static void add_fault_time(struct exit_sums *sums, const struct dmm_space *s)
{
    for (unsigned k = 0; k < DMM_CAUSE_COUNT; k++) {
        struct dmm_hist_summary h;
        if (k == DMM_CAUSE_ZERO_STORE || k == DMM_CAUSE_IMAGE_MAP)
            continue;
        dmm_fault_summary(s, k, &h);
        sums->kind[VM_EXIT_NESTED_FAULT].tsc += h.count * h.mean_tsc;
    }
}

static void stat_json(struct json_writer *w, const struct exit_sums *sums, const struct dmm_space *s)
{
    json_object_begin(w);
    json_kv_u64(w, "tsc_khz", time_tsc_khz());
    json_key(w, "exits");
    json_array_begin(w);
    for (unsigned k = 0; k < VM_EXIT_KIND_COUNT; k++) {
        if (!sums->kind[k].count)
            continue;
        json_object_begin(w);
        json_kv_string(w, "reason", vm_exit_kind_name(k));
        json_kv_u64(w, "count", sums->kind[k].count);
        json_kv_u64(w, "tsc", sums->kind[k].tsc);
        json_kv_u64(w, "ns", time_tsc_to_ns(sums->kind[k].tsc));
        json_object_end(w);
    }
    json_array_end(w);
    json_key(w, "faults");
    json_array_begin(w);
    for (unsigned k = 0; k < DMM_CAUSE_COUNT; k++) {
        struct dmm_hist_summary h;
        dmm_fault_summary(s, k, &h);
        if (!h.count)
            continue;
        json_object_begin(w);
        json_kv_string(w, "cause", dmm_fault_cause_name(k));
        const struct { const char *key, *key_ns; uint64_t tsc; } cols[] = {
            {"mean_tsc", "mean_ns", h.mean_tsc}, {"p50_tsc", "p50_ns", h.p50_tsc}, {"p99_tsc", "p99_ns", h.p99_tsc}, {"max_tsc", "max_ns", h.max_tsc}};
        json_kv_u64(w, "count", h.count);
        for (size_t n = 0; n < ARRAY_SIZE(cols); n++) {
            json_kv_u64(w, cols[n].key, cols[n].tsc);
            json_kv_u64(w, cols[n].key_ns, time_tsc_to_ns(cols[n].tsc));
        }
        json_object_end(w);
    }
    json_array_end(w);
    json_object_end(w);
}

static void stat_text(const struct exit_sums *sums, const struct dmm_space *s)
{
    con_printf("%-28s %12s %14s %10s\n", "exits", "count", "ns in all", "ns each");
    for (unsigned k = 0; k < VM_EXIT_KIND_COUNT; k++) {
        const struct vm_exit_stat *e = &sums->kind[k];
        if (e->count)
            con_printf("%-28s %12lu %14lu %10lu\n", vm_exit_kind_name(k), e->count, time_tsc_to_ns(e->tsc), time_tsc_to_ns(e->tsc) / e->count);
    }
    con_printf("\n%-28s %12s %10s %10s %10s %10s\n", "nested faults (ns)", "count", "mean", "p50", "p99", "max");
    for (unsigned k = 0; k < DMM_CAUSE_COUNT; k++) {
        struct dmm_hist_summary h;
        dmm_fault_summary(s, k, &h);
        if (h.count)
            con_printf("%-28s %12lu %10lu %10lu %10lu %10lu\n", dmm_fault_cause_name(k), h.count, time_tsc_to_ns(h.mean_tsc),
                       time_tsc_to_ns(h.p50_tsc), time_tsc_to_ns(h.p99_tsc), time_tsc_to_ns(h.max_tsc));
    }
}

static enum cmd_result cmd_stat(struct cmd_ctx *c)
{
    struct exit_sums sums = {0};
    struct vm *vm = NULL;
    if (c->argc > 2)
        return CMD_USAGE;
    if (c->argc == 2 && !(vm = vm_find(c->argv[1])))
        return cmd_error(c, "there is no VM of the name %s", c->argv[1]);
    if (vm)
        add_exits(vm, &sums);
    else
        vm_for_each(add_exits, &sums);
    add_fault_time(&sums, vm ? vm->space : NULL);
    if (c->want_json)
        stat_json(c->json, &sums, vm ? vm->space : NULL);
    else
        stat_text(&sums, vm ? vm->space : NULL);
    return CMD_OK;
}

static void complete_stat(int argn, char **argv, void (*add)(const char *candidate, void *arg), void *arg)
{
    struct adder a = {add, arg};
    (void)argv;
    if (argn == 1)
        vm_for_each(add_name, &a);
}

CONSOLE_COMMAND_C(stat, cmd_stat, "stat [VM]",
                  "exits by reason with the time we spent on them, and nested faults by cause with their latency; of one VM or of all",
                  complete_stat);
