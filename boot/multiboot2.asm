; Where GRUB enters: 32-bit protected mode, paging off, EAX = magic, EBX = boot information (Multiboot2 specification 2.0, 3.3).
;
; A program of its own that carries the hypervisor, as the UEFI application does: it may lie anywhere below 4 GiB (on UEFI machines no
; fixed address is sure to be free), makes the CPU 64-bit on identity tables of its own, applies its relocations, and leaves the
; rest to multiboot2.c. The header is in multiboot2.ld, which knows the addresses. At first there is no stack, and none can be named:
; EBX + 4 is a reserved word of the boot information, enough for one CALL to find out where we are.

%define LINK_BASE 0x200000              ; multiboot2.ld says the same
%define MAGIC_FROM_LOADER 0x36d76289
%define STACK_BYTES 32768
%define MSR_EFER 0xc0000080
%define R_X86_64_RELATIVE 8

extern multiboot2_main
extern mb2_base
extern rela_start
extern rela_end

; --- 32 bits; EBP = where `here` is. Other sections are found by words that hold their distance --------------------------------

bits 32
section .text progbits alloc exec nowrite align=16

global entry32

%macro address 2                        ; register, word
    mov %1, [ebp + (%2 - here)]
    lea %1, [ebp + %1 + (%2 - here)]
%endmacro

to_stack: dd stack_top - $
to_tables: dd pml4 - $
to_gdt: dd gdt - $
to_no_loader: dd text_no_loader - $
to_no_long_mode: dd text_no_long_mode - $

entry32:
    cli
    cld
    lea esp, [ebx + 8]
    call here
here:
    pop ebp
    address esp, to_stack
    cmp eax, MAGIC_FROM_LOADER
    jne no_loader
    mov edi, ebx
    mov eax, 0x80000000                 ; long mode: the one thing that multiboot2.c cannot check any more
    cpuid
    cmp eax, 0x80000001
    jb no_long_mode
    mov eax, 0x80000001
    cpuid
    bt edx, 29
    jnc no_long_mode

    ; 4 GiB, identity, in 2 MiB pages: one PML4, one PDPT, four PDs, zeroed with .bss
    address ebx, to_tables
    lea eax, [ebx + 0x1003]             ; present, writable
    mov [ebx], eax
    lea esi, [ebx + 0x1000]
    mov ecx, 4
.pdpt:
    add eax, 0x1000
    mov [esi], eax
    add esi, 8
    loop .pdpt
    lea esi, [ebx + 0x2000]
    mov eax, 0x83                       ; present, writable, large
    mov ecx, 4 * 512
.pd:
    mov [esi], eax
    add eax, 0x200000
    add esi, 8
    loop .pd

    mov eax, cr4
    or eax, 1 << 5 | 1 << 9             ; PAE; OSFXSR, for the library that unpacks (boot/hosted.c)
    mov cr4, eax
    mov cr3, ebx
    mov ecx, MSR_EFER
    rdmsr
    or eax, 1 << 8                      ; LME
    wrmsr
    mov eax, cr0
    and eax, ~(1 << 2 | 1 << 3)         ; EM, TS: SSE can be used
    or eax, 1 << 31
    mov cr0, eax
    address eax, to_gdt
    push eax
    push word gdt_end - gdt - 1
    lgdt [esp]
    lea eax, [ebp + (entry64 - here)]
    push dword 8
    push eax
    retf

no_loader:
    address esi, to_no_loader
    jmp stop32
no_long_mode:
    address esi, to_no_long_mode
; ESI = text; to COM1 as the firmware left it and to the text screen, then for ever
stop32:
    mov edi, 0xb8000
.next:
    lodsb
    test al, al
    jz .halt
    mov ah, 0x07
    stosw
    mov dx, 0x3f8
    out dx, al
    mov ecx, 100000                     ; a character's time at any baud rate in use
.drain:
    loop .drain
    jmp .next
.halt:
    hlt
    jmp .halt

; --- 64 bits ------------------------------------------------------------------------------------------------------------------

bits 64
default rel
entry64:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    lea rsp, [stack_top]
    mov ebx, edi                        ; boot information
    lea rbp, [mb2_base]
    sub rbp, LINK_BASE
    lea rsi, [rela_start]
    lea rdi, [rela_end]
.relocate:
    cmp rsi, rdi
    jae .relocated
    cmp dword [rsi + 8], R_X86_64_RELATIVE ; the linker script lets no other in
    jne .skip
    mov rax, [rsi]
    mov rcx, [rsi + 16]
    add rcx, rbp
    mov [rax + rbp], rcx
.skip:
    add rsi, 24
    jmp .relocate
.relocated:
    mov rdi, rbx
    xor ebp, ebp
    call multiboot2_main wrt ..plt
.stop:
    cli
    hlt
    jmp .stop

section .rodata progbits alloc noexec nowrite align=8
align 8
gdt:
    dq 0
    dq 0x00af9b000000ffff               ; code, 64 bits
    dq 0x00cf93000000ffff               ; data
gdt_end:
text_no_loader: db "palimpsest: halted: not started by a multiboot2 loader", 13, 10, 0
text_no_long_mode: db "palimpsest: halted: this CPU has no long mode", 13, 10, 0

section .bss nobits alloc noexec write align=4096
pml4:
    resb 6 * 4096
    resb STACK_BYTES
stack_top:
