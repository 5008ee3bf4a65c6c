/* Text on a frame buffer: what is drawn, where, and that nothing is written beyond the visible pixels whatever comes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#define HV_X86_CPU_H /* in its place */
static unsigned long cr3 = 0x1000;
static inline unsigned long read_cr3(void) { return cr3; }
#include "lib/fbtext.c"
#include "drivers/fbcon.c"

#define PADDING 0x55555555u
static uint32_t *pixels;
static struct boot_framebuffer fb;

/* A screen of this size with `extra` pixels that are not shown at the end of each line. */
static void screen(unsigned width, unsigned height, unsigned extra)
{
    free(pixels);
    memset(&con, 0, sizeof(con));
    fb = (struct boot_framebuffer){.hpa = 0xe0000000, .width = width, .height = height, .pitch = (width + extra) * 4, .bpp = 32, .red_pos = 16,
                                   .green_pos = 8, .blue_pos = 0, .red_bits = 8, .green_bits = 8, .blue_bits = 8};
    pixels = malloc((size_t)fb.pitch * height); /* exactly so much: the sanitizer sees the rest */
    for (size_t n = 0; n < (size_t)fb.pitch / 4 * height; n++)
        pixels[n] = n % (fb.pitch / 4) < width ? 0 : PADDING;
    assert_true(fbcon_init(&fb, pixels));
}

static void write_text(const char *s) { fbcon_write(s, strlen(s)); }

static unsigned lit_in_cell(unsigned column, unsigned row)
{
    unsigned lit = 0;
    for (unsigned y = 0; y < CELL_HEIGHT * con.text.scale; y++)
        for (unsigned x = 0; x < CELL_WIDTH * con.text.scale; x++)
            lit += pixels[(row * CELL_HEIGHT * con.text.scale + y) * (con.text.pitch / 4) + column * CELL_WIDTH * con.text.scale + x] != 0;
    return lit;
}

static void assert_picture(unsigned column, unsigned row, const char *const *lines)
{
    for (unsigned y = 0; y < CELL_HEIGHT * con.text.scale; y++)
        for (unsigned x = 0; x < CELL_WIDTH * con.text.scale; x++) {
            uint32_t pixel = pixels[(row * CELL_HEIGHT * con.text.scale + y) * (con.text.pitch / 4) + column * CELL_WIDTH * con.text.scale + x];
            assert_int_equal(pixel, lines[y / con.text.scale][x / con.text.scale] == '#' ? 0xd0d0d0 : 0);
        }
}

static void pictures(void **state)
{
    static const char *const a[] = {".###..", "#...#.", "#...#.", "#####.", "#...#.", "#...#.", "#...#.", "......", "......"};
    static const char *const g[] = {"......", ".####.", "#...#.", "#...#.", ".####.", "....#.", ".###..", "......", "......"};
    static const unsigned widths[] = {640, 1920};
    for (unsigned n = 0; n < 2; n++) {
        screen(widths[n], 480, 8 * n);
        assert_int_equal(con.text.scale, n + 1);
        write_text("xAg");
        assert_picture(1, 0, a);
        assert_picture(2, 0, g);
        write_text("\r\nA\bg\x1b[2K\x1b[31mA"); /* escape sequences are not for pixels */
        assert_picture(0, 1, g);
        assert_picture(1, 1, a);
        assert_int_equal(lit_in_cell(2, 1), 0);
    }
}

/* Other pixels: every byte of the buffer is what a picture drawn at 32 bits says, and what is not shown stays. */
static void other_depths(void **state)
{
    static const struct { struct boot_framebuffer fb; uint32_t ink; } depths[] = {
        {{.bpp = 24, .red_pos = 16, .green_pos = 8, .blue_pos = 0, .red_bits = 8, .green_bits = 8, .blue_bits = 8}, 0xd0d0d0},
        {{.bpp = 24, .red_pos = 0, .green_pos = 8, .blue_pos = 16, .red_bits = 8, .green_bits = 8, .blue_bits = 8}, 0xd0d0d0},
        {{.bpp = 16, .red_pos = 11, .green_pos = 5, .blue_pos = 0, .red_bits = 5, .green_bits = 6, .blue_bits = 5}, 26u << 11 | 52u << 5 | 26},
        {{.bpp = 15, .red_pos = 10, .green_pos = 5, .blue_pos = 0, .red_bits = 5, .green_bits = 5, .blue_bits = 5}, 26u << 10 | 26u << 5 | 26},
        {{.bpp = 32, .red_pos = 20, .green_pos = 10, .blue_pos = 0, .red_bits = 10, .green_bits = 10, .blue_bits = 10}, 832u << 20 | 832u << 10 | 832},
    };
    static const char text[] = "Text on\nother pixels, more of it than a line has room for: it goes on below.\nThe end";
    for (size_t d = 0; d < sizeof(depths) / sizeof(depths[0]); d++)
        for (unsigned width = 241; width <= 1300; width += 1059) {
            screen(width, 90, 3);
            write_text(text);
            struct boot_framebuffer other = depths[d].fb;
            unsigned bytes = (other.bpp + 7u) / 8, pitch = (width + 3) * bytes;
            other.hpa = 0xe0000000, other.width = width, other.height = 90, other.pitch = pitch;
            uint8_t *drawn = malloc((size_t)pitch * 90);
            memset(drawn, 0, (size_t)pitch * 90);
            for (unsigned y = 0; y < 90; y++)
                memset(drawn + y * pitch + width * bytes, 0x55, 3 * bytes);
            memset(&con, 0, sizeof(con));
            assert_true(fbcon_init(&other, drawn));
            write_text(text);
            for (unsigned y = 0; y < 90; y++)
                for (unsigned x = 0; x < width + 3; x++) {
                    uint32_t pixel = 0, as_32 = pixels[y * (width + 3) + x];
                    memcpy(&pixel, drawn + y * pitch + x * bytes, bytes);
                    assert_int_equal(pixel, x >= width ? PADDING >> (32 - 8 * bytes) : as_32 ? depths[d].ink : 0);
                }
            free(drawn);
        }
}

/* No two characters look alike, and all but the blank look like something. */
static void all_characters(void **state)
{
    for (char c = '!'; c <= '~'; c++) {
        unsigned rows = 0;
        for (unsigned y = 0; y < GLYPH_HEIGHT; y++) {
            assert_in_range(font_row(c, y), 0, 31);
            rows |= font_row(c, y);
        }
        assert_true(rows);
        for (char d = ' '; d < c; d++)
            assert_memory_not_equal(font[c - ' '], font[d - ' '], GLYPH_HEIGHT);
    }
    for (unsigned y = 0; y < GLYPH_HEIGHT; y++)
        assert_int_equal(font_row(' ', y), 0);
}

/* Full: it starts again at the top, with a blank line below the one that is written. */
static void starts_over(void **state)
{
    screen(640, 480, 0);
    unsigned rows = con.text.rows;
    for (unsigned n = 0; n < rows - 1; n++)
        write_text("line\n");
    assert_int_equal(con.text.row, rows - 1);
    assert_int_equal(lit_in_cell(0, 0), 0); /* it was "l": blanked, it is the line below */
    assert_true(lit_in_cell(0, 1) > 0);
    write_text("last\nfirst");
    assert_true(con.text.row == 0 && lit_in_cell(0, 0) > 0 && lit_in_cell(0, rows - 1) > 0);
    assert_int_equal(lit_in_cell(0, 1), 0);
    for (unsigned n = 0; n < con.text.columns - 5; n++)
        write_text("x");
    assert_int_equal(con.text.row, 0);
    write_text("y"); /* a long line goes on below */
    assert_true(con.text.row == 1 && con.text.column == 1 && lit_in_cell(0, 1) > 0);
}

static void anything(void **state)
{
    srand(3);
    for (unsigned round = 0; round < 60; round++) {
        unsigned extra = (unsigned)rand() % 20;
        screen(120 + (unsigned)rand() % 1500, 36 + (unsigned)rand() % 300, extra);
        for (unsigned n = 0; n < 300; n++) {
            char text[40];
            for (unsigned k = 0; k < sizeof(text); k++)
                text[k] = rand() % 3 ? (char)(' ' + rand() % 95) : (char)rand();
            fbcon_write(text, sizeof(text));
        }
        for (unsigned y = 0; y < fb.height; y++)
            for (unsigned x = fb.width; x < fb.pitch / 4; x++)
                assert_int_equal(pixels[y * (fb.pitch / 4) + x], PADDING);
    }
}

static void *lasting(uint64_t hpa, size_t bytes)
{
    assert_true(hpa == 0xe0000000 && bytes == (size_t)fb.pitch * fb.height);
    return pixels;
}

/* The loader's window is gone with its page tables. */
static void other_tables(void **state)
{
    screen(640, 480, 0);
    cr3 = 0x2000;
    write_text("A");
    assert_int_equal(lit_in_cell(0, 0), 0);
    fbcon_remap(lasting);
    write_text("A");
    assert_true(lit_in_cell(0, 0) > 0);
    cr3 = 0x1000;
}

static void unusable(void **state)
{
    screen(640, 480, 0);
    const struct boot_framebuffer good = fb;
#define REFUSED(change) do { fb = good; change; memset(&con, 0, sizeof(con)); assert_false(fbcon_init(&fb, pixels)); write_text("A"); } while (0)
    REFUSED(fb.hpa = 0);
    REFUSED(fb.hpa = UINT64_MAX);
    REFUSED(fb.bpp = 8);
    REFUSED(fb.bpp = 25);
    REFUSED(fb.bpp = 16); /* channels beyond it */
    REFUSED(fb.red_bits = 0);
    REFUSED(fb.blue_bits = 17);
    REFUSED(fb.hpa += 2);
    REFUSED(fb.pitch = 640 * 4 + 2);
    REFUSED(fb.pitch = 639 * 4);
    REFUSED(fb.width = 100);
    REFUSED(fb.height = 17);
    REFUSED(fb.width = 20000; fb.pitch = 80000);
    REFUSED(fb.height = UINT32_MAX);
    REFUSED(fb.green_pos = 25);
    assert_int_equal(lit_in_cell(0, 0), 0);
    free(pixels);
    pixels = NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(pictures), cmocka_unit_test(other_depths), cmocka_unit_test(all_characters),
                                       cmocka_unit_test(starts_over), cmocka_unit_test(anything), cmocka_unit_test(other_tables), cmocka_unit_test(unusable)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
