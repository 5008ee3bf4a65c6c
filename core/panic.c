/*
 * The last words. Whatever is broken, this must get them out: it allocates nothing, takes no lock, follows no pointer that
 * it has not checked, and writes to outputs that poll. One CPU reports; the others are stopped by NMI, which
 * reaches them in any state. A fault while reporting ends in one line and a halt.
 *
 * The backtrace follows frame pointers (the whole image is built with them). A pointer is followed only while it lies
 * within a stack of this CPU: the current thread's, the boot stack or an interrupt stack.
 */
#include "core/panic.h"
#include "core/ksyms.h"
#include "core/log.h"
#include "core/slow.h"
#include "core/thread.h"
#include "include/hw/apic.h"
#include "lib/string.h"
#include "x86/apic.h"
#include "x86/cpu.h"
#include "x86/idt.h"
#include "x86/percpu.h"

#define MAX_OUTPUTS 4
#define MAX_FRAMES 40
#define LOG_LINES 24
#define NMI_REPORTS 4
#define NO_CPU UINT32_MAX

extern const uint8_t boot_stack_bottom[], boot_stack_top[]; /* boot/entry.asm */

NORETURN void __stack_chk_fail(void);

static void (*outputs[MAX_OUTPUTS])(const char *s, size_t len);
static unsigned output_count;
static uint32_t reporter = NO_CPU;
static unsigned nmi_reports;

void panic_add_output(void (*write)(const char *s, size_t len))
{
    if (output_count < MAX_OUTPUTS)
        outputs[output_count++] = write;
}

bool panic_in_progress(void) { return __atomic_load_n(&reporter, __ATOMIC_ACQUIRE) != NO_CPU; }

static void put(const char *s)
{
    for (unsigned i = 0; i < output_count; i++)
        outputs[i](s, strlen(s));
}

static void print(const char *fmt, ...) PRINTF_LIKE(1, 2);
static void print(const char *fmt, ...)
{
    char line[320];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    put(line);
}

static NORETURN void halt_cpu(void)
{
    for (;;) {
        cli();
        hlt();
    }
}

/* ---- backtrace --------------------------------------------------------------------------------------------- */

static bool within(uint64_t address, const void *base, size_t bytes)
{
    return base && address >= (uintptr_t)base && address - (uintptr_t)base <= bytes - 16;
}

/* May the 16 bytes there (saved RBP, return address) be read? */
static bool on_a_stack(uint64_t address)
{
    const struct percpu *cpu = this_cpu();
    const struct thread *t = cpu->current;
    if (address % 8)
        return false;
    if (within(address, boot_stack_bottom, (size_t)(boot_stack_top - boot_stack_bottom)))
        return true;
    if (t && within(address, t->stack_base, t->stack_bytes))
        return true;
    for (unsigned i = 0; i < ARRAY_SIZE(cpu->ist_stack); i++)
        if (within(address, cpu->ist_stack[i], cpu->ist_stack_bytes))
            return true;
    return false;
}

static void print_backtrace(uint64_t rip, uint64_t rbp)
{
    char name[96];
    put("backtrace:\n");
    if (rip)
        print("  %016lx  %s\n", rip, ksym_format(name, sizeof(name), rip));
    for (unsigned i = 0; i < MAX_FRAMES && rbp && on_a_stack(rbp); i++) {
        const uint64_t *frame = (const uint64_t *)rbp;
        if (!frame[1])
            break;
        print("  %016lx  %s\n", frame[1], ksym_format(name, sizeof(name), frame[1] - 1)); /* the call, not what follows */
        rbp = frame[0];
    }
}

/* ---- registers --------------------------------------------------------------------------------------------- */

static void print_control_registers(void)
{
    print("cr0=%016lx cr2=%016lx cr3=%016lx cr4=%016lx\n", read_cr0(), read_cr2(), read_cr3(), read_cr4());
}

static void print_registers(const struct trap_frame *f)
{
    char name[96];
    print("rip=%016lx %s\n", f->rip, ksym_format(name, sizeof(name), f->rip));
    print("cs=%04lx ss=%04lx rflags=%016lx rsp=%016lx\n", f->cs, f->ss, f->rflags, f->rsp);
    print("rax=%016lx rbx=%016lx rcx=%016lx rdx=%016lx\n", f->rax, f->rbx, f->rcx, f->rdx);
    print("rsi=%016lx rdi=%016lx rbp=%016lx r8 =%016lx\n", f->rsi, f->rdi, f->rbp, f->r8);
    print("r9 =%016lx r10=%016lx r11=%016lx r12=%016lx\n", f->r9, f->r10, f->r11, f->r12);
    print("r13=%016lx r14=%016lx r15=%016lx\n", f->r13, f->r14, f->r15);
    print_control_registers();
}

static void explain(const struct trap_frame *f)
{
    const struct thread *t = this_cpu()->current;
    uint64_t cr2 = read_cr2(), bottom = t ? (uintptr_t)t->stack_base : (uintptr_t)boot_stack_bottom;
    if ((f->vector == X86_DF || f->vector == X86_PF) && cr2 < bottom && bottom - cr2 <= PAGE_SIZE)
        put("the stack overflowed: the address is in its guard page\n");
    else if (f->vector == X86_PF)
        print("%s %s of %#lx\n", f->error & 1 ? "forbidden" : "unmapped", f->error & 16 ? "execution" : f->error & 2 ? "write" : "read",
              cr2);
}

/* ---- the report -------------------------------------------------------------------------------------------- */

struct tail { unsigned total, seen; };

static void count_line(const char *line UNUSED, void *arg) { ((struct tail *)arg)->total++; }

static void emit_line(const char *line, void *arg)
{
    struct tail *t = arg;
    if (t->seen++ + LOG_LINES < t->total)
        return;
    put("  ");
    put(line);
    put("\n");
}

/* log_replay() does not wait for its lock once panic_in_progress(). */
static void print_log_tail(void)
{
    struct tail t = {0};
    log_replay(count_line, &t);
    put("last log lines:\n");
    log_replay(emit_line, &t);
}

/* True on the one CPU that reports. A CPU that comes here while it reports must not go on. */
static void become_reporter(const char *what)
{
    uint32_t nobody = NO_CPU;
    cli();
    if (!__atomic_compare_exchange_n(&reporter, &nobody, cpu_id(), false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        if (nobody == cpu_id())
            print("\n*** again, while reporting: %s ***\n", what);
        halt_cpu();
    }
    if (cpu_count() > 1)
        lapic_send_command(0, (uint32_t)(APIC_DM_NMI | ICR_ASSERT | ICR_ALL_BUT_SELF));
}

static void print_heading(const char *what)
{
    const struct thread *t = this_cpu()->current;
    print("\n*** PANIC on pcpu %u, %s%.24s%s: %s ***\n", cpu_id(), t ? "thread " : "before threads", t ? t->name : "",
          this_cpu()->irq_nesting ? ", in an interrupt" : "", what);
}

static NORETURN void finish(uint64_t rip, uint64_t rbp)
{
    print_backtrace(rip, rbp);
    print_log_tail();
    put("*** halted ***\n");
    halt_cpu();
}

void panic(const char *fmt, ...)
{
    char what[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    become_reporter(what);
    print_heading(what);
    print_control_registers();
    finish(0, (uintptr_t)__builtin_frame_address(0));
}

void panic_trap(const struct trap_frame *f)
{
    char what[96];
    snprintf(what, sizeof(what), "exception %lu (%s), error code %#lx", f->vector, exception_name((unsigned)f->vector), f->error);
    become_reporter(what);
    print_heading(what);
    explain(f);
    print_registers(f);
    finish(f->rip, f->rbp);
}

/* ---- hooks ------------------------------------------------------------------------------------------------- */

static void fatal_trap(const struct trap_frame *f) { panic_trap(f); }

/* The log's lock may be held by the code that was interrupted: straight to the outputs. */
static void report_nmi(const struct trap_frame *f)
{
    char name[96];
    if (panic_in_progress())
        halt_cpu();
    if (__atomic_add_fetch(&nmi_reports, 1, __ATOMIC_RELAXED) <= NMI_REPORTS)
        print("irq: NMI on pcpu %u at %s, port 0x61=%#x\n", cpu_id(), ksym_format(name, sizeof(name), f->rip), in8(0x61));
}

static void report_stray(uint8_t vector) { log_warn("irq: vector %#x on pcpu %u has no handler", vector, cpu_id()); }

static void note_handler(const void *handler, uint64_t tsc_ticks) { slow_note(SLOW_HANDLER, "irq", handler, tsc_ticks); }

static void note_irqs_off(const char *name, const void *pc, uint64_t tsc_ticks) { slow_note(SLOW_IRQS_OFF, name, pc, tsc_ticks); }

void panic_init(void)
{
    irqs_off_set_report(note_irqs_off);
    trap_set_hooks(&(struct trap_hooks){.fatal = fatal_trap, .nmi = report_nmi, .stray = report_stray, .done = HV_DEBUG ? note_handler : NULL});
}

void __stack_chk_fail(void)
{
    char name[96];
    panic("stack canary overwritten in %s", ksym_format(name, sizeof(name), (uintptr_t)__builtin_return_address(0)));
}
