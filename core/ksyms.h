/* Names for code addresses, from the table that tools/gen-ksyms links into the image. Any context, no locks. */
#ifndef HV_CORE_KSYMS_H
#define HV_CORE_KSYMS_H

#include "include/hv/types.h"

struct ksym_table {
    uint64_t base;                /* what the offsets count from */
    uint32_t text_bytes;          /* code ends here */
    uint32_t count;               /* 0: the image has no table */
    const uint32_t *offsets;      /* ascending */
    const uint32_t *name_offsets; /* into names */
    const char *names;
};

struct ksym { const char *name; uint32_t offset, size; };

/* The function that contains `addr`. False: none does. */
bool ksym_find(const struct ksym_table *t, uint64_t addr, struct ksym *out);
/* "name+0x1a/0x80", or the bare number if nothing is known, into buf; returns buf. */
const char *ksym_format(char *buf, size_t size, uint64_t addr);

#endif
