/*
 * Exits that need nothing but registers, answered between two entries.
 *
 * A CPUID exit through the run loop costs more in looking around than in answering. This much has to be looked at: does anybody want
 * the vCPU or its CPU (kick_pending, need_resched), and does the guest single-step. Interrupts are off all the while: one
 * that is pending ends the next entry at once. Inlined into the back ends' exit path.
 */
#ifndef HV_VM_SHORTCUT_H
#define HV_VM_SHORTCUT_H

#include "vm/vm.h"
#include "x86/cpu.h"
#include "x86/percpu.h"

#define SHORTCUT_TIMED 64 /* one in so many, and counts for all */

/* By address and kind, see vm/run.c. 0: not known. */
static inline unsigned vcpu_len_slot(const struct vcpu *v) { return (unsigned)v->rip % ARRAY_SIZE(v->len_cache); }
static inline unsigned vcpu_remembered_len(const struct vcpu *v, enum vm_exit_kind kind)
{
    unsigned slot = vcpu_len_slot(v);
    return likely(v->len_cache[slot].rip == v->rip && v->len_cache[slot].kind == kind) ? v->len_cache[slot].len : 0;
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
    if (unlikely(stat->count++ % SHORTCUT_TIMED == 0)) { /* reading the clock costs more than the answer */
        uint64_t begin = rdtsc();
        cpuid_answer(v);
        stat->tsc += (rdtsc() - begin) * SHORTCUT_TIMED;
    } else {
        cpuid_answer(v);
    }
    return true;
}

#endif
