/*
 * KVM's paravirtual clock and hypercalls: Linux reads its TSC frequency, its clock and the wall clock from two small records in
 * its own memory and calibrates nothing.
 *
 * Guest time is the guest's TSC, scaled: the VM's TSC starts at 0 with the VM and stands still while it is paused, so the record
 * says "TSC 0 is time 0" for as long as the guest leaves its TSC alone, and all vCPUs agree to the last bit, which is what
 * the stable flag promises. A vCPU whose guest has set its TSC gets a record shifted by as much.
 */
#include "vm/vm_internal.h"

#include "core/log.h"
#include "core/time.h"

enum { MSR_KVM_WALL_CLOCK = 0x11, MSR_KVM_SYSTEM_TIME = 0x12, MSR_KVM_WALL_CLOCK_NEW = 0x4b564d00, MSR_KVM_SYSTEM_TIME_NEW = 0x4b564d01 };
enum { PVCLOCK_TSC_STABLE = 1 };
#define SYSTEM_TIME_ENABLE BIT64(0)

/* KVM's ABI (Linux documentation, virt/kvm/x86/msr). */
struct pvclock_vcpu_time {
    uint32_t version, pad0;
    uint64_t tsc_timestamp, system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags, pad[2];
};
struct pvclock_wall_clock { uint32_t version, sec, nsec; };
_Static_assert(sizeof(struct pvclock_vcpu_time) == 32 && sizeof(struct pvclock_wall_clock) == 12, "KVM's layout");

uint64_t vcpu_guest_tsc(const struct vcpu *v) { return time_tsc() + v->tsc_offset; }

void vcpu_set_tsc_offset(struct vcpu *v, uint64_t offset)
{
    v->tsc_offset = offset;
    hvm()->set_tsc_offset(v, offset);
}

/* An odd version tells readers on other vCPUs that the record is being written. A page that cannot be written now is no loss:
 * the record there keeps its last contents, and the guest keeps its last clock. */
static void write_time(struct vcpu *v)
{
    uint64_t gpa = v->pv_system_time & ~UINT64_C(3);
    struct pvclock_vcpu_time t = {.version = v->pv_version + 1, .flags = PVCLOCK_TSC_STABLE};
    uint64_t shift_tsc = v->tsc_offset - v->vm->tsc_offset;
    t.tsc_timestamp = shift_tsc; /* the guest's TSC at the VM's time 0 */
    time_pvclock_scale(&t.tsc_to_system_mul, &t.tsc_shift);
    bool ok = dmm_write_guest(v->vm->space, gpa, &t.version, sizeof(t.version)) == DMM_FAULT_RETRY &&
              dmm_write_guest(v->vm->space, gpa + 4, (uint8_t *)&t + 4, sizeof(t) - 4) == DMM_FAULT_RETRY;
    t.version = v->pv_version += 2;
    if (!ok || dmm_write_guest(v->vm->space, gpa, &t.version, sizeof(t.version)) != DMM_FAULT_RETRY)
        log_warn("vm: %s.vcpu%u: the clock record at gpa %#lx cannot be written", v->vm->name, v->id, gpa);
}

static void write_wall_clock(struct vcpu *v, uint64_t gpa)
{
    uint64_t vm_ns = time_tsc_to_ns(time_tsc() + v->vm->tsc_offset), now_s = time_wallclock_s();
    struct pvclock_wall_clock w = {.version = 2, .sec = (uint32_t)(now_s - vm_ns / 1000000000)};
    if (vm_ns % 1000000000) { /* the wall clock is in whole seconds: the guest's starts with this one */
        w.sec--;
        w.nsec = (uint32_t)(1000000000 - vm_ns % 1000000000);
    }
    if (dmm_write_guest(v->vm->space, gpa, &w, sizeof(w)) != DMM_FAULT_RETRY)
        log_warn("vm: %s.vcpu%u: the wall clock record at gpa %#lx cannot be written", v->vm->name, v->id, gpa);
}

bool pv_rdmsr(struct vcpu *v, uint32_t msr, uint64_t *value)
{
    switch (msr) {
    case MSR_KVM_WALL_CLOCK: case MSR_KVM_WALL_CLOCK_NEW: *value = v->pv_wall_clock; return true;
    case MSR_KVM_SYSTEM_TIME: case MSR_KVM_SYSTEM_TIME_NEW: *value = v->pv_system_time; return true;
    default: return false;
    }
}

/* By both its ends: a record is shorter than a page. */
static bool lies_in_ram(const struct vcpu *v, uint64_t gpa, unsigned size)
{
    return dmm_gfn_is_ram(v->vm->space, gpa_to_gfn(gpa)) && dmm_gfn_is_ram(v->vm->space, gpa_to_gfn(gpa + size - 1));
}

/* True with *gp: the record would not lie in memory. */
bool pv_wrmsr(struct vcpu *v, uint32_t msr, uint64_t value, bool *gp)
{
    switch (msr) {
    case MSR_KVM_WALL_CLOCK: case MSR_KVM_WALL_CLOCK_NEW:
        if (!(*gp = !lies_in_ram(v, value, sizeof(struct pvclock_wall_clock)))) {
            v->pv_wall_clock = value;
            write_wall_clock(v, value);
        }
        return true;
    case MSR_KVM_SYSTEM_TIME: case MSR_KVM_SYSTEM_TIME_NEW:
        *gp = (value & SYSTEM_TIME_ENABLE) && ((value & 2) || !lies_in_ram(v, value & ~UINT64_C(3), sizeof(struct pvclock_vcpu_time)));
        if (!*gp) {
            v->pv_system_time = value;
            pv_refresh(v);
        }
        return true;
    default: return false;
    }
}

void pv_refresh(struct vcpu *v)
{
    if (v->pv_system_time & SYSTEM_TIME_ENABLE)
        write_time(v);
}

void pv_vcpu_reset(struct vcpu *v) { v->pv_system_time = v->pv_wall_clock = 0; }

/* No hypercall is offered: each gets KVM's answer for one that does not exist, so a guest may probe. */
void pv_hypercall(struct vcpu *v)
{
    enum { HYPERCALL_UNKNOWN = -1000, HYPERCALL_NOT_PERMITTED = -1 };
    if (!vcpu_skip(v))
        return;
    v->gpr[GPR_RAX] = (uint64_t)(int64_t)(hvm()->cpl(v) ? HYPERCALL_NOT_PERMITTED : HYPERCALL_UNKNOWN);
}
