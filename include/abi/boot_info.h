/*
 * What a boot loader hands to core: one structure, whoever the loader is (our UEFI application, or the
 * multiboot2 entry). Everything core needs to know of the firmware is here; core never calls firmware.
 *
 * Contract at the entry point `hv_entry(struct boot_info *)` (boot/entry.asm):
 *   - long mode, interrupts off, CR3 = the loader's tables, which map (a) the hypervisor image at its link
 *     address (HV_LINK_BASE, linker.ld), (b) the direct map of all RAM and of the first 4 GiB at
 *     HV_DIRECTMAP_BASE, (c) the entry code identically; RDI = the *direct-map* address of boot_info.
 *   - boot_info, the memory map, configuration text, files and all that they point to lie in memory that the map
 *     reports as BOOT_MEM_LOADER (not usable until core releases it).
 *   - All addresses in it are physical (hpa). Strings are NUL-terminated.
 *   - Firmware boot services have ended.
 */
#ifndef HV_INCLUDE_ABI_BOOT_INFO_H
#define HV_INCLUDE_ABI_BOOT_INFO_H

#include <stdint.h>

#define BOOT_INFO_MAGIC UINT64_C(0x5453454d504d4c50) /* reads "PLMPMEST" in memory */
#define BOOT_INFO_VERSION 1u

#define HV_LINK_BASE 0xffffffff80000000
#define HV_DIRECTMAP_BASE 0xffff800000000000

#define BOOT_MAX_MEM_RANGES 512
#define BOOT_MAX_FILES 64
#define BOOT_NAME_MAX 112

enum boot_mem_type {
    BOOT_MEM_USABLE = 1,        /* free RAM, all of it ours */
    BOOT_MEM_LOADER = 2,        /* RAM in use by boot_info, files, loader tables: ours once core has copied out */
    BOOT_MEM_IMAGE = 3,         /* RAM holding the hypervisor image */
    BOOT_MEM_ACPI_RECLAIM = 4,  /* RAM holding ACPI tables */
    BOOT_MEM_ACPI_NVS = 5,
    BOOT_MEM_RUNTIME = 6,       /* firmware runtime services: never touched */
    BOOT_MEM_RESERVED = 7,
    BOOT_MEM_MMIO = 8,
    BOOT_MEM_BAD = 9,
};

struct boot_mem_range {
    uint64_t base;  /* 4 KiB aligned */
    uint64_t size;  /* bytes, multiple of 4 KiB, > 0; ranges are sorted and do not overlap */
    uint32_t type;  /* enum boot_mem_type */
    uint32_t reserved;
};

struct boot_file {
    uint64_t hpa;   /* 4 KiB aligned; the rest of its last page is zero */
    uint64_t size;  /* bytes */
    char name[BOOT_NAME_MAX]; /* as the configuration names it, e.g. "vmlinuz" or "guests/a.elf" */
};

struct boot_framebuffer {
    uint64_t hpa;   /* 0: none */
    uint32_t width, height, pitch; /* pixels, pixels, bytes */
    uint8_t bpp, red_pos, green_pos, blue_pos; /* 15, 16, 24 or 32 bits per pixel; where each channel begins */
    uint8_t red_bits, green_bits, blue_bits;   /* and how wide it is */
};

struct boot_info {
    uint64_t magic;
    uint32_t version;
    uint32_t size;              /* sizeof(struct boot_info) as the loader knows it */
    char loader[64];            /* e.g. "palimpsest-efi 0.1" */
    char cmdline[256];          /* options for the hypervisor itself, may be empty */
    uint64_t image_hpa;         /* physical address of the byte linked at HV_LINK_BASE, 2 MiB aligned */
    uint64_t image_size;        /* bytes including .bss, multiple of 4 KiB */
    uint64_t rsdp_hpa;          /* ACPI root pointer, 0: not found */
    uint64_t efi_system_table;  /* hpa, 0 on BIOS */
    struct boot_framebuffer fb;
    uint64_t config_hpa;        /* palimpsest.conf text; 0: none */
    uint64_t config_size;       /* bytes, without a NUL */
    uint32_t mem_count;
    uint32_t file_count;
    struct boot_mem_range mem[BOOT_MAX_MEM_RANGES];
    struct boot_file files[BOOT_MAX_FILES];
};

#endif
