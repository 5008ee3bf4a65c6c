/*
 * The UEFI loader: from firmware to hv_entry, once, in this order:
 *
 *   can the CPU run us -> configuration -> the files it names -> is there memory -> image, page tables
 *   -> ExitBootServices -> memory map -> core
 *
 * Everything that can go wrong is looked for before boot services end, while there is a screen to say it on. A failure stops
 * here with its cause; nothing falls back to firmware's boot menu, which would wipe the message away.
 */
#include "boot/loader.h"
#include "lib/string.h"

#define CONFIG_MAX_BYTES MIB(1)
#define FILE_MAX_BYTES GIB(16)

EFI_STATUS efi_main(EFI_HANDLE self, EFI_SYSTEM_TABLE *st);

static uint64_t file_bytes_total;

void loader_need_file(struct boot_info *bi, const char *section, const char *key, const char *name)
{
    struct loader_file f;
    if (bi->file_count == BOOT_MAX_FILES)
        loader_halt(CONFIG_PATH ": [%s] %s: more than %u boot files", section, key, BOOT_MAX_FILES);
    struct boot_file *entry = &bi->files[bi->file_count];
    if (!str_copy(entry->name, sizeof(entry->name), name))
        loader_halt(CONFIG_PATH ": [%s] %s: file name too long: %s", section, key, name);

    EFI_STATUS status = loader_read_file(name, EfiLoaderData, FILE_MAX_BYTES, &f);
    if (EFI_ERROR(status)) {
        char detail[128] = "";
        if (status == EFI_OUT_OF_RESOURCES)
            snprintf(detail, sizeof(detail), " (needs %llu MiB in one piece, firmware has %llu MiB free in all)",
                     (unsigned long long)(f.size >> 20), (unsigned long long)(loader_free_bytes() >> 20));
        else if (status == EFI_NOT_FOUND)
            str_copy(detail, sizeof(detail), loader_files_hint());
        loader_print(CONFIG_PATH ": [%s] %s: cannot read %s: %s%s", section, key, loader_file_path(name), efi_reason(status),
                     detail);
        loader_halt("a boot file cannot be read");
    }
    entry->hpa = (uint64_t)f.data;
    entry->size = f.size;
    file_bytes_total += f.size;
    bi->file_count++;
    loader_print("palimpsest: read %s, %llu KiB", loader_file_path(name), (unsigned long long)(f.size + 1023) / 1024);
}

static void load_config(struct boot_info *bi)
{
    struct loader_file text;
    EFI_STATUS status = loader_read_file(CONFIG_PATH, EfiLoaderData, CONFIG_MAX_BYTES, &text);
    if (status == EFI_NOT_FOUND || status == EFI_TFTP_ERROR) {
        loader_print("palimpsest: no %s: starting without virtual machines%s", loader_file_path(CONFIG_PATH),
                     loader_files_hint());
        return;
    }
    if (EFI_ERROR(status))
        loader_halt("cannot read %s: %s", loader_file_path(CONFIG_PATH), efi_reason(status));
    bi->config_hpa = (uint64_t)text.data;
    bi->config_size = text.size;
    loader_read_config(bi);
}

static bool guid_equal(const EFI_GUID *a, const EFI_GUID *b)
{
    return memcmp(a, b, sizeof(*a)) == 0;
}

/* ACPI 6.5, 5.2.5.2: the 2.0 table if there is one. */
static uint64_t find_rsdp(void)
{
    static const EFI_GUID acpi_1 = ACPI_TABLE_GUID, acpi_2 = ACPI_20_TABLE_GUID;
    uint64_t rsdp = 0;
    for (UINTN i = 0; i < efi_st->NumberOfTableEntries; i++) {
        const EFI_CONFIGURATION_TABLE *t = &efi_st->ConfigurationTable[i];
        if (guid_equal(&t->VendorGuid, &acpi_2))
            return (uint64_t)t->VendorTable;
        if (guid_equal(&t->VendorGuid, &acpi_1))
            rsdp = (uint64_t)t->VendorTable;
    }
    return rsdp;
}

/* A mask of adjacent bits as position and width. */
static bool take_mask(UINT32 mask, uint8_t *pos, uint8_t *bits)
{
    if (!mask)
        return false;
    *pos = (uint8_t)__builtin_ctz(mask);
    *bits = (uint8_t)(32 - __builtin_clz(mask) - *pos);
    return (uint64_t)mask == GENMASK64(*pos + *bits - 1, *pos);
}

/* A pixel is as many bytes as all masks together reach over (UEFI 2.10, 12.9.2). */
static bool take_masks(const EFI_PIXEL_BITMASK *m, struct boot_framebuffer *fb)
{
    UINT32 all = m->RedMask | m->GreenMask | m->BlueMask | m->ReservedMask;
    if (!take_mask(m->RedMask, &fb->red_pos, &fb->red_bits) || !take_mask(m->GreenMask, &fb->green_pos, &fb->green_bits) ||
        !take_mask(m->BlueMask, &fb->blue_pos, &fb->blue_bits))
        return false;
    fb->bpp = (uint8_t)ALIGN_UP(32u - (unsigned)__builtin_clz(all), 8u);
    return true;
}

static void find_framebuffer(struct boot_framebuffer *fb)
{
    static EFI_GUID guid = EFI_GRAPHICS_OUTPUT_PROTOCOL_GUID;
    EFI_GRAPHICS_OUTPUT_PROTOCOL *gop = NULL;
    if (EFI_ERROR(efi_bs->LocateProtocol(&guid, NULL, (void **)&gop)) || !gop->Mode || !gop->Mode->Info)
        return;
    const EFI_GRAPHICS_OUTPUT_MODE_INFORMATION *info = gop->Mode->Info;
    struct boot_framebuffer found = {
        .hpa = gop->Mode->FrameBufferBase, .width = info->HorizontalResolution, .height = info->VerticalResolution,
        .bpp = 32, .red_bits = 8, .green_bits = 8, .blue_bits = 8,
    };
    switch (info->PixelFormat) {
    case PixelRedGreenBlueReserved8BitPerColor: found.green_pos = 8; found.blue_pos = 16; break;
    case PixelBlueGreenRedReserved8BitPerColor: found.green_pos = 8; found.red_pos = 16; break;
    case PixelBitMask:
        if (!take_masks(&info->PixelInformation, &found))
            return;
        break;
    default: return; /* no linear frame buffer at all */
    }
    uint64_t pitch = (uint64_t)info->PixelsPerScanLine * ((found.bpp + 7u) / 8);
    found.pitch = (uint32_t)pitch;
    if (found.hpa && found.width && found.height && info->PixelsPerScanLine >= found.width && pitch <= UINT32_MAX)
        *fb = found;
}

/* LoadOptions as text; "" if they are anything else, for a boot entry may hold any bytes there. */
static void read_options(const EFI_LOADED_IMAGE *image, char *out, size_t size)
{
    size_t n = MIN(image->LoadOptionsSize / sizeof(CHAR16), size - 1);
    memset(out, 0, size);
    for (size_t i = 0; i < n; i++) {
        CHAR16 c;
        memcpy(&c, (const uint8_t *)image->LoadOptions + i * sizeof(c), sizeof(c));
        if (c == 0)
            return;
        if (c < 0x20 || c > 0x7e) {
            memset(out, 0, size);
            return;
        }
        out[i] = (char)c;
    }
}

/* A boot entry's options become the hypervisor's command line. Shells and iPXE put the program's own name first. */
static void copy_options(EFI_HANDLE self, struct boot_info *bi)
{
    static EFI_GUID loaded_image = EFI_LOADED_IMAGE_PROTOCOL_GUID;
    EFI_LOADED_IMAGE *image = NULL;
    char text[sizeof(bi->cmdline)];
    if (EFI_ERROR(efi_bs->HandleProtocol(self, &loaded_image, (void **)&image)) || !image->LoadOptions)
        return;
    read_options(image, text, sizeof(text));
    size_t word = 0;
    while (text[word] && text[word] != ' ')
        word++;
    const char *rest = text;
    if (word >= 4 && text[word - 4] == '.' && (text[word - 3] | 32) == 'e' && (text[word - 2] | 32) == 'f' &&
        (text[word - 1] | 32) == 'i')
        rest = text + word;
    while (*rest == ' ')
        rest++;
    str_copy(bi->cmdline, sizeof(bi->cmdline), rest);
}

EFI_STATUS efi_main(EFI_HANDLE self, EFI_SYSTEM_TABLE *st)
{
    struct memmap map;
    efi_st = st;
    efi_bs = st->BootServices;
    efi_bs->SetWatchdogTimer(0, 0, 0, NULL); /* it would reset the machine under a message that stays */
    loader_console_init();
    loader_print("palimpsest: %s", LOADER_NAME);

    loader_check_cpu();
    struct boot_info *bi = loader_alloc(sizeof(*bi), EfiLoaderData, "boot_info");
    bi->magic = BOOT_INFO_MAGIC;
    bi->version = BOOT_INFO_VERSION;
    bi->size = sizeof(*bi);
    str_copy(bi->loader, sizeof(bi->loader), LOADER_NAME);
    copy_options(self, bi);

    loader_files_open(self);
    load_config(bi);
    uint64_t entry = loader_place_image(bi);
    loader_check_memory(bi->image_size, file_bytes_total);

    bi->rsdp_hpa = find_rsdp();
    bi->efi_system_table = (uint64_t)st;
    find_framebuffer(&bi->fb);
    loader_memory_map(&map, bi->image_hpa, bi->image_size);
    uint64_t cr3 = loader_build_tables(bi, &map);

    loader_exit_boot_services(self, bi);
    loader_enter(cr3, entry, HV_DIRECTMAP_BASE + (uint64_t)bi);
}
