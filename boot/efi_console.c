/*
 * The loader's messages. Whoever boots a headless machine sees only the serial line, and whoever boots a laptop only
 * the screen, so a message goes to firmware's console, and also straight to the 16550 at 0x3F8 unless firmware's console
 * is that port already (the ConOut variable says so: UEFI 2.10, 3.3) and the line would come out twice.
 */
#include "boot/loader.h"
#include "lib/string.h"

EFI_SYSTEM_TABLE *efi_st;
EFI_BOOT_SERVICES *efi_bs;

static bool have_conout, have_uart;

/*
 * Does one of the device paths in ConOut lead to COM1, i.e. has an ACPI node PNP0501 with UID 0 (UEFI 2.10, 10.3.3)? The variable
 * is untrusted: every node must lie inside of it.
 */
static bool conout_is_com1(void)
{
    static EFI_GUID global = EFI_GLOBAL_VARIABLE;
    static uint8_t path[2048];
    UINTN size = sizeof(path);
    if (EFI_ERROR(efi_st->RuntimeServices->GetVariable((CHAR16 *)L"ConOut", &global, NULL, &size, path)))
        return false;
    for (UINTN at = 0; at + 4 <= size;) {
        const uint8_t *node = path + at;
        UINTN length = node[2] | (UINTN)node[3] << 8;
        if (length < 4 || at + length > size)
            return false;
        uint32_t hid_uid[2];
        if (node[0] == ACPI_DEVICE_PATH && node[1] == ACPI_DP && length >= 12) {
            memcpy(hid_uid, node + 4, sizeof(hid_uid));
            if (hid_uid[0] == 0x050141d0 /* EISA id of PNP0501 */ && hid_uid[1] == 0)
                return true;
        }
        at += length;
    }
    return false;
}

void loader_console_init(void)
{
    have_conout = efi_st->ConOut != NULL;
    if (!have_conout || !conout_is_com1())
        have_uart = serial_init();
}

void loader_boot_services_ended(void)
{
    if (have_conout && !have_uart)
        have_uart = serial_init();
    have_conout = false;
}

static void put_line(const char *s)
{
    if (have_uart)
        serial_put(s);
    if (!have_conout)
        return;
    CHAR16 wide[256];
    size_t n = 0;
    for (; *s; s++) {
        wide[n++] = (unsigned char)*s < 0x80 ? (CHAR16)*s : L'?';
        if (n == ARRAY_SIZE(wide) - 3) {
            wide[n] = 0;
            efi_st->ConOut->OutputString(efi_st->ConOut, wide);
            n = 0;
        }
    }
    wide[n++] = L'\r';
    wide[n++] = L'\n';
    wide[n] = 0;
    efi_st->ConOut->OutputString(efi_st->ConOut, wide);
}

void loader_print(const char *fmt, ...)
{
    char line[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    put_line(line);
}

/* Not back to firmware: its boot menu or the next boot entry would wipe the message away. */
void loader_halt(const char *fmt, ...)
{
    char cause[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(cause, sizeof(cause), fmt, ap);
    va_end(ap);
    loader_print("palimpsest: halted: %s", cause);
    for (;;)
        asm volatile("cli; hlt");
}

const char *efi_reason(EFI_STATUS status)
{
    static char other[32];
    switch (status) {
    case EFI_NOT_FOUND: return "no such file";
    case EFI_OUT_OF_RESOURCES: return "not enough memory";
    case EFI_BAD_BUFFER_SIZE: return "larger than allowed";
    case EFI_END_OF_FILE: return "shorter than its directory entry says";
    case EFI_DEVICE_ERROR: return "the device reports an error";
    case EFI_NO_MEDIA: return "no medium";
    case EFI_MEDIA_CHANGED: return "the medium was changed";
    case EFI_VOLUME_CORRUPTED: return "the file system is damaged";
    case EFI_TIMEOUT: return "the server does not answer";
    case EFI_TFTP_ERROR: return "the TFTP server refuses (no such file?)";
    case EFI_UNSUPPORTED: return "not supported by this firmware";
    case EFI_INVALID_PARAMETER: return "not a usable file name";
    case EFI_ACCESS_DENIED: return "access denied";
    default:
        snprintf(other, sizeof(other), "UEFI status %llx", (unsigned long long)status);
        return other;
    }
}
