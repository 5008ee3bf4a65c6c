/*
 * The TSC as the clock: found against a slower clock of known frequency, then used with multiplications only.
 *
 * Reading the reference takes a microsecond or more (a port), and on a shared host either read may be held up for
 * milliseconds. So each end point is the best of several readings of the reference bracketed by two TSC readings:
 * the narrower the bracket, the better the time is known. Of several rounds the one with the narrowest brackets counts,
 * and two rounds must agree roughly, else the reference is not believed.
 *
 * Conversions use 128-bit products of the interval with a 44-bit fraction: exact to 2^-44 per tick, and no overflow for
 * any interval of 64 bits.
 */
#include "x86/tsc.h"
#include "x86/cpu.h"

#define ROUNDS 5
#define ROUND_NS UINT64_C(10000000)
#define READINGS 5
#define STUCK_SPINS 2000000u
#define FRACTION 44

static uint64_t khz, ns_per_tick, ticks_per_ns; /* fixed point, FRACTION bits */
static const char *source = "none";
static uint64_t boot_tsc, epoch_s;

uint64_t tsc_khz(void) { return khz; }
const char *tsc_source(void) { return source; }
uint64_t tsc_boot(void) { return boot_tsc; }
void tsc_mark_boot(void) { boot_tsc = rdtsc(); }

void tsc_set_khz(uint64_t new_khz, const char *name)
{
    khz = new_khz;
    source = name;
    ns_per_tick = (UINT64_C(1000000) << FRACTION) / khz; /* just fits: 10^6 < 2^20 */
    ticks_per_ns = mul_div64(khz, BIT64(FRACTION), 1000000) + 1; /* up: a deadline in ticks is never early */
}

uint64_t tsc_to_ns(uint64_t tsc) { return (uint64_t)((unsigned __int128)tsc * ns_per_tick >> FRACTION); }

uint64_t ns_to_tsc(uint64_t ns)
{
    unsigned __int128 t = ((unsigned __int128)ns * ticks_per_ns >> FRACTION) + 1;
    return t > UINT64_MAX ? UINT64_MAX : (uint64_t)t;
}

void tsc_pvclock_scale(uint32_t *mul, int8_t *shift)
{
    /* ns per tick = 10^6 / khz = mul / 2^32 * 2^shift. First make the fraction less than 1, then take 64 bits of it. */
    uint64_t divisor = khz;
    int8_t s = 0;
    for (; divisor <= 1000000; s++)
        divisor <<= 1;
    uint64_t fraction = mul_div64(1000000, BIT64(63), divisor) << 1;
    for (; !(fraction >> 63); s--)
        fraction <<= 1;
    *mul = (uint32_t)(fraction >> 32);
    *shift = s;
}

/* ---- calibration ------------------------------------------------------------------------------------------- */

struct instant { uint64_t tsc, ref, uncertainty; };

static struct instant read_instant(const struct ref_clock *ref)
{
    struct instant best = {.uncertainty = UINT64_MAX};
    for (unsigned i = 0; i < READINGS; i++) {
        uint64_t before = rdtsc_ordered();
        uint64_t r = ref->read();
        uint64_t after = rdtsc_ordered();
        if (after - before < best.uncertainty)
            best = (struct instant){before + (after - before) / 2, r, after - before};
    }
    return best;
}

/* One round; 0: the reference stands still. */
static uint64_t measure_khz(const struct ref_clock *ref, uint64_t *uncertainty)
{
    uint64_t mask = GENMASK64(ref->bits - 1, 0), need = ref->hz * ROUND_NS / 1000000000, seen = 0;
    struct instant start = read_instant(ref);
    for (unsigned stuck = 0; ((ref->read() - start.ref) & mask) < need;) {
        uint64_t now = (ref->read() - start.ref) & mask;
        stuck = now == seen ? stuck + 1 : 0;
        if (stuck > STUCK_SPINS)
            return 0;
        seen = now;
    }
    struct instant end = read_instant(ref);
    uint64_t ref_ticks = (end.ref - start.ref) & mask;
    *uncertainty = start.uncertainty + end.uncertainty;
    return ref_ticks ? mul_div64(end.tsc - start.tsc, ref->hz, ref_ticks * 1000) : 0;
}

bool tsc_calibrate(const struct ref_clock *ref)
{
    uint64_t best = 0, best_uncertainty = UINT64_MAX, second = 0, second_uncertainty = UINT64_MAX;
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t uncertainty, result = measure_khz(ref, &uncertainty);
        if (!result)
            return false;
        if (uncertainty < best_uncertainty) {
            second = best;
            second_uncertainty = best_uncertainty;
            best = result;
            best_uncertainty = uncertainty;
        } else if (uncertainty < second_uncertainty) {
            second = result;
            second_uncertainty = uncertainty;
        }
    }
    uint64_t difference = best > second ? best - second : second - best;
    if (difference > best / 20 || best < 1000 || best > 100000000) /* 5 %; 1 MHz .. 100 GHz */
        return false;
    tsc_set_khz(best, ref->name);
    return true;
}

void tsc_delay_ns(uint64_t ns)
{
    uint64_t start = rdtsc(), ticks = khz ? ns_to_tsc(ns) : ns * 4;
    while (rdtsc() - start < ticks)
        cpu_pause();
}

void tsc_set_epoch(uint64_t unix_seconds_now)
{
    uint64_t up = tsc_to_ns(rdtsc() - boot_tsc) / 1000000000;
    epoch_s = unix_seconds_now > up ? unix_seconds_now - up : 0;
}

uint64_t tsc_epoch_s(void) { return epoch_s; }
