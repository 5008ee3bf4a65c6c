/*
 * Nested page faults: memory that DMM has to provide, a device window, or nothing at all.
 *
 * DMM is asked first and is the only one to say what a page is: the fault's own "present" bit is not looked at. What is no memory
 * is emulated if an instruction's data access went there. Three accesses have no instruction that could be emulated: a
 * fetch (open bus reads as ones, and FF FF is an invalid opcode), the walk of page tables that lie outside memory,
 * and the delivery of an event onto a stack outside memory. On a PC the last two end in a fault cascade and shutdown; here the VM
 * stops and says so.
 */
#include "vm/vm_internal.h"

#include "core/log.h"
#include "include/hv/vdev.h"

void vcpu_wait_dmm(struct vcpu *v, enum dmm_fault_result r, gfn_t gfn)
{
    /* The VM's own wish to stop or pause wakes memory waiters too; the bound is only for a wake-up lost to a bug of ours. */
    enum { BOUND_NS = 1000000000 };
    fpu_spill(v);
    if (r == DMM_FAULT_BLOCKED) {
        dmm_wait(v->space, gfn, BOUND_NS);
        return;
    }
    v->state = VCPU_STALLED;
    if (!v->kick_pending)
        dmm_wait_memory(v->space, BOUND_NS);
    v->state = VCPU_RUNNABLE;
}

void vcpu_emulate_outcome(struct vcpu *v, enum emulate_result r, const struct emulate_outcome *out, const char *what)
{
    char bytes[64];
    switch (r) {
    case EMULATE_BLOCKED: vcpu_wait_dmm(v, DMM_FAULT_BLOCKED, out->gfn); return;
    case EMULATE_STALLED: vcpu_wait_dmm(v, DMM_FAULT_STALLED, out->gfn); return;
    case EMULATE_UNSUPPORTED:
        vm_request_stop(v->vm, -1, "vcpu%u: %s by an instruction that is not emulated: rip=%#lx bytes=%s gpa=%#lx", v->id, what, v->rip,
                        emulate_bytes_text(out, bytes, sizeof(bytes)), v->exit.kind == VM_EXIT_NESTED_FAULT ? v->exit.u.fault.gpa : 0);
        return;
    default: return; /* done, again, or an exception was injected */
    }
}

static void emulate_access(struct vcpu *v)
{
    struct emulate_outcome out;
    v->irq_check = true; /* it may be the local APIC */
    vcpu_emulate_outcome(v, emulate_vcpu(v, EMULATE_MEMORY, &out), &out, "device access");
}

static void no_memory_there(struct vcpu *v)
{
    uint64_t gpa = v->exit.u.fault.gpa;
    if (v->exit.u.fault.in_walk)
        vm_request_stop(v->vm, -1, "vcpu%u: page table outside memory at gpa %#lx (rip=%#lx)", v->id, gpa, v->rip);
    else if (hvm()->event_pending(v))
        vm_request_stop(v->vm, -1, "vcpu%u: stack or descriptor table outside memory at gpa %#lx while an event was delivered (rip=%#lx)",
                        v->id, gpa, v->rip);
    else if (v->exit.u.fault.exec)
        vcpu_inject_ud(v);
    else
        emulate_access(v);
}

/* DMM has been asked by the back end (vcpu_shortcut_fault). */
void nfault_handle(struct vcpu *v)
{
    gfn_t gfn = gpa_to_gfn(v->exit.u.fault.gpa);
    switch (v->fault_result) {
    case DMM_FAULT_RETRY: return;
    case DMM_FAULT_ZERO_STORE:
        if (!zero_store(v)) {
            v->fault_result = dmm_fault(v->space, gfn, DMM_READ | DMM_WRITE);
            nfault_handle(v);
        }
        return;
    case DMM_FAULT_HOLE: no_memory_there(v); return;
    case DMM_FAULT_DENIED:
        vm_request_stop(v->vm, -1, "vcpu%u: access to a page that can not be given back its contents: gpa %#lx (rip=%#lx)", v->id,
                        v->exit.u.fault.gpa, v->rip);
        return;
    default: vcpu_wait_dmm(v, v->fault_result, gfn); return;
    }
}
