/* What our Linux guest's one program does under other names than init. */
#ifndef HV_GUESTS_LINUX_CHECKS_H
#define HV_GUESTS_LINUX_CHECKS_H

#include <stdint.h>

/* What word i holds: of the seed, the pass and its place, so that neither an older self nor another page is taken for it. */
static inline uint64_t word_at(uint64_t seed, uint64_t pass, uint64_t i)
{
    uint64_t x = (i + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ (seed + pass * UINT64_C(0xd1342543de82ef95));
    x = (x ^ x >> 32) * UINT64_C(0xd6e8feb86659fd93);
    return x ^ x >> 29;
}

int smpcheck(int argc, char **argv);

#endif
