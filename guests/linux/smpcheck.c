/*
 * `smpcheck [ROUNDS [SEED]]`: what a kernel with several CPUs tells them by interrupts, checked. One thread for each CPU, pinned to it.
 *
 * Translations. Each thread owns an area that all use. Round by round it takes away the right to write to the area's first page, and then
 * unmaps the rest and maps and fills it anew. Each must be known to all CPUs when the system call returns: so nobody's store may arrive in the first
 * page any more, and whoever reads the rest finds the fill of the round that it read the number of, before and after. The others try all the time, and
 * are resumed after a fault. A CPU that kept an old translation stores into the page, or reads a frame that is somebody else's by now.
 *
 * Wake-ups. A number goes round all CPUs, from pipe to pipe, each adding one; whoever waits sleeps. Then the same with a thread of the lowest kind that
 * keeps every CPU busy: for that one to be left at once the kernel sends another interrupt than to a CPU that is idle.
 */
#define _GNU_SOURCE
#include "checks.h"

#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_CPUS = 64, PAGE_BYTES = 4096, PAGE_WORDS = PAGE_BYTES / 8, FILL_PAGES = 4, SLOT_WORDS = 8, IDLE_LAPS = 200, BUSY_LAPS = 50 };
#define FILL_BYTES ((size_t)FILL_PAGES * PAGE_BYTES)

struct area {
    volatile uint64_t *slots; /* the first page: a word for each thread to store to */
    volatile uint64_t *fill;
    volatile uint64_t round;  /* odd: the fill is being changed */
};

static struct area areas[MAX_CPUS];
static int pipes[MAX_CPUS][2];
static unsigned cpus;
static uint64_t rounds, seed;
static volatile bool finished, failed;
static volatile unsigned working; /* threads with rounds to go */
static uint64_t faults, fills_read; /* so many times did the others really look */
static pthread_barrier_t barrier;
static __thread sigjmp_buf resume;
static __thread volatile bool resumable;

static void wrong(const char *what, unsigned cpu, uint64_t expected, uint64_t got)
{
    printf("smpcheck: WRONG on CPU %u: %s: expected %016" PRIx64 ", got %016" PRIx64 "\n", cpu, what, expected, got);
    fflush(stdout);
    failed = true;
}

static void die(const char *what)
{
    perror(what);
    exit(2);
}

static void on_fault(int number)
{
    if (resumable)
        siglongjmp(resume, 1);
    signal(number, SIG_DFL);
}

static void pin(unsigned cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set) != 0)
        die("smpcheck: sched_setaffinity");
}

/* ---- translations --------------------------------------------------------------------------------------------------- */

/* One store to each of the others' slots; what arrived there last must still be there. */
static void store_to_others(unsigned me, uint64_t *mine)
{
    for (unsigned n = 0; n < cpus; n++) {
        volatile uint64_t *slot = &areas[n].slots[me * SLOT_WORDS];
        if (n == me)
            continue;
        if (*slot != mine[n])
            wrong("a store that was made is gone", me, mine[n], *slot);
        if (sigsetjmp(resume, 0)) {
            __atomic_fetch_add(&faults, 1, __ATOMIC_RELAXED);
            continue;
        }
        resumable = true;
        *slot = mine[n] + 1;
        resumable = false;
        mine[n]++;
    }
}

static void read_fill(unsigned me, unsigned whose)
{
    struct area *a = &areas[whose];
    uint64_t before = __atomic_load_n(&a->round, __ATOMIC_ACQUIRE), got[FILL_PAGES];
    if (before & 1 || sigsetjmp(resume, 0)) /* unmapped just now */
        return;
    resumable = true;
    uint64_t at = before / 2 % PAGE_WORDS;
    for (unsigned page = 0; page < FILL_PAGES; page++)
        got[page] = a->fill[page * PAGE_WORDS + at];
    resumable = false;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (a->round != before)
        return;
    for (unsigned page = 0; page < FILL_PAGES; page++)
        if (got[page] != word_at(seed + whose, before, page * PAGE_WORDS + at))
            wrong("what was unmapped is still read", me, word_at(seed + whose, before, page * PAGE_WORDS + at), got[page]);
    __atomic_fetch_add(&fills_read, 1, __ATOMIC_RELAXED);
}

static void look_at_others(unsigned me, uint64_t *mine)
{
    store_to_others(me, mine);
    for (unsigned n = 0; n < cpus; n++)
        if (n != me)
            read_fill(me, n);
}

/* Between the two looks at them the others have time to go on: as long as this thread's own stores and reads take. */
static void protect(unsigned me, uint64_t *mine)
{
    struct area *a = &areas[me];
    uint64_t seen[MAX_CPUS];
    if (mprotect((void *)a->slots, PAGE_BYTES, PROT_READ) != 0)
        die("smpcheck: mprotect");
    for (unsigned n = 0; n < cpus; n++)
        seen[n] = a->slots[n * SLOT_WORDS];
    for (unsigned k = 0; k < 4; k++)
        look_at_others(me, mine);
    for (unsigned n = 0; n < cpus; n++)
        if (a->slots[n * SLOT_WORDS] != seen[n])
            wrong("a store to a page that may not be written to", n, seen[n], a->slots[n * SLOT_WORDS]);
    if (mprotect((void *)a->slots, PAGE_BYTES, PROT_READ | PROT_WRITE) != 0)
        die("smpcheck: mprotect");
}

static void fill_anew(unsigned me)
{
    struct area *a = &areas[me];
    __atomic_store_n(&a->round, a->round + 1, __ATOMIC_SEQ_CST);
    if (munmap((void *)a->fill, FILL_BYTES) != 0)
        die("smpcheck: munmap");
    if (mmap((void *)a->fill, FILL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        die("smpcheck: mmap");
    for (uint64_t i = 0; i < FILL_PAGES * PAGE_WORDS; i++)
        a->fill[i] = word_at(seed + me, a->round + 1, i);
    __atomic_store_n(&a->round, a->round + 1, __ATOMIC_SEQ_CST);
}

static void change_translations(unsigned me)
{
    uint64_t mine[MAX_CPUS] = {0};
    for (uint64_t k = 0; k < rounds && !failed; k++) {
        look_at_others(me, mine);
        protect(me, mine);
        fill_anew(me);
    }
    __atomic_fetch_sub(&working, 1, __ATOMIC_SEQ_CST);
    while (working && !failed) /* whoever is slower still has somebody who looks */
        look_at_others(me, mine);
}

/* ---- wake-ups --------------------------------------------------------------------------------------------------------- */

static void pass_on(unsigned me, uint64_t laps)
{
    for (uint64_t lap = 0; lap < laps; lap++) {
        uint64_t expected = lap * cpus + me, got;
        if (read(pipes[me][0], &got, sizeof(got)) != sizeof(got))
            die("smpcheck: read");
        if (got != expected)
            wrong("the number that goes round", me, expected, got);
        got++;
        if (write(pipes[(me + 1) % cpus][1], &got, sizeof(got)) != sizeof(got))
            die("smpcheck: write");
    }
}

/* The first CPU puts the number in, and takes it out in the end. */
static void go_round(unsigned me, uint64_t laps)
{
    uint64_t number = 0;
    if (me == 0 && write(pipes[0][1], &number, sizeof(number)) != sizeof(number))
        die("smpcheck: write");
    pass_on(me, laps);
    if (me == 0 && (read(pipes[0][0], &number, sizeof(number)) != sizeof(number) || number != laps * cpus))
        wrong("the number that has gone round", 0, laps * cpus, number);
}

static void *keep_busy(void *arg)
{
    struct sched_param none = {0};
    pin((unsigned)(uintptr_t)arg);
    if (sched_setscheduler(0, SCHED_IDLE, &none) != 0)
        die("smpcheck: sched_setscheduler");
    while (!finished)
        __builtin_ia32_pause();
    return NULL;
}

/* ---- threads ---------------------------------------------------------------------------------------------------------- */

static void *run(void *arg)
{
    unsigned me = (unsigned)(uintptr_t)arg;
    pthread_t rival;
    pin(me);
    pthread_barrier_wait(&barrier);
    change_translations(me);
    pthread_barrier_wait(&barrier);
    go_round(me, IDLE_LAPS);
    if (pthread_create(&rival, NULL, keep_busy, arg) != 0)
        die("smpcheck: pthread_create");
    pthread_barrier_wait(&barrier);
    go_round(me, BUSY_LAPS);
    pthread_barrier_wait(&barrier);
    finished = true;
    pthread_join(rival, NULL);
    return NULL;
}

static void make_area(unsigned cpu)
{
    struct area *a = &areas[cpu];
    void *memory = mmap(NULL, PAGE_BYTES + FILL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || pipe(pipes[cpu]) != 0)
        die("smpcheck: memory and pipes");
    a->slots = memory;
    a->fill = a->slots + PAGE_WORDS;
    for (uint64_t i = 0; i < FILL_PAGES * PAGE_WORDS; i++)
        a->fill[i] = word_at(seed + cpu, 0, i);
}

int smpcheck(int argc, char **argv)
{
    rounds = argc > 1 ? strtoull(argv[1], NULL, 0) : 100;
    seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    cpus = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    if (!rounds || cpus < 2 || cpus > MAX_CPUS) {
        fprintf(stderr, "usage: smpcheck [ROUNDS [SEED]], with 2 to %u CPUs\n", MAX_CPUS);
        return 2;
    }
    struct sigaction act = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    pthread_t threads[MAX_CPUS];
    sigaction(SIGSEGV, &act, NULL);
    pthread_barrier_init(&barrier, NULL, cpus);
    working = cpus;
    for (unsigned n = 0; n < cpus; n++)
        make_area(n);
    for (unsigned n = 0; n < cpus; n++)
        if (pthread_create(&threads[n], NULL, run, (void *)(uintptr_t)n) != 0)
            die("smpcheck: pthread_create");
    for (unsigned n = 0; n < cpus; n++)
        pthread_join(threads[n], NULL);
    if (!failed)
        printf("smpcheck: ok cpus=%u rounds=%" PRIu64 " faults=%" PRIu64 " fills=%" PRIu64 "\n", cpus, rounds, faults, fills_read);
    return failed;
}
