/* Host memory above frames: our page tables, guarded stacks, small objects. Thread context unless said otherwise. */
#ifndef HV_MM_MM_H
#define HV_MM_MM_H
#include "include/hv/types.h"
struct boot_info;
/* Builds our own tables (direct map, W^X image, NX) and switches to them. Needs frame_init() before. */
void hostmap_init(const struct boot_info *bi);
/* Maps [hpa, hpa+size) as device memory (uncached, NX); NULL if out of room. Never undone. */
void *map_mmio(uint64_t hpa, size_t size);
/* Maps a single frame table page range etc. at a fixed VA; used at boot. */
/* A stack of `bytes` (multiple of 4 KiB) with an unmapped page below; returns its lowest usable byte, or NULL. */
void *stack_alloc(size_t bytes);
void stack_free(void *base, size_t bytes);
/* Small objects, 16-byte aligned (64 for >= 64 bytes), zeroed. NULL when out of frames. Sizes above a page come in whole
 * pages. kfree(NULL) is allowed. */
void *kzalloc(size_t bytes);
void kfree(void *p);
uint64_t kheap_bytes_in_use(void);
#endif
