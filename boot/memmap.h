/* From what a loader is told about memory, in any order and overlapping, to the sorted map of boot_info. Pure C. */
#ifndef HV_BOOT_MEMMAP_H
#define HV_BOOT_MEMMAP_H

#include "include/abi/boot_info.h"
#include "include/hv/types.h"

/* Raw ranges are collected in `in`; `edges` is scratch. The caller brings both, `max` and 2 * `max` entries. */
struct memmap {
    struct boot_mem_range *in;
    uint64_t *edges;
    size_t count, max;
    bool overflow;          /* more than `max` ranges were added: the map is incomplete */
};

void memmap_init(struct memmap *m, struct boot_mem_range *in, uint64_t *edges, size_t max);
/* Any base and size. RAM that is free shrinks to whole pages, everything else grows to them. */
void memmap_add(struct memmap *m, uint64_t base, uint64_t size, enum boot_mem_type type);
/* Writes at most `max` sorted, disjoint, merged ranges; returns how many it would have needed. */
size_t memmap_normalise(struct memmap *m, struct boot_mem_range *out, size_t max);
/* Of a UEFI memory descriptor, by its numbers (UEFI 2.10, table 7.6), for the time after boot services. */
enum boot_mem_type memmap_efi_type(uint32_t efi_type, uint64_t attribute);
/* Is this RAM, whoever uses it? */
bool boot_mem_is_ram(uint32_t type);

#endif
