/*
 * The bus of one VM: which device answers at a port or an address.
 *
 * A table sorted by first address and searched by halves: a VM has some fifteen ranges, so a lookup is four compares, less
 * than a map of 65536 ports would cost in cache misses, and takes a hundredth of its memory. It is filled before the VM runs
 * and never changes then, so vCPUs read it without a lock.
 *
 * An access that sticks out of a device's range is taken apart into bytes, as a chipset would do: no device ever sees an
 * address that is not its own. What nobody claims reads as ones.
 */
#include "include/hv/vdev.h"

#include "mm/mm.h"

struct pio_range { uint16_t first, count; vdev_pio_fn *fn; void *dev; };
struct mmio_range { uint64_t gpa, size; vdev_mmio_fn *fn; void *dev; };

struct vdev_bus {
    unsigned pio_count, mmio_count;
    struct pio_range pio[VDEV_MAX_PIO];
    struct mmio_range mmio[VDEV_MAX_MMIO];
};

struct vdev_bus *vdev_bus_create(void) { return kzalloc(sizeof(struct vdev_bus)); }
void vdev_bus_destroy(struct vdev_bus *b) { kfree(b); }

bool vdev_bus_add_pio(struct vdev_bus *b, uint16_t first, uint16_t count, vdev_pio_fn *fn, void *dev)
{
    unsigned at = b->pio_count;
    if (at == VDEV_MAX_PIO || !count || (uint32_t)first + count > 0x10000)
        return false;
    while (at && b->pio[at - 1].first >= first) /* from the end: who adds in order moves nothing */
        at--;
    if ((at && b->pio[at - 1].first + (uint32_t)b->pio[at - 1].count > first) ||
        (at < b->pio_count && first + (uint32_t)count > b->pio[at].first))
        return false;
    for (unsigned n = b->pio_count++; n > at; n--)
        b->pio[n] = b->pio[n - 1];
    b->pio[at] = (struct pio_range){first, count, fn, dev};
    return true;
}

bool vdev_bus_add_mmio(struct vdev_bus *b, uint64_t gpa, uint64_t size, vdev_mmio_fn *fn, void *dev)
{
    unsigned at = 0;
    if (b->mmio_count == VDEV_MAX_MMIO || !size || gpa + size < gpa)
        return false;
    while (at < b->mmio_count && b->mmio[at].gpa < gpa)
        at++;
    if ((at && b->mmio[at - 1].gpa + b->mmio[at - 1].size > gpa) || (at < b->mmio_count && gpa + size > b->mmio[at].gpa))
        return false;
    for (unsigned n = b->mmio_count++; n > at; n--)
        b->mmio[n] = b->mmio[n - 1];
    b->mmio[at] = (struct mmio_range){gpa, size, fn, dev};
    return true;
}

static const struct pio_range *find_pio(const struct vdev_bus *b, uint16_t port)
{
    unsigned low = 0, high = b->pio_count;
    while (low < high) {
        unsigned mid = (low + high) / 2;
        if (port < b->pio[mid].first)
            high = mid;
        else if (port >= b->pio[mid].first + (uint32_t)b->pio[mid].count)
            low = mid + 1;
        else
            return &b->pio[mid];
    }
    return NULL;
}

static const struct mmio_range *find_mmio(const struct vdev_bus *b, uint64_t gpa)
{
    unsigned low = 0, high = b->mmio_count;
    while (low < high) {
        unsigned mid = (low + high) / 2;
        if (gpa < b->mmio[mid].gpa)
            high = mid;
        else if (gpa - b->mmio[mid].gpa >= b->mmio[mid].size)
            low = mid + 1;
        else
            return &b->mmio[mid];
    }
    return NULL;
}

static void pio_by_bytes(struct vdev_bus *b, struct vcpu *v, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    uint32_t result = 0;
    for (unsigned n = 0; n < size; n++) {
        const struct pio_range *r = find_pio(b, (uint16_t)(port + n));
        uint32_t byte = in ? 0xff : *val >> 8 * n & 0xff;
        if (r)
            r->fn(v, r->dev, (uint16_t)(port + n), 1, in, &byte);
        result |= (byte & 0xff) << 8 * n;
    }
    if (in)
        *val = result;
}

void vdev_bus_pio(struct vdev_bus *b, struct vcpu *v, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    const struct pio_range *r = find_pio(b, port);
    if (in)
        *val = size == 4 ? UINT32_MAX : (1u << 8 * size) - 1;
    if (r && (uint32_t)(port - r->first) + size <= r->count)
        r->fn(v, r->dev, port, size, in, val);
    else if (size > 1)
        pio_by_bytes(b, v, port, size, in, val);
}

bool vdev_bus_mmio(struct vdev_bus *b, struct vcpu *v, uint64_t gpa, unsigned size, bool write, uint64_t *val)
{
    const struct mmio_range *r = find_mmio(b, gpa);
    if (!r || gpa - r->gpa + size > r->size)
        return false;
    r->fn(v, r->dev, gpa - r->gpa, size, write, val);
    return true;
}

bool vdev_bus_is_mmio(const struct vdev_bus *b, uint64_t gpa) { return find_mmio(b, gpa); }
