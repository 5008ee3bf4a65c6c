/*
 * How virtual devices attach to a VM: port and MMIO ranges with handlers. vm/ dispatches exits to them; vdev/ implements
 * them. Handlers run on the vCPU's thread with no lock held; they take their own device lock.
 */
#ifndef HV_INCLUDE_HV_VDEV_H
#define HV_INCLUDE_HV_VDEV_H

#include "include/hv/types.h"

struct vm;
struct vcpu;
struct vdev_bus;

/* `size` 1, 2, 4. in: *val is zero-extended result; out: *val is the data. Return value of accesses that no device
 * claims is all ones. */
typedef void vdev_pio_fn(struct vcpu *v, void *dev, uint16_t port, unsigned size, bool in, uint32_t *val);
/* `size` 1, 2, 4, 8; offset from the range's base; natural alignment is not promised. */
typedef void vdev_mmio_fn(struct vcpu *v, void *dev, uint64_t offset, unsigned size, bool write, uint64_t *val);

struct vdev_bus *vdev_bus_create(void);
void vdev_bus_destroy(struct vdev_bus *b);
/* False if it overlaps a range already there or the table is full (limits VDEV_MAX_*). Before the VM runs. */
bool vdev_bus_add_pio(struct vdev_bus *b, uint16_t first, uint16_t count, vdev_pio_fn *fn, void *dev);
bool vdev_bus_add_mmio(struct vdev_bus *b, uint64_t gpa, uint64_t size, vdev_mmio_fn *fn, void *dev);
/* vm/ side. pio never fails (open bus); mmio returns false if no range covers gpa..gpa+size. */
void vdev_bus_pio(struct vdev_bus *b, struct vcpu *v, uint16_t port, unsigned size, bool in, uint32_t *val);
bool vdev_bus_mmio(struct vdev_bus *b, struct vcpu *v, uint64_t gpa, unsigned size, bool write, uint64_t *val);
bool vdev_bus_is_mmio(const struct vdev_bus *b, uint64_t gpa);
#define VDEV_MAX_PIO 48
#define VDEV_MAX_MMIO 24

/* The guest's serial console (vdev/vuart.c), used by `vm console` and by tests. */
struct vuart_console {
    /* Bytes the guest has written and nobody has read yet come out of the ring; returns how many. Never blocks. */
    size_t (*read_output)(struct vm *vm, char *buf, size_t size);
    /* Offers input; returns how many bytes were taken (FIFO full: fewer). */
    size_t (*write_input)(struct vm *vm, const char *buf, size_t len);
    /* Wait queue woken when there is new output, and the condition for it. */
    struct waitq *(*output_waitq)(struct vm *vm);
    bool (*output_pending)(struct vm *vm);
    uint64_t (*output_dropped)(struct vm *vm); /* bytes the ring lost while detached */
    /* False after write_input() took less than all, until there is room again (which wakes the watcher). */
    bool (*input_ready)(struct vm *vm);
    /* New output also wakes q from now on, so that one can wait for output and something else; NULL: no longer. One watcher. */
    void (*watch)(struct vm *vm, struct waitq *q);
};
extern const struct vuart_console vuart_console;

#endif
