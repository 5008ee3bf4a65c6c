/* Port instructions. The plain ones, nearly all, are done here; strings go through the emulator, which reads guest memory. */
#include "vm/vm_internal.h"

#include "include/hv/vdev.h"

static void handle_string(struct vcpu *v)
{
    struct emulate_outcome out;
    vcpu_emulate_outcome(v, emulate_vcpu(v, EMULATE_STRING_IO, &out), &out, "string port access");
}

void pio_handle(struct vcpu *v)
{
    const struct vm_exit *x = &v->exit;
    unsigned size = x->u.io.size;
    if (x->u.io.string) {
        handle_string(v);
        return;
    }
    unsigned len = vcpu_insn_len(v);
    if (!len)
        return;
    uint64_t rax = v->gpr[GPR_RAX], mask = size == 4 ? UINT32_MAX : (UINT64_C(1) << 8 * size) - 1;
    uint32_t val = (uint32_t)(rax & mask);
    vdev_bus_pio(v->vm->bus, v, x->u.io.port, size, x->u.io.in, &val);
    if (x->u.io.in) /* EAX clears the upper half, AL and AX leave the rest */
        v->gpr[GPR_RAX] = size == 4 ? val : (rax & ~mask) | (val & mask);
    vcpu_advance_rip(v, len);
}
