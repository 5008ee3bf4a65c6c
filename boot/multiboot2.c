/*
 * The multiboot2 loader: from GRUB to hv_entry, on BIOS machines and on UEFI machines that GRUB has already taken from firmware.
 *
 * There is no allocator left to ask, so one is made of the map: the largest free range below 4 GiB (what our identity tables reach), from
 * which pages are taken in order and nothing is given back; core releases them with all loader memory. What GRUB
 * has put somewhere (this program, the boot information, the modules) is laid over the map first. GRUB fills low memory too, page 0
 * included, and puts the boot information into the same page as the end of a small file: what is there is copied up before
 * anything is written.
 *
 * GRUB has read the files: each module's first word after its file name is the name that the configuration calls it by;
 * "palimpsest.conf" is the configuration.
 */
#include "boot/image.h"
#include "boot/multiboot2_tags.h"
#include "lib/fbtext.h"
#include "lib/string.h"

#define LOADER_NAME "palimpsest-multiboot2 0.1"
#define MAX_RANGES 1024
#define REACH MB2_REACH
#define LOW_MEMORY MIB(1)
/* What core needs at the least beside image and boot files, as for the UEFI loader. */
#define CORE_MIN_BYTES MIB(64)

void multiboot2_main(const void *info);
extern const uint8_t mb2_base[], mb2_bss_end[];

static struct mb2_info mb;
static struct boot_mem_range ranges[MAX_RANGES], sorted[MAX_RANGES];
static uint64_t edges[2 * MAX_RANGES];
static struct memmap map;
static struct { uint64_t first, next, end; } arena;

/* ---- messages ------------------------------------------------------------------------------------------------------------ */

static bool have_serial;
static struct fbtext pixels; /* what GRUB left of the screen, if not text mode */

/* Line by line from the top; more than a screen of them begins there again. */
static void screen_put(const char *s)
{
    enum { COLUMNS = 80, ROWS = 25, GREY = 0x0700 };
    static unsigned row;
    uint16_t *cell = (uint16_t *)0xb8000 + row * COLUMNS;
    for (unsigned n = 0; n < COLUMNS; n++)
        *(volatile uint16_t *)&cell[n] = GREY | (uint8_t)(*s ? *s++ : ' ');
    row = (row + 1) % ROWS;
}

void loader_print(const char *fmt, ...)
{
    char line[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    if (have_serial)
        serial_put(line);
    if (mb.text_screen)
        screen_put(line);
    fbtext_write(&pixels, line, strlen(line));
    fbtext_write(&pixels, "\n", 1);
}

void loader_halt(const char *fmt, ...)
{
    char cause[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(cause, sizeof(cause), fmt, ap);
    va_end(ap);
    loader_print("palimpsest: halted: %s", cause);
    for (;;)
        asm volatile("cli; hlt");
}

/* ---- memory ---------------------------------------------------------------------------------------------------------------- */

void *loader_keep(uint64_t bytes, const char *what)
{
    uint64_t size = MAX(ALIGN_UP(bytes, PAGE_SIZE), PAGE_SIZE), at = arena.next;
    if (size > arena.end - at)
        loader_halt("not enough memory for %s: needs %llu KiB, the largest free range below 4 GiB has %llu KiB left", what,
                    (unsigned long long)(size / 1024), (unsigned long long)((arena.end - at) / 1024));
    arena.next += size;
    memset((void *)at, 0, size);
    return (void *)at;
}

void loader_free(void *p, uint64_t bytes)
{
    (void)p, (void)bytes; /* core gets it with the rest */
}

static void build_map(const void *info)
{
    memmap_init(&map, ranges, edges, MAX_RANGES - 2);
    mb2_add_memory(&mb, &map);
    memmap_add(&map, 0, PAGE_SIZE, BOOT_MEM_RESERVED); /* real-mode vectors; and NULL stays nobody's frame */
    memmap_add(&map, (uint64_t)mb2_base, (uint64_t)(mb2_bss_end - mb2_base), BOOT_MEM_LOADER);
    memmap_add(&map, (uint64_t)info, mb2_info_bytes(info), BOOT_MEM_LOADER);
    for (uint32_t i = 0; i < mb.module_count; i++)
        memmap_add(&map, mb.modules[i].hpa, mb.modules[i].size, BOOT_MEM_LOADER);
}

static void choose_arena(void)
{
    uint64_t usable = 0, files = 0;
    size_t count = memmap_normalise(&map, sorted, MAX_RANGES);
    for (size_t i = 0; i < MIN(count, MAX_RANGES); i++) {
        uint64_t base = sorted[i].base, end = MIN(base + sorted[i].size, REACH);
        if (sorted[i].type != BOOT_MEM_USABLE)
            continue;
        usable += sorted[i].size;
        if (base < end && end - base > arena.end - arena.first)
            arena.first = arena.next = base, arena.end = end;
    }
    for (uint32_t i = 0; i < mb.module_count; i++)
        files += mb.modules[i].size;
    if (usable < CORE_MIN_BYTES)
        loader_halt("too little memory: needs %llu MiB besides %llu MiB of boot files, this machine has %llu MiB left",
                    (unsigned long long)(CORE_MIN_BYTES >> 20), (unsigned long long)(files >> 20), (unsigned long long)(usable >> 20));
}

static void finish_map(struct boot_info *bi)
{
    map.max = MAX_RANGES; /* the two that were kept back */
    memmap_add(&map, arena.first, arena.next - arena.first, BOOT_MEM_LOADER);
    memmap_add(&map, bi->image_hpa, bi->image_size, BOOT_MEM_IMAGE);
    size_t count = memmap_normalise(&map, bi->mem, BOOT_MAX_MEM_RANGES);
    if (count > BOOT_MAX_MEM_RANGES || map.overflow)
        loader_halt("the memory map has %llu ranges, at most %u can be handled", (unsigned long long)count, BOOT_MAX_MEM_RANGES);
    bi->mem_count = (uint32_t)count;
}

/* ---- files ------------------------------------------------------------------------------------------------------------------ */

/* The file where it can stay, with zeroes up to its page's end. */
static uint64_t settle(const struct mb2_module *m, const char *name)
{
    if (m->hpa < LOW_MEMORY)
        return (uint64_t)memcpy(loader_keep(m->size, name), (const void *)m->hpa, m->size);
    memset((void *)(m->hpa + m->size), 0, ALIGN_UP(m->size, PAGE_SIZE) - m->size);
    return m->hpa;
}

static void take_module(struct boot_info *bi, const struct mb2_module *m)
{
    char name[BOOT_NAME_MAX] = "";
    size_t n = 0;
    while (m->args[n] && m->args[n] != ' ' && n < sizeof(name))
        n++;
    if (n == 0 || n == sizeof(name))
        loader_halt("a module of %llu bytes has no name, or one that is too long: write \"module2 FILE NAME\"", (unsigned long long)m->size);
    memcpy(name, m->args, n);
    if (strcmp(name, CONFIG_PATH) == 0) {
        bi->config_hpa = settle(m, name);
        bi->config_size = m->size;
        return;
    }
    if (bi->file_count == BOOT_MAX_FILES)
        loader_halt("more than %u modules", BOOT_MAX_FILES);
    struct boot_file *f = &bi->files[bi->file_count++];
    f->hpa = settle(m, name);
    f->size = m->size;
    memcpy(f->name, name, sizeof(name));
    loader_print("palimpsest: module %s, %llu KiB", name, (unsigned long long)(m->size + 1023) / 1024);
}

void loader_need_file(struct boot_info *bi, const char *section, const char *key, const char *name)
{
    (void)bi;
    loader_print(CONFIG_PATH ": [%s] %s: cannot read %s: no module has this name (\"module2 FILE %s\" in GRUB's configuration)", section, key,
                 name, name);
    loader_halt("a boot file cannot be read");
}

/* ---- ACPI ------------------------------------------------------------------------------------------------------------------- */

/* GRUB gives a copy, which lies in memory that core will reuse: it gets a page that is kept as ACPI's own. */
static uint64_t find_rsdp(void)
{
    if (mb.rsdp && mb.rsdp_bytes >= 20) {
        void *page = loader_keep(PAGE_SIZE, "the ACPI root pointer");
        memcpy(page, mb.rsdp, MIN(mb.rsdp_bytes, PAGE_SIZE));
        memmap_add(&map, (uint64_t)page, PAGE_SIZE, BOOT_MEM_ACPI_RECLAIM);
        return (uint64_t)page;
    }
    return mb2_search_rsdp(0, mb.efi_system_table);
}

void multiboot2_main(const void *info)
{
    const char *why;
    have_serial = serial_init();
    bool ok = mb2_decode(info, REACH - (uint64_t)info, &mb, &why); /* first: it says where the screen is */
    if (mb.fb.hpa + (uint64_t)mb.fb.pitch * mb.fb.height <= REACH)
        fbtext_init(&pixels, &mb.fb, (void *)mb.fb.hpa);
    loader_print("palimpsest: %s", LOADER_NAME);
    if (!ok)
        loader_halt("the boot loader's information cannot be used: %s", why);
    loader_check_cpu();
    build_map(info);
    choose_arena();
    info = memcpy(loader_keep(mb2_info_bytes(info), "the boot information"), info, mb2_info_bytes(info));
    mb2_decode(info, mb2_info_bytes(info), &mb, &why); /* the same again, where it can stay */

    struct boot_info *bi = loader_keep(sizeof(*bi), "boot_info");
    bi->magic = BOOT_INFO_MAGIC;
    bi->version = BOOT_INFO_VERSION;
    bi->size = sizeof(*bi);
    snprintf(bi->loader, sizeof(bi->loader), LOADER_NAME " from %.32s", *mb.loader ? mb.loader : "an unnamed loader");
    str_copy(bi->cmdline, sizeof(bi->cmdline), mb.cmdline);
    for (uint32_t i = 0; i < mb.module_count; i++)
        take_module(bi, &mb.modules[i]);
    if (bi->config_hpa)
        loader_read_config(bi);
    else
        loader_print("palimpsest: no \"" CONFIG_PATH "\" among the modules: starting without virtual machines");
    uint64_t entry = loader_place_image(bi);
    bi->rsdp_hpa = find_rsdp();
    bi->efi_system_table = mb.efi_system_table;
    bi->fb = mb.fb;
    uint64_t cr3 = loader_build_tables(bi, &map);
    finish_map(bi);
    loader_enter(cr3, entry, HV_DIRECTMAP_BASE + (uint64_t)bi);
}
