/*
 * Taking a VM's state and putting it back; see saved.h.
 *
 * What the back end can be asked to ring for (interrupt and NMI windows) is not copied: a vCPU asks anew at its first look around. Neither are
 * caches (instruction lengths), statistics, and what belongs to the thread. flush_gen_seen becomes what no generation is, so that the first
 * entry forgets every translation of the vCPU's former life.
 */
#include "vm/saved.h"

#include "core/log.h"
#include "core/time.h"
#include "lib/string.h"
#include "mm/mm.h"

#define PART_ALIGN 64u

static size_t part_bytes(size_t bytes) { return ALIGN_UP(bytes, PART_ALIGN); }

void vm_give_up_pins(struct vm *vm)
{
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        pv_give_up_pins(vm->vcpus[n]);
}

/* One block: the structs, then the parts whose sizes others know. */
static struct vm_saved *allocate(const struct vm *vm)
{
    const struct vm_platform_ops *p = vm_platform();
    size_t head = part_bytes(sizeof(struct vm_saved) + vm->vcpu_count * sizeof(struct vcpu_saved));
    size_t each = part_bytes(fpu_copy_bytes()) + part_bytes(p->vcpu_saved_bytes);
    size_t bytes = head + part_bytes(p->saved_bytes) + vm->vcpu_count * each;
    struct vm_saved *s = kzalloc(bytes);
    if (!s)
        return NULL;
    char *at = (char *)s + head;
    s->bytes = bytes;
    s->vcpu_count = vm->vcpu_count;
    s->platform = at;
    at += part_bytes(p->saved_bytes);
    for (unsigned n = 0; n < vm->vcpu_count; n++, at += each) {
        s->vcpu[n].fpu = at;
        s->vcpu[n].lapic = at + part_bytes(fpu_copy_bytes());
    }
    return s;
}

static void save_vcpu(struct vcpu *v, struct vcpu_saved *s)
{
    memcpy(s->gpr, v->gpr, sizeof(s->gpr));
    memcpy(s->dr, v->dr, sizeof(s->dr));
    s->rip = v->rip;
    s->rflags = v->rflags;
    s->tsc_shift = v->tsc_offset - v->vm->tsc_offset;
    s->state = v->state;
    s->init_pending = v->init_pending;
    s->sipi_pending = v->sipi_pending;
    s->sipi_vector = v->sipi_vector;
    s->nmi_pending = v->nmi_pending;
    s->wait_for_sipi = v->wait_for_sipi;
    s->cr8_seen = v->cr8_seen;
    s->msrs = *v->msrs;
    fpu_copy_out(v, s);
    pv_save(v, &s->pv);
    hvm()->get_sregs(v, &s->sregs);
    hvm()->save(v, &s->hvm);
    vm_platform()->vcpu_save(v, s->lapic);
}

struct vm_saved *vm_save(struct vm *vm)
{
    struct vm_saved *s = allocate(vm);
    if (!s)
        return NULL;
    s->guest_tsc = vm->paused_tsc + vm->tsc_offset;
    s->load_due = vm->load_due;
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        save_vcpu(vm->vcpus[n], &s->vcpu[n]);
    vm_platform()->save(vm, s->platform);
    return s;
}

static void load_vcpu(struct vcpu *v, const struct vcpu_saved *s)
{
    memcpy(v->gpr, s->gpr, sizeof(v->gpr));
    memcpy(v->dr, s->dr, sizeof(v->dr));
    v->dr_changed = true;
    v->rip = s->rip;
    v->rflags = s->rflags;
    v->init_pending = s->init_pending;
    v->sipi_pending = s->sipi_pending;
    v->sipi_vector = s->sipi_vector;
    v->nmi_pending = s->nmi_pending;
    v->wait_for_sipi = s->wait_for_sipi;
    v->cr8_seen = s->cr8_seen;
    v->irq_window = false;
    v->tpr_alarm = 0;
    v->flush_gen_seen = 0;
    memset(v->len_cache, 0, sizeof(v->len_cache));
    *v->msrs = s->msrs;
    fpu_copy_in(v, s);
    pv_load(v, &s->pv);
    v->pv.steal_due = true; /* there is something to do before the next entry: saved.h */
    hvm()->set_sregs(v, &s->sregs);
    hvm()->load(v, &s->hvm);
    vcpu_set_tsc_offset(v, v->vm->tsc_offset + s->tsc_shift);
    vm_platform()->vcpu_load(v, s->lapic);
    v->state = s->state;
}

void vm_load(struct vm *vm, const struct vm_saved *s)
{
    debug_assert(s->vcpu_count == vm->vcpu_count);
    vm->paused_tsc = time_tsc();
    vm->tsc_offset = s->guest_tsc - vm->paused_tsc;
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        load_vcpu(vm->vcpus[n], &s->vcpu[n]);
    vm_platform()->load(vm, s->platform);
    vm->load_due = s->load_due;
    vm->generation = GENERATION_NEW;
}
