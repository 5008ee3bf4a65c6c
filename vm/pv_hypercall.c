/*
 * KVM's hypercalls, as far as CPUID leaf 0x40000001 promises them: number in RAX, arguments in RBX, RCX, RDX, RSI, of which a guest
 * that is not in 64-bit mode has the low halves; the result in RAX. None takes an address, so nothing of a guest's arguments is trusted or
 * can fault: an APIC id that no vCPU has is left out, as on a bus.
 *
 * A kick must not get lost between a guest's last look at its lock and its HLT: it sticks to the vCPU until a HLT takes it. The kicker sets the
 * flag and then kicks; the sleeper clears kick_pending and then looks at the flag (vm/run.c).
 */
#include "vm/vm_internal.h"

enum { HC_KICK_CPU = 5, HC_SEND_IPI = 10, HC_SCHED_YIELD = 11 };
enum { HC_EPERM = -1, HC_EINVAL = -22, HC_ENOSYS = -1000 };

static struct vcpu *by_apic_id(const struct vm *vm, uint64_t id)
{
    return id < vm->vcpu_count ? vm->vcpus[id] : NULL;
}

/* The CPU to who can make better use of it. */
static void yield_to(struct vcpu *v, struct vcpu *target)
{
    if (target && target != v)
        thread_yield_to(&target->thread);
}

static int64_t kick_cpu(struct vcpu *v, uint64_t apic_id)
{
    struct vcpu *target = by_apic_id(v->vm, (uint32_t)apic_id);
    if (target) {
        __atomic_store_n(&target->pv.unhalted, true, __ATOMIC_SEQ_CST);
        vcpu_kick(target);
        yield_to(v, target);
    }
    return 0;
}

bool pv_take_unhalt(struct vcpu *v)
{
    return v->pv.unhalted && __atomic_exchange_n(&v->pv.unhalted, false, __ATOMIC_SEQ_CST);
}

/* Bit n of a map names the APIC id first + n. Returns how many took it. */
static unsigned send_to_map(struct vcpu *v, uint64_t map, uint64_t first, bool nmi, uint8_t vector)
{
    unsigned taken = 0;
    for (; map; map &= map - 1) {
        struct vcpu *target = by_apic_id(v->vm, first + (unsigned)__builtin_ctzll(map));
        taken += target && vm_platform()->irq.post(target, nmi, vector);
    }
    return taken;
}

/* `icr` has no destination and no shorthand; its delivery mode is fixed or NMI. */
static int64_t send_ipi(struct vcpu *v, uint64_t low, uint64_t high, uint32_t first, uint64_t icr, unsigned map_bits)
{
    enum { MODE = 0x700, NMI = 0x400, SHORTHAND = 0xc0000, LOGICAL = 0x800 };
    bool nmi = (icr & MODE) == NMI;
    if (icr >> 20 || (icr & (SHORTHAND | LOGICAL)) || ((icr & MODE) && !nmi) || (!nmi && (uint8_t)icr < 16))
        return HC_EINVAL;
    return send_to_map(v, low, first, nmi, (uint8_t)icr) + send_to_map(v, high, (uint64_t)first + map_bits, nmi, (uint8_t)icr);
}

static int64_t answer(struct vcpu *v, const uint64_t a[5], bool wide)
{
    switch (a[0]) {
    case HC_KICK_CPU: return kick_cpu(v, a[2]); /* a[1]: flags, none defined */
    case HC_SEND_IPI: return send_ipi(v, a[1], a[2], (uint32_t)a[3], a[4], wide ? 64 : 32);
    case HC_SCHED_YIELD: yield_to(v, by_apic_id(v->vm, (uint32_t)a[1])); return 0;
    default: return HC_ENOSYS;
    }
}

void pv_hypercall(struct vcpu *v)
{
    bool wide = vcpu_in_long_mode(v);
    uint64_t mask = wide ? UINT64_MAX : UINT32_MAX;
    const uint64_t a[5] = {v->gpr[GPR_RAX] & mask, v->gpr[GPR_RBX] & mask, v->gpr[GPR_RCX] & mask, v->gpr[GPR_RDX] & mask, v->gpr[GPR_RSI] & mask};
    bool permitted = !hvm()->cpl(v);
    if (!vcpu_skip(v))
        return;
    v->gpr[GPR_RAX] = (uint64_t)(permitted ? answer(v, a, wide) : HC_EPERM) & mask;
}
