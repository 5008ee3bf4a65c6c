/*
 * The log: one line per call, level-filtered to the serial port and always kept in a RAM ring (`log`).
 * Format of a line: "subsystem: vm<id>.vcpu<id>: message key=value". Any context.
 */
#ifndef HV_CORE_LOG_H
#define HV_CORE_LOG_H
#include "include/hv/types.h"
enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };
void log_write(enum log_level level, const char *fmt, ...) PRINTF_LIKE(2, 3);
#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)
void log_set_console_level(enum log_level level);
/* Calls emit(line, arg) for every kept line, oldest first. */
void log_replay(void (*emit)(const char *line, void *arg), void *arg);

/* Registers dump, symbolized backtrace, last log lines; then halts this machine for ever. Any context. */
NORETURN void panic(const char *fmt, ...) PRINTF_LIKE(1, 2);
/* An invariant of ours that must hold: checked in every build. */
#define hv_assert(c) do { if (unlikely(!(c))) panic("assertion failed: %s at %s:%d", #c, __FILE__, __LINE__); } while (0)
#if HV_DEBUG
#define debug_assert(c) hv_assert(c)
#else
#define debug_assert(c) ((void)sizeof(!(c)))
#endif
#endif
