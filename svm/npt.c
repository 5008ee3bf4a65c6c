/*
 * Nested page-table entries (APM 2, 15.25): the long-mode format, walked as user accesses, so every level has U.
 *
 * The type is in bits 55..52, which the walker ignores in present entries and in others alike; an absent entry has only
 * P clear and keeps its payload inverted in the address field, where it can not be taken for memory that exists (AMD CPUs do
 * not forward from absent entries; an image that moves to one that does loses nothing). All zero is P2M_HOLE.
 */
#include "include/hv/p2m.h"

#include "include/hv/dmm.h"
#include "include/hw/paging.h"

#define TYPE_SHIFT 52
#define TYPE_MASK GENMASK64(55, 52)
#define MARK BIT64(56)
#define PAYLOAD_MASK GENMASK64(39, 0)
#define TYPE_BITS(t) ((p2m_entry_t)(t) << TYPE_SHIFT)

_Static_assert(P2M_HOLE == 0 && P2M_TYPE_COUNT <= 16, "four bits, and an empty table is all holes");

static p2m_entry_t make_table(uint64_t table_hpa)
{
    return table_hpa | PTE_P | PTE_W | PTE_U | TYPE_BITS(P2M_TABLE);
}

static p2m_entry_t make_leaf(enum p2m_type t, mfn_t mfn, unsigned level)
{
    return mfn_to_hpa(mfn) | PTE_P | PTE_U | (t == P2M_RW ? PTE_W : 0) | (level > 1 ? PTE_PS : 0) | TYPE_BITS(t);
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

static mfn_t npt_mfn_of(p2m_entry_t e) { return hpa_to_mfn(e & PTE_ADDR_MASK); }
static uint64_t payload_of(p2m_entry_t e) { return ~(e >> PAGE_SHIFT) & PAYLOAD_MASK; }
static bool is_large(p2m_entry_t e, unsigned level) { return level > 1 && (e & PTE_P) && (e & PTE_PS); }
static bool accessed(p2m_entry_t e) { return e & PTE_A; }
static bool dirty(p2m_entry_t e) { return e & PTE_D; }
static p2m_entry_t clear_accessed(p2m_entry_t e) { return e & ~PTE_A; }
static p2m_entry_t clear_dirty(p2m_entry_t e) { return e & ~PTE_D; }
static uint64_t accessed_mask(void) { return PTE_A; }
static uint64_t dirty_mask(void) { return PTE_D; }

static bool permits(p2m_entry_t e, unsigned access)
{
    return (e & PTE_P) && (!(access & DMM_WRITE) || (e & PTE_W)) && (!(access & DMM_EXEC) || !(e & PTE_NX));
}

const struct p2m_format p2m_format_npt = {
    .name = "npt", .make_table = make_table, .make_leaf = make_leaf, .make_nonpresent = make_nonpresent, .type_of = type_of,
    .type_shift = TYPE_SHIFT,
    .mfn_of = npt_mfn_of, .payload_of = payload_of, .is_large = is_large, .accessed = accessed, .dirty = dirty,
    .clear_accessed = clear_accessed, .clear_dirty = clear_dirty, .permits = permits,
    .accessed_mask = accessed_mask, .dirty_mask = dirty_mask, .mark = MARK,
};
