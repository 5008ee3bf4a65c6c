/*
 * The guest's own page tables, walked in software for the emulator and for reports (APM 2, chapter 5; SDM 3, chapter 4).
 *
 * One loop serves all four modes: a mode is only the number of levels, the size of an entry and the level at which a large page
 * may end the walk. Permission bits are gathered on the way down and judged once at the end, as the CPU does. Accessed and
 * dirty bits are set with compare-and-swap in the guest's memory, because its other CPUs may change the same entry: if it
 * moved, the walk begins anew.
 */
#include "vm/vm_internal.h"

#include "x86/cpu.h"

enum { PF_P = 1, PF_W = 2, PF_U = 4, PF_RSVD = 8, PF_I = 16 };
enum { PTE_PRESENT = 1, PTE_WRITE = 2, PTE_USER = 4, PTE_ACCESSED = 0x20, PTE_DIRTY = 0x40, PTE_LARGE = 0x80 };
#define PTE_NX_BIT BIT64(63)
#define WALK_RETRIES 8

struct walk_mode { unsigned levels, entry_bytes, index_bits; uint64_t root; bool nx; };

struct walk_entry { uint64_t gpa, value; };

static struct walk_mode mode_of(struct vcpu *v, uint64_t cr4, uint64_t efer)
{
    uint64_t cr3 = hvm()->get_reg(v, VCPU_CR3);
    bool nx = efer & EFER_NXE;
    if (efer & EFER_LMA)
        return (struct walk_mode){4, 8, 9, cr3 & GENMASK64(51, 12), nx};
    if (cr4 & CR4_PAE)
        return (struct walk_mode){3, 8, 9, cr3 & GENMASK64(31, 5), nx};
    return (struct walk_mode){2, 4, 10, cr3 & GENMASK64(31, 12), false};
}

static bool read_entry(struct vcpu *v, const struct walk_mode *m, uint64_t gpa, uint64_t *value)
{
    if (!dmm_peek_u64(v->space, gpa & ~UINT64_C(7), value))
        return false;
    if (m->entry_bytes == 4)
        *value = (uint32_t)(*value >> (gpa & 4 ? 32 : 0));
    return true;
}

/* False: it is no longer what we read. */
static bool set_bits(struct vcpu *v, const struct walk_mode *m, struct walk_entry *e, uint64_t bits)
{
    if ((e->value & bits) == bits)
        return true;
    uint8_t *page = dmm_pin(v->space, gpa_to_gfn(e->gpa), true, NULL);
    if (!page)
        return true; /* without memory for a copy the entry stays as it is: the CPU will set the bits itself */
    void *at = page + (e->gpa & (PAGE_SIZE - 1));
    uint64_t wanted = e->value | bits;
    uint32_t old32 = (uint32_t)e->value;
    uint64_t old64 = e->value;
    bool done = m->entry_bytes == 8
        ? __atomic_compare_exchange_n((uint64_t *)at, &old64, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)
        : __atomic_compare_exchange_n((uint32_t *)at, &old32, (uint32_t)wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    dmm_unpin(v->space, gpa_to_gfn(e->gpa));
    e->value = wanted;
    return done;
}

/* Bits that must be zero; `leaf` a large page. The PDPTEs of PAE have their own; bit 5 is one too, but CPUs in software set it as the
 * accessed bit that it is elsewhere. */
static bool reserved_bits(const struct walk_mode *m, unsigned level, uint64_t e, bool leaf)
{
    uint64_t high = GENMASK64(51, 0) & ~((UINT64_C(1) << cpu_info()->phys_bits) - 1);
    if (m->entry_bytes == 4)
        return leaf && level == 2 && (e & GENMASK64(21, 21));
    if (m->levels == 3 && level == 3)
        return e & (high | GENMASK64(63, 52) | GENMASK64(2, 1) | GENMASK64(8, 6));
    if ((e & high) || (!m->nx && (e & PTE_NX_BIT)) || (m->levels == 3 && (e & GENMASK64(62, 52))))
        return true;
    if (level == 4)
        return e & PTE_LARGE;
    return leaf && level > 1 && (e & GENMASK64(12 + 9 * (level - 1) - 1, 13));
}

static uint64_t leaf_gpa(const struct walk_mode *m, unsigned level, uint64_t e, uint64_t gva)
{
    uint64_t mask = (UINT64_C(1) << (PAGE_SHIFT + m->index_bits * (level - 1))) - 1;
    if (m->entry_bytes == 4 && level == 2) /* PSE-36: bits 20..13 are address bits 39..32 */
        return (e & GENMASK64(31, 22)) | FIELD_GET64(e, 20, 13) << 32 | (gva & mask);
    return (e & GENMASK64(51, 12) & ~mask) | (gva & mask);
}

/* Whether the rights gathered (`all`: AND of the entries, U and W; `nx`) allow it. */
static bool allowed(struct vcpu *v, uint64_t cr0, uint64_t cr4, uint64_t all, bool nx, unsigned access, bool user)
{
    bool user_page = all & PTE_USER;
    if (user && !user_page)
        return false;
    if (access & DMM_EXEC)
        return !nx && (user || !user_page || !(cr4 & CR4_SMEP));
    if (!user && user_page && (cr4 & CR4_SMAP) && !(v->rflags & RFLAGS_AC))
        return false;
    return !(access & DMM_WRITE) || (all & PTE_WRITE) || (!user && !(cr0 & CR0_WP));
}

enum step { STEP_DONE, STEP_FAULT, STEP_BAD_GPA, STEP_MOVED };

static enum step walk_once(struct vcpu *v, const struct walk_mode *m, uint64_t cr0, uint64_t cr4, uint64_t gva, unsigned access, bool user,
    uint64_t *gpa, uint32_t *error)
{
    struct walk_entry path[4];
    uint64_t table = m->root, all = PTE_WRITE | PTE_USER;
    bool nx = false;
    unsigned level = m->levels;
    *error = 0;
    for (;; level--) {
        struct walk_entry *e = &path[level - 1];
        unsigned index = (unsigned)(gva >> (PAGE_SHIFT + m->index_bits * (level - 1))) & ((1u << m->index_bits) - 1);
        bool pdpte = m->levels == 3 && level == 3;
        e->gpa = table + (uint64_t)(pdpte ? index & 3 : index) * m->entry_bytes;
        if (!read_entry(v, m, e->gpa, &e->value))
            return STEP_BAD_GPA;
        if (!(e->value & PTE_PRESENT))
            return STEP_FAULT;
        bool can_end = m->entry_bytes == 4 ? level == 2 && (cr4 & CR4_PSE) : level == 2 || (level == 3 && !pdpte);
        bool leaf = level == 1 || (can_end && (e->value & PTE_LARGE));
        if (reserved_bits(m, level, e->value, leaf)) {
            *error = PF_P | PF_RSVD;
            return STEP_FAULT;
        }
        if (!pdpte) {
            all &= e->value;
            nx |= m->nx && (e->value & PTE_NX_BIT);
        }
        if (leaf)
            break;
        table = e->value & (m->entry_bytes == 4 ? GENMASK64(31, 12) : GENMASK64(51, 12));
    }
    if (!allowed(v, cr0, cr4, all, nx, access, user)) {
        *error = PF_P;
        return STEP_FAULT;
    }
    for (unsigned n = m->levels == 3 ? 2 : m->levels; n >= level; n--)
        if (!set_bits(v, m, &path[n - 1], PTE_ACCESSED | (n == level && (access & DMM_WRITE) ? PTE_DIRTY : 0)))
            return STEP_MOVED;
    *gpa = leaf_gpa(m, level, path[level - 1].value, gva);
    return STEP_DONE;
}

enum guest_walk_result guest_walk(struct vcpu *v, uint64_t gva, unsigned access, bool user, uint64_t *gpa, uint32_t *pf_error)
{
    uint64_t cr0 = hvm()->get_reg(v, VCPU_CR0), cr4 = hvm()->get_reg(v, VCPU_CR4), efer = hvm()->get_reg(v, VCPU_EFER);
    enum step s = STEP_MOVED;
    *pf_error = 0;
    if (!(cr0 & CR0_PG)) {
        *gpa = (uint32_t)gva;
        return GUEST_WALK_OK;
    }
    struct walk_mode m = mode_of(v, cr4, efer);
    if (!(efer & EFER_LMA))
        gva = (uint32_t)gva;
    for (unsigned n = 0; n < WALK_RETRIES && s == STEP_MOVED; n++)
        s = walk_once(v, &m, cr0, cr4, gva, access, user, gpa, pf_error);
    if (s == STEP_DONE)
        return GUEST_WALK_OK;
    if (s == STEP_BAD_GPA)
        return GUEST_WALK_BAD_GPA;
    /* A table that changes under us again and again: the guest gets a fault that is spurious to it, and tries again. */
    *pf_error |= (access & DMM_WRITE ? PF_W : 0) | (user ? PF_U : 0);
    if ((access & DMM_EXEC) && (m.nx || (cr4 & CR4_SMEP)))
        *pf_error |= PF_I;
    return GUEST_WALK_FAULT;
}
