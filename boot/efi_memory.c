/*
 * Memory as firmware gives it: allocation before, the map at the end.
 *
 * ExitBootServices() takes the key of the very latest map, and any allocation makes a new one; firmware may also refuse once
 * because an event handler ran in between (UEFI 2.10, 7.4.6). So everything that the last step needs is
 * allocated first, and the last step is only GetMemoryMap, ExitBootServices, and once more if it failed.
 */
#include "boot/loader.h"
#include "lib/string.h"

/* What core needs at the least beside image and boot files: its tables, the frame reserve, and room for one small VM. */
#define CORE_MIN_BYTES MIB(64)
/* Descriptors that may come to exist between measuring the map and fetching it for good. */
#define MAP_SLACK 64

static struct { uint8_t *raw; UINTN raw_bytes; struct memmap map; } final;

void *loader_alloc(uint64_t bytes, EFI_MEMORY_TYPE type, const char *what)
{
    EFI_PHYSICAL_ADDRESS at = 0;
    uint64_t pages = MAX(ALIGN_UP(bytes, PAGE_SIZE), PAGE_SIZE) / PAGE_SIZE;
    EFI_STATUS status = efi_bs->AllocatePages(AllocateAnyPages, type, pages, &at);
    if (EFI_ERROR(status))
        loader_halt("not enough memory for %s: needs %llu KiB in one piece, firmware has %llu KiB free in all", what,
                    (unsigned long long)(pages * 4), (unsigned long long)(loader_free_bytes() / 1024));
    memset((void *)at, 0, pages * PAGE_SIZE);
    return (void *)at;
}

void *loader_keep(uint64_t bytes, const char *what) { return loader_alloc(bytes, EfiLoaderData, what); }

void loader_free(void *p, uint64_t bytes)
{
    efi_bs->FreePages((EFI_PHYSICAL_ADDRESS)p, MAX(ALIGN_UP(bytes, PAGE_SIZE), PAGE_SIZE) / PAGE_SIZE);
}

/* Room for the map as it is now and a little more; boot-services memory, which we may still read right after. */
static void reserve_map_space(void)
{
    UINTN size = 0, key = 0, descriptor_bytes = 0;
    UINT32 version;
    efi_bs->GetMemoryMap(&size, NULL, &key, &descriptor_bytes, &version);
    if (descriptor_bytes < sizeof(EFI_MEMORY_DESCRIPTOR))
        loader_halt("firmware reports a memory map with descriptors of %llu bytes", (unsigned long long)descriptor_bytes);
    final.raw_bytes = size + MAP_SLACK * descriptor_bytes;
    size_t ranges = final.raw_bytes / descriptor_bytes + 2; /* + image, + page 0 */
    final.raw = loader_alloc(final.raw_bytes, EfiLoaderData, "the memory map");
    memmap_init(&final.map, loader_alloc(ranges * sizeof(struct boot_mem_range), EfiLoaderData, "the memory map"),
                loader_alloc(2 * ranges * sizeof(uint64_t), EfiLoaderData, "the memory map"), ranges);
}

/* Fetches firmware's map into `m`. */
static EFI_STATUS fetch_map(struct memmap *m, UINTN *key)
{
    UINTN size = final.raw_bytes, descriptor_bytes = 0;
    UINT32 version;
    EFI_STATUS status = efi_bs->GetMemoryMap(&size, (EFI_MEMORY_DESCRIPTOR *)final.raw, key, &descriptor_bytes, &version);
    if (EFI_ERROR(status))
        return status;
    m->count = 0;
    m->overflow = false;
    for (UINTN at = 0; at + descriptor_bytes <= size; at += descriptor_bytes) {
        const EFI_MEMORY_DESCRIPTOR *d = (const EFI_MEMORY_DESCRIPTOR *)(final.raw + at);
        uint64_t pages = MIN(d->NumberOfPages, BIT64(52 - PAGE_SHIFT));
        memmap_add(m, d->PhysicalStart, pages << PAGE_SHIFT, memmap_efi_type(d->Type, d->Attribute));
    }
    return EFI_SUCCESS;
}

uint64_t loader_free_bytes(void)
{
    static uint8_t raw[16384];
    UINTN size = sizeof(raw), key, descriptor_bytes = 0;
    UINT32 version;
    uint64_t pages = 0;
    if (EFI_ERROR(efi_bs->GetMemoryMap(&size, (EFI_MEMORY_DESCRIPTOR *)raw, &key, &descriptor_bytes, &version)))
        return 0;
    for (UINTN at = 0; descriptor_bytes && at + descriptor_bytes <= size; at += descriptor_bytes) {
        const EFI_MEMORY_DESCRIPTOR *d = (const EFI_MEMORY_DESCRIPTOR *)(raw + at);
        if (d->Type == EfiConventionalMemory)
            pages += d->NumberOfPages;
    }
    return pages * PAGE_SIZE;
}

void loader_memory_map(struct memmap *m, uint64_t image_hpa, uint64_t image_size)
{
    UINTN key;
    if (!final.raw)
        reserve_map_space();
    EFI_STATUS status = fetch_map(&final.map, &key);
    if (EFI_ERROR(status))
        loader_halt("firmware does not give its memory map: %s", efi_reason(status));
    memmap_add(&final.map, 0, PAGE_SIZE, BOOT_MEM_RESERVED); /* real-mode vectors; and NULL stays nobody's frame */
    if (image_size)
        memmap_add(&final.map, image_hpa, image_size, BOOT_MEM_IMAGE);
    *m = final.map;
}

void loader_check_memory(uint64_t image_bytes, uint64_t file_bytes)
{
    struct memmap m;
    uint64_t usable = 0;
    loader_memory_map(&m, 0, 0);
    for (size_t i = 0; i < m.count; i++)
        if (m.in[i].type == BOOT_MEM_USABLE)
            usable += m.in[i].size;
    uint64_t needed = CORE_MIN_BYTES + image_bytes;
    if (usable < needed)
        loader_halt("too little memory: needs %llu MiB besides %llu MiB of boot files, this machine has %llu MiB left",
                    (unsigned long long)(needed >> 20), (unsigned long long)(file_bytes >> 20),
                    (unsigned long long)(usable >> 20));
}

void loader_exit_boot_services(EFI_HANDLE self, struct boot_info *bi)
{
    UINTN key = 0;
    EFI_STATUS status = EFI_SUCCESS;
    for (int attempt = 0; attempt < 3; attempt++) {
        status = fetch_map(&final.map, &key);
        if (EFI_ERROR(status))
            break;
        status = efi_bs->ExitBootServices(self, key);
        if (!EFI_ERROR(status))
            break;
    }
    if (EFI_ERROR(status))
        loader_halt("firmware does not let go (ExitBootServices: %s)", efi_reason(status));
    loader_boot_services_ended();
    asm volatile("cli" : : : "memory");

    memmap_add(&final.map, 0, PAGE_SIZE, BOOT_MEM_RESERVED);
    memmap_add(&final.map, bi->image_hpa, bi->image_size, BOOT_MEM_IMAGE);
    size_t count = memmap_normalise(&final.map, bi->mem, BOOT_MAX_MEM_RANGES);
    if (count > BOOT_MAX_MEM_RANGES || final.map.overflow)
        loader_halt("firmware's memory map has %llu ranges, at most %u can be handled", (unsigned long long)count,
                    BOOT_MAX_MEM_RANGES);
    bi->mem_count = (uint32_t)count;
}
