/* Says what the loader handed over. Arguments: `halt` (HLT for ever), `spin` (busy loop), `flood` (prints) instead of ending; `reset` (port CF9h);
 * `high` (writes above 4 GiB). */
#include "tiny.h"

/* As fast as a guest can print: by strings, and without a look at the transmitter. */
static void flood(void)
{
    static char lines[4096];
    for (unsigned n = 0; n < sizeof(lines); n++)
        lines[n] = "the same line again and again\r\n\r\n"[n % 32];
    for (;;) {
        const char *from = lines;
        uint64_t count = sizeof(lines);
        asm volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(0x3f8) : "memory");
    }
}

/* Words in the first GiB above 4 GiB of address space: zero at first, kept, and none of them the same as one below. */
static void high_memory(void)
{
    enum { STRIDE = 33 << 20 };
    const uint64_t first = UINT64_C(4) << 30, end = UINT64_C(5) << 30;
    static uint64_t pd[512] __attribute__((aligned(4096)));
    uint64_t *pdpt = (uint64_t *)(tiny_pml4[0] & ~UINT64_C(4095));
    unsigned words = 0, wrong = 0;
    for (unsigned n = 0; n < 512; n++)
        pd[n] = (first + ((uint64_t)n << 21)) | 0x83;
    pdpt[4] = (uint64_t)pd | 3;
    for (uint64_t at = first + STRIDE; at < end; at += STRIDE, words++) {
        volatile uint64_t *high = (volatile uint64_t *)at, *low = (volatile uint64_t *)(at - first);
        wrong += *high != 0;
        *low = at - first;
        *high = at;
    }
    for (uint64_t at = first + STRIDE; at < end; at += STRIDE)
        wrong += *(volatile uint64_t *)at != at || *(volatile uint64_t *)(at - first) != at - first;
    print("hello: %u words above 4 GiB, %u wrong\n", words, wrong);
}

int tiny_main(void)
{
    print("hello: %s ok\n", tiny_protocol);
    print("hello: cmdline \"%s\"\n", tiny_info->flags & 4 ? (const char *)(uintptr_t)tiny_info->cmdline : "");
    for (uint32_t at = 0; tiny_info->flags & 64 && at < tiny_info->mmap_length;) {
        const struct multiboot_mmap *m = (const void *)(uintptr_t)(tiny_info->mmap_addr + at);
        print("hello: memory %016lx + %016lx type %u\n", m->base, m->length, m->type);
        at += m->size + 4;
    }
    const struct multiboot_module *mod = (const void *)(uintptr_t)tiny_info->mods_addr;
    for (uint32_t n = 0; tiny_info->flags & 8 && n < tiny_info->mods_count; n++) {
        const uint8_t *b = (const uint8_t *)(uintptr_t)mod[n].start;
        print("hello: module %u bytes \"%s\" begins %02x %02x %02x %02x\n", mod[n].end - mod[n].start,
              (const char *)(uintptr_t)mod[n].string, b[0], b[1], b[2], b[3]);
    }
    if (arg("high"))
        high_memory();
    print("hello: done\n");
    while (arg("halt"))
        asm volatile("cli\n hlt");
    while (arg("spin"))
        asm volatile("pause");
    if (arg("flood"))
        flood();
    if (arg("reset"))
        outb(0xcf9, 6);
    return (int)arg_u64("code", 0);
}
