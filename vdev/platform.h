/*
 * The virtual PC of one VM: shared state and internal interfaces of the device models in this folder.
 *
 * Locks: `dev_lock` of each device (LOCK_RANK_VDEV) protects its registers; devices raise lines while they hold it, which takes
 * `irq_lock` (LOCK_RANK_VIRQ: PIC pair and I/O APIC), which ends in an atomic set of an IRR bit and vcpu_kick(). Both are
 * taken irqsave because timers fire in interrupt context. A local APIC has no lock: see vlapic.c.
 *
 * Each device has a struct of what a copy of the VM must have to behave as the original (X_saved), and a pair X_save() and X_load(). They are
 * called while the platform is paused and all vCPUs are parked: then nothing moves, and due times of timers can be copied as they are
 * because they are on the platform's clock, which goes on in the copy where it stood. What is the user's and not the guest's (console
 * output) is not in them. The structs never leave the hypervisor, so a load checks nothing.
 */
#ifndef HV_VDEV_PLATFORM_H
#define HV_VDEV_PLATFORM_H

#include "core/lock.h"
#include "core/thread.h"
#include "include/hv/vdev.h"
#include "lib/list.h"
#include "vm/vm.h"

extern const struct vm_platform_ops vdev_platform_ops;

/* Where the ACPI tables are: inside [0xA0000, 1 MiB), which every guest's memory map says is reserved, and in the half of it where the MP
 * table is looked for too. */
#define GUEST_ACPI_GPA 0x000f0000u
#define GUEST_ACPI_SIZE 0x10000u

#define GUEST_LAPIC_GPA 0xfee00000u
#define GUEST_IOAPIC_GPA 0xfec00000u
#define GUEST_PM1_EVENT_PORT 0x600
#define GUEST_PM1_CONTROL_PORT 0x604
#define GUEST_PM_TIMER_PORT 0x608
#define GUEST_S5_SLP_TYP 5
#define GUEST_SCI_IRQ 9
/* The generation id: 16 bytes behind the RSDP, and the I/O APIC pin that tells of a new one (vgenid.c). */
#define GUEST_GENID_OFFSET 0x40u
#define GUEST_GENID_BYTES 16u
#define GUEST_GENID_PIN 16
/* The floating pointer of the MP table, which lies behind the ACPI tables. */
#define GUEST_MP_POINTER_OFFSET 0x50u

/* ---- virtual time ------------------------------------------------------------------------------------------------- */

/*
 * A timer on the platform's own clock, which stands still while the VM is paused: after a resume everything continues where it
 * was, so there is no burst. Disarming under a device lock only clears `active` (a synchronous cancel there would
 * wait for a callback that wants the lock); the callback asks vtimer_expired() under the same lock.
 */
struct vtimer {
    struct timer timer;
    struct list_head node;
    struct platform *platform;
    uint64_t due_ns;       /* platform_now_ns() scale */
    bool active;
    void (*fn)(void *dev); /* interrupt context */
    void *dev;
};
void vtimer_init(struct vtimer *t, struct platform *p, void (*fn)(void *dev), void *dev);
void vtimer_arm(struct vtimer *t, uint64_t due_ns);
static inline void vtimer_disarm(struct vtimer *t) { t->active = false; }
void vtimer_cancel(struct vtimer *t); /* waits for a running callback: no lock that it takes may be held */
/* In the callback: true once per expiry, and the timer is inactive then. */
bool vtimer_expired(struct vtimer *t);
void vtimer_fini(struct vtimer *t);
struct vtimer_saved { uint64_t due_ns; bool active; };
void vtimer_save(const struct vtimer *t, struct vtimer_saved *out);
void vtimer_load(struct vtimer *t, const struct vtimer_saved *in); /* the end of the pause arms it */
/* The due time after `due` of a periodic timer; missed periods are skipped, not made up for. */
uint64_t vtimer_next_ns(uint64_t due_ns, uint64_t period_ns, uint64_t now_ns);
uint64_t ns_to_ticks(uint64_t ns, uint64_t hz);
uint64_t ticks_to_ns(uint64_t ticks, uint64_t hz); /* rounded up */
/* A guest that programs a shorter period gets this one: it may not drown the host in timer interrupts. */
#define VTIMER_MIN_PERIOD_NS 100000u

/* ---- local APIC ------------------------------------------------------------------------------------------------- */

enum apic_delivery { APIC_FIXED, APIC_LOWEST, APIC_SMI, APIC_RESERVED, APIC_NMI, APIC_INIT, APIC_SIPI, APIC_EXTINT };
enum vlapic_lvt { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };

struct vlapic {
    struct vcpu *vcpu;
    struct platform *platform;
    volatile bool look;            /* (a) IRR, PPR or the PIC changed since pending() last found nothing */
    bool from_pic;                 /* (v) pending()'s last answer was the PIC's */
    uint8_t masked;                /* (v) class of the request that TPR alone held back then; 0: none */
    uint64_t irr[4], tmr[4];       /* (a) */
    uint64_t isr[4];               /* (v) */
    uint32_t *pv_eoi;              /* (v) the guest's word, pinned by vm/pv.c; NULL: not enabled */
    bool pv_eoi_offered;           /* (v) its bit 0 was set and has not been looked at since */
    uint64_t base_msr, icr, tsc_deadline;
    uint32_t tpr, ldr, dfr, svr, esr, esr_pending, lvt[LVT_COUNT], initial_count, divide_config;
    uint64_t period_ns;
    struct vtimer timer;
};
struct vlapic_saved {
    uint64_t irr[4], tmr[4], isr[4], base_msr, icr, tsc_deadline, period_ns;
    uint32_t tpr, ldr, dfr, svr, esr, esr_pending, lvt[LVT_COUNT], initial_count, divide_config;
    struct vtimer_saved timer;
};
/* The paravirtual EOI's word has been taken away before. */
void vlapic_save(const struct vlapic *l, struct vlapic_saved *out);
void vlapic_load(struct vlapic *l, const struct vlapic_saved *in);
struct vlapic *vlapic_create(struct platform *p, struct vcpu *v);
void vlapic_destroy(struct vlapic *l);
void vlapic_reset(struct vlapic *l, bool power_on); /* INIT keeps the APIC base MSR */
void vlapic_resumed(struct vlapic *l);
void vlapic_tsc_changed(struct vcpu *v);
vdev_mmio_fn vlapic_mmio;
bool vlapic_rdmsr(struct vcpu *v, uint32_t msr, uint64_t *value, bool *gp);
bool vlapic_wrmsr(struct vcpu *v, uint32_t msr, uint64_t value, bool *gp);
int vlapic_pending(struct vcpu *v);
uint8_t vlapic_masked(const struct vcpu *v);
void vlapic_accept(struct vcpu *v, uint8_t vector);
bool vlapic_has_any(struct vcpu *v);
void vlapic_tpr_changed(struct vcpu *v, uint8_t cr8);
uint8_t vlapic_get_cr8(struct vcpu *v);
void vlapic_set_pv_eoi(struct vcpu *v, uint32_t *word);
bool vlapic_post(struct vcpu *v, bool nmi, uint8_t vector);
/* Sends to every vCPU (APIC_LOWEST: to one) that `dest` names. wide: dest is an x2APIC one. Any context. True: someone took it. */
bool vlapic_route(struct platform *p, uint32_t dest, bool logical, bool wide, enum apic_delivery mode, uint8_t vector, bool level);
void vlapic_pic_raised(struct platform *p); /* the PIC's INTR went up */

/* ---- PIC, I/O APIC: under irq_lock ------------------------------------------------------------------------------- */

struct vpic_chip {
    uint8_t irr, isr, imr, lines, elcr, elcr_mask, base, icw_step /* next ICW expected: 0 none, 2 3 4 */;
    uint8_t lowest;   /* priority: the IRQ with the lowest */
    bool icw4_needed, single, auto_eoi, rotate_auto, special_mask, fully_nested, read_isr, poll;
};
struct vpic { struct vpic_chip chip[2]; bool output; };
void vpic_reset(struct vpic *c);
void vpic_set_line(struct platform *p, unsigned irq, bool level);
int vpic_peek(const struct vpic *c);             /* vector the CPU would get, or -1 */
void vpic_accept(struct platform *p, uint8_t vector); /* INTA */
vdev_pio_fn vpic_pio;

#define VIOAPIC_PINS 24
struct vioapic { uint64_t redirect[VIOAPIC_PINS]; uint32_t lines; uint8_t select, id; };
void vioapic_reset(struct vioapic *a);
void vioapic_set_line(struct platform *p, unsigned pin, bool level);
void vioapic_eoi(struct platform *p, uint8_t vector); /* takes irq_lock */
vdev_mmio_fn vioapic_mmio;

/* ---- devices ---------------------------------------------------------------------------------------------------- */

struct vpit_channel {
    uint16_t count_latch;
    uint32_t reload;     /* 1..65536 (10000 in BCD) */
    uint64_t start_ns;   /* when the present count was loaded */
    uint8_t mode, access /* 1 low, 2 high, 3 both */, status_latch, low_byte;
    bool bcd, gate, null_count, loaded, write_high, read_high, latched, latched_high, status_latched;
    bool armed;          /* modes 1 and 5: a trigger came */
};
struct vpit { struct platform *platform; struct spinlock dev_lock; struct vpit_channel ch[3]; struct vtimer timer; uint8_t port61; };
struct vpit_saved { struct vpit_channel ch[3]; struct vtimer_saved timer; uint8_t port61; };
void vpit_init(struct vpit *d, struct platform *p);
void vpit_save(struct vpit *d, struct vpit_saved *out);
void vpit_load(struct vpit *d, const struct vpit_saved *in);
void vpit_reset(struct vpit *d);
vdev_pio_fn vpit_pio, vpit_port61_pio;

struct vrtc { struct platform *platform; struct spinlock dev_lock; uint8_t index, cmos[128]; int64_t offset_s /* guest's time - wall clock */;
    struct vtimer periodic, second; };
struct vrtc_saved { uint8_t index, cmos[128]; int64_t offset_s; struct vtimer_saved periodic, second; };
void vrtc_init(struct vrtc *d, struct platform *p);
void vrtc_save(struct vrtc *d, struct vrtc_saved *out);
void vrtc_load(struct vrtc *d, const struct vrtc_saved *in);
void vrtc_reset(struct vrtc *d);
vdev_pio_fn vrtc_pio;

#define VUART_RING_BYTES 16384u
#define VUART_INPUT_BYTES 256u
struct vuart {
    struct platform *platform;
    struct spinlock dev_lock;
    uint8_t ier, lcr, mcr, msr_delta, scr, dll, dlm, fcr, lsr_errors;
    bool thre_pending, line, input_refused /* (a) write_input() could not take all */;
    uint8_t input[VUART_INPUT_BYTES];
    uint32_t input_head, input_tail;      /* free-running */
    uint32_t ring_head, ring_tail;        /* free-running; head - tail <= VUART_RING_BYTES */
    uint64_t dropped;
    char *ring;                           /* (a) NULL until the guest first prints */
    struct waitq output_wait, *watcher;
};
struct vuart_saved {
    uint8_t ier, lcr, mcr, msr_delta, scr, dll, dlm, fcr, lsr_errors;
    bool thre_pending, line;
    uint32_t input_count;
    uint8_t input[VUART_INPUT_BYTES];
};
void vuart_save(struct vuart *d, struct vuart_saved *out);
void vuart_load(struct vuart *d, const struct vuart_saved *in); /* the output ring stays what it is */
void vuart_init(struct vuart *d, struct platform *p);
void vuart_fini(struct vuart *d);
void vuart_reset(struct vuart *d);
vdev_pio_fn vuart_pio;

struct vpm { struct spinlock dev_lock; uint16_t status, enable, control; };
struct vpm_saved { uint16_t status, enable, control; };
void vpm_reset(struct vpm *d);
void vpm_save(struct vpm *d, struct vpm_saved *out);
void vpm_load(struct vpm *d, const struct vpm_saved *in);
vdev_pio_fn vpm_pio;

struct vreset { struct spinlock dev_lock; uint8_t port92, cf9, kbd_command; };
struct vreset_saved { uint8_t port92, cf9, kbd_command; };
void vreset_reset(struct vreset *d);
void vreset_save(struct vreset *d, struct vreset_saved *out);
void vreset_load(struct vreset *d, const struct vreset_saved *in);
#define VDEBUGEXIT_PORT 0xf4
vdev_pio_fn vreset_port92_pio, vreset_8042_pio, vreset_pci_pio, vdebugexit_pio;

/* Builds RSDP (at offset 0), XSDT, FADT, FACS, MADT, DSDT as they stand at GUEST_ACPI_GPA, with an empty generation id at
 * GUEST_GENID_OFFSET, and the MP table. Returns bytes used, 0: does not fit. */
size_t acpi_tables_build(uint8_t *buf, size_t size, unsigned vcpus);

/* vgenid.c: an id that no VM has had. */
void vgenid_make(uint8_t id[GUEST_GENID_BYTES]);
enum dmm_fault_result vgenid_change(struct vm *vm, gfn_t *gfn);

/* ---- the VM's platform ------------------------------------------------------------------------------------------ */

struct platform {
    struct vm *vm;
    struct list_head vtimers;      /* (c) while the VM runs */
    volatile bool paused;
    uint64_t time_offset_ns;       /* platform time = time_ns() - this */
    uint64_t paused_at_ns;
    struct spinlock irq_lock;
    struct vpic pic;
    struct vioapic ioapic;
    unsigned lowest_next;          /* (a) round robin of lowest-priority delivery */
    struct vpit pit;
    struct vrtc rtc;
    struct vuart uart;
    struct vpm pm;
    struct vreset reset;
};
/* PIC, I/O APIC: as they are, they hold nothing but registers. */
struct platform_saved {
    uint64_t now_ns;
    unsigned lowest_next;
    struct vpic pic;
    struct vioapic ioapic;
    struct vpit_saved pit;
    struct vrtc_saved rtc;
    struct vuart_saved uart;
    struct vpm_saved pm;
    struct vreset_saved reset;
};
uint64_t platform_now_ns(const struct platform *p);
/* An ISA interrupt line changes: PIC input and I/O APIC pin (IRQ 0 is pin 2). Any context; takes irq_lock. */
void platform_set_isa_irq(struct platform *p, unsigned irq, bool level);
/* Splits a port access of any size into bytes for devices that are eight bits wide. */
typedef uint8_t pio_byte_fn(void *dev, uint16_t port, bool in, uint8_t val);
void pio_bytewise(void *dev, uint16_t port, unsigned size, bool in, uint32_t *val, pio_byte_fn *fn);

#endif
