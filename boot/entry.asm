; Where every loader enters the hypervisor: hv_entry(rdi = direct-map address of struct boot_info), see
; include/abi/boot_info.h for the state at this point. The loader has placed and zeroed the whole image, .bss included; we
; only leave its stack, which lies in memory that core will reuse.
;
; A multiboot2 entry (32-bit, paging off) will fill the same structure and then jump here.

%define BOOT_STACK_BYTES 32768          ; core_main runs on it until the scheduler starts; no guest ever does

bits 64
default rel

extern core_main
global hv_entry
global boot_stack_bottom
global boot_stack_top

section .text.entry progbits alloc exec nowrite align=16
hv_entry:
    cli
    cld
    mov rsp, boot_stack_top             ; sign-extended imm32: the image is in the last 2 GiB
    xor ebp, ebp                        ; ends the frame-pointer chain of a backtrace
    push rbp                            ; rsp = 8 mod 16 after the call, as the ABI wants it
    push rbp
    call core_main
.stop:                                  ; core_main does not return
    cli
    hlt
    jmp .stop

section .bss nobits alloc write align=4096
    resb 4096                           ; core unmaps this page: the guard below the boot stack
boot_stack_bottom:
    resb BOOT_STACK_BYTES
boot_stack_top:
