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
#include "lib/string.h"
#include "vm/load.h"

#define SHORT_LIFE_NS UINT64_C(60000000000)

static const struct hvm_ops *ops;
static const struct boot_info *boot_info;
static const struct vm_platform_ops *platform;

const struct hvm_ops *hvm(void) { return ops; }
const struct boot_info *vm_boot_info(void) { return boot_info; }
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

static void set_entry_state(struct vcpu *v, const struct load_entry *entry)
{
    memcpy(v->gpr, entry->gpr, sizeof(v->gpr));
    v->rip = entry->rip;
    v->rflags = entry->rflags;
    ops->set_sregs(v, &entry->sregs);
}

void vm_power_on_state(struct vm *vm)
{
    for (unsigned n = 0; n < vm->vcpu_count; n++) {
        ops->vcpu_reset(vm->vcpus[n]);
        fpu_vcpu_reset(vm->vcpus[n]);
        msr_vcpu_reset(vm->vcpus[n]);
    }
    platform->reset(vm);
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
        vcpu_set_tsc_offset(v, vm->tsc_offset);
    }
    vm_power_on_state(vm);
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
    vm_withdraw(vm);
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
