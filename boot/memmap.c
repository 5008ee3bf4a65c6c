/*
 * Normalising a firmware's memory map.
 *
 * Firmware's list is sorted on most machines and disjoint on nearly all. Trusting either would mean handing out a frame
 * that something else uses on the machine where it is not so. Here each elementary interval between two
 * neighbouring edges gets the most restrictive type of all the ranges that cover it, and enum boot_mem_type is numbered
 * in that order: free RAM loses to everything, memory known to be bad to nothing. Carving the hypervisor's
 * image out of "loader data" is then no special case: it is one more range. Quadratic in a few hundred ranges, once.
 */
#include "boot/memmap.h"

_Static_assert(BOOT_MEM_USABLE < BOOT_MEM_LOADER && BOOT_MEM_LOADER < BOOT_MEM_IMAGE &&
               BOOT_MEM_IMAGE < BOOT_MEM_ACPI_RECLAIM && BOOT_MEM_ACPI_RECLAIM < BOOT_MEM_ACPI_NVS &&
               BOOT_MEM_ACPI_NVS < BOOT_MEM_RUNTIME && BOOT_MEM_RUNTIME < BOOT_MEM_RESERVED &&
               BOOT_MEM_RESERVED < BOOT_MEM_MMIO && BOOT_MEM_MMIO < BOOT_MEM_BAD, "ascending restriction");

#define EFI_MEMORY_WRITE_BACK BIT64(3)
#define ADDRESS_LIMIT BIT64(52) /* physical addresses end here at the latest (AMD APM 2, 5.3) */

void memmap_init(struct memmap *m, struct boot_mem_range *in, uint64_t *edges, size_t max)
{
    *m = (struct memmap){.in = in, .edges = edges, .max = max};
}

bool boot_mem_is_ram(uint32_t type)
{
    return type >= BOOT_MEM_USABLE && type <= BOOT_MEM_RUNTIME;
}

enum boot_mem_type memmap_efi_type(uint32_t efi_type, uint64_t attribute)
{
    static const uint8_t types[] = {
        [1] = BOOT_MEM_LOADER, BOOT_MEM_LOADER, BOOT_MEM_USABLE, BOOT_MEM_USABLE /* boot services */, BOOT_MEM_RUNTIME, BOOT_MEM_RUNTIME,
        BOOT_MEM_USABLE, BOOT_MEM_BAD, BOOT_MEM_ACPI_RECLAIM, BOOT_MEM_ACPI_NVS, BOOT_MEM_MMIO, BOOT_MEM_MMIO,
    };
    if (efi_type >= sizeof(types) || !types[efi_type])
        return BOOT_MEM_RESERVED; /* also types that nobody here knows yet */
    if (types[efi_type] == BOOT_MEM_USABLE && !(attribute & EFI_MEMORY_WRITE_BACK))
        return BOOT_MEM_RESERVED; /* uncacheable RAM is of no use */
    return types[efi_type];
}

void memmap_add(struct memmap *m, uint64_t base, uint64_t size, enum boot_mem_type type)
{
    if (base >= ADDRESS_LIMIT || size == 0)
        return;
    uint64_t end = size > ADDRESS_LIMIT - base ? ADDRESS_LIMIT : base + size;
    if (type == BOOT_MEM_USABLE) {
        base = ALIGN_UP(base, PAGE_SIZE);
        end = ALIGN_DOWN(end, PAGE_SIZE);
    } else {
        base = ALIGN_DOWN(base, PAGE_SIZE);
        end = ALIGN_UP(end, PAGE_SIZE);
    }
    if (base >= end)
        return;
    if (m->count == m->max) {
        m->overflow = true;
        return;
    }
    m->in[m->count++] = (struct boot_mem_range){.base = base, .size = end - base, .type = type};
}

static void sort_edges(uint64_t *e, size_t n)
{
    for (size_t i = 1; i < n; i++) { /* nearly sorted already: insertion sort is linear then */
        uint64_t v = e[i];
        size_t j = i;
        for (; j > 0 && e[j - 1] > v; j--)
            e[j] = e[j - 1];
        e[j] = v;
    }
}

/* The most restrictive type over [base, base + 1 page), 0 if nothing covers it. */
static uint32_t type_at(const struct memmap *m, uint64_t base)
{
    uint32_t type = 0;
    for (size_t i = 0; i < m->count; i++)
        if (base >= m->in[i].base && base - m->in[i].base < m->in[i].size)
            type = MAX(type, m->in[i].type);
    return type;
}

size_t memmap_normalise(struct memmap *m, struct boot_mem_range *out, size_t max)
{
    size_t edges = 0, needed = 0;
    for (size_t i = 0; i < m->count; i++) {
        m->edges[edges++] = m->in[i].base;
        m->edges[edges++] = m->in[i].base + m->in[i].size;
    }
    sort_edges(m->edges, edges);

    uint64_t last_end = 0;
    uint32_t last_type = 0;
    for (size_t i = 0; i + 1 < edges; i++) {
        uint64_t base = m->edges[i], end = m->edges[i + 1];
        uint32_t type = base < end ? type_at(m, base) : 0;
        if (type == 0)
            continue;
        if (type == last_type && base == last_end) {
            if (needed <= max)
                out[needed - 1].size += end - base;
        } else {
            if (needed < max)
                out[needed] = (struct boot_mem_range){.base = base, .size = end - base, .type = type};
            needed++;
        }
        last_type = type;
        last_end = end;
    }
    return needed;
}
