/* FUZZ-SOURCES: vm/insn.c */
/* The decoder on arbitrary bytes: never reads past them (the block is exactly that long), keeps its promises about the
 * result. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "vm/insn.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    for (enum insn_mode mode = INSN_MODE_16; mode <= INSN_MODE_64; mode++) {
        struct insn i, again;
        enum insn_result r = insn_decode(data, size, mode, &i);
        if (r == INSN_OK && (i.len == 0 || i.len > INSN_MAX_LEN || i.len > size))
            abort();
        if (r == INSN_NEED_MORE && size >= INSN_MAX_LEN)
            abort();
        if (r == INSN_OK && (insn_decode(data, i.len, mode, &again) != INSN_OK || memcmp(&i, &again, sizeof i) != 0))
            abort(); /* bytes behind the instruction must not matter */
        if (r == INSN_OK && i.has_mem && (i.mem.seg > 5 || (i.mem.base > 15 && i.mem.base < INSN_RIP) || i.rm > 15 || i.reg > 15))
            abort();
    }
    return 0;
}
