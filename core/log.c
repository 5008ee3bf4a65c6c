/*
 * The log. Every line goes into a ring in RAM whatever its level, because the line that explains a failure is usually one that
 * nobody wanted to see while things went well; the level decides only what also appears on the console.
 *
 * The ring holds whole lines, each behind a 2-byte length, and throws away the oldest to make room. A writer holds the lock
 * for a copy of one line, with interrupts off, so any context may log. After a panic the lock is not taken any more: the one CPU
 * that still runs reads what is there.
 */
#include "core/log.h"
#include "core/console.h"
#include "core/lock.h"
#include "core/panic.h"
#include "core/time.h"
#include "lib/string.h"
#include "x86/cpu.h"

#define RING_BYTES 65536u
#define LINE_BYTES 400u

static char ring[RING_BYTES];
static uint64_t head, tail;    /* byte positions, ever growing; [tail, head) is valid */
static struct spinlock ring_lock = SPINLOCK_INIT(LOCK_RANK_LOG, "log");
static enum log_level console_level = LOG_INFO;

void log_set_console_level(enum log_level level)
{
    console_level = level;
}

static void copy_in(uint64_t at, const char *s, unsigned len)
{
    for (unsigned i = 0; i < len; i++)
        ring[(at + i) % RING_BYTES] = s[i];
}

static void copy_out(char *s, uint64_t at, unsigned len)
{
    for (unsigned i = 0; i < len; i++)
        s[i] = ring[(at + i) % RING_BYTES];
}

static unsigned length_at(uint64_t at)
{
    return (uint8_t)ring[at % RING_BYTES] | (unsigned)(uint8_t)ring[(at + 1) % RING_BYTES] << 8;
}

static void append(const char *line, unsigned len)
{
    char size[2] = {(char)len, (char)(len >> 8)};
    while (head + 2 + len - tail > RING_BYTES)
        tail += 2 + length_at(tail);
    copy_in(head, size, 2);
    copy_in(head + 2, line, len);
    head += 2 + len;
}

void log_write(enum log_level level, const char *fmt, ...)
{
    static const char *const mark[] = {"error: ", "warning: ", "", ""};
    char line[LINE_BYTES];
    uint64_t us = time_ns() / 1000;
    int n = snprintf(line, sizeof(line), "[%5lu.%06lu] %s", us / 1000000, us % 1000000, mark[level]);
    va_list ap;
    va_start(ap, fmt);
    n += vsnprintf(line + n, sizeof(line) - (size_t)n, fmt, ap);
    va_end(ap);
    unsigned len = MIN((unsigned)n, LINE_BYTES - 1);

    bool locked = !panic_in_progress();
    uint64_t flags = locked ? spin_lock_irqsave(&ring_lock) : 0;
    append(line, len);
    if (locked) {
        spin_unlock_irqrestore(&ring_lock, flags);
        if (level <= console_level)
            console_show_line(line);
    }
}

void log_replay(void (*emit)(const char *line, void *arg), void *arg)
{
    char line[LINE_BYTES];
    bool locked = !panic_in_progress();
    for (uint64_t at = 0;;) {
        uint64_t flags = locked ? spin_lock_irqsave(&ring_lock) : 0;
        at = MAX(at, tail);
        bool more = at < head;
        unsigned len = more ? MIN(length_at(at), LINE_BYTES - 1) : 0;
        copy_out(line, at + 2, len);
        if (locked)
            spin_unlock_irqrestore(&ring_lock, flags);
        if (!more)
            return;
        line[len] = 0;
        emit(line, arg);
        at += 2 + len;
    }
}
