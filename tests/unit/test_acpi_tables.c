/* TEST-SOURCES: vdev/platform.c vdev/vlapic.c vdev/vpic.c vdev/vioapic.c vdev/vpit.c vdev/vrtc.c vdev/vuart.c vdev/vpmtimer.c vdev/vreset.c vdev/vgenid.c vdev/vdebugexit.c vdev/acpi_tables.c */
/* Guest ACPI tables: checksums, pointers and lengths walked as an OS does, then iasl's opinion. */
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
