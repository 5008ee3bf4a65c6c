/* The hypervisor as loaders carry it: this header, then a zlib stream (RFC 1950) that ends with the Adler-32 of what it unpacks to. Also for the
 * host: tools/pack.c writes it. */
#ifndef HV_BOOT_UNPACK_H
#define HV_BOOT_UNPACK_H

#include <stddef.h>
#include <stdint.h>

struct packed_header { char magic[4]; uint32_t bytes; }; /* bytes: unpacked; little-endian */
#define PACKED_MAGIC "PLMZ"
#define PACKED_MAX_BYTES (16u << 20) /* unpacked; linker.ld allows the image no more */

enum unpack_result { UNPACK_OK, UNPACK_NO_HEADER, UNPACK_NO_MEMORY, UNPACK_DAMAGED };

/* How much room `packed` wants. Only the header is looked at. */
enum unpack_result unpack_size(const void *packed, size_t packed_bytes, size_t *bytes);
/* Into `out`, which has what unpack_size() said. Anything but UNPACK_OK: what is in `out` is worth nothing. */
enum unpack_result unpack(const void *packed, size_t packed_bytes, void *out, size_t bytes);

#endif
