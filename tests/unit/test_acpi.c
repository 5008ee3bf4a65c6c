/* TEST-SOURCES: drivers/acpi_parse.c drivers/acpi_madt.c drivers/acpi_fadt.c */
/*
 * ACPI decoders on hand-built tables: what a good one gives, that each kind of damage is named with its place, and that
 * no table cut short at any byte or changed at any byte is read out of bounds (sanitizers) or half accepted.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include "drivers/acpi_parse.h"
#include "lib/string.h"
#include <cmocka.h>

static uint8_t buf[4096];
static size_t used;
static struct acpi_fault fault;

static void put(uint64_t v, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        buf[used++] = (uint8_t)(v >> 8 * i);
}

static void set(size_t at, uint64_t v, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        buf[at + i] = (uint8_t)(v >> 8 * i);
}

static void fix_checksum(size_t at, size_t len)
{
    uint8_t s = 0;
    buf[at] = 0;
    for (size_t i = 0; i < len; i++)
        s = (uint8_t)(s + buf[i]);
    buf[at] = (uint8_t)-s;
}

static void begin(const char *sig)
{
    memset(buf, 0, sizeof(buf));
    memcpy(buf, sig, 4);
    used = ACPI_HEADER_BYTES;
}

static void end(void)
{
    set(4, used, 4);
    fix_checksum(9, used);
}

/* As the decoders get it: a copy of exactly the claimed size, so that the sanitizer sees every step beyond. */
static void *exact(size_t len)
{
    void *p = malloc(len ? len : 1);
    memcpy(p, buf, len);
    return p;
}

#define DECODE(fn, out) ({ void *p_ = exact(used); bool ok_ = fn(p_, used, out, &fault); free(p_); ok_; })

/* ---- RSDP, headers ------------------------------------------------------------------------------------------- */

static void make_rsdp(uint8_t revision)
{
    memset(buf, 0, sizeof(buf));
    memcpy(buf, "RSD PTR ", 8);
    set(15, revision, 1);
    set(16, 0x7fe0014, 4);
    set(20, 36, 4);
    set(24, 0x17fe00e8, 8);
    fix_checksum(8, 20);
    fix_checksum(32, 36);
    used = revision ? 36 : 20;
}

static void rsdp(void **state)
{
    struct acpi_rsdp r;
    make_rsdp(0);
    assert_true(DECODE(acpi_decode_rsdp, &r));
    assert_int_equal(r.rsdt_hpa, 0x7fe0014);
    assert_int_equal(r.xsdt_hpa, 0);
    make_rsdp(2);
    assert_true(DECODE(acpi_decode_rsdp, &r));
    assert_int_equal(r.xsdt_hpa, 0x17fe00e8);

    for (size_t i = 0; i < 36; i++) { /* every byte is under a checksum, or is one */
        make_rsdp(2);
        buf[i] ^= 0x10;
        assert_false(DECODE(acpi_decode_rsdp, &r));
    }
    make_rsdp(2);
    for (used = 0; used < 36; used++)
        assert_false(DECODE(acpi_decode_rsdp, &r));
    make_rsdp(2);
    set(20, 200, 4);
    assert_false(DECODE(acpi_decode_rsdp, &r));
    assert_int_equal(fault.offset, 20);
    make_rsdp(0);
    set(16, 0, 4);
    fix_checksum(8, 20);
    assert_false(DECODE(acpi_decode_rsdp, &r));
}

static void header(void **state)
{
    uint32_t bytes;
    begin("XSDT");
    put(0x1111222233334444, 8);
    put(0x55, 8);
    end();
    assert_true(acpi_check_table(buf, used, "XSDT", &fault));
    assert_true(acpi_check_table(buf, sizeof(buf), NULL, &fault));
    assert_false(acpi_check_table(buf, used, "RSDT", &fault));
    assert_false(acpi_check_table(buf, used - 1, "XSDT", &fault));
    assert_int_equal(fault.offset, 4);
    assert_false(acpi_check_table(buf, 35, "XSDT", &fault));
    assert_int_equal(acpi_root_count(used, 8), 2);
    assert_int_equal(acpi_root_count(used + 7, 8), 2);
    assert_int_equal(acpi_root_count(20, 8), 0);
    assert_int_equal(acpi_root_entry(buf, 0, 8), 0x1111222233334444);
    assert_int_equal(acpi_root_entry(buf, 1, 4), 0x11112222);
    buf[40]++;
    assert_false(acpi_check_table(buf, used, "XSDT", &fault));
    assert_string_equal(fault.what, "wrong checksum");
    set(4, 35, 4);
    assert_false(acpi_decode_length(buf, "XSDT", &bytes, &fault));
    set(4, 0xffffffff, 4);
    assert_false(acpi_decode_length(buf, "XSDT", &bytes, &fault));
}

/* ---- MADT ------------------------------------------------------------------------------------------------------ */

static void record(uint8_t type, unsigned len) { put(type, 1); put(len, 1); }
static void lapic(uint8_t uid, uint8_t id, uint32_t flags) { record(0, 8); put(uid, 1); put(id, 1); put(flags, 4); }
static void x2apic(uint32_t id, uint32_t flags, uint32_t uid) { record(9, 16); put(0, 2); put(id, 4); put(flags, 4); put(uid, 4); }
static void ioapic(uint8_t id, uint32_t hpa, uint32_t gsi) { record(1, 12); put(id, 1); put(0, 1); put(hpa, 4); put(gsi, 4); }
static void override(uint8_t bus, uint8_t irq, uint32_t gsi, uint16_t flags)
{
    record(2, 10);
    put(bus, 1);
    put(irq, 1);
    put(gsi, 4);
    put(flags, 2);
}

static void begin_madt(void)
{
    begin("APIC");
    put(0xfee00000, 4);
    put(1, 4);
}

static void good_madt(void)
{
    begin_madt();
    lapic(0, 0, 1);
    lapic(1, 1, 1);
    lapic(2, 7, 0);          /* a hole */
    lapic(3, 0xff, 1);       /* broadcast */
    lapic(4, 9, 2);          /* could be plugged in */
    ioapic(0, 0xfec00000, 0);
    override(0, 0, 2, 0);
    override(0, 9, 9, 13);
    record(4, 6); put(0xff, 1); put(5, 2); put(1, 1);
    record(3, 8); put(0, 2); put(23, 4);
    record(0x77, 5); put(0, 3); /* a type from the future */
    x2apic(1, 1, 1);         /* the second record of the same CPU */
    x2apic(0x12345, 1, 300);
    record(10, 12); put(0, 2); put(300, 4); put(0, 1); put(0, 3);
    record(5, 12); put(0, 2); put(0x1fee00000, 8);
    end();
}

static void madt(void **state)
{
    static struct acpi_madt m;
    good_madt();
    assert_true(DECODE(acpi_decode_madt, &m));
    assert_int_equal(m.cpu_count, 4);
    assert_int_equal(m.cpus[1].apic_id, 1);
    assert_true(m.cpus[1].enabled);
    assert_int_equal(m.cpus[2].apic_id, 9);
    assert_false(m.cpus[2].enabled);
    assert_true(m.cpus[2].online_capable);
    assert_int_equal(m.cpus[3].apic_id, 0x12345);
    assert_int_equal(m.cpus[3].uid, 300);
    assert_int_equal(m.ioapic_count, 1);
    assert_int_equal(m.ioapics[0].hpa, 0xfec00000);
    assert_true(m.overrides[0].present && m.overrides[0].gsi == 2);
    assert_int_equal(ACPI_POLARITY(m.overrides[9].flags), 1);
    assert_int_equal(ACPI_TRIGGER(m.overrides[9].flags), 3);
    assert_false(m.overrides[4].present);
    assert_int_equal(m.nmi_count, 2);
    assert_int_equal(m.nmis[0].uid, ACPI_ALL_CPUS);
    assert_int_equal(m.nmis[0].lint, 1);
    assert_int_equal(m.nmis[1].uid, 300);
    assert_int_equal(m.nmi_source_count, 1);
    assert_int_equal(m.lapic_hpa, 0x1fee00000);
    assert_true(m.has_8259);
}

static void madt_bad(const char *what, size_t at)
{
    static struct acpi_madt m;
    end();
    assert_false(DECODE(acpi_decode_madt, &m));
    assert_string_equal(fault.what, what);
    assert_int_equal(fault.offset, at);
}

static void madt_malformed(void **state)
{
    static struct acpi_madt m;
    begin_madt(); lapic(0, 0, 1); record(0, 0);
    madt_bad("record leaves the table", 52);
    begin_madt(); lapic(0, 0, 1); put(0, 1);
    madt_bad("record leaves the table", 52);
    begin_madt(); lapic(0, 0, 1); record(1, 200); put(0, 8);
    madt_bad("record leaves the table", 52);
    begin_madt(); lapic(0, 0, 1); record(1, 6); put(0, 4);
    madt_bad("record is too short for its type", 52);
    begin_madt(); lapic(0, 0, 1); ioapic(0, 0, 0);
    madt_bad("impossible I/O APIC address", 52);
    begin_madt(); lapic(0, 0, 1); ioapic(0, 0xfec00000, 0xfffffff0);
    madt_bad("impossible interrupt base of an I/O APIC", 52);
    begin_madt(); lapic(0, 0, 1); override(0, 16, 2, 0);
    madt_bad("override of something that is not an ISA interrupt", 52);
    begin_madt(); lapic(0, 0, 1); override(0, 3, 2, 2);
    madt_bad("reserved polarity or trigger", 52);
    begin_madt(); lapic(0, 0, 0);
    madt_bad("names no usable processor", 44);
    begin_madt(); lapic(0, 0, 1);
    for (int i = 0; i <= ACPI_MAX_IOAPICS; i++)
        ioapic(0, 0xfec00000, 0);
    madt_bad("too many I/O APICs", 52 + 12 * ACPI_MAX_IOAPICS);
    begin_madt(); lapic(0, 0, 1); record(4, 6); put(0, 1); put(0, 2); put(2, 1);
    madt_bad("NMI on an input that local APICs do not have", 52);

    begin_madt(); /* more CPUs than we take: the rest is counted */
    for (uint32_t i = 0; i < 250; i++)
        x2apic(i, 1, i);
    end();
    assert_true(DECODE(acpi_decode_madt, &m));
    assert_int_equal(m.cpu_count, 250);
}

/* ---- FADT, _S5_ -------------------------------------------------------------------------------------------------- */

static void gas(size_t at, uint8_t space, uint8_t width, uint64_t address)
{
    set(at, space, 1);
    set(at + 1, width, 1);
    set(at + 4, address, 8);
}

static void make_fadt(size_t len)
{
    begin("FACP");
    used = len;
    set(40, 0x7fe0040, 4);
    set(46, 9, 2);
    set(48, 0xb2, 4);
    set(52, 2, 1);
    set(64, 0x604, 4);
    set(76, 0x608, 4);
    set(91, 4, 1);
    set(108, 0x32, 1);
    set(112, 1 << 10 | 1 << 8, 4);
    gas(116, 1, 8, 0xcf9);
    set(128, 0x0f, 1);
    end();
}

static void fadt(void **state)
{
    struct acpi_fadt f;
    make_fadt(116); /* revision 1: no reset register */
    assert_true(DECODE(acpi_decode_fadt, &f));
    assert_int_equal(f.dsdt_hpa, 0x7fe0040);
    assert_int_equal(f.pm1a_cnt.address, 0x604);
    assert_int_equal(f.pm1a_cnt.space, 1);
    assert_int_equal(f.pm1b_cnt.address, 0);
    assert_int_equal(f.pm_timer.address, 0x608);
    assert_int_equal(f.century, 0x32);
    assert_true(f.pm_timer_32bit);
    assert_false(f.has_reset);

    make_fadt(276);
    set(140, 0x17fe0040, 8);
    gas(172, 0, 16, 0x1fed00000);
    gas(208, 1, 32, 0x10608); /* no such port: the old form counts */
    assert_true(DECODE(acpi_decode_fadt, &f));
    assert_int_equal(f.dsdt_hpa, 0x17fe0040);
    assert_int_equal(f.pm1a_cnt.space, 0);
    assert_int_equal(f.pm1a_cnt.address, 0x1fed00000);
    assert_int_equal(f.pm_timer.address, 0x608);
    assert_true(f.has_reset);
    assert_int_equal(f.reset_value, 0x0f);

    gas(116, 2, 8, 0xcf9); /* in PCI configuration space: not ours */
    assert_true(DECODE(acpi_decode_fadt, &f));
    assert_false(f.has_reset);
    gas(116, 0, 8, UINT64_MAX);
    assert_true(DECODE(acpi_decode_fadt, &f));
    assert_false(f.has_reset);
    set(112, 1 << 20, 4);
    gas(244, 1, 8, 0x900);
    assert_true(DECODE(acpi_decode_fadt, &f));
    assert_true(f.hw_reduced);
    assert_int_equal(f.pm_timer.address, 0);
    assert_int_equal(f.sleep_control.address, 0x900);

    make_fadt(276);
    set(40, 0, 4);
    assert_false(DECODE(acpi_decode_fadt, &f));
    assert_int_equal(fault.offset, 40);
    make_fadt(276);
    set(48, 0x10000, 4);
    assert_false(DECODE(acpi_decode_fadt, &f));
    make_fadt(276);
    for (used = 0; used < 116; used++)
        assert_false(DECODE(acpi_decode_fadt, &f));
}

static bool s5(const char *aml, size_t len, struct acpi_s5 *out)
{
    void *p = malloc(len ? len : 1);
    memcpy(p, aml, len);
    bool found = acpi_find_s5(p, len, out);
    free(p);
    return found;
}
#define S5(text, out) s5(text, sizeof(text) - 1, out)

static void s5_scan(void **state)
{
    struct acpi_s5 v;
    assert_true(S5("junk\x08_S5_\x12\x06\x04\x0a\x05\x0a\x06\x00\x00more", &v)); /* elements may be cut by PkgLength */
    assert_int_equal(v.slp_typ_a, 5);
    assert_int_equal(v.slp_typ_b, 6);
    assert_true(S5("\x08\\_S5_\x12\x06\x04\x00\x01\x00\x00", &v));
    assert_int_equal(v.slp_typ_a, 0);
    assert_int_equal(v.slp_typ_b, 1);
    assert_true(S5("\x08_S5_\x12\x47\x00\x02\x0b\x07\x00\x00", &v)); /* two-byte PkgLength, word constant */
    assert_int_equal(v.slp_typ_a, 7);
    assert_true(S5("\x08_S5_XX\x08_S5_\x12\x03\x01\x01", &v)); /* a false friend first; one element */
    assert_int_equal(v.slp_typ_a, 1);
    assert_int_equal(v.slp_typ_b, 0);

    assert_false(S5("", &v));
    assert_false(S5("_S5_\x12\x06\x04\x00\x00\x00\x00", &v)); /* no NameOp: only mentioned */
    assert_false(S5("\x08_S5_", &v));
    assert_false(S5("\x08_S5_\x12", &v));
    assert_false(S5("\x08_S5_\x12\x06\x04", &v));
    assert_false(S5("\x08_S5_\x12\x3f\x04\x00\x00\x00\x00", &v)); /* the package leaves the table */
    assert_false(S5("\x08_S5_\x12\x06\x00\x00\x00\x00\x00", &v)); /* no elements */
    assert_false(S5("\x08_S5_\x12\x06\x09\x00\x00\x00\x00", &v));
    assert_false(S5("\x08_S5_\x12\x06\x02\x5c\x00\x00\x00", &v)); /* not a constant */
    assert_false(S5("\x08_S5_\x12\x02\x02\x00\x00", &v));         /* second element beyond the package */
    assert_false(S5("\x08_S5_\x12\xc7\x00\x00", &v));
}

/* ---- HPET, MCFG, damage ----------------------------------------------------------------------------------------- */

static void make_hpet(void)
{
    begin("HPET");
    put(0x8086a201, 4);
    put(0, 1); put(64, 1); put(0, 2); put(0xfed00000, 8);
    put(0, 1); put(128, 2); put(0, 1);
    end();
}

static void make_mcfg(void)
{
    begin("MCFG");
    put(0, 8);
    put(0xb0000000, 8); put(0, 2); put(0, 1); put(255, 1); put(0, 4);
    put(0x4000000000, 8); put(1, 2); put(0x10, 1); put(0x1f, 1); put(0, 4);
    end();
}

static void hpet_and_mcfg(void **state)
{
    struct acpi_hpet h;
    struct acpi_mcfg m;
    make_hpet();
    assert_true(DECODE(acpi_decode_hpet, &h));
    assert_int_equal(h.hpa, 0xfed00000);
    assert_int_equal(h.min_tick, 128);
    set(40, 1, 1);
    assert_false(DECODE(acpi_decode_hpet, &h));
    make_hpet();
    set(44, UINT64_MAX & ~7ull, 8);
    assert_false(DECODE(acpi_decode_hpet, &h));
    make_hpet();
    used = 55;
    assert_false(DECODE(acpi_decode_hpet, &h));

    make_mcfg();
    assert_true(DECODE(acpi_decode_mcfg, &m));
    assert_int_equal(m.count, 2);
    assert_int_equal(m.segments[1].hpa, 0x4000000000);
    assert_int_equal(m.segments[1].segment, 1);
    assert_int_equal(m.segments[1].bus_last, 0x1f);
    used -= 3; /* an incomplete last entry is not one */
    assert_true(DECODE(acpi_decode_mcfg, &m));
    assert_int_equal(m.count, 1);
    make_mcfg();
    set(44 + 10, 0xff, 1);
    set(44 + 11, 0, 1);
    assert_false(DECODE(acpi_decode_mcfg, &m));
    assert_int_equal(fault.offset, 54);
    make_mcfg();
    set(44, 0x1000, 8);
    assert_false(DECODE(acpi_decode_mcfg, &m));
    begin("MCFG");
    put(0, 8);
    assert_false(DECODE(acpi_decode_mcfg, &m));
}

/* Every length, and random damage: in bounds (sanitizers), and what is accepted obeys the limits. */
static void damage(void **state)
{
    static struct acpi_madt m;
    struct acpi_fadt f;
    struct acpi_hpet h;
    struct acpi_mcfg c;
    srand(2);
    for (int round = 0; round < 20000; round++) {
        void (*const make[])(void) = {good_madt, make_hpet, make_mcfg};
        unsigned which = (unsigned)rand() % 4;
        if (which == 3)
            make_fadt(276);
        else
            make[which]();
        size_t whole = used;
        used = (size_t)rand() % (whole + 1);
        for (int hits = rand() % 6; hits > 0; hits--)
            buf[(size_t)rand() % whole] = (uint8_t)rand();
        if (which == 0 && DECODE(acpi_decode_madt, &m)) {
            assert_in_range(m.cpu_count, 1, ACPI_MAX_CPUS);
            assert_in_range(m.ioapic_count, 0, ACPI_MAX_IOAPICS);
        } else if (which == 1 && DECODE(acpi_decode_hpet, &h)) {
            assert_true(h.hpa && h.hpa < BIT64(52));
        } else if (which == 2 && DECODE(acpi_decode_mcfg, &c)) {
            assert_in_range(c.count, 1, ACPI_MAX_SEGMENTS);
        } else if (which == 3 && DECODE(acpi_decode_fadt, &f)) {
            assert_true(f.pm1a_cnt.space == 0 || f.pm1a_cnt.address <= 0xfffc);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rsdp), cmocka_unit_test(header), cmocka_unit_test(madt), cmocka_unit_test(madt_malformed),
        cmocka_unit_test(fadt), cmocka_unit_test(s5_scan), cmocka_unit_test(hpet_and_mcfg), cmocka_unit_test(damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
