/*
 * What the two loaders (UEFI application, multiboot2) share: is this CPU one for us, placing the embedded hypervisor, core's first page
 * tables, the list of files, the serial line. Each loader brings the memory and the last words.
 */
#ifndef HV_BOOT_IMAGE_H
#define HV_BOOT_IMAGE_H

#include "boot/memmap.h"
#include "include/abi/boot_info.h"
#include "include/hv/types.h"

#define CONFIG_PATH "palimpsest.conf"

/* --- supplied by the loader --- */
/* `bytes` rounded up to pages, zeroed, below 4 GiB or wherever the loader can write; in the map as BOOT_MEM_LOADER. Halts with the name
 * of `what` if there is no memory. */
void *loader_keep(uint64_t bytes, const char *what);
void loader_free(void *p, uint64_t bytes);
void loader_print(const char *fmt, ...) PRINTF_LIKE(1, 2);         /* a line; "\n" is added */
NORETURN void loader_halt(const char *fmt, ...) PRINTF_LIKE(1, 2); /* "palimpsest: halted: CAUSE", then hlt for ever */

/* A file that the configuration names and bi->files has not got. Adds it, or says why not and halts. */
void loader_need_file(struct boot_info *bi, const char *section, const char *key, const char *name);

/* --- config.c --- */
/* The text at bi->config_hpa: asks for each file that it names. Halts if it has an error. */
void loader_read_config(struct boot_info *bi);

/* --- cpu.c --- */
void loader_check_cpu(void);                                       /* halts if this CPU cannot run us */

/* --- image.c --- */
/* Unpacks and places the embedded hypervisor, fills image_hpa and image_size, returns the address of hv_entry. */
uint64_t loader_place_image(struct boot_info *bi);
/* The page tables of the contract in boot_info.h; returns CR3. */
uint64_t loader_build_tables(const struct boot_info *bi, const struct memmap *m);

/* --- hosted.c: around the calls of a library; it allocates by loader_keep() --- */
uint64_t hosted_begin(void);
void hosted_end(uint64_t before);                                  /* what hosted_begin() returned */

/* --- serial.c: COM1, polled --- */
bool serial_init(void);                                            /* 115200 8N1; false: nothing answers there */
void serial_put(const char *s);                                    /* "\r\n" is added */

/* --- enter.asm --- */
NORETURN void loader_enter(uint64_t cr3, uint64_t entry, uint64_t boot_info_va);

#endif
