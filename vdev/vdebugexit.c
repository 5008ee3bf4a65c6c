/*
 * Port F4h, only with `debug-exit = yes`: a test guest ends its VM with a code, (value << 1) | 1 so that it is never 0. The three ports
 * behind it are its own as well and do nothing: a value of two or four bytes arrives whole.
 */
#include "vdev/platform.h"

void vdebugexit_pio(struct vcpu *v, void *dev, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    (void)dev;
    uint32_t mask = size >= 4 ? 0xffffffffu : (1u << 8 * size) - 1;
    if (in) {
        *val = mask;
        return;
    }
    if (port != VDEBUGEXIT_PORT)
        return;
    int code = (int)((*val & mask & 0x3fffffff) << 1 | 1);
    vm_request_stop(v->vm, code, "debug exit, code %d", code);
}
