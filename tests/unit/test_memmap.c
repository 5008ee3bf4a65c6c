/* TEST-SOURCES: boot/memmap.c */
/*
 * The memory map's normalisation against a model that paints pages one by one: random overlapping ranges, and after each round every
 * page must have the type that the painting says, with ranges sorted, disjoint, merged and page-aligned.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "boot/memmap.h"

#define MODEL_PAGES 256
#define MAX_IN 64

static struct boot_mem_range in[MAX_IN], out[2 * MAX_IN];
static uint64_t edges[2 * MAX_IN];

static void random_maps_match_the_model(void **state)
{
    (void)state;
    srand(1);
    for (int round = 0; round < 20000; round++) {
        uint8_t model[MODEL_PAGES] = {0};
        struct memmap m;
        memmap_init(&m, in, edges, MAX_IN);
        int ranges = rand() % 20;
        for (int i = 0; i < ranges; i++) {
            uint64_t base = (uint64_t)rand() % (MODEL_PAGES * PAGE_SIZE), size = (uint64_t)rand() % (40 * PAGE_SIZE);
            if (rand() % 2) { /* half of them page-aligned, so that ranges meet exactly */
                base = ALIGN_DOWN(base, PAGE_SIZE);
                size = ALIGN_DOWN(size, PAGE_SIZE);
            }
            size = MIN(size, MODEL_PAGES * PAGE_SIZE - base);
            enum boot_mem_type type = BOOT_MEM_USABLE + rand() % BOOT_MEM_BAD;
            memmap_add(&m, base, size, type);
            for (uint64_t p = 0; p < MODEL_PAGES && size; p++) {
                uint64_t start = p * PAGE_SIZE, end = start + PAGE_SIZE;
                bool inside = base <= start && end <= base + size, touches = base < end && start < base + size;
                if ((type == BOOT_MEM_USABLE ? inside : touches) && model[p] < type)
                    model[p] = (uint8_t)type;
            }
        }
        size_t n = memmap_normalise(&m, out, ARRAY_SIZE(out));
        assert_true(n <= ARRAY_SIZE(out));
        uint8_t got[MODEL_PAGES] = {0};
        for (size_t i = 0; i < n; i++) {
            assert_true(IS_ALIGNED(out[i].base, PAGE_SIZE) && IS_ALIGNED(out[i].size, PAGE_SIZE) && out[i].size > 0);
            if (i > 0) {
                uint64_t end = out[i - 1].base + out[i - 1].size;
                assert_true(end <= out[i].base);
                assert_false(end == out[i].base && out[i - 1].type == out[i].type);
            }
            for (uint64_t p = out[i].base / PAGE_SIZE; p < (out[i].base + out[i].size) / PAGE_SIZE; p++)
                got[p] = (uint8_t)out[i].type;
        }
        assert_memory_equal(got, model, sizeof(model));
    }
}

static void image_is_carved_out_of_loader_memory(void **state)
{
    (void)state;
    struct memmap m;
    memmap_init(&m, in, edges, MAX_IN);
    memmap_add(&m, MIB(1), MIB(15), BOOT_MEM_LOADER);
    memmap_add(&m, MIB(4), MIB(2), BOOT_MEM_IMAGE);
    memmap_add(&m, 0, MIB(1), BOOT_MEM_USABLE);
    memmap_add(&m, 0, PAGE_SIZE, BOOT_MEM_RESERVED);
    assert_int_equal(memmap_normalise(&m, out, ARRAY_SIZE(out)), 5);
    assert_int_equal(out[0].type, BOOT_MEM_RESERVED);
    assert_int_equal(out[1].base, PAGE_SIZE);
    assert_int_equal(out[2].type, BOOT_MEM_LOADER);
    assert_int_equal(out[3].base, MIB(4));
    assert_int_equal(out[3].size, MIB(2));
    assert_int_equal(out[3].type, BOOT_MEM_IMAGE);
    assert_int_equal(out[4].base, MIB(6));
}

/* Too few slots: nothing is written past the end, and the caller learns how many it takes. */
static void short_output_is_reported(void **state)
{
    (void)state;
    struct memmap m;
    memmap_init(&m, in, edges, MAX_IN);
    for (uint64_t i = 0; i < 8; i++) {
        memmap_add(&m, 2 * i * PAGE_SIZE, PAGE_SIZE, BOOT_MEM_USABLE);
        memmap_add(&m, (2 * i + 1) * PAGE_SIZE, PAGE_SIZE, BOOT_MEM_RESERVED);
    }
    memset(out, 0x55, sizeof(out));
    for (size_t max = 0; max < 16; max++) {
        struct boot_mem_range *exact = malloc(MAX(max, 1) * sizeof(*exact)); /* the sanitizer guards its end */
        assert_int_equal(memmap_normalise(&m, exact, max), 16);
        free(exact);
    }
}

static void hostile_ranges_do_no_harm(void **state)
{
    (void)state;
    struct memmap m;
    memmap_init(&m, in, edges, MAX_IN);
    memmap_add(&m, UINT64_MAX - 5, UINT64_MAX, BOOT_MEM_USABLE);
    memmap_add(&m, BIT64(52), PAGE_SIZE, BOOT_MEM_USABLE);
    memmap_add(&m, PAGE_SIZE, 0, BOOT_MEM_RESERVED);
    memmap_add(&m, PAGE_SIZE + 1, PAGE_SIZE, BOOT_MEM_USABLE); /* holds no whole page */
    assert_int_equal(memmap_normalise(&m, out, ARRAY_SIZE(out)), 0);
    memmap_add(&m, GIB(1), UINT64_MAX, BOOT_MEM_RESERVED); /* cut at the end of the address space */
    assert_int_equal(memmap_normalise(&m, out, ARRAY_SIZE(out)), 1);
    assert_int_equal(out[0].base + out[0].size, BIT64(52));

    for (size_t i = 0; i < MAX_IN + 3; i++)
        memmap_add(&m, i * 2 * PAGE_SIZE, PAGE_SIZE, BOOT_MEM_USABLE);
    assert_true(m.overflow);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_maps_match_the_model),
        cmocka_unit_test(image_is_carved_out_of_loader_memory),
        cmocka_unit_test(short_output_is_reported),
        cmocka_unit_test(hostile_ranges_do_no_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
