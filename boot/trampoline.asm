; Where a further CPU begins: real mode, at the start of a page below 1 MiB, with nothing but CS right (SIPI, APM 2, 15.28 and 16.5).
;
; This is copied to such a page and finds its parameters in it, so nothing here may be an absolute address but what the parameters say.
; From real mode it goes to long mode in one step (CR0.PE and PG together, with EFER.LME set): the page tables it needs for that map the
; page itself identically and the hypervisor where it always is.
;
; drivers/smp.c fills the parameters and starts one CPU at a time. A CPU that comes when nobody expects it (it was given up) finds
; no ticket and halts.

%define MSR_EFER 0xc0000080
%define CR0_PE_NE_WP_PG 0x80010021
%define CR4_PAE_PGE 0xa0

section .rodata
global trampoline_start
global trampoline_long
global trampoline_parameters
global trampoline_end

align 16
bits 16
trampoline_start:
    cli
    cld
    mov ax, cs
    mov ds, ax
    xor eax, eax
    lock xchg [param.ticket - trampoline_start], eax
    test eax, eax
    jz .stop
    o32 lgdt [param.gdtr - trampoline_start]
    mov eax, CR4_PAE_PGE
    mov cr4, eax
    mov eax, [param.cr3 - trampoline_start]
    mov cr3, eax
    mov ecx, MSR_EFER
    xor edx, edx
    mov eax, [param.efer - trampoline_start]
    wrmsr
    mov eax, CR0_PE_NE_WP_PG            ; CD and NW, set by INIT, are off from here on
    mov cr0, eax
    jmp far dword [param.far_pointer - trampoline_start]
.stop:
    cli
    hlt
    jmp .stop

bits 64
trampoline_long:
    lea rbx, [rel param]
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov rsp, [rbx + param.stack - param]
    mov rdi, [rbx + param.area - param]
    mov rax, [rbx + param.entry - param]
    xor ebp, ebp                        ; ends the frame-pointer chain of a backtrace
    push rbp                            ; rsp = 8 mod 16, as after a call
    jmp rax                             ; which loads core's own tables: this page is not in them

align 16
trampoline_parameters:
param:
.gdt:           dq 0, 0x00af9b000000ffff, 0x00cf93000000ffff
.gdtr:          dw 23
                dd 0                    ; gdt's address
.far_pointer:   dd 0                    ; trampoline_long's
                dw 8
.ticket:        dd 0
.cr3:           dd 0
.efer:          dd 0
                align 8
.stack:         dq 0
.area:          dq 0
.entry:         dq 0
trampoline_end:

section .note.GNU-stack noalloc noexec nowrite progbits
