/* Text on the boot frame buffer: early messages and panics, for a machine whose serial port nobody watches. */
#ifndef HV_DRIVERS_FBCON_H
#define HV_DRIVERS_FBCON_H

#include "include/hv/types.h"

struct boot_framebuffer;

/* `window`: where it is mapped now; valid under the page tables of now only (NULL: not reachable yet). False: there is no frame
 * buffer, or one whose pixels are not 32 bits. */
bool fbcon_init(const struct boot_framebuffer *fb, void *window);
/* Under our own page tables: map(hpa, bytes) gives the lasting window. */
void fbcon_remap(void *(*map)(uint64_t hpa, size_t bytes));
/* Any context, takes no lock. Understands \n \r \b, skips escape sequences, starts over at the top when full. */
void fbcon_write(const char *s, size_t len);

#endif
