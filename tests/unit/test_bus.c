/* TEST-SOURCES: vm/bus.c */
/*
 * A VM's bus against the simplest model there is: an owner for each of the 65536 ports and each byte of a small address space. Random
 * ranges are offered, also bad ones; then accesses of all sizes, of which many stick out of a range or lie across two.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "include/hv/vdev.h"

#define MMIO_BYTES 65536u
#define MMIO_BASE UINT64_C(0xfee00000)

void *kzalloc(size_t bytes) { return calloc(1, bytes); }
void kfree(void *p) { free(p); }

static uint8_t port_owner[65536], mmio_owner[MMIO_BYTES]; /* 0: nobody */
static uint8_t devices[256];
static unsigned calls;
static uint64_t seed = 1;

static uint32_t random_u32(void)
{
    seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (uint32_t)(seed >> 33);
}

/* A device's byte at an address: who and where; what is written must be the complement. */
static uint8_t byte_at(unsigned owner, uint64_t address) { return (uint8_t)(owner * 31 + address * 7 + 1); }

static void port_handler(struct vcpu *v, void *dev, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    unsigned owner = (unsigned)((uint8_t *)dev - devices);
    uint32_t expected = 0;
    calls++;
    for (unsigned n = 0; n < size; n++) {
        assert_int_equal(port_owner[port + n], owner); /* never an address that is not its own */
        expected |= (uint32_t)byte_at(owner, port + n) << 8 * n;
    }
    if (in)
        *val = expected;
    else
        assert_int_equal(*val & (size == 4 ? UINT32_MAX : (1u << 8 * size) - 1), ~expected & (size == 4 ? UINT32_MAX : (1u << 8 * size) - 1));
}

static void mmio_handler(struct vcpu *v, void *dev, uint64_t offset, unsigned size, bool write, uint64_t *val)
{
    calls++;
    *val = (uint64_t)((uint8_t *)dev - devices) << 32 | offset << 8 | size;
}

static bool free_ports(uint32_t first, uint32_t count)
{
    for (uint32_t n = first; n < first + count; n++)
        if (port_owner[n])
            return false;
    return true;
}

static void add_ports(struct vdev_bus *b, unsigned *added)
{
    uint32_t first = random_u32() % 16 ? random_u32() % 400 : 65536 - 1 - random_u32() % 8, count = random_u32() % 12;
    bool good = count && first + count <= 65536 && free_ports(first, count) && *added < VDEV_MAX_PIO;
    assert_int_equal(vdev_bus_add_pio(b, (uint16_t)first, (uint16_t)count, port_handler, &devices[*added + 1]), good);
    if (good)
        memset(port_owner + first, (int)++*added, count);
}

/* Byte by byte, what each owner or the open bus says. A device that has all of it is called once, else once for each of its bytes. */
static void access_ports(struct vdev_bus *b)
{
    static const unsigned sizes[] = {1, 2, 4};
    uint16_t port = random_u32() % 16 ? (uint16_t)(random_u32() % 410) : (uint16_t)(65536 - 1 - random_u32() % 8);
    unsigned size = sizes[random_u32() % 3], owned = 0;
    uint32_t expected = 0, out = 0, val;
    bool one_owner = true;
    for (unsigned n = 0; n < size; n++) {
        uint16_t at = (uint16_t)(port + n);
        uint8_t byte = port_owner[at] ? byte_at(port_owner[at], at) : 0xff;
        expected |= (uint32_t)byte << 8 * n;
        out |= (uint32_t)(uint8_t)~byte << 8 * n;
        owned += port_owner[at] != 0;
        one_owner &= port_owner[at] == port_owner[port] && at >= port;
    }
    calls = 0;
    val = random_u32();
    vdev_bus_pio(b, NULL, port, size, true, &val);
    assert_int_equal(val, expected);
    assert_int_equal(calls, one_owner && owned == size ? 1 : owned);
    val = out;
    vdev_bus_pio(b, NULL, port, size, false, &val);
}

static void test_ports(void **state)
{
    for (unsigned round = 0; round < 60; round++) {
        struct vdev_bus *b = vdev_bus_create();
        unsigned added = 0;
        memset(port_owner, 0, sizeof(port_owner));
        for (unsigned n = 0; n < (round % 3 ? 90 : 300); n++)
            add_ports(b, &added);
        for (unsigned n = 0; n < 3000; n++)
            access_ports(b);
        vdev_bus_destroy(b);
    }
}

static void test_mmio(void **state)
{
    struct vdev_bus *b = vdev_bus_create();
    unsigned added = 0;
    memset(mmio_owner, 0, sizeof(mmio_owner));
    assert_false(vdev_bus_add_mmio(b, UINT64_MAX - 3, 8, mmio_handler, devices));
    assert_false(vdev_bus_add_mmio(b, MMIO_BASE, 0, mmio_handler, devices));
    for (unsigned n = 0; n < 500; n++) {
        uint32_t first = random_u32() % (MMIO_BYTES - 300), size = 1 + random_u32() % 256;
        bool good = added < VDEV_MAX_MMIO;
        for (uint32_t k = first; k < first + size; k++)
            good &= !mmio_owner[k];
        assert_int_equal(vdev_bus_add_mmio(b, MMIO_BASE + first, size, mmio_handler, &devices[added + 1]), good);
        if (good)
            memset(mmio_owner + first, (int)++added, size);
    }
    for (uint32_t at = 0; at < MMIO_BYTES - 8; at++) {
        unsigned size = 1u << random_u32() % 4, owner = mmio_owner[at];
        bool whole = owner;
        uint64_t val = 0;
        for (unsigned n = 0; n < size; n++)
            whole &= mmio_owner[at + n] == owner;
        calls = 0;
        assert_int_equal(vdev_bus_mmio(b, NULL, MMIO_BASE + at, size, false, &val), whole);
        assert_int_equal(calls, whole);
        assert_int_equal(vdev_bus_is_mmio(b, MMIO_BASE + at), owner != 0);
        if (whole) {
            uint32_t first = at;
            while (first && mmio_owner[first - 1] == owner)
                first--;
            assert_int_equal(val, (uint64_t)owner << 32 | (uint64_t)(at - first) << 8 | size);
        }
    }
    assert_false(vdev_bus_is_mmio(b, 0) || vdev_bus_is_mmio(b, UINT64_MAX));
    vdev_bus_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ports), cmocka_unit_test(test_mmio)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
