/*
 * What the parsers have in common: reading numbers from a file that may end anywhere, ELF's headers, and the one gate
 * through which every segment of every format enters a plan. After that gate nothing needs to be checked again.
 */
#include "vm/load_parse.h"

#include "lib/string.h"

#define PT_LOAD 1
#define EM_386 3
#define EM_X86_64 62

const char *load_format_name(enum load_format f)
{
    static const char *const names[] = {"image", "bzImage", "PVH", "multiboot"};
    return f < ARRAY_SIZE(names) ? names[f] : "?";
}

enum load_result load_refuse(char *why, const struct load_image *img, enum load_format f, const char *fmt, ...)
{
    int n = snprintf(why, LOAD_WHY_MAX, "%.60s: %s: ", img->name, load_format_name(f));
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why + n, LOAD_WHY_MAX - (size_t)n, fmt, ap);
    va_end(ap);
    return LOAD_BAD_IMAGE;
}

uint64_t load_number(const struct load_image *img, uint64_t offset, unsigned size)
{
    uint64_t v = 0;
    for (unsigned n = 0; n < size; n++)
        v |= (uint64_t)img->bytes[offset + n] << (8 * n);
    return v;
}

bool load_get(const struct load_image *img, uint64_t offset, unsigned size, uint64_t *val)
{
    if (!load_in_file(img, offset, size))
        return false;
    *val = load_number(img, offset, size);
    return true;
}

static bool overlap(uint64_t a, uint64_t a_end, uint64_t b, uint64_t b_end)
{
    return a < b_end && b < a_end;
}

enum load_result load_add_segment(const struct load_image *img, uint64_t low_ram, struct load_plan *plan, const struct load_segment *s,
    char *why)
{
    unsigned n = plan->count;
    if (!load_in_file(img, s->offset, s->filesz))
        return load_refuse(why, img, plan->format, "segment %u: file bytes 0x%llx+0x%llx run past the end of the file (%llu bytes)", n,
            (unsigned long long)s->offset, (unsigned long long)s->filesz, (unsigned long long)img->size);
    if (s->memsz < s->filesz)
        return load_refuse(why, img, plan->format, "segment %u: memory size 0x%llx is less than file size 0x%llx", n,
            (unsigned long long)s->memsz, (unsigned long long)s->filesz);
    if (s->memsz == 0)
        return LOAD_OK;
    if (s->gpa >= low_ram || s->memsz > low_ram - s->gpa) {
        load_refuse(why, img, plan->format, "segment %u: 0x%llx+0x%llx does not fit in memory (0x%llx bytes below 4 GiB)", n,
            (unsigned long long)s->gpa, (unsigned long long)s->memsz, (unsigned long long)low_ram);
        return LOAD_DOES_NOT_FIT;
    }
    uint64_t end = s->gpa + s->memsz;
    if (overlap(s->gpa, end, LOAD_RESERVED_FIRST, LOAD_RESERVED_END))
        return load_refuse(why, img, plan->format, "segment %u: 0x%llx+0x%llx touches the reserved 0x9fc00-0xfffff", n,
            (unsigned long long)s->gpa, (unsigned long long)s->memsz);
    for (unsigned k = 0; k < n; k++) {
        const struct load_segment *o = &plan->seg[k];
        if (overlap(s->gpa, end, o->gpa, o->gpa + o->memsz))
            return load_refuse(why, img, plan->format, "segments %u and %u overlap at 0x%llx", k, n, (unsigned long long)MAX(s->gpa, o->gpa));
    }
    if (n == LOAD_MAX_SEGMENTS)
        return load_refuse(why, img, plan->format, "more than %u segments", LOAD_MAX_SEGMENTS);
    plan->seg[plan->count++] = *s;
    return LOAD_OK;
}

bool load_is_elf(const struct load_image *img)
{
    uint64_t magic;
    return load_get(img, 0, 4, &magic) && magic == 0x464c457f; /* 7F 'E' 'L' 'F' */
}

enum load_result load_decode_elf(const struct load_image *img, enum load_format f, struct load_elf *elf, char *why)
{
    uint64_t v;
    if (img->size < 52)
        return load_refuse(why, img, f, "ELF header: the file has only %llu bytes", (unsigned long long)img->size);
    unsigned class = img->bytes[4];
    if (class != 1 && class != 2)
        return load_refuse(why, img, f, "ELF header: class %u is neither 32 nor 64 bits", class);
    if (img->bytes[5] != 1)
        return load_refuse(why, img, f, "ELF header: not little-endian");
    elf->is64 = class == 2;
    if (elf->is64 && img->size < 64)
        return load_refuse(why, img, f, "ELF header: the file has only %llu bytes", (unsigned long long)img->size);
    elf->machine = (uint16_t)load_number(img, 18, 2);
    if (elf->machine != EM_386 && elf->machine != EM_X86_64)
        return load_refuse(why, img, f, "ELF header: machine %u is not x86", elf->machine);
    elf->entry = load_number(img, 24, elf->is64 ? 8 : 4);
    elf->phoff = elf->is64 ? load_number(img, 32, 8) : load_number(img, 28, 4);
    v = elf->is64 ? 54 : 42;
    elf->phentsize = (uint16_t)load_number(img, v, 2);
    elf->phnum = (uint16_t)load_number(img, v + 2, 2);
    if (elf->phnum == 0)
        return load_refuse(why, img, f, "ELF header: no program headers");
    if (elf->phentsize != (elf->is64 ? 56 : 32))
        return load_refuse(why, img, f, "ELF header: e_phentsize %u is not %u", elf->phentsize, elf->is64 ? 56 : 32);
    if (!load_in_file(img, elf->phoff, (uint64_t)elf->phnum * elf->phentsize))
        return load_refuse(why, img, f, "ELF header: %u program headers at 0x%llx run past the end of the file (%llu bytes)", elf->phnum,
            (unsigned long long)elf->phoff, (unsigned long long)img->size);
    return LOAD_OK;
}

struct load_phdr load_elf_phdr(const struct load_image *img, const struct load_elf *elf, unsigned n)
{
    uint64_t at = elf->phoff + (uint64_t)n * elf->phentsize;
    struct load_phdr p = {.type = (uint32_t)load_number(img, at, 4)};
    uint64_t *const fields[] = {&p.offset, &p.vaddr, &p.paddr, &p.filesz, &p.memsz};
    unsigned w = elf->is64 ? 8 : 4;
    at += w; /* ELF64 has p_flags here, in the padding */
    for (unsigned k = 0; k < ARRAY_SIZE(fields); k++, at += w)
        *fields[k] = load_number(img, at, w);
    p.align = load_number(img, elf->is64 ? at : at + 4, w);
    return p;
}

enum load_result load_elf_segments(const struct load_image *img, uint64_t low_ram, const struct load_elf *elf, struct load_plan *plan,
    char *why)
{
    for (unsigned n = 0; n < elf->phnum; n++) {
        struct load_phdr p = load_elf_phdr(img, elf, n);
        if (p.type != PT_LOAD)
            continue;
        struct load_segment s = {p.offset, p.filesz, p.paddr, p.memsz};
        enum load_result r = load_add_segment(img, low_ram, plan, &s, why);
        if (r != LOAD_OK)
            return r;
    }
    if (plan->count == 0)
        return load_refuse(why, img, plan->format, "ELF header: nothing to load");
    return LOAD_OK;
}

enum load_format load_probe(const struct load_image *img)
{
    uint64_t flag, magic;
    struct load_elf elf;
    char why[LOAD_WHY_MAX];
    if (load_get(img, 0x1fe, 2, &flag) && load_get(img, 0x202, 4, &magic) && flag == 0xaa55 && magic == 0x53726448) /* "HdrS" */
        return LOAD_FORMAT_BZIMAGE;
    if (load_is_elf(img) && load_decode_elf(img, LOAD_FORMAT_PVH, &elf, why) == LOAD_OK && load_pvh_entry(img, &elf) != 0)
        return LOAD_FORMAT_PVH;
    if (load_multiboot_header(img) != UINT64_MAX)
        return LOAD_FORMAT_MULTIBOOT;
    return LOAD_FORMAT_UNKNOWN;
}

/* What a file that is nothing we load seems to be, in brackets: the usual mistakes have a usual remedy. */
static const char *looks_like(const struct load_image *img)
{
    static const struct { unsigned bytes; uint32_t magic; const char *text; } known[] = {
        {2, 0x8b1f, " (it is compressed by gzip: unpack it)"}, {4, 0x587a37fd, " (it is compressed by xz: unpack it)"},
        {4, 0xfd2fb528, " (it is compressed by zstd: unpack it)"}, {4, 0x464c457f, " (it is an ELF file)"}, {2, 0x5a4d, " (it is an EFI program)"},
    };
    uint64_t magic;
    for (size_t n = 0; n < ARRAY_SIZE(known); n++)
        if (load_get(img, 0, known[n].bytes, &magic) && magic == known[n].magic)
            return known[n].text;
    return "";
}

enum load_result load_plan(const struct load_image *img, uint64_t low_ram, struct load_plan *plan, char *why)
{
    *plan = (struct load_plan){.format = load_probe(img)};
    switch (plan->format) {
    case LOAD_FORMAT_BZIMAGE: return load_plan_bzimage(img, low_ram, plan, why);
    case LOAD_FORMAT_PVH: return load_plan_pvh(img, low_ram, plan, why);
    case LOAD_FORMAT_MULTIBOOT: return load_plan_multiboot(img, low_ram, plan, why);
    case LOAD_FORMAT_UNKNOWN: break;
    }
    struct load_elf elf;
    if (load_is_elf(img) && load_decode_elf(img, LOAD_FORMAT_UNKNOWN, &elf, why) != LOAD_OK)
        return LOAD_BAD_IMAGE;
    return load_refuse(why, img, LOAD_FORMAT_UNKNOWN, "neither a bzImage, nor an ELF file with a PVH note, nor a multiboot 1 kernel%s", looks_like(img));
}
