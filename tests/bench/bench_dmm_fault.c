/* The fault path, native: first touches with and without pre-zeroed frames, sequential, copy on write, spurious. Under `valgrind
 * --tool=callgrind` or `perf stat` the argument picks one case and the number of faults, for instructions per fault.
 * BENCH-SOURCES: mm/dmm/frame.c mm/dmm/frame_alloc.c mm/dmm/space.c mm/dmm/write_log.c mm/dmm/pool.c mm/dmm/p2m.c mm/dmm/fault.c mm/dmm/hist.c
   mm/dmm/guest_access.c mm/dmm/policy.c mm/dmm/audit.c mm/dmm/share.c mm/dmm/rmap.c mm/dmm/merge.c
   mm/dmm/scan.c mm/dmm/group.c mm/dmm/image.c mm/dmm/collapse.c mm/dmm/bill.c mm/dmm/move.c policies/demand.c
   tests/unit/fake/dmm_host.c tests/unit/fake/p2m_fake.c */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "include/hv/dmm_policy.h"
#include "mm/dmm/space.h"
#include "policies/demand.h"
#include "tests/unit/fake/dmm_host.h"

#define PAGES 65536u /* of the space */

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static struct dmm_space *space(void)
{
    struct dmm_space_config cfg = { .name = "bench", .vm_id = 1, .pages = PAGES, .format = &p2m_format_fake };
    struct dmm_space *s;
    if (dmm_space_create(&cfg, &s) != DMM_CREATE_OK || !dmm_space_add_ram(s, gfn_of(0), PAGES))
        abort();
    for (uint64_t g = 0; g < PAGES; g += LARGE_PAGES) /* the tables of all regions, so that a touch is just a touch */
        dmm_fault(s, gfn_of(g), DMM_WRITE);
    return s;
}

static void fault(struct dmm_space *s, uint64_t g, unsigned access)
{
    if (dmm_fault(s, gfn_of(g), access) != DMM_FAULT_RETRY)
        abort();
}

/* ns per fault; `stride` in pages, co-prime to the size, so that every fault is a new page. */
static double touches(unsigned count, uint64_t stride, bool prezero)
{
    struct dmm_space *s = space();
    double spent = 0;
    for (unsigned done = 0; done < count; ) {
        unsigned part = count - done < 3000 ? count - done : 3000;
        while (prezero && frame_zero_some(4096))
            continue;
        double start = now_ns();
        for (unsigned n = 0; n < part; n++, done++)
            fault(s, (1 + done * stride) % PAGES, DMM_WRITE);
        spent += now_ns() - start;
    }
    dmm_space_destroy(s);
    return spent / count;
}

static double random_prezeroed(unsigned count) { return touches(count, 4099, true); }
static double random_cleared(unsigned count) { return touches(count, 4099, false); }

/* Each page of 64 MiB touched in turn; a fault only where the table does not permit the access already. Returns ns per page. */
static double sequential(unsigned count)
{
    struct dmm_space *s = space();
    while (frame_zero_some(4096))
        continue;
    double start = now_ns();
    for (unsigned g = 0; g < count; g++) {
        const struct region *r = region_of(s, gfn_of(g));
        if (!r->l1 || !s->format->permits(r->l1[g % LARGE_PAGES], DMM_WRITE))
            fault(s, g, DMM_WRITE);
    }
    double ns = (now_ns() - start) / count;
    dmm_space_destroy(s);
    return ns;
}

static double copy_on_write(unsigned count)
{
    double spent = 0;
    struct dmm_space *s = space();
    for (unsigned g = 1; g + HOST_FILE_PAGES < PAGES && g < count; g += HOST_FILE_PAGES + 5) {
        dmm_map_boot_file(s, gfn_of(g), host_file_mfn(), HOST_FILE_PAGES);
        double start = now_ns();
        for (unsigned n = 0; n < HOST_FILE_PAGES; n++)
            dmm_fault(s, gfn_of(g + n), DMM_WRITE);
        spent += now_ns() - start;
    }
    dmm_space_destroy(s);
    return spent / (count / (HOST_FILE_PAGES + 5) * HOST_FILE_PAGES);
}

static double spurious(unsigned count)
{
    struct dmm_space *s = space();
    double start = now_ns();
    for (unsigned n = 0; n < count; n++)
        fault(s, 0, DMM_WRITE);
    double ns = (now_ns() - start) / count;
    dmm_space_destroy(s);
    return ns;
}

/* Two CPUs in one space, each touching regions of its own, or both the pages of the same regions in turn. CPU time per fault: what is lost to
 * shared cache lines shows, what the host does meanwhile does not. */
struct job { struct dmm_space *s; unsigned cpu, cpus, count; bool same_regions; double ns; };
static pthread_barrier_t start_line;

static void *touch_on_cpu(void *arg)
{
    struct job *j = arg;
    uint64_t regions = PAGES / LARGE_PAGES;
    host_become_cpu(j->cpu);
    pthread_barrier_wait(&start_line);
    double start = now_ns();
    for (unsigned n = 0; n < j->count; n++) {
        uint64_t region = j->same_regions ? n % regions : n % (regions / j->cpus) * j->cpus + j->cpu;
        uint64_t page = 1 + (j->same_regions ? n / regions * j->cpus + j->cpu : n / (regions / j->cpus)) * 3;
        fault(j->s, region * LARGE_PAGES + page, DMM_WRITE);
    }
    j->ns = now_ns() - start;
    return NULL;
}

static double on_cpus(unsigned cpus, unsigned count, bool same_regions)
{
    struct job jobs[2];
    pthread_t threads[2];
    struct dmm_space *s = space();
    double ns = 0;
    while (frame_zero_some(4096))
        continue;
    pthread_barrier_init(&start_line, NULL, cpus);
    for (unsigned n = 0; n < cpus; n++) {
        jobs[n] = (struct job){ s, n, cpus, count / cpus, same_regions, 0 };
        pthread_create(&threads[n], NULL, touch_on_cpu, &jobs[n]);
    }
    for (unsigned n = 0; n < cpus; n++) {
        pthread_join(threads[n], NULL);
        ns += jobs[n].ns;
    }
    pthread_barrier_destroy(&start_line);
    dmm_space_destroy(s);
    return ns / count;
}

static double one_cpu(unsigned count) { return on_cpus(1, count, false); }
static double two_cpus(unsigned count) { return on_cpus(2, count, false); }
static double two_cpus_same(unsigned count) { return on_cpus(2, count, true); }

static const struct { const char *name; double (*run)(unsigned); unsigned count; } cases[] = {
    { "first touch, pre-zeroed", random_prezeroed, 12000 },
    { "first touch, cleared in the fault", random_cleared, 12000 },
    { "on one CPU, region after region", one_cpu, 6000 },
    { "on two CPUs, regions of their own", two_cpus, 6000 },
    { "on two CPUs, the same regions", two_cpus_same, 6000 },
    { "sequential, per page", sequential, 16384 },
    { "copy on write of a boot file's page", copy_on_write, 16000 },
    { "spurious", spurious, 1000000 },
};

int main(int argc, char **argv)
{
    host_machine_init(1024);
    demand_policy_init();
    dmm_policy_set(dmm_policy_find("demand"), "large_free_percent", 101);
    if (argc == 3) {
        cases[atoi(argv[1])].run((unsigned)atoi(argv[2]));
        return 0;
    }
    printf("nested fault, DMM's part                 ns\n");
    for (unsigned k = 0; k < sizeof(cases) / sizeof(cases[0]); k++) {
        double best = 1e9;
        for (unsigned n = 0; n < 5; n++) {
            double ns = cases[k].run(cases[k].count);
            best = ns < best ? ns : best;
        }
        printf("  %-36s %8.1f\n", cases[k].name, best);
    }
    return 0;
}
