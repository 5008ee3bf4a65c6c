/*
 * The life of a VM.
 *
 *   CREATED --start--> RUNNING <--pause/resume--> PAUSED        RUNNING, PAUSED --stop, or the guest's own doing--> STOPPED
 *   STOPPED --start--> RUNNING (with fresh memory)              any --destroy--> gone
 *
 * Three kinds of actors: commands, which a sleeping lock serializes, so that no two change any VM at the same time; vCPU threads;
 * and device models, which may be in an interrupt handler. The last two only *ask* (stop_requested, reset_requested) and kick.
 * The change is made by the vCPU that is last to park, while it still counts as running: whoever waits for
 * running_vcpus == 0 therefore also waits for the change to be complete, and nobody else touches the VM meanwhile.
 *
 * A start or reset first gives all guest memory back (dmm_space_clear): nothing of the guest's former life can shine
 * through, and a VM that was stopped holds only what its next start cannot do without.
 */
#include "vm/life.h"

#include "core/console.h"
#include "core/log.h"
#include "core/time.h"
#include "include/abi/boot_info.h"
#include "include/hv/vdev.h"
#include "lib/string.h"
#include "mm/mm.h"
#include "vm/load.h"
#include "x86/cpu.h"
#include "x86/percpu.h"

#define VCPU_STACK_BYTES 16384
#define SHORT_LIFE_NS UINT64_C(60000000000)

static const struct hvm_ops *ops;
static const struct boot_info *boot_info;
static const struct vm_platform_ops *platform;
static struct list_head vms = LIST_INIT(vms);
static struct spinlock list_lock = SPINLOCK_INIT(LOCK_RANK_VM_LIST, "vm list");
static uint32_t next_id = 1;

const struct hvm_ops *hvm(void) { return ops; }
const struct vm_platform_ops *vm_platform(void) { return platform; }
void vm_set_platform(const struct vm_platform_ops *p) { platform = p; }

void vm_init(const struct hvm_ops *hvm_ops, const struct boot_info *bi)
{
    ops = hvm_ops;
    boot_info = bi;
    fpu_init();
}

const char *vm_state_name(enum vm_state s)
{
    static const char *const names[] = {[VM_CREATED] = "created", [VM_RUNNING] = "running", [VM_PAUSED] = "paused", [VM_STOPPED] = "stopped"};
    return names[s];
}

const char *vcpu_state_name(enum vcpu_state s)
{
    static const char *const names[] = {[VCPU_OFFLINE] = "offline", [VCPU_RUNNABLE] = "runnable", [VCPU_HALTED] = "halted",
                                        [VCPU_STALLED] = "stalled", [VCPU_STOPPED] = "stopped"};
    return names[s];
}

/* ---- one command at a time ---------------------------------------------------------------------------------------------------- */

static struct waitq command_wait = WAITQ_INIT(command_wait);
static bool command_busy;

static bool command_free(void *arg)
{
    (void)arg;
    return !__atomic_exchange_n(&command_busy, true, __ATOMIC_ACQUIRE);
}

void vm_command_begin(void) { waitq_wait(&command_wait, command_free, NULL, WAIT_FOREVER); }

void vm_command_end(void)
{
    __atomic_store_n(&command_busy, false, __ATOMIC_RELEASE);
    waitq_wake_one(&command_wait);
}

enum vm_result vm_refuse(char *why, enum vm_result r, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, VM_WHY_MAX, fmt, ap);
    va_end(ap);
    return r;
}

/* ---- memory and first state ------------------------------------------------------------------------------------------------------ */

static const struct dmm_space_ops space_ops = {.kick = vm_kick_for_flush};

_Static_assert((int)DMM_CLASS_INSURED == 1 && (int)DMM_CLASS_STRICT == 2, "numbers of lib/config.h");

/* Empty, or inheriting from `image`, whose RAM is that of the same configuration. */
static enum vm_result make_space(struct vm *vm, struct dmm_image *image, struct dmm_space **out, char *why)
{
    const struct config_vm *c = vm->config;
    uint64_t low = load_low_ram_bytes(c->memory_bytes), high = load_high_ram_bytes(c->memory_bytes);
    struct dmm_space_config cfg = {
        .name = vm->name, .vm_id = vm->id, .pages = c->memory_bytes >> PAGE_SHIFT, .min_pages = c->min_bytes >> PAGE_SHIFT,
        .max_pages = c->max_bytes >> PAGE_SHIFT, .weight = c->weight, .class = (enum dmm_class)c->class,
        .group = dmm_group_of(c->group), .format = ops->p2m_format, .ops = &space_ops, .owner = vm,
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

static void set_entry_state(struct vcpu *v, const struct load_entry *entry)
{
    memcpy(v->gpr, entry->gpr, sizeof(v->gpr));
    v->rip = entry->rip;
    v->rflags = entry->rflags;
    ops->set_sregs(v, &entry->sregs);
}

/* Power-on state of all vCPUs, devices and time. All vCPUs are parked. */
static void power_on(struct vm *vm)
{
    vm->tsc_offset = -time_tsc();
    vm->paused_tsc = 0;
    vm->generation = GENERATION_KNOWN; /* the tables are written anew */
    for (unsigned n = 0; n < vm->vcpu_count; n++) {
        struct vcpu *v = vm->vcpus[n];
        v->init_pending = v->sipi_pending = v->nmi_pending = false;
        v->irq_window = false;
        v->cr8_seen = v->tpr_alarm = 0;
        v->wait_for_sipi = n != 0;
        v->state = n ? VCPU_OFFLINE : VCPU_RUNNABLE;
        v->flush_gen_seen = 0; /* no generation is that: the first entry takes everything anew, and nobody takes it for done before */
        memset(v->len_cache, 0, sizeof(v->len_cache));
        ops->vcpu_reset(v);
        fpu_vcpu_reset(v);
        msr_vcpu_reset(v);
        vcpu_set_tsc_offset(v, vm->tsc_offset);
    }
    platform->reset(vm);
}

static enum vm_result load_result_of(enum load_result r)
{
    switch (r) {
    case LOAD_OK: return VM_OK;
    case LOAD_NO_SUCH_FILE: return VM_NO_SUCH_FILE;
    case LOAD_NO_MEMORY: return VM_NO_MEMORY;
    default: return VM_BAD_IMAGE;
    }
}

/* All vCPUs are parked. */
static void clear_memory(struct vm *vm)
{
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        pv_vcpu_reset(vm->vcpus[n]);
    dmm_space_clear(vm->space);
}

/* Firmware tables and image into fresh memory, and the first vCPU to its start. Where memory was short it may be done again: the same goes to
 * the same places, and what is there already takes nothing. */
static enum vm_result load(struct vm *vm, char *why)
{
    struct load_entry entry = {0};
    uint64_t rsdp_gpa = platform->write_firmware_tables(vm);
    if (!rsdp_gpa)
        return vm_refuse(why, VM_NO_MEMORY, "no frames left for the guest's ACPI tables, or they do not fit");
    enum load_result r = vm_load_image(vm, boot_info, rsdp_gpa, &entry, why);
    if (r != LOAD_OK)
        return load_result_of(r);
    set_entry_state(vm->vcpus[0], &entry);
    vm->reset_ns = time_ns();
    vm->load_due = false;
    return VM_OK;
}

/* Fresh memory with the image in it, and the vCPUs at the start. All vCPUs are parked; the caller has the VM to itself. */
static enum vm_result prepare(struct vm *vm, char *why)
{
    clear_memory(vm);
    power_on(vm);
    return load(vm, why);
}

/* ---- parking --------------------------------------------------------------------------------------------------------------------- */

bool vm_wants_attention(const struct vm *vm) { return vm->state != VM_RUNNING || vm->stop_requested || vm->reset_requested; }

static void become_stopped(struct vm *vm)
{
    platform->pause(vm, true);
    spin_lock(&vm->lock);
    vm->state = VM_STOPPED;
    vm->stop_requested = vm->reset_requested = false;
    spin_unlock(&vm->lock);
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        vm->vcpus[n]->state = VCPU_STOPPED;
    clear_memory(vm); /* others may be waiting for frames */
    log_info("vm: %s stopped: %s", vm->name, vm->stop_reason);
    waitq_wake_all(console_input_waitq()); /* someone may be watching its console */
}

/* The memory that is given back here may be gone before the image is in: others wait for frames. So the loading is left to the first vCPU,
 * before it enters the guest, where it waits as for any other page, and can be paused and stopped meanwhile. */
static void do_reset(struct vm *vm)
{
    vm->reset_requested = false;
    uint64_t n = ++vm->reboots;
    if (n <= 8 || !(n & (n - 1))) /* a guest that does nothing else may not flood the log */
        log_info("vm: %s resets (%lu): %s", vm->name, n, vm->reset_reason);
    clear_memory(vm);
    power_on(vm);
    vm->load_due = true;
    vm->vcpus[0]->pv.steal_due = true; /* it has something to do before it enters; the others wait for its SIPI */
}

bool vm_load_after_reset(struct vcpu *v)
{
    char why[VM_WHY_MAX];
    enum vm_result r = load(v->vm, why);
    if (r == VM_NO_MEMORY)
        vcpu_wait_dmm(v, DMM_FAULT_STALLED, gfn_of(0));
    else if (r != VM_OK)
        vm_request_stop(v->vm, -1, "can not be reset: %.130s", why);
    return r == VM_OK;
}

/* By the last vCPU that is not parked, which counts as running until it is done. */
static void do_what_was_asked(struct vm *vm)
{
    if (vm->stop_requested)
        become_stopped(vm);
    else if (vm->reset_requested)
        do_reset(vm);
}

/* The condition of a parked vCPU, under its wait queue's lock: it only reads. */
static bool may_go_on(void *arg)
{
    const struct vcpu *v = arg;
    return v->vm->dying || !vm_wants_attention(v->vm);
}

bool vm_park(struct vcpu *v)
{
    struct vm *vm = v->vm;
    fpu_spill(v);
    for (;;) {
        spin_lock(&vm->lock);
        if (v->counted && vm->running_vcpus == 1 && (vm->stop_requested || vm->reset_requested)) {
            spin_unlock(&vm->lock);
            do_what_was_asked(vm);
            vm_kick_all(vm);
            continue;
        }
        if (!vm->dying && !vm_wants_attention(vm)) {
            vm->running_vcpus += !v->counted;
            v->counted = true;
            spin_unlock(&vm->lock);
            return true;
        }
        vm->running_vcpus -= v->counted;
        v->counted = false;
        spin_unlock(&vm->lock);
        waitq_wake_all(&vm->state_wait);
        if (vm->dying)
            return false;
        waitq_wait(&v->wait, may_go_on, v, WAIT_FOREVER);
    }
}

static bool all_parked(void *arg) { return !((struct vm *)arg)->running_vcpus; }

void vm_wait_parked(struct vm *vm) { waitq_wait(&vm->state_wait, all_parked, vm, WAIT_FOREVER); }

/* ---- requests: any thread ---------------------------------------------------------------------------------------------------------- */

static void request_stop(struct vm *vm, int exit_code, const char *fmt, va_list ap)
{
    spin_lock(&vm->lock);
    bool first = !vm->stop_requested && vm->state != VM_STOPPED;
    if (first) {
        vsnprintf(vm->stop_reason, sizeof(vm->stop_reason), fmt, ap);
        vm->exit_code = exit_code;
        vm->stop_requested = true;
    }
    spin_unlock(&vm->lock);
    if (first) {
        vm_kick_all(vm);
        dmm_wake_memory_waiters();
    }
}

void vm_request_stop(struct vm *vm, int exit_code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    request_stop(vm, exit_code, fmt, ap);
    va_end(ap);
}

void vm_request_reset(struct vm *vm, const char *why)
{
    spin_lock(&vm->lock);
    snprintf(vm->reset_reason, sizeof(vm->reset_reason), "%s", why);
    vm->last_life_triple_faulted = false;
    vm->reset_requested = true;
    spin_unlock(&vm->lock);
    vm_kick_all(vm);
    dmm_wake_memory_waiters();
}

void vm_triple_fault(struct vcpu *v)
{
    struct vm *vm = v->vm;
    bool again = vm->last_life_triple_faulted && time_ns() - vm->reset_ns < SHORT_LIFE_NS;
    if (again) {
        vm_request_stop(vm, -1, "vcpu%u: triple fault at rip=%#lx, as in the guest's last life", v->id, v->rip);
        return;
    }
    char why[64];
    snprintf(why, sizeof(why), "vcpu%u: triple fault at rip=%#lx", v->id, v->rip);
    vm_request_reset(vm, why);
    vm->last_life_triple_faulted = true;
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

/* ---- create, destroy ------------------------------------------------------------------------------------------------------------------- */

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
        platform->vcpu_destroy(v);
    if (v->hvm)
        ops->vcpu_fini(v);
    msr_vcpu_fini(v);
    fpu_vcpu_fini(v);
    kfree(v);
}

/* All vCPUs are parked or were never started. */
void vm_unmake(struct vm *vm)
{
    vm->dying = true;
    vm_kick_all(vm);
    vm->vcpus_made = 0;
    for (unsigned n = 0; vm->vcpus && n < vm->vcpu_count; n++) {
        vcpu_destroy(vm->vcpus[n]);
        vm->vcpus[n] = NULL;
    }
    if (vm->platform)
        platform->destroy(vm);
    if (vm->bus)
        vdev_bus_destroy(vm->bus);
    if (vm->hvm_ready)
        ops->vm_fini(vm);
    cpuid_vm_fini(vm);
    vm_drop_snapshots(vm);
    if (vm->space)
        dmm_space_destroy(vm->space);
    config_drop(vm->config);
    kfree(vm->vcpus);
    kfree(vm);
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
    return fpu_vcpu_init(v) && msr_vcpu_init(v) && ops->vcpu_init(v) && platform->vcpu_create(v);
}

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
    if (!vm->vcpus || !vm->bus || !make_cpuid(vm, like) || !(vm->hvm_ready = ops->vm_init(vm)))
        return vm_refuse(why, VM_NO_MEMORY, "no memory for the VM's state");
    if (!platform->create(vm, why))
        return VM_NO_MEMORY;
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        if (!vcpu_create(vm, n))
            return vm_refuse(why, VM_NO_MEMORY, "no memory for vcpu%u", n);
    vm->vcpus_made = vm->vcpu_count;
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        if (!vcpu_start_thread(vm->vcpus[n]))
            return vm_refuse(why, VM_NO_MEMORY, "no memory for the stack of vcpu%u", n);
    return VM_OK;
}

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
    if (!load_find_file(boot_info, cfg->kernel))
        return vm_refuse(why, VM_NO_SUCH_FILE, "kernel %s: no such file was loaded at boot (see `module list`)", cfg->kernel);
    if (cfg->initrd[0] && !load_find_file(boot_info, cfg->initrd))
        return vm_refuse(why, VM_NO_SUCH_FILE, "initrd %s: no such file was loaded at boot (see `module list`)", cfg->initrd);
    for (uint32_t n = 0; n < cfg->module_count; n++)
        if (!load_find_file(boot_info, cfg->modules[n].file))
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
    snprintf(vm->name, sizeof(vm->name), "%s", name);
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

void vm_publish(struct vm *vm)
{
    spin_lock(&list_lock);
    list_add_tail(&vms, &vm->node);
    spin_unlock(&list_lock);
}

static enum vm_result create(const struct config_vm *cfg, const char *name, struct vm **out, char *why)
{
    if (!ops)
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

/* ---- start, pause, stop ------------------------------------------------------------------------------------------------------------------ */

enum vm_result vm_bad_state(const struct vm *vm, const char *what, char *why)
{
    return vm_refuse(why, VM_BAD_STATE, "%s is %s and can not be %s", vm->name, vm_state_name(vm->state), what);
}

void vm_set_state(struct vm *vm, enum vm_state s)
{
    spin_lock(&vm->lock);
    vm->state = s;
    spin_unlock(&vm->lock);
}

static enum vm_result start(struct vm *vm, char *why)
{
    if (vm->state != VM_CREATED && vm->state != VM_STOPPED)
        return vm_bad_state(vm, "started", why);
    vm_wait_parked(vm);
    enum vm_result r = prepare(vm, why);
    if (r != VM_OK) {
        clear_memory(vm);
        return r;
    }
    platform->pause(vm, false);
    spin_lock(&vm->lock);
    vm->stop_reason[0] = 0;
    vm->exit_code = -1;
    vm->last_life_triple_faulted = false;
    vm->state = VM_RUNNING;
    spin_unlock(&vm->lock);
    log_info("vm: %s starts: %lu MiB, %u vCPU%s, %s", vm->name, vm->config->memory_bytes >> 20, vm->vcpu_count, vm->vcpu_count > 1 ? "s" : "",
             vm->config->kernel);
    vm_kick_all(vm);
    return VM_OK;
}

enum vm_result vm_stand_still(struct vm *vm, char *why)
{
    spin_lock(&vm->lock);
    bool was_running = vm->state == VM_RUNNING;
    if (was_running)
        vm->state = VM_PAUSED;
    spin_unlock(&vm->lock);
    if (!was_running)
        return vm_bad_state(vm, "paused", why);
    vm_kick_all(vm);
    dmm_wake_memory_waiters();
    vm_wait_parked(vm);
    if (vm->state != VM_PAUSED) /* it ended by itself meanwhile */
        return vm_bad_state(vm, "paused", why);
    platform->pause(vm, true);
    vm->paused_tsc = time_tsc();
    return VM_OK;
}

void vm_go_on(struct vm *vm)
{
    uint64_t stood_still = time_tsc() - vm->paused_tsc;
    vm->tsc_offset -= stood_still;
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        vcpu_set_tsc_offset(vm->vcpus[n], vm->vcpus[n]->tsc_offset - stood_still);
    platform->pause(vm, false);
    vm_set_state(vm, VM_RUNNING);
    vm_kick_all(vm);
}

static enum vm_result pause(struct vm *vm, char *why) { return vm_stand_still(vm, why); }

static enum vm_result resume(struct vm *vm, char *why)
{
    if (vm->state != VM_PAUSED)
        return vm_bad_state(vm, "resumed", why);
    vm_go_on(vm);
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

static enum vm_result stop(struct vm *vm, char *why)
{
    if (vm->state == VM_CREATED || vm->state == VM_STOPPED)
        return vm_bad_state(vm, "stopped", why);
    vm_request_stop(vm, -1, "stopped by command");
    vm_wait_parked(vm);
    if (vm->state != VM_STOPPED) /* it was paused: nobody was left to do it */
        become_stopped(vm);
    return VM_OK;
}

static enum vm_result destroy(struct vm *vm, char *why)
{
    if (vm->state == VM_RUNNING || vm->state == VM_PAUSED) {
        enum vm_result r = stop(vm, why);
        if (r != VM_OK && vm->state != VM_STOPPED)
            return r;
    }
    vm_wait_parked(vm);
    spin_lock(&list_lock);
    list_del(&vm->node);
    spin_unlock(&list_lock);
    log_info("vm: %s destroyed", vm->name);
    vm_unmake(vm);
    return VM_OK;
}

#define LIFE_COMMAND(name)                                                                                 \
    enum vm_result vm_##name(struct vm *vm, char *why)                                                     \
    {                                                                                                      \
        vm_command_begin();                                                                                   \
        enum vm_result r = name(vm, why);                                                                  \
        vm_command_end();                                                                                     \
        return r;                                                                                          \
    }
LIFE_COMMAND(start)
LIFE_COMMAND(pause)
LIFE_COMMAND(resume)
LIFE_COMMAND(stop)
LIFE_COMMAND(destroy)
#undef LIFE_COMMAND

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
