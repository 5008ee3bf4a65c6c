/* TEST-SOURCES: boot/unpack.c */
/* TEST-LIBS: -ldeflate */
/*
 * The hypervisor as loaders carry it: what went in comes out, and nothing else ever does. Bits are turned over everywhere, the stream is cut
 * off anywhere, followed by more, and its header says other sizes; memory is of exactly the sizes that are named, so that the sanitizer
 * sees a byte too many.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <libdeflate.h>
#include "boot/unpack.h"
#include "lib/string.h"
#include <cmocka.h>

/* Text, noise, zeroes and repetitions: blocks of every kind. */
static uint8_t *contents(size_t bytes)
{
    uint8_t *out = malloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        out[i] = i % 1024 < 256 ? (uint8_t)rand() : i % 1024 < 512 ? 0 : i % 1024 < 768 ? (uint8_t)"the hypervisor "[i % 15] : (uint8_t)(i / 1024);
    return out;
}

static uint8_t *pack(const uint8_t *data, size_t bytes, size_t *packed_bytes)
{
    struct libdeflate_compressor *c = libdeflate_alloc_compressor(12);
    size_t bound = libdeflate_zlib_compress_bound(c, bytes);
    struct packed_header h = {PACKED_MAGIC, (uint32_t)bytes};
    uint8_t *out = malloc(sizeof(h) + bound);
    memcpy(out, &h, sizeof(h));
    *packed_bytes = sizeof(h) + libdeflate_zlib_compress(c, data, bytes, out + sizeof(h), bound);
    libdeflate_free_compressor(c);
    return realloc(out, *packed_bytes);
}

/* As the loader does it. NULL: refused. */
static uint8_t *unpacked(const uint8_t *packed, size_t packed_bytes, size_t *bytes)
{
    uint8_t *exact = malloc(packed_bytes + !packed_bytes), *out = NULL;
    memcpy(exact, packed, packed_bytes);
    if (unpack_size(exact, packed_bytes, bytes) == UNPACK_OK) {
        out = malloc(*bytes);
        if (unpack(exact, packed_bytes, out, *bytes) != UNPACK_OK) {
            free(out);
            out = NULL;
        }
    }
    free(exact);
    return out;
}

static void comes_out_again(void **state)
{
    static const size_t sizes[] = {1, 2, 3, 100, 4096, 70000, 1000000, PACKED_MAX_BYTES};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        size_t packed_bytes, bytes;
        uint8_t *data = contents(sizes[i]), *packed = pack(data, sizes[i], &packed_bytes), *again = unpacked(packed, packed_bytes, &bytes);
        assert_non_null(again);
        assert_int_equal(bytes, sizes[i]);
        assert_memory_equal(data, again, bytes);
        free(data), free(packed), free(again);
    }
}

/* Padding bits of the stream may differ. Whatever is accepted has to be what went in. */
static void any_bit(void **state)
{
    size_t packed_bytes, bytes, accepted = 0;
    uint8_t *data = contents(6000), *packed = pack(data, 6000, &packed_bytes);
    for (size_t bit = 0; bit < 8 * packed_bytes; bit++) {
        packed[bit / 8] ^= (uint8_t)(1 << bit % 8);
        uint8_t *again = unpacked(packed, packed_bytes, &bytes);
        if (again) {
            assert_int_equal(bytes, 6000);
            assert_memory_equal(data, again, bytes);
            accepted++;
        }
        free(again);
        packed[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_in_range(accepted, 0, 7);
    free(data), free(packed);
}

static void many_bytes(void **state)
{
    size_t packed_bytes, bytes;
    uint8_t *data = contents(100000), *packed = pack(data, 100000, &packed_bytes), *copy = malloc(packed_bytes);
    srand(1);
    for (int round = 0; round < 3000; round++) {
        memcpy(copy, packed, packed_bytes);
        size_t at = (size_t)rand() % packed_bytes, n = 1 + (size_t)rand() % 64;
        for (size_t i = at; i < at + n && i < packed_bytes; i++)
            copy[i] = (uint8_t)rand();
        uint8_t *again = unpacked(copy, packed_bytes, &bytes);
        if (again) {
            assert_int_equal(bytes, 100000);
            assert_memory_equal(data, again, bytes);
        }
        free(again);
    }
    free(data), free(packed), free(copy);
}

static void cut_off_or_followed(void **state)
{
    size_t packed_bytes, bytes;
    uint8_t *data = contents(6000), *packed = pack(data, 6000, &packed_bytes);
    for (size_t n = 0; n < packed_bytes; n++)
        assert_null(unpacked(packed, n, &bytes));
    packed = realloc(packed, packed_bytes + 1);
    packed[packed_bytes] = 0;
    assert_null(unpacked(packed, packed_bytes + 1, &bytes));
    free(data), free(packed);
}

static void other_sizes(void **state)
{
    static const uint32_t sizes[] = {0, 1, 5999, 6001, 12000, PACKED_MAX_BYTES, PACKED_MAX_BYTES + 1, UINT32_MAX};
    size_t packed_bytes, bytes;
    uint8_t *data = contents(6000), *packed = pack(data, 6000, &packed_bytes), out[6000];
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        memcpy(packed + offsetof(struct packed_header, bytes), &sizes[i], sizeof(sizes[i]));
        assert_null(unpacked(packed, packed_bytes, &bytes));
        assert_int_not_equal(unpack(packed, packed_bytes, out, sizeof(out)), UNPACK_OK);
    }
    free(data), free(packed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(comes_out_again), cmocka_unit_test(any_bit), cmocka_unit_test(many_bytes),
                                       cmocka_unit_test(cut_off_or_followed), cmocka_unit_test(other_sizes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
