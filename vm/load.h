/*
 * Guest image loaders: bzImage (Linux's 64-bit and 32-bit boot protocols), PVH ELF, multiboot 1. In two halves: pure parsers turn the
 * untrusted file into a load plan (or a reason for refusing it), and load.c carries the plan out, mapping whole pages
 * straight from the boot file where file offset and gpa agree modulo 4 KiB, so that a second VM from the same file
 * costs no frames.
 *
 * The VM's memory: RAM from 0 up to LOAD_LOW_RAM_MAX, the rest from 4 GiB up. [0x9FC00, 1 MiB) is told to guests as
 * reserved (it is RAM, and the platform's firmware tables live there).
 */
#ifndef HV_VM_LOAD_H
#define HV_VM_LOAD_H

#include "include/hv/hvm_ops.h"
#include "include/hv/types.h"

struct boot_info;
struct boot_file;
struct vm;

#define LOAD_LOW_RAM_MAX GIB(3)
#define LOAD_HIGH_RAM_BASE GIB(4)
static inline uint64_t load_low_ram_bytes(uint64_t memory) { return MIN(memory, LOAD_LOW_RAM_MAX); }
static inline uint64_t load_high_ram_bytes(uint64_t memory) { return memory - load_low_ram_bytes(memory); }

#define LOAD_WHY_MAX 160

enum load_result { LOAD_OK, LOAD_NO_SUCH_FILE, LOAD_BAD_IMAGE, LOAD_DOES_NOT_FIT /* in the VM's memory */, LOAD_NO_MEMORY /* no frames */ };
enum load_format { LOAD_FORMAT_UNKNOWN, LOAD_FORMAT_BZIMAGE, LOAD_FORMAT_PVH, LOAD_FORMAT_MULTIBOOT };
const char *load_format_name(enum load_format f);

/* The boot CPU's state at the guest's first instruction. */
struct load_entry {
    uint64_t gpr[16];   /* enum gpr's order */
    uint64_t rip, rflags;
    struct vcpu_sregs sregs;
};

/* Loads the kernel, initrd and modules that vm->config names from bi's files into vm->space, whose RAM must be
 * untouched (EMPTY: what is behind a segment's file part must read as zero), and writes what the boot protocol wants.
 * rsdp_gpa as vm_platform()->write_firmware_tables() returned it, 0: none. All vCPUs parked. On failure why
 * (LOAD_WHY_MAX) names file and field. */
enum load_result vm_load_image(struct vm *vm, const struct boot_info *bi, uint64_t rsdp_gpa, struct load_entry *entry, char *why);
/* NULL if there is no file of that name. */
const struct boot_file *load_find_file(const struct boot_info *bi, const char *name);

/* ---- pure: file bytes -> plan -------------------------------------------------------------------------------- */
#define LOAD_MAX_SEGMENTS 32

struct load_segment { uint64_t offset, filesz, gpa, memsz; }; /* memsz >= filesz; [offset, offset+filesz) is inside the file */

struct load_image { const char *name; const uint8_t *bytes; uint64_t size; };

struct load_plan {
    enum load_format format;
    unsigned count;
    struct load_segment seg[LOAD_MAX_SEGMENTS];
    uint64_t entry;             /* gpa of the first instruction */
    uint64_t initrd_max;        /* highest gpa an initrd or module may occupy, plus 1 */
    uint32_t cmdline_max;       /* bytes without the NUL */
    bool wants_video;           /* multiboot: asked for a mode, which it does not get */
    uint64_t setup_end;         /* bzImage: end of the setup header in the file */
    bool long_mode;             /* bzImage: the entry is the 64-bit one */
};

enum load_format load_probe(const struct load_image *img);
/* Each: LOAD_OK and *plan, or a reason in why. low_ram is where RAM below 4 GiB ends: every segment ends there or
 * before. */
enum load_result load_plan_bzimage(const struct load_image *img, uint64_t low_ram, struct load_plan *plan, char *why);
enum load_result load_plan_pvh(const struct load_image *img, uint64_t low_ram, struct load_plan *plan, char *why);
enum load_result load_plan_multiboot(const struct load_image *img, uint64_t low_ram, struct load_plan *plan, char *why);
/* Detects the format and calls the right one of them. */
enum load_result load_plan(const struct load_image *img, uint64_t low_ram, struct load_plan *plan, char *why);

#endif
