; void svm_enter(struct vcpu *v)
;
; VMRUN and #VMEXIT switch the state that the VMCB's page describes as "VMRUN state"; FS, GS, TR, LDTR and the SYSCALL and
; SYSENTER MSRs need VMLOAD and VMSAVE, for the guest around each run and for the hypervisor after it (its own never
; change, so they were saved once). From CLGI to STGI nothing can interrupt, NMI included: GS base is the guest's meanwhile.
;
; After a CPUID exit svm_exited_cpuid(v), and after a nested fault svm_exited_fault(v), says whether it has been answered and the guest can be
; entered again at once; what this function's caller wants back is saved and restored only around the whole.
;
; QEMU has SYSENTER in compatibility mode, from which it leaves CS with D set beside L. Its VMRUN refuses that, as a CPU should (APM 2, 15.5.1), and
; then spoils RIP in the VMCB, so it is put right before: no guest can load such a segment, and D says nothing in 64-bit mode.
;
; VMLOAD, VMRUN and VMSAVE take the VMCB in RAX.
; STI under CLGI does not open a window; it makes IF 1 for VMRUN, which then lets a physical interrupt end the guest's run.

bits 64
default rel

%include "svm/asm_offsets.inc"

global svm_enter
extern svm_exited_cpuid
extern svm_exited_fault

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
    push rdi                            ; v; the stack is 16-byte aligned from here on
    clgi
    sti
.again:
    mov rdi, [rsp]
    mov rax, [rdi + VCPU_HVM_AT]
    mov rax, [rax + SVM_VMCB_HPA_AT]
    vmload
%assign n 8
%rep 8
    mov r%[n], [rdi + GPR_R8_AT + 8 * (n - 8)]
%assign n n + 1
%endrep
    mov rbx, [rdi + GPR_RBX_AT]
    mov rcx, [rdi + GPR_RCX_AT]
    mov rdx, [rdi + GPR_RDX_AT]
    mov rsi, [rdi + GPR_RSI_AT]
    mov rbp, [rdi + GPR_RBP_AT]
    mov rdi, [rdi + GPR_RDI_AT]
    vmrun
    vmsave                              ; RAX and RSP are the hypervisor's again
    mov rax, rdi
    mov rdi, [rsp]
    mov [rdi + GPR_RDI_AT], rax
    mov [rdi + GPR_RBX_AT], rbx
    mov [rdi + GPR_RCX_AT], rcx
    mov [rdi + GPR_RDX_AT], rdx
    mov [rdi + GPR_RSI_AT], rsi
    mov [rdi + GPR_RBP_AT], rbp
%assign n 8
%rep 8
    mov [rdi + GPR_R8_AT + 8 * (n - 8)], r%[n]
%assign n n + 1
%endrep
    mov rdx, [rdi + VCPU_HVM_AT]
    mov rax, [rdx + SVM_HOST_VMCB_HPA_AT]
    vmload
    lea rbp, [rsp + 6 * 8]              ; the frame that `push rbp` made, for backtraces
    ; Guest values in registers that the compiled code might be led to use as addresses under misspeculation.
    xor ebx, ebx
    xor ecx, ecx
    xor esi, esi
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    xor r15d, r15d
    mov rdx, [rdx + SVM_VMCB_AT]
    cmp byte [rdx + VMCB_CS_ATTR_HIGH_AT], CS_64_AND_32_BIT
    je .mend_cs
.mended:
    mov rax, [rdx + VMCB_EXIT_CODE_AT]
    cmp eax, SVM_EXIT_CPUID_CODE
    jne .no_cpuid
    call svm_exited_cpuid
    test al, al
    jnz .again
    jmp .done
.mend_cs:
    test dword [rdx + VMCB_EFER_AT], EFER_LMA_BIT ; elsewhere L means nothing
    jz .mended
    and byte [rdx + VMCB_CS_ATTR_HIGH_AT], ~CS_32_BIT & 0xff
    jmp .mended
.no_cpuid:
    cmp eax, SVM_EXIT_NPF_CODE
    jne .done
    call svm_exited_fault
    test al, al
    jnz .again
.done:
    cli
    stgi
    pop rdi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret
