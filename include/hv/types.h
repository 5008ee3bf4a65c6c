/*
 * The vocabulary every file shares: frame-number types, page geometry, bit helpers.
 *
 * A guest frame number and a machine frame number are both "an address shifted right by 12", and mixing
 * them up is the classic bug of this kind of software. They are therefore different types, each a struct of
 * one member: passing one for the other does not compile, and gcc generates the same code as for integers.
 *
 *   gva  guest virtual address      gpa  guest physical address    gfn = gpa >> 12  (gfn_t)
 *   hva  host virtual (a pointer)   hpa  host physical address     mfn = hpa >> 12  (mfn_t)
 */
#ifndef HV_INCLUDE_HV_TYPES_H
#define HV_INCLUDE_HV_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_SHIFT 12
#define PAGE_SIZE (1UL << PAGE_SHIFT)
#define PAGE_MASK (~(PAGE_SIZE - 1))
#define LARGE_SHIFT 21
#define LARGE_SIZE (1UL << LARGE_SHIFT)
#define LARGE_PAGES 512UL /* 4 KiB pages in a 2 MiB page */
#define LARGE_ORDER 9

#define BIT64(n) (UINT64_C(1) << (n))
#define GENMASK64(hi, lo) ((~UINT64_C(0) >> (63 - (hi))) & (~UINT64_C(0) << (lo)))
#define FIELD_GET64(v, hi, lo) (((uint64_t)(v) & GENMASK64(hi, lo)) >> (lo))

#define KIB(n) ((uint64_t)(n) << 10)
#define MIB(n) ((uint64_t)(n) << 20)
#define GIB(n) ((uint64_t)(n) << 30)

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(p, type, member) ((type *)((char *)(p) - offsetof(type, member)))
#define ALIGN_UP(x, a) (((x) + ((a) - 1)) & ~((__typeof__(x))(a) - 1))
#define ALIGN_DOWN(x, a) ((x) & ~((__typeof__(x))(a) - 1))
#define IS_ALIGNED(x, a) (((x) & ((a) - 1)) == 0)
/* Each argument is read once: what another CPU changes cannot be one thing when it is compared and another when it is taken. */
#define MIN(a, b) CHOOSE_(a, <, b, __COUNTER__)
#define MAX(a, b) CHOOSE_(a, >, b, __COUNTER__)
#define CHOOSE_(a, is, b, n) CHOOSE_NAMED_(a, is, b, n) /* names of their own: these are nested */
#define CHOOSE_NAMED_(a, is, b, n) \
    ({ __typeof__(1 ? (a) : (b)) a_##n = (a), b_##n = (b); a_##n is b_##n ? a_##n : b_##n; })

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define UNUSED __attribute__((unused))
#define NORETURN __attribute__((noreturn))
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))
#define PACKED __attribute__((packed))

typedef struct { uint64_t v; } gfn_t;
typedef struct { uint64_t v; } mfn_t;

#define INVALID_FRAME (~UINT64_C(0))
#define INVALID_GFN ((gfn_t){INVALID_FRAME})
#define INVALID_MFN ((mfn_t){INVALID_FRAME})

static inline gfn_t gfn_of(uint64_t n) { return (gfn_t){n}; }
static inline mfn_t mfn_of(uint64_t n) { return (mfn_t){n}; }
static inline uint64_t gfn_to_gpa(gfn_t g) { return g.v << PAGE_SHIFT; }
static inline gfn_t gpa_to_gfn(uint64_t gpa) { return gfn_of(gpa >> PAGE_SHIFT); }
static inline uint64_t mfn_to_hpa(mfn_t m) { return m.v << PAGE_SHIFT; }
static inline mfn_t hpa_to_mfn(uint64_t hpa) { return mfn_of(hpa >> PAGE_SHIFT); }
static inline gfn_t gfn_add(gfn_t g, uint64_t n) { return gfn_of(g.v + n); }
static inline mfn_t mfn_add(mfn_t m, uint64_t n) { return mfn_of(m.v + n); }
static inline bool gfn_eq(gfn_t a, gfn_t b) { return a.v == b.v; }
static inline bool mfn_eq(mfn_t a, mfn_t b) { return a.v == b.v; }
static inline bool mfn_valid(mfn_t m) { return m.v != INVALID_FRAME; }

#endif
