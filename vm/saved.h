/*
 * All that a VM is beside its memory, at rest: what a fork hands to its children and a snapshot keeps.
 *
 * It is taken and put back while the VM is paused and every vCPU is parked, so nothing moves; each part is copied by the file that
 * owns it, into a struct of its own. Time is in it as the guest sees it (its TSC, the platform's clock): a VM that is loaded goes on where the
 * saved one stood, however long ago that was.
 */
#ifndef HV_VM_SAVED_H
#define HV_VM_SAVED_H

#include "vm/vm_internal.h"

struct pv_saved {
    uint64_t system_time, wall_clock, steal_msr, eoi_msr, steal_ns;
    uint32_t clock_version, steal_version;
    bool unhalted;
};

struct vcpu_saved {
    uint64_t gpr[GPR_COUNT], rip, rflags, dr[4], guest_xcr0, tsc_aux;
    uint64_t tsc_shift;        /* beyond the VM's own TSC: what the guest has set */
    struct vcpu_sregs sregs;
    struct hvm_saved hvm;
    struct pv_saved pv;
    struct vcpu_msrs msrs;
    enum vcpu_state state;
    bool init_pending, sipi_pending, nmi_pending, wait_for_sipi;
    uint8_t sipi_vector, cr8_seen;
    void *fpu, *lapic;         /* in the same block of memory */
};

struct vm_saved {
    unsigned vcpu_count;
    uint64_t guest_tsc;
    bool load_due;
    uint64_t bytes;            /* of the whole block */
    void *platform;
    struct vcpu_saved vcpu[];
};

/* The VM is paused, and vm_give_up_pins() has been called. NULL: no memory. */
struct vm_saved *vm_save(struct vm *vm);
/* Into the VM it was taken from, or one of the same configuration; paused, no pins. Before its first entry it takes its pins and gets another
 * generation id. */
void vm_load(struct vm *vm, const struct vm_saved *s);
/* What is pinned for the guest's records is not any more, until each vCPU's thread takes its pins again before its next entry. */
void vm_give_up_pins(struct vm *vm);

/* fpu.c: the vCPU's registers have been spilled; fpu_copy_bytes() of them. */
size_t fpu_copy_bytes(void);
void fpu_copy_out(const struct vcpu *v, struct vcpu_saved *out);
void fpu_copy_in(struct vcpu *v, const struct vcpu_saved *in);
/* pv.c */
void pv_give_up_pins(struct vcpu *v);
void pv_save(const struct vcpu *v, struct pv_saved *out);
void pv_load(struct vcpu *v, const struct pv_saved *in);

#endif
