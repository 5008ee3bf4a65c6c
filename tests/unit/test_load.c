/* TEST-SOURCES: vm/load.c vm/load_parse.c vm/load_bzimage.c vm/load_pvh.c vm/load_multiboot.c */
/*
 * The loaders: hand-made images, good ones loaded into a fake guest memory and looked at as the guest would, bad ones
 * refused with the reason expected. If a guest kernel has been fetched (build/guest-kernel/vmlinuz) it is loaded as
 * well.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "include/abi/boot_info.h"
#include "mm/mm.h"
#include "vm/load.h"
#include "vm/vm.h"

/* ---- fakes: guest memory is one array, a machine address is a pointer
 * ------------------------------------------------- */

#define GUEST_BYTES MIB(160)
static uint8_t *guest;
static uint64_t mapped_pages, written_bytes;
static bool no_frames;
static uint64_t max_pages = UINT64_MAX; /* of a VM that holds 3 */

void *mfn_to_hva(mfn_t mfn) { return (void *)(uintptr_t)(mfn.v << PAGE_SHIFT); }
void *kzalloc(size_t n) { return calloc(1, n); }
void kfree(void *p) { free(p); }

enum dmm_fault_result dmm_write_guest(struct dmm_space *s, uint64_t gpa, const void *buf, size_t len)
{
    (void)s;
    if (no_frames)
        return DMM_FAULT_STALLED;
    assert_true(gpa <= GUEST_BYTES && len <= GUEST_BYTES - gpa);
    memcpy(guest + gpa, buf, len);
    written_bytes += len;
    return DMM_FAULT_RETRY;
}

enum dmm_fault_result dmm_map_boot_file(struct dmm_space *s, gfn_t first, mfn_t mfn, uint64_t pages)
{
    (void)s;
    assert_true(first.v + pages <= GUEST_BYTES >> PAGE_SHIFT);
    memcpy(guest + gfn_to_gpa(first), mfn_to_hva(mfn), pages << PAGE_SHIFT);
    mapped_pages += pages;
    return no_frames ? DMM_FAULT_STALLED : DMM_FAULT_RETRY;
}

void dmm_space_usage(const struct dmm_space *s, struct dmm_usage *out)
{
    (void)s;
    *out = (struct dmm_usage){.charged = 3, .max = max_pages};
}

/* ---- a VM and its boot files
 * -------------------------------------------------------------------------------------------- */

static struct boot_info *bi;
static struct vm *vm;
static struct config_vm *config;
static struct load_entry entry;
static char why[LOAD_WHY_MAX];

/* Files are page-aligned and zero to the end of their last page, as the boot loader leaves them. */
static uint8_t *add_file(const char *name, uint64_t size)
{
    struct boot_file *f = &bi->files[bi->file_count++];
    uint8_t *p = aligned_alloc(PAGE_SIZE, MAX(ALIGN_UP(size, PAGE_SIZE), PAGE_SIZE));
    memset(p, 0, MAX(ALIGN_UP(size, PAGE_SIZE), PAGE_SIZE));
    *f = (struct boot_file){.hpa = (uintptr_t)p, .size = size};
    snprintf(f->name, sizeof f->name, "%s", name);
    return p;
}

static void fill(uint8_t *p, uint64_t n, unsigned seed)
{
    for (uint64_t k = 0; k < n; k++)
        p[k] = (uint8_t)(k * 7 + (k >> 8) + seed);
}

static int setup(void **state)
{
    (void)state;
    guest = calloc(1, GUEST_BYTES);
    bi = calloc(1, sizeof *bi);
    vm = calloc(1, sizeof *vm);
    vm->config = config = calloc(1, sizeof *config);
    config->memory_bytes = GUEST_BYTES;
    strcpy(config->kernel, "kernel");
    mapped_pages = written_bytes = 0;
    no_frames = false;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (unsigned k = 0; k < bi->file_count; k++)
        free((void *)(uintptr_t)bi->files[k].hpa);
    free(guest);
    free(bi);
    free(config);
    free(vm);
    return 0;
}

static uint64_t num(const uint8_t *p, unsigned size)
{
    uint64_t v = 0;
    memcpy(&v, p, size);
    return v;
}
static void put(uint8_t *p, uint64_t v, unsigned size) { memcpy(p, &v, size); }

static void loads(void)
{
    enum load_result r = vm_load_image(vm, bi, 0xf0000, &entry, why);
    if (r != LOAD_OK)
        fail_msg("refused (%d): %s", r, why);
}

static void refuses(enum load_result expected, const char *text)
{
    assert_int_equal(vm_load_image(vm, bi, 0xf0000, &entry, why), expected);
    if (!strstr(why, text))
        fail_msg("reason is \"%s\", expected \"%s\"", why, text);
    assert_true(strlen(why) < LOAD_WHY_MAX);
}

/* The guest's own view of a linear address through the tables it is given. */
static uint64_t walk(uint64_t gva)
{
    uint64_t table = entry.sregs.cr3;
    for (int level = 4; level >= 2; level--) {
        uint64_t e = num(guest + table + 8 * ((gva >> (12 + 9 * (level - 1))) & 511), 8);
        assert_true(e & 1);
        if (e & 0x80)
            return (e & ~(LARGE_SIZE - 1)) | (gva & (LARGE_SIZE - 1));
        table = e & PAGE_MASK;
    }
    return UINT64_MAX;
}

/* ---- bzImage
 * ------------------------------------------------------------------------------------------------------------ */

#define BZ_SIZE (0x5000 + 300000)
static uint8_t *make_bzimage(unsigned sects)
{
    uint8_t *p = add_file("kernel", BZ_SIZE);
    fill(p, BZ_SIZE, 1);
    memset(p, 0, 0x400);
    p[0x1f1] = (uint8_t)sects;
    put(p + 0x1f4, (BZ_SIZE - (sects + 1) * 512 + 15) / 16, 4);
    put(p + 0x1fe, 0xaa55, 2);
    p[0x201] = 0x6a;
    put(p + 0x202, 0x53726448, 4);
    put(p + 0x206, 0x20f, 2);
    p[0x211] = 1;
    put(p + 0x22c, 0x7fffffff, 4);
    put(p + 0x230, 0x200000, 4);
    p[0x234] = 1;
    put(p + 0x236, 0x7f, 2);
    put(p + 0x238, 2047, 4);
    put(p + 0x258, 0x1000000, 8);
    put(p + 0x260, 0x3378000, 4);
    return p;
}

static void test_bzimage(void **state)
{
    (void)state;
    uint8_t *k = make_bzimage(39), *rd = add_file("rd", 10000);
    fill(rd, 10000, 9);
    strcpy(config->initrd, "rd");
    strcpy(config->cmdline, "console=ttyS0");
    loads();
    assert_int_equal(entry.rip, 0x1000200);
    assert_memory_equal(guest + 0x1000000, k + 0x5000, BZ_SIZE - 0x5000);
    assert_int_equal(mapped_pages, (BZ_SIZE - 0x5000) / 4096 + 3); /* the whole pages of both: offset 0x5000 is page-congruent */
    uint64_t zp = entry.gpr[GPR_RSI], rd_gpa = num(guest + zp + 0x218, 4);
    assert_memory_equal(guest + zp + 0x1f1, k + 0x1f1, 0x210 - 0x1f1);
    assert_int_equal(num(guest + zp + 0x210, 1), 0xff);
    assert_int_equal(num(guest + zp + 0x21c, 4), 10000);
    assert_int_equal(rd_gpa, GUEST_BYTES - 3 * 4096);
    assert_memory_equal(guest + rd_gpa, rd, 10000);
    assert_string_equal((char *)guest + num(guest + zp + 0x228, 4), "console=ttyS0");
    assert_int_equal(num(guest + zp + 0x70, 8), 0xf0000);
    assert_int_equal(num(guest + zp + 0x1e8, 1), 3);
    assert_int_equal(num(guest + zp + 0x2d0 + 20 + 0, 8), 0x9fc00);
    assert_int_equal(num(guest + 0x40e, 2), 0x9fc0);
    assert_int_equal(num(guest + 0x413, 2), 639);
    assert_int_equal(num(guest + zp + 0x2d0 + 20 + 16, 4), 2);
    assert_int_equal(num(guest + zp + 0x2d0 + 40 + 8, 8), GUEST_BYTES - MIB(1));
    for (uint64_t gva = 0; gva < GUEST_BYTES; gva += 0x123457)
        assert_int_equal(walk(gva), gva);
    assert_int_equal(entry.sregs.efer, 0x500);
    assert_int_equal(entry.sregs.seg[SEG_CS].selector, 0x10);
    assert_int_equal(num(guest + entry.sregs.gdtr.base + 0x10, 8), 0x00af9b000000ffff);
    assert_int_equal(num(guest + entry.sregs.gdtr.base + 0x18, 8), 0x00cf93000000ffff);
    assert_int_equal(entry.rflags, 2);
}

/* Without a 64-bit entry, or from before there was one: the first byte, in 32-bit mode with paging off. */
static void test_bzimage_32(void **state)
{
    static const struct { uint16_t version, xloadflags; } kernels[] = {{0x20f, 0x7e}, {0x20a, 0x01}};
    for (unsigned n = 0; n < ARRAY_SIZE(kernels); n++) {
        uint8_t *k = make_bzimage(39);
        put(k + 0x206, kernels[n].version, 2);
        put(k + 0x236, kernels[n].xloadflags, 2);
        put(k + 0x214, 0x100000, 4);
        strcpy(config->cmdline, "console=ttyS0");
        loads();
        assert_int_equal(entry.rip, 0x1000000);
        assert_memory_equal(guest + 0x1000000, k + 0x5000, BZ_SIZE - 0x5000);
        uint64_t zp = entry.gpr[GPR_RSI];
        assert_string_equal((char *)guest + num(guest + zp + 0x228, 4), "console=ttyS0");
        assert_int_equal(num(guest + zp + 0x70, 8), 0xf0000);
        assert_int_equal(entry.gpr[GPR_RBX] | entry.gpr[GPR_RBP] | entry.gpr[GPR_RDI], 0);
        assert_int_equal(entry.sregs.cr0, 0x11);
        assert_int_equal(entry.sregs.efer | entry.sregs.cr3 | entry.sregs.cr4, 0);
        assert_int_equal(entry.sregs.seg[SEG_CS].selector, 0x10);
        assert_int_equal(entry.sregs.seg[SEG_CS].attr, 0xc9b);
        assert_int_equal(num(guest + entry.sregs.gdtr.base + 0x10, 8), 0x00cf9b000000ffff);
        assert_int_equal(entry.rflags, 2);
        teardown(state);
        setup(state);
    }
}

static void test_bzimage_not_congruent(void **state)
{
    (void)state;
    uint8_t *k = make_bzimage(40); /* payload at 0x5200: everything is copied */
    loads();
    assert_memory_equal(guest + 0x1000000, k + 0x5200, BZ_SIZE - 0x5200);
    assert_int_equal(mapped_pages, 0);
}

struct spoil { unsigned offset, size; uint64_t value; enum load_result result; const char *text; };

static void test_bzimage_refused(void **state)
{
    static const struct spoil spoils[] = {
        {0x206, 2, 0x209, LOAD_BAD_IMAGE, "kernel: bzImage: version: boot protocol 2.9 is too old"},
        {0x211, 1, 0, LOAD_BAD_IMAGE, "loadflags"},
        {0x236, 2, 0x7e, LOAD_BAD_IMAGE, "code32_start: neither a 64-bit nor a 32-bit entry point"},
        {0x201, 1, 0x10, LOAD_BAD_IMAGE, "jump: setup header ends at"},
        {0x201, 1, 0xff, LOAD_BAD_IMAGE, "jump: setup header ends at"},
        {0x1f4, 4, 0x7fffffff, LOAD_BAD_IMAGE, "syssize"},
        {0x230, 4, 0x300000, LOAD_BAD_IMAGE, "kernel_alignment 0x300000"},
        {0x230, 4, 0, LOAD_BAD_IMAGE, "kernel_alignment 0x0"},
        {0x258, 8, 0x1000001, LOAD_BAD_IMAGE, "pref_address 0x1000001"},
        {0x258, 8, 0, LOAD_BAD_IMAGE, "pref_address 0x0"},
        {0x258, 8, 0xffffffffffe00000, LOAD_DOES_NOT_FIT, "needs"},
        {0x260, 4, 0x1000, LOAD_BAD_IMAGE, "init_size 0x1000"},
        {0x260, 4, 0xffffffff, LOAD_DOES_NOT_FIT, "the VM has 160"},
        {0x238, 4, 3, LOAD_BAD_IMAGE, "cmdline: 5 bytes, the kernel takes 3"},
        {0x22c, 4, 0xfffff, LOAD_DOES_NOT_FIT, "rd: 10000 bytes do not fit"},
        {0x202, 4, 0, LOAD_BAD_IMAGE, "neither a bzImage, nor an ELF"},
    };
    for (unsigned k = 0; k < ARRAY_SIZE(spoils); k++) {
        uint8_t *p = make_bzimage(39);
        add_file("rd", 10000);
        strcpy(config->initrd, "rd");
        strcpy(config->cmdline, "quiet");
        put(p + spoils[k].offset, spoils[k].value, spoils[k].size);
        refuses(spoils[k].result, spoils[k].text);
        teardown(state);
        setup(state);
    }
    static const struct { uint64_t magic; const char *text; } others[] = {
        {0x8b1f, "kernel (it is compressed by gzip: unpack it)"}, {0x587a37fd, "by xz"}, {0xfd2fb528, "by zstd"},
        {0x905a4d, "kernel (it is an EFI program)"},
        {0x12345678, "nor a multiboot 1 kernel"},
    };
    for (unsigned k = 0; k < ARRAY_SIZE(others); k++) {
        put(add_file("kernel", 600), others[k].magic, 4);
        refuses(LOAD_BAD_IMAGE, others[k].text);
        teardown(state);
        setup(state);
    }
    make_bzimage(39);
    bi->files[0].size = 8192;
    refuses(LOAD_BAD_IMAGE, "kernel: bzImage: setup_sects 0x27 runs past the end of the file (8192 bytes)");
    bi->files[0].size = 0x240;
    refuses(LOAD_BAD_IMAGE, "setup header: the file has only 576 bytes");
    bi->files[0].size = 0;
    refuses(LOAD_BAD_IMAGE, "neither a bzImage");
    strcpy(config->kernel, "absent");
    refuses(LOAD_NO_SUCH_FILE, "absent: no such file");
    strcpy(config->kernel, "kernel");
    bi->files[0].size = BZ_SIZE;
    no_frames = true;
    refuses(LOAD_NO_MEMORY, "kernel: out of memory");
    max_pages = 3;
    refuses(LOAD_NO_MEMORY, "kernel: max = 12 KiB is too little");
    max_pages = UINT64_MAX;
    no_frames = false;
    strcpy(config->initrd, "absent");
    refuses(LOAD_NO_SUCH_FILE, "absent: no such file");
    config->initrd[0] = 0;
    config->module_count = 1;
    refuses(LOAD_BAD_IMAGE, "module = is for multiboot and PVH");
}

/* ---- PVH
 * ------------------------------------------------------------------------------------------------------------------ */

struct seg { uint32_t type; uint64_t offset, vaddr, paddr, filesz, memsz; };

static uint8_t *make_elf(bool is64, uint64_t size, uint64_t start, const struct seg *segs, unsigned count)
{
    uint8_t *p = add_file("kernel", size);
    fill(p, size, 3);
    memset(p, 0, 512);
    put(p, 0x464c457f, 4);
    p[4] = is64 ? 2 : 1;
    p[5] = p[6] = 1;
    put(p + 16, 2, 2);
    put(p + 18, is64 ? 62 : 3, 2);
    unsigned w = is64 ? 8 : 4, ph = is64 ? 64 : 52, entsize = is64 ? 56 : 32;
    put(p + 24, start, w);
    put(p + 24 + w, ph, w);
    put(p + (is64 ? 54 : 42), entsize, 2);
    put(p + (is64 ? 56 : 44), count, 2);
    for (unsigned k = 0; k < count; k++) {
        uint8_t *h = p + ph + k * entsize;
        put(h, segs[k].type, 4);
        put(h + w, segs[k].offset, w);
        put(h + 2 * w, segs[k].vaddr, w);
        put(h + 3 * w, segs[k].paddr, w);
        put(h + 4 * w, segs[k].filesz, w);
        put(h + 5 * w, segs[k].memsz, w);
    }
    return p;
}

static const struct seg pvh_segs[] = {{1, 0x2000, 0xffffffff81000000, 0x1000000, 0x4800, 0x9000}, {1, 0x7000, 0, 0x1200080, 0x100, 0x100},
    {4, 0x400, 0, 0, 0x40, 0x40}};

static void put_note(uint8_t *p, uint64_t start)
{
    static const uint8_t other[] = {4, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 'G', 'N', 'U', 0, 1, 2, 3, 4, 5, 0, 0, 0};
    memset(p + 0x400, 0, 0x40);
    memcpy(p + 0x400, other, sizeof other);
    put(p + 0x418, 4, 4);
    put(p + 0x41c, 8, 4);
    put(p + 0x420, 18, 4);
    memcpy(p + 0x424, "Xen", 4);
    put(p + 0x428, start, 8);
}

static void check_pvh(bool is64)
{
    uint8_t *k = make_elf(is64, 0x8000, 0x1000000, pvh_segs, 3);
    put_note(k, 0x1000040);
    uint8_t *rd = add_file("rd", 5000), *mod = add_file("mod", 1);
    fill(rd, 5000, 5);
    mod[0] = 42;
    strcpy(config->initrd, "rd");
    config->module_count = 1;
    strcpy(config->modules[0].file, "mod");
    strcpy(config->modules[0].args, "a b");
    strcpy(config->cmdline, "hello");
    loads();
    assert_int_equal(entry.rip, 0x1000040);
    assert_memory_equal(guest + 0x1000000, k + 0x2000, 0x4800);
    assert_memory_equal(guest + 0x1200080, k + 0x7000, 0x100);
    assert_int_equal(guest[0x1004800], 0);
    assert_int_equal(mapped_pages, 4 + 2 + 1);
    uint8_t *si = guest + entry.gpr[GPR_RBX];
    assert_int_equal(num(si, 4), 0x336ec578);
    assert_int_equal(num(si + 4, 4), 1);
    assert_int_equal(num(si + 12, 4), 2);
    uint8_t *mods = guest + num(si + 16, 8);
    assert_memory_equal(guest + num(mods, 8), rd, 5000);
    assert_int_equal(num(mods + 8, 8), 5000);
    assert_int_equal(guest[num(mods + 32, 8)], 42);
    assert_string_equal((char *)guest + num(mods + 32 + 16, 8), "a b");
    assert_string_equal((char *)guest + num(si + 24, 8), "hello");
    assert_int_equal(num(si + 32, 8), 0xf0000);
    assert_int_equal(num(si + 48, 4), 3);
    assert_int_equal(num(guest + num(si + 40, 8) + 2 * 24, 8), MIB(1));
    assert_int_equal(entry.sregs.cr0, 0x11);
    assert_int_equal(entry.sregs.efer, 0);
    assert_int_equal(entry.sregs.seg[SEG_CS].attr, 0xc9b);
}

static void test_pvh64(void **state) { (void)state; check_pvh(true); }
static void test_pvh32(void **state) { (void)state; check_pvh(false); }

static void test_elf_refused(void **state)
{
    static const struct spoil spoils[] = { /* of the ELF64 file: e_phoff 32, e_phentsize 54, e_phnum 56; segment 0 at 64, 1 at 120 */
        {64 + 8, 8, 0x7fffffffffffffff, LOAD_BAD_IMAGE, "segment 0: file bytes 0x7fffffffffffffff+0x4800 run past"},
        {64 + 8, 8, 0xfffffffffffff000, LOAD_BAD_IMAGE, "run past the end"},
        {64 + 32, 8, 0xffffffffffffffff, LOAD_BAD_IMAGE, "run past the end"},
        {64 + 40, 8, 0x4000, LOAD_BAD_IMAGE, "segment 0: memory size 0x4000 is less than file size 0x4800"},
        {64 + 40, 8, 0xffffffffffffffff, LOAD_DOES_NOT_FIT, "segment 0: 0x1000000+0xffffffffffffffff does not fit"},
        {64 + 24, 8, 0xffffffff00000000, LOAD_DOES_NOT_FIT, "does not fit"},
        {64 + 24, 8, 0x9c000, LOAD_BAD_IMAGE, "touches the reserved"},
        {120 + 24, 8, 0x1008fff, LOAD_BAD_IMAGE, "segments 0 and 1 overlap at 0x1008fff"},
        {0x428, 8, 0x5000, LOAD_BAD_IMAGE, "PHYS32_ENTRY note: 0x5000 lies in no segment"},
        {54, 2, 32, LOAD_BAD_IMAGE, "e_phentsize 32 is not 56"},
        {56, 2, 0xffff, LOAD_BAD_IMAGE, "65535 program headers at 0x40 run past"},
        {32, 8, 0xffffffffffffffc0, LOAD_BAD_IMAGE, "run past"},
        {18, 2, 183, LOAD_BAD_IMAGE, "machine 183 is not x86"},
        {5, 1, 2, LOAD_BAD_IMAGE, "not little-endian"},
        {4, 1, 7, LOAD_BAD_IMAGE, "class 7"},
        {0x420, 4, 17, LOAD_BAD_IMAGE, "nor a multiboot 1 kernel (it is an ELF file)"},
        {0x418, 4, 0xffffffff, LOAD_BAD_IMAGE, "neither"},
        {0x41c, 4, 0xffffffff, LOAD_BAD_IMAGE, "neither"},
    };
    for (unsigned k = 0; k < ARRAY_SIZE(spoils); k++) {
        uint8_t *p = make_elf(true, 0x8000, 0x1000000, pvh_segs, 3);
        put_note(p, 0x1000040);
        put(p + spoils[k].offset, spoils[k].value, spoils[k].size);
        refuses(spoils[k].result, spoils[k].text);
        teardown(state);
        setup(state);
    }
}

/* ---- multiboot
 * ------------------------------------------------------------------------------------------------------------ */

static void put_multiboot(uint8_t *p, uint32_t flags)
{
    put(p, 0x1badb002, 4);
    put(p + 4, flags, 4);
    put(p + 8, -(0x1badb002 + flags), 4);
}

static void check_multiboot_info(void)
{
    uint8_t *mbi = guest + entry.gpr[GPR_RBX];
    assert_int_equal(entry.gpr[GPR_RAX], 0x2badb002);
    assert_int_equal(num(mbi, 4), 0x24d);
    assert_int_equal(num(mbi + 4, 4), 639);
    assert_int_equal(num(mbi + 8, 4), (GUEST_BYTES >> 10) - 1024);
    assert_string_equal((char *)guest + num(mbi + 16, 4), "one two");
    assert_int_equal(num(mbi + 44, 4), 3 * 24);
    uint8_t *map = guest + num(mbi + 48, 4);
    assert_int_equal(num(map, 4), 20);
    assert_int_equal(num(map + 24 + 4, 8), 0x9fc00);
    assert_int_equal(num(map + 24 + 20, 4), 2);
    assert_string_equal((char *)guest + num(mbi + 64, 4), "palimpsest");
    assert_int_equal(num(mbi + 20, 4), 1);
    uint8_t *mod = guest + num(mbi + 24, 4);
    assert_int_equal(num(mod + 4, 4) - num(mod, 4), 4097);
    assert_int_equal(num(mod, 4) % 4096, 0);
    assert_int_equal(guest[num(mod, 4) + 4096], 77);
    assert_string_equal((char *)guest + num(mod + 8, 4), "args of it");
    assert_int_equal(entry.sregs.cr0, 0x11);
    assert_int_equal(entry.sregs.seg[SEG_DS].attr, 0xc93);
}

static void with_module(void)
{
    add_file("m", 4097)[4096] = 77;
    config->module_count = 1;
    strcpy(config->modules[0].file, "m");
    strcpy(config->modules[0].args, "args of it");
    strcpy(config->cmdline, "one two");
}

static void check_multiboot_elf(bool is64)
{
    /* linked high, loaded low: the entry is virtual */
    const struct seg segs[] = {{1, 0x1000, 0xc0100000, 0x100000, 0x2345, 0x8000}};
    uint8_t *k = make_elf(is64, 0x4000, 0xc0100010, segs, 1);
    put_multiboot(k + 0x1004, 3);
    with_module();
    loads();
    assert_int_equal(entry.rip, 0x100010);
    assert_memory_equal(guest + 0x100000, k + 0x1000, 0x2345);
    assert_int_equal(mapped_pages, 2 + 2);
    check_multiboot_info();
}

static void test_multiboot_elf32(void **state) { (void)state; check_multiboot_elf(false); }
static void test_multiboot_elf64(void **state) { (void)state; check_multiboot_elf(true); }

static uint8_t *make_multiboot_flat(void)
{
    uint8_t *k = add_file("kernel", 0x3000);
    fill(k, 0x3000, 8);
    uint8_t *h = k + 0x20;
    put_multiboot(h, 0x10003);
    put(h + 12, 0x200020, 4); /* header_addr */
    put(h + 16, 0x200000, 4); /* load_addr */
    put(h + 20, 0x202800, 4); /* load_end_addr */
    put(h + 24, 0x206000, 4); /* bss_end_addr */
    put(h + 28, 0x200040, 4); /* entry_addr */
    return k;
}

static void test_multiboot_flat(void **state)
{
    (void)state;
    uint8_t *k = make_multiboot_flat();
    with_module();
    loads();
    assert_int_equal(entry.rip, 0x200040);
    assert_memory_equal(guest + 0x200000, k, 0x2800);
    assert_int_equal(guest[0x202800], 0);
    check_multiboot_info();
}

static void test_multiboot_refused(void **state)
{
    static const struct spoil spoils[] = {
        {0x20 + 12, 4, 0x1fffff, LOAD_BAD_IMAGE, "header_addr 0x1fffff, load_addr 0x200000"},
        {0x20 + 12, 4, 0x200021, LOAD_BAD_IMAGE, "loading would begin outside the file"},
        {0x20 + 20, 4, 0x200000, LOAD_BAD_IMAGE, "load_end_addr 0x200000 is not above"},
        {0x20 + 20, 4, 0x203001, LOAD_BAD_IMAGE, "run past the end"},
        {0x20 + 24, 4, 0x202000, LOAD_BAD_IMAGE, "bss_end_addr 0x202000"},
        {0x20 + 24, 4, 0xffffffff, LOAD_DOES_NOT_FIT, "does not fit in memory"},
        {0x20 + 28, 4, 0x300000, LOAD_BAD_IMAGE, "entry 0x300000 lies in no segment"},
        {0x20 + 8, 4, 0, LOAD_BAD_IMAGE, "neither a bzImage"},
    };
    for (unsigned k = 0; k < ARRAY_SIZE(spoils); k++) {
        put(make_multiboot_flat() + spoils[k].offset, spoils[k].value, spoils[k].size);
        refuses(spoils[k].result, spoils[k].text);
        teardown(state);
        setup(state);
    }
    put_multiboot(make_multiboot_flat() + 0x20, 0x10013);
    refuses(LOAD_BAD_IMAGE, "flags 0x10013: bits 0x10");
    put_multiboot((uint8_t *)(uintptr_t)bi->files[0].hpa + 0x20, 3);
    refuses(LOAD_BAD_IMAGE, "neither address fields nor an ELF file");
}

/* An initrd and the boot information go around whatever the kernel occupies. */
static void test_placement(void **state)
{
    (void)state;
    uint8_t *k = make_multiboot_flat() + 0x20;
    uint64_t base = GUEST_BYTES - 0x6000;
    put(k + 12, base + 0x20, 4);
    put(k + 16, base, 4);
    put(k + 20, base + 0x2800, 4);
    put(k + 24, base + 0x6000, 4);
    put(k + 28, base + 0x40, 4);
    with_module();
    loads();
    check_multiboot_info();
    uint64_t start = num(guest + num(guest + entry.gpr[GPR_RBX] + 24, 4), 4);
    assert_int_equal(start, base - 0x2000);
    config->memory_bytes = MIB(1);
    refuses(LOAD_DOES_NOT_FIT, "does not fit");
}

static void test_real_kernel(void **state)
{
    (void)state;
    FILE *f = fopen("build/guest-kernel/vmlinuz", "rb");
    if (!f)
        skip();
    fseek(f, 0, SEEK_END);
    uint64_t size = (uint64_t)ftell(f);
    uint8_t *p = add_file("kernel", size);
    rewind(f);
    assert_int_equal(fread(p, 1, size, f), size);
    fclose(f);
    loads();
    assert_true(mapped_pages >= size / 4096 - 16);
    assert_int_equal(entry.rip & 0xfff, 0x200);
}

int main(void)
{
#define T(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
    const struct CMUnitTest tests[] = {T(test_bzimage), T(test_bzimage_32), T(test_bzimage_not_congruent), T(test_bzimage_refused), T(test_pvh64),
        T(test_pvh32), T(test_elf_refused), T(test_multiboot_elf32), T(test_multiboot_elf64), T(test_multiboot_flat), T(test_multiboot_refused),
        T(test_placement), T(test_real_kernel)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
