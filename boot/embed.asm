; The hypervisor, carried inside of the loader and packed (boot/unpack.h): one file boots from a disk, an ISO or the network.
global packed_image
global packed_image_end

section .rodata align=16
packed_image:
    incbin "palimpsest.packed"
packed_image_end:
