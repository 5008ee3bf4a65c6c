/*
 * Characters on pixels. Scrolling would read and write megabytes of uncached memory per line; instead the output starts again at
 * the top, and the line below the current one is kept blank to show where it is.
 *
 * It works without locks because every position is checked at the moment of drawing: two writers at once spoil the text and
 * nothing else. Pixels have two, three or four bytes: whatever GOP and multiboot2 can describe by masks.
 */
#include "lib/fbtext.h"
#include "include/abi/boot_info.h"

#define CELL_WIDTH 6u
#define CELL_HEIGHT 9u
#define GLYPH_WIDTH 5u
#define GLYPH_HEIGHT 7u
#define WIDE_SCREEN 1200u /* from here on pixels are doubled */

/* Our own 5x7 font for 0x20..0x7e: a row per character, top to bottom, as a digit of base 32 whose high bit is left. */
static const char font[95][GLYPH_HEIGHT + 1] = {
    "0000000", "4444404", "aa00000", "aavavaa", "4fke5u4", "op248j3", "cik8lid", "4400000", /*   ! " # $ % & ' */
    "2488842", "8422248", "04lel40", "044v440", "0000c48", "000v000", "00000cc", "01248g0", /* ( ) * + , - . / */
    "ehjlphe", "4c4444e", "eh1248v", "v2421he", "26aiv22", "vgu11he", "68guhhe", "v124888", /* 0 1 2 3 4 5 6 7 */
    "ehhehhe", "ehhf12c", "0cc0cc0", "0cc0c48", "248g842", "00v0v00", "8421248", "eh12404", /* 8 9 : ; < = > ? */
    "eh1dlle", "ehhvhhh", "uhhuhhu", "ehggghe", "sihhhis", "vgguggv", "vgguggg", "ehgnhhf", /* @ A B C D E F G */
    "hhhvhhh", "e44444e", "72222ic", "hikokih", "ggggggv", "hrllhhh", "hhpljhh", "ehhhhhe", /* H I J K L M N O */
    "uhhuggg", "ehhhlid", "uhhukih", "fgge11u", "v444444", "hhhhhhe", "hhhhha4", "hhhllla", /* P Q R S T U V W */
    "hha4ahh", "hhha444", "v1248gv", "e88888e", "0g84210", "e22222e", "4ah0000", "000000v", /* X Y Z [ \ ] ^ _ */
    "8420000", "00e1fhf", "ggmphhu", "00egghe", "11djhhf", "00ehvge", "698s888", "0fhhf1e", /* ` a b c d e f g */
    "ggmphhh", "40c444e", "20622ic", "ggikoki", "c44444e", "00qllhh", "00mphhh", "00ehhhe", /* h i j k l m n o */
    "00uhugg", "00djf11", "00mpggg", "00ege1u", "88s8896", "00hhhjd", "00hhha4", "00hhlla", /* p q r s t u v w */
    "00ha4ah", "00hhf1e", "00v248v", "2448442", "4444444", "8442448", "008l200",            /* x y z { | } ~ */
};

static unsigned font_row(char c, unsigned y)
{
    char digit = font[c >= ' ' && c <= '~' ? c - ' ' : '?' - ' '][y];
    return digit <= '9' ? (unsigned)(digit - '0') : (unsigned)(digit - 'a') + 10;
}

/* Three bytes a pixel are written one by one, so that nothing beside the pixel is. */
static void draw_pixel(const struct fbtext *t, volatile uint8_t *at, uint32_t colour)
{
    if (t->pixel_bytes == 4) {
        *(volatile uint32_t *)at = colour;
    } else if (t->pixel_bytes == 2) {
        *(volatile uint16_t *)at = (uint16_t)colour;
    } else {
        for (unsigned n = 0; n < 3; n++)
            at[n] = (uint8_t)(colour >> 8 * n);
    }
}

/* A glyph with the blank right and below it; clips. */
static void draw(const struct fbtext *t, unsigned column, unsigned row, char c)
{
    unsigned x0 = column * CELL_WIDTH * t->scale, y0 = row * CELL_HEIGHT * t->scale;
    if (column >= t->columns || row >= t->rows)
        return;
    for (unsigned y = 0; y < CELL_HEIGHT * t->scale; y++) {
        unsigned bits = y / t->scale < GLYPH_HEIGHT ? font_row(c, y / t->scale) << (CELL_WIDTH - GLYPH_WIDTH) : 0;
        volatile uint8_t *line = t->pixels + (size_t)(y0 + y) * t->pitch + x0 * t->pixel_bytes;
        for (unsigned x = 0; x < CELL_WIDTH * t->scale; x++)
            draw_pixel(t, line + x * t->pixel_bytes, bits >> (CELL_WIDTH - 1 - x / t->scale) & 1 ? t->ink : 0);
    }
}

static void blank_line(const struct fbtext *t, unsigned row)
{
    for (unsigned column = 0; column < t->columns; column++)
        draw(t, column, row, ' ');
}

static void next_line(struct fbtext *t)
{
    t->column = 0;
    t->row = (t->row + 1) % t->rows;
    blank_line(t, t->row);
    blank_line(t, (t->row + 1) % t->rows);
}

static void put(struct fbtext *t, char c)
{
    if (t->state != FBTEXT_PLAIN || c == 0x1b) { /* ESC [ parameters letter */
        t->state = t->state == FBTEXT_PLAIN ? FBTEXT_ESCAPE : t->state == FBTEXT_ESCAPE && c == '[' ? FBTEXT_SEQUENCE :
                    t->state == FBTEXT_SEQUENCE && (c < '@' || c > '~') ? FBTEXT_SEQUENCE : FBTEXT_PLAIN;
        return;
    }
    if (c == '\n') {
        next_line(t);
    } else if (c == '\r') {
        t->column = 0;
    } else if (c == '\b') {
        t->column -= t->column > 0;
    } else if (c >= ' ') {
        if (t->column >= t->columns)
            next_line(t);
        draw(t, t->column, t->row, c);
        t->column++;
    }
}

/* A light grey's part in a channel; false: the channel is not within the pixel. */
static bool channel(uint32_t *ink, unsigned pos, unsigned bits, unsigned pixel_bits)
{
    if (!bits || bits > 16 || pos + bits > pixel_bits)
        return false;
    *ink |= (bits > 8 ? 0xd0u << (bits - 8) : 0xd0u >> (8 - bits)) << pos;
    return true;
}

bool fbtext_init(struct fbtext *t, const struct boot_framebuffer *fb, void *window)
{
    unsigned bytes = (fb->bpp + 7u) / 8;
    uint32_t ink = 0;
    if (!fb->hpa || fb->hpa > GENMASK64(51, 0) - MIB(1024) || (fb->bpp != 15 && fb->bpp != 16 && fb->bpp != 24 && fb->bpp != 32) ||
        fb->width > 16384 || fb->height > 16384 || fb->pitch > 4 * 16384 || fb->pitch / bytes < fb->width)
        return false;
    if (bytes != 3 && (fb->pitch % bytes || fb->hpa % bytes))
        return false; /* whole pixels are written, to aligned addresses */
    if (!channel(&ink, fb->red_pos, fb->red_bits, fb->bpp) || !channel(&ink, fb->green_pos, fb->green_bits, fb->bpp) ||
        !channel(&ink, fb->blue_pos, fb->blue_bits, fb->bpp))
        return false;
    *t = (struct fbtext){.pitch = fb->pitch, .pixel_bytes = bytes, .scale = fb->width >= WIDE_SCREEN ? 2 : 1, .ink = ink};
    t->columns = fb->width / (CELL_WIDTH * t->scale);
    t->rows = fb->height / (CELL_HEIGHT * t->scale);
    if (t->columns < 20 || t->rows < 2)
        return false;
    t->pixels = window;
    return true;
}

void fbtext_write(struct fbtext *t, const char *s, size_t len)
{
    for (size_t i = 0; t->pixels && i < len; i++)
        put(t, s[i]);
}
