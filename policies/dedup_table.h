/* The scanner's memory of what it has seen: key -> frame. One thread. */
#ifndef HV_POLICIES_DEDUP_TABLE_H
#define HV_POLICIES_DEDUP_TABLE_H

#include "include/hv/dmm.h"

struct dedup_table {
    uint64_t *slots;       /* mfn in bits 63..24, tag in 23..0; 0: free */
    uint64_t sets;         /* of DEDUP_SET slots; a power of two */
    uint64_t wanted;       /* `sets` if memory had allowed */
    uint64_t used, evictions;
};
#define DEDUP_SET 16u

/* Room for `frames`; halves the wish until there is memory for it. False: there is none at all. */
bool dedup_table_init(struct dedup_table *t, uint64_t frames);
void dedup_table_fini(struct dedup_table *t);
/* Has the CPU fetch what a look for this key will touch. */
static inline void dedup_table_prefetch(const struct dedup_table *t, uint64_t key)
{
    const uint64_t *set = &t->slots[(key & (t->sets - 1)) * DEDUP_SET];
    __builtin_prefetch(set);
    __builtin_prefetch(set + DEDUP_SET / 2);
}
/* A frame other than `self` that was entered with this key and has not changed as far as anybody knows, rather one that is in no 2 MiB
 * mapping; *kind says what it is. INVALID_MFN: none. */
mfn_t dedup_table_find(struct dedup_table *t, uint64_t key, mfn_t self, enum dmm_candidate *kind);
/* Enters the page if it is not there yet; in place of `instead` if that is. */
void dedup_table_enter(struct dedup_table *t, uint64_t key, mfn_t mfn, gfn_t gfn, mfn_t instead);

#endif
