; void thread_switch(uint64_t *save_rsp, uint64_t load_rsp);
;
; Leaves the current thread's callee-saved registers on its stack, its stack pointer in *save_rsp, and continues where the
; other thread called this function. Everything else is dead by the calling convention, or (FPU, guest state) not ours to
; keep here. Interrupts are off on entry and on return.
;
;   stack of a thread that is switched out:   [rsp] r15 r14 r13 r12 rbx rbp return-address
;
; A new thread's stack is made to look like that by thread_init(): the return address is thread_entry.

bits 64
default rel
section .text

global thread_switch
thread_switch:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov [rdi], rsp
    mov rsp, rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

; First code of every thread: ends the frame-pointer chain for backtraces, then C.
extern thread_first
global thread_entry
thread_entry:
    xor ebp, ebp
    call thread_first
    ud2

section .note.GNU-stack noalloc noexec nowrite progbits
