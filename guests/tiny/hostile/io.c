/* Doors at ports, memory-mapped devices and holes. */
#include "hostile/hostile.h"

/* ---- ports ------------------------------------------------------------------------------------------------------------------- */

/* Those that end or reset the VM, the dwords that reach into them, and COM1's data, which would only make a mess of the log. */
static bool is_ending(uint16_t port, unsigned size)
{
    static const struct { uint16_t first, last; } ending[] = {
        {0x60, 0x60}, {0x64, 0x64}, {0x92, 0x92}, {0xb2, 0xb2}, {0xf4, 0xf4}, {0x3f8, 0x3f8}, {0x600, 0x60b}, {0xcf8, 0xcf9}};
    for (unsigned n = 0; n < sizeof(ending) / sizeof(*ending); n++)
        if (port <= ending[n].last && port + size > ending[n].first)
            return true;
    return false;
}

static uint16_t random_port(void)
{
    static const uint16_t known[] = {0x20, 0x21, 0xa0, 0xa1, 0x40, 0x42, 0x43, 0x61, 0x70, 0x71, 0x80, 0xcfc, 0xcff, 0x3f9, 0x3fa, 0x3fb,
                                     0x3fc, 0x3fd, 0x3ff, 0x4d0, 0x4d1, 0x60c, 0xffff, 0xfffd, 0x5fd, 0x3f5, 0x1f0, 0x402, 0x510, 0xe9};
    return rnd_below(3) ? PICK(known) : (uint16_t)rnd();
}

static uint32_t in_port(uint16_t port, unsigned size)
{
    return size == 1 ? inb(port) : size == 2 ? inw(port) : inl(port);
}

static void out_port(uint16_t port, unsigned size, uint32_t v)
{
    if (size == 1)
        outb(port, (uint8_t)v);
    else if (size == 2)
        outw(port, (uint16_t)v);
    else
        outl(port, v);
}

static uint8_t buffer[1 << 20] __attribute__((aligned(4096)));

/* An absent port fills the buffer with ones, no more and no less. */
static bool check_long_string(unsigned size)
{
    uint64_t bytes = sizeof(buffer) / 8, n = bytes / size;
    memset(buffer, 0x5a, bytes + 64);
    ins(0x1234, size, buffer + 3, n);
    for (uint64_t at = 0; at < bytes + 64; at++)
        if (buffer[at] != (at >= 3 && at < 3 + n * size ? 0xff : 0x5a))
            return failed("ports: rep ins of %lu x %u: byte %lu is %02x", n, size, at, buffer[at]);
    outs(0x1234, size, buffer + 1, n);
    return true;
}

static bool ports(void)
{
    for (uint64_t n = 0; n < count; n++) {
        uint16_t port = random_port();
        unsigned size = 1u << rnd_below(3);
        if (is_ending(port, size))
            continue;
        switch (rnd_below(32)) {
        case 0: ins(port, size, buffer + rnd_below(4096), rnd_below(300)); break;
        case 1: outs(port, size, buffer + rnd_below(4096), rnd_below(300)); break;
        default:
            if (rnd_below(2))
                out_port(port, size, (uint32_t)rnd_value());
            else
                in_port(port, size);
        }
        port = (uint16_t)(0x2000 + rnd_below(0x8000));
        if (in_port(port, size) != UINT32_MAX >> (32 - 8 * size))
            return failed("ports: absent port %x reads %x", port, in_port(port, size));
    }
    interrupts_sane();
    return check_long_string(1) && check_long_string(2) && check_long_string(4);
}

/* ---- holes ---------------------------------------------------------------------------------------------------------------------- */

static uint64_t hole_base, hole_end;

static void call_address(void *at) { ((void (*)(void))at)(); }

static bool hole(void)
{
    free_memory(&hole_end, &hole_base); /* RAM ends where the hole begins; it lasts to the I/O APIC */
    hole_base = (hole_base + 0xfff) & ~UINT64_C(0xfff);
    hole_end = IOAPIC;
    for (uint64_t n = 0; n < count; n++) {
        uint64_t at = n ? hole_base + rnd_below(hole_end - hole_base - 16) : hole_base, want = 0;
        unsigned size = 1u << rnd_below(4);
        uint64_t v = rnd();
        switch (size) {
        case 1: *(volatile uint8_t *)at = (uint8_t)v; v = *(volatile uint8_t *)at; want = UINT8_MAX; break;
        case 2: *(volatile uint16_t *)at = (uint16_t)v; v = *(volatile uint16_t *)at; want = UINT16_MAX; break;
        case 4: *(volatile uint32_t *)at = (uint32_t)v; v = *(volatile uint32_t *)at; want = UINT32_MAX; break;
        default: *(volatile uint64_t *)at = v; v = *(volatile uint64_t *)at; want = UINT64_MAX; break;
        }
        if (v != want)
            return failed("hole: %u bytes at %lx read %lx", size, at, v);
        if (n % 64 == 0) {
            int vector = attempt(call_address, (void *)at);
            if (vector != VEC_UD || attempt_frame.rip != at)
                return failed("hole: a jump to %lx ends in vector %d at %lx", at, vector, attempt_frame.rip);
        }
    }
    return true;
}

const struct mode io_modes[] = {{"ports", ports, 20000}, {"hole", hole, 2000}, {}};
