/* Names for code addresses, from the table that tools/gen-ksyms links into the image. Any context, no locks. */
#ifndef HV_CORE_KSYMS_H
#define HV_CORE_KSYMS_H

#include "include/hv/types.h"

#define KSYM_NAME_MAX 64 /* with the 0; also in tools/gen-ksyms */

/* What tools/gen-ksyms has written; its head says how. */
struct ksym_table {
    uint64_t base;             /* the first function */
    uint32_t bytes;            /* of `functions`; 0: the image has no table */
    uint32_t character_count, pair_count;
    const uint8_t *characters; /* codes from 0 */
    const uint8_t *pairs;      /* codes from character_count, two bytes each */
    const uint8_t *functions;
};

struct ksym { char name[KSYM_NAME_MAX]; uint32_t offset, size; };

/* The function that contains `addr`. False: none does, or the table is damaged on the way to it. */
bool ksym_find(const struct ksym_table *t, uint64_t addr, struct ksym *out);
/* "name+0x1a/0x80", or the bare number if nothing is known, into buf; returns buf. */
const char *ksym_format(char *buf, size_t size, uint64_t addr);

#endif
