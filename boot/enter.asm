; loader_enter(rdi = cr3, rsi = entry, rdx = direct-map address of boot_info): from firmware's tables to ours and into core.
; Boot services have ended and interrupts are off. This code runs on across the load of CR3 because both map it identically.

%define MSR_EFER 0xc0000080
%define EFER_NXE 1 << 11
%define CR0_WP 1 << 16
%define CR4_PGE 1 << 7
%define CR4_PCIDE 1 << 17

bits 64
global loader_enter

section .text
loader_enter:
    mov r8, rdi
    mov r9, rsi
    mov rdi, rdx                        ; hv_entry's argument
    mov ecx, MSR_EFER                   ; the new tables have NX bits, reserved without this
    rdmsr
    or eax, EFER_NXE
    wrmsr
    mov rax, cr0
    or rax, CR0_WP                      ; read-only means read-only for us too
    mov cr0, rax
    mov rax, cr4
    and rax, ~(CR4_PGE | CR4_PCIDE)     ; drops translations of firmware's that are marked global
    mov cr4, rax
    mov cr3, r8
    jmp r9
