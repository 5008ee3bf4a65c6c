/* TEST-SOURCES: vdev/platform.c vdev/vlapic.c vdev/vpic.c vdev/vioapic.c vdev/vpit.c vdev/vrtc.c vdev/vuart.c vdev/vpmtimer.c vdev/vreset.c vdev/vgenid.c vdev/vdebugexit.c vdev/acpi_tables.c */
/* Guest ACPI tables: checksums, pointers and lengths walked as an OS does, then iasl's opinion. The MP table: walked likewise, compared with the MADT. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "tests/unit/fake/vdev_fakes.h"

#include <unistd.h>

static uint64_t rd(uint64_t gpa, unsigned n)
{
    uint64_t v = 0;
    assert_true(gpa >= GUEST_ACPI_GPA && gpa + n <= GUEST_ACPI_GPA + GUEST_ACPI_SIZE);
    memcpy(&v, fake_acpi + (gpa - GUEST_ACPI_GPA), n);
    return v;
}
static uint8_t sum(uint64_t gpa, uint64_t len)
{
    uint8_t s = 0;
    while (len--)
        s += (uint8_t)rd(gpa++, 1);
    return s;
}
static void table(uint64_t gpa, const char *sig)
{
    uint32_t len = (uint32_t)rd(gpa + 4, 4);
    assert_memory_equal(fake_acpi + (gpa - GUEST_ACPI_GPA), sig, 4);
    assert_int_equal(sum(gpa, len), 0);
    if (system("command -v iasl >/dev/null 2>&1") != 0) {
        fprintf(stderr, "SKIP: iasl is not installed, %s was not disassembled\n", sig);
        return;
    }
    char dir[] = "/tmp/acpiXXXXXX", cmd[256], path[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/t.aml", dir);
    FILE *f = fopen(path, "wb");
    fwrite(fake_acpi + (gpa - GUEST_ACPI_GPA), 1, len, f);
    fclose(f);
    /* must disassemble without complaint, and the DSDT compile again without errors or warnings */
    snprintf(cmd, sizeof cmd, "cd %s && iasl -d t.aml >log 2>&1 && ! grep -iE 'error|warning|invalid|could not' log t.dsl", dir);
    assert_int_equal(system(cmd), 0);
    snprintf(cmd, sizeof cmd, "cd %s && iasl -p u t.dsl >log2 2>&1 && grep -q ' 0 Errors, 0 Warnings' log2", dir);
    if (strcmp(sig, "DSDT") == 0)
        assert_int_equal(system(cmd), 0);
    snprintf(cmd, sizeof cmd, "rm -r %s", dir);
    assert_int_equal(system(cmd), 0);
}

/* What both kinds of tables say. Interrupts are told apart by source and, for local ones, by the input. */
struct routing { bool cpu[256]; uint8_t ioapic_id; uint32_t ioapic, lapic; uint8_t pin[16]; uint16_t flags[16]; unsigned nmi_lint, nmi_apic; };

static struct routing of_madt(uint64_t madt)
{
    struct routing r = {.lapic = (uint32_t)rd(madt + 36, 4)};
    for (unsigned n = 0; n < 16; n++)
        r.pin[n] = (uint8_t)(n == 2 ? 0xff : n); /* IRQ 2 is the cascade on every PC with two PICs */
    for (uint64_t e = madt + 44; e < madt + rd(madt + 4, 4); e += rd(e + 1, 1)) {
        switch (rd(e, 1)) {
        case 0: r.cpu[rd(e + 3, 1)] = rd(e + 4, 4) & 1; break;
        case 1: r.ioapic_id = (uint8_t)rd(e + 2, 1), r.ioapic = (uint32_t)rd(e + 4, 4); break;
        case 2: r.pin[rd(e + 3, 1)] = (uint8_t)rd(e + 4, 4), r.flags[rd(e + 3, 1)] = (uint16_t)rd(e + 8, 2); break;
        case 4: r.nmi_apic = (unsigned)rd(e + 2, 1), r.nmi_lint = (unsigned)rd(e + 5, 1); break;
        }
    }
    return r;
}

/* MultiProcessor Specification 1.4: the pointer is searched for on 16-byte boundaries (4), the entries come in order of their types (4.3). */
static struct routing of_mp_table(void)
{
    uint64_t pointer = 0;
    unsigned count = 0, boot = 0, buses = 0, ioapics = 0, extints = 0, last = 0;
    for (uint64_t gpa = MAX(0xf0000u, GUEST_ACPI_GPA); gpa < 0x100000; gpa += 16)
        if (memcmp(fake_acpi + (gpa - GUEST_ACPI_GPA), "_MP_", 4) == 0 && sum(gpa, 16) == 0) {
            assert_int_equal(pointer, 0);
            pointer = gpa;
        }
    assert_true(pointer);
    assert_int_equal(rd(pointer + 8, 1), 1), assert_int_equal(rd(pointer + 9, 1), 4);
    assert_int_equal(rd(pointer + 11, 1), 0), assert_int_equal(rd(pointer + 12, 4), 0); /* there is a table; virtual wire mode */
    uint64_t at = rd(pointer + 4, 4), end = at + rd(at + 4, 2);
    assert_memory_equal(fake_acpi + (at - GUEST_ACPI_GPA), "PCMP", 4);
    assert_int_equal(sum(at, end - at), 0);
    assert_int_equal(rd(at + 6, 1), 4);
    assert_int_equal(rd(at + 28, 4), 0), assert_int_equal(rd(at + 32, 2), 0), assert_int_equal(rd(at + 40, 2), 0); /* no OEM or extended table */
    struct routing r = {.lapic = (uint32_t)rd(at + 36, 4)};
    memset(r.pin, 0xff, sizeof r.pin);
    uint64_t e = at + 44;
    for (; e < end; count++) {
        unsigned type = (unsigned)rd(e, 1);
        assert_in_range(type, last, 4);
        last = type;
        if (type == 0) {
            uint8_t id = (uint8_t)rd(e + 1, 1), flags = (uint8_t)rd(e + 3, 1);
            assert_false(r.cpu[id]);
            r.cpu[id] = flags & 1;
            boot += flags >> 1 & 1;
            assert_int_equal(flags >> 1 & 1, id == 0);
            assert_int_equal(rd(e + 2, 1), 0x14);
        } else if (type == 1) {
            buses++;
            assert_int_equal(rd(e + 1, 1), 0);
            assert_memory_equal(fake_acpi + (e + 2 - GUEST_ACPI_GPA), "ISA   ", 6);
        } else if (type == 2) {
            ioapics++;
            assert_int_equal(rd(e + 2, 1), 0x11), assert_int_equal(rd(e + 3, 1), 1);
            r.ioapic_id = (uint8_t)rd(e + 1, 1), r.ioapic = (uint32_t)rd(e + 4, 4);
        } else if (type == 3) {
            uint8_t irq = (uint8_t)rd(e + 5, 1);
            assert_int_equal(rd(e + 1, 1), 0), assert_int_equal(rd(e + 4, 1), 0), assert_int_equal(rd(e + 6, 1), r.ioapic_id);
            assert_true(irq < 16 && r.pin[irq] == 0xff && rd(e + 7, 1) < VIOAPIC_PINS);
            for (unsigned n = 0; n < 16; n++)
                assert_int_not_equal(r.pin[n], rd(e + 7, 1)); /* no pin twice */
            r.pin[irq] = (uint8_t)rd(e + 7, 1), r.flags[irq] = (uint16_t)rd(e + 2, 2);
        } else if (rd(e + 1, 1) == 1) {
            r.nmi_apic = (unsigned)rd(e + 6, 1), r.nmi_lint = (unsigned)rd(e + 7, 1);
        } else {
            extints++;
            assert_int_equal(rd(e + 1, 1), 3), assert_int_equal(rd(e + 7, 1), 0); /* ExtINT at LINT0 */
        }
        e += type == 0 ? 20 : 8;
    }
    assert_int_equal(e, end);
    assert_int_equal(rd(at + 34, 2), count);
    assert_int_equal(boot, 1), assert_int_equal(buses, 1), assert_int_equal(ioapics, 1), assert_int_equal(extints, 1);
    return r;
}

static void walk(void **state)
{
    (void)state;
    static const unsigned counts[] = {1, 2, 64};
    for (unsigned n = 0; n < ARRAY_SIZE(counts); n++) {
        struct vm *vm = fake_vm(counts[n]);
        uint64_t rsdp = vdev_platform_ops.write_firmware_tables(vm);
        assert_int_equal(rsdp, GUEST_ACPI_GPA);
        assert_memory_equal(fake_acpi, "RSD PTR ", 8);
        assert_int_equal(sum(rsdp, 20), 0), assert_int_equal(sum(rsdp, 36), 0);
        uint64_t xsdt = rd(rsdp + 24, 8), fadt = rd(xsdt + 36, 8), madt = rd(xsdt + 44, 8), dsdt = rd(fadt + 140, 8);
        assert_int_equal(rd(xsdt + 4, 4), 36 + 16);
        table(xsdt, "XSDT"), table(fadt, "FACP"), table(madt, "APIC"), table(dsdt, "DSDT");
        assert_int_equal(rd(fadt + 4, 4), 276);
        assert_int_equal(rd(fadt + 40, 4), dsdt);
        assert_int_equal(rd(fadt + 36, 4) % 64, 0); /* FACS */
        assert_int_equal(rd(fadt + 76, 4), 0x608), assert_int_equal(rd(fadt + 120, 8), 0xcf9), assert_int_equal(rd(fadt + 128, 1), 6);
        assert_int_equal(rd(fadt + 148 + 4, 8), 0x600), assert_int_equal(rd(fadt + 172 + 4, 8), 0x604), assert_int_equal(rd(fadt + 208 + 4, 8), 0x608);
        unsigned lapics = 0, ioapics = 0;
        for (uint64_t e = madt + 44; e < madt + rd(madt + 4, 4); e += rd(e + 1, 1)) {
            assert_true(rd(e + 1, 1) >= 2);
            lapics += rd(e, 1) == 0 || rd(e, 1) == 9;
            ioapics += rd(e, 1) == 1;
        }
        assert_int_equal(lapics, counts[n]), assert_int_equal(ioapics, 1);
        struct routing acpi = of_madt(madt), mp = of_mp_table();
        assert_memory_equal(acpi.cpu, mp.cpu, sizeof mp.cpu), assert_memory_equal(acpi.pin, mp.pin, sizeof mp.pin);
        assert_memory_equal(acpi.flags, mp.flags, sizeof mp.flags);
        assert_int_equal(acpi.lapic, mp.lapic), assert_int_equal(acpi.ioapic, mp.ioapic), assert_int_equal(acpi.ioapic_id, mp.ioapic_id);
        assert_int_equal(acpi.nmi_lint, mp.nmi_lint), assert_int_equal(acpi.nmi_apic, mp.nmi_apic);
        fake_vm_free(vm);
    }
}

static void too_small(void **state)
{
    (void)state;
    size_t need = acpi_tables_build(fake_acpi, sizeof fake_acpi, 64);
    assert_in_range(need, 500, 8192);
    for (size_t size = 0; size < need; size++) { /* the heap block lets the sanitizer see a byte too far */
        uint8_t *buf = malloc(size ? size : 1);
        assert_int_equal(acpi_tables_build(buf, size, 64), 0);
        free(buf);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(walk), cmocka_unit_test(too_small)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
