/*
 * Storing zeros to memory that is zero.
 *
 * Operating systems clear pages before they use them, some of them all memory at boot, and a page that is cleared and not used yet holds nothing worth
 * a frame. To an EMPTY page (or one that shows the zero page) REP STOS of zero changes nothing, so for whole pages it can be carried out by
 * moving its registers on. The store still needs the guest's permission: each page is translated by the guest's own tables, which
 * sets accessed and dirty bits as the CPU would. Whatever is not plainly such an instruction is left to the CPU, with frames; so is every fault that
 * it may raise, and an instruction that our decoder does not know but the CPU may.
 *
 * The page was looked at under its lock and read as zero; a vCPU that writes to it at the same time comes after the store.
 */
#include "vm/vm_internal.h"

#include "core/time.h"
#include "vm/shortcut.h"
#include "x86/cpu.h"

#define DR7_ENABLED 0xffu

#define PAGES_MAX 64u /* per exit: interrupts are taken in between */

/* One REP STOS, as decoded. */
struct zero_run { unsigned size; uint64_t count, offset, mask; uint8_t len; };

/* The cheap questions first, before anything is fetched. A step or a watchpoint wants each iteration to happen; and an event that was being delivered
 * when the fault came (it is the stack that was not there) is to be delivered before the instruction goes on. */
static bool could_be(struct vcpu *v)
{
    return vcpu_may_clear_page(v) && !(v->exit.u.fault.gpa % PAGE_SIZE) && !(v->rflags & (RFLAGS_DF | RFLAGS_TF)) && !hvm()->event_pending(v) &&
           !(hvm()->get_reg(v, VCPU_DR7) & DR7_ENABLED);
}

static bool decode_run(const struct emulate_state *s, const struct insn *i, struct zero_run *r)
{
    if (i->map != INSN_MAP_ONE || (i->opcode != 0xaa && i->opcode != 0xab) || !i->rep || i->lock || i->mode == INSN_MODE_16 || i->addr_size < 4)
        return false;
    r->size = i->opcode == 0xaa ? 1 : i->op_size;
    r->mask = i->addr_size == 8 ? UINT64_MAX : UINT32_MAX;
    r->count = s->gpr[GPR_RCX] & r->mask;
    r->offset = s->gpr[GPR_RDI] & r->mask;
    r->len = i->len;
    uint64_t value_mask = r->size == 8 ? UINT64_MAX : BIT64(8 * r->size) - 1;
    return !(s->gpr[GPR_RAX] & value_mask);
}

/* Is the page at ES:offset all the guest's to write, and zero without a frame? */
static bool page_is_zero(struct vcpu *v, const struct emulate_state *s, uint64_t offset)
{
    struct emulate_fault ignored;
    uint64_t gva, last, gpa;
    uint32_t error;
    if (!emulate_linear(s, SEG_ES, offset, 1, true, &gva, &ignored) || gva % PAGE_SIZE ||
        !emulate_linear(s, SEG_ES, offset + PAGE_SIZE - 1, 1, true, &last, &ignored) || last != gva + PAGE_SIZE - 1)
        return false;
    return guest_walk(v, gva, DMM_READ | DMM_WRITE, s->cpl == 3, &gpa, &error) == GUEST_WALK_OK &&
           dmm_is_zero_without_frame(v->space, gpa_to_gfn(gpa));
}

bool zero_store(struct vcpu *v)
{
    struct emulate_outcome out;
    struct emulate_state s;
    struct insn i;
    struct zero_run r;
    if (!could_be(v))
        return false;
    uint64_t begun = time_tsc(), pages = 0;
    if (emulate_vcpu_look(v, &s, &i, &out) != EMULATE_DONE || !decode_run(&s, &i, &r))
        return false;
    const uint64_t per_page = PAGE_SIZE / r.size;
    while (pages < PAGES_MAX && r.count >= per_page && page_is_zero(v, &s, r.offset)) {
        r.count -= per_page;
        r.offset = (r.offset + PAGE_SIZE) & r.mask;
        pages++;
    }
    if (!pages)
        return false;
    v->gpr[GPR_RCX] = r.count; /* 32-bit registers are written with zeros above, as by the CPU */
    v->gpr[GPR_RDI] = r.offset;
    dmm_zero_stored(v->space, pages, (time_tsc() - begun) / pages);
    if (!r.count)
        vcpu_advance_rip(v, r.len);
    return true;
}
