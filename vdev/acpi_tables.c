/*
 * The guest's ACPI tables (ACPI 6.4, chapter 5 and 20), built field by field into a buffer that stands for GUEST_ACPI_GPA. All
 * references are to gpas inside it. Writing past the end sets `full` and nothing else.
 *
 * Behind them is what systems without ACPI read instead (Intel, MultiProcessor Specification 1.4, chapter 4). It says of processors and
 * interrupts what the MADT says, so both must change together.
 *
 * AML packages carry their own length in front, in one to four bytes; we reserve two always (the encoding allows it) and fill
 * them in when the package is closed.
 */
#include "vdev/platform.h"

#include "lib/string.h"

struct writer { uint8_t *buf; size_t size, used; bool full; };

static void put(struct writer *w, uint64_t val, unsigned bytes)
{
    for (unsigned n = 0; n < bytes; n++) {
        if (w->used >= w->size) {
            w->full = true;
            return;
        }
        w->buf[w->used++] = (uint8_t)(n < 8 ? val >> 8 * n : 0);
    }
}
static void put8(struct writer *w, uint8_t v) { put(w, v, 1); }
static void put16(struct writer *w, uint16_t v) { put(w, v, 2); }
static void put32(struct writer *w, uint32_t v) { put(w, v, 4); }
static void put64(struct writer *w, uint64_t v) { put(w, v, 8); }
static void put_bytes(struct writer *w, const char *s, size_t n) { for (size_t k = 0; k < n; k++) put8(w, (uint8_t)s[k]); }

static uint32_t gpa_of(size_t offset) { return GUEST_ACPI_GPA + (uint32_t)offset; }

static void align(struct writer *w, unsigned to)
{
    while (!w->full && w->used % to)
        put8(w, 0);
}

static void set_checksum(struct writer *w, size_t from, size_t len, size_t at)
{
    uint8_t sum = 0;
    if (w->full)
        return;
    w->buf[at] = 0;
    for (size_t n = 0; n < len; n++)
        sum += w->buf[from + n];
    w->buf[at] = (uint8_t)-sum;
}

static size_t begin(struct writer *w, const char *signature, uint8_t revision)
{
    align(w, 16);
    size_t at = w->used;
    put_bytes(w, signature, 4);
    put32(w, 0); /* length */
    put8(w, revision);
    put8(w, 0);  /* checksum */
    put_bytes(w, "PALIMPGUEST   ", 14);
    put32(w, 1);
    put_bytes(w, "PLMP", 4);
    put32(w, 1);
    return at;
}

static void end(struct writer *w, size_t at)
{
    if (w->full)
        return;
    uint32_t len = (uint32_t)(w->used - at);
    for (unsigned n = 0; n < 4; n++)
        w->buf[at + 4 + n] = (uint8_t)(len >> 8 * n);
    set_checksum(w, at, len, at + 9);
}

/* ---- DSDT ----------------------------------------------------------------------------------------------------------- */

enum { AML_ZERO = 0x00, AML_NAME = 0x08, AML_BYTE = 0x0a, AML_DWORD = 0x0c, AML_STRING = 0x0d, AML_SCOPE = 0x10, AML_BUFFER = 0x11, AML_PACKAGE = 0x12,
    AML_METHOD = 0x14, AML_EXT = 0x5b, AML_DEVICE = 0x82, AML_NOTIFY = 0x86 };

static size_t pkg_begin(struct writer *w) { size_t at = w->used; put16(w, 0); return at; }

static void pkg_end(struct writer *w, size_t at)
{
    size_t len = w->used - at; /* includes its own two bytes */
    if (w->full || len > 0xfff) {
        w->full = true;
        return;
    }
    w->buf[at] = (uint8_t)(0x40 | (len & 0xf));
    w->buf[at + 1] = (uint8_t)(len >> 4);
}

static void aml_name(struct writer *w, const char *name) { put8(w, AML_NAME); put_bytes(w, name, 4); }
static void aml_byte(struct writer *w, uint8_t v) { put8(w, AML_BYTE); put8(w, v); }

static void aml_dword(struct writer *w, uint32_t v) { put8(w, AML_DWORD); put32(w, v); }
static void aml_string(struct writer *w, const char *s) { put8(w, AML_STRING); put_bytes(w, s, strlen(s) + 1); }

static size_t aml_device_begin(struct writer *w, const char *name)
{
    put8(w, AML_EXT);
    put8(w, AML_DEVICE);
    size_t dev = pkg_begin(w);
    put_bytes(w, name, 4);
    return dev;
}

static uint32_t eisa_id(const char *s) /* "PNP0501" */
{
    uint32_t hex = 0;
    for (unsigned n = 3; n < 7; n++)
        hex = hex << 4 | (uint32_t)(s[n] <= '9' ? s[n] - '0' : s[n] - 'A' + 10);
    uint32_t id = (uint32_t)(s[0] - 0x40) << 26 | (uint32_t)(s[1] - 0x40) << 21 | (uint32_t)(s[2] - 0x40) << 16 | hex;
    return __builtin_bswap32(id);
}

/* A device with one port range and one interrupt. */
static void aml_isa_device(struct writer *w, const char *name, const char *id, uint16_t port, uint8_t count, unsigned irq)
{
    size_t dev = aml_device_begin(w, name);
    aml_name(w, "_HID");
    aml_dword(w, eisa_id(id));
    aml_name(w, "_UID");
    put8(w, AML_ZERO);
    aml_name(w, "_STA");
    aml_byte(w, 0x0f);
    aml_name(w, "_CRS");
    put8(w, AML_BUFFER);
    size_t buf = pkg_begin(w);
    aml_byte(w, 8 + 3 + 2);
    put8(w, 0x47), put8(w, 1), put16(w, port), put16(w, port), put8(w, 1), put8(w, count); /* I/O, 16-bit decode */
    put8(w, 0x22), put16(w, (uint16_t)(1u << irq));                                      /* IRQ, edge, high */
    put8(w, 0x79), put8(w, 0);                                                           /* end */
    pkg_end(w, buf);
    pkg_end(w, dev);
}

/* Microsoft's "Virtual Machine Generation ID": where it is. Its compatible name there is longer than ACPI's; Linux knows the short one too. */
static void aml_generation_id(struct writer *w)
{
    size_t dev = aml_device_begin(w, "VGEN");
    aml_name(w, "_HID");
    aml_string(w, "PLMP0001");
    aml_name(w, "_CID");
    put8(w, AML_PACKAGE);
    size_t cid = pkg_begin(w);
    put8(w, 2);
    aml_string(w, "VMGENCTR");
    aml_string(w, "VM_Gen_Counter");
    pkg_end(w, cid);
    aml_name(w, "_DDN");
    aml_string(w, "VM_Gen_Counter");
    aml_name(w, "ADDR");
    put8(w, AML_PACKAGE);
    size_t addr = pkg_begin(w);
    put8(w, 2);
    aml_dword(w, GUEST_ACPI_GPA + GUEST_GENID_OFFSET);
    put8(w, AML_ZERO);
    pkg_end(w, addr);
    pkg_end(w, dev);
}

/* A Generic Event Device (ACPI 6.4, 5.6.9), the event of which is a new generation id: an edge, so there is nothing to acknowledge. */
static void aml_event_device(struct writer *w)
{
    size_t dev = aml_device_begin(w, "GED0");
    aml_name(w, "_HID");
    aml_string(w, "ACPI0013");
    aml_name(w, "_UID");
    put8(w, AML_ZERO);
    aml_name(w, "_CRS");
    put8(w, AML_BUFFER);
    size_t buf = pkg_begin(w);
    aml_byte(w, 9 + 2);
    put8(w, 0x89), put16(w, 6), put8(w, 3), put8(w, 1), put32(w, GUEST_GENID_PIN); /* extended interrupt: consumer, edge, high */
    put8(w, 0x79), put8(w, 0);                                                      /* end */
    pkg_end(w, buf);
    put8(w, AML_METHOD);
    size_t method = pkg_begin(w);
    put_bytes(w, "_EVT", 4);
    put8(w, 1 | 1 << 3); /* one argument, serialized */
    put8(w, AML_NOTIFY);
    put_bytes(w, "VGEN", 4);
    aml_byte(w, 0x80);
    pkg_end(w, method);
    pkg_end(w, dev);
}

static size_t build_dsdt(struct writer *w)
{
    size_t at = begin(w, "DSDT", 2);
    aml_name(w, "_S5_");
    put8(w, AML_PACKAGE);
    size_t s5 = pkg_begin(w);
    put8(w, 4);
    aml_byte(w, GUEST_S5_SLP_TYP), aml_byte(w, GUEST_S5_SLP_TYP), put8(w, AML_ZERO), put8(w, AML_ZERO);
    pkg_end(w, s5);
    put8(w, AML_SCOPE);
    size_t scope = pkg_begin(w);
    put_bytes(w, "\\_SB_", 5);
    aml_isa_device(w, "COM1", "PNP0501", 0x3f8, 8, 4);
    aml_isa_device(w, "RTC0", "PNP0B00", 0x70, 2, 8);
    aml_generation_id(w);
    aml_event_device(w);
    pkg_end(w, scope);
    end(w, at);
    return at;
}

/* ---- FADT, FACS, MADT ------------------------------------------------------------------------------------------------ */

static size_t build_facs(struct writer *w)
{
    align(w, 64);
    size_t at = w->used;
    put_bytes(w, "FACS", 4);
    put32(w, 64);
    put(w, 0, 24);
    put8(w, 2); /* version */
    put(w, 0, 31);
    return at;
}

static void put_gas(struct writer *w, uint16_t port, uint8_t bits, uint8_t access)
{
    put8(w, 1); /* system I/O */
    put8(w, bits), put8(w, 0), put8(w, access), put64(w, port);
}

enum { FADT_WBINVD = 1 << 0, FADT_PROC_C1 = 1 << 2, FADT_PWR_BUTTON = 1 << 4, FADT_SLP_BUTTON = 1 << 5, FADT_TMR_VAL_EXT = 1 << 8, FADT_RESET_REG = 1 << 10,
    BOOT_LEGACY_DEVICES = 1 << 0, BOOT_NO_VGA = 1 << 2, BOOT_NO_MSI = 1 << 3, BOOT_NO_ASPM = 1 << 4 };

static size_t build_fadt(struct writer *w, size_t facs, size_t dsdt)
{
    size_t at = begin(w, "FACP", 6);
    put32(w, gpa_of(facs)), put32(w, gpa_of(dsdt));
    put8(w, 0), put8(w, 0), put16(w, GUEST_SCI_IRQ);
    put32(w, 0), put(w, 0, 4);                    /* no SMI command: always in ACPI mode */
    put32(w, GUEST_PM1_EVENT_PORT), put32(w, 0), put32(w, GUEST_PM1_CONTROL_PORT), put32(w, 0), put32(w, 0), put32(w, GUEST_PM_TIMER_PORT);
    put32(w, 0), put32(w, 0);                     /* no GPE blocks */
    put8(w, 4), put8(w, 2), put8(w, 0), put8(w, 4), put(w, 0, 4); /* lengths: PM1 event, control, PM2, timer, GPEs, _CST */
    put16(w, 0xffff), put16(w, 0xffff);           /* no C2, no C3 */
    put16(w, 0), put16(w, 0), put8(w, 0), put8(w, 0), put8(w, 0), put8(w, 0), put8(w, 0x32); /* cache flush; duty; alarms; century */
    put16(w, BOOT_LEGACY_DEVICES | BOOT_NO_VGA | BOOT_NO_MSI | BOOT_NO_ASPM); /* 8042 bit clear: none */
    put8(w, 0);
    put32(w, FADT_WBINVD | FADT_PROC_C1 | FADT_PWR_BUTTON | FADT_SLP_BUTTON | FADT_TMR_VAL_EXT | FADT_RESET_REG);
    put_gas(w, 0xcf9, 8, 1);
    put8(w, 0x06);                                /* value for the reset register */
    put16(w, 0), put8(w, 0);                      /* ARM flags, minor version */
    put64(w, 0), put64(w, gpa_of(dsdt));          /* X_FIRMWARE_CTRL 0: the 32-bit field holds it */
    put_gas(w, GUEST_PM1_EVENT_PORT, 32, 2), put(w, 0, 12);
    put_gas(w, GUEST_PM1_CONTROL_PORT, 16, 2), put(w, 0, 12), put(w, 0, 12);
    put_gas(w, GUEST_PM_TIMER_PORT, 32, 3), put(w, 0, 12), put(w, 0, 12);
    put(w, 0, 12), put(w, 0, 12), put64(w, 0);    /* sleep registers, hypervisor vendor */
    end(w, at);
    return at;
}

static size_t build_madt(struct writer *w, unsigned vcpus)
{
    size_t at = begin(w, "APIC", 4);
    put32(w, GUEST_LAPIC_GPA), put32(w, 1); /* PCAT_COMPAT: there is a PIC pair */
    for (unsigned n = 0; n < vcpus; n++) {
        if (n < 255)
            put8(w, 0), put8(w, 8), put8(w, (uint8_t)n), put8(w, (uint8_t)n), put32(w, 1);
        else
            put8(w, 9), put8(w, 16), put16(w, 0), put32(w, n), put32(w, 1), put32(w, n);
    }
    put8(w, 1), put8(w, 12), put8(w, 0), put8(w, 0), put32(w, GUEST_IOAPIC_GPA), put32(w, 0);
    put8(w, 2), put8(w, 10), put8(w, 0), put8(w, 0), put32(w, 2), put16(w, 0);                  /* IRQ 0 is pin 2 */
    put8(w, 2), put8(w, 10), put8(w, 0), put8(w, GUEST_SCI_IRQ), put32(w, GUEST_SCI_IRQ), put16(w, 0x000d); /* level, high */
    put8(w, 4), put8(w, 6), put8(w, 0xff), put16(w, 0), put8(w, 1);                           /* LINT1 is NMI on all */
    end(w, at);
    return at;
}

/* ---- MP table --------------------------------------------------------------------------------------------------------- */

enum { MP_PROCESSOR, MP_BUS, MP_IOAPIC, MP_INTERRUPT, MP_LOCAL_INTERRUPT };
enum { MP_INT, MP_NMI, MP_SMI, MP_EXTINT };

/* `flags` as in the MADT's overrides. The source is always the one bus, the destination always the one I/O APIC or `apic` of a local one. */
static void put_mp_interrupt(struct writer *w, uint8_t entry, uint8_t type, uint16_t flags, unsigned irq, uint8_t apic, unsigned pin)
{
    put8(w, entry), put8(w, type), put16(w, flags), put8(w, 0), put8(w, (uint8_t)irq), put8(w, apic), put8(w, (uint8_t)pin);
}

/* The I/O APIC has id 0 as in the MADT, though a local APIC has it too: nothing is addressed by it since there is no APIC bus. */
static size_t build_mp_table(struct writer *w, unsigned vcpus)
{
    align(w, 16);
    size_t at = w->used;
    unsigned processors = MIN(vcpus, 255u), interrupts = 15;
    put_bytes(w, "PCMP", 4);
    put16(w, 0), put8(w, 4), put8(w, 0);                /* length and checksum are still to come; version 1.4 */
    put_bytes(w, "PALIMP  GUEST       ", 20);
    put32(w, 0), put16(w, 0), put16(w, (uint16_t)(processors + 2 + interrupts + 2)), put32(w, GUEST_LAPIC_GPA), put32(w, 0);
    for (unsigned n = 0; n < processors; n++) {
        put8(w, MP_PROCESSOR), put8(w, (uint8_t)n), put8(w, 0x14), put8(w, n == 0 ? 3 : 1); /* enabled, the first one boots */
        put32(w, 0x600), put32(w, 0x301), put64(w, 0);  /* "see CPUID": family 6; FPU, CX8, APIC */
    }
    put8(w, MP_BUS), put8(w, 0), put_bytes(w, "ISA   ", 6);
    put8(w, MP_IOAPIC), put8(w, 0), put8(w, 0x11), put8(w, 1), put32(w, GUEST_IOAPIC_GPA);
    for (unsigned irq = 0; irq < 16; irq++)
        if (irq != 2)                                   /* the cascade of the PICs; its pin is IRQ 0's */
            put_mp_interrupt(w, MP_INTERRUPT, MP_INT, irq == GUEST_SCI_IRQ ? 0x000d : 0, irq, 0, irq == 0 ? 2 : irq);
    put_mp_interrupt(w, MP_LOCAL_INTERRUPT, MP_EXTINT, 0, 0, 0, 0);  /* the PICs: LINT0 of the boot processor */
    put_mp_interrupt(w, MP_LOCAL_INTERRUPT, MP_NMI, 0, 0, 0xff, 1);
    if (w->full)
        return at;
    w->buf[at + 4] = (uint8_t)(w->used - at), w->buf[at + 5] = (uint8_t)((w->used - at) >> 8);
    set_checksum(w, at, w->used - at, at + 7);
    return at;
}

size_t acpi_tables_build(uint8_t *buf, size_t size, unsigned vcpus)
{
    struct writer w = {.buf = buf, .size = MIN(size, (size_t)GUEST_ACPI_SIZE)};
    put(&w, 0, GUEST_MP_POINTER_OFFSET + 16); /* RSDP and MP pointer, when the rest is known; the generation id is the platform's */
    size_t dsdt = build_dsdt(&w), facs = build_facs(&w);
    size_t fadt = build_fadt(&w, facs, dsdt), madt = build_madt(&w, vcpus), xsdt = begin(&w, "XSDT", 1);
    put64(&w, gpa_of(fadt)), put64(&w, gpa_of(madt));
    end(&w, xsdt);
    size_t mp = build_mp_table(&w, vcpus);
    if (w.full)
        return 0;
    struct writer r = {.buf = buf, .size = 36};
    put_bytes(&r, "RSD PTR ", 8);
    put8(&r, 0);
    put_bytes(&r, "PALIMP", 6);
    put8(&r, 2), put32(&r, 0), put32(&r, 36), put64(&r, gpa_of(xsdt)), put32(&r, 0);
    set_checksum(&r, 0, 20, 8);
    set_checksum(&r, 0, 36, 32);
    struct writer m = {.buf = buf, .size = GUEST_MP_POINTER_OFFSET + 16, .used = GUEST_MP_POINTER_OFFSET};
    put_bytes(&m, "_MP_", 4);
    put32(&m, gpa_of(mp)), put8(&m, 1), put8(&m, 4), put(&m, 0, 6); /* 16 bytes; 1.4; sum; a table; no IMCR: the PICs are at LINT0 */
    set_checksum(&m, GUEST_MP_POINTER_OFFSET, 16, GUEST_MP_POINTER_OFFSET + 10);
    return w.used;
}
