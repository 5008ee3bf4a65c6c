/* The runtime of the tiny guests: serial output, arguments, memory map, traps, exit. Each guest supplies tiny_main(). */
#ifndef HV_GUESTS_TINY_TINY_H
#define HV_GUESTS_TINY_TINY_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct multiboot_info { /* multiboot 1, section 3.3 */
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr;
} __attribute__((packed));
struct multiboot_module { uint32_t start, end, string, reserved; };
struct multiboot_mmap { uint32_t size; uint64_t base, length; uint32_t type; } __attribute__((packed));

struct trap_frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax, vector, error, rip, cs, rflags, rsp, ss;
};

extern const struct multiboot_info *tiny_info; /* also if it was PVH or Linux's: translated */
extern const char *tiny_protocol; /* "multiboot", "PVH", "Linux" */
struct gate { uint64_t low, high; };

extern uint64_t tiny_gdt[8], tiny_pml4[512];
extern struct gate tiny_idt[256];
extern char image_end[], tiny_ap_start[], tiny_ap_end[];

int tiny_main(void); /* its value is the exit code */

void print(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* %s %c %u %d %x %lu %lx, widths with 0 */
/* `key=value` or a bare `key` of the command line. */
const char *arg(const char *key);                 /* the value up to a blank, in a static buffer; NULL: absent */
uint64_t arg_u64(const char *key, uint64_t otherwise);
bool arg_is(const char *key, const char *value);
void exit_vm(uint32_t code) __attribute__((noreturn));
/* RAM [*base, *end) above the image and modules, below 4 GiB, by the loader's memory map. */
void free_memory(uint64_t *base, uint64_t *end);
uint64_t random_next(uint64_t *state);
void *memset(void *d, int c, size_t n); /* the compiler calls these two by itself */
void *memcpy(void *d, const void *s, size_t n);

/*
 * Traps. While `resume` is set a fault (vector < 32) is noted in fault_vector and execution goes on there; else the guest reports it and ends.
 * Otherwise on_trap may change the frame, where to go on included, and return true. Interrupts call on_interrupt if there is one.
 */
extern volatile uint64_t resume;
extern volatile int fault_vector;
extern volatile uint64_t fault_error;
extern void (*volatile on_interrupt)(unsigned vector);
extern bool (*volatile on_trap)(struct trap_frame *f);
/* Runs one statement of inline assembly that may fault: -1, or the vector. */
#define TRY(insn, ...)                                                                                     \
    ({                                                                                                     \
        fault_vector = -1;                                                                                 \
        asm volatile("lea 1f(%%rip), %%r15\n mov %%r15, resume(%%rip)\n " insn "\n 1: movq $0, resume(%%rip)" __VA_ARGS__); \
        fault_vector;                                                                                      \
    })
int try_rdmsr(uint32_t msr, uint64_t *value);
int try_wrmsr(uint32_t msr, uint64_t value);

static inline uint8_t inb(uint16_t p) { uint8_t v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(p)); return v; }
static inline uint16_t inw(uint16_t p) { uint16_t v; asm volatile("inw %1, %0" : "=a"(v) : "Nd"(p)); return v; }
static inline uint32_t inl(uint16_t p) { uint32_t v; asm volatile("inl %1, %0" : "=a"(v) : "Nd"(p)); return v; }
static inline void outb(uint16_t p, uint8_t v) { asm volatile("outb %0, %1" :: "a"(v), "Nd"(p)); }
static inline void outw(uint16_t p, uint16_t v) { asm volatile("outw %0, %1" :: "a"(v), "Nd"(p)); }
static inline void outl(uint16_t p, uint32_t v) { asm volatile("outl %0, %1" :: "a"(v), "Nd"(p)); }
static inline uint64_t rdtsc(void) { uint32_t a, d; asm volatile("rdtsc" : "=a"(a), "=d"(d)); return a | (uint64_t)d << 32; }
struct cpuid { uint32_t a, b, c, d; };
static inline struct cpuid cpuid(uint32_t leaf, uint32_t sub)
{
    struct cpuid r;
    asm volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(sub));
    return r;
}
static inline bool on_amd(void) { return cpuid(0, 0).c != 0x6c65746e; /* "ntel" */ }
static inline uint64_t rdmsr(uint32_t m) { uint32_t a, d; asm volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(m)); return a | (uint64_t)d << 32; }
static inline void wrmsr(uint32_t m, uint64_t v) { asm volatile("wrmsr" :: "c"(m), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory"); }
#define READ_CR(n) ({ uint64_t v_; asm volatile("mov %%cr" #n ", %0" : "=r"(v_)); v_; })
#define WRITE_CR(n, v) asm volatile("mov %0, %%cr" #n :: "r"((uint64_t)(v)) : "memory")

#endif
