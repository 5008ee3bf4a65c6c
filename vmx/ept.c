/*
 * EPT entries (SDM 3, 29.3.2): read, write, execute in bits 2..0, memory type in 5..3, the rest much as in ordinary tables. (The
 * file has the name of its format, as svm/npt.c has.)
 *
 * An entry with bits 2..0 clear is absent and the CPU ignores all others, so the type is in bits 55..52, which it ignores in every entry,
 * and an absent entry's payload is inverted in the address field, where a CPU that forwards from absent entries (L1TF) finds no memory
 * that exists. All zero is P2M_HOLE. Tables give all rights: the leaf alone decides. Execute-only is never used; it
 * need not exist. Everything is write-back: the memory type of guest memory is not the guest's to choose (its PAT still is: bit 6, "ignore
 * PAT", stays clear).
 */
#include "include/hv/p2m.h"

#include "include/hv/dmm.h"
#include "include/hw/msr.h"
#include "include/hw/paging.h"
#include "vmx/vmx.h"

#define EPT_R BIT64(0)
#define EPT_W BIT64(1)
#define EPT_X BIT64(2)
#define EPT_RWX (EPT_R | EPT_W | EPT_X)
#define EPT_WB ((uint64_t)MEM_TYPE_WB << 3)
#define EPT_LARGE BIT64(7)
#define EPT_A BIT64(8)
#define EPT_D BIT64(9)

#define TYPE_SHIFT 52
#define TYPE_MASK GENMASK64(55, 52)
#define MARK BIT64(56)
#define PAYLOAD_MASK GENMASK64(39, 0)
#define TYPE_BITS(t) ((p2m_entry_t)(t) << TYPE_SHIFT)

_Static_assert(P2M_HOLE == 0 && P2M_TYPE_COUNT <= 16, "four bits, and an empty table is all holes");

/* Without A and D bits in hardware nothing may be taken for untouched or clean. */
static uint64_t always_a, always_d;

void vmx_ept_without_ad(void)
{
    always_a = EPT_A;
    always_d = EPT_D;
}

static p2m_entry_t make_table(uint64_t table_hpa)
{
    return table_hpa | EPT_RWX | TYPE_BITS(P2M_TABLE);
}

static p2m_entry_t make_leaf(enum p2m_type t, mfn_t mfn, unsigned level)
{
    return mfn_to_hpa(mfn) | EPT_R | EPT_X | (t == P2M_RW ? EPT_W : 0) | EPT_WB | (level > 1 ? EPT_LARGE : 0) | TYPE_BITS(t);
}

static p2m_entry_t make_nonpresent(enum p2m_type t, uint64_t payload)
{
    return t == P2M_HOLE ? 0 : TYPE_BITS(t) | (~payload & PAYLOAD_MASK) << PAGE_SHIFT;
}

static enum p2m_type type_of(p2m_entry_t e, unsigned level)
{
    (void)level;
    return (enum p2m_type)((e & TYPE_MASK) >> TYPE_SHIFT);
}

static mfn_t ept_mfn_of(p2m_entry_t e) { return hpa_to_mfn(e & PTE_ADDR_MASK); }
static uint64_t payload_of(p2m_entry_t e) { return ~(e >> PAGE_SHIFT) & PAYLOAD_MASK; }
static bool is_large(p2m_entry_t e, unsigned level) { return level > 1 && (e & EPT_RWX) && (e & EPT_LARGE); }
static bool accessed(p2m_entry_t e) { return (e | always_a) & EPT_A; }
static bool dirty(p2m_entry_t e) { return ((e & EPT_D) || (always_d && (e & EPT_W))); }
static p2m_entry_t clear_accessed(p2m_entry_t e) { return e & ~EPT_A; }
static p2m_entry_t clear_dirty(p2m_entry_t e) { return e & ~EPT_D; }
static uint64_t accessed_mask(void) { return always_a ? 0 : EPT_A; }
static uint64_t dirty_mask(void) { return always_d ? 0 : EPT_D; }

static bool permits(p2m_entry_t e, unsigned access)
{
    return (e & EPT_R) && (!(access & DMM_WRITE) || (e & EPT_W)) && (!(access & DMM_EXEC) || (e & EPT_X));
}

const struct p2m_format p2m_format_ept = {
    .name = "ept", .make_table = make_table, .make_leaf = make_leaf, .make_nonpresent = make_nonpresent, .type_of = type_of,
    .type_shift = TYPE_SHIFT,
    .mfn_of = ept_mfn_of, .payload_of = payload_of, .is_large = is_large, .accessed = accessed, .dirty = dirty,
    .clear_accessed = clear_accessed, .clear_dirty = clear_dirty, .permits = permits,
    .accessed_mask = accessed_mask, .dirty_mask = dirty_mask, .mark = MARK,
};
