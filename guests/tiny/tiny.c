/* The runtime that every tiny guest is linked with; see tiny.h. Polls the serial port, so that it works with interrupts broken. */
#include "tiny.h"

enum { COM1 = 0x3f8, LSR_THRE = 0x20, DEBUG_EXIT = 0xf4, PM1_CONTROL = 0x604 };

const struct multiboot_info *tiny_info;
volatile uint64_t resume, fault_error;
volatile int fault_vector;
void (*volatile on_interrupt)(unsigned vector);
bool (*volatile on_trap)(struct trap_frame *f);

extern const uint64_t tiny_stubs[256];
struct gate tiny_idt[256];

void tiny_start(uint32_t info);
void tiny_trap(struct trap_frame *f);

void *memset(void *d, int c, size_t n) { for (uint8_t *p = d; n--; *p++ = (uint8_t)c) asm volatile(""); return d; }
void *memcpy(void *d, const void *s, size_t n)
{
    const uint8_t *q = s;
    for (uint8_t *p = d; n--; *p++ = *q++)
        asm volatile("");
    return d;
}

/* ---- output --------------------------------------------------------------------------------------------------------------- */

static void put(char c)
{
    if (c == '\n')
        put('\r');
    while (!(inb(COM1 + 5) & LSR_THRE))
        asm volatile("pause");
    outb(COM1, (uint8_t)c);
}

static void put_number(uint64_t v, unsigned base, unsigned width, char pad)
{
    char buf[24];
    unsigned n = 0;
    do
        buf[n++] = "0123456789abcdef"[v % base];
    while (v /= base);
    while (n < width && n < sizeof(buf))
        buf[n++] = pad;
    while (n)
        put(buf[--n]);
}

void print(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    for (; *fmt; fmt++) {
        if (*fmt != '%') {
            put(*fmt);
            continue;
        }
        unsigned width = 0;
        bool wide = false;
        char pad = *++fmt == '0' ? '0' : ' ';
        for (; *fmt >= '0' && *fmt <= '9'; fmt++)
            width = width * 10 + (unsigned)(*fmt - '0');
        for (; *fmt == 'l'; fmt++)
            wide = true;
        if (*fmt == 's') {
            for (const char *s = va_arg(ap, const char *); *s; s++)
                put(*s);
        } else if (*fmt == 'c') {
            put((char)va_arg(ap, int));
        } else {
            uint64_t v = wide ? va_arg(ap, uint64_t) : *fmt == 'd' ? (uint64_t)(int64_t)va_arg(ap, int) : va_arg(ap, uint32_t);
            if (*fmt == 'd' && (int64_t)v < 0) {
                put('-');
                v = -v;
            }
            put_number(v, *fmt == 'x' ? 16 : 10, width, pad);
        }
    }
    va_end(ap);
}

/* ---- arguments -------------------------------------------------------------------------------------------------------------- */

static const char *find_arg(const char *key)
{
    const char *s = tiny_info->flags & 4 ? (const char *)(uintptr_t)tiny_info->cmdline : "";
    while (*s) {
        size_t n = 0;
        while (key[n] && s[n] == key[n])
            n++;
        if (!key[n] && (s[n] == '=' || s[n] == ' ' || !s[n]))
            return s + n;
        while (*s && *s != ' ')
            s++;
        while (*s == ' ')
            s++;
    }
    return NULL;
}

const char *arg(const char *key)
{
    static char value[64];
    const char *s = find_arg(key);
    size_t n = 0;
    if (!s)
        return NULL;
    if (*s == '=')
        s++;
    while (*s && *s != ' ' && n < sizeof(value) - 1)
        value[n++] = *s++;
    value[n] = 0;
    return value;
}

uint64_t arg_u64(const char *key, uint64_t otherwise)
{
    const char *s = arg(key);
    uint64_t v = 0;
    if (!s || *s < '0' || *s > '9')
        return otherwise;
    for (; *s >= '0' && *s <= '9'; s++)
        v = v * 10 + (uint64_t)(*s - '0');
    return v;
}

bool arg_is(const char *key, const char *value)
{
    const char *s = arg(key);
    while (s && *s && *s == *value)
        s++, value++;
    return s && !*s && !*value;
}

/* ---- memory ------------------------------------------------------------------------------------------------------------------- */

void free_memory(uint64_t *base, uint64_t *end)
{
    uint64_t low = (uint64_t)image_end;
    const struct multiboot_module *mod = (const void *)(uintptr_t)tiny_info->mods_addr;
    for (uint32_t n = 0; tiny_info->flags & 8 && n < tiny_info->mods_count; n++)
        low = mod[n].end > low ? mod[n].end : low;
    /* What the loader left for us to read (this structure, the map, the command line) may lie above the image too. */
    const uint64_t kept[] = {(uint64_t)tiny_info + 4096, tiny_info->mmap_addr + tiny_info->mmap_length, tiny_info->cmdline + 4096u,
                             tiny_info->mods_addr + 4096u};
    for (unsigned n = 0; n < 4; n++)
        if (kept[n] > low && kept[n] < low + (16 << 20))
            low = kept[n];
    *base = (low + 4095) & ~UINT64_C(4095);
    *end = *base;
    for (uint32_t at = 0; tiny_info->flags & 64 && at < tiny_info->mmap_length;) {
        const struct multiboot_mmap *m = (const void *)(uintptr_t)(tiny_info->mmap_addr + at);
        uint64_t top = m->base + m->length > UINT64_C(1) << 32 ? UINT64_C(1) << 32 : m->base + m->length;
        if (m->type == 1 && m->base <= *base && top > *end)
            *end = top & ~UINT64_C(4095);
        at += m->size + 4;
    }
}

uint64_t random_next(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* ---- traps and the end ------------------------------------------------------------------------------------------------------- */

void tiny_trap(struct trap_frame *f)
{
    if (f->vector < 32 && resume) {
        fault_vector = (int)f->vector;
        fault_error = f->error;
        f->rip = resume;
        f->rflags &= ~UINT64_C(0x10100); /* neither RF nor a step */
        resume = 0;
        return;
    }
    if (on_trap && on_trap(f))
        return;
    if (f->vector >= 32 && on_interrupt) {
        on_interrupt((unsigned)f->vector);
        return;
    }
    print("tiny: unexpected vector %lu error %lx at rip %lx cr2 %lx\n", f->vector, f->error, f->rip, READ_CR(2));
    exit_vm(127);
}

int try_rdmsr(uint32_t msr, uint64_t *value)
{
    uint32_t a = 0, d = 0;
    int r = TRY("rdmsr", : "+a"(a), "+d"(d) : "c"(msr) : "r15", "memory");
    *value = a | (uint64_t)d << 32;
    return r;
}

int try_wrmsr(uint32_t msr, uint64_t value)
{
    return TRY("wrmsr", :: "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "r15", "memory");
}

void exit_vm(uint32_t code)
{
    outl(DEBUG_EXIT, code);
    outw(PM1_CONTROL, 5 << 10 | 1 << 13); /* without a debug-exit device: power off */
    for (;;)
        asm volatile("cli\n hlt");
}

/* Xen's include/public/arch-x86/hvm/start_info.h, version 1. */
struct hvm_start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist, cmdline, rsdp, memmap;
    uint32_t memmap_entries, reserved;
};
struct hvm_module { uint64_t paddr, size, cmdline, reserved; };
struct hvm_memory { uint64_t base, size; uint32_t type, reserved; };
enum { PVH_MAGIC = 0x336ec578, LINUX_MAGIC = 0x53726448, LINUX_MAGIC_AT = 0x202 };
const char *tiny_protocol = "multiboot";

/* What PVH hands over, as multiboot would have. */
static const struct multiboot_info *from_pvh(const struct hvm_start_info *si)
{
    static struct multiboot_info info;
    static struct multiboot_module modules[4];
    static struct multiboot_mmap memory[16];
    const struct hvm_module *mod = (const void *)si->modlist;
    const struct hvm_memory *map = (const void *)si->memmap;
    info = (struct multiboot_info){.flags = 4 | 8 | 64, .cmdline = (uint32_t)si->cmdline, .mods_addr = (uint32_t)(uint64_t)modules,
                                   .mmap_addr = (uint32_t)(uint64_t)memory};
    for (uint32_t n = 0; n < si->nr_modules && n < 4; n++, info.mods_count++)
        modules[n] = (struct multiboot_module){(uint32_t)mod[n].paddr, (uint32_t)(mod[n].paddr + mod[n].size), (uint32_t)mod[n].cmdline, 0};
    for (uint32_t n = 0; n < si->memmap_entries && n < 16; n++, info.mmap_length += sizeof(memory[0]))
        memory[n] = (struct multiboot_mmap){sizeof(memory[0]) - 4, map[n].base, map[n].size, map[n].type};
    return &info;
}

/* Linux's zero page likewise; the initrd is a module. */
static const struct multiboot_info *from_linux(const uint8_t *zero_page)
{
    enum { E820_ENTRIES = 0x1e8, RAMDISK_IMAGE = 0x218, RAMDISK_SIZE = 0x21c, CMDLINE = 0x228, E820_TABLE = 0x2d0 };
    static struct multiboot_info info;
    static struct multiboot_module initrd;
    static struct multiboot_mmap memory[16];
    uint32_t size = *(const uint32_t *)(zero_page + RAMDISK_SIZE);
    info = (struct multiboot_info){.flags = 4 | 8 | 64, .cmdline = *(const uint32_t *)(zero_page + CMDLINE), .mods_count = size != 0,
                                   .mods_addr = (uint32_t)(uint64_t)&initrd, .mmap_addr = (uint32_t)(uint64_t)memory};
    initrd.start = *(const uint32_t *)(zero_page + RAMDISK_IMAGE);
    initrd.end = initrd.start + size;
    initrd.string = (uint32_t)(uint64_t)"";
    for (uint32_t n = 0; n < zero_page[E820_ENTRIES] && n < 16; n++, info.mmap_length += sizeof(memory[0])) {
        memory[n].size = sizeof(memory[0]) - 4;
        for (unsigned k = 0; k < 20; k++)
            ((uint8_t *)&memory[n].base)[k] = zero_page[E820_TABLE + 20 * n + k];
    }
    return &info;
}

/* Multiboot's information has flags and sizes in the places of the others' magic numbers, and never those values. */
static const struct multiboot_info *as_multiboot(const void *info)
{
    if (*(const uint32_t *)info == PVH_MAGIC) {
        tiny_protocol = "PVH";
        return from_pvh(info);
    }
    if (*(const uint32_t *)((const char *)info + LINUX_MAGIC_AT) == LINUX_MAGIC) {
        tiny_protocol = "Linux";
        return from_linux(info);
    }
    return info;
}

void tiny_start(uint32_t info)
{
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) ptr = {sizeof(tiny_idt) - 1, (uint64_t)tiny_idt};
    tiny_info = as_multiboot((const void *)(uintptr_t)info);
    for (unsigned n = 0; n < 256; n++) {
        uint64_t at = tiny_stubs[n];
        tiny_idt[n].low = (at & 0xffff) | 8 << 16 | UINT64_C(0x8e00) << 32 | (at >> 16 & 0xffff) << 48;
        tiny_idt[n].high = at >> 32;
    }
    asm volatile("lidt %0" :: "m"(ptr));
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 3);
    exit_vm((uint32_t)tiny_main());
}
