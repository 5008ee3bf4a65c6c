/*
 * A vCPU's thread: look around, deliver, enter, handle the exit, again.
 *
 * How nothing is missed. Whoever wants something of a vCPU (an interrupt for it, a stop, a pause) changes the state first and then
 * calls vcpu_kick(), which sets kick_pending, wakes it if it sleeps and interrupts its CPU if it is in the guest. The vCPU clears
 * kick_pending *before* it looks at the state, and looks at kick_pending again with interrupts off just before the entry
 * (vcpu_entry_begin). Sleeping uses the same flag as its condition.
 *
 * The guest is preempted by interrupts only: each ends in an exit, and thread_resched_point() gives way after it.
 */
#include "vm/vm_internal.h"

#include "core/log.h"
#include "core/time.h"
#include "lib/string.h"
#include "vm/shortcut.h"
#include "x86/apic.h"
#include "x86/cpu.h"
#include "x86/idt.h"
#include "x86/percpu.h"

#define DR6_BS BIT64(14)
#define ASK_AGAIN_NS UINT64_C(10000000)

const char *vm_exit_kind_name(enum vm_exit_kind k)
{
    static const char *const names[VM_EXIT_KIND_COUNT] = {
#define X(id, name) [VM_EXIT_##id] = name,
        VM_EXIT_KINDS(X)
#undef X
    };
    return k < VM_EXIT_KIND_COUNT ? names[k] : "?";
}

/* ---- kicks ----------------------------------------------------------------------------------------------------------------- */

/* In the guest on another CPU: an interrupt there ends its run. On this CPU it cannot be: we run here. */
static void interrupt_guest(struct vcpu *v)
{
    unsigned pcpu = v->pcpu;
    if (__atomic_load_n(&v->in_guest, __ATOMIC_SEQ_CST) && pcpu != cpu_id())
        lapic_send_ipi(percpu_of(pcpu)->apic_id, VECTOR_IPI_KICK);
}

void vcpu_kick(struct vcpu *v)
{
    __atomic_store_n(&v->kick_pending, true, __ATOMIC_SEQ_CST);
    waitq_wake_all(&v->wait);
    interrupt_guest(v);
}

void vm_kick_all(struct vm *vm)
{
    for (unsigned n = 0; vm->vcpus && n < vm->vcpu_count; n++) /* it may be in the making, or its making have failed */
        if (vm->vcpus[n])
            vcpu_kick(vm->vcpus[n]);
}

/* It has left the guest, or entered since the generation moved: then it has forgotten. */
static bool has_flushed(const struct vcpu *v, uint64_t generation)
{
    return !__atomic_load_n(&v->in_guest, __ATOMIC_SEQ_CST) || v->flush_gen_seen >= generation;
}

/* Asks again after a while: CPUs in software lose an interrupt now and then. */
static void wait_flushed(struct vcpu *v, uint64_t generation)
{
    for (uint64_t asked_ns = 0; !has_flushed(v, generation); cpu_pause()) {
        uint64_t now = time_ns();
        if (asked_ns && now - asked_ns > ASK_AGAIN_NS)
            interrupt_guest(v);
        if (!asked_ns || now - asked_ns > ASK_AGAIN_NS)
            asked_ns = now;
    }
}

__attribute__((noinline)) static void interrupt_and_wait(struct vm *vm, bool wait)
{
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        if (vm->vcpus[n])
            interrupt_guest(vm->vcpus[n]);
    for (unsigned n = 0; wait && n < vm->vcpu_count; n++)
        if (vm->vcpus[n])
            wait_flushed(vm->vcpus[n], dmm_space_flush_generation(vm->space));
}

/* Usually nobody is in the guest: a vCPU alone has had something taken away by its own fault. */
void vm_kick_for_flush(void *owner, bool wait)
{
    struct vm *vm = owner;
    for (struct vcpu **v = vm->vcpus, **end = v + vm->vcpus_made; v != end; v++)
        if (unlikely((*v)->in_guest)) {
            interrupt_and_wait(vm, wait);
            return;
        }
}

/* False: one cannot; a VM in the making has none that could. */
bool vm_log_writes(void *owner, enum dmm_log_step step)
{
    struct vm *vm = owner;
    unsigned made = vm->vcpus_made;
    bool ok = made;
    for (unsigned n = 0; n < made; n++)
        ok &= hvm()->log_writes(vm->vcpus[n], step);
    return ok;
}

/* ---- instructions that an exit has emulated --------------------------------------------------------------------------------- */

bool vcpu_in_long_mode(struct vcpu *v)
{
    struct vcpu_seg cs;
    if (!(hvm()->get_reg(v, VCPU_EFER) & EFER_LMA))
        return false;
    hvm()->get_seg(v, SEG_CS, &cs);
    return cs.attr >> 9 & 1;
}

void vcpu_advance_rip(struct vcpu *v, unsigned len)
{
    uint64_t next = v->rip + len;
    if (unlikely((next ^ v->rip) >> 32) && !vcpu_in_long_mode(v))
        next = (uint32_t)next;
    v->rip = next;
    v->rflags &= ~RFLAGS_RF;
    hvm()->clear_interrupt_shadow(v);
    if (unlikely(v->rflags & RFLAGS_TF)) {
        hvm()->set_reg(v, VCPU_DR6, hvm()->get_reg(v, VCPU_DR6) | DR6_BS);
        vcpu_inject_exception(v, X86_DB, false, 0);
    }
}

/*
 * On CPUs without next-RIP save the instruction must be fetched through the guest's tables and decoded, which costs more than the
 * rest of such an exit. The same few instructions exit again and again, so their lengths are remembered by address and kind.
 * All of one kind have the same length but for useless prefixes (RDTSCP is longer than RDTSC, but neither exits on such CPUs), and
 * only forms without any are remembered: else one process of a guest could, by a padded CPUID at an address where another process has
 * a plain one, have that one stepped into the middle of the next instruction. Who pads is stepped wrongly himself.
 */
static unsigned find_len(struct vcpu *v)
{
    struct insn insn;
    struct emulate_outcome out;
    enum emulate_result r = emulate_vcpu_fetch(v, &insn, &out);
    if (r != EMULATE_DONE) {
        vcpu_emulate_outcome(v, r, &out, "exit");
        return 0;
    }
    unsigned slot = vcpu_len_slot(v);
    if (insn.len == 1u + (insn.map == INSN_MAP_0F) + insn.has_modrm) {
        v->len_cache[slot].rip = v->rip;
        v->len_cache[slot].kind = (uint8_t)v->exit.kind;
        v->len_cache[slot].len = insn.len;
    }
    return insn.len;
}

unsigned vcpu_insn_len(struct vcpu *v)
{
    if (likely(v->exit.insn_len))
        return v->exit.insn_len;
    unsigned len = vcpu_remembered_len(v, v->exit.kind);
    return likely(len) ? len : find_len(v);
}

bool vcpu_skip(struct vcpu *v)
{
    unsigned len = vcpu_insn_len(v);
    if (len)
        vcpu_advance_rip(v, len);
    return len;
}

/* ---- exceptions -------------------------------------------------------------------------------------------------------------- */

static void inject(struct vcpu *v, const struct vm_event *ev)
{
    if (!hvm()->inject(v, ev)) /* an instruction exits only after what was pending has been delivered */
        vm_request_stop(v->vm, -1, "vcpu%u: exception %u at rip=%#lx while another event was being delivered", v->id, ev->vector, v->rip);
}

void vcpu_inject_exception(struct vcpu *v, uint8_t vector, bool has_error, uint32_t error_code)
{
    /* Real mode pushes no error code. */
    bool error = has_error && (hvm()->get_reg(v, VCPU_CR0) & CR0_PE);
    v->rflags |= vector == X86_DB ? 0 : RFLAGS_RF; /* faults come back to the instruction */
    inject(v, &(struct vm_event){.type = VM_EVENT_EXCEPTION, .vector = vector, .has_error = error, .error_code = error ? error_code : 0});
}

void vcpu_inject_gp(struct vcpu *v) { vcpu_inject_exception(v, X86_GP, true, 0); }
void vcpu_inject_ud(struct vcpu *v) { vcpu_inject_exception(v, X86_UD, false, 0); }

void vcpu_inject_pf(struct vcpu *v, uint64_t cr2, uint32_t error_code)
{
    v->rflags |= RFLAGS_RF;
    inject(v, &(struct vm_event){.type = VM_EVENT_EXCEPTION, .vector = X86_PF, .has_error = true, .error_code = error_code, .cr2 = cr2});
}

/* ---- what the vCPU finds when it looks around ---------------------------------------------------------------------------------- */

/* The boot processor's INIT leads to firmware (SDM 3, 9.4), which would start the machine anew; ours is the loader. */
static void take_init(struct vcpu *v)
{
    if (v->id == 0) {
        vm_request_reset(v->vm, "INIT to the boot processor");
        return;
    }
    hvm()->vcpu_reset(v);
    vm_platform()->vcpu_reset(v);
    pv_vcpu_init_signal(v);
    memset(v->len_cache, 0, sizeof(v->len_cache));
    v->irq_window = false;
    v->cr8_seen = v->tpr_alarm = 0;
    v->nmi_pending = false;
    v->wait_for_sipi = true;
    v->state = VCPU_OFFLINE;
}

static void take_sipi(struct vcpu *v)
{
    struct vcpu_sregs s;
    hvm()->get_sregs(v, &s);
    s.seg[SEG_CS].selector = (uint16_t)(v->sipi_vector << 8);
    s.seg[SEG_CS].base = (uint64_t)v->sipi_vector << 12;
    hvm()->set_sregs(v, &s);
    v->rip = 0;
    v->wait_for_sipi = false;
    v->state = VCPU_RUNNABLE;
}

static bool take(volatile bool *flag) { return *flag && __atomic_exchange_n(flag, false, __ATOMIC_SEQ_CST); }

/* False: the VM does not run at present. */
static bool look_around(struct vcpu *v)
{
    __atomic_store_n(&v->kick_pending, false, __ATOMIC_SEQ_CST);
    v->irq_check = true;
    if (vm_wants_attention(v->vm))
        return false;
    if (take(&v->init_pending))
        take_init(v);
    if (take(&v->sipi_pending) && v->wait_for_sipi)
        take_sipi(v);
    return true;
}

static void deliver_nmi(struct vcpu *v)
{
    const struct hvm_ops *h = hvm();
    if (h->event_pending(v) || h->nmi_blocked(v)) { /* as soon as that is over */
        h->request_nmi_window(v, true);
        return;
    }
    v->nmi_pending = false;
    h->inject(v, &(struct vm_event){.type = VM_EVENT_NMI, .vector = X86_NMI});
}

/* Once nothing is pending, or a window or an alarm is armed for what is, only a kick or an exit of a loud kind can change that. */
static void deliver_interrupt(struct vcpu *v)
{
    const struct hvm_ops *h = hvm();
    const struct vm_irq_ops *irq = &vm_platform()->irq;
    int vector = irq->pending(v);
    bool window = false;
    v->irq_check = false;
    if (vector >= 0) {
        if (h->can_inject_intr(v)) {
            h->inject(v, &(struct vm_event){.type = VM_EVENT_INTR, .vector = (uint8_t)vector});
            irq->accept(v, (uint8_t)vector);
            vector = irq->pending(v);
        }
        window = vector >= 0;
    }
    if (window != v->irq_window) {
        v->irq_window = window;
        h->request_irq_window(v, window);
    }
    uint8_t masked = window ? 0 : irq->masked(v);
    if (unlikely(masked != v->tpr_alarm)) {
        v->tpr_alarm = masked;
        h->set_tpr_alarm(v, masked);
    }
}

static bool kicked(void *arg) { return ((struct vcpu *)arg)->kick_pending; }

static bool wakes_from_halt(struct vcpu *v)
{
    return pv_take_unhalt(v) || v->nmi_pending || v->init_pending || ((v->rflags & RFLAGS_IF) && vm_platform()->irq.pending(v) >= 0);
}

/* Sleeps until the vCPU has a reason to run: an interrupt that its HLT waits for, or the SIPI that starts it. */
static void sleep(struct vcpu *v)
{
    fpu_spill(v);
    for (;;) {
        if (!look_around(v))
            return; /* state stays: it goes on sleeping afterwards */
        if (v->state == VCPU_HALTED && wakes_from_halt(v))
            v->state = VCPU_RUNNABLE;
        if (v->state == VCPU_RUNNABLE)
            return;
        waitq_wait(&v->wait, kicked, v, WAIT_FOREVER);
    }
}

/* ---- exits ---------------------------------------------------------------------------------------------------------------------- */

static void handle_halt(struct vcpu *v)
{
    if (!vcpu_skip(v))
        return;
    if (!hvm()->event_pending(v)) /* a single step after HLT ends it at once */
        v->state = VCPU_HALTED;
}

static void handle_exception(struct vcpu *v)
{
    const struct vm_exit *x = &v->exit;
    if (x->u.exc.vector == X86_MC)
        panic("machine check while %s.vcpu%u ran (rip=%#lx)", v->vm->name, v->id, v->rip);
    inject(v, &(struct vm_event){.type = VM_EVENT_EXCEPTION, .vector = x->u.exc.vector, .has_error = x->u.exc.has_error,
                                 .error_code = x->u.exc.error_code, .cr2 = x->u.exc.cr2});
}

static void handle_xsetbv(struct vcpu *v)
{
    uint64_t value = (uint32_t)v->gpr[GPR_RAX] | v->gpr[GPR_RDX] << 32;
    if (hvm()->cpl(v) || fpu_xsetbv(v, (uint32_t)v->gpr[GPR_RCX], value) == XSETBV_GP)
        vcpu_inject_gp(v);
    else
        vcpu_skip(v);
}

static void handle_rdtsc(struct vcpu *v)
{
    uint64_t tsc = vcpu_guest_tsc(v);
    if (!vcpu_skip(v))
        return;
    v->gpr[GPR_RAX] = (uint32_t)tsc;
    v->gpr[GPR_RDX] = tsc >> 32;
    if (v->exit.u.tsc.is_rdtscp)
        v->gpr[GPR_RCX] = v->tsc_aux;
}

static void log_line(const char *line) { log_info("vm: %s", line); }

static void log_state(struct vcpu *v)
{
    log_info("vm: registers of %s.vcpu%u:", v->vm->name, v->id);
    vcpu_dump(v, log_line);
}

static void stop_on_exit(struct vcpu *v)
{
    const struct vm_exit *x = &v->exit;
    log_state(v);
    vm_request_stop(v->vm, -1, "vcpu%u: %s at rip=%#lx (code %#lx info %#lx %#lx)", v->id, vm_exit_kind_name(x->kind), v->rip, x->raw_code,
                    x->raw_info1, x->raw_info2);
}

/* The next vCPU of the VM that is ready to run and waits: best one that did not itself give way while it spun. NULL: none. */
static struct vcpu *preempted_sibling(struct vcpu *v)
{
    struct vm *vm = v->vm;
    struct vcpu *spinner = NULL;
    for (unsigned n = 1; n <= vm->vcpu_count; n++) {
        struct vcpu *other = vm->vcpus[(v->yield_next + n) % vm->vcpu_count];
        if (other == v || other->thread.state != THREAD_RUNNABLE)
            continue;
        if (!other->gave_way)
            return other;
        spinner = spinner ? spinner : other;
    }
    return spinner;
}

/* What this vCPU spins for may be held by another one that has been preempted: that one gets the CPU. */
static void handle_pause(struct vcpu *v)
{
    vcpu_skip(v);
    if (!thread_vcpus_wait()) {
        hvm()->set_pause_exits(v, false);
        return;
    }
    struct vcpu *other = preempted_sibling(v);
    v->gave_way = true;
    if (other) {
        v->yield_next = other->id;
        thread_yield_to(&other->thread);
    } else {
        thread_yield();
    }
    v->gave_way = false;
}

/* While CPUs are scarce a spin is not left to go on for a whole slice. */
static void came_back(struct vcpu *v)
{
    if (v->vm->vcpu_count > 1 && thread_vcpus_wait())
        hvm()->set_pause_exits(v, true);
}

static void handle_exit(struct vcpu *v)
{
    switch (v->exit.kind) {
    case VM_EXIT_INTR: case VM_EXIT_NMI: case VM_EXIT_IRQ_WINDOW: case VM_EXIT_NMI_WINDOW: case VM_EXIT_INIT: return;
    case VM_EXIT_NESTED_FAULT: nfault_handle(v); return;
    case VM_EXIT_PIO: pio_handle(v); return;
    case VM_EXIT_RDMSR: msr_handle_read(v); return;
    case VM_EXIT_WRMSR: msr_handle_write(v); return;
    case VM_EXIT_HLT: handle_halt(v); return;
    case VM_EXIT_CPUID:
        if (vcpu_skip(v))
            cpuid_answer(v);
        return;
    case VM_EXIT_CR_ACCESS: cr_handle_cr(v); return;
    case VM_EXIT_DR_ACCESS: cr_handle_dr(v); return;
    case VM_EXIT_EXCEPTION: handle_exception(v); return;
    case VM_EXIT_HYPERCALL: pv_hypercall(v); return;
    case VM_EXIT_PAUSE: handle_pause(v); return;
    case VM_EXIT_RDTSC: handle_rdtsc(v); return;
    case VM_EXIT_INVD: vcpu_skip(v); return; /* guest memory is write-back and coherent: nothing to write or lose */
    case VM_EXIT_XSETBV: handle_xsetbv(v); return;
    case VM_EXIT_RDPMC: vcpu_inject_gp(v); return;
    case VM_EXIT_MONITOR: case VM_EXIT_VIRT_INSN: vcpu_inject_ud(v); return;
    case VM_EXIT_TRIPLE_FAULT: log_state(v); vm_triple_fault(v); return;
    default: stop_on_exit(v); return;
    }
}

/* Exits whose handling does not touch the virtual interrupt controllers; of a nested fault only the device accesses do. */
#define QUIET(kind) (1u << VM_EXIT_##kind)
#define QUIET_KINDS (QUIET(INTR) | QUIET(CPUID) | QUIET(NESTED_FAULT) | QUIET(HYPERCALL) | QUIET(RDTSC) | QUIET(INVD) | QUIET(RDMSR))
_Static_assert(VM_EXIT_KIND_COUNT <= 32, "a word of kinds");

/* A copy has another generation id before any of its vCPUs runs: the first that comes writes it, and may have to wait for a frame. */
static bool generation_changed(struct vcpu *v)
{
    struct vm *vm = v->vm;
    enum vm_generation state = GENERATION_NEW;
    gfn_t gfn;
    if (!__atomic_compare_exchange_n(&vm->generation, &state, GENERATION_CHANGING, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
        if (state == GENERATION_CHANGING)
            thread_yield();
        return state == GENERATION_KNOWN;
    }
    enum dmm_fault_result r = vm_platform()->change_generation(vm, &gfn);
    bool waits = r == DMM_FAULT_BLOCKED || r == DMM_FAULT_STALLED;
    __atomic_store_n(&vm->generation, waits ? GENERATION_NEW : GENERATION_KNOWN, __ATOMIC_SEQ_CST);
    if (waits)
        vcpu_wait_dmm(v, r, gfn);
    return !waits;
}

/* Rare; v->pv.steal_due has called for it. False: look around first. */
static bool before_entry(struct vcpu *v)
{
    return (!v->vm->load_due || vm_load_after_reset(v)) && (v->vm->generation == GENERATION_KNOWN || generation_changed(v)) && pv_before_entry(v);
}

static inline void enter_once(struct vcpu *v, const struct hvm_ops *h, const struct vm_irq_ops *irq)
{
    if (unlikely(v->pv.steal_due) && !before_entry(v))
        return;
    if (unlikely(v->nmi_pending))
        deliver_nmi(v);
    if (unlikely(v->irq_check))
        deliver_interrupt(v);
    h->run(v, &v->exit);
    uint64_t begin = rdtsc();
    enum vm_exit_kind kind = v->exit.kind;
    uint8_t cr8 = h->get_cr8(v);
    if (unlikely(cr8 != v->cr8_seen)) {
        v->cr8_seen = cr8;
        v->irq_check = true;
        irq->tpr_changed(v, cr8);
    }
    handle_exit(v);
    v->irq_check |= !(QUIET_KINDS >> kind & 1);
    v->stats[kind].count++;
    v->stats[kind].tsc += rdtsc() - begin;
}

static void run_until_parked(struct vcpu *v)
{
    const struct hvm_ops *h = hvm();
    const struct vm_irq_ops *irq = &vm_platform()->irq;
    v->irq_check = true;
    for (;;) {
        if (unlikely(v->kick_pending) && !look_around(v))
            return;
        if (unlikely(v->state != VCPU_RUNNABLE)) {
            sleep(v);
            if (vm_wants_attention(v->vm))
                return;
            continue;
        }
        if (unlikely(this_cpu()->need_resched)) {
            thread_resched_point();
            came_back(v);
            continue;
        }
        enter_once(v, h, irq);
    }
}

static void switched_out(struct thread *t)
{
    fpu_spill(t->priv);
    pv_switched_out(t->priv);
}

void vcpu_thread(void *arg)
{
    struct vcpu *v = arg;
    thread_current()->switch_out = switched_out;
    while (vm_park(v))
        run_until_parked(v);
}
