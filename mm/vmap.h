/* The virtual region of mm/vmap.c, for mm/ itself. Thread context. */
#ifndef HV_MM_VMAP_H
#define HV_MM_VMAP_H
#include "include/hv/types.h"
/* Addresses for `pages` pages, with an unmapped one below; 0 if the region is full. */
uint64_t vmap_reserve(uint64_t pages);
void vmap_release(uint64_t va, uint64_t pages);
/* The same with zeroed frames of type FRAME_HV_HEAP behind them; NULL if there are none. */
void *vmap_alloc(uint64_t pages);
void vmap_free(void *p, uint64_t pages);
bool vmap_contains(const void *p);
#endif
