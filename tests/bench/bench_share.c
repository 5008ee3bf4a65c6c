/* Sharing, native: the scanner's whole path per page, what an unchanged page costs the next sweep, a copy-on-write break, a fork; and Linux's KSM over the
 * same memory, where it is there and may be used.
 * BENCH-SOURCES: policies/dedup.c policies/dedup_thread.c policies/dedup_table.c mm/dmm/digest.c mm/dmm/frame.c mm/dmm/frame_alloc.c mm/dmm/space.c
   mm/dmm/write_log.c mm/dmm/pool.c mm/dmm/p2m.c
   mm/dmm/fault.c mm/dmm/hist.c mm/dmm/guest_access.c mm/dmm/policy.c mm/dmm/audit.c mm/dmm/share.c mm/dmm/rmap.c mm/dmm/merge.c
   mm/dmm/scan.c mm/dmm/group.c mm/dmm/image.c mm/dmm/collapse.c mm/dmm/bill.c mm/dmm/move.c policies/demand.c
   tests/unit/fake/dmm_host.c tests/unit/fake/p2m_fake.c */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "core/console.h"
#include "core/thread.h"
#include "core/time.h"
#include "include/hv/dmm_policy.h"
#include "mm/dmm/share.h"
#include "policies/dedup.h"
#include "policies/demand.h"
#include "tests/unit/fake/dmm_host.h"
#include "x86/cpu.h"

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

uint64_t time_ns(void) { return (uint64_t)now_ns(); }
void thread_sleep_ns(uint64_t ns) { }
uint64_t cpu_random(void) { return UINT64_C(0x123456789abcdef1); }
#include "tests/unit/fake/dedup_host.h"

/* A CPU that logs; what it has logged the bench says itself. */
static bool log_writes(void *owner, enum dmm_log_step step) { return true; }
static const struct dmm_space_ops ops = { .log_writes = log_writes };

static struct dmm_space *make(uint64_t pages)
{
    struct dmm_space_config cfg = { .name = "bench", .vm_id = 1, .pages = pages, .format = &p2m_format_fake, .ops = &ops };
    struct dmm_space *s;
    if (dmm_space_create(&cfg, &s) != DMM_CREATE_OK || !dmm_space_add_ram(s, gfn_of(0), pages))
        abort();
    return s;
}

/* Page g holds `content`, which is like no other's. */
static void put(struct dmm_space *s, uint64_t g, uint64_t content)
{
    static uint64_t page[512];
    for (unsigned n = 0; n < 512; n++)
        page[n] = (content * 512 + n) * UINT64_C(0x9e3779b97f4a7c15);
    if (dmm_write_guest(s, g * PAGE_SIZE, page, PAGE_SIZE) != DMM_FAULT_RETRY)
        abort();
}

static double sweep(void)
{
    double start = now_ns();
    while (dedup_step() != DEDUP_STEP_SWEPT)
        continue;
    return now_ns() - start;
}

static void show(const char *what, double ns, const char *goal) { printf("  %-52s %10.2f  %s\n", what, ns, goal); }

/* ---- KSM ------------------------------------------------------------------------------------------------------------- */

#define KSM "/sys/kernel/mm/ksm/"
static struct { const char *path, *bench; char was[32]; } knobs[] = {
    { KSM "pages_to_scan", "100000", "" }, { KSM "sleep_millisecs", "0", "" }, { KSM "smart_scan", "0", "" }, { KSM "run", "1", "" },
};
static volatile sig_atomic_t ksm_is_changed;

static bool file_write(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0)
        close(fd);
    return ok;
}

static bool file_read(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY);
    ssize_t got = fd < 0 ? -1 : read(fd, text, size - 1);
    text[got > 0 ? got : 0] = 0;
    if (fd >= 0)
        close(fd);
    return got > 0;
}

static long full_scans(void)
{
    char text[32];
    return file_read(KSM "full_scans", text, sizeof(text)) ? atol(text) : -1;
}

/* Also when the bench is interrupted: these are the host's settings, not ours. */
static void ksm_restore(void)
{
    if (!ksm_is_changed)
        return;
    file_write(KSM "run", "2"); /* undoes what was merged */
    for (unsigned n = 0; n < sizeof(knobs) / sizeof(knobs[0]); n++)
        if (knobs[n].was[0])
            file_write(knobs[n].path, knobs[n].was);
    ksm_is_changed = 0;
}

static void ksm_interrupted(int number)
{
    ksm_restore();
    signal(number, SIG_DFL);
    raise(number);
}

/* NULL, or why it cannot be measured here. Older kernels lack smart_scan. */
static const char *ksm_begin(void)
{
    for (unsigned n = 0; n < sizeof(knobs) / sizeof(knobs[0]); n++)
        if (!file_read(knobs[n].path, knobs[n].was, sizeof(knobs[n].was)) && strcmp(knobs[n].path, KSM "smart_scan"))
            return "this kernel has none";
    if (atol(knobs[3].was))
        return "this host uses it";
    signal(SIGINT, ksm_interrupted);
    signal(SIGTERM, ksm_interrupted);
    signal(SIGHUP, ksm_interrupted);
    ksm_is_changed = 1;
    for (unsigned n = 0; n < sizeof(knobs) / sizeof(knobs[0]); n++)
        if (knobs[n].was[0] && !file_write(knobs[n].path, knobs[n].bench))
            return "its settings cannot be changed: needs root";
    return NULL;
}

/* CPU time of the kernel's thread, in ns; -1: there is none. */
static double ksmd_ns(void)
{
    static char stat_path[300];
    char text[64];
    if (!stat_path[0]) {
        DIR *d = opendir("/proc");
        for (struct dirent *e; d && (e = readdir(d));) {
            char path[300];
            snprintf(path, sizeof(path), "/proc/%s/comm", e->d_name);
            FILE *f = fopen(path, "r");
            if (f && fgets(text, sizeof(text), f) && !strcmp(text, "ksmd\n"))
                snprintf(stat_path, sizeof(stat_path), "/proc/%.200s/schedstat", e->d_name);
            if (f)
                fclose(f);
        }
        if (d)
            closedir(d);
    }
    FILE *f = fopen(stat_path, "r");
    double ns = -1;
    if (f && fgets(text, sizeof(text), f))
        ns = atof(text);
    if (f)
        fclose(f);
    return ns;
}

/* CPU time of its next full scan per page; -1: it takes too long. */
static double ksm_scan(uint64_t pages)
{
    long scans = full_scans();
    double begun = ksmd_ns();
    for (unsigned n = 0; n < 12000 && full_scans() == scans; n++) /* its progress can only be looked at */
        usleep(10000);
    return full_scans() == scans ? -1 : (ksmd_ns() - begun) / (double)pages;
}

/* What the guest holds, once more, in memory of this process. The first scan only takes checksums; the second one enters, and merges. */
static void ksm(struct dmm_space *s, uint64_t pages)
{
    uint8_t *copy = mmap(NULL, pages * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED || dmm_read_guest(s, 0, copy, pages * PAGE_SIZE) != DMM_FAULT_RETRY)
        abort();
    const char *why = ksmd_ns() < 0 || madvise(copy, pages * PAGE_SIZE, MADV_MERGEABLE) ? "this kernel has none" : ksm_begin();
    if (why) {
        printf("  Linux KSM over the same contents: skipped: %s\n", why);
    } else {
        ksm_scan(pages); /* the scan that is under way */
        show("  Linux KSM, the same contents, a scan: ns/page", ksm_scan(pages), "(-1: not done within two minutes)");
        show("  Linux KSM, the next one: ns/page", ksm_scan(pages), "");
    }
    madvise(copy, pages * PAGE_SIZE, MADV_UNMERGEABLE);
    ksm_restore();
    munmap(copy, pages * PAGE_SIZE);
}

/* ---- cases -------------------------------------------------------------------------------------------------------------- */

/* Sweeps when nothing has changed and the CPUs log: as many as pass until all has been looked at anyway. */
static void with_logs(struct dmm_space *s, uint64_t pages)
{
    enum { SWEEPS = 32 };
    double ns = 0;
    dmm_policy_set(dmm_policy_find("dedup"), "log_pages_max", 512);
    for (unsigned n = 0; n < 3; n++)
        sweep();
    if (!dmm_log_is_on(s))
        abort();
    for (unsigned n = 0; n < SWEEPS; n++)
        ns += sweep();
    show("  with the CPUs' logs, nothing changed: ns/page", ns / SWEEPS / (double)pages, "");
    double start = now_ns();
    for (uint64_t g = 0; g < pages; g += 100)
        dmm_log_written(s, g * PAGE_SIZE);
    show("  a page that is in a log: ns", (now_ns() - start) / (double)((pages + 99) / 100), "");
    dmm_policy_set(dmm_policy_find("dedup"), "log_pages_max", 0);
    sweep();
}

static void unique_pages(uint64_t mib, bool with_ksm)
{
    char what[64];
    uint64_t pages = mib << 8;
    struct dmm_space *s = make(pages);
    for (uint64_t g = 0; g < pages; g++)
        put(s, g, g + 1);
    double first = sweep(), second = sweep();
    for (unsigned n = 0; n < 3; n++) { /* the best of some: this machine has other work */
        double ns;
        dmm_scan_forget(s);
        first = (ns = sweep()) < first ? ns : first;
        second = (ns = sweep()) < second ? ns : second;
    }
    first /= (double)pages;
    second /= (double)pages;
    snprintf(what, sizeof(what), "%lu MiB of unique pages, first sweep: ns/page", mib);
    show(what, first, first <= 1e9 / 1.4e6 ? "goal 714: met" : "goal 714: MISSED");
    show("  second sweep, nothing changed: ns/page", second, second <= 2 ? "goal 2: met" : "goal 2: MISSED");
    with_logs(s, pages);
    for (uint64_t g = 0; g < pages; g += 100)
        put(s, g, g + 1 + pages);
    double third = sweep() / (double)pages;
    show("  third sweep, 1 % written to: ns/page", third, "");
    if (with_ksm)
        ksm(s, pages);
    dmm_space_destroy(s);
}

static void equal_pages(void)
{
    enum { PAGES = 32768 };
    struct dmm_space *s = make(PAGES);
    for (uint64_t g = 0; g < PAGES; g++)
        put(s, g, 1 + g / 2);
    double ns = sweep();
    show("pages that find a partner, first sweep: ns/page", ns / PAGES, "");
    double start = now_ns();
    for (uint64_t g = 0; g < PAGES; g += 2)
        if (dmm_fault(s, gfn_of(g), DMM_WRITE) != DMM_FAULT_RETRY)
            abort();
    show("copy-on-write break, with the copy: ns", (now_ns() - start) / (PAGES / 2), "");
    start = now_ns();
    for (uint64_t g = 1; g < PAGES; g += 2)
        dmm_fault(s, gfn_of(g), DMM_WRITE);
    show("  the last user's, in place: ns", (now_ns() - start) / (PAGES / 2), "");
    dmm_space_destroy(s);
}

static void forks(uint64_t mib)
{
    enum { CHILDREN = 16 };
    char what[64];
    struct dmm_space *s = make(mib << 8), *child[CHILDREN];
    struct dmm_space_config cfg = { .name = "child", .vm_id = 2, .pages = mib << 8, .format = &p2m_format_fake };
    struct dmm_image *image;
    for (uint64_t g = 0; g < mib << 8; g++)
        put(s, g, g + 1);
    double start = now_ns();
    if (dmm_space_freeze(s, &image) != DMM_FREEZE_OK)
        abort();
    for (unsigned n = 0; n < CHILDREN; n++)
        if (dmm_space_create_from(&cfg, image, &child[n]) != DMM_CREATE_OK)
            abort();
    snprintf(what, sizeof(what), "memory of a fork of %lu MiB, %u children: ns each", mib, CHILDREN);
    show(what, (now_ns() - start) / CHILDREN, "");
    dmm_image_release(image);
    start = now_ns();
    for (uint64_t g = 0; g < mib << 8; g += 512)
        dmm_fault(child[0], gfn_of(g), DMM_READ);
    show("  a child takes a 2 MiB region over: ns", (now_ns() - start) / (double)(mib / 2), "");
    for (unsigned n = 0; n < CHILDREN; n++)
        dmm_space_destroy(child[n]);
    dmm_space_destroy(s);
}

int main(int argc, char **argv)
{
    host_machine_init(2300);
    madvise(host_directmap, GIB(4), MADV_HUGEPAGE); /* as the hypervisor's own direct map */
    demand_policy_init();
    dedup_policy_init();
    dmm_policy_set(dmm_policy_find("demand"), "large_free_percent", 101);
    dmm_policy_set(dmm_policy_find("dedup"), "log_pages_max", 0);
    if (!dedup_prepare())
        abort();
    printf("sharing\n");
    unique_pages(512, argc == 1); /* with any argument: without KSM */
    unique_pages(2048, false);
    equal_pages();
    forks(64);
    forks(1024);
    return 0;
}
