/* FUZZ-SOURCES: vdev/platform.c vdev/vlapic.c vdev/vpic.c vdev/vioapic.c vdev/vpit.c vdev/vrtc.c vdev/vuart.c vdev/vpmtimer.c vdev/vreset.c vdev/vgenid.c vdev/vdebugexit.c vdev/acpi_tables.c */
/* Every device at once: the input is a program of port, MMIO and MSR accesses, lines, time and pauses by two vCPUs. */
#include "tests/unit/fake/vdev_fakes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint16_t ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0xcf8, 0xcf9, 0xcfc,
                                     0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x600, 0x602, 0x604, 0x608, 0x60a, 0xf4, 0x80};
    struct vm *vm = fake_vm(2);
    char buf[64] = {0};
    for (; size >= 8; data += 8, size -= 8) {
        struct vcpu *v = vm->vcpus[data[0] >> 7];
        uint32_t val;
        uint64_t out;
        bool gp;
        memcpy(&val, data + 4, 4);
        uint16_t arg = (uint16_t)(data[2] | data[3] << 8);
        unsigned bytes = 1u << (data[1] & 3);
        switch (data[0] & 15) {
        case 0: case 1: outp(vm, ports[data[2] % ARRAY_SIZE(ports)], MIN(bytes, 4u), val); break;
        case 2: inp(vm, ports[data[2] % ARRAY_SIZE(ports)], MIN(bytes, 4u)); break;
        case 3: case 4: mmio(v, GUEST_LAPIC_GPA + (arg & 0xff0), 4, true, val); break;
        case 5: mmio(v, GUEST_LAPIC_GPA + (arg & 0xfff), bytes, data[1] & 4, val); break;
        case 6: ioapic_write(vm, data[2] % 0x42, val); break;
        case 7: mmio(v, GUEST_IOAPIC_GPA + (arg & 0xfff), bytes, data[1] & 4, val); break;
        case 8: vdev_platform_ops.wrmsr(v, 0x800 + (arg & 0xff), (uint64_t)(data[1] & 0xf0) << 30 | val, &gp); break;
        case 9: vdev_platform_ops.rdmsr(v, 0x800 + (arg & 0xff), &out, &gp); break;
        case 10: vdev_platform_ops.wrmsr(v, data[1] & 1 ? 0x1b : 0x6e0, data[1] & 1 ? 0xfee00000 | (arg & 0xf00) : (uint64_t)val << (data[1] >> 3), &gp); break;
        case 11: fake_advance(val % 20000000); break;
        case 12: platform_set_isa_irq(vm->platform, data[2] & 15, data[1] & 1); break;
        case 13: take(v); break;
        case 14: vdev_platform_ops.pause(vm, data[1] & 1); break;
        case 15:
            if (data[1] & 1)
                vuart_console.write_input(vm, buf, data[2] & 63);
            else if (data[1] & 2)
                vuart_console.read_output(vm, buf, data[2] & 63);
            else if (data[1] & 4)
                vdev_platform_ops.reset(vm);
            else if (data[1] & 8)
                vdev_platform_ops.vcpu_reset(v);
            break;
        }
        int vector = pending(v);
        FAKE_CHECK(vector < 256 && vdev_platform_ops.irq.has_any(v) == (vector >= 0));
    }
    fake_vm_free(vm);
    return 0;
}
