/*
 * A set-associative table of 8-byte slots.
 *
 * A chained table would double the memory and take a cache miss more for each page; open addressing with deletion needs tombstones, and frames
 * come and go without telling us. Here a key has one set of 16 slots, two adjacent cache lines, and nothing is ever deleted: a slot whose frame
 * is no candidate any more (it was freed, or written to and tagged anew) is recognized when it is looked at, and free. At half load hardly any
 * set is full; then one entry goes, which costs a chance to share and nothing else.
 */
#include "policies/dedup_table.h"

#include "mm/mm.h"

#define SLOT_TAG_MASK GENMASK64(23, 0)

static uint64_t slot_of(mfn_t m, uint32_t tag) { return m.v << 24 | tag; }
static mfn_t slot_mfn(uint64_t slot) { return mfn_of(slot >> 24); }
static uint32_t slot_tag(uint64_t slot) { return (uint32_t)(slot & SLOT_TAG_MASK); }

/* Never 0, which says that a frame has none. */
static uint32_t tag_of(uint64_t key) { return (uint32_t)(key >> 40) | !(key >> 40); }
static uint64_t *set_of(const struct dedup_table *t, uint64_t key) { return &t->slots[(key & (t->sets - 1)) * DEDUP_SET]; }

bool dedup_table_init(struct dedup_table *t, uint64_t frames)
{
    *t = (struct dedup_table){ .sets = 1 };
    while (t->sets * DEDUP_SET < frames + frames / 2)
        t->sets *= 2;
    t->wanted = t->sets;
    while (!(t->slots = kzalloc(t->sets * DEDUP_SET * sizeof(*t->slots))) && t->sets > 1)
        t->sets /= 2;
    return t->slots != NULL;
}

void dedup_table_fini(struct dedup_table *t)
{
    kfree(t->slots);
    *t = (struct dedup_table){ 0 };
}

mfn_t dedup_table_find(struct dedup_table *t, uint64_t key, mfn_t self, enum dmm_candidate *kind)
{
    uint64_t *set = set_of(t, key);
    uint32_t tag = tag_of(key);
    mfn_t found = INVALID_MFN;
    *kind = DMM_CANDIDATE_NONE;
    for (unsigned n = 0; n < DEDUP_SET && *kind != DMM_CANDIDATE; n++) {
        if (!set[n] || slot_tag(set[n]) != tag || mfn_eq(slot_mfn(set[n]), self))
            continue;
        enum dmm_candidate is = dmm_frame_is_candidate(slot_mfn(set[n]), tag);
        if (is == DMM_CANDIDATE_NONE) {
            set[n] = 0;
            t->used--;
        } else if (is == DMM_CANDIDATE || *kind == DMM_CANDIDATE_NONE) {
            found = slot_mfn(set[n]);
            *kind = is;
        }
    }
    return found;
}

/* A free slot; failing that one that is stale; failing that anyone's. */
static uint64_t *place_in(struct dedup_table *t, uint64_t *set, uint64_t key)
{
    for (unsigned n = 0; n < DEDUP_SET; n++)
        if (!set[n])
            return &set[n];
    t->used--;
    for (unsigned n = 0; n < DEDUP_SET; n++)
        if (dmm_frame_is_candidate(slot_mfn(set[n]), slot_tag(set[n])) == DMM_CANDIDATE_NONE)
            return &set[n];
    t->evictions++;
    return &set[key >> 32 & (DEDUP_SET - 1)];
}

void dedup_table_enter(struct dedup_table *t, uint64_t key, mfn_t mfn, gfn_t gfn, mfn_t instead)
{
    uint64_t *set = set_of(t, key), *place = NULL, is = slot_of(mfn, tag_of(key)), old = mfn_valid(instead) ? slot_of(instead, tag_of(key)) : is;
    for (unsigned n = 0; n < DEDUP_SET && !(place && *place == is); n++)
        if (set[n] && (set[n] == is || set[n] == old))
            place = &set[n];
    if (!place) {
        place = place_in(t, set, key);
        t->used++;
    }
    *place = is;
    dmm_frame_set_tag(mfn, gfn, tag_of(key));
}
