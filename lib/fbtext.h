/* Text on a frame buffer, for the loader that has no firmware to draw it and for core (drivers/fbcon.h). */
#ifndef HV_LIB_FBTEXT_H
#define HV_LIB_FBTEXT_H
#include "include/hv/types.h"

struct boot_framebuffer;

struct fbtext {
    volatile uint8_t *pixels; /* NULL: cannot be reached, nothing is drawn */
    unsigned pitch, pixel_bytes, scale, columns, rows, column, row;
    uint32_t ink;
    enum { FBTEXT_PLAIN, FBTEXT_ESCAPE, FBTEXT_SEQUENCE } state;
};

/* `window`: where its pixels are mapped, or NULL. False: there is no frame buffer, or one that is too small or has no 2, 3 or 4 bytes a pixel. */
bool fbtext_init(struct fbtext *t, const struct boot_framebuffer *fb, void *window);
/* Takes no lock. Understands \n \r \b, skips escape sequences, starts over at the top when full. */
void fbtext_write(struct fbtext *t, const char *s, size_t len);
#endif
