/*
 * Carries a load plan out. The guest's memory is filled in three ways, cheapest first: pages of the file whose offset
 * agrees with their gpa modulo 4 KiB are mapped from the file's own frames (read-only, copied when written); the ragged
 * ends are copied; what lies behind the file's part is left EMPTY, which reads as zero. initrd and modules are placed
 * page-aligned as high as their protocol allows and are therefore always mapped, never copied.
 *
 * Everything the protocol itself needs (zero page or info structures, command line, GDT, page tables) is put together
 * in one buffer, the info block, and written to a free spot below 640 KiB in one go.
 */
#include "vm/load.h"

#include "include/abi/boot_info.h"
#include "include/hv/dmm.h"
#include "lib/string.h"
#include "mm/mm.h"
#include "vm/load_parse.h"
#include "vm/vm.h"

#define INFO_MAX_BYTES (14 * PAGE_SIZE)
#define INFO_FLOOR PAGE_SIZE          /* page 0 stays empty: null pointers, the real-mode vectors */
#define INFO_CEILING 0x9f000u         /* below the traditional EBDA */
#define MAX_FILES (CONFIG_MAX_MODULES + 1)

enum { E820_RAM = 1, E820_RESERVED = 2 };
struct e820_range { uint64_t base, size; uint32_t type; } PACKED;
_Static_assert(sizeof(struct e820_range) == 20, "as Linux and multiboot have it");

struct placed_file { uint64_t gpa, size; const char *args; };

struct loader {
    struct vm *vm;
    const struct boot_info *bi;
    const struct boot_file *kernel;
    char *why;
    struct load_plan plan;
    uint64_t low_ram, high_ram, rsdp;
    struct { uint64_t start, end; } used[LOAD_MAX_SEGMENTS + MAX_FILES + 1];
    unsigned used_count;
    struct placed_file files[MAX_FILES]; /* initrd first */
    unsigned file_count;
    struct e820_range e820[8];
    unsigned e820_count;
    uint8_t *info;          /* the info block here, its place in the guest, how much is taken */
    uint64_t info_gpa, info_used;
};

const struct boot_file *load_find_file(const struct boot_info *bi, const char *name)
{
    for (uint32_t n = 0; n < MIN(bi->file_count, (uint32_t)BOOT_MAX_FILES); n++)
        if (strncmp(bi->files[n].name, name, BOOT_NAME_MAX) == 0)
            return &bi->files[n];
    return NULL;
}

static enum load_result out_of_frames(struct loader *l, const char *what)
{
    struct dmm_usage u;
    dmm_space_usage(l->vm->space, &u);
    if (u.charged >= u.max)
        snprintf(l->why, LOAD_WHY_MAX, "%.60s: max = %lu KiB is too little to load it", what, u.max * 4);
    else
        snprintf(l->why, LOAD_WHY_MAX, "%.60s: out of memory while loading it", what);
    return LOAD_NO_MEMORY;
}

static void mark_used(struct loader *l, uint64_t start, uint64_t size)
{
    l->used[l->used_count].start = start;
    l->used[l->used_count++].end = start + size;
}

/* The highest page-aligned free [x, x+size) within [floor, ceiling) of low RAM; UINT64_MAX if there is none. */
static uint64_t find_place(const struct loader *l, uint64_t size, uint64_t floor, uint64_t ceiling)
{
    uint64_t top = ALIGN_DOWN(MIN(ceiling, l->low_ram), PAGE_SIZE);
    size = ALIGN_UP(size, PAGE_SIZE);
    while (top >= floor && top - floor >= size) {
        uint64_t start = top - size, lower = top;
        for (unsigned k = 0; k < l->used_count; k++)
            if (l->used[k].start < top && start < l->used[k].end)
                lower = MIN(lower, ALIGN_DOWN(l->used[k].start, PAGE_SIZE));
        if (lower == top)
            return start;
        top = lower;
    }
    return UINT64_MAX;
}

/* [offset, offset+filesz) of the file to gpa. whole_tail: the last page may come with what follows in the file (zeros).
 * */
static enum load_result put_file_bytes(struct loader *l, const struct boot_file *f, uint64_t offset, uint64_t filesz, uint64_t gpa,
    bool whole_tail)
{
    const uint8_t *bytes = mfn_to_hva(hpa_to_mfn(f->hpa));
    if (((offset ^ gpa) & (PAGE_SIZE - 1)) == 0) {
        uint64_t head = MIN(ALIGN_UP(gpa, PAGE_SIZE) - gpa, filesz);
        uint64_t middle = whole_tail ? ALIGN_UP(filesz - head, PAGE_SIZE) : ALIGN_DOWN(filesz - head, PAGE_SIZE);
        if (head && dmm_write_guest(l->vm->space, gpa, bytes + offset, head) != DMM_FAULT_RETRY)
            return out_of_frames(l, f->name);
        offset += head;
        gpa += head;
        filesz -= head;
        if (middle && dmm_map_boot_file(l->vm->space, gpa_to_gfn(gpa), hpa_to_mfn(f->hpa + offset), middle >> PAGE_SHIFT) != DMM_FAULT_RETRY)
            return out_of_frames(l, f->name);
        offset += middle;
        gpa += middle;
        filesz -= MIN(middle, filesz);
    }
    if (filesz && dmm_write_guest(l->vm->space, gpa, bytes + offset, filesz) != DMM_FAULT_RETRY)
        return out_of_frames(l, f->name);
    return LOAD_OK;
}

static enum load_result put_kernel(struct loader *l)
{
    for (unsigned k = 0; k < l->plan.count; k++) {
        const struct load_segment *s = &l->plan.seg[k];
        enum load_result r = put_file_bytes(l, l->kernel, s->offset, s->filesz, s->gpa, false);
        if (r != LOAD_OK)
            return r;
        mark_used(l, s->gpa, s->memsz);
    }
    return LOAD_OK;
}

static enum load_result put_module(struct loader *l, const char *name, const char *args)
{
    const struct boot_file *f = load_find_file(l->bi, name);
    if (!f) {
        snprintf(l->why, LOAD_WHY_MAX, "%.100s: no such file on the boot medium", name);
        return LOAD_NO_SUCH_FILE;
    }
    uint64_t gpa = find_place(l, MAX(f->size, (uint64_t)1), MIB(1), MIN(l->plan.initrd_max, GIB(4)));
    if (gpa == UINT64_MAX) {
        snprintf(l->why, LOAD_WHY_MAX, "%.60s: %llu bytes do not fit into the VM's memory beside the kernel", name,
            (unsigned long long)f->size);
        return LOAD_DOES_NOT_FIT;
    }
    enum load_result r = put_file_bytes(l, f, 0, f->size, gpa, true);
    mark_used(l, gpa, ALIGN_UP(MAX(f->size, (uint64_t)1), PAGE_SIZE));
    l->files[l->file_count++] = (struct placed_file){gpa, f->size, args};
    return r;
}

static enum load_result put_modules(struct loader *l)
{
    const struct config_vm *c = l->vm->config;
    if (l->plan.format == LOAD_FORMAT_BZIMAGE && c->module_count) {
        snprintf(l->why, LOAD_WHY_MAX, "%.60s: module = is for multiboot and PVH kernels; a bzImage takes an initrd", c->kernel);
        return LOAD_BAD_IMAGE;
    }
    enum load_result r = c->initrd[0] ? put_module(l, c->initrd, "") : LOAD_OK;
    for (uint32_t n = 0; r == LOAD_OK && n < c->module_count; n++)
        r = put_module(l, c->modules[n].file, c->modules[n].args);
    return r;
}

static void build_e820(struct loader *l)
{
    const struct e820_range ranges[] = {
        {0, MIN(l->low_ram, (uint64_t)LOAD_RESERVED_FIRST), E820_RAM},
        {LOAD_RESERVED_FIRST, LOAD_RESERVED_END - LOAD_RESERVED_FIRST, E820_RESERVED},
        {LOAD_RESERVED_END, l->low_ram > LOAD_RESERVED_END ? l->low_ram - LOAD_RESERVED_END : 0, E820_RAM},
        {LOAD_HIGH_RAM_BASE, l->high_ram, E820_RAM},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(ranges); n++)
        if (ranges[n].size)
            l->e820[l->e820_count++] = ranges[n];
}

/* ---- the info block ------------------------------------------------------------------------------------------ */

/* The sizes below add up to less than INFO_MAX_BYTES whatever the configuration says: its strings are bounded. */
static void *info_take(struct loader *l, uint64_t size, uint64_t align, uint64_t *gpa)
{
    l->info_used = ALIGN_UP(l->info_used, align);
    *gpa = l->info_gpa + l->info_used;
    void *p = l->info + l->info_used;
    l->info_used += size;
    return p;
}
_Static_assert(9 * PAGE_SIZE /* zero page, five of tables, alignment */ + CONFIG_CMDLINE_MAX + MAX_FILES * (256 + 32) + 1024 < INFO_MAX_BYTES,
    "tables, strings, modules, the rest");

static uint64_t info_string(struct loader *l, const char *s)
{
    uint64_t gpa;
    memcpy(info_take(l, strlen(s) + 1, 1, &gpa), s, strlen(s) + 1);
    return gpa;
}

static void put_number(uint8_t *at, uint64_t v, unsigned size)
{
    for (unsigned n = 0; n < size; n++)
        at[n] = (uint8_t)(v >> (8 * n));
}

#define ATTR_CODE64 0xa9b
#define ATTR_CODE32 0xc9b
#define ATTR_DATA 0xc93
#define ATTR_TSS 0x08b
#define ATTR_LDT_UNUSABLE 0x8002
#define BOOT_CS 0x10
#define BOOT_DS 0x18

static uint64_t descriptor(unsigned attr)
{
    return UINT64_C(0x000f00000000ffff) | (uint64_t)(attr & 0xff) << 40 | (uint64_t)(attr >> 8) << 52;
}

/* Flat segments as the GDT in the info block has them, so that a guest that reloads a selector finds the same again. */
static void set_segments(struct loader *l, struct load_entry *e, unsigned code_attr)
{
    uint64_t gdt_gpa;
    uint64_t *gdt = info_take(l, 4 * sizeof *gdt, 16, &gdt_gpa);
    gdt[BOOT_CS / 8] = descriptor(code_attr);
    gdt[BOOT_DS / 8] = descriptor(ATTR_DATA);
    e->sregs.gdtr.base = gdt_gpa;
    e->sregs.gdtr.limit = 4 * sizeof *gdt - 1;
    for (unsigned s = SEG_ES; s <= SEG_GS; s++)
        e->sregs.seg[s] = (struct vcpu_seg){.selector = BOOT_DS, .attr = ATTR_DATA, .limit = 0xffffffff};
    e->sregs.seg[SEG_CS].selector = BOOT_CS;
    e->sregs.seg[SEG_CS].attr = (uint16_t)code_attr;
    e->sregs.seg[SEG_TR] = (struct vcpu_seg){.attr = ATTR_TSS, .limit = 0x67};
    e->sregs.seg[SEG_LDTR] = (struct vcpu_seg){.attr = ATTR_LDT_UNUSABLE};
    e->sregs.cr0 = 0x11; /* PE, ET */
    e->sregs.dr6 = 0xffff0ff0;
    e->sregs.dr7 = 0x400;
    e->sregs.pat = UINT64_C(0x0007040600070406);
    e->rflags = 2;
    e->rip = l->plan.entry;
}

/* Long mode with low RAM mapped one to one by 2 MiB pages. */
static void set_long_mode(struct loader *l, struct load_entry *e)
{
    unsigned directories = (unsigned)((l->low_ram + GIB(1) - 1) >> 30);
    uint64_t pml4_gpa, pdpt_gpa, pd_gpa;
    uint64_t *pml4 = info_take(l, PAGE_SIZE, PAGE_SIZE, &pml4_gpa), *pdpt = info_take(l, PAGE_SIZE, PAGE_SIZE, &pdpt_gpa);
    uint64_t *pd = info_take(l, directories * PAGE_SIZE, PAGE_SIZE, &pd_gpa);
    const uint64_t present_write = 3, large = 0x80;
    pml4[0] = pdpt_gpa | present_write;
    for (unsigned n = 0; n < directories; n++)
        pdpt[n] = (pd_gpa + n * PAGE_SIZE) | present_write;
    for (unsigned n = 0; n < directories * 512; n++)
        pd[n] = (uint64_t)n << LARGE_SHIFT | present_write | large;
    e->sregs.cr3 = pml4_gpa;
    e->sregs.cr4 = 0x20;         /* PAE */
    e->sregs.efer = 0x500;       /* LME, LMA */
    e->sregs.cr0 = 0x80000011;   /* PG, ET, PE */
}

enum { /* Linux's zero page, struct boot_params */
    ZP_ACPI_RSDP = 0x070, ZP_EXT_RAMDISK_IMAGE = 0x0c0, ZP_EXT_RAMDISK_SIZE = 0x0c4, ZP_E820_ENTRIES = 0x1e8, ZP_SETUP_HEADER = 0x1f1,
    ZP_TYPE_OF_LOADER = 0x210, ZP_RAMDISK_IMAGE = 0x218, ZP_RAMDISK_SIZE = 0x21c, ZP_CMDLINE = 0x228, ZP_E820_TABLE = 0x2d0,
};

static void build_linux(struct loader *l, struct load_entry *e)
{
    uint64_t gpa;
    uint8_t *zp = info_take(l, PAGE_SIZE, PAGE_SIZE, &gpa);
    const uint8_t *file = mfn_to_hva(hpa_to_mfn(l->kernel->hpa));
    memcpy(zp + ZP_SETUP_HEADER, file + ZP_SETUP_HEADER, l->plan.setup_end - ZP_SETUP_HEADER);
    zp[ZP_TYPE_OF_LOADER] = 0xff; /* no registered loader */
    put_number(zp + ZP_ACPI_RSDP, l->rsdp, 8);
    put_number(zp + ZP_CMDLINE, info_string(l, l->vm->config->cmdline), 4);
    if (l->file_count) {
        put_number(zp + ZP_RAMDISK_IMAGE, l->files[0].gpa, 4);
        put_number(zp + ZP_RAMDISK_SIZE, l->files[0].size, 4);
        put_number(zp + ZP_EXT_RAMDISK_IMAGE, l->files[0].gpa >> 32, 4);
        put_number(zp + ZP_EXT_RAMDISK_SIZE, l->files[0].size >> 32, 4);
    }
    zp[ZP_E820_ENTRIES] = (uint8_t)l->e820_count;
    memcpy(zp + ZP_E820_TABLE, l->e820, l->e820_count * sizeof l->e820[0]);
    set_segments(l, e, l->plan.long_mode ? ATTR_CODE64 : ATTR_CODE32);
    if (l->plan.long_mode)
        set_long_mode(l, e);
    e->gpr[GPR_RSI] = gpa;
}

struct hvm_start_info { /* Xen's include/public/arch-x86/hvm/start_info.h, version 1 */
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
    uint32_t memmap_entries, reserved;
};
struct hvm_modlist_entry { uint64_t paddr, size, cmdline_paddr, reserved; };
struct hvm_memmap_entry { uint64_t addr, size; uint32_t type, reserved; };
_Static_assert(sizeof(struct hvm_start_info) == 56 && sizeof(struct hvm_modlist_entry) == 32 && sizeof(struct hvm_memmap_entry) == 24,
    "PVH ABI");

static void build_pvh(struct loader *l, struct load_entry *e)
{
    uint64_t gpa;
    struct hvm_start_info *si = info_take(l, sizeof *si, 8, &gpa);
    struct hvm_memmap_entry *map = info_take(l, l->e820_count * sizeof *map, 8, &si->memmap_paddr);
    for (unsigned n = 0; n < l->e820_count; n++)
        map[n] = (struct hvm_memmap_entry){l->e820[n].base, l->e820[n].size, l->e820[n].type, 0};
    si->magic = 0x336ec578;
    si->version = 1;
    si->nr_modules = l->file_count;
    si->memmap_entries = l->e820_count;
    si->rsdp_paddr = l->rsdp;
    if (l->file_count) {
        struct hvm_modlist_entry *mods = info_take(l, l->file_count * sizeof *mods, 8, &si->modlist_paddr);
        for (unsigned n = 0; n < l->file_count; n++)
            mods[n] = (struct hvm_modlist_entry){l->files[n].gpa, l->files[n].size, info_string(l, l->files[n].args), 0};
    }
    si->cmdline_paddr = info_string(l, l->vm->config->cmdline);
    set_segments(l, e, ATTR_CODE32);
    e->gpr[GPR_RBX] = gpa;
}

struct multiboot_info {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr, drives[2],
        config_table, boot_loader_name, apm_table, vbe[4];
};
struct multiboot_module { uint32_t start, end, string, reserved; };
struct multiboot_mmap { uint32_t size; struct e820_range range; } PACKED;
_Static_assert(offsetof(struct multiboot_info, mmap_length) == 44 && offsetof(struct multiboot_info, boot_loader_name) == 64, "multiboot");

static void build_multiboot(struct loader *l, struct load_entry *e)
{
    uint64_t gpa, at;
    struct multiboot_info *mbi = info_take(l, sizeof *mbi, 8, &gpa);
    struct multiboot_mmap *map = info_take(l, l->e820_count * sizeof *map, 8, &at);
    mbi->mmap_addr = (uint32_t)at;
    mbi->mmap_length = (uint32_t)(l->e820_count * sizeof *map);
    for (unsigned n = 0; n < l->e820_count; n++)
        map[n] = (struct multiboot_mmap){sizeof(struct e820_range), l->e820[n]};
    mbi->flags = 1u << 0 | 1u << 2 | 1u << 3 | 1u << 6 | 1u << 9; /* memory, command line, modules, map, loader's name */
    mbi->mem_lower = (uint32_t)(MIN(l->low_ram, (uint64_t)LOAD_RESERVED_FIRST) >> 10);
    mbi->mem_upper = (uint32_t)((l->low_ram - MIN(l->low_ram, (uint64_t)LOAD_RESERVED_END)) >> 10);
    struct multiboot_module *mods = info_take(l, MAX_FILES * sizeof *mods, 8, &at);
    mbi->mods_addr = (uint32_t)at;
    mbi->mods_count = l->file_count;
    for (unsigned n = 0; n < l->file_count; n++) {
        const struct placed_file *f = &l->files[n];
        mods[n] = (struct multiboot_module){(uint32_t)f->gpa, (uint32_t)(f->gpa + f->size), (uint32_t)info_string(l, f->args), 0};
    }
    mbi->cmdline = (uint32_t)info_string(l, l->vm->config->cmdline);
    mbi->boot_loader_name = (uint32_t)info_string(l, "palimpsest");
    set_segments(l, e, ATTR_CODE32);
    e->gpr[GPR_RAX] = 0x2badb002;
    e->gpr[GPR_RBX] = gpa;
}

static enum load_result put_info(struct loader *l, struct load_entry *e)
{
    if (strlen(l->vm->config->cmdline) > l->plan.cmdline_max) {
        snprintf(l->why, LOAD_WHY_MAX, "%.60s: cmdline: %llu bytes, the kernel takes %u", l->kernel->name,
            (unsigned long long)strlen(l->vm->config->cmdline), l->plan.cmdline_max);
        return LOAD_BAD_IMAGE;
    }
    l->info_gpa = find_place(l, INFO_MAX_BYTES, INFO_FLOOR, INFO_CEILING);
    if (l->info_gpa == UINT64_MAX) {
        snprintf(l->why, LOAD_WHY_MAX, "%.60s: leaves no %u KiB below 640 KiB for the boot information", l->kernel->name,
            (unsigned)(INFO_MAX_BYTES >> 10));
        return LOAD_DOES_NOT_FIT;
    }
    l->info = kzalloc(INFO_MAX_BYTES);
    if (!l->info)
        return out_of_frames(l, l->kernel->name);
    if (l->plan.format == LOAD_FORMAT_BZIMAGE)
        build_linux(l, e);
    else if (l->plan.format == LOAD_FORMAT_PVH)
        build_pvh(l, e);
    else
        build_multiboot(l, e);
    enum dmm_fault_result r = dmm_write_guest(l->vm->space, l->info_gpa, l->info, l->info_used);
    kfree(l->info);
    return r == DMM_FAULT_RETRY ? LOAD_OK : out_of_frames(l, l->kernel->name);
}

/*
 * What a BIOS leaves behind and kernels read without asking where they were started from: the ports of serial lines, where the
 * extended data area begins, how much memory is below it. There is no BIOS to call; interrupts in real mode lead to an IRET, so that
 * code that tries sees its registers unchanged and goes on. Not if the image lies there.
 */
static enum load_result put_bios_data(struct loader *l)
{
    enum { BDA = 0x400, COM1_PORT = BDA, EBDA_SEGMENT = BDA + 0x0e, EQUIPMENT = BDA + 0x10, BASE_KIB = BDA + 0x13, END = BDA + 0x15 };
    enum { DUMMY_SEGMENT = 0xf000, DUMMY_OFFSET = 0xff53, IRET = 0xcf }; /* where BIOSes have had theirs since the first */
    uint8_t iret = IRET, ebda_kib = (LOAD_VGA_FIRST - LOAD_RESERVED_FIRST) >> 10, *low;
    if (l->low_ram < LOAD_RESERVED_END)
        return LOAD_OK;
    for (unsigned n = 0; n < l->used_count; n++)
        if (l->used[n].start < BDA + 0x100)
            return LOAD_OK;
    if (!(low = kzalloc(END)))
        return out_of_frames(l, l->kernel->name);
    for (unsigned vector = 0; vector < 256; vector++)
        memcpy(low + 4 * vector, &(uint32_t){(uint32_t)DUMMY_SEGMENT << 16 | DUMMY_OFFSET}, 4);
    memcpy(low + COM1_PORT, &(uint16_t){0x3f8}, 2);
    memcpy(low + EBDA_SEGMENT, &(uint16_t){LOAD_RESERVED_FIRST >> 4}, 2);
    memcpy(low + EQUIPMENT, &(uint16_t){1 << 9}, 2); /* one serial port */
    memcpy(low + BASE_KIB, &(uint16_t){LOAD_RESERVED_FIRST >> 10}, 2);
    bool ok = dmm_write_guest(l->vm->space, 0, low, END) == DMM_FAULT_RETRY &&
              dmm_write_guest(l->vm->space, LOAD_RESERVED_FIRST, &ebda_kib, 1) == DMM_FAULT_RETRY &&
              dmm_write_guest(l->vm->space, (DUMMY_SEGMENT << 4) + DUMMY_OFFSET, &iret, 1) == DMM_FAULT_RETRY;
    kfree(low);
    return ok ? LOAD_OK : out_of_frames(l, l->kernel->name);
}

static enum load_result load_all(struct loader *l, struct load_entry *entry)
{
    const struct config_vm *c = l->vm->config;
    l->kernel = load_find_file(l->bi, c->kernel);
    if (!l->kernel) {
        snprintf(l->why, LOAD_WHY_MAX, "%.100s: no such file on the boot medium", c->kernel);
        return LOAD_NO_SUCH_FILE;
    }
    struct load_image img = {l->kernel->name, mfn_to_hva(hpa_to_mfn(l->kernel->hpa)), l->kernel->size};
    enum load_result r = load_plan(&img, l->low_ram, &l->plan, l->why);
    if (r != LOAD_OK || (r = put_kernel(l)) != LOAD_OK || (r = put_modules(l)) != LOAD_OK || (r = put_bios_data(l)) != LOAD_OK)
        return r;
    build_e820(l);
    return put_info(l, entry);
}

enum load_result vm_load_image(struct vm *vm, const struct boot_info *bi, uint64_t rsdp_gpa, struct load_entry *entry, char *why)
{
    struct loader *l = kzalloc(sizeof *l); /* too large for a stack */
    why[0] = '\0';
    if (!l) {
        snprintf(why, LOAD_WHY_MAX, "%.60s: out of memory while loading it", vm->config->kernel);
        return LOAD_NO_MEMORY;
    }
    *entry = (struct load_entry){0};
    l->vm = vm;
    l->bi = bi;
    l->why = why;
    l->low_ram = load_low_ram_bytes(vm->config->memory_bytes);
    l->high_ram = load_high_ram_bytes(vm->config->memory_bytes);
    l->rsdp = rsdp_gpa;
    enum load_result r = load_all(l, entry);
    kfree(l);
    return r;
}
