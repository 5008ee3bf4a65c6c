/*
 * Boot information: a length, then tags of type, size and payload at multiples of eight. Every tag must lie inside the length, and every
 * list inside its tag; what does not is refused with its name, because a wrong memory map is not a thing to start with.
 *
 * The UEFI map, if GRUB passes it, is preferred to the BIOS-style one: the latter has no word for runtime services, and
 * GRUB hides our own memory in it by calling it reserved.
 */
#include "boot/multiboot2_tags.h"

#include "lib/string.h"

enum { TAG_END = 0, TAG_CMDLINE = 1, TAG_LOADER = 2, TAG_MODULE = 3, TAG_MEMORY = 6, TAG_FRAMEBUFFER = 8, TAG_EFI64 = 12,
    TAG_RSDP_1 = 14, TAG_RSDP_2 = 15, TAG_EFI_MEMORY = 17 };
enum { FB_RGB = 1, FB_TEXT = 2 };
enum { MEM_AVAILABLE = 1, MEM_ACPI = 3, MEM_NVS = 4, MEM_BAD = 5 };

#define TAG_HEAD 8u
#define MEMORY_HEAD 16u     /* with entry size and version */
#define MEMORY_ENTRY 24u
#define EFI_ENTRY 40u
#define FB_BYTES 32u        /* up to the colour positions, which need 6 more */
#define INFO_MAX MIB(16)

static uint64_t get(const uint8_t *p, unsigned bytes)
{
    uint64_t v = 0;
    memcpy(&v, p, bytes);
    return v;
}

static uint32_t u32(const uint8_t *p) { return (uint32_t)get(p, 4); }

/* A NUL-terminated string from `at` to the end of the tag. */
static const char *text(const uint8_t *tag, uint32_t size, uint32_t at)
{
    return at < size && memchr(tag + at, 0, size - at) ? (const char *)tag + at : NULL;
}

static bool list_fits(const uint8_t *tag, uint32_t size, uint32_t least)
{
    return size >= MEMORY_HEAD && u32(tag + 8) >= least && u32(tag + 8) <= size;
}

static const char *take_module(const uint8_t *tag, uint32_t size, struct mb2_info *out)
{
    const char *args = text(tag, size, 16);
    if (!args)
        return "a module tag without a string";
    uint64_t start = u32(tag + 8), end = u32(tag + 12);
    if (end < start || !IS_ALIGNED(start, PAGE_SIZE))
        return "a module that does not begin on a page, or ends before it begins";
    if (out->module_count == ARRAY_SIZE(out->modules))
        return "too many modules";
    out->modules[out->module_count++] = (struct mb2_module){.hpa = start, .size = end - start, .args = args};
    return NULL;
}

static void take_framebuffer(const uint8_t *tag, uint32_t size, struct mb2_info *out)
{
    if (size < FB_BYTES)
        return;
    uint8_t type = tag[29];
    struct boot_framebuffer fb = {.hpa = get(tag + 8, 8), .pitch = u32(tag + 16), .width = u32(tag + 20), .height = u32(tag + 24), .bpp = tag[28]};
    if (type == FB_TEXT) {
        out->text_screen = fb.hpa == 0xb8000 && fb.width == 80;
    } else if (type == FB_RGB && size >= FB_BYTES + 6) {
        fb.red_pos = tag[32], fb.red_bits = tag[33];
        fb.green_pos = tag[34], fb.green_bits = tag[35];
        fb.blue_pos = tag[36], fb.blue_bits = tag[37];
        out->fb = fb;
    }
}

static void take_rsdp(const uint8_t *tag, uint32_t size, struct mb2_info *out)
{
    if (out->rsdp && u32(tag) == TAG_RSDP_1)
        return; /* the newer one came first */
    out->rsdp = tag + TAG_HEAD;
    out->rsdp_bytes = size - TAG_HEAD;
}

/* NULL, or what is wrong with it. */
static const char *take_tag(const uint8_t *tag, uint32_t size, struct mb2_info *out)
{
    const char *s;
    switch (u32(tag)) {
    case TAG_CMDLINE:
    case TAG_LOADER:
        s = text(tag, size, TAG_HEAD);
        if (!s)
            return "a string without an end";
        *(u32(tag) == TAG_CMDLINE ? &out->cmdline : &out->loader) = s;
        return NULL;
    case TAG_MODULE: return take_module(tag, size, out);
    case TAG_MEMORY:
        if (!list_fits(tag, size, MEMORY_ENTRY))
            return "a malformed memory map";
        out->mem = tag;
        return NULL;
    case TAG_EFI_MEMORY:
        if (!list_fits(tag, size, EFI_ENTRY))
            return "a malformed UEFI memory map";
        out->efi_mem = tag;
        return NULL;
    case TAG_EFI64: out->efi_system_table = size >= 16 ? get(tag + 8, 8) : 0; return NULL;
    case TAG_FRAMEBUFFER: take_framebuffer(tag, size, out); return NULL;
    case TAG_RSDP_1:
    case TAG_RSDP_2: take_rsdp(tag, size, out); return NULL;
    default: return NULL; /* boot device, BIOS figures, SMBIOS, ...: of no interest */
    }
}

uint64_t mb2_info_bytes(const void *info) { return u32(info); }

bool mb2_decode(const void *info, uint64_t max, struct mb2_info *out, const char **why)
{
    const uint8_t *base = info;
    *out = (struct mb2_info){.cmdline = "", .loader = ""};
    uint64_t total = max >= 8 ? mb2_info_bytes(info) : 0;
    if (total < 16 || total > max || total > INFO_MAX) {
        *why = "its length is impossible";
        return false;
    }
    for (uint64_t at = 8;;) {
        uint32_t size = at + TAG_HEAD <= total ? u32(base + at + 4) : 0;
        if (size < TAG_HEAD || size > total - at) {
            *why = "a tag that is longer than the whole";
            return false;
        }
        if (u32(base + at) == TAG_END)
            break;
        *why = take_tag(base + at, size, out);
        if (*why)
            return false;
        at += ALIGN_UP((uint64_t)size, 8u);
        if (at > total) {
            *why = "no end tag";
            return false;
        }
    }
    *why = out->mem || out->efi_mem ? NULL : "no memory map";
    return !*why;
}

static enum boot_mem_type bios_type(uint32_t type)
{
    switch (type) {
    case MEM_AVAILABLE: return BOOT_MEM_USABLE;
    case MEM_ACPI: return BOOT_MEM_ACPI_RECLAIM;
    case MEM_NVS: return BOOT_MEM_ACPI_NVS;
    case MEM_BAD: return BOOT_MEM_BAD;
    default: return BOOT_MEM_RESERVED;
    }
}

void mb2_add_memory(const struct mb2_info *mb, struct memmap *m)
{
    const uint8_t *tag = mb->efi_mem ? mb->efi_mem : mb->mem;
    uint32_t size = u32(tag + 4), step = u32(tag + 8);
    for (uint64_t at = MEMORY_HEAD; at + step <= size; at += step) {
        const uint8_t *e = tag + at;
        if (mb->efi_mem) {
            uint64_t pages = MIN(get(e + 24, 8), BIT64(52 - PAGE_SHIFT));
            memmap_add(m, get(e + 8, 8), pages << PAGE_SHIFT, memmap_efi_type(u32(e), get(e + 32, 8)));
        } else {
            memmap_add(m, get(e, 8), get(e + 8, 8), bios_type(u32(e + 16)));
        }
    }
}
