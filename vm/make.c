/*
 * Making and unmaking a VM: its configuration, memory, vCPUs, devices and place on the list; vm.c has what happens in between.
 *
 * A fork is made by the same steps as a VM of its own (vm_make_like()): what differs is that memory is inherited from an image, and that what two
 * VMs of one configuration have alike (the configuration, what CPUID says) is shared instead of made again, until somebody changes it.
 * Whatever step fails, vm_unmake() takes apart what there is: what has not been made is NULL.
 */
#include "vm/life.h"

#include "core/log.h"
#include "core/time.h"
#include "include/hv/vdev.h"
#include "lib/string.h"
#include "mm/mm.h"
#include "vm/load.h"
#include "x86/cpu.h"
#include "x86/percpu.h"

#define VCPU_STACK_BYTES 16384

/* ---- the list ------------------------------------------------------------------------------------------------------------------------------ */

static struct list_head vms = LIST_INIT(vms);
static struct spinlock list_lock = SPINLOCK_INIT(LOCK_RANK_VM_LIST, "vm list");
static uint32_t next_id = 1;

struct vm *vm_lookup(const char *name)
{
    struct vm *found = NULL;
    spin_lock(&list_lock);
    list_for_each(vm, &vms, struct vm, node)
        if (!strcmp(vm->name, name))
            found = vm;
    spin_unlock(&list_lock);
    return found;
}

void vm_publish(struct vm *vm)
{
    spin_lock(&list_lock);
    list_add_tail(&vms, &vm->node);
    spin_unlock(&list_lock);
}

void vm_withdraw(struct vm *vm)
{
    spin_lock(&list_lock);
    list_del(&vm->node);
    spin_unlock(&list_lock);
}

struct vm *vm_find(const char *name)
{
    vm_command_begin();
    struct vm *vm = vm_lookup(name);
    vm_command_end();
    return vm;
}

void vm_for_each(bool (*cb)(struct vm *vm, void *arg), void *arg)
{
    vm_command_begin();
    list_for_each(vm, &vms, struct vm, node)
        if (!cb(vm, arg))
            break;
    vm_command_end();
}

/* ---- configuration: shared by those who were forked, until somebody changes his ------------------------------------------------------- */

struct shared_config { unsigned users; struct config_vm c; };

static struct shared_config *shared_config_of(const struct config_vm *c) { return (struct shared_config *)container_of(c, struct shared_config, c); }

/* NULL: no memory. */
static const struct config_vm *config_copy(const struct config_vm *cfg)
{
    struct shared_config *s = kzalloc(sizeof(*s));
    if (!s)
        return NULL;
    s->users = 1;
    s->c = *cfg;
    return &s->c;
}

static const struct config_vm *config_share(const struct config_vm *c)
{
    shared_config_of(c)->users++;
    return c;
}

static void config_drop(const struct config_vm *c)
{
    if (c && --shared_config_of(c)->users == 0)
        kfree(shared_config_of(c));
}

/* The VM's own, to be changed. NULL: no memory. */
static struct config_vm *own_config(struct vm *vm)
{
    if (shared_config_of(vm->config)->users > 1) {
        const struct config_vm *own = config_copy(vm->config);
        if (!own)
            return NULL;
        config_drop(vm->config);
        vm->config = own;
    }
    return &shared_config_of(vm->config)->c;
}

/* ---- which CPUs its vCPUs run on ------------------------------------------------------------------------------------------------------------- */

/* "all" leaves it to the scheduler which CPUs are fit for guests. False: malformed. */
static bool affinity_of(const struct config_vm *cfg, unsigned vcpu, struct cpu_set *out)
{
    if (!config_affinity(cfg->affinity, vcpu, out))
        return false;
    if (cpu_set_is_full(out))
        sched_guest_cpus(out);
    return true;
}

/* False: the machine has none of the CPUs. */
static bool apply_scheduling(struct vcpu *v, const struct config_vm *cfg)
{
    struct cpu_set set;
    if (!affinity_of(cfg, v->id, &set) || !thread_set_affinity(&v->thread, &set))
        return false;
    thread_set_weight(&v->thread, cfg->cpu_weight);
    thread_set_cap(&v->thread, cfg->cpu_cap);
    return true;
}

static enum vm_result check_affinity(const struct config_vm *cfg, unsigned vcpus, char *why)
{
    for (unsigned n = 0; n < vcpus; n++) {
        struct cpu_set set;
        bool any = false;
        if (!affinity_of(cfg, n, &set))
            return vm_refuse(why, VM_BAD_CONFIG, "affinity=%.60s is malformed", cfg->affinity);
        for (unsigned cpu = 0; cpu < cpu_count(); cpu++)
            any |= cpu_set_has(&set, cpu) && sched_cpu_online(cpu);
        if (!any)
            return vm_refuse(why, VM_BAD_CONFIG, "affinity=%.60s: this machine runs on none of the CPUs for vcpu%u (see `cpu`)", cfg->affinity, n);
    }
    return VM_OK;
}

static enum vm_result set_scheduling(struct vm *vm, const struct config_vm *cfg, char *why)
{
    enum vm_result r = check_affinity(cfg, vm->vcpu_count, why);
    if (r != VM_OK)
        return r;
    struct config_vm *own = own_config(vm);
    uint64_t lacking;
    if (!own)
        return vm_refuse(why, VM_NO_MEMORY, "no memory for a configuration of its own");
    if (own->class != cfg->class && !dmm_set_class(vm->space, (enum dmm_class)cfg->class, &lacking))
        return vm_refuse(why, VM_NO_MEMORY, "class=strict: to set frames aside for all that it shares, %lu KiB more would have to be free", lacking * 4);
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        apply_scheduling(vm->vcpus[n], cfg);
    own->cpu_weight = cfg->cpu_weight;
    own->cpu_cap = cfg->cpu_cap;
    memcpy(own->affinity, cfg->affinity, sizeof(own->affinity));
    own->class = cfg->class;
    return VM_OK;
}

enum vm_result vm_set_scheduling(struct vm *vm, const struct config_vm *cfg, char *why)
{
    vm_command_begin();
    enum vm_result r = set_scheduling(vm, cfg, why);
    vm_command_end();
    return r;
}

/* ---- unmaking --------------------------------------------------------------------------------------------------------------------------------- */

static void vcpu_destroy(struct vcpu *v)
{
    if (!v)
        return;
    if (v->thread.stack_base) {
        thread_join(&v->thread);
        stack_free(v->thread.stack_base, VCPU_STACK_BYTES);
    }
    pv_vcpu_reset(v); /* no pin is left */
    if (v->vlapic)
        vm_platform()->vcpu_destroy(v);
    if (v->hvm)
        hvm()->vcpu_fini(v);
    msr_vcpu_fini(v);
    fpu_vcpu_fini(v);
    kfree(v);
}

/* All vCPUs are parked or were never started. */
void vm_unmake(struct vm *vm)
{
    vm->dying = true;
    vm_kick_all(vm);
    if (vm->space)
        dmm_space_close(vm->space); /* policies ask for its vCPUs by its ops */
    vm->vcpus_made = 0;
    for (unsigned n = 0; vm->vcpus && n < vm->vcpu_count; n++) {
        vcpu_destroy(vm->vcpus[n]);
        vm->vcpus[n] = NULL;
    }
    if (vm->platform)
        vm_platform()->destroy(vm);
    if (vm->bus)
        vdev_bus_destroy(vm->bus);
    if (vm->hvm_ready)
        hvm()->vm_fini(vm);
    cpuid_vm_fini(vm);
    vm_drop_snapshots(vm);
    if (vm->space)
        dmm_space_destroy(vm->space);
    config_drop(vm->config);
    kfree(vm->vcpus);
    kfree(vm);
}

/* ---- making ------------------------------------------------------------------------------------------------------------------------------------ */

static const struct dmm_space_ops space_ops = {.kick = vm_kick_for_flush, .log_writes = vm_log_writes};

_Static_assert((int)DMM_CLASS_INSURED == 1 && (int)DMM_CLASS_STRICT == 2, "numbers of lib/config.h");

/* Empty, or inheriting from `image`, whose RAM is that of the same configuration. */
static enum vm_result make_space(struct vm *vm, struct dmm_image *image, struct dmm_space **out, char *why)
{
    const struct config_vm *c = vm->config;
    uint64_t low = load_low_ram_bytes(c->memory_bytes), high = load_high_ram_bytes(c->memory_bytes);
    struct dmm_space_config cfg = {
        .name = vm->name, .vm_id = vm->id, .pages = c->memory_bytes >> PAGE_SHIFT, .min_pages = c->min_bytes >> PAGE_SHIFT,
        .max_pages = c->max_bytes >> PAGE_SHIFT, .weight = c->weight, .class = (enum dmm_class)c->class,
        .group = dmm_group_of(c->group), .format = hvm()->p2m_format, .ops = &space_ops, .owner = vm,
    };
    struct dmm_space *s;
    if (c->group[0] && !cfg.group)
        return vm_refuse(why, VM_LIMIT, "group %s: there are %u groups already, and no more fit", c->group, DMM_GROUP_MAX);
    switch (image ? dmm_space_create_from(&cfg, image, &s) : dmm_space_create(&cfg, &s)) {
    case DMM_CREATE_OK: break;
    case DMM_CREATE_NO_MEMORY: return vm_refuse(why, VM_NO_MEMORY, "no frames left for the VM's nested page tables");
    case DMM_CREATE_OVERCOMMITTED_MIN:
        return vm_refuse(why, VM_NO_MEMORY, "min = %lu KiB can not be promised: with the minima of the other VMs it is more than the machine has",
                      c->min_bytes >> 10);
    }
    if (!image && (!dmm_space_add_ram(s, gfn_of(0), low >> PAGE_SHIFT) ||
                   (high && !dmm_space_add_ram(s, gpa_to_gfn(LOAD_HIGH_RAM_BASE), high >> PAGE_SHIFT)))) {
        dmm_space_destroy(s);
        return vm_refuse(why, VM_NO_MEMORY, "no frames left for the VM's nested page tables");
    }
    *out = s;
    return VM_OK;
}

static bool vcpu_create(struct vm *vm, unsigned id)
{
    struct vcpu *v = kzalloc(sizeof(*v));
    if (!v)
        return false;
    vm->vcpus[id] = v;
    v->vm = vm;
    v->space = vm->space;
    v->id = id;
    v->state = VCPU_OFFLINE;
    waitq_init(&v->wait);
    return fpu_vcpu_init(v) && msr_vcpu_init(v) && hvm()->vcpu_init(v) && vm_platform()->vcpu_create(v);
}

static bool vcpu_start_thread(struct vcpu *v)
{
    char name[sizeof(v->thread.name)];
    void *stack = stack_alloc(VCPU_STACK_BYTES);
    if (!stack)
        return false;
    snprintf(name, sizeof(name), "%.16s.%u", v->vm->name, v->id);
    thread_init(&v->thread, name, THREAD_PRIO_VCPU, vcpu_thread, v, stack, VCPU_STACK_BYTES);
    v->thread.priv = v;
    if (!apply_scheduling(v, v->vm->config))
        panic("vm %s: affinity %s was checked, and is refused", v->vm->name, v->vm->config->affinity);
    thread_start(&v->thread);
    return true;
}

static bool make_cpuid(struct vm *vm, const struct vm *like)
{
    if (!like)
        return cpuid_vm_init(vm);
    cpuid_vm_share(vm, like);
    return true;
}

static enum vm_result build(struct vm *vm, const struct vm *like, struct dmm_image *image, char *why)
{
    enum vm_result r = make_space(vm, image, &vm->space, why);
    if (r != VM_OK)
        return r;
    vm->vcpus = kzalloc(vm->vcpu_count * sizeof(struct vcpu *));
    vm->bus = vdev_bus_create();
    if (!vm->vcpus || !vm->bus || !make_cpuid(vm, like) || !(vm->hvm_ready = hvm()->vm_init(vm)))
        return vm_refuse(why, VM_NO_MEMORY, "no memory for the VM's state");
    if (!vm_platform()->create(vm, why))
        return VM_NO_MEMORY;
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        if (!vcpu_create(vm, n))
            return vm_refuse(why, VM_NO_MEMORY, "no memory for vcpu%u", n);
    if (!like) /* a copy's state is loaded instead */
        vm_power_on_state(vm);
    vm->vcpus_made = vm->vcpu_count;
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        if (!vcpu_start_thread(vm->vcpus[n]))
            return vm_refuse(why, VM_NO_MEMORY, "no memory for the stack of vcpu%u", n);
    return VM_OK;
}

static enum vm_result check_config(const struct config_vm *cfg, const char *name, char *why)
{
    struct config_error err = {0};
    if (!config_name_valid(name))
        return vm_refuse(why, VM_BAD_CONFIG, "\"%.40s\" is no name for a VM: letters, digits, _ . and -, at most %u", name, CONFIG_NAME_MAX - 1);
    if (!config_vm_check(cfg, &err))
        return vm_refuse(why, VM_BAD_CONFIG, "%.150s", err.text);
    uint64_t low = load_low_ram_bytes(cfg->memory_bytes), end = cfg->memory_bytes > low ? LOAD_HIGH_RAM_BASE + cfg->memory_bytes - low : low;
    unsigned bits = MIN(cpu_info()->phys_bits, 48u);
    if (end > BIT64(bits))
        return vm_refuse(why, VM_BAD_CONFIG, "memory: %lu MiB end beyond the %u bits of a guest's addresses on this CPU", cfg->memory_bytes >> 20, bits);
    enum vm_result affinity = check_affinity(cfg, cfg->vcpus, why);
    if (affinity != VM_OK)
        return affinity;
    if (vm_lookup(name))
        return vm_refuse(why, VM_NAME_IN_USE, "there is a VM of the name %s", name);
    if (!load_find_file(vm_boot_info(), cfg->kernel))
        return vm_refuse(why, VM_NO_SUCH_FILE, "kernel %s: no such file was loaded at boot (see `module list`)", cfg->kernel);
    if (cfg->initrd[0] && !load_find_file(vm_boot_info(), cfg->initrd))
        return vm_refuse(why, VM_NO_SUCH_FILE, "initrd %s: no such file was loaded at boot (see `module list`)", cfg->initrd);
    for (uint32_t n = 0; n < cfg->module_count; n++)
        if (!load_find_file(vm_boot_info(), cfg->modules[n].file))
            return vm_refuse(why, VM_NO_SUCH_FILE, "module %s: no such file was loaded at boot (see `module list`)", cfg->modules[n].file);
    return VM_OK;
}

static uint64_t late_bytes; /* list_lock: of all VMs that there have been */

void vm_alloc_late(struct vm *vm, void **slot, size_t bytes)
{
    spin_lock(&list_lock);
    void *p = *slot ? NULL : kzalloc(bytes);
    if (p) {
        late_bytes += bytes;
        dmm_space_add_overhead(vm->space, bytes);
        __atomic_store_n(slot, p, __ATOMIC_RELEASE);
    }
    spin_unlock(&list_lock);
}

/* Commands are the only ones who allocate in the long run, but for what is allocated late. */
static uint64_t heap_of_commands(void)
{
    spin_lock(&list_lock);
    uint64_t bytes = kheap_bytes_in_use() - late_bytes;
    spin_unlock(&list_lock);
    return bytes;
}

/* And this is a command: the difference is what the VM took. */
static void account(struct vm *vm, uint64_t heap_before)
{
    struct dmm_usage u;
    dmm_space_usage(vm->space, &u);
    dmm_space_add_overhead(vm->space, heap_of_commands() - heap_before - u.heap_bytes + vm->vcpu_count * VCPU_STACK_BYTES);
}

/* On no list. Of this configuration; or like another VM, with memory inherited from its image. */
static enum vm_result make(const struct config_vm *cfg, const struct vm *like, struct dmm_image *image, const char *name, struct vm **out, char *why)
{
    uint64_t heap_before = heap_of_commands();
    struct vm *vm = kzalloc(sizeof(*vm));
    if (!vm)
        return vm_refuse(why, VM_NO_MEMORY, "no memory for the VM's state");
    spin_init(&vm->lock, LOCK_RANK_VM, "vm");
    waitq_init(&vm->state_wait);
    str_copy(vm->name, sizeof(vm->name), name);
    vm->config = like ? config_share(cfg) : config_copy(cfg);
    if (!vm->config) {
        kfree(vm);
        return vm_refuse(why, VM_NO_MEMORY, "no memory for the VM's state");
    }
    vm->id = next_id++;
    vm->vcpu_count = cfg->vcpus;
    vm->exit_code = -1;
    vm->created_ns = time_ns();
    list_init(&vm->snapshots);
    enum vm_result r = build(vm, like, image, why);
    if (r != VM_OK) {
        vm_unmake(vm);
        return r;
    }
    account(vm, heap_before);
    *out = vm;
    return VM_OK;
}

enum vm_result vm_make_like(const struct vm *like, struct dmm_image *image, const char *name, struct vm **out, char *why)
{
    return make(like->config, like, image, name, out, why);
}

static enum vm_result create(const struct config_vm *cfg, const char *name, struct vm **out, char *why)
{
    if (!hvm())
        return vm_refuse(why, VM_BAD_STATE, "this machine offers no hardware virtualization that we can use (see `log`)");
    enum vm_result r = check_config(cfg, name, why);
    if (r == VM_OK)
        r = make(cfg, NULL, NULL, name, out, why);
    if (r == VM_OK)
        vm_publish(*out);
    return r;
}

enum vm_result vm_create(const struct config_vm *cfg, const char *name, struct vm **out, char *why)
{
    vm_command_begin();
    enum vm_result r = create(cfg, name, out, why);
    vm_command_end();
    return r;
}
