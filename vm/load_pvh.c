/*
 * PVH: an ELF file whose note of owner "Xen" and type 18 gives a 32-bit entry point; segments go to their physical
 * addresses. (Xen's docs/misc/pvh.pandoc; include/public/elfnote.h.)
 */
#include "vm/load_parse.h"

#define PT_NOTE 4
#define XEN_ELFNOTE_PHYS32_ENTRY 18

static uint64_t entry_in_notes(const struct load_image *img, const struct load_phdr *p)
{
    uint64_t at = p->offset, end = p->offset + p->filesz, align = p->align == 8 ? 8 : 4;
    while (end - at >= 12) {
        uint64_t namesz = load_number(img, at, 4), descsz = load_number(img, at + 4, 4), type = load_number(img, at + 8, 4);
        uint64_t name = at + 12, desc = p->offset + ALIGN_UP(name - p->offset + namesz, align);
        uint64_t next = p->offset + ALIGN_UP(desc - p->offset + descsz, align); /* 32-bit sizes: no overflow */
        if (desc > end || desc + descsz > end)
            return 0;
        if (type == XEN_ELFNOTE_PHYS32_ENTRY && namesz == 4 && load_number(img, name, 4) == 0x006e6558 && (descsz == 4 || descsz == 8))
            return load_number(img, desc, (unsigned)descsz);
        if (next >= end)
            return 0;
        at = next;
    }
    return 0;
}

uint64_t load_pvh_entry(const struct load_image *img, const struct load_elf *elf)
{
    for (unsigned n = 0; n < elf->phnum; n++) {
        struct load_phdr p = load_elf_phdr(img, elf, n);
        uint64_t entry = p.type == PT_NOTE && load_in_file(img, p.offset, p.filesz) ? entry_in_notes(img, &p) : 0;
        if (entry != 0)
            return entry;
    }
    return 0;
}

enum load_result load_plan_pvh(const struct load_image *img, uint64_t low_ram, struct load_plan *plan, char *why)
{
    struct load_elf elf;
    *plan = (struct load_plan){.format = LOAD_FORMAT_PVH, .initrd_max = GIB(4), .cmdline_max = 2047};
    enum load_result r = load_decode_elf(img, plan->format, &elf, why);
    if (r != LOAD_OK || (r = load_elf_segments(img, low_ram, &elf, plan, why)) != LOAD_OK)
        return r;
    plan->entry = load_pvh_entry(img, &elf);
    for (unsigned k = 0; k < plan->count; k++)
        if (plan->entry >= plan->seg[k].gpa && plan->entry - plan->seg[k].gpa < plan->seg[k].memsz)
            return LOAD_OK;
    return load_refuse(why, img, plan->format, "PHYS32_ENTRY note: 0x%llx lies in no segment", (unsigned long long)plan->entry);
}
