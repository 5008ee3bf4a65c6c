/*
 * Linux bzImage by the 64-bit boot protocol (Documentation/arch/x86/boot.rst of the kernel) or, if it has no 64-bit entry,
 * by the 32-bit one: the protected-mode part goes to its preferred address and is entered 0x200 bytes in, or at its first
 * byte. Below that address a relocatable kernel would move itself up to it anyway, so there is no point in loading it
 * anywhere else: either [pref_address, +init_size) is RAM or the VM is too small.
 *
 * Real-mode code in the file is never run: there is no BIOS that it could ask. Other programs come in this format as well, boot
 * loaders whose real-mode part does the work; they are old in it, or leave the 32-bit entry empty, and are refused.
 */
#include "vm/load_parse.h"

enum { /* offsets in the file, and the same in the zero page */
    SETUP_SECTS = 0x1f1, SYSSIZE = 0x1f4, JUMP_LEN = 0x201, VERSION = 0x206, LOADFLAGS = 0x211, CODE32_START = 0x214, INITRD_ADDR_MAX = 0x22c,
    KERNEL_ALIGNMENT = 0x230, XLOADFLAGS = 0x236, CMDLINE_SIZE = 0x238, PREF_ADDRESS = 0x258, INIT_SIZE = 0x260, HEADER_MIN_END = 0x264,
    HEADER_MAX_END = 0x290, /* boot_params.edd_mbr_sig_buffer follows */
};
enum { VERSION_INIT_SIZE = 0x20a /* says how much memory */, VERSION_XLOADFLAGS = 0x20c, XLF_KERNEL_64 = 1, ENTRY_64 = 0x200 };

enum load_result load_plan_bzimage(const struct load_image *img, uint64_t low_ram, struct load_plan *plan, char *why)
{
    const enum load_format f = LOAD_FORMAT_BZIMAGE;
    *plan = (struct load_plan){.format = f};
    if (img->size < HEADER_MIN_END)
        return load_refuse(why, img, f, "setup header: the file has only %llu bytes", (unsigned long long)img->size);
    unsigned version = (unsigned)load_number(img, VERSION, 2);
    if (version < VERSION_INIT_SIZE)
        return load_refuse(why, img, f, "version: boot protocol %u.%u is too old, 2.10 is needed (Linux 2.6.31)", version >> 8, version & 0xff);
    if (!(load_number(img, LOADFLAGS, 1) & 1))
        return load_refuse(why, img, f, "loadflags 0x%x: a zImage, loaded low, is not supported", img->bytes[LOADFLAGS]);
    plan->long_mode = version >= VERSION_XLOADFLAGS && (load_number(img, XLOADFLAGS, 2) & XLF_KERNEL_64);
    if (!plan->long_mode && load_number(img, CODE32_START, 4) == 0)
        return load_refuse(why, img, f, "code32_start: neither a 64-bit nor a 32-bit entry point, and there is no BIOS for the real-mode one");
    plan->setup_end = 0x202 + load_number(img, JUMP_LEN, 1);
    if (plan->setup_end < HEADER_MIN_END || plan->setup_end > HEADER_MAX_END || plan->setup_end > img->size)
        return load_refuse(why, img, f, "jump: setup header ends at 0x%llx", (unsigned long long)plan->setup_end);

    unsigned sects = img->bytes[SETUP_SECTS] ? img->bytes[SETUP_SECTS] : 4;
    uint64_t payload = (uint64_t)(sects + 1) * 512;
    if (payload + ENTRY_64 >= img->size)
        return load_refuse(why, img, f, "setup_sects 0x%x runs past the end of the file (%llu bytes)", sects, (unsigned long long)img->size);
    uint64_t size = img->size - payload, syssize = load_number(img, SYSSIZE, 4) * 16;
    if (syssize > ALIGN_UP(size, 16))
        return load_refuse(why, img, f, "syssize: the kernel has %llu bytes, the file only %llu of them", (unsigned long long)syssize,
            (unsigned long long)size);

    uint64_t align = load_number(img, KERNEL_ALIGNMENT, 4), pref = load_number(img, PREF_ADDRESS, 8), init = load_number(img, INIT_SIZE, 4);
    if (align < PAGE_SIZE || (align & (align - 1)) != 0)
        return load_refuse(why, img, f, "kernel_alignment 0x%llx is no power of two of at least 4 KiB", (unsigned long long)align);
    if (pref < MIB(1) || (pref & (align - 1)) != 0)
        return load_refuse(why, img, f, "pref_address 0x%llx is below 1 MiB or not aligned to 0x%llx", (unsigned long long)pref,
            (unsigned long long)align);
    if (init < size)
        return load_refuse(why, img, f, "init_size 0x%llx is less than the kernel's 0x%llx bytes", (unsigned long long)init,
            (unsigned long long)size);
    if (pref >= low_ram || init > low_ram - pref) {
        load_refuse(why, img, f, "needs %llu MiB of memory (pref_address 0x%llx + init_size 0x%llx), the VM has %llu",
            (unsigned long long)((pref >> 20) + (init >> 20) + 1), (unsigned long long)pref, (unsigned long long)init,
            (unsigned long long)(low_ram >> 20));
        return LOAD_DOES_NOT_FIT;
    }
    plan->entry = pref + (plan->long_mode ? ENTRY_64 : 0);
    plan->initrd_max = load_number(img, INITRD_ADDR_MAX, 4) + 1;
    plan->cmdline_max = (uint32_t)load_number(img, CMDLINE_SIZE, 4);
    struct load_segment s = {payload, size, pref, init};
    return load_add_segment(img, low_ram, plan, &s, why);
}
