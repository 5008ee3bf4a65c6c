/*
 * Memory before there is an allocator, and mappings at chosen addresses. Boot CPU only, interrupts off, until early_seal().
 */
#ifndef HV_MM_EARLY_H
#define HV_MM_EARLY_H

#include "include/hv/dmm.h"

struct boot_info;

/* Takes the usable ranges of the boot memory map as the stock. Ranges must be sorted and disjoint (boot_info.h). */
void early_init(const struct boot_info *bi);
/* `bytes` (a multiple of 4 KiB) of zeroed RAM aligned to `align` (a power of two >= 4 KiB); hpa, or 0 if there is none.
 * `purpose` is the type that the frames get once there is a frame table. Panics after early_seal(). */
uint64_t early_alloc(uint64_t bytes, uint64_t align, enum frame_type purpose);
/* One zeroed page below 1 MiB, where further CPUs begin in real mode; 0: there is none. */
uint64_t early_alloc_low(enum frame_type purpose);
/* Everything handed out so far, for the frame table. */
void early_for_each_taken(void (*cb)(uint64_t hpa, uint64_t bytes, enum frame_type purpose, void *arg), void *arg);
/* frame_alloc() works from here on. */
void early_seal(void);
bool early_is_sealed(void);

/* Our page tables: what CR3 is on every CPU. */
uint64_t hostmap_root_hpa(void);
/* Maps [va, va + bytes) of our address space to [hpa, ...), 4 KiB granular; replaces nothing: what is mapped already is a bug.
 * False: no frame for a table. Table pages come from early_alloc(), later from frame_alloc(). */
#define HOSTMAP_RW 1u
#define HOSTMAP_UC 2u   /* device memory */
bool hostmap_map(uint64_t va, uint64_t hpa, uint64_t bytes, unsigned flags);
/* The same with frames[0], frames[1] ... frames[pages - 1]. */
bool hostmap_map_frames(uint64_t va, const mfn_t *frames, uint64_t pages, unsigned flags);
/* Removes [va, va + bytes), 4 KiB leaves only; on return no CPU has the translations any more. Interrupts on, once there are other CPUs. */
void hostmap_unmap(uint64_t va, uint64_t bytes);
/* The hpa behind a mapped va; INVALID_FRAME if there is none. */
uint64_t hostmap_lookup(uint64_t va);

#endif
