/*
 * Doors at memory that is none: instructions of all kinds on device windows and on holes, port strings through every kind of page.
 *
 * What an instruction should do to a hole is what it does to RAM full of ones of which the writes are forgotten; so each runs on
 * both, with the same registers, and everything visible is compared. The operand slides over the end of RAM, so that it also
 * lies half in memory.
 */
#include "hostile/hostile.h"

/* name, flags to compare, text; the operand is at RDI, RSI points into RAM. */
#define ARITH 0x8d5
#define LOGIC 0x8c5 /* AF is undefined */
#define CARRY 0x001
#define ALU_OPS(X, op, flags)                                                                                                   \
    X(op##_mr1, flags, #op "b %al, (%rdi)") X(op##_mr4, flags, #op "l %edx, (%rdi)") X(op##_mr8, flags, #op "q %rdx, (%rdi)") \
    X(op##_rm2, flags, #op "w (%rdi), %cx") X(op##_rm8, flags, #op "q (%rdi), %rbx") X(op##_mi4, flags, #op "l $0x7f, (%rdi)") \
    X(op##_mi2, flags, #op "w $0x1234, (%rdi)")
#define INSNS(X)                                                                                                                 \
    X(ld1, 0, "movb (%rdi), %ah") X(ld2, 0, "movw (%rdi), %dx") X(ld4, 0, "movl (%rdi), %ecx") X(ld8, 0, "movq (%rdi), %r8; mov %r8, %rax") \
    X(zx12, 0, "movzbw (%rdi), %dx") X(zx14, 0, "movzbl (%rdi), %edx") X(zx28, 0, "movzwq (%rdi), %rax") X(sx18, 0, "movsbq (%rdi), %rax") \
    X(sx24, 0, "movswl (%rdi), %eax") X(sx48, 0, "movslq (%rdi), %rbx") X(st1, 0, "movb %bh, (%rdi)") X(st2, 0, "movw %ax, (%rdi)")   \
    X(st4, 0, "movl %ebx, (%rdi)") X(st8, 0, "movq %rcx, (%rdi)") X(sti1, 0, "movb $0x5a, (%rdi)") X(sti8, 0, "movq $-2, (%rdi)")     \
    X(nti4, 0, "movnti %eax, (%rdi)") X(nti8, 0, "movnti %rax, (%rdi)")                                                          \
    ALU_OPS(X, add, ARITH) ALU_OPS(X, or, LOGIC) ALU_OPS(X, adc, ARITH) ALU_OPS(X, sbb, ARITH) ALU_OPS(X, and, LOGIC)            \
    ALU_OPS(X, sub, ARITH) ALU_OPS(X, xor, LOGIC) ALU_OPS(X, cmp, ARITH)                                                         \
    X(test1, LOGIC, "testb %dh, (%rdi)") X(test8, LOGIC, "testq %rax, (%rdi)") X(testi4, LOGIC, "testl $0x80000001, (%rdi)")     \
    X(not2, 0, "notw (%rdi)") X(not8, 0, "lock notq (%rdi)") X(neg1, ARITH, "negb (%rdi)") X(neg4, ARITH, "negl (%rdi)")         \
    X(inc1, ARITH, "incb (%rdi)") X(inc8, ARITH, "lock incq (%rdi)") X(dec2, ARITH, "decw (%rdi)") X(dec4, ARITH, "decl (%rdi)") \
    X(xchg1, 0, "xchgb %ah, (%rdi)") X(xchg4, 0, "xchgl %eax, (%rdi)") X(xchg8, 0, "xchgq %rbx, (%rdi)")                         \
    X(xadd1, ARITH, "xaddb %dl, (%rdi)") X(xadd8, ARITH, "lock xaddq %rdx, (%rdi)")                                              \
    X(cmpxchg1, ARITH, "cmpxchgb %dl, (%rdi)") X(cmpxchg4, ARITH, "lock cmpxchgl %ecx, (%rdi)")                                  \
    X(cmpxchg8, ARITH, "or $-1, %rax; lock cmpxchgq %rbx, (%rdi)")                                                               \
    X(bt4, CARRY, "btl $29, (%rdi)") X(bts8, CARRY, "btsq $63, (%rdi)") X(btr2, CARRY, "btrw $5, (%rdi)") X(btc4, CARRY, "lock btcl $0, (%rdi)") \
    X(btr, CARRY, "and $127, %eax; sub $64, %eax; btl %eax, (%rdi)") X(btsr, CARRY, "and $127, %ecx; sub $64, %rcx; btsq %rcx, (%rdi)") \
    X(push8, 0, "pushq (%rdi); popq %rax") X(pop8, 0, "pushq %rdx; popq (%rdi)") X(push2, 0, "pushw (%rdi); popw %ax")           \
    X(movsb, 0, "movsb") X(movsq, 0, "movsq") X(rmovsb, 0, "and $63, %ecx; rep movsb") X(rmovsl, 0, "and $31, %ecx; rep movsl")   \
    X(rmovsqd, 0, "and $7, %ecx; std; rep movsq; cld") X(fmovsw, 0, "xchg %rsi, %rdi; and $15, %ecx; rep movsw; xchg %rsi, %rdi") \
    X(fmovsq, 0, "xchg %rsi, %rdi; and $7, %ecx; rep movsq; xchg %rsi, %rdi") X(stosb, 0, "stosb") X(rstosw, 0, "and $31, %ecx; rep stosw") \
    X(rstosq, 0, "and $9, %ecx; rep stosq") X(lodsb, 0, "xchg %rsi, %rdi; lodsb; xchg %rsi, %rdi") X(scasb, ARITH, "scasb")      \
    X(rlodsl, 0, "xchg %rsi, %rdi; and $15, %ecx; rep lodsl; xchg %rsi, %rdi")                                                   \
    X(rscasw, ARITH, "or $-1, %eax; and $31, %ecx; repe scasw") X(nscasb, ARITH, "or $-1, %eax; and $31, %ecx; repne scasb")      \
    X(cmpsl, ARITH, "cmpsl") X(rcmpsb, ARITH, "and $31, %ecx; repe cmpsb") X(ncmpsq, ARITH, "and $3, %ecx; repne cmpsq")          \
    X(movups_l, 0, "movups (%rdi), %xmm0") X(movups_s, 0, "movups %xmm0, (%rdi)") X(movaps_l, 0, "movaps (%rdi), %xmm0")          \
    X(movaps_s, 0, "movaps %xmm0, (%rdi)") X(movdqu_l, 0, "movdqu (%rdi), %xmm0") X(movdqu_s, 0, "movdqu %xmm0, (%rdi)")          \
    X(movdqa_l, 0, "movdqa (%rdi), %xmm0") X(movdqa_s, 0, "movdqa %xmm0, (%rdi)") X(movss_l, 0, "movss (%rdi), %xmm0")            \
    X(movss_s, 0, "movss %xmm0, (%rdi)") X(movsd_l, 0, "movsd (%rdi), %xmm0") X(movsd_s, 0, "movsd %xmm0, (%rdi)")                \
    X(movd_l, 0, "movd (%rdi), %xmm0") X(movd_s, 0, "movd %xmm0, (%rdi)") X(movq_l, 0, "movq (%rdi), %xmm0")                      \
    X(movq_s, 0, "movq %xmm0, (%rdi)") X(movlps_l, 0, "movlps (%rdi), %xmm0") X(movhps_l, 0, "movhps (%rdi), %xmm0")              \
    X(movhps_s, 0, "movhps %xmm0, (%rdi)") X(movntdq, 0, "movntdq %xmm0, (%rdi)") X(movntps, 0, "movntps %xmm0, (%rdi)")

#define BODY(name, flags, text) asm(".pushsection .text; insn_" #name ": " text "; ret; .popsection"); extern void insn_##name(void);
INSNS(BODY)
struct insn { const char *name; void (*body)(void); unsigned flags; };
#define ROW(name, flags, text) {#name, insn_##name, flags},
static const struct insn insns[] = {INSNS(ROW)};
enum { INSN_COUNT = sizeof(insns) / sizeof(*insns) };

asm(".pushsection .text; .globl run_body; run_body: push %rbx; push %rsi; mov %rdi, %r11; mov %rsi, %r10\n"
    "movups 64(%r10), %xmm0; mov 0(%r10), %rax; mov 8(%r10), %rcx; mov 16(%r10), %rdx; mov 24(%r10), %rbx; mov 32(%r10), %rsi; mov 40(%r10), %rdi\n"
    "pushq 48(%r10); popf; call *%r11; pop %r10; pushf; popq 48(%r10)\n"
    "mov %rax, 0(%r10); mov %rcx, 8(%r10); mov %rdx, 16(%r10); mov %rbx, 24(%r10); mov %rsi, 32(%r10); mov %rdi, 40(%r10); movups %xmm0, 64(%r10)\n"
    "pop %rbx; ret; .popsection");

static void run_insn(void *arg)
{
    struct { const struct insn *i; struct insn_regs *r; } *a = arg;
    run_body(a->i->body, a->r);
}

static int attempt_insn(const struct insn *i, struct insn_regs *r)
{
    struct { const struct insn *i; struct insn_regs *r; } a = {i, r};
    return attempt(run_insn, &a);
}

void enable_sse(void)
{
    WRITE_CR(0, (READ_CR(0) & ~UINT64_C(0xc)) | 2);
    WRITE_CR(4, READ_CR(4) | 0x600);
}

enum { MARGIN = 1024 };
static uint8_t model[2 * MARGIN] __attribute__((aligned(4096))); /* the upper half stands for the hole */
static uint8_t around[4096] __attribute__((aligned(4096)));     /* RSI points into it */

static struct insn_regs random_regs(uint64_t at)
{
    struct insn_regs r = {.rax = rnd_value(), .rcx = rnd_value(), .rdx = rnd_value(), .rbx = rnd_value(), .rsi = (uint64_t)around + 1024 + rnd_below(64),
                          .rdi = at, .rflags = 2 | (rnd() & ARITH), .xmm0 = {rnd(), rnd()}};
    return r;
}

static uint64_t compared;

/* One instruction with its operand `over` bytes beyond the end of RAM, or before it. */
static bool compare_with_model(const struct insn *i, int64_t over, uint64_t ram_end)
{
    uint8_t *ram = (uint8_t *)ram_end - MARGIN;
    struct insn_regs r = random_regs((uint64_t)model + MARGIN + (uint64_t)over), h = r;
    h.rdi = ram_end + (uint64_t)over;
    for (unsigned n = 0; n < MARGIN; n++)
        model[n] = ram[n] = n % 3 ? (uint8_t)rnd() : 0xff;
    memset(model + MARGIN, 0xff, MARGIN);
    memset(around, 0xff, sizeof(around));
    int want = attempt_insn(i, &r), got = attempt_insn(i, &h);
    h.rdi += (uint64_t)model + MARGIN - ram_end;
    if (want != got)
        return failed("mmio: %s at RAM's end %d: vector %d instead of %d", i->name, (int)over, got, want);
    if (want != -1)
        return true; /* an aligned move of what is not */
    compared++;
    const uint64_t *a = (const uint64_t *)&r, *b = (const uint64_t *)&h;
    for (unsigned n = 0; n < sizeof(r) / 8; n++) {
        uint64_t mask = n == 6 ? i->flags : UINT64_MAX;
        if ((a[n] ^ b[n]) & mask)
            return failed("mmio: %s at RAM's end %d: register %u is %lx instead of %lx", i->name, (int)over, n, b[n], a[n]);
    }
    for (unsigned n = 0; n < MARGIN; n++)
        if (model[n] != ram[n])
            return failed("mmio: %s at RAM's end %d: byte -%u is %02x instead of %02x", i->name, (int)over, MARGIN - n, ram[n], model[n]);
    return true;
}

/* Anything but the ICR, by which the vCPU would end or reset itself. */
static void disturb_device(const struct insn *i)
{
    bool lapic = rnd_below(2);
    uint64_t offset = rnd_below(4) ? rnd_below(0x40) * 16 : rnd_below(4096);
    if (lapic && offset + 600 > 0x300 && offset < 0x310 + 600)
        offset = 0x700 + rnd_below(0x800);
    struct insn_regs r = random_regs((lapic ? LAPIC : IOAPIC) + offset);
    attempt_insn(i, &r);
}

static bool mmio(void)
{
    uint64_t ram_end = RAM_END;
    for (uint64_t n = 0; n < count; n++) {
        const struct insn *i = &insns[n % INSN_COUNT];
        int64_t over = (int64_t)rnd_below(48) - 24;
        if (!compare_with_model(i, over, ram_end))
            return false;
        disturb_device(i);
        if (n % 64 == 0)
            interrupts_sane();
    }
    interrupts_sane();
    return compared * 10 >= count * 9 || failed("mmio: only %lu of %lu instructions ran", compared, count);
}

/* ---- port strings ------------------------------------------------------------------------------------------------------------ */

/*
 * A window of 512 small pages at 512 GiB, each of a random kind. What INS and OUTS at an absent port should do there is simple enough
 * to be foretold element by element: stop with #PF at the first byte of the first page that does not allow it.
 */
enum page_kind { PAGE_RAM, PAGE_READ_ONLY, PAGE_ABSENT, PAGE_HOLE, PAGE_LAPIC, PAGE_IOAPIC, PAGE_KINDS };
enum { PAGES = 512, PTE_P = 1, PTE_W = 2 };
#define WINDOW BIT(39)
static uint64_t window_pdpt[512] __attribute__((aligned(4096))), window_pd[512] __attribute__((aligned(4096))), window_pt[512] __attribute__((aligned(4096)));
static uint8_t window_ram[16][4096] __attribute__((aligned(4096)));
static uint8_t kinds[PAGES];

static void make_window(uint64_t ram_end)
{
    for (unsigned n = 0; n < PAGES; n++) {
        static const uint8_t likely[] = {PAGE_RAM, PAGE_RAM, PAGE_RAM, PAGE_RAM, PAGE_HOLE, PAGE_LAPIC, PAGE_IOAPIC, PAGE_READ_ONLY, PAGE_ABSENT};
        const uint64_t base[PAGE_KINDS] = {(uint64_t)window_ram[n % 16], (uint64_t)window_ram[n % 16], 0, ram_end + 4096 * n, LAPIC, IOAPIC};
        kinds[n] = PICK(likely);
        window_pt[n] = kinds[n] == PAGE_ABSENT ? 0 : base[kinds[n]] | PTE_P | (kinds[n] == PAGE_READ_ONLY ? 0 : PTE_W);
    }
    window_pd[0] = (uint64_t)window_pt | PTE_P | PTE_W;
    window_pdpt[0] = (uint64_t)window_pd | PTE_P | PTE_W;
    tiny_pml4[1] = (uint64_t)window_pdpt | PTE_P | PTE_W;
    WRITE_CR(3, READ_CR(3));
}

static bool page_allows(uint64_t at, bool write)
{
    uint8_t kind = at >= WINDOW && at < WINDOW + 4096 * PAGES ? kinds[(at - WINDOW) / 4096] : (uint8_t)PAGE_ABSENT;
    return kind != PAGE_ABSENT && !(write && kind == PAGE_READ_ONLY);
}

struct string_run { uint64_t at, count; unsigned size; bool in, down; };

static void run_string(void *arg)
{
    const struct string_run *s = arg;
    uint64_t at = s->at, n = s->count;
    if (s->down)
        asm volatile("std");
    if (s->in)
        ins(0x1234, s->size, (void *)at, n);
    else
        outs(0x1234, s->size, (const void *)at, n);
    asm volatile("cld");
}

static bool one_string(void)
{
    struct string_run s = {.at = WINDOW + rnd_below(4096 * PAGES), .count = rnd_below(6000), .size = 1u << rnd_below(3), .in = rnd_below(2),
                           .down = rnd_below(2)};
    uint64_t at = s.at, left = s.count, cr2 = 0;
    for (; left && !cr2; left -= !cr2, at += cr2 ? 0 : s.down ? -(uint64_t)s.size : s.size)
        for (unsigned n = 0; n < s.size && !cr2; n++)
            cr2 = page_allows(at + n, s.in) ? 0 : at + n;
    int vector = attempt(run_string, &s);
    if (vector != (cr2 ? VEC_PF : -1))
        return failed("stringio: %s of %lu x %u from %lx: vector %d", s.in ? "ins" : "outs", s.count, s.size, s.at, vector);
    uint64_t index = s.in ? attempt_frame.rdi : attempt_frame.rsi;
    if (cr2 && ((READ_CR(2) != cr2 && !lenient("cr2")) || attempt_frame.rcx != left || index != at))
        return failed("stringio: %s of %lu x %u from %lx %s: #PF at %lx, count %lu, index %lx instead of %lx %lu %lx", s.in ? "ins" : "outs",
                      s.count, s.size, s.at, s.down ? "down" : "up", READ_CR(2), attempt_frame.rcx, index, cr2, left, at);
    return true;
}

static bool stringio(void)
{
    uint64_t ram_end = RAM_END;
    for (uint64_t n = 0; n < count; n++) {
        if (n % 32 == 0)
            make_window(ram_end);
        if (!one_string())
            return false;
    }
    interrupts_sane();
    return true;
}

const struct mode memory_modes[] = {{"mmio", mmio, 4000}, {"stringio", stringio, 300}, {}};
