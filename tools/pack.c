/*
 * pack IN OUT: packs the hypervisor for its loaders (boot/unpack.h), as small as libdeflate can, and sees that it comes out again. No date, no
 * name: the same input makes the same bytes.
 */
#include <libdeflate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "boot/unpack.h"

#define BEST 12 /* libdeflate's highest level */

static void fail(const char *what, const char *name)
{
    fprintf(stderr, "pack: %s: %s\n", name, what);
    exit(1);
}

static void *read_file(const char *name, size_t *bytes)
{
    FILE *f = fopen(name, "rb");
    uint8_t *data = malloc(PACKED_MAX_BYTES + 1);
    if (!f || !data)
        fail("cannot be read", name);
    *bytes = fread(data, 1, PACKED_MAX_BYTES + 1, f);
    if (ferror(f) || !*bytes || *bytes > PACKED_MAX_BYTES)
        fail("empty, too large or unreadable", name);
    fclose(f);
    return data;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        fail("usage: pack IN OUT", "arguments");
    size_t bytes, packed_bytes;
    uint8_t *data = read_file(argv[1], &bytes);
    struct packed_header h = {.bytes = (uint32_t)bytes};
    memcpy(h.magic, PACKED_MAGIC, sizeof(h.magic));
    struct libdeflate_compressor *c = libdeflate_alloc_compressor(BEST);
    size_t bound = libdeflate_zlib_compress_bound(c, bytes);
    uint8_t *packed = malloc(sizeof(h) + bound), *again = malloc(bytes);
    if (!c || !packed || !again)
        fail("not enough memory", argv[1]);
    memcpy(packed, &h, sizeof(h));
    packed_bytes = sizeof(h) + libdeflate_zlib_compress(c, data, bytes, packed + sizeof(h), bound);
    if (unpack(packed, packed_bytes, again, bytes) != UNPACK_OK || memcmp(data, again, bytes) != 0)
        fail("does not come out as it went in", argv[1]);
    FILE *f = fopen(argv[2], "wb");
    if (!f || fwrite(packed, 1, packed_bytes, f) != packed_bytes || fclose(f) != 0)
        fail("cannot be written", argv[2]);
    return 0;
}
