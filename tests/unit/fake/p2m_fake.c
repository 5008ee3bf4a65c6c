/*
 * A third entry format, as unlike NPT and EPT as the contract allows, so that nothing in the walker can depend on either: present is bit 2, large
 * bit 3, the type sits above the address, A and D are bits 10 and 11. A non-present payload is stored inverted.
 */
#include "tests/unit/fake/dmm_host.h"

#define F_WRITE BIT64(1)
#define F_PRESENT BIT64(2)
#define F_LARGE BIT64(3)
#define F_A BIT64(10)
#define F_D BIT64(11)
#define ADDR GENMASK64(51, 12)
#define TYPE_SHIFT 56

static p2m_entry_t make_table(uint64_t hpa) { return hpa | F_PRESENT | F_WRITE | (p2m_entry_t)P2M_TABLE << TYPE_SHIFT; }
static p2m_entry_t make_leaf(enum p2m_type t, mfn_t m, unsigned level)
{
    return mfn_to_hpa(m) | F_PRESENT | (t == P2M_RW ? F_WRITE : 0) | (level == 2 ? F_LARGE : 0) | (p2m_entry_t)t << TYPE_SHIFT;
}
static p2m_entry_t make_nonpresent(enum p2m_type t, uint64_t payload)
{
    return t == P2M_HOLE ? 0 : (~payload & GENMASK64(39, 0)) << 12 | (p2m_entry_t)t << TYPE_SHIFT;
}
static enum p2m_type type_of(p2m_entry_t e, unsigned level) { return (enum p2m_type)(e >> TYPE_SHIFT); }
static mfn_t fake_mfn_of(p2m_entry_t e) { return hpa_to_mfn(e & ADDR); }
static uint64_t payload_of(p2m_entry_t e) { return ~(e >> 12) & GENMASK64(39, 0); }
static bool is_large(p2m_entry_t e, unsigned level) { return level == 2 && (e & F_LARGE); }
static bool accessed(p2m_entry_t e) { return e & F_A; }
static bool dirty(p2m_entry_t e) { return e & F_D; }
static p2m_entry_t clear_accessed(p2m_entry_t e) { return e & ~F_A; }
static p2m_entry_t clear_dirty(p2m_entry_t e) { return e & ~F_D; }
static uint64_t accessed_mask(void) { return F_A; }
static uint64_t dirty_mask(void) { return F_D; }
static bool permits(p2m_entry_t e, unsigned access) { return (e & F_PRESENT) && (!(access & DMM_WRITE) || (e & F_WRITE)); }

const struct p2m_format p2m_format_fake = {
    .name = "fake", .make_table = make_table, .make_leaf = make_leaf, .make_nonpresent = make_nonpresent,
    .type_of = type_of, .type_shift = TYPE_SHIFT, .mfn_of = fake_mfn_of, .payload_of = payload_of, .is_large = is_large, .accessed = accessed,
    .dirty = dirty, .clear_accessed = clear_accessed, .clear_dirty = clear_dirty, .permits = permits,
    .accessed_mask = accessed_mask, .dirty_mask = dirty_mask, .mark = BIT64(9),
};
