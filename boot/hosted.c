/*
 * What a library that was compiled for Linux finds there and not here: malloc, and behind FS a control block whose sixth word is the stack
 * canary. It is given both while it runs. (libdeflate.a needs nothing else: no C library beyond memcpy and memset, no thread,
 * no file. It uses SSE2, which UEFI has on and multiboot2.asm switches on.)
 *
 * free() gives nothing back: there is one decompressor, and core gets all loader memory.
 */
#include "boot/image.h"

#define MSR_FS_BASE 0xc0000100

void *malloc(size_t bytes);
void free(void *p);
NORETURN void __stack_chk_fail(void);

static const struct { uint64_t words[5], canary; } control_block = {.canary = 0x00c7a9e4d15b8f00}; /* begins and ends with a zero, as is the custom */
_Static_assert(offsetof(__typeof__(control_block), canary) == 0x28, "x86-64 psABI: %fs:0x28");

uint64_t hosted_begin(void)
{
    uint32_t low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(MSR_FS_BASE));
    hosted_end((uint64_t)&control_block);
    return (uint64_t)high << 32 | low;
}

void hosted_end(uint64_t before)
{
    asm volatile("wrmsr" :: "c"(MSR_FS_BASE), "a"((uint32_t)before), "d"((uint32_t)(before >> 32)) : "memory");
}

void *malloc(size_t bytes) { return loader_keep(bytes, "unpacking the hypervisor image"); }

void free(void *p) { (void)p; }

void __stack_chk_fail(void) { loader_halt("the stack was overwritten while the hypervisor image was unpacked"); }
