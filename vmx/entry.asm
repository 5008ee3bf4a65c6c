; enum vmx_entry_result vmx_enter(struct vmx_vcpu *s, uint64_t *gpr, bool launched)
;
; The CPU switches RIP, RSP, RFLAGS, segments, control registers and a few MSRs; the other general registers are exchanged here.
; An exit does not return behind VMLAUNCH or VMRESUME but goes to HOST_RIP with RSP = HOST_RSP, all other registers the
; guest's: the pointer to their place is on the stack there. Only an entry that did not happen (VMfail, SDM 3, 31.2) falls
; through, with the guest's registers still as they are in memory and RFLAGS saying which failure.
;
; Interrupts are off throughout; an exit clears RFLAGS but for bit 1. An NMI in here finds the hypervisor's GS base: entry and exit
; change it as one step.

bits 64
default rel

%include "vmx/asm_offsets.inc"

global vmx_enter
global vmx_exit_arrives

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
    push rsi
    cmp [rdi + HOST_RSP_AT], rsp        ; the same thread calls from the same place: it changes when the VMCS moves
    je .stack_known
    mov eax, HOST_RSP_FIELD
    vmwrite rax, rsp
    jbe .not_written
    mov [rdi + HOST_RSP_AT], rsp
.stack_known:
    test dl, dl                         ; MOV leaves the flag alone until the jump
    mov rax, [rsi + GPR_RAX_AT]
    mov rbx, [rsi + GPR_RBX_AT]
    mov rcx, [rsi + GPR_RCX_AT]
    mov rdx, [rsi + GPR_RDX_AT]
    mov rdi, [rsi + GPR_RDI_AT]
    mov rbp, [rsi + GPR_RBP_AT]
%assign n 8
%rep 8
    mov r%[n], [rsi + GPR_R8_AT + 8 * (n - 8)]
%assign n n + 1
%endrep
    mov rsi, [rsi + GPR_RSI_AT]
    jnz .resume
    vmlaunch
    jmp .failed
.resume:
    vmresume
.failed:
.not_written:
    mov eax, ENTRY_FAILED
    mov ecx, ENTRY_NO_VMCS
    cmovc eax, ecx
    jmp leave_guest

align 16
vmx_exit_arrives:
    push rax
    mov rax, [rsp + 8]
    mov [rax + GPR_RBX_AT], rbx
    mov [rax + GPR_RCX_AT], rcx
    mov [rax + GPR_RDX_AT], rdx
    mov [rax + GPR_RSI_AT], rsi
    mov [rax + GPR_RDI_AT], rdi
    mov [rax + GPR_RBP_AT], rbp
%assign n 8
%rep 8
    mov [rax + GPR_R8_AT + 8 * (n - 8)], r%[n]
%assign n n + 1
%endrep
    pop rcx
    mov [rax + GPR_RAX_AT], rcx
    mov eax, ENTRY_EXITED
leave_guest:
    ; Guest values in registers that the compiled code might be led to use as addresses under misspeculation.
    xor ecx, ecx
    xor edx, edx
    xor edi, edi
    xor esi, esi
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    pop rbx                             ; gpr
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret
