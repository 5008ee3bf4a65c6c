/* Reverse maps: which p2m entries lead to a shared frame. The frame's share lock (share.h) is held throughout. */
#ifndef HV_MM_DMM_RMAP_H
#define HV_MM_DMM_RMAP_H

#include "mm/dmm/frame.h"

#define RMAP_MAX_USERS 1024u   /* bounds every walk; a further duplicate begins a new copy */

enum rmap_result { RMAP_OK, RMAP_FULL, RMAP_NO_MEMORY };

/* A FRAME_SHARED gets its first user / one more / loses one, who must be there (returns how many are left). `refs` follows. */
void rmap_first(struct frame *f, uint16_t space_id, uint64_t gfn);
enum rmap_result rmap_add(struct frame *f, uint16_t space_id, uint64_t gfn);
static inline uint32_t rmap_remove(struct frame *f, uint16_t space_id, uint64_t gfn);
bool rmap_has(const struct frame *f, uint16_t space_id, uint64_t gfn);
/* Any one of the users; there is one. */
uint16_t rmap_any_space(const struct frame *f);

/* What a record says in `tag` if its users are in chunks; no space has id 4095. And a user in a chunk, or alone in a record's `where`. */
#define RMAP_CHUNKED 0xffffffu
static inline bool rmap_is_chunked(const struct frame *f) { return f->tag == RMAP_CHUNKED; }
static inline uint64_t rmap_user(uint16_t space_id, uint64_t gfn) { return (uint64_t)space_id << 40 | gfn; }
/* Of two users in a chunk one leaves: the other is alone in the record. */
void rmap_leave_one(struct frame *f, uint64_t user);
uint32_t rmap_remove_rare(struct frame *f, uint16_t space_id, uint64_t gfn);
static inline uint32_t rmap_remove(struct frame *f, uint16_t space_id, uint64_t gfn)
{
    if (unlikely(f->refs != 2 || !rmap_is_chunked(f)))
        return rmap_remove_rare(f, space_id, gfn);
    rmap_leave_one(f, rmap_user(space_id, gfn));
    return 1;
}

/* Calls cb for each user. */
void rmap_each(const struct frame *f, void (*cb)(uint16_t space_id, uint64_t gfn, void *arg), void *arg);

/* For the audit: how many users a map really lists; frames taken and records in use. */
uint32_t rmap_count(const struct frame *f);
void rmap_census(uint64_t *pages, uint64_t *chunks);

#endif
