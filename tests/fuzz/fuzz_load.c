/* FUZZ-SOURCES: vm/load_parse.c vm/load_bzimage.c vm/load_pvh.c vm/load_multiboot.c */
/* The image parsers on arbitrary files: whatever they accept lies inside the file and inside RAM, and does not overlap.
 * */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "vm/load.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct load_image *img, uint64_t low_ram)
{
    static const struct load_plan fresh;
    struct load_plan p = fresh;
    char why[LOAD_WHY_MAX];
    memset(why, 0xaa, sizeof why);
    why[0] = '\0';
    if (load_plan(img, low_ram, &p, why) != LOAD_OK) {
        if (why[0] == '\0' || !memchr(why, '\0', sizeof why))
            abort(); /* a refusal has a reason */
        return;
    }
    bool entry_inside = false;
    for (unsigned k = 0; k < p.count; k++) {
        const struct load_segment *s = &p.seg[k];
        if (s->offset > img->size || s->filesz > img->size - s->offset || s->filesz > s->memsz)
            abort();
        if (s->memsz > low_ram || s->gpa > low_ram - s->memsz || (s->gpa < 0x100000 && s->gpa + s->memsz > 0x9fc00))
            abort();
        for (unsigned j = 0; j < k; j++)
            if (s->gpa < p.seg[j].gpa + p.seg[j].memsz && p.seg[j].gpa < s->gpa + s->memsz)
                abort();
        entry_inside |= p.entry >= s->gpa && p.entry < s->gpa + s->memsz;
    }
    if (!entry_inside || (p.format == LOAD_FORMAT_BZIMAGE && (p.setup_end > img->size || p.setup_end > 0x290)))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct load_image img = {"fuzz", data, size};
    check(&img, MIB(1));
    check(&img, MIB(128));
    check(&img, LOAD_LOW_RAM_MAX);
    return 0;
}
