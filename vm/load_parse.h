/* Between the parsers of guest images: bounds-checked reads, and what PVH and multiboot share of ELF. Pure. */
#ifndef HV_VM_LOAD_PARSE_H
#define HV_VM_LOAD_PARSE_H

#include "vm/load.h"

#define LOAD_RESERVED_FIRST 0x9fc00u /* extended BIOS data area, VGA hole, firmware tables: reserved in every memory map */
#define LOAD_VGA_FIRST 0xa0000u
#define LOAD_RESERVED_END 0x100000u

struct load_elf { bool is64; uint16_t machine, phentsize, phnum; uint64_t entry, phoff; };
struct load_phdr { uint32_t type; uint64_t offset, vaddr, paddr, filesz, memsz, align; };

/* Writes "<file>: <format>: <message>" to why and answers LOAD_BAD_IMAGE. */
enum load_result load_refuse(char *why, const struct load_image *img, enum load_format f, const char *fmt, ...) PRINTF_LIKE(4, 5);
/* Little-endian number of 1, 2, 4, 8 bytes at `offset`; false if it is not wholly inside the file. */
bool load_get(const struct load_image *img, uint64_t offset, unsigned size, uint64_t *val);
/* The same for offsets already known to be inside. */
uint64_t load_number(const struct load_image *img, uint64_t offset, unsigned size);
static inline bool load_in_file(const struct load_image *img, uint64_t offset, uint64_t size)
{
    return offset <= img->size && size <= img->size - offset;
}
/* Adds a segment after checking it: inside the file, inside RAM below low_ram, clear of the reserved hole and of the
 * others. */
enum load_result load_add_segment(const struct load_image *img, uint64_t low_ram, struct load_plan *plan, const struct load_segment *s,
    char *why);
/* False if this is no ELF file at all (why untouched), else *r says whether its headers are sound. */
bool load_is_elf(const struct load_image *img);
enum load_result load_decode_elf(const struct load_image *img, enum load_format f, struct load_elf *elf, char *why);
struct load_phdr load_elf_phdr(const struct load_image *img, const struct load_elf *elf, unsigned n);
enum load_result load_elf_segments(const struct load_image *img, uint64_t low_ram, const struct load_elf *elf, struct load_plan *plan,
    char *why);
/* PVH entry point from the ELF notes; 0 if there is none. */
uint64_t load_pvh_entry(const struct load_image *img, const struct load_elf *elf);
/* File offset of the multiboot header, or UINT64_MAX. */
uint64_t load_multiboot_header(const struct load_image *img);

#endif
