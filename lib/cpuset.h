/* A set of physical CPUs, by index. */
#ifndef HV_LIB_CPUSET_H
#define HV_LIB_CPUSET_H

#include "include/hv/types.h"

#define CPUSET_MAX 256
struct cpu_set { uint64_t bits[CPUSET_MAX / 64]; };

static inline bool cpu_set_has(const struct cpu_set *s, unsigned cpu) { return s->bits[cpu / 64] >> cpu % 64 & 1; }
static inline void cpu_set_add(struct cpu_set *s, unsigned cpu) { s->bits[cpu / 64] |= BIT64(cpu % 64); }
static inline void cpu_set_remove(struct cpu_set *s, unsigned cpu) { s->bits[cpu / 64] &= ~BIT64(cpu % 64); }
static inline void cpu_set_fill(struct cpu_set *s)
{
    for (unsigned n = 0; n < CPUSET_MAX / 64; n++)
        s->bits[n] = UINT64_MAX;
}
static inline bool cpu_set_is_full(const struct cpu_set *s)
{
    for (unsigned n = 0; n < CPUSET_MAX / 64; n++)
        if (s->bits[n] != UINT64_MAX)
            return false;
    return true;
}

/* "0-3,5" or "all"; false: malformed, empty, or a number beyond CPUSET_MAX. */
bool cpu_set_parse(struct cpu_set *s, const char *text);
/* The same form, of the CPUs below `count`. */
void cpu_set_format(const struct cpu_set *s, unsigned count, char *out, size_t size);

#endif
