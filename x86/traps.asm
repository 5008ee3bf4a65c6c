; Entry points of the 256 vectors. Each stub makes the stack look alike and goes on to one common path.
;
;              rsp (16-byte aligned by the CPU before it pushes: so is the C function's frame)
;        +168  ss      \
;        +160  rsp      |
;        +152  rflags   |  pushed by the CPU
;        +144  cs       |
;        +136  rip      |
;        +128  error   /   by the CPU for #DF #TS #NP #SS #GP #PF #AC #CP #VC #SX, else 0 by the stub
;        +120  vector      by the stub
;        +112  rax      \
;          .    rbx rcx rdx rsi rdi rbp r8 .. r14   the common path: struct trap_frame (x86/idt.h)
;          0   r15      /
;
; There is no SWAPGS: guests run only between the vendor code's entry and exit, which restore GS base before they
; let interrupts in. RBP is left as it was, so a backtrace crosses the interrupt.

bits 64
default rel

extern trap_dispatch
global trap_stubs

section .text progbits alloc exec nowrite align=16

align 16
trap_stubs:                             ; stub n at trap_stubs + 16 n
%assign n 0
%rep 256
    align 16
%if n = 8 || (n >= 10 && n <= 14) || n = 17 || n = 21 || n = 29 || n = 30
%else
    push 0
%endif
    push strict dword n
    jmp strict near trap_common
%assign n n + 1
%endrep

    align 16
trap_common:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    call trap_dispatch
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16                         ; vector, error code
    iretq
