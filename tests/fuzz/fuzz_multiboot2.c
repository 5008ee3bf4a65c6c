/* FUZZ-SOURCES: boot/multiboot2_tags.c boot/memmap.c */
/* Any bytes as boot information: every string that is found ends inside, every module is sane, every range of the map is added or not. */
#include <stdlib.h>
#include <string.h>
#include "boot/multiboot2_tags.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct boot_mem_range in[64], out[64];
    static uint64_t edges[128];
    static struct mb2_info mb;
    const char *why;
    struct memmap m;
    uint8_t *copy = malloc(size ? size : 1); /* of this very length, for the sanitizer */
    memcpy(copy, data, size);
    if (mb2_decode(copy, size, &mb, &why)) {
        size_t sum = strlen(mb.cmdline) + strlen(mb.loader);
        for (uint32_t n = 0; n < mb.module_count; n++) {
            sum += strlen(mb.modules[n].args);
            if (mb.modules[n].hpa % 4096 || mb.modules[n].hpa + mb.modules[n].size > UINT32_MAX)
                abort();
        }
        for (uint32_t n = 0; n < mb.rsdp_bytes; n++)
            sum += mb.rsdp[n];
        memmap_init(&m, in, edges, 64);
        mb2_add_memory(&mb, &m);
        if (memmap_normalise(&m, out, 64) > 127)
            abort();
        asm volatile("" :: "r"(sum)); /* it has been read */
    } else if (!why || !*why) {
        abort();
    }
    free(copy);
    return 0;
}
