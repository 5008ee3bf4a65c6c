/* What held a CPU up: locks held and interrupts off for too long. Debug builds. */
#ifndef HV_CORE_SLOW_H
#define HV_CORE_SLOW_H
#include "include/hv/types.h"
enum slow_kind { SLOW_LOCK, SLOW_IRQS_OFF, SLOW_HANDLER, SLOW_KIND_COUNT };
#define SLOW_LOCK_NS UINT64_C(5000000)      /* a lock held with interrupts on */
#define SLOW_IRQS_OFF_NS UINT64_C(1000000)  /* with interrupts off; an interrupt's handler */
#define SLOW_SHOUT_NS UINT64_C(200000000)   /* worth a line in the log: no software CPU's host looks away that long as a rule */
/* `name` held up its CPU for so many TSC ticks, beginning at `pc`. Any context; waits for nothing. */
void slow_note(enum slow_kind kind, const char *name, const void *pc, uint64_t tsc_ticks);
/* Logs places that were at SLOW_SHOUT_NS or beyond, each again only when it has doubled. A thread without locks. */
void slow_report(void);
#endif
