/*
 * The serial line of both loaders. A port that is not there reads as ones, and one that never drains must not hang a machine
 * that could boot: every wait has an end.
 */
#include "boot/image.h"

#define COM1 0x3f8
#define UART_LSR_THRE 0x20
#define UART_SPIN_LIMIT 1000000

static void outb(uint16_t port, uint8_t v) { asm volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static uint8_t inb(uint16_t port)
{
    uint8_t v;
    asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

bool serial_init(void)
{
    outb(COM1 + 7, 0x5a); /* the scratch register remembers */
    if (inb(COM1 + 7) != 0x5a)
        return false;
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 0x80);
    outb(COM1 + 0, 1);
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 0x03);
    outb(COM1 + 2, 0x07);
    outb(COM1 + 4, 0x03);
    return true;
}

static void put(char c)
{
    for (unsigned i = 0; i < UART_SPIN_LIMIT && !(inb(COM1 + 5) & UART_LSR_THRE); i++)
        asm volatile("pause");
    outb(COM1, (uint8_t)c);
}

void serial_put(const char *s)
{
    while (*s)
        put(*s++);
    put('\r');
    put('\n');
}
