/*
 * Multiboot 1 (specification 0.6.96): a header in the first 8 KiB says either "take my ELF headers" or, in its address
 * fields, where the bytes go. ELF64 is accepted too, as boot loaders in use do; the entry is 32-bit protected mode all
 * the same.
 */
#include "vm/load_parse.h"

#define HEADER_MAGIC 0x1badb002u
#define SEARCH_BYTES 8192
#define FLAG_PAGE_ALIGN (1u << 0)
#define FLAG_MEMORY_INFO (1u << 1)
#define FLAG_VIDEO (1u << 2)
#define FLAG_ADDRESSES (1u << 16)
#define FLAGS_MUST_UNDERSTAND 0xffffu

uint64_t load_multiboot_header(const struct load_image *img)
{
    for (uint64_t at = 0; at + 12 <= MIN(img->size, (uint64_t)SEARCH_BYTES); at += 4) {
        if (load_number(img, at, 4) == HEADER_MAGIC &&
            (uint32_t)(HEADER_MAGIC + load_number(img, at + 4, 4) + load_number(img, at + 8, 4)) == 0)
            return at;
    }
    return UINT64_MAX;
}

static enum load_result plan_addresses(const struct load_image *img, uint64_t low_ram, uint64_t header, struct load_plan *plan, char *why)
{
    if (!load_in_file(img, header, 32))
        return load_refuse(why, img, plan->format, "header at 0x%llx: the file ends in its address fields", (unsigned long long)header);
    uint64_t header_addr = load_number(img, header + 12, 4), load_addr = load_number(img, header + 16, 4);
    uint64_t load_end = load_number(img, header + 20, 4), bss_end = load_number(img, header + 24, 4);
    plan->entry = load_number(img, header + 28, 4);
    if (load_addr > header_addr || header_addr - load_addr > header)
        return load_refuse(why, img, plan->format, "header_addr 0x%llx, load_addr 0x%llx: loading would begin outside the file",
            (unsigned long long)header_addr, (unsigned long long)load_addr);
    uint64_t offset = header - (header_addr - load_addr);
    if (load_end != 0 && load_end <= load_addr)
        return load_refuse(why, img, plan->format, "load_end_addr 0x%llx is not above load_addr 0x%llx", (unsigned long long)load_end,
            (unsigned long long)load_addr);
    uint64_t filesz = load_end ? load_end - load_addr : img->size - offset, memsz = filesz;
    if (bss_end != 0) {
        if (bss_end < load_addr + filesz)
            return load_refuse(why, img, plan->format, "bss_end_addr 0x%llx is below the end of the data 0x%llx",
                (unsigned long long)bss_end, (unsigned long long)(load_addr + filesz));
        memsz = bss_end - load_addr;
    }
    struct load_segment s = {offset, filesz, load_addr, memsz};
    return load_add_segment(img, low_ram, plan, &s, why);
}

/* Kernels linked high give a virtual entry point: it is translated by the segment that holds it. */
static enum load_result plan_elf(const struct load_image *img, uint64_t low_ram, struct load_plan *plan, char *why)
{
    struct load_elf elf;
    if (!load_is_elf(img))
        return load_refuse(why, img, plan->format, "flags: neither address fields nor an ELF file");
    enum load_result r = load_decode_elf(img, plan->format, &elf, why);
    if (r != LOAD_OK || (r = load_elf_segments(img, low_ram, &elf, plan, why)) != LOAD_OK)
        return r;
    plan->entry = elf.entry;
    for (unsigned n = 0; n < elf.phnum; n++) {
        struct load_phdr p = load_elf_phdr(img, &elf, n);
        if (p.type == 1 && elf.entry >= p.vaddr && elf.entry - p.vaddr < p.memsz) {
            plan->entry = elf.entry - p.vaddr + p.paddr;
            break;
        }
    }
    return LOAD_OK;
}

enum load_result load_plan_multiboot(const struct load_image *img, uint64_t low_ram, struct load_plan *plan, char *why)
{
    *plan = (struct load_plan){.format = LOAD_FORMAT_MULTIBOOT, .initrd_max = GIB(4), .cmdline_max = 2047};
    uint64_t header = load_multiboot_header(img);
    if (header == UINT64_MAX)
        return load_refuse(why, img, plan->format, "no header in the first 8 KiB");
    uint32_t flags = (uint32_t)load_number(img, header + 4, 4);
    uint32_t unknown = flags & FLAGS_MUST_UNDERSTAND & ~(FLAG_PAGE_ALIGN | FLAG_MEMORY_INFO | FLAG_VIDEO);
    if (unknown)
        return load_refuse(why, img, plan->format, "flags 0x%x: bits 0x%x ask for something unknown", flags, unknown);
    plan->wants_video = flags & FLAG_VIDEO;
    enum load_result r = flags & FLAG_ADDRESSES ? plan_addresses(img, low_ram, header, plan, why) : plan_elf(img, low_ram, plan, why);
    if (r != LOAD_OK)
        return r;
    for (unsigned k = 0; k < plan->count; k++)
        if (plan->entry >= plan->seg[k].gpa && plan->entry - plan->seg[k].gpa < plan->seg[k].memsz)
            return LOAD_OK;
    return load_refuse(why, img, plan->format, "entry 0x%llx lies in no segment", (unsigned long long)plan->entry);
}
