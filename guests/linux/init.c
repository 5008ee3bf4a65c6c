/*
 * The first process of our Linux guest, and its checks, in one static program (each of its own would carry a C library).
 *
 * As init it mounts what a shell needs, says who and how large the guest is, and keeps a shell on the console. All signals are
 * blocked and taken one at a time with sigwaitinfo(), so that a child that ends and a power-off request cannot race. As
 * `memcheck SIZE [PASSES [SEED]]` it proves that memory keeps what was written: every word's value depends on the seed, the pass
 * and its place, so a page that comes back as another page, an older self or zero is seen, and where is printed.
 * `smpcheck` is in a file of its own.
 */
#include "checks.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- memcheck ----------------------------------------------------------------------------------------------------- */

/* The guest frame behind a virtual address, from the kernel: it tells whoever debugs the hypervisor which entry to look at. */
static uint64_t frame_of(const void *va)
{
    uint64_t entry = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && pread(fd, &entry, sizeof(entry), (off_t)((uintptr_t)va / 4096 * 8)) != sizeof(entry))
        entry = 0;
    if (fd >= 0)
        close(fd);
    return entry & ((UINT64_C(1) << 55) - 1);
}

static int wrong(const uint64_t *mem, uint64_t i, uint64_t expected, const char *when)
{
    uint64_t got = mem[i];
    printf("memcheck: WRONG %s: byte %" PRIu64 " va %p gfn 0x%" PRIx64 ": expected %016" PRIx64 ", got %016" PRIx64 "\n", when, i * 8,
           (const void *)&mem[i], frame_of(&mem[i]), expected, got);
    return 1;
}

static int memcheck(int argc, char **argv)
{
    char *suffix = NULL;
    uint64_t bytes = argc > 1 ? strtoull(argv[1], &suffix, 0) : 0;
    uint64_t passes = argc > 2 ? strtoull(argv[2], NULL, 0) : 1, seed = argc > 3 ? strtoull(argv[3], NULL, 0) : 1;
    if (suffix && (*suffix == 'K' || *suffix == 'M' || *suffix == 'G'))
        bytes <<= *suffix == 'K' ? 10 : *suffix == 'M' ? 20 : 30;
    bytes &= ~UINT64_C(4095);
    if (!bytes || !passes) {
        fprintf(stderr, "usage: memcheck SIZE[K|M|G] [PASSES [SEED]]\n");
        return 2;
    }
    volatile uint64_t *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mem == MAP_FAILED) {
        printf("memcheck: cannot map %" PRIu64 " bytes: %s\n", bytes, strerror(errno));
        return 2;
    }
    uint64_t words = bytes / 8;
    /* Fresh memory is zero. Every other page is read before it is written, the rest written first: both ways in. */
    for (uint64_t i = 0; i < words; i++) {
        if (i % 512 == 0 && i / 512 % 2)
            i += 512;
        if (i < words && mem[i] != 0)
            return wrong((const uint64_t *)mem, i, 0, "fresh");
    }
    for (uint64_t pass = 0; pass < passes; pass++) {
        for (uint64_t k = 0; k < words; k++) {
            uint64_t i = pass % 2 ? words - 1 - k : k;
            mem[i] = word_at(seed, pass, i);
        }
        for (uint64_t i = 0; i < words; i++)
            if (mem[i] != word_at(seed, pass, i))
                return wrong((const uint64_t *)mem, i, word_at(seed, pass, i), "after writing");
    }
    printf("memcheck: ok %" PRIu64 " bytes seed %" PRIu64 "\n", bytes, seed);
    return 0;
}

/* ---- data of its own ------------------------------------------------------------------------------------------------- */

enum { DATA_BYTES = 4 << 20 };

/* A guest has data that nobody else has, and some that others have too, at other places. `seed=S` on the kernel's command line (what
 * the kernel does not know it puts into our environment) gives it half of each, page by page in an order of its own, to hold for ever. */
static void hold_data(uint64_t seed)
{
    uint64_t *mem = mmap(NULL, DATA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0), common = 0;
    if (mem == MAP_FAILED) {
        perror("init: data");
        return;
    }
    for (uint64_t page = 0; page < DATA_BYTES / 4096; page++) {
        int own = common == DATA_BYTES / 8192 || (word_at(seed, 1, page) & 1);
        for (uint64_t i = 0; i < 512; i++)
            mem[page * 512 + i] = own ? word_at(seed, 2, page * 512 + i) : word_at(0, 3, common * 512 + i);
        common += !own;
    }
}

/* ---- init --------------------------------------------------------------------------------------------------------- */

static void mount_on(const char *type, const char *dir)
{
    mkdir(dir, 0755);
    if (mount(type, dir, type, 0, NULL) != 0 && errno != EBUSY)
        fprintf(stderr, "init: mounting %s on %s: %s\n", type, dir, strerror(errno));
}

/* The terminal behind /dev/console, which itself cannot be a controlling terminal: without one Ctrl-C would do nothing. */
static void find_console(char *path, size_t size)
{
    char active[64] = "";
    int fd = open("/sys/class/tty/console/active", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t n = read(fd, active, sizeof(active) - 1);
        active[n > 0 ? n : 0] = 0;
        close(fd);
    }
    char *last = strrchr(active, ' ');
    last = last ? last + 1 : active;
    last[strcspn(last, "\n")] = 0;
    snprintf(path, size, "/dev/%s", *last ? last : "ttyS0");
}

static pid_t start_shell(const char *tty)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    int fd = open(tty, O_RDWR);
    if (fd >= 0) {
        ioctl(fd, TIOCSCTTY, 1);
        for (int i = 0; i < 3; i++)
            dup2(fd, i);
        if (fd > 2)
            close(fd);
    }
    execl("/bin/sh", "-sh", (char *)NULL);
    fprintf(stderr, "init: /bin/sh: %s\n", strerror(errno));
    _exit(127);
}

static void banner(void)
{
    struct utsname u;
    struct sysinfo s;
    uname(&u);
    sysinfo(&s);
    printf("\nPalimpsest guest: %s %s, %lu MiB of memory, %ld CPU%s\nguest ready\n\n", u.sysname, u.release,
           s.totalram * s.mem_unit >> 20, sysconf(_SC_NPROCESSORS_ONLN), sysconf(_SC_NPROCESSORS_ONLN) == 1 ? "" : "s");
    fflush(stdout);
}

static void end(int how, const char *what)
{
    printf("init: %s\n", what);
    fflush(stdout);
    kill(-1, SIGKILL);
    sync();
    reboot(how);
    perror("init: reboot");
}

int main(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/'), *name = slash ? slash + 1 : argv[0];
    if (strcmp(name, "memcheck") == 0)
        return memcheck(argc, argv);
    if (strcmp(name, "smpcheck") == 0)
        return smpcheck(argc, argv);

    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    mount_on("proc", "/proc");
    mount_on("sysfs", "/sys");
    mount_on("devtmpfs", "/dev");
    mount_on("tmpfs", "/tmp");
    setenv("PATH", "/bin", 1);
    setenv("HOME", "/", 1);
    setenv("TERM", "linux", 0);
    setenv("PS1", "\\h:\\w# ", 1);
    char host[65] = "";
    if (gethostname(host, sizeof(host) - 1) != 0 || !host[0] || host[0] == '(') /* no hostname= on the command line */
        sethostname("guest", 5);
    char tty[80];
    find_console(tty, sizeof(tty));
    const char *seed = getenv("seed");
    if (seed)
        hold_data(strtoull(seed, NULL, 0));
    banner();

    pid_t shell = start_shell(tty);
    for (;;) {
        siginfo_t info;
        switch (sigwaitinfo(&all, &info)) {
        case SIGCHLD:
            for (pid_t pid; (pid = waitpid(-1, NULL, WNOHANG)) > 0;)
                if (pid == shell)
                    shell = start_shell(tty);
            break;
        case SIGUSR1: end(RB_HALT_SYSTEM, "halt"); break;     /* what busybox's halt, poweroff and reboot send */
        case SIGUSR2: end(RB_POWER_OFF, "power off"); break;
        case SIGTERM: end(RB_AUTOBOOT, "restart"); break;
        }
    }
}
