/*
 * Which window on the frame buffer is good now. The first, through the loader's page tables, dies with them: CR3 tells.
 */
#include "drivers/fbcon.h"
#include "include/abi/boot_info.h"
#include "lib/fbtext.h"
#include "x86/cpu.h"

static struct {
    struct fbtext text;
    uint64_t hpa, valid_cr3; /* 0: under any tables */
    size_t bytes;
} con;

bool fbcon_init(const struct boot_framebuffer *fb, void *window)
{
    if (!fbtext_init(&con.text, fb, window))
        return false;
    con.hpa = fb->hpa;
    con.bytes = (size_t)fb->pitch * fb->height;
    con.valid_cr3 = read_cr3();
    return true;
}

void fbcon_remap(void *(*map)(uint64_t hpa, size_t bytes))
{
    if (!con.hpa)
        return;
    con.text.pixels = map(con.hpa, con.bytes);
    con.valid_cr3 = 0;
}

void fbcon_write(const char *s, size_t len)
{
    if (!con.valid_cr3 || con.valid_cr3 == read_cr3())
        fbtext_write(&con.text, s, len);
}
