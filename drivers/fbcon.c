/*
 * Characters on pixels. Scrolling would read and write megabytes of uncached memory per line; instead the output starts again at
 * the top, and the line below the current one is kept blank to show where it is.
 *
 * It works without locks because every position is checked at the moment of drawing: two writers at once spoil the text and
 * nothing else. The first window, through the loader's page tables, dies with them: CR3 tells.
 */
#include "drivers/fbcon.h"
#include "include/abi/boot_info.h"
#include "x86/cpu.h"

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

static struct {
    volatile uint32_t *pixels;
    uint64_t hpa, valid_cr3; /* 0: under any tables */
    size_t bytes;
    unsigned width, height, stride, scale, columns, rows, column, row;
    uint32_t ink;
    enum { PLAIN, ESCAPE, SEQUENCE } state;
} con;

static unsigned font_row(char c, unsigned y)
{
    char digit = font[c >= ' ' && c <= '~' ? c - ' ' : '?' - ' '][y];
    return digit <= '9' ? (unsigned)(digit - '0') : (unsigned)(digit - 'a') + 10;
}

/* A glyph with the blank right and below it; clips. */
static void draw(unsigned column, unsigned row, char c)
{
    unsigned x0 = column * CELL_WIDTH * con.scale, y0 = row * CELL_HEIGHT * con.scale;
    if (column >= con.columns || row >= con.rows)
        return;
    for (unsigned y = 0; y < CELL_HEIGHT * con.scale; y++) {
        unsigned bits = y / con.scale < GLYPH_HEIGHT ? font_row(c, y / con.scale) << (CELL_WIDTH - GLYPH_WIDTH) : 0;
        volatile uint32_t *line = con.pixels + (size_t)(y0 + y) * con.stride + x0;
        for (unsigned x = 0; x < CELL_WIDTH * con.scale; x++)
            line[x] = bits >> (CELL_WIDTH - 1 - x / con.scale) & 1 ? con.ink : 0;
    }
}

static void blank_line(unsigned row)
{
    for (unsigned column = 0; column < con.columns; column++)
        draw(column, row, ' ');
}

static void next_line(void)
{
    con.column = 0;
    con.row = (con.row + 1) % con.rows;
    blank_line(con.row);
    blank_line((con.row + 1) % con.rows);
}

static void put(char c)
{
    if (con.state != PLAIN || c == 0x1b) { /* ESC [ parameters letter */
        con.state = con.state == PLAIN ? ESCAPE : con.state == ESCAPE && c == '[' ? SEQUENCE :
                    con.state == SEQUENCE && (c < '@' || c > '~') ? SEQUENCE : PLAIN;
        return;
    }
    if (c == '\n') {
        next_line();
    } else if (c == '\r') {
        con.column = 0;
    } else if (c == '\b') {
        con.column -= con.column > 0;
    } else if (c >= ' ') {
        if (con.column >= con.columns)
            next_line();
        draw(con.column, con.row, c);
        con.column++;
    }
}

bool fbcon_init(const struct boot_framebuffer *fb, void *window)
{
    if (!fb->hpa || fb->bpp != 32 || fb->pitch % 4 || fb->pitch / 4 < fb->width || fb->red_pos > 24 || fb->green_pos > 24 ||
        fb->blue_pos > 24 || fb->hpa > GENMASK64(51, 0) - MIB(256) || fb->width > 16384 || fb->height > 16384)
        return false;
    con.scale = fb->width >= WIDE_SCREEN ? 2 : 1;
    con.columns = fb->width / (CELL_WIDTH * con.scale);
    con.rows = fb->height / (CELL_HEIGHT * con.scale);
    if (con.columns < 20 || con.rows < 2)
        return false;
    con.stride = fb->pitch / 4;
    con.hpa = fb->hpa;
    con.bytes = (size_t)fb->pitch * fb->height;
    con.ink = 0xd0u << fb->red_pos | 0xd0u << fb->green_pos | 0xd0u << fb->blue_pos;
    con.pixels = window;
    con.valid_cr3 = read_cr3();
    return true;
}

void fbcon_remap(void *(*map)(uint64_t hpa, size_t bytes))
{
    if (!con.hpa)
        return;
    con.pixels = map(con.hpa, con.bytes);
    con.valid_cr3 = 0;
}

void fbcon_write(const char *s, size_t len)
{
    if (!con.pixels || (con.valid_cr3 && con.valid_cr3 != read_cr3()))
        return;
    for (size_t i = 0; i < len; i++)
        put(s[i]);
}
