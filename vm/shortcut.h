/*
 * Around the entry: what the back ends' round trip shares, inlined into it, and the two exits that are answered on the spot.
 *
 * A CPUID exit or a first touch that takes the way through the run loop costs more in looking around than in answering. After a CPUID
 * exit little has to be looked at: does anybody want the vCPU or its CPU (kick_pending, need_resched), does the guest
 * single-step. Interrupts are off all the while: one that is pending ends the next entry at once. A nested fault is resolved with
 * interrupts on, and the next vcpu_entry_begin() looks.
 */
#ifndef HV_VM_SHORTCUT_H
#define HV_VM_SHORTCUT_H

#include "vm/vm.h"
#include "x86/cpu.h"
#include "x86/percpu.h"

/* Interrupts off. False if there is something to look at first (a kick, another thread's turn); else the vCPU counts as in the guest, and
 * who changes something afterwards interrupts it. */
static inline bool vcpu_entry_begin(struct vcpu *v)
{
    const struct percpu *cpu = this_cpu();
    v->pcpu = cpu->id;
    __atomic_store_n(&v->in_guest, true, __ATOMIC_SEQ_CST);
    if (unlikely(v->kick_pending || cpu->need_resched)) {
        v->in_guest = false;
        return false;
    }
    if (unlikely(!v->fpu_live))
        fpu_load(v);
    irqs_off_end();
    return true;
}

static inline void vcpu_entry_end(struct vcpu *v)
{
    irqs_off_begin();
    v->in_guest = false;
}

/* Could the instruction be REP STOS of zeros to at least a page? Of nearly all others the first comparison says no; vm/zero_store.c looks. */
static inline bool vcpu_may_clear_page(const struct vcpu *v)
{
    return !(v->gpr[GPR_RDI] % PAGE_SIZE) && (uint32_t)v->gpr[GPR_RCX] >= PAGE_SIZE / 8 && !(uint8_t)v->gpr[GPR_RAX];
}

/* A nested fault has just happened; interrupts on. True: resolved, the same instruction can run again. False: v->fault_result says what it
 * is, for vm/nfault.c. Its time is in DMM's histograms. */
static inline bool vcpu_shortcut_fault(struct vcpu *v, gfn_t gfn, unsigned access)
{
    if (unlikely(vcpu_may_clear_page(v)) && (access & (DMM_WRITE | DMM_WALK)) == DMM_WRITE)
        access |= DMM_MAY_CLEAR;
    enum dmm_fault_result r = dmm_fault(v->space, gfn, access);
    if (unlikely(r != DMM_FAULT_RETRY)) {
        v->fault_result = r;
        return false;
    }
    v->stats[VM_EXIT_NESTED_FAULT].count++;
    return true;
}

#define SHORTCUT_TIMED 64 /* one in so many, and counts for all */

/* By address and kind, see vm/run.c. 0: not known. */
static inline unsigned vcpu_len_slot(const struct vcpu *v) { return (unsigned)v->rip % ARRAY_SIZE(v->len_cache); }
static inline unsigned vcpu_remembered_len(const struct vcpu *v, enum vm_exit_kind kind)
{
    unsigned slot = vcpu_len_slot(v);
    return likely(v->len_cache[slot].rip == v->rip && v->len_cache[slot].kind == kind) ? v->len_cache[slot].len : 0;
}

/* Apart, or what it needs to keep would be saved each time. */
__attribute__((noinline)) static void vcpu_cpuid_timed(struct vcpu *v)
{
    uint64_t begin = rdtsc();
    cpuid_answer(v);
    v->stats[VM_EXIT_CPUID].tsc += (rdtsc() - begin) * SHORTCUT_TIMED;
}

/* A CPUID exit has just happened; registers and RIP are in *v, RFLAGS may not be. True: answered, EAX..EDX and RIP have changed and nothing else, and
 * the back end enters again, having ended the interrupt shadow. insn_len 0: unknown. False: nothing happened, take the long way. */
static inline bool vcpu_shortcut_cpuid(struct vcpu *v, uint64_t rflags, unsigned insn_len)
{
    struct vm_exit_stat *stat = &v->stats[VM_EXIT_CPUID];
    unsigned len = insn_len ? insn_len : vcpu_remembered_len(v, VM_EXIT_CPUID);
    if (unlikely(!len || v->kick_pending || this_cpu()->need_resched || (rflags & (RFLAGS_TF | RFLAGS_RF)) ||
                 (uint32_t)v->rip >= UINT32_MAX - 15)) /* where 32-bit code would wrap */
        return false;
    v->rip += len;
    if (unlikely(stat->count++ % SHORTCUT_TIMED == 0)) /* reading the clock costs more than the answer */
        vcpu_cpuid_timed(v);
    else
        cpuid_answer(v);
    return true;
}

#endif
