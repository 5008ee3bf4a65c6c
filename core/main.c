/*
 * The composition root: the only file that may name every folder, and included by nobody. It reads as the boot plan.
 *
 * Everything up to the first thread runs on the boot stack with interrupts off, and any failure is a panic with a cause: the
 * machine cannot be used without what is set up here. From the boot thread on nothing is fatal: a CPU without
 * virtualization, a configuration with an error or a VM that cannot be made leaves a prompt to look around with.
 */
#include "core/cmd_core.h"
#include "core/console.h"
#include "core/ipi.h"
#include "core/log.h"
#include "core/panic.h"
#include "core/thread.h"
#include "drivers/init.h"
#include "drivers/power.h"
#include "drivers/smp.h"
#include "drivers/uart.h"
#include "include/abi/boot_info.h"
#include "include/hv/dmm.h"
#include "include/hv/hvm_ops.h"
#include "lib/config.h"
#include "lib/string.h"
#include "mm/early.h"
#include "mm/mm.h"
#include "policies/churn.h"
#include "policies/dedup.h"
#include "policies/demand.h"
#include "policies/insurance.h"
#include "policies/large.h"
#include "vdev/platform.h"
#include "vm/vm.h"
#include "x86/cpu.h"
#include "x86/idt.h"
#include "x86/percpu.h"

#define THREAD_STACK_BYTES 16384

NORETURN void core_main(struct boot_info *loader_bi);

static struct boot_info boot_info; /* our copy: the loader's goes back to the allocator */
static char *config_text;
static struct thread boot_thread, console_thread_, zero_thread, churn_thread_, dedup_thread_, insurance_thread_, large_thread_;

static const struct core_power_ops power_ops = {.reboot = power_reboot, .off = power_off};

/* ---- one CPU, no interrupts ---------------------------------------------------------------------------------------- */

static bool range_is_sane(const struct boot_info *bi, uint32_t i)
{
    const struct boot_mem_range *r = &bi->mem[i];
    return r->size && IS_ALIGNED(r->base | r->size, PAGE_SIZE) && r->base + r->size > r->base &&
           (i == 0 || r->base >= bi->mem[i - 1].base + bi->mem[i - 1].size);
}

/* Our own loaders fill it, but a stale loader with a new core is a user's mistake that deserves a message. */
static void take_boot_info(const struct boot_info *bi)
{
    if (bi->magic != BOOT_INFO_MAGIC || bi->version != BOOT_INFO_VERSION || bi->size != sizeof(*bi))
        panic("boot_info: magic %#lx version %u size %u, expected version %u size %zu: loader and core do not belong together",
              bi->magic, bi->version, bi->size, BOOT_INFO_VERSION, sizeof(*bi));
    if (bi->mem_count > BOOT_MAX_MEM_RANGES || bi->file_count > BOOT_MAX_FILES)
        panic("boot_info: %u memory ranges and %u files do not fit", bi->mem_count, bi->file_count);
    for (uint32_t i = 0; i < bi->mem_count; i++)
        if (!range_is_sane(bi, i))
            panic("boot_info: memory range %u (%#lx + %#lx) is empty, unaligned or out of order", i, bi->mem[i].base, bi->mem[i].size);
    memcpy(&boot_info, bi, sizeof(boot_info));
    boot_info.loader[sizeof(boot_info.loader) - 1] = 0;
    boot_info.cmdline[sizeof(boot_info.cmdline) - 1] = 0;
    for (uint32_t i = 0; i < boot_info.file_count; i++)
        boot_info.files[i].name[BOOT_NAME_MAX - 1] = 0;
}

static void start_console_output(const struct boot_info *bi)
{
    console_set_sink(uart_write);
    drivers_init_early(bi);
    log_info("palimpsest %s%s, booted by %.63s", hv_version(), HV_DEBUG ? " (debug)" : "", bi->loader);
    const char *missing = cpu_init_boot();
    if (missing)
        panic("this CPU cannot run the hypervisor: %s", missing);
}

static void init_memory(void)
{
    early_init(&boot_info);
    smp_reserve_low_memory();
    hostmap_init(&boot_info);
    cpu_init_this();
    drivers_map_screen();
    frame_init(&boot_info);
    early_seal();
    dmm_init();
    if (boot_info.config_hpa) { /* it lies in the loader's memory */
        config_text = kzalloc(boot_info.config_size + 1);
        if (!config_text)
            panic("no memory for a configuration of %lu bytes", boot_info.config_size);
        memcpy(config_text, mfn_to_hva(hpa_to_mfn(boot_info.config_hpa)) + (boot_info.config_hpa & (PAGE_SIZE - 1)),
               boot_info.config_size);
    }
    frame_release_loader_memory(&boot_info);
}

static void start_thread(struct thread *t, const char *name, enum thread_prio prio, thread_fn *fn, void *arg)
{
    void *stack = stack_alloc(THREAD_STACK_BYTES);
    if (!stack)
        panic("no memory for the stack of thread %s", name);
    thread_init(t, name, prio, fn, arg, stack, THREAD_STACK_BYTES);
    thread_start(t);
}

/* ---- the boot thread ------------------------------------------------------------------------------------------------- */

static const struct hvm_ops *const backends[] = {&hvm_ops_svm, &hvm_ops_vmx};

/* The back end that this CPU offers, turned on; NULL with the causes logged. */
static const struct hvm_ops *choose_backend(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(backends); i++) {
        const char *why = NULL;
        if (backends[i]->probe(&why) == HVM_PROBE_OK && backends[i]->cpu_enable(&why)) {
            log_info("hvm: using %s", backends[i]->name);
            return backends[i];
        }
        log_warn("hvm: no %s: %s", backends[i]->name, why ? why : "?");
    }
    log_error("hvm: this machine offers no hardware virtualization that we can use: no VM can be created");
    return NULL;
}

static const struct hvm_ops *hvm_of_cpus;

static bool cpu_ready(const char **why) { return !hvm_of_cpus || hvm_of_cpus->cpu_enable(why); }

static void no_operation(void *arg UNUSED) {}
static void cpu_barrier(void) { cpu_call_others(no_operation, NULL); } /* an interrupt orders everything before it */

static void start_configured_vm(const struct config_vm *cfg)
{
    char name[CONFIG_NAME_MAX], why[160];
    struct vm *vm;
    for (uint32_t i = 0; i < cfg->count; i++) {
        config_instance_name(cfg, i, name, sizeof(name));
        if (vm_create(cfg, name, &vm, why) != VM_OK)
            log_error("palimpsest.conf:%u: vm %s: %s", cfg->line, name, why);
        else if (cfg->autostart && vm_start(vm, why) != VM_OK)
            log_error("palimpsest.conf:%u: vm %s: cannot start: %s", cfg->line, name, why);
    }
}

/*
 * QEMU's emulation runs each CPU in a thread, and any CPU's load of x87 state (XRSTOR, FXRSTOR, FRSTOR: every OS does that all the time)
 * clears the chipset's IGNNE in a word of the *first* CPU, reading and writing it without a lock (cpu_clear_ignne()). Nested paging and GIF
 * of that CPU are in the same word: if it enters or leaves a guest just then it goes on with the old ones, and walks the wrong page
 * tables into a triple fault, of the guest or of the whole machine. Hypervisor threads do not mind.
 */
static void avoid_emulators_first_cpu(void)
{
    struct cpu_set guests;
    sched_spare_first_cpu();
    sched_guest_cpus(&guests);
    if (!cpu_set_has(&guests, 0))
        log_info("smp: this is QEMU's emulation: guests run on all CPUs but the first");
}

static void boot_thread_main(void *arg UNUSED)
{
    const struct hvm_ops *ops = choose_backend();
    struct config *config = kzalloc(sizeof(*config));
    struct config_error err = {0};
    hvm_of_cpus = ops;
    dmm_set_cpu_barrier(cpu_barrier);
    smp_start_all(cpu_ready);
    if (cpu_info()->tcg)
        avoid_emulators_first_cpu();
    if (ops) {
        vm_init(ops, &boot_info);
        vm_set_platform(&vdev_platform_ops);
    }
    if (!config_text)
        log_warn("no configuration was loaded: no VM is started");
    else if (!config)
        log_error("no memory to read the configuration");
    else if (!config_parse(config, config_text, boot_info.config_size, &err))
        log_error("palimpsest.conf:%u: %s", err.line, err.text);
    else {
        log_set_console_level((enum log_level)config->log_level);
        drivers_set_baud(config->console_baud);
        for (uint32_t i = 0; i < config->secure_group_count; i++)
            dmm_group_set_secure(dmm_group_of(config->secure_groups[i]), true);
        if (ops && config->vm_count)
            frame_zero_large_stock();
        for (uint32_t i = 0; ops && i < config->vm_count; i++)
            start_configured_vm(&config->vms[i]);
    }
    kfree(config);
    /* Last: at the prompt all VMs are there, and from now on only commands make and end them. */
    start_thread(&console_thread_, "console", THREAD_PRIO_CONSOLE, console_thread, NULL);
}

NORETURN void core_main(struct boot_info *loader_bi)
{
    percpu_init_boot();
    panic_init();
    idt_init();
    take_boot_info(loader_bi);
    start_console_output(&boot_info);
    init_memory();
    drivers_init(&boot_info);
    sched_init();
    ipi_init();
    cmd_core_init(&boot_info, &power_ops);
    demand_policy_init();
    churn_policy_init();
    dedup_policy_init();
    insurance_policy_init();
    large_policy_init();
    start_thread(&zero_thread, "zero", THREAD_PRIO_IDLE, dmm_zero_thread, NULL);
    start_thread(&churn_thread_, "churn", THREAD_PRIO_POLICY, churn_thread, NULL);
    start_thread(&dedup_thread_, "dedup", THREAD_PRIO_POLICY, dedup_thread, NULL);
    start_thread(&insurance_thread_, "insurance", THREAD_PRIO_POLICY, insurance_thread, NULL);
    start_thread(&large_thread_, "large", THREAD_PRIO_POLICY, large_thread, NULL);
    start_thread(&boot_thread, "boot", THREAD_PRIO_POLICY, boot_thread_main, NULL);
    sched_start();
}
