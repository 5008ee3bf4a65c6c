/*
 * Unpacking the hypervisor, by libdeflate.
 *
 * Unpacked, it would be most of what firmware or GRUB has to read, from a network even; packed it is half of that. Of the libraries that
 * Debian has, LZMA packs 14 KiB better but its decoder is 19 KiB larger; zlib's inflate with its CRC is three times libdeflate's size;
 * Zstandard's decoder is larger by far more than the 6 KiB that it packs better; LZ4 packs 33 KiB worse. Adler-32 rather than gzip's
 * CRC-32 because the latter's tables are 11 KiB.
 *
 * The bytes are ours, but a disk, a network or a copying tool had them in between: the stream has to be whole, end where the file
 * ends, make exactly as many bytes as the header says, and those must have the checksum.
 */
#include "boot/unpack.h"
#include <libdeflate.h>
#include "lib/string.h"

enum unpack_result unpack_size(const void *packed, size_t packed_bytes, size_t *bytes)
{
    struct packed_header h;
    if (packed_bytes < sizeof(h))
        return UNPACK_NO_HEADER;
    memcpy(&h, packed, sizeof(h));
    if (memcmp(h.magic, PACKED_MAGIC, sizeof(h.magic)) != 0 || !h.bytes || h.bytes > PACKED_MAX_BYTES)
        return UNPACK_NO_HEADER;
    *bytes = h.bytes;
    return UNPACK_OK;
}

enum unpack_result unpack(const void *packed, size_t packed_bytes, void *out, size_t bytes)
{
    size_t expected, consumed;
    enum unpack_result header = unpack_size(packed, packed_bytes, &expected);
    if (header != UNPACK_OK || expected != bytes)
        return UNPACK_NO_HEADER;
    struct libdeflate_decompressor *d = libdeflate_alloc_decompressor();
    if (!d)
        return UNPACK_NO_MEMORY;
    size_t stream_bytes = packed_bytes - sizeof(struct packed_header);
    enum libdeflate_result r = libdeflate_zlib_decompress_ex(d, (const uint8_t *)packed + sizeof(struct packed_header), stream_bytes, out,
                                                             bytes, &consumed, NULL); /* NULL: all of `bytes`, or it fails */
    libdeflate_free_decompressor(d);
    return r == LIBDEFLATE_SUCCESS && consumed == stream_bytes ? UNPACK_OK : UNPACK_DAMAGED;
}
