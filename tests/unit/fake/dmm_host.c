/*
 * The fake machine. Its direct map is an anonymous mapping that begins at hpa 0, the sparse frame table a reservation without access
 * rights whose parts hostmap_map() opens: a record that the frame table should not have touched faults here as it would on the
 * machine. Everything that other tests may bring too is weak.
 */
#include "tests/unit/fake/dmm_host.h"

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "core/lock.h"
#include "core/log.h"
#include "core/thread.h"
#include "lib/string.h"
#include "mm/dmm/frame.h"
#include "mm/early.h"
#include "mm/mm.h"
#include "x86/percpu.h"

#define WEAK __attribute__((weak))

uint8_t *host_directmap, *host_frame_va;
_Thread_local struct percpu host_percpu;
struct boot_info host_boot_info;
jmp_buf *host_panic_jmp;
char host_panic_text[256];

static struct { uint64_t hpa, bytes; enum frame_type purpose; } taken[64];
static unsigned taken_count;
static uint64_t early_next, early_end;

uint64_t early_alloc(uint64_t bytes, uint64_t align, enum frame_type purpose)
{
    early_next = ALIGN_UP(early_next, align);
    bytes = ALIGN_UP(bytes, PAGE_SIZE);
    if (early_next + bytes > early_end || taken_count == ARRAY_SIZE(taken))
        return 0;
    taken[taken_count].hpa = early_next;
    taken[taken_count].bytes = bytes;
    taken[taken_count++].purpose = purpose;
    early_next += bytes;
    return early_next - bytes;
}

void early_for_each_taken(void (*cb)(uint64_t hpa, uint64_t bytes, enum frame_type purpose, void *arg), void *arg)
{
    for (unsigned n = 0; n < taken_count; n++)
        cb(taken[n].hpa, taken[n].bytes, taken[n].purpose, arg);
}

bool hostmap_map(uint64_t va, uint64_t hpa, uint64_t bytes, unsigned flags)
{
    return hpa && mprotect((void *)va, bytes, PROT_READ | PROT_WRITE) == 0;
}

/* ---- the layers below --------------------------------------------------------------------------------------------- */

WEAK void *kzalloc(size_t bytes)
{
    void *p = aligned_alloc(64, ALIGN_UP(bytes, 64));
    return p ? memset(p, 0, bytes) : NULL;
}
WEAK void kfree(void *p) { free(p); }

WEAK void spin_init(struct spinlock *l, enum lock_rank rank, const char *name)
{
    *l = (struct spinlock){ .rank = rank, .name = name };
}

/* Ranks are checked here too: each thread keeps the highest it holds. */
static _Thread_local unsigned held_rank[16], held;
WEAK void spin_lock(struct spinlock *l)
{
    hv_assert(held == 0 || held_rank[held - 1] < l->rank);
    uint16_t ticket = __atomic_fetch_add(&l->next, 1, __ATOMIC_RELAXED);
    while (__atomic_load_n(&l->owner, __ATOMIC_ACQUIRE) != ticket)
        sched_yield();
    held_rank[held++] = l->rank;
}
WEAK void spin_unlock(struct spinlock *l)
{
    held--;
    __atomic_store_n(&l->owner, l->owner + 1, __ATOMIC_RELEASE);
}
WEAK bool spin_is_held(const struct spinlock *l) { return l->next != l->owner; }

static pthread_mutex_t wait_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wait_cond = PTHREAD_COND_INITIALIZER;
WEAK void waitq_init(struct waitq *q) { list_init(&q->waiters); }
WEAK void waitq_wake_all(struct waitq *q)
{
    pthread_mutex_lock(&wait_mutex);
    pthread_cond_broadcast(&wait_cond);
    pthread_mutex_unlock(&wait_mutex);
}
WEAK enum wait_result waitq_wait(struct waitq *q, bool (*cond)(void *), void *arg, uint64_t timeout_ns)
{
    struct timespec until;
    hv_assert(held == 0);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_ns == WAIT_FOREVER ? 3600 : timeout_ns / 1000000000;
    if (timeout_ns != WAIT_FOREVER && (until.tv_nsec += timeout_ns % 1000000000) >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&wait_mutex);
    bool done, late = false;
    while (!(done = cond(arg)) && !late)
        late = pthread_cond_timedwait(&wait_cond, &wait_mutex, &until) != 0;
    pthread_mutex_unlock(&wait_mutex);
    return done ? WAIT_DONE : WAIT_TIMEOUT;
}
WEAK void thread_resched_point(void) {}

WEAK void log_write(enum log_level level, const char *fmt, ...) {}
WEAK void panic(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(host_panic_text, sizeof(host_panic_text), fmt, ap);
    va_end(ap);
    if (host_panic_jmp)
        longjmp(*host_panic_jmp, 1);
    fprintf(stderr, "panic: %s\n", host_panic_text);
    abort();
}
WEAK bool str_copy(char *dst, size_t size, const char *src) { return (size_t)snprintf(dst, size, "%s", src) < size; }

/* ---- the machine ---------------------------------------------------------------------------------------------------- */

static void add_range(uint64_t base, uint64_t size, uint32_t type)
{
    host_boot_info.mem[host_boot_info.mem_count++] = (struct boot_mem_range){ .base = base, .size = size, .type = type };
}

uint8_t host_file_byte(unsigned page) { return (uint8_t)(page * 7 + 3); }
mfn_t host_file_mfn(void) { return hpa_to_mfn(host_boot_info.files[0].hpa); }

void host_become_cpu(unsigned id)
{
    host_percpu.id = id;
    if (!host_percpu.slot[PERCPU_FRAMES] && frame_run_count)
        hv_assert(frame_cpu_init());
}

/* 0-636K, a hole, 1M.. with image and loader memory, a second range that begins and ends off 2 MiB, a third far away. */
void host_machine_init(unsigned mib)
{
    const uint64_t span = GIB(4), low = MIB(MIN(mib / 2, 960u)), high = MIB(mib / 4), mid = MIB(mib) - low - high;
    hv_assert(mid <= MIB(2040) && high <= MIB(1020));
    uint64_t table_bytes = FRAME_MAX_MFN * sizeof(struct frame) + FRAME_MAX_MFN / LARGE_PAGES * sizeof(struct frame_child) + GIB(1);
    host_directmap = mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    host_frame_va = mmap(NULL, table_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    hv_assert(host_directmap != MAP_FAILED && host_frame_va != MAP_FAILED);

    add_range(0, KIB(636), BOOT_MEM_USABLE);
    add_range(KIB(636), KIB(388), BOOT_MEM_RESERVED);
    add_range(MIB(1), MIB(1), BOOT_MEM_USABLE);
    add_range(MIB(2), KIB(512), BOOT_MEM_IMAGE);
    add_range(MIB(2) + KIB(512), MIB(1), BOOT_MEM_LOADER);
    add_range(MIB(3) + KIB(512), low, BOOT_MEM_USABLE);
    add_range(MIB(3) + KIB(512) + low, KIB(64), BOOT_MEM_ACPI_RECLAIM);
    add_range(GIB(1) + KIB(100), mid, BOOT_MEM_USABLE);
    add_range(GIB(3), high, BOOT_MEM_USABLE);
    host_boot_info.magic = BOOT_INFO_MAGIC;
    host_boot_info.file_count = 1;
    host_boot_info.files[0] = (struct boot_file){ .hpa = MIB(2) + KIB(768), .size = HOST_FILE_PAGES * PAGE_SIZE, .name = "vmlinuz" };
    for (unsigned n = 0; n < HOST_FILE_PAGES; n++)
        memset(mfn_to_hva(mfn_add(host_file_mfn(), n)), host_file_byte(n), PAGE_SIZE);
    early_next = MIB(4);
    early_end = MIB(4) + low / 4;
    frame_init(&host_boot_info);
    frame_release_loader_memory(&host_boot_info);
    dmm_init();
}

static void print_violation(const char *line, void *arg) { fprintf(stderr, "audit: %s\n", line); }

void host_audit(void)
{
    if (dmm_audit(print_violation, NULL))
        abort();
}

uint64_t host_random(uint64_t below)
{
    static uint64_t x;
    if (!x)
        x = getenv("HOST_SEED") ? strtoull(getenv("HOST_SEED"), NULL, 0) | 1 : UINT64_C(0x9e3779b97f4a7c15);
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return (x >> 11) % below;
}
