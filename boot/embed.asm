; The hypervisor, carried inside of the loader: one file boots from a disk, an ISO or the network.
global embedded_image
global embedded_image_end

section .rodata align=4096
embedded_image:
    incbin "palimpsest.stripped.elf"
embedded_image_end:
