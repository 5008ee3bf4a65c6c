/*
 * Symbol lookup by binary search. The table covers .text alone, in address order, without gaps: a symbol extends to the next
 * one, the last to the end of the code.
 */
#include "core/ksyms.h"
#include "include/abi/boot_info.h"
#include "lib/string.h"

extern const uint32_t ksym_count, ksym_offsets[], ksym_name_offsets[]; /* tools/gen-ksyms */
extern const char ksym_names[];
extern const char hv_text_end[]; /* linker.ld */

bool ksym_find(const struct ksym_table *t, uint64_t addr, struct ksym *out)
{
    if (!t->count || addr < t->base || addr - t->base >= t->text_bytes)
        return false;
    uint32_t offset = (uint32_t)(addr - t->base), low = 0, high = t->count; /* the answer is in [low-1, high-1] */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (t->offsets[middle] <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    if (!low)
        return false;
    uint32_t i = low - 1, end = i + 1 < t->count ? t->offsets[i + 1] : t->text_bytes;
    *out = (struct ksym){t->names + t->name_offsets[i], offset - t->offsets[i], end - t->offsets[i]};
    return true;
}

const char *ksym_format(char *buf, size_t size, uint64_t addr)
{
    const struct ksym_table t = {HV_LINK_BASE, (uint32_t)((uintptr_t)hv_text_end - HV_LINK_BASE), ksym_count, ksym_offsets,
                                 ksym_name_offsets, ksym_names};
    struct ksym s;
    if (ksym_find(&t, addr, &s))
        snprintf(buf, size, "%s+%#x/%#x", s.name, s.offset, s.size);
    else
        snprintf(buf, size, "%#lx", addr);
    return buf;
}
