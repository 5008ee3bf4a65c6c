/*
 * Page-modification logging (SDM 3, 29.3.6): a vCPU's log of the pages that it has made dirty, for mm/dmm/write_log.c.
 *
 * The CPU fills a page of 512 entries from the last one down, and exits when it would need one more. Only it knows the index, and that is in
 * the VMCS, out of reach of all other CPUs. So entries that are free hold a value that is no address, and who reads the log reads down to the first
 * of these: the scanner does, without asking the vCPU, and remembers how far it has come. It writes nothing there, for the vCPU may be in the
 * guest; only the vCPU itself clears the page and lets the CPU begin anew, once it is full. What a vCPU has logged is in memory when it has left the guest.
 *
 * Logging begins and ends with a VMCS field that only the vCPU can write. It looks for that when it takes note of a flush and finds the table's
 * root changed (ops.c), and so that it finds it changed, who wants it to look says that it was 0. A vCPU that stores the root that it has found
 * overwrites that, but it looks at log_changed afterwards, which had been set before.
 *
 * Addresses are cut to pages: bits 11:0 should be 0, and are not everywhere (Bochs 2.7).
 */
#include "vmx/vmx.h"

#include "include/hv/dmm.h"

#define NOTHING (~UINT64_C(0))

static void clear(struct vmx_vcpu *s)
{
    for (unsigned n = 0; n < PML_ENTRIES; n++)
        s->log[n] = NOTHING;
    s->log_read = 0;
}

/* log_lock held. */
static void read(struct dmm_space *space, struct vmx_vcpu *s)
{
    uint64_t gpa;
    for (; s->log && s->log_read < PML_ENTRIES && (gpa = s->log[PML_ENTRIES - 1 - s->log_read]) != NOTHING; s->log_read++)
        dmm_log_written(space, ALIGN_DOWN(gpa, PAGE_SIZE));
}

static bool alloc(struct vcpu *v, struct vmx_vcpu *s)
{
    mfn_t m = vmx_features()->pml ? frame_alloc(0, 0, FRAME_VM_STATE, v->space) : INVALID_MFN;
    if (!mfn_valid(m))
        return false;
    spin_lock(&s->log_lock);
    s->log = mfn_to_hva(m);
    clear(s);
    spin_unlock(&s->log_lock);
    return true;
}

void vmx_log_free(struct vmx_vcpu *s)
{
    spin_lock(&s->log_lock);
    volatile uint64_t *log = s->log;
    s->log = NULL;
    spin_unlock(&s->log_lock);
    if (log)
        frame_free(hva_to_mfn((const void *)(uintptr_t)log), 0);
}

static void want(struct vmx_vcpu *s, bool on)
{
    s->log_wanted = on;
    __atomic_store_n(&s->log_changed, true, __ATOMIC_SEQ_CST);
    __atomic_store_n(&s->ept_root, 0, __ATOMIC_SEQ_CST);
}

bool vmx_log_writes(struct vcpu *v, enum dmm_log_step step)
{
    struct vmx_vcpu *s = vmx_of(v);
    switch (step) {
    case DMM_LOG_ALLOC:
        return alloc(v, s);
    case DMM_LOG_BEGIN:
    case DMM_LOG_END:
        want(s, step == DMM_LOG_BEGIN);
        break;
    case DMM_LOG_READ:
        spin_lock(&s->log_lock);
        read(v->space, s);
        spin_unlock(&s->log_lock);
        break;
    case DMM_LOG_FREE:
        vmx_log_free(s);
        break;
    }
    return true;
}

void vmx_log_update(struct vmx_vcpu *s)
{
    if (!__atomic_exchange_n(&s->log_changed, false, __ATOMIC_SEQ_CST))
        return;
    bool on = s->log_wanted; /* it stays, and so does the frame, until this vCPU has taken note of another flush */
    if (on) {
        vmwrite(VMCS_PML_ADDRESS, mfn_to_hpa(hva_to_mfn((const void *)(uintptr_t)s->log)));
        vmwrite(VMCS_PML_INDEX, PML_ENTRIES - 1);
    }
    vmwrite(VMCS_PROC2_CONTROLS, vmx_features()->proc2 | (on ? (uint32_t)VMX_PROC2_PML : 0));
}

void vmx_log_full(struct vcpu *v)
{
    struct vmx_vcpu *s = vmx_of(v);
    spin_lock(&s->log_lock);
    read(v->space, s);
    if (s->log)
        clear(s);
    spin_unlock(&s->log_lock);
    vmwrite(VMCS_PML_INDEX, PML_ENTRIES - 1);
    dmm_log_was_full();
}
