/*
 * A guest that is forked, or returned to a snapshot, while it works, and checks that nothing of another copy shows up and nothing of its own got
 * lost. Two copies are told apart by their generation id, which it finds in the ACPI tables as an OS does.
 *
 * Each round it fills its pages, its vector and debug registers and some MSRs with values made of round and generation id, and checks them in the
 * next. What each page holds is noted in memory as well, so after a fork the notes are the forked ones: a page of another copy that shines through, or a
 * register that was not copied, does not match them. A timer must go on ticking (a round waits for a tick, in HLT), time must not
 * go backwards, and the interrupt that tells of a new id must have come when the id is another one. KVM's steal time and paravirtual
 * EOI are on, so pages of it are pinned.
 *
 *   pages=N (500)  seed=S  rounds=N (for ever)
 *
 * Prints `fork: id ID` at the start and for each new id, and `fork: round N ok` now and then; ends with `fork: ok`, or with
 * `fork: WRONG ...` and value 1.
 */
#include "tiny.h"

enum { APIC_BASE = 0x1b, APIC_EOI = 0x80b, APIC_SVR = 0x80f, APIC_TIMER = 0x832, APIC_INITIAL = 0x838, APIC_DIVIDE = 0x83e };
enum { STEAL_TIME = 0x4b564d03, PV_EOI = 0x4b564d04, SYSENTER_ESP = 0x175, KERNEL_GS = 0xc0000102, MTRR_BASE0 = 0x200 };
enum { VECTOR_TICK = 0x40, VECTOR_ID = 0x50, IOAPIC = 0xfec00000, PIN_MAX = 24, PAGES_MAX = 16384, TICK_NS = 5000000 };

struct steal { volatile uint64_t ns; volatile uint32_t version, flags; volatile uint8_t preempted, pad[47]; };
static struct steal steal __attribute__((aligned(64)));
static volatile uint32_t eoi_word;
static volatile uint64_t ticks, told;
static uint64_t base, pages, seed, key_of[PAGES_MAX];

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 32) * UINT64_C(0xd6e8feb86659fd93);
    return x ^ x >> 29;
}

/* ---- the generation id: RSDP, XSDT, FADT, DSDT, and there the package ADDR and the interrupt of the event device ------------------------ */

static volatile const uint64_t *id_words;
static uint32_t id_pin;

static uint64_t at64(uint64_t a) { uint64_t v; memcpy(&v, (void *)a, 8); return v; }
static uint32_t at32(uint64_t a) { uint32_t v; memcpy(&v, (void *)a, 4); return v; }

static bool is(uint64_t a, const char *what, unsigned n)
{
    for (unsigned k = 0; k < n; k++)
        if (((const char *)a)[k] != what[k])
            return false;
    return true;
}

/* Where `what` ends in the table; 0: nowhere. */
static uint64_t behind(uint64_t table, const char *what, unsigned n)
{
    for (uint64_t a = table + 36; a + n + 16 < table + at32(table + 4); a++)
        if (is(a, what, n))
            return a + n;
    return 0;
}

static bool find_id(void)
{
    uint64_t rsdp = 0xe0000, dsdt = 0;
    while (rsdp < 0x100000 && !is(rsdp, "RSD PTR ", 8))
        rsdp += 16;
    if (rsdp == 0x100000)
        return false;
    uint64_t xsdt = at64(rsdp + 24);
    for (uint64_t e = xsdt + 36; e < xsdt + at32(xsdt + 4); e += 8)
        if (is(at64(e), "FACP", 4))
            dsdt = at64(at64(e) + 140);
    uint64_t addr = dsdt ? behind(dsdt, "ADDR\x12", 5) : 0, event = dsdt ? behind(dsdt, "\x89\x06\x00", 3) : 0;
    if (!addr || !event)
        return false;
    addr += (*(uint8_t *)addr >> 6) + 1; /* the package's length; then 2, DWORD prefix, low half */
    id_words = (volatile const uint64_t *)(uint64_t)at32(addr + 2);
    id_pin = at32(event + 2);
    return id_pin < PIN_MAX && is(addr, "\x02\x0c", 2);
}

/* ---- interrupts ------------------------------------------------------------------------------------------------------------------- */

static void interrupted(unsigned vector)
{
    uint8_t taken;
    ticks += vector == VECTOR_TICK;
    told += vector == VECTOR_ID;
    asm volatile("lock btrl $0, %0\n setc %1" : "+m"(eoi_word), "=qm"(taken) :: "memory", "cc");
    if (!taken)
        wrmsr(APIC_EOI, 0);
}

static void ioapic(uint32_t reg, uint32_t value)
{
    *(volatile uint32_t *)IOAPIC = reg;
    *(volatile uint32_t *)(IOAPIC + 16) = value;
}

static void init_interrupts(void)
{
    on_interrupt = interrupted;
    wrmsr(APIC_BASE, rdmsr(APIC_BASE) | 1 << 10 | 1 << 11);
    wrmsr(APIC_SVR, 0x1ff);
    wrmsr(STEAL_TIME, (uint64_t)&steal | 1);
    wrmsr(PV_EOI, (uint64_t)&eoi_word | 1);
    ioapic(0x10 + 2 * id_pin + 1, 0);
    ioapic(0x10 + 2 * id_pin, VECTOR_ID);
    wrmsr(APIC_DIVIDE, 0xb);
    wrmsr(APIC_TIMER, VECTOR_TICK | 1 << 17);
    wrmsr(APIC_INITIAL, TICK_NS);
    asm volatile("sti");
}

/* STI's shadow covers the HLT. */
static void wait_for_tick(void)
{
    for (uint64_t now = ticks;;) {
        asm volatile("cli" ::: "memory");
        if (ticks != now)
            break;
        asm volatile("sti\n hlt" ::: "memory");
    }
    asm volatile("sti" ::: "memory");
}

/* ---- what is checked ---------------------------------------------------------------------------------------------------------------- */

static bool wrong(const char *what, uint64_t at, uint64_t expected, uint64_t found)
{
    print("fork: WRONG %s %lx expected=%016lx found=%016lx\n", what, at, expected, found);
    return false;
}

static bool check_page(uint64_t page)
{
    const volatile uint64_t *w = (const volatile uint64_t *)(base + page * 4096);
    for (uint64_t n = 0; n < 512; n++)
        if (w[n] != (key_of[page] ? mix(key_of[page] + n) : 0))
            return wrong("gpa", (uint64_t)&w[n], key_of[page] ? mix(key_of[page] + n) : 0, w[n]);
    return true;
}

static void write_page(uint64_t page, uint64_t key)
{
    volatile uint64_t *w = (volatile uint64_t *)(base + page * 4096);
    key_of[page] = key;
    for (uint64_t n = 0; n < 512; n++)
        w[n] = mix(key + n);
}

/* The compiler uses no vector registers: between two calls they are the guest's alone. */
static void set_registers(uint64_t key)
{
    asm volatile("movq %0, %%xmm0\n movq %1, %%xmm7\n movq %2, %%xmm15" :: "r"(key), "r"(mix(key)), "r"(~key));
    asm volatile("mov %0, %%dr0\n mov %1, %%dr3" :: "r"(key & 0xffffffff), "r"(mix(key) & 0xffffffff));
    wrmsr(KERNEL_GS, key >> 20);
    wrmsr(SYSENTER_ESP, mix(key) >> 20);
    wrmsr(MTRR_BASE0, (key & 0xffff000) | 6);
}

static bool check_registers(uint64_t key)
{
    uint64_t x0, x7, x15, d0, d3;
    asm volatile("movq %%xmm0, %0\n movq %%xmm7, %1\n movq %%xmm15, %2" : "=r"(x0), "=r"(x7), "=r"(x15));
    asm volatile("mov %%dr0, %0\n mov %%dr3, %1" : "=r"(d0), "=r"(d3));
    const struct { const char *name; uint64_t expected, found; } all[] = {
        {"xmm0", key, x0}, {"xmm7", mix(key), x7}, {"xmm15", ~key, x15}, {"dr0", key & 0xffffffff, d0}, {"dr3", mix(key) & 0xffffffff, d3},
        {"kernel-gs-base", key >> 20, rdmsr(KERNEL_GS)}, {"sysenter-esp", mix(key) >> 20, rdmsr(SYSENTER_ESP)},
        {"mtrr", (key & 0xffff000) | 6, rdmsr(MTRR_BASE0)}, {"pv-eoi", (uint64_t)&eoi_word | 1, rdmsr(PV_EOI)},
    };
    for (unsigned n = 0; n < sizeof(all) / sizeof(all[0]); n++)
        if (all[n].expected != all[n].found)
            return wrong(all[n].name, 0, all[n].expected, all[n].found);
    return true;
}

static uint64_t id_now[2], told_before;

/* From here on a change is told. */
static void read_id(void)
{
    do {
        told_before = told;
        id_now[0] = id_words[0];
        id_now[1] = id_words[1];
    } while (told != told_before);
    print("fork: id %016lx%016lx\n", id_now[0], id_now[1]);
}

/* A new one is written before the copy runs, and its interrupt pends then. Whoever is forked twice in a row may be told once. */
static bool check_id(void)
{
    uint64_t told_now = told; /* before the id is looked at: what comes in between is another's matter */
    if (id_words[0] == id_now[0] && id_words[1] == id_now[1])
        return told_now == told_before || wrong("id: told, and it is no other one", told_now, told_before, told_now);
    for (unsigned n = 0; told == told_before && n < 3; n++)
        wait_for_tick();
    if (told == told_before)
        return wrong("id: another one, and not told", 0, told_before + 1, told);
    read_id();
    return true;
}

static bool do_round(uint64_t round, uint64_t *register_key, uint64_t *last_tsc)
{
    uint64_t id = id_now[0] ^ id_now[1];
    for (uint64_t page = 0; page < pages; page++) {
        if (!check_page(page))
            return false;
        if (page % 3 == round % 3)
            write_page(page, mix(seed + id + round * PAGES_MAX + page) | 1);
    }
    if (!check_registers(*register_key))
        return false;
    set_registers(*register_key = mix(id + round));
    uint64_t tsc = rdtsc();
    if (tsc < *last_tsc)
        return wrong("tsc", round, *last_tsc, tsc);
    *last_tsc = tsc;
    wait_for_tick();
    return check_id();
}

int tiny_main(void)
{
    uint64_t end, rounds = arg_u64("rounds", ~UINT64_C(0)), register_key, last_tsc = 0;
    seed = arg_u64("seed", 1);
    pages = arg_u64("pages", 500);
    free_memory(&base, &end);
    base = (base + 4095) & ~UINT64_C(4095);
    if (pages > PAGES_MAX || pages > (end - base) / 4096) {
        print("fork: pages=%lu are too many\n", pages);
        return 2;
    }
    if (!find_id())
        return wrong("tables: no generation id", 0, 0, 0), 1;
    WRITE_CR(4, READ_CR(4) | 0x600); /* SSE */
    init_interrupts();
    read_id();
    set_registers(register_key = mix(seed));
    for (uint64_t round = 1; round <= rounds; round++) {
        if (!do_round(round, &register_key, &last_tsc))
            return 1;
        if (!(round % 10))
            print("fork: round %lu ok\n", round);
    }
    print("fork: ok\n");
    return 0;
}
