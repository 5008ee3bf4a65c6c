; enum vmx_entry_result vmx_enter(struct vcpu *v, struct vmx_vcpu *s, bool launched)
;
; The CPU switches RIP, RSP, RFLAGS, segments, control registers and a few MSRs; the other general registers are exchanged here.
; An exit does not return behind VMLAUNCH or VMRESUME but goes to HOST_RIP with RSP = HOST_RSP, all other registers the
; guest's: the pointer to their place is on the stack there. Only an entry that did not happen (VMfail, SDM 3, 31.2) falls
; through, with the guest's registers still as they are in memory and RFLAGS saying which failure.
;
; After a CPUID exit vmx_exited_cpuid(v, s), and after an EPT violation vmx_exited_fault(v, s), says whether it has been answered and the guest can
; be entered again at once; what this function's caller wants back is saved and restored only around the whole.
;
; Interrupts are off throughout, but inside vmx_exited_fault(); an exit clears RFLAGS but for bit 1. An NMI in here finds the
; hypervisor's GS base: entry and exit change it as one step.

bits 64
default rel

%include "vmx/asm_offsets.inc"

global vmx_enter
global vmx_exit_arrives
extern vmx_exited_cpuid
extern vmx_exited_fault

section .text progbits alloc exec nowrite align=16

align 16
vmx_enter:
    push rbp
    mov rbp, rsp
    push rbx
    push r12
    push r13
    push r14
    push r15
    push rdi                            ; v; the stack is 16-byte aligned from here on
    cmp [rsi + HOST_RSP_AT], rsp        ; the same thread calls from the same place: it changes when the VMCS moves
    je .stack_known
    mov eax, HOST_RSP_FIELD
    vmwrite rax, rsp
    jbe failed
    mov [rsi + HOST_RSP_AT], rsp
.stack_known:
    test dl, dl                         ; MOV leaves the flag alone until the jump
again:
    mov rax, [rdi + GPR_RAX_AT]
    mov rbx, [rdi + GPR_RBX_AT]
    mov rcx, [rdi + GPR_RCX_AT]
    mov rdx, [rdi + GPR_RDX_AT]
    mov rsi, [rdi + GPR_RSI_AT]
    mov rbp, [rdi + GPR_RBP_AT]
%assign n 8
%rep 8
    mov r%[n], [rdi + GPR_R8_AT + 8 * (n - 8)]
%assign n n + 1
%endrep
    mov rdi, [rdi + GPR_RDI_AT]
    jnz .resume
    vmlaunch
    jmp failed
.resume:
    vmresume
failed:
    mov eax, ENTRY_FAILED
    mov ecx, ENTRY_NO_VMCS
    cmovc eax, ecx
    jmp done

align 16
vmx_exit_arrives:
    push rdi
    mov rdi, [rsp + 8]
    mov [rdi + GPR_RAX_AT], rax
    pop rax
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
    lea rbp, [rsp + 6 * 8]              ; the frame that `push rbp` made, for backtraces
    ; Guest values in registers that the compiled code might be led to use as addresses under misspeculation.
    xor ebx, ebx
    xor ecx, ecx
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    xor r15d, r15d
    mov rsi, [rdi + VCPU_HVM_AT]
    mov eax, REASON_FIELD
    vmread rdx, rax
    jbe failed
    mov [rsi + REASON_AT], edx
    cmp edx, REASON_CPUID
    jne .no_cpuid
    call vmx_exited_cpuid
    mov rdi, [rsp]
    test al, al
    jnz again                           ; with the flag that says VMRESUME
    jmp .exited
.no_cpuid:
    cmp edx, REASON_EPT_VIOLATION
    jne .exited
    call vmx_exited_fault
    mov rdi, [rsp]
    test al, al
    jnz again
.exited:
    mov eax, ENTRY_EXITED
done:
    pop rdi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret
