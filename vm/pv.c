/*
 * KVM's records in the guest's memory (hypercalls: vm/pv_hypercall.c).
 *
 * The clock: Linux reads its TSC frequency, its clock and the wall clock from two small records and calibrates nothing.
 * Guest time is the guest's TSC, scaled: the VM's TSC starts at 0 with the VM and stands still while it is paused, so the record
 * says "TSC 0 is time 0" for as long as the guest leaves its TSC alone, and all vCPUs agree to the last bit, which is what
 * the stable flag promises. A vCPU whose guest has set its TSC gets a record shifted by as much.
 *
 * Steal time says how long the vCPU's thread was ready but did not run, and whether that is so now ("preempted"): others then
 * neither spin for the vCPU nor wait for its answer. That flag can only be set while the thread is switched out, with interrupts off, where
 * nothing may fault; and the word of the paravirtual EOI is used at every interrupt, and a vCPU could not go on without
 * the answer. So the pages of these two are pinned from the WRMSR that names them until they are given up, at the latest before the
 * guest's memory is taken back. The price is one or two places per vCPU that DMM can neither move nor break, in per-CPU data, which
 * is in use all the time anyway. The clock's records are written so rarely, and by WRMSR only, that they need no pin: where the page cannot be
 * written now, the vCPU waits and executes the WRMSR again.
 *
 * While a vCPU is parked others may take its pins away, and the pages with them: for good, or for as long as its memory is frozen, which
 * nothing pinned can be (a fork, a snapshot). Then the MSRs say still what the guest has enabled, and the vCPU's own thread pins the pages
 * again before it next enters the guest, where it can wait for a frame as for any other. Its thread may still be switched out then (it
 * wakes, finds no reason to run, and sleeps): the hook writes only while the thread counts as running, and as long as one does
 * the pins stay; see vm_park().
 */
#include "vm/saved.h"

#include "core/log.h"
#include "core/time.h"

enum {
    MSR_KVM_WALL_CLOCK = 0x11, MSR_KVM_SYSTEM_TIME = 0x12, MSR_KVM_WALL_CLOCK_NEW = 0x4b564d00, MSR_KVM_SYSTEM_TIME_NEW = 0x4b564d01,
    MSR_KVM_STEAL_TIME = 0x4b564d03, MSR_KVM_PV_EOI_EN = 0x4b564d04,
};
enum { PVCLOCK_TSC_STABLE = 1 };
#define ENABLE BIT64(0) /* in each of these MSRs but the wall clock's */

/* KVM's ABI (Linux documentation, virt/kvm/x86/msr). */
struct pvclock_vcpu_time {
    uint32_t version, pad0;
    uint64_t tsc_timestamp, system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags, pad[2];
};
struct pvclock_wall_clock { uint32_t version, sec, nsec; };
struct pv_steal_time { /* 64-byte aligned */
    uint64_t steal_ns;
    uint32_t version, flags;
    uint8_t preempted, pad[47];
};
_Static_assert(sizeof(struct pvclock_vcpu_time) == 32 && sizeof(struct pvclock_wall_clock) == 12 && sizeof(struct pv_steal_time) == 64 &&
               offsetof(struct pv_steal_time, preempted) == 16, "KVM's layout");

uint64_t vcpu_guest_tsc(const struct vcpu *v) { return time_tsc() + v->tsc_offset; }

void vcpu_set_tsc_offset(struct vcpu *v, uint64_t offset)
{
    v->tsc_offset = offset;
    hvm()->set_tsc_offset(v, offset);
}

/* Into guest memory, or how the WRMSR that wants it ends otherwise. */
static enum pv_msr_result write_record(struct vcpu *v, uint64_t gpa, const void *record, size_t size)
{
    enum dmm_fault_result r = dmm_write_guest(v->space, gpa, record, size);
    if (r == DMM_FAULT_RETRY)
        return PV_MSR_DONE;
    if (r != DMM_FAULT_BLOCKED && r != DMM_FAULT_STALLED)
        return PV_MSR_GP;
    vcpu_wait_dmm(v, r, gpa_to_gfn(gpa));
    return PV_MSR_AGAIN;
}

/* An odd version tells readers on other vCPUs that the record is being written: so it stays if memory is short in between. */
static enum pv_msr_result write_time(struct vcpu *v, uint64_t gpa)
{
    struct pvclock_vcpu_time t = {.version = v->pv.clock_version + 1, .flags = PVCLOCK_TSC_STABLE};
    uint64_t shift_tsc = v->tsc_offset - v->vm->tsc_offset;
    t.tsc_timestamp = shift_tsc; /* the guest's TSC at the VM's time 0 */
    time_pvclock_scale(&t.tsc_to_system_mul, &t.tsc_shift);
    enum pv_msr_result r = write_record(v, gpa, &t.version, sizeof(t.version));
    if (r == PV_MSR_DONE)
        r = write_record(v, gpa + 4, (uint8_t *)&t + 4, sizeof(t) - 4);
    t.version++;
    if (r == PV_MSR_DONE)
        r = write_record(v, gpa, &t.version, sizeof(t.version));
    if (r == PV_MSR_DONE)
        v->pv.clock_version = t.version;
    return r;
}

static enum pv_msr_result write_wall_clock(struct vcpu *v, uint64_t gpa)
{
    uint64_t vm_ns = time_tsc_to_ns(time_tsc() + v->vm->tsc_offset), now_s = time_wallclock_s();
    struct pvclock_wall_clock w = {.version = 2, .sec = (uint32_t)(now_s - vm_ns / 1000000000)};
    if (vm_ns % 1000000000) { /* the wall clock is in whole seconds: the guest's starts with this one */
        w.sec--;
        w.nsec = (uint32_t)(1000000000 - vm_ns % 1000000000);
    }
    return write_record(v, gpa, &w, sizeof(w));
}

/* ---- steal time ------------------------------------------------------------------------------------------------------------- */

/* Readers on other vCPUs take nothing in while the version is odd. Stores become visible in the order written here. */
static void record_steal(struct vcpu *v)
{
    struct pv_steal_time *r = v->pv.steal;
    v->pv.steal_due = false;
    if (!r)
        return;
    uint64_t waited_ns = thread_wait_ns(&v->thread);
    v->pv.steal_ns += waited_ns - v->pv.waited_ns;
    v->pv.waited_ns = waited_ns;
    __atomic_store_n(&r->preempted, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&r->version, v->pv.steal_version + 1, __ATOMIC_RELEASE);
    __atomic_store_n(&r->steal_ns, v->pv.steal_ns, __ATOMIC_RELEASE);
    __atomic_store_n(&r->version, v->pv.steal_version += 2, __ATOMIC_RELEASE);
}

void pv_switched_out(struct vcpu *v)
{
    enum { PREEMPTED = 1 };
    enum thread_state s = v->thread.state;
    v->pv.steal_due = true;
    if (v->counted && v->pv.steal && (s == THREAD_RUNNABLE || s == THREAD_THROTTLED))
        __atomic_store_n(&v->pv.steal->preempted, PREEMPTED, __ATOMIC_RELEASE);
}

/* What the record says already counts on: a guest that takes a CPU out and in again keeps the sum it knows, as with KVM. */
static void begin_steal(struct vcpu *v, struct pv_steal_time *r)
{
    v->pv.steal_ns = r->steal_ns;
    v->pv.steal_version = (r->version + 1) & ~1u;
    v->pv.waited_ns = thread_wait_ns(&v->thread);
    v->pv.steal = r;
    record_steal(v);
}

/* ---- MSRs --------------------------------------------------------------------------------------------------------------------- */

static gfn_t record_gfn(uint64_t msr_value) { return gpa_to_gfn(msr_value); }

static void unpin_steal(struct vcpu *v)
{
    if (v->pv.steal) {
        v->pv.steal = NULL;
        dmm_unpin(v->space, record_gfn(v->pv.steal_msr));
    }
}

static void end_steal(struct vcpu *v)
{
    unpin_steal(v);
    v->pv.steal_msr = 0;
}

static void unpin_eoi(struct vcpu *v)
{
    if (v->pv.eoi_pinned) {
        v->pv.eoi_pinned = false;
        vm_platform()->irq.set_pv_eoi(v, NULL);
        dmm_unpin(v->space, record_gfn(v->pv.eoi_msr));
    }
}

static void end_eoi(struct vcpu *v)
{
    unpin_eoi(v);
    v->pv.eoi_msr = 0;
}

static void use_eoi(struct vcpu *v, void *word)
{
    v->pv.eoi_pinned = true;
    vm_platform()->irq.set_pv_eoi(v, word);
}

/* The record's address for good, or how the WRMSR ends otherwise. Alignment has been checked: a record lies in one page. */
static enum pv_msr_result pin_record(struct vcpu *v, uint64_t gpa, void **record)
{
    enum dmm_fault_result why;
    uint8_t *page = dmm_pin(v->space, gpa_to_gfn(gpa), true, &why);
    if (page) {
        *record = page + gpa % PAGE_SIZE;
        return PV_MSR_DONE;
    }
    if (why != DMM_FAULT_BLOCKED && why != DMM_FAULT_STALLED)
        return PV_MSR_GP;
    vcpu_wait_dmm(v, why, gpa_to_gfn(gpa));
    return PV_MSR_AGAIN;
}

static enum pv_msr_result write_steal_msr(struct vcpu *v, uint64_t value)
{
    enum { RESERVED = 0x3e };
    void *record = NULL;
    if (value & RESERVED)
        return PV_MSR_GP;
    enum pv_msr_result r = value & ENABLE ? pin_record(v, value & ~ENABLE, &record) : PV_MSR_DONE;
    if (r == PV_MSR_DONE) {
        end_steal(v);
        v->pv.steal_msr = value;
        if (record)
            begin_steal(v, record);
    }
    return r;
}

static enum pv_msr_result write_eoi_msr(struct vcpu *v, uint64_t value)
{
    void *word = NULL;
    if (value & 2)
        return PV_MSR_GP;
    enum pv_msr_result r = value & ENABLE ? pin_record(v, value & ~ENABLE, &word) : PV_MSR_DONE;
    if (r == PV_MSR_DONE) {
        end_eoi(v);
        v->pv.eoi_msr = value;
        if (word)
            use_eoi(v, word);
    }
    return r;
}

bool pv_rdmsr(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    switch (msr) {
    case MSR_KVM_WALL_CLOCK: case MSR_KVM_WALL_CLOCK_NEW: *value = v->pv.wall_clock; return true;
    case MSR_KVM_SYSTEM_TIME: case MSR_KVM_SYSTEM_TIME_NEW: *value = v->pv.system_time; return true;
    case MSR_KVM_STEAL_TIME: *value = v->pv.steal_msr; return true;
    case MSR_KVM_PV_EOI_EN: *value = v->pv.eoi_msr; return true;
    default: return false;
    }
}

/* By both its ends: a record is shorter than a page. */
static bool lies_in_ram(const struct vcpu *v, uint64_t gpa, unsigned size)
{
    return dmm_gfn_is_ram(v->space, gpa_to_gfn(gpa)) && dmm_gfn_is_ram(v->space, gpa_to_gfn(gpa + size - 1));
}

static enum pv_msr_result write_wall_clock_msr(struct vcpu *v, uint64_t value)
{
    if (!lies_in_ram(v, value, sizeof(struct pvclock_wall_clock)))
        return PV_MSR_GP;
    enum pv_msr_result r = write_wall_clock(v, value);
    if (r == PV_MSR_DONE)
        v->pv.wall_clock = value;
    return r;
}

static enum pv_msr_result write_system_time_msr(struct vcpu *v, uint64_t value)
{
    if ((value & ENABLE) && ((value & 2) || !lies_in_ram(v, value & ~UINT64_C(3), sizeof(struct pvclock_vcpu_time))))
        return PV_MSR_GP;
    enum pv_msr_result r = value & ENABLE ? write_time(v, value & ~UINT64_C(3)) : PV_MSR_DONE;
    if (r == PV_MSR_DONE)
        v->pv.system_time = value;
    return r;
}

enum pv_msr_result pv_wrmsr(struct vcpu *v, uint32_t msr, uint64_t value)
{
    switch (msr) {
    case MSR_KVM_WALL_CLOCK: case MSR_KVM_WALL_CLOCK_NEW: return write_wall_clock_msr(v, value);
    case MSR_KVM_SYSTEM_TIME: case MSR_KVM_SYSTEM_TIME_NEW: return write_system_time_msr(v, value);
    case MSR_KVM_STEAL_TIME: return write_steal_msr(v, value);
    case MSR_KVM_PV_EOI_EN: return write_eoi_msr(v, value);
    default: return PV_MSR_NOT_MINE;
    }
}

enum pv_msr_result pv_refresh(struct vcpu *v)
{
    return v->pv.system_time & ENABLE ? write_time(v, v->pv.system_time & ~UINT64_C(3)) : PV_MSR_DONE;
}

/* The wall clock's is no register of the vCPU with KVM, and nothing goes on in it. */
void pv_vcpu_init_signal(struct vcpu *v)
{
    end_steal(v);
    end_eoi(v);
    v->pv.system_time = 0;
    v->pv.unhalted = v->pv.pins_due = false;
}

void pv_vcpu_reset(struct vcpu *v)
{
    pv_vcpu_init_signal(v);
    v->pv.wall_clock = 0;
}

/* ---- pins given up and taken again ---------------------------------------------------------------------------------------------- */

void pv_give_up_pins(struct vcpu *v)
{
    unpin_steal(v);
    unpin_eoi(v);
    v->pv.pins_due = (v->pv.steal_msr | v->pv.eoi_msr) & ENABLE;
    v->pv.steal_due |= v->pv.pins_due;
}

/* False: has waited for memory, or the vCPU is wanted elsewhere. The pages were memory when they were pinned first, and are so still. */
static bool take_pins(struct vcpu *v)
{
    void *record;
    if ((v->pv.steal_msr & ENABLE) && !v->pv.steal) {
        if (pin_record(v, v->pv.steal_msr & ~ENABLE, &record) != PV_MSR_DONE)
            return false;
        v->pv.steal = record;
    }
    if ((v->pv.eoi_msr & ENABLE) && !v->pv.eoi_pinned) {
        if (pin_record(v, v->pv.eoi_msr & ~ENABLE, &record) != PV_MSR_DONE)
            return false;
        use_eoi(v, record);
    }
    v->pv.pins_due = false;
    return true;
}

bool pv_before_entry(struct vcpu *v)
{
    if (unlikely(v->pv.pins_due) && !take_pins(v))
        return false;
    record_steal(v);
    return true;
}

/* waited_ns stays the thread's own. */
void pv_save(const struct vcpu *v, struct pv_saved *out)
{
    *out = (struct pv_saved){.system_time = v->pv.system_time, .wall_clock = v->pv.wall_clock, .steal_msr = v->pv.steal_msr,
                             .eoi_msr = v->pv.eoi_msr, .steal_ns = v->pv.steal_ns, .clock_version = v->pv.clock_version,
                             .steal_version = v->pv.steal_version, .unhalted = v->pv.unhalted};
}

void pv_load(struct vcpu *v, const struct pv_saved *in)
{
    debug_assert(!v->pv.steal && !v->pv.eoi_pinned);
    v->pv.system_time = in->system_time;
    v->pv.wall_clock = in->wall_clock;
    v->pv.steal_msr = in->steal_msr;
    v->pv.eoi_msr = in->eoi_msr;
    v->pv.steal_ns = in->steal_ns;
    v->pv.clock_version = in->clock_version;
    v->pv.steal_version = in->steal_version;
    v->pv.unhalted = in->unhalted;
    pv_give_up_pins(v);
}
