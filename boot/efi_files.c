/*
 * Files come from where the loader itself came from: the volume (disk, stick, the FAT image of an ISO) or, started
 * by PXE, the TFTP server, in the directory of the boot file; started by iPXE, what its script fetched. Nothing else is searched: a second disk with a
 * palimpsest.conf of its own must not decide what this machine boots.
 */
#include "boot/loader.h"
#include "lib/string.h"

#define READ_CHUNK MIB(4) /* some firmware fails on very long single reads */

/* Offsets in a BOOTP packet (RFC 951). */
#define BOOTP_SIADDR 20
#define BOOTP_FILE 108
#define BOOTP_FILE_BYTES 128

static EFI_FILE_PROTOCOL *volume;
static EFI_PXE_BASE_CODE_PROTOCOL *pxe;
static EFI_IP_ADDRESS pxe_server;
static bool via_ipxe;
static char pxe_directory[BOOTP_FILE_BYTES + 1]; /* "" or ending in '/' */

static void pxe_open(void)
{
    const EFI_PXE_BASE_CODE_MODE *mode = pxe->Mode;
    const EFI_PXE_BASE_CODE_PACKET *packet = mode->PxeReplyReceived ? &mode->PxeReply
        : mode->ProxyOfferReceived ? &mode->ProxyOffer : &mode->DhcpAck;
    if (!mode->Started || mode->UsingIpv6 || !(mode->DhcpAckReceived || mode->PxeReplyReceived))
        loader_halt("started from the network, but not by PXE over IPv4: cannot tell which server to ask for " CONFIG_PATH);

    memcpy(&pxe_server, packet->Raw + BOOTP_SIADDR, 4);
    memcpy(pxe_directory, packet->Raw + BOOTP_FILE, BOOTP_FILE_BYTES);
    size_t cut = 0;
    for (size_t i = 0; pxe_directory[i]; i++) {
        if (pxe_directory[i] == '\\')
            pxe_directory[i] = '/';
        if (pxe_directory[i] == '/')
            cut = i + 1;
    }
    pxe_directory[cut] = 0;
}

/*
 * iPXE offers both protocols, but its TFTP can neither ask for a size nor report one. Its file system holds what its script has
 * fetched (`imgfetch`), so that is the way to hand us files through iPXE.
 */
static bool pxe_knows_sizes(void)
{
    static const EFI_IP_ADDRESS nowhere;
    UINT64 size = 0;
    return pxe->Mtftp(pxe, EFI_PXE_BASE_CODE_TFTP_GET_FILE_SIZE, NULL, FALSE, &size, NULL, (EFI_IP_ADDRESS *)&nowhere,
                      (UINT8 *)CONFIG_PATH, NULL, FALSE) != EFI_UNSUPPORTED;
}

const char *loader_files_hint(void)
{
    return via_ipxe ? " (iPXE hands over only files that its script fetched: imgfetch " CONFIG_PATH " and what it names)" : "";
}

void loader_files_open(EFI_HANDLE self)
{
    static EFI_GUID loaded_image = EFI_LOADED_IMAGE_PROTOCOL_GUID, file_system = EFI_SIMPLE_FILE_SYSTEM_PROTOCOL_GUID;
    static EFI_GUID pxe_base_code = EFI_PXE_BASE_CODE_PROTOCOL_GUID;
    EFI_LOADED_IMAGE *image = NULL;
    EFI_FILE_IO_INTERFACE *fs = NULL;
    if (EFI_ERROR(efi_bs->HandleProtocol(self, &loaded_image, (void **)&image)))
        loader_halt("firmware does not say where the loader was started from");
    bool on_volume = !EFI_ERROR(efi_bs->HandleProtocol(image->DeviceHandle, &file_system, (void **)&fs));
    if (!EFI_ERROR(efi_bs->HandleProtocol(image->DeviceHandle, &pxe_base_code, (void **)&pxe)) &&
        (!on_volume || pxe_knows_sizes())) {
        pxe_open();
    } else if (on_volume) {
        via_ipxe = pxe != NULL;
        pxe = NULL;
        EFI_STATUS status = fs->OpenVolume(fs, &volume);
        if (EFI_ERROR(status))
            loader_halt("cannot open the volume the loader was started from: %s", efi_reason(status));
    } else {
        loader_halt("the loader was started from something that is neither a FAT volume nor PXE (a boot menu that hands "
                    "over a bare file?): there is no place to read " CONFIG_PATH " from");
    }
}

/* Joins and turns slashes the way the source wants them. False if it does not fit or is not plain ASCII. */
static bool make_path(char *out, size_t size, const char *name)
{
    char slash = pxe ? '/' : '\\';
    while (*name == '/' || *name == '\\')
        name++;
    size_t n = (size_t)snprintf(out, size, "%s%s", pxe ? pxe_directory : "\\", name);
    if (n >= size)
        return false;
    for (char *p = out; *p; p++) {
        if (*p < 0x20 || *p > 0x7e)
            return false;
        if (*p == '/' || *p == '\\')
            *p = slash;
    }
    return *name != 0;
}

const char *loader_file_path(const char *name)
{
    static char shown[BOOT_NAME_MAX + BOOTP_FILE_BYTES + 32];
    char path[BOOT_NAME_MAX + BOOTP_FILE_BYTES];
    if (!make_path(path, sizeof(path), name))
        str_copy(path, sizeof(path), name);
    if (pxe)
        snprintf(shown, sizeof(shown), "tftp://%u.%u.%u.%u/%s", pxe_server.v4.Addr[0], pxe_server.v4.Addr[1],
                 pxe_server.v4.Addr[2], pxe_server.v4.Addr[3], path);
    else
        str_copy(shown, sizeof(shown), path);
    return shown;
}

static EFI_STATUS file_size(EFI_FILE_PROTOCOL *f, uint64_t *size)
{
    static EFI_GUID file_info = EFI_FILE_INFO_ID;
    static uint64_t buffer[128]; /* aligned; the name inside is at most 255 characters */
    UINTN bytes = sizeof(buffer);
    EFI_STATUS status = f->GetInfo(f, &file_info, &bytes, buffer);
    if (EFI_ERROR(status))
        return status;
    const EFI_FILE_INFO *info = (const EFI_FILE_INFO *)buffer;
    *size = info->FileSize;
    return info->Attribute & EFI_FILE_DIRECTORY ? EFI_NOT_FOUND : EFI_SUCCESS;
}

/* Memory for a file of `size` bytes, with its tail zeroed. */
static EFI_STATUS alloc_file(uint64_t size, EFI_MEMORY_TYPE type, uint64_t max_bytes, struct loader_file *out)
{
    EFI_PHYSICAL_ADDRESS at = 0;
    out->size = size;
    if (size > max_bytes)
        return EFI_BAD_BUFFER_SIZE;
    uint64_t pages = MAX(ALIGN_UP(size, PAGE_SIZE) / PAGE_SIZE, 1);
    EFI_STATUS status = efi_bs->AllocatePages(AllocateAnyPages, type, pages, &at);
    if (EFI_ERROR(status))
        return status;
    memset((uint8_t *)at + (pages - 1) * PAGE_SIZE, 0, PAGE_SIZE);
    *out = (struct loader_file){.data = (void *)at, .size = size};
    return EFI_SUCCESS;
}

static EFI_STATUS read_from_volume(const char *path, EFI_MEMORY_TYPE type, uint64_t max_bytes, struct loader_file *out)
{
    CHAR16 wide[BOOT_NAME_MAX + BOOTP_FILE_BYTES];
    size_t n = 0;
    do
        wide[n] = (CHAR16)path[n];
    while (path[n++]);

    EFI_FILE_PROTOCOL *f;
    EFI_STATUS status = volume->Open(volume, &f, wide, EFI_FILE_MODE_READ, 0);
    if (EFI_ERROR(status))
        return status;
    uint64_t size = 0, done = 0;
    status = file_size(f, &size);
    if (!EFI_ERROR(status))
        status = alloc_file(size, type, max_bytes, out);
    bool allocated = !EFI_ERROR(status);
    while (!EFI_ERROR(status) && done < size) {
        UINTN chunk = MIN(READ_CHUNK, size - done);
        status = f->Read(f, &chunk, (uint8_t *)out->data + done);
        if (!EFI_ERROR(status) && chunk == 0)
            status = EFI_END_OF_FILE;
        done += chunk;
    }
    f->Close(f);
    if (EFI_ERROR(status) && allocated)
        loader_free(out->data, size);
    return status;
}

/* UEFI 2.10, 24.3: the size first (RFC 2349's tsize option), then the file. */
static EFI_STATUS read_from_network(const char *path, EFI_MEMORY_TYPE type, uint64_t max_bytes, struct loader_file *out)
{
    uint64_t size = 0;
    EFI_STATUS status = pxe->Mtftp(pxe, EFI_PXE_BASE_CODE_TFTP_GET_FILE_SIZE, NULL, FALSE, &size, NULL, &pxe_server,
                                   (UINT8 *)path, NULL, FALSE);
    if (!EFI_ERROR(status))
        status = alloc_file(size, type, max_bytes, out);
    if (EFI_ERROR(status))
        return status;
    uint64_t room = MAX(size, 1);
    status = pxe->Mtftp(pxe, EFI_PXE_BASE_CODE_TFTP_READ_FILE, out->data, FALSE, &room, NULL, &pxe_server, (UINT8 *)path,
                        NULL, FALSE);
    if (!EFI_ERROR(status) && room != size)
        status = EFI_END_OF_FILE;
    if (EFI_ERROR(status))
        loader_free(out->data, size);
    return status;
}

EFI_STATUS loader_read_file(const char *name, EFI_MEMORY_TYPE type, uint64_t max_bytes, struct loader_file *out)
{
    char path[BOOT_NAME_MAX + BOOTP_FILE_BYTES];
    *out = (struct loader_file){0};
    if (!make_path(path, sizeof(path), name))
        return EFI_INVALID_PARAMETER;
    return pxe ? read_from_network(path, type, max_bytes, out) : read_from_volume(path, type, max_bytes, out);
}
