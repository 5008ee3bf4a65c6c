; Entry of a tiny guest: multiboot 1 hands over in 32-bit mode without paging; this maps the first 4 GiB one to one with 2 MiB pages,
; enters 64-bit mode and calls tiny_start(info). With FLAT the header carries addresses, for a loader that knows no ELF. With PVH there is a note
; with the entry instead of the header, and the information is Xen's. With BZIMAGE it is Linux's format without a 64-bit entry: a setup header in
; two sectors, then the image, entered at its first byte with the information in ESI.
; Below: one stub per vector, all ending in tiny_trap(frame).

MAGIC equ 0x1badb002
%ifdef FLAT
FLAGS equ 0x10003
%else
FLAGS equ 0x3
%endif

extern tiny_start, tiny_trap, image_end, data_end
%ifdef BZIMAGE
extern data_paragraphs, image_bytes
%endif
global start, tiny_stubs, tiny_gdt, tiny_pml4, tiny_ap_start, tiny_ap_end

%ifdef PVH
section .pvh progbits alloc noexec nowrite align=4
    dd 4, 4, 18                         ; XEN_ELFNOTE_PHYS32_ENTRY
    db "Xen", 0
    dd start
%elifdef BZIMAGE
section .setup progbits alloc noexec nowrite align=16
header:
    times 0x1f1 - ($ - header) db 0
    db 1                                ; setup sectors behind the first
    dw 0
    dd data_paragraphs
    dw 0, 0, 0, 0xaa55
    db 0xeb, setup_end - $ - 2
    db "HdrS"
    dw 0x20f                            ; protocol 2.15
    dd 0
    dw 0x1000, 0
    db 0, 1                             ; loaded high
    dw 0
    dd start, 0, 0, 0
    dw 0, 0
    dd 0, 0x7fffffff, 4096              ; command line, highest initrd, alignment
    db 0, 12
    dw 0                                ; extended flags: no 64-bit entry
    dd 2047, 0
    dq 0
    dd 0, 0
    dq 0, start                         ; preferred address
    dd image_bytes, 0
setup_end:
    times 1024 - ($ - header) db 0
%else
section .multiboot progbits alloc noexec nowrite align=4
header:
    dd MAGIC, FLAGS, -(MAGIC + FLAGS) & 0xffffffff
%ifdef FLAT
    dd header, header, data_end, image_end, start
%endif
%endif

section .text
bits 32
start:
%ifdef BZIMAGE
    mov ebx, esi
    cmp dword [ebx + 0x202], "HdrS"
    je .known
    jmp .stop
%endif
    cmp eax, 0x2badb002
    je .known
    cmp dword [ebx], 0x336ec578         ; PVH's start info
    jne .stop
.known:
    mov esp, stack_top
    mov esi, ebx
    mov edi, tiny_pd                    ; four tables of 512 large pages
    mov eax, 0x83
    mov ecx, 2048
.fill:
    mov [edi], eax
    mov dword [edi + 4], 0
    add eax, 0x200000
    add edi, 8
    loop .fill
    mov edi, tiny_pdpt
    mov eax, tiny_pd + 3
    mov ecx, 4
.pdpt:
    mov [edi], eax
    add eax, 4096
    add edi, 8
    loop .pdpt
    mov dword [tiny_pml4], tiny_pdpt + 3
    mov eax, cr4
    or eax, 0x20                        ; PAE
    mov cr4, eax
    mov eax, tiny_pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x901                       ; SCE, LME, NXE
    wrmsr
    mov eax, cr0
    or eax, 0x80010000                  ; PG, WP
    mov cr0, eax
    lgdt [gdt_ptr]
    jmp 0x08:long_mode
.stop:
    hlt
    jmp .stop

bits 64
long_mode:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov fs, ax
    mov gs, ax
    mov rsp, stack_top
    mov edi, esi
    xor ebp, ebp
    call tiny_start
.stop:
    cli
    hlt
    jmp .stop

trap_common:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    mov rdi, rsp
    cld
    mov rbp, rsp
    and rsp, -16
    call tiny_trap
    mov rsp, rbp
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq

%assign n 0
%rep 256
stub%[n]:
%if !(n = 8 || (n >= 10 && n <= 14) || n = 17 || n = 21 || n = 29 || n = 30)
    push 0
%endif
    push n
    jmp trap_common
%assign n n + 1
%endrep

; Code for another CPU or for real mode lies here to be copied below 1 MiB: sets a flag byte and halts.
bits 16
tiny_ap_start:
    mov ax, cs
    mov ds, ax
    mov byte [ap_flag - tiny_ap_start], 0xa5
.halt:
    cli
    hlt
    jmp .halt
ap_flag: db 0
tiny_ap_end:
bits 64

section .rodata
align 8
tiny_stubs:
%assign n 0
%rep 256
    dq stub%[n]
%assign n n + 1
%endrep

section .data
align 16
tiny_gdt:
    dq 0, 0x00af9a000000ffff, 0x00cf92000000ffff, 0x00cf9a000000ffff, 0x00009a000000ffff, 0x000092000000ffff
    dq 0, 0                             ; room for a TSS
gdt_ptr:
    dw $ - tiny_gdt - 1
    dq tiny_gdt

section .bss align=4096
tiny_pml4: resb 4096
tiny_pdpt: resb 4096
tiny_pd: resb 4 * 4096
    resb 32768
stack_top:
