/*
 * Local APIC (Intel SDM 3, chapter 11; AMD APM 2, chapter 16): xAPIC page and x2APIC MSRs over one register file.
 *
 * A lock per APIC would be taken by every sender, timer and entry to the guest. It is not needed: other CPUs only ever set bits in IRR
 * and TMR (atomic) and set `look`; ISR, TPR, LVT and the rest belong to the vCPU's own thread. `look` makes the entry
 * path cheap: it is cleared *before* the bits are looked at and set *after* a bit was set, so either the look sees the bit or
 * the next pending() looks again. It stays set while something is deliverable and is set by whatever can make something so.
 *
 * KVM's paravirtual end of interrupt saves the exit of an EOI that has no consequence but a cleared ISR bit: we set bit 0 of a word in the
 * guest's memory, and a guest that finds it set clears it instead of writing the EOI register. So it is offered only while
 * IRR is empty (else the EOI lets something in) and the vector in service is edge-triggered (else the I/O APIC waits for it), and only
 * where pending() has found nothing, on the way to the entry. What the guest did is learnt by settle(), which takes the offer
 * back, before anything looks at ISR or changes it. Hence between offer and settle() ISR is what it was, and the EOI meant is that of its
 * highest vector. No settling is late: an interrupt that arrives meanwhile kicks the vCPU and sets `look`, all else that reads ISR
 * is an access of the guest's own. What other vCPUs of the guest do to the word misleads this guest's APIC only.
 */
#include "vdev/platform.h"

#include "core/log.h"
#include "core/time.h"
#include "lib/string.h"
#include "mm/mm.h"

enum {
    MSR_APIC_BASE = 0x1b, MSR_TSC_DEADLINE = 0x6e0, MSR_X2APIC_FIRST = 0x800, MSR_X2APIC_LAST = 0x8ff,
    BASE_BSP = 1 << 8, BASE_EXTD = 1 << 10, BASE_EN = 1 << 11,
    REG_ID = 0x20, REG_VERSION = 0x30, REG_TPR = 0x80, REG_APR = 0x90, REG_PPR = 0xa0, REG_EOI = 0xb0, REG_LDR = 0xd0, REG_DFR = 0xe0,
    REG_SVR = 0xf0, REG_ISR = 0x100, REG_TMR = 0x180, REG_IRR = 0x200, REG_ESR = 0x280, REG_ICR = 0x300, REG_ICR2 = 0x310,
    REG_LVT = 0x320, REG_TMICT = 0x380, REG_TMCCT = 0x390, REG_TDCR = 0x3e0, REG_SELF_IPI = 0x3f0,
    LVT_MASKED = 1 << 16, SVR_ENABLED = 1 << 8,
    ESR_SEND_ILLEGAL = 1 << 5, ESR_RECV_ILLEGAL = 1 << 6, ESR_BAD_REG = 1 << 7,
    TIMER_ONE_SHOT = 0, TIMER_PERIODIC = 1, TIMER_DEADLINE = 2,
};

static const uint32_t lvt_writable[LVT_COUNT] = {0x700ff, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff};

static bool x2apic(const struct vlapic *l) { return l->base_msr & BASE_EXTD; }
static bool hw_enabled(const struct vlapic *l) { return l->base_msr & BASE_EN; }
static bool sw_enabled(const struct vlapic *l) { return hw_enabled(l) && (l->svr & SVR_ENABLED); }
static unsigned timer_mode(const struct vlapic *l) { return l->lvt[LVT_TIMER] >> 17 & 3; }

/* ---- IRR, ISR ------------------------------------------------------------------------------------------------------ */

static bool bit_test(const uint64_t *map, unsigned n) { return __atomic_load_n(&map[n / 64], __ATOMIC_SEQ_CST) >> n % 64 & 1; }
static void bit_clear(uint64_t *map, unsigned n) { __atomic_fetch_and(&map[n / 64], ~BIT64(n % 64), __ATOMIC_SEQ_CST); }
static bool bit_set(uint64_t *map, unsigned n) { return __atomic_fetch_or(&map[n / 64], BIT64(n % 64), __ATOMIC_SEQ_CST) >> n % 64 & 1; }

static int highest(const uint64_t *map)
{
    for (int w = 3; w >= 0; w--) {
        uint64_t bits = __atomic_load_n(&map[w], __ATOMIC_SEQ_CST);
        if (bits)
            return w * 64 + 63 - __builtin_clzll(bits);
    }
    return -1;
}

static void look_again(struct vlapic *l) { __atomic_store_n(&l->look, true, __ATOMIC_SEQ_CST); }

static void end_of_interrupt(struct vlapic *l)
{
    int vector = highest(l->isr);
    if (vector < 0)
        return;
    bit_clear(l->isr, (unsigned)vector);
    if (bit_test(l->tmr, (unsigned)vector))
        vioapic_eoi(l->platform, (uint8_t)vector);
    look_again(l);
}

/* The paravirtual EOI: takes the offer back, or does what the guest has meant by taking it. */
static void settle(struct vlapic *l)
{
    if (likely(!l->pv_eoi_offered))
        return;
    l->pv_eoi_offered = false;
    look_again(l); /* it may be offered again */
    if (!(__atomic_fetch_and(l->pv_eoi, ~1u, __ATOMIC_SEQ_CST) & 1))
        end_of_interrupt(l);
}

static void offer_pv_eoi(struct vlapic *l)
{
    int vector = highest(l->isr);
    if (vector < 0 || bit_test(l->tmr, (unsigned)vector) || highest(l->irr) >= 0)
        return;
    l->pv_eoi_offered = true;
    __atomic_fetch_or(l->pv_eoi, 1u, __ATOMIC_SEQ_CST);
}

void vlapic_set_pv_eoi(struct vcpu *v, uint32_t *word)
{
    struct vlapic *l = v->vlapic;
    settle(l);
    l->pv_eoi = word;
    look_again(l);
}

static uint32_t in_service_class(const struct vlapic *l)
{
    int isr = highest(l->isr);
    return isr < 0 ? 0 : (uint32_t)isr & 0xf0;
}

static uint32_t ppr(const struct vlapic *l)
{
    uint32_t in_service = in_service_class(l);
    return (l->tpr & 0xf0) >= in_service ? l->tpr : in_service;
}

static void error(struct vlapic *l, uint32_t bit);

/* A fixed interrupt arrives. Any context. */
static bool set_irr(struct vlapic *l, uint8_t vector, bool level)
{
    if (!sw_enabled(l))
        return false;
    if (vector < 16) {
        error(l, ESR_RECV_ILLEGAL);
        return true;
    }
    if (level)
        bit_set(l->tmr, vector);
    else
        bit_clear(l->tmr, vector);
    bool was = bit_set(l->irr, vector);
    look_again(l);
    if (!was)
        vcpu_kick(l->vcpu);
    return true;
}

/* SDM 3, 11.5.3: errors collect until a write of ESR shows them; the first raises the error interrupt. */
static void error(struct vlapic *l, uint32_t bit)
{
    uint32_t was = __atomic_fetch_or(&l->esr_pending, bit, __ATOMIC_SEQ_CST);
    uint32_t lvt = l->lvt[LVT_ERROR];
    if (!(was & bit) && !(lvt & LVT_MASKED) && (lvt & 0xff) >= 16)
        set_irr(l, (uint8_t)lvt, false);
}

static bool takes_extint(const struct vlapic *l)
{
    return l->vcpu->id == 0 && (!hw_enabled(l) || (l->lvt[LVT_LINT0] & (LVT_MASKED | 0x700)) == APIC_EXTINT << 8);
}

void vlapic_pic_raised(struct platform *p)
{
    struct vcpu *v = p->vm->vcpus ? p->vm->vcpus[0] : NULL;
    if (!v || !v->vlapic)
        return;
    look_again(v->vlapic);
    vcpu_kick(v);
}

int vlapic_pending(struct vcpu *v)
{
    struct vlapic *l = v->vlapic;
    if (likely(!__atomic_load_n(&l->look, __ATOMIC_RELAXED)))
        return -1;
    settle(l);
    __atomic_store_n(&l->look, false, __ATOMIC_SEQ_CST);
    int vector = -1;
    l->from_pic = false;
    if (__atomic_load_n(&l->platform->pic.output, __ATOMIC_SEQ_CST) && takes_extint(l)) {
        uint64_t flags = spin_lock_irqsave(&l->platform->irq_lock);
        vector = vpic_peek(&l->platform->pic);
        spin_unlock_irqrestore(&l->platform->irq_lock, flags);
        l->from_pic = vector >= 0;
    }
    l->masked = 0;
    if (vector < 0 && sw_enabled(l)) {
        int irr = highest(l->irr);
        if (irr >= 0 && ((uint32_t)irr & 0xf0) > (ppr(l) & 0xf0))
            vector = irr;
        else if (irr >= 0 && ((uint32_t)irr & 0xf0) > in_service_class(l))
            l->masked = (uint8_t)(irr >> 4);
    }
    if (vector >= 0)
        look_again(l);
    else if (l->pv_eoi)
        offer_pv_eoi(l);
    return vector;
}

uint8_t vlapic_masked(const struct vcpu *v) { return ((const struct vlapic *)v->vlapic)->masked; }
bool vlapic_has_any(struct vcpu *v) { return vlapic_pending(v) >= 0; }

void vlapic_accept(struct vcpu *v, uint8_t vector)
{
    struct vlapic *l = v->vlapic;
    settle(l);
    if (l->from_pic) {
        l->from_pic = false;
        vpic_accept(l->platform, vector);
    } else if (bit_test(l->irr, vector)) { /* not: the PIC withdrew it after pending() said so */
        bit_clear(l->irr, vector);
        bit_set(l->isr, vector);
    }
    look_again(l);
}

void vlapic_tpr_changed(struct vcpu *v, uint8_t cr8)
{
    struct vlapic *l = v->vlapic;
    if (l->tpr >> 4 == (cr8 & 0xfu))
        return;
    l->tpr = (cr8 & 0xfu) << 4;
    look_again(l);
}

uint8_t vlapic_get_cr8(struct vcpu *v) { return (uint8_t)(((struct vlapic *)v->vlapic)->tpr >> 4); }

/* ---- interprocessor and device interrupts ------------------------------------------------------------------------- */

static bool matches(const struct vlapic *l, uint32_t dest, bool logical, bool wide)
{
    if (dest == (wide ? 0xffffffffu : 0xffu))
        return true;
    if (!logical)
        return dest == l->vcpu->id;
    if (x2apic(l)) {
        uint32_t id = l->vcpu->id, ldr = (id & ~0xfu) << 12 | 1u << (id & 0xf);
        return dest >> 16 == ldr >> 16 && (dest & ldr & 0xffff);
    }
    uint32_t mda = dest & 0xff, ldr = l->ldr >> 24;
    if (dest > 0xff)
        return false;
    if (l->dfr >> 28 == 0xf)
        return mda & ldr;
    return mda >> 4 == ldr >> 4 && (mda & ldr & 0xf); /* cluster model */
}

static bool deliver(struct vlapic *l, enum apic_delivery mode, uint8_t vector, bool level)
{
    struct vcpu *v = l->vcpu;
    switch (mode) {
    case APIC_FIXED: case APIC_LOWEST:
        return set_irr(l, vector, level);
    case APIC_NMI:
        v->nmi_pending = true;
        break;
    case APIC_INIT:
        v->init_pending = true;
        break;
    case APIC_SIPI:
        v->sipi_vector = vector;
        __atomic_store_n(&v->sipi_pending, true, __ATOMIC_SEQ_CST);
        break;
    default: /* SMI: there is no SMM; ExtINT through a redirection entry: LINT0 is the way */
        return false;
    }
    vcpu_kick(v);
    return true;
}

bool vlapic_route(struct platform *p, uint32_t dest, bool logical, bool wide, enum apic_delivery mode, uint8_t vector, bool level)
{
    struct vm *vm = p->vm;
    bool taken = false;
    unsigned first = mode == APIC_LOWEST ? __atomic_fetch_add(&p->lowest_next, 1, __ATOMIC_RELAXED) : 0;
    for (unsigned k = 0; vm->vcpus && k < vm->vcpu_count; k++) {
        struct vcpu *v = vm->vcpus[(first + k) % vm->vcpu_count];
        if (!v || !v->vlapic || !hw_enabled(v->vlapic) || !matches(v->vlapic, dest, logical, wide))
            continue;
        taken |= deliver(v->vlapic, mode, vector, level);
        if (taken && mode == APIC_LOWEST)
            break;
    }
    return taken;
}

bool vlapic_post(struct vcpu *v, bool nmi, uint8_t vector)
{
    return hw_enabled(v->vlapic) && deliver(v->vlapic, nmi ? APIC_NMI : APIC_FIXED, vector, false);
}

static void send_ipi(struct vlapic *l, uint64_t icr)
{
    uint8_t vector = (uint8_t)icr;
    enum apic_delivery mode = icr >> 8 & 7;
    bool logical = icr >> 11 & 1, assert = icr >> 14 & 1, level = icr >> 15 & 1;
    unsigned shorthand = icr >> 18 & 3;
    if ((mode == APIC_FIXED || mode == APIC_LOWEST) && vector < 16) {
        error(l, ESR_SEND_ILLEGAL);
        return;
    }
    if ((mode == APIC_INIT && level && !assert) || mode == APIC_RESERVED || mode == APIC_SMI || mode == APIC_EXTINT)
        return; /* INIT level de-assert only sets arbitration IDs, which nothing here has */
    if (shorthand == 0) {
        vlapic_route(l->platform, x2apic(l) ? (uint32_t)(icr >> 32) : (uint32_t)(icr >> 56), logical, x2apic(l), mode, vector, false);
        return;
    }
    struct vm *vm = l->platform->vm;
    for (unsigned n = 0; n < vm->vcpu_count; n++) {
        struct vcpu *v = vm->vcpus[n];
        if (v && v->vlapic && (shorthand == 1 ? v == l->vcpu : shorthand == 2 || v != l->vcpu))
            deliver(v->vlapic, mode, vector, false);
    }
}

/* ---- timer ----------------------------------------------------------------------------------------------------------- */

static uint64_t divisor(const struct vlapic *l)
{
    unsigned code = (l->divide_config & 3) | (l->divide_config >> 1 & 4);
    return code == 7 ? 1 : 2u << code;
}

static uint64_t guest_tsc(const struct vlapic *l) { return time_tsc() + l->vcpu->tsc_offset; }

static void arm_deadline(struct vlapic *l)
{
    uint64_t tsc = guest_tsc(l), left = l->tsc_deadline > tsc ? l->tsc_deadline - tsc : 0;
    /* A far deadline is looked at again every 2^40 ticks: no overflow in the conversion. */
    vtimer_arm(&l->timer, platform_now_ns(l->platform) + time_tsc_to_ns(MIN(left, BIT64(40))));
}

/* Interrupt context; the vCPU's thread changes timer registers only with the timer cancelled. */
static void timer_fired(void *dev)
{
    struct vlapic *l = dev;
    if (!vtimer_expired(&l->timer)) {
        if (l->timer.active)
            vtimer_arm(&l->timer, l->timer.due_ns);
        return;
    }
    if (timer_mode(l) == TIMER_DEADLINE) {
        if (guest_tsc(l) < l->tsc_deadline) {
            arm_deadline(l);
            return;
        }
        l->tsc_deadline = 0;
    } else if (timer_mode(l) == TIMER_PERIODIC) {
        vtimer_arm(&l->timer, vtimer_next_ns(l->timer.due_ns, l->period_ns, platform_now_ns(l->platform)));
    }
    if (!(l->lvt[LVT_TIMER] & LVT_MASKED))
        set_irr(l, (uint8_t)l->lvt[LVT_TIMER], false);
}

static void start_count(struct vlapic *l)
{
    vtimer_cancel(&l->timer);
    if (timer_mode(l) >= TIMER_DEADLINE || l->initial_count == 0)
        return;
    l->period_ns = l->initial_count * divisor(l); /* the bus clock is 1 GHz */
    if (timer_mode(l) == TIMER_PERIODIC)
        l->period_ns = MAX(l->period_ns, (uint64_t)VTIMER_MIN_PERIOD_NS);
    vtimer_arm(&l->timer, platform_now_ns(l->platform) + l->period_ns);
}

static uint32_t current_count(const struct vlapic *l)
{
    uint64_t now = platform_now_ns(l->platform), due = l->timer.due_ns;
    if (timer_mode(l) >= TIMER_DEADLINE || !l->timer.active || due <= now)
        return 0;
    return (uint32_t)MIN((due - now) / divisor(l), (uint64_t)l->initial_count);
}

static void set_deadline(struct vlapic *l, uint64_t deadline)
{
    if (timer_mode(l) != TIMER_DEADLINE)
        return;
    vtimer_cancel(&l->timer);
    l->tsc_deadline = deadline;
    if (deadline)
        arm_deadline(l);
}

/* The guest's TSC may have run on, or been moved, while the platform's clock stood still. */
void vlapic_resumed(struct vlapic *l)
{
    if (timer_mode(l) == TIMER_DEADLINE && l->tsc_deadline)
        arm_deadline(l);
}

/* The deadline is a time on the guest's TSC: it may lie behind it now, or further ahead. */
void vlapic_tsc_changed(struct vcpu *v)
{
    struct vlapic *l = v->vlapic;
    if (timer_mode(l) != TIMER_DEADLINE)
        return;
    vtimer_cancel(&l->timer); /* from here on it has fired, or will not */
    if (l->tsc_deadline)
        arm_deadline(l);
}

static void write_lvt(struct vlapic *l, enum vlapic_lvt n, uint32_t val)
{
    unsigned old_mode = timer_mode(l);
    val &= lvt_writable[n];
    if (!(l->svr & SVR_ENABLED))
        val |= LVT_MASKED;
    if (n != LVT_TIMER) {
        l->lvt[n] = val;
        look_again(l); /* LINT0 may have opened for the PIC */
        return;
    }
    if (old_mode == (val >> 17 & 3)) {
        l->lvt[n] = val;
        return;
    }
    vtimer_cancel(&l->timer); /* SDM 3, 11.5.4.1: a change of mode disarms */
    l->lvt[n] = val;
    l->tsc_deadline = 0;
    if (old_mode < TIMER_DEADLINE && timer_mode(l) < TIMER_DEADLINE)
        start_count(l); /* one-shot <-> periodic keeps counting */
}

/* ---- registers -------------------------------------------------------------------------------------------------------- */

static bool read_reg(struct vlapic *l, uint32_t reg, uint32_t *val)
{
    unsigned word = reg >> 4 & 7;
    settle(l);
    switch (reg) {
    case REG_ID: *val = x2apic(l) ? l->vcpu->id : l->vcpu->id << 24; return true;
    case REG_VERSION: *val = 0x14 | (LVT_COUNT - 1) << 16; return true;
    case REG_TPR: *val = l->tpr; return true;
    case REG_PPR: *val = ppr(l); return true;
    case REG_LDR: *val = x2apic(l) ? (l->vcpu->id & ~0xfu) << 12 | 1u << (l->vcpu->id & 0xf) : l->ldr; return true;
    case REG_SVR: *val = l->svr; return true;
    case REG_ISR ... REG_ISR + 0x70: *val = (uint32_t)(l->isr[word / 2] >> 32 * (word & 1)); return true;
    case REG_TMR ... REG_TMR + 0x70: *val = (uint32_t)(l->tmr[word / 2] >> 32 * (word & 1)); return true;
    case REG_IRR ... REG_IRR + 0x70: *val = (uint32_t)(l->irr[word / 2] >> 32 * (word & 1)); return true;
    case REG_ESR: *val = l->esr; return true;
    case REG_ICR: *val = (uint32_t)l->icr; return true;
    case REG_LVT ... REG_LVT + 0x50: *val = l->lvt[(reg - REG_LVT) >> 4]; return true;
    case REG_TMICT: *val = l->initial_count; return true;
    case REG_TMCCT: *val = current_count(l); return true;
    case REG_TDCR: *val = l->divide_config; return true;
    }
    if (x2apic(l) || (reg != REG_APR && reg != REG_EOI && reg != REG_DFR && reg != REG_ICR2))
        return false;
    *val = reg == REG_DFR ? l->dfr : reg == REG_ICR2 ? (uint32_t)(l->icr >> 32) : 0;
    return true;
}

static void write_svr(struct vlapic *l, uint32_t val)
{
    l->svr = val & 0x1ff; /* directed EOI is not offered */
    if (!(l->svr & SVR_ENABLED))
        for (unsigned n = 0; n < LVT_COUNT; n++)
            l->lvt[n] |= LVT_MASKED;
    look_again(l);
}

static bool write_reg(struct vlapic *l, uint32_t reg, uint32_t val)
{
    settle(l);
    switch (reg) {
    case REG_TPR:
        l->tpr = val & 0xff;
        hvm()->set_cr8(l->vcpu, (uint8_t)(l->tpr >> 4));
        look_again(l);
        return true;
    case REG_EOI: end_of_interrupt(l); return true;
    case REG_SVR: write_svr(l, val); return true;
    case REG_ESR: l->esr = __atomic_exchange_n(&l->esr_pending, 0, __ATOMIC_SEQ_CST); return true;
    case REG_ICR:
        l->icr = (l->icr & ~UINT64_C(0xffffffff)) | (val & 0xccfff);
        send_ipi(l, l->icr);
        return true;
    case REG_LVT ... REG_LVT + 0x50: write_lvt(l, (reg - REG_LVT) >> 4, val); return true;
    case REG_TMICT:
        if (timer_mode(l) < TIMER_DEADLINE) {
            vtimer_cancel(&l->timer);
            l->initial_count = val;
            start_count(l);
        }
        return true;
    case REG_TDCR: {
        uint32_t left = current_count(l);
        bool running = l->timer.active && timer_mode(l) < TIMER_DEADLINE;
        if (running)
            vtimer_cancel(&l->timer);
        l->divide_config = val & 0xb;
        if (running) { /* what is left counts on at the new rate */
            l->period_ns = MAX(l->initial_count * divisor(l), timer_mode(l) == TIMER_PERIODIC ? (uint64_t)VTIMER_MIN_PERIOD_NS : 0);
            vtimer_arm(&l->timer, platform_now_ns(l->platform) + left * divisor(l));
        }
        return true;
    }
    }
    if (x2apic(l))
        return false;
    switch (reg) {
    case REG_LDR: l->ldr = val & 0xff000000; return true;
    case REG_DFR: l->dfr = val | 0x0fffffff; return true;
    case REG_ICR2: l->icr = (l->icr & 0xffffffff) | (uint64_t)(val & 0xff000000) << 32; return true;
    case REG_ID: return true; /* fixed, as on recent CPUs */
    }
    return false;
}

/* The xAPIC page. Only aligned 32-bit accesses are defined; other reads give bytes of the register, other writes do nothing. */
void vlapic_mmio(struct vcpu *v, void *dev, uint64_t offset, unsigned size, bool write, uint64_t *val)
{
    (void)dev;
    struct vlapic *l = v->vlapic;
    uint32_t reg = (uint32_t)offset & ~0xfu, r = 0;
    if (!hw_enabled(l) || x2apic(l) || offset >= PAGE_SIZE) {
        if (!write)
            *val = ~UINT64_C(0);
        return;
    }
    if (write) {
        if ((offset & 0xf) == 0 && size >= 4 && !write_reg(l, reg, (uint32_t)*val))
            error(l, ESR_BAD_REG);
        return;
    }
    if (!read_reg(l, reg, &r))
        error(l, ESR_BAD_REG);
    *val = (offset & 0xf) < 4 ? r >> 8 * (offset & 3) : 0;
}

/* ---- MSRs --------------------------------------------------------------------------------------------------------------- */

/* SDM 3, 11.12.5 and figure 11-27. The page cannot be moved: no known OS does, and a base elsewhere is #GP. */
static bool write_base(struct vlapic *l, uint64_t val)
{
    uint64_t fixed = GUEST_LAPIC_GPA | (l->base_msr & BASE_BSP), mode = val & (BASE_EN | BASE_EXTD), old = l->base_msr & (BASE_EN | BASE_EXTD);
    if ((val & ~(uint64_t)(BASE_EN | BASE_EXTD | BASE_BSP)) != GUEST_LAPIC_GPA || mode == BASE_EXTD ||
        (mode == BASE_EN && old == (BASE_EN | BASE_EXTD)) || (mode == (BASE_EN | BASE_EXTD) && old == 0))
        return false;
    if (mode == old)
        return true;
    if (mode == 0) /* disabling is a reset of everything but this MSR */
        vlapic_reset(l, false);
    l->base_msr = fixed | mode;
    if (mode & BASE_EXTD)
        l->icr = 0;
    look_again(l);
    return true;
}

bool vlapic_rdmsr(struct vcpu *v, uint32_t msr, uint64_t *value, bool *gp)
{
    struct vlapic *l = v->vlapic;
    uint32_t reg = (msr - MSR_X2APIC_FIRST) << 4, r = 0;
    *gp = false;
    *value = 0;
    if (msr == MSR_APIC_BASE) {
        *value = l->base_msr;
    } else if (msr == MSR_TSC_DEADLINE) {
        *value = timer_mode(l) == TIMER_DEADLINE ? l->tsc_deadline : 0;
    } else if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST) {
        return false;
    } else if (!x2apic(l)) {
        *gp = true;
    } else if (reg == REG_ICR) {
        *value = l->icr;
    } else {
        *gp = !read_reg(l, reg, &r);
        *value = r;
    }
    return true;
}

static bool x2apic_write(struct vlapic *l, uint32_t reg, uint64_t val)
{
    if (reg == REG_ICR) {
        if (val & 0xfff33000)
            return false;
        l->icr = val;
        send_ipi(l, val);
        return true;
    }
    if (val >> 32)
        return false;
    switch (reg) {
    case REG_SELF_IPI:
        if (val >> 8)
            return false;
        send_ipi(l, (val & 0xff) | 1u << 18);
        return true;
    case REG_EOI: case REG_ESR:
        return val == 0 && write_reg(l, reg, 0);
    case REG_TPR:
        return val <= 0xff && write_reg(l, reg, (uint32_t)val);
    case REG_SVR:
        return val <= 0x1ff && write_reg(l, reg, (uint32_t)val);
    case REG_TDCR:
        return !(val & ~UINT64_C(0xb)) && write_reg(l, reg, (uint32_t)val);
    case REG_LVT ... REG_LVT + 0x50: /* delivery status and remote IRR are read-only, the rest reserved */
        return !(val & ~(uint64_t)(lvt_writable[(reg - REG_LVT) >> 4] | 0x5000)) && write_reg(l, reg, (uint32_t)val);
    }
    return write_reg(l, reg, (uint32_t)val);
}

bool vlapic_wrmsr(struct vcpu *v, uint32_t msr, uint64_t value, bool *gp)
{
    struct vlapic *l = v->vlapic;
    *gp = false;
    if (msr == MSR_APIC_BASE)
        *gp = !write_base(l, value);
    else if (msr == MSR_TSC_DEADLINE)
        set_deadline(l, value);
    else if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST)
        return false;
    else
        *gp = !x2apic(l) || !x2apic_write(l, (msr - MSR_X2APIC_FIRST) << 4, value);
    return true;
}

/* ---- life cycle ----------------------------------------------------------------------------------------------------------- */

void vlapic_reset(struct vlapic *l, bool power_on)
{
    vtimer_cancel(&l->timer);
    settle(l);
    for (unsigned n = 0; n < 4; n++) {
        __atomic_store_n(&l->irr[n], 0, __ATOMIC_SEQ_CST);
        __atomic_store_n(&l->tmr[n], 0, __ATOMIC_SEQ_CST);
        l->isr[n] = 0;
    }
    if (power_on)
        l->base_msr = GUEST_LAPIC_GPA | BASE_EN | (l->vcpu->id == 0 ? BASE_BSP : 0);
    l->icr = l->tsc_deadline = l->period_ns = 0;
    l->tpr = l->ldr = l->esr = l->esr_pending = l->initial_count = l->divide_config = 0;
    l->dfr = 0xffffffff;
    l->svr = 0xff;
    for (unsigned n = 0; n < LVT_COUNT; n++)
        l->lvt[n] = LVT_MASKED;
    if (l->vcpu->id == 0) { /* virtual wire mode, as firmware leaves it: there is none to do it after an INIT */
        l->lvt[LVT_LINT0] = APIC_EXTINT << 8;
        l->lvt[LVT_LINT1] = APIC_NMI << 8;
    }
    l->from_pic = false;
    look_again(l);
}

/* One list for both directions. The timer is apart; `look` and from_pic are found anew. */
#define SAVED(S)                                                                                           \
    S(base_msr) S(icr) S(tsc_deadline) S(period_ns) S(tpr) S(ldr) S(dfr) S(svr) S(esr) S(esr_pending) S(initial_count) S(divide_config)

void vlapic_save(const struct vlapic *l, struct vlapic_saved *out)
{
    debug_assert(!l->pv_eoi && !l->pv_eoi_offered);
#define S(field) out->field = l->field;
    SAVED(S)
#undef S
    memcpy(out->irr, l->irr, sizeof(out->irr));
    memcpy(out->tmr, l->tmr, sizeof(out->tmr));
    memcpy(out->isr, l->isr, sizeof(out->isr));
    memcpy(out->lvt, l->lvt, sizeof(out->lvt));
    vtimer_save(&l->timer, &out->timer);
}

void vlapic_load(struct vlapic *l, const struct vlapic_saved *in)
{
    debug_assert(!l->pv_eoi && !l->pv_eoi_offered);
#define S(field) l->field = in->field;
    SAVED(S)
#undef S
    memcpy(l->irr, in->irr, sizeof(l->irr));
    memcpy(l->tmr, in->tmr, sizeof(l->tmr));
    memcpy(l->isr, in->isr, sizeof(l->isr));
    memcpy(l->lvt, in->lvt, sizeof(l->lvt));
    vtimer_load(&l->timer, &in->timer);
    l->from_pic = false;
    look_again(l);
}

struct vlapic *vlapic_create(struct platform *p, struct vcpu *v)
{
    struct vlapic *l = kzalloc(sizeof *l);
    if (!l)
        return NULL;
    l->vcpu = v;
    l->platform = p;
    vtimer_init(&l->timer, p, timer_fired, l);
    return l;
}

void vlapic_destroy(struct vlapic *l)
{
    if (!l)
        return;
    vtimer_fini(&l->timer);
    kfree(l);
}
