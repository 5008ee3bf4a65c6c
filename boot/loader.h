/*
 * What the files of the UEFI loader share. The loader runs once, on one CPU, on firmware's stack and page tables; it
 * either enters core or stops in loader_halt(). See efi_main.c for the sequence.
 */
#ifndef HV_BOOT_LOADER_H
#define HV_BOOT_LOADER_H

#include <efi.h>
#include "boot/image.h"
#include "boot/memmap.h"
#include "include/abi/boot_info.h"
#include "include/hv/types.h"

#define LOADER_NAME "palimpsest-efi 0.1"

extern EFI_SYSTEM_TABLE *efi_st;
extern EFI_BOOT_SERVICES *efi_bs;

/* --- efi_console.c: messages --- */
void loader_console_init(void);
void loader_boot_services_ended(void);                             /* from here on only the serial port is left */
const char *efi_reason(EFI_STATUS status);                         /* "no such file", ... */

/* --- efi_memory.c --- */
/* `bytes` rounded up to pages, zeroed. EfiLoaderData stays ours after boot (BOOT_MEM_LOADER), EfiBootServicesData is
 * free then. Halts with the name of `what` if there is no memory. */
void *loader_alloc(uint64_t bytes, EFI_MEMORY_TYPE type, const char *what);
uint64_t loader_free_bytes(void);                                  /* that boot services could still give out */
void loader_check_memory(uint64_t image_bytes, uint64_t file_bytes); /* halts if core would not have enough */
/* The sorted map of now; false if it has too many ranges. */
void loader_memory_map(struct memmap *m, uint64_t image_hpa, uint64_t image_size);
/* Ends boot services and fills bi->mem from the final map. Halts if firmware refuses. */
void loader_exit_boot_services(EFI_HANDLE self, struct boot_info *bi);

/* --- efi_files.c: the place we were started from --- */
struct loader_file { void *data; uint64_t size; };                 /* page aligned, zero up to the page's end */
void loader_files_open(EFI_HANDLE self);
/* `name` as in the configuration, either slash. EFI_SUCCESS, EFI_NOT_FOUND, or what went wrong; then out->size is the
 * file's size if that much was learnt. */
EFI_STATUS loader_read_file(const char *name, EFI_MEMORY_TYPE type, uint64_t max_bytes, struct loader_file *out);
/* "\guests\a.elf" on a volume, "tftp://10.0.2.2/guests/a.elf" on a network; valid until the next call. */
const char *loader_file_path(const char *name);
const char *loader_files_hint(void);                               /* to append to "no such file"; may be "" */

#endif
