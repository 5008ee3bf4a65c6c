/* What GRUB says, found in its boot information (Multiboot2 specification 2.0, 3.6). Pure C; the structure is not trusted. */
#ifndef HV_BOOT_MULTIBOOT2_TAGS_H
#define HV_BOOT_MULTIBOOT2_TAGS_H

#include "boot/memmap.h"

#define MB2_REACH GIB(4)                /* what the loader's identity tables map */

struct mb2_module { uint64_t hpa, size; const char *args; }; /* args: what follows the file in GRUB's module2 command */

struct mb2_info {
    const char *cmdline, *loader;        /* "" if not told */
    struct mb2_module modules[BOOT_MAX_FILES + 1]; /* one of them the configuration */
    uint32_t module_count;
    const uint8_t *rsdp;                 /* GRUB's copy; NULL: none */
    uint32_t rsdp_bytes;
    uint64_t efi_system_table;           /* 0: BIOS */
    struct boot_framebuffer fb;
    bool text_screen;                    /* 80x25 at B8000h */
    const uint8_t *mem, *efi_mem;        /* the tags of the memory maps */
};

/* `info` is readable for `max` bytes. False: *why. The result points into `info`. */
bool mb2_decode(const void *info, uint64_t max, struct mb2_info *out, const char **why);
uint64_t mb2_info_bytes(const void *info);
/* All ranges of the better map, the UEFI one if it was given. */
void mb2_add_memory(const struct mb2_info *mb, struct memmap *m);

/* multiboot2_rsdp.c: ACPI's root pointer, without GRUB's help; 0: none. Physical memory is seen from the address `memory` on: 0, but for a
 * test's. Only what is said to be at an address below 4 GiB is looked at; what is found may be anywhere. */
uint64_t mb2_search_rsdp(uint64_t memory, uint64_t efi_system_table);

#endif
