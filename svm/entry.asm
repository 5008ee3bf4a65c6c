; void svm_enter(uint64_t vmcb_hpa, uint64_t *gpr, uint64_t host_vmcb_hpa)
;
; VMRUN and #VMEXIT switch the state that the VMCB's page describes as "VMRUN state"; FS, GS, TR, LDTR and the SYSCALL and
; SYSENTER MSRs need VMLOAD and VMSAVE, for the guest around each run and for the hypervisor after it (its own never
; change, so they were saved once). From CLGI to STGI nothing can interrupt, NMI included: GS base is the guest's meanwhile.
;
; VMLOAD, VMRUN and VMSAVE take the VMCB in RAX.
; STI under CLGI does not open a window; it makes IF 1 for VMRUN, which then lets a physical interrupt end the guest's run.

bits 64
default rel

%include "svm/asm_offsets.inc"

global svm_enter

section .text progbits alloc exec nowrite align=16

align 16
svm_enter:
    push rbp
    mov rbp, rsp
    push rbx
    push r12
    push r13
    push r14
    push r15
    push rdx
    push rsi
    mov rax, rdi
    clgi
    sti
    vmload
%assign n 8
%rep 8
    mov r%[n], [rsi + GPR_R8_AT + 8 * (n - 8)]
%assign n n + 1
%endrep
    mov rbx, [rsi + GPR_RBX_AT]
    mov rcx, [rsi + GPR_RCX_AT]
    mov rdx, [rsi + GPR_RDX_AT]
    mov rdi, [rsi + GPR_RDI_AT]
    mov rbp, [rsi + GPR_RBP_AT]
    mov rsi, [rsi + GPR_RSI_AT]
    vmrun
    vmsave                              ; RAX and RSP are the hypervisor's again
    push rsi
    mov rsi, [rsp + 8]
    mov [rsi + GPR_RBX_AT], rbx
    mov [rsi + GPR_RCX_AT], rcx
    mov [rsi + GPR_RDX_AT], rdx
    mov [rsi + GPR_RDI_AT], rdi
    mov [rsi + GPR_RBP_AT], rbp
%assign n 8
%rep 8
    mov [rsi + GPR_R8_AT + 8 * (n - 8)], r%[n]
%assign n n + 1
%endrep
    pop rcx
    mov [rsi + GPR_RSI_AT], rcx
    pop rsi
    pop rax                             ; host_vmcb_hpa
    vmload
    ; Guest values in registers that the compiled code might be led to use as addresses under misspeculation.
    xor ecx, ecx
    xor edx, edx
    xor edi, edi
    xor esi, esi
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    cli
    stgi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret
