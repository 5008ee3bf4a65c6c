/*
 * A virtual machine and its vCPUs as everything above the vendor code sees them.
 *
 * Field protection, per field:  (c) constant after creation   (v) the vCPU's own thread only   (l) vm->lock
 * (a) atomic, any CPU   (d) vdev locks. A vCPU is a thread whose body is vcpu_thread() (vm/run.c).
 */
#ifndef HV_VM_VM_H
#define HV_VM_VM_H

#include "core/thread.h"
#include "include/hv/dmm.h"
#include "include/hv/hvm_ops.h"
#include "include/hv/vm_exit.h"
#include "lib/config.h"
#include "lib/list.h"

enum gpr { GPR_RAX, GPR_RCX, GPR_RDX, GPR_RBX, GPR_RSP, GPR_RBP, GPR_RSI, GPR_RDI, GPR_R8, GPR_R9, GPR_R10, GPR_R11, GPR_R12, GPR_R13,
    GPR_R14, GPR_R15, GPR_COUNT };

enum vm_state { VM_CREATED, VM_RUNNING, VM_PAUSED, VM_STOPPED /* ended; vm->stop_reason */ };

enum vcpu_state { VCPU_OFFLINE /* waits for INIT-SIPI or for start */, VCPU_RUNNABLE, VCPU_HALTED, VCPU_STALLED /* no memory */, VCPU_STOPPED };

struct vm_exit_stat { uint64_t count, tsc; };

/* What KVM's paravirtual interface keeps per vCPU: vm/pv.c. */
struct pv_steal_time;
struct vcpu_pv {
    uint64_t system_time, wall_clock, steal_msr, eoi_msr; /* (v) the MSRs as written */
    uint32_t clock_version, steal_version; /* (v) */
    struct pv_steal_time *steal; /* (v) pinned; NULL: not enabled */
    uint64_t steal_ns;         /* (v) what the record says */
    uint64_t waited_ns;        /* (v) thread_wait_ns() then */
    bool steal_due;            /* (v) the thread was switched out since, pins or the image are due, or the VM is a copy that has not run yet */
    bool eoi_pinned;           /* (v) the EOI's word is */
    bool pins_due;             /* (v) pins were given up while it was parked: take them again */
    volatile bool unhalted;    /* (a) KVM_HC_KICK_CPU came: its next HLT, or the one it is in, is over */
};

struct vcpu {
    uint64_t gpr[GPR_COUNT];   /* (v) all sixteen, RSP and RAX included, valid outside hvm->run() */
    uint64_t rip, rflags;      /* (v) */
    void *hvm;                 /* (c) vendor's control structure */
    void *fpu_area;            /* (c) XSAVE image, 64-byte aligned; see vm/fpu.c */
    uint64_t guest_xcr0;       /* (v) */
    struct vm *vm;             /* (c) */
    struct dmm_space *space;   /* (c) the VM's */
    unsigned id;               /* (c) index and initial APIC id */
    volatile enum vcpu_state state; /* (a) */
    struct waitq wait;         /* woken by vcpu_kick() */
    volatile bool kick_pending;/* (a) leave the guest / stop sleeping and look around */
    volatile bool sipi_pending; volatile uint8_t sipi_vector; volatile bool init_pending; volatile bool nmi_pending; /* (a) from vlapic */
    volatile bool in_guest;    /* (a) between vcpu_entry_begin() and vcpu_entry_end() */
    volatile unsigned pcpu;    /* (a) the CPU of its last entry; whom vcpu_kick() interrupts */
    volatile uint64_t flush_gen_seen; /* (a) last generation this vCPU flushed for */
    uint64_t tsc_offset;       /* (v) */
    uint64_t dr[4];            /* (v) DR0..3; the back end loads them while DR7 arms one */
    bool dr_changed;           /* (v) since they were last loaded */
    void *vlapic;              /* (c) vdev/vlapic.c */
    bool fpu_live;             /* (v) the CPU's vector registers are this vCPU's: fpu.c */
    uint64_t tsc_aux;          /* (v) */
    struct vcpu_pv pv;
    struct vcpu_msrs *msrs;    /* (c) msr.c: registers that only software gives a meaning */
    struct { uint64_t rip; uint8_t kind, len; } len_cache[16]; /* (v) run.c */
    enum dmm_fault_result fault_result; /* (v) of the nested fault being handled */
    bool irq_check;            /* (v) something may have changed about which interrupt is to be delivered */
    uint8_t cr8_seen;          /* (v) what the vlapic knows of CR8 */
    bool irq_window;           /* (v) asked the back end for one */
    uint8_t tpr_alarm;         /* (v) as the back end has it: the class of an interrupt that CR8 holds back */
    bool wait_for_sipi;        /* (v) */
    unsigned yield_next;       /* (v) whom a spin gave way to last */
    volatile bool gave_way;    /* (v) it does not run because it spun: read by its siblings */
    bool counted;              /* (l) of the VM: in running_vcpus */
    struct vm_exit exit;       /* (v) the exit being handled */
    struct vm_exit_stat stats[VM_EXIT_KIND_COUNT]; /* (v) read by anyone */
    struct thread thread;      /* (c) */
};

struct vdev_bus;               /* include/hv/vdev.h */

struct vm {
    uint32_t id;               /* (c) never reused */
    char name[CONFIG_NAME_MAX];/* (c) */
    const struct config_vm *config; /* (c) pointer; forks share it, and it changes only by a command (make.c) */
    struct spinlock lock;      /* LOCK_RANK_VM */
    volatile enum vm_state state; /* (l) writers, (a) readers */
    char stop_reason[160];     /* (l) "guest powered off", "triple fault at rip=...", ... */
    int exit_code;             /* (l) from debug-exit; -1: none */
    struct dmm_space *space;   /* (c) */
    unsigned vcpu_count;       /* (c) */
    struct vcpu **vcpus;       /* (c) */
    volatile unsigned vcpus_made; /* (a) so many of them there are, from the first on; they can be in the guest */
    struct vdev_bus *bus;      /* (c) */
    void *hvm;                 /* (c) vendor's per-VM state */
    void *platform;            /* (c) vdev/platform.c */
    uint64_t created_ns;       /* (c) */
    uint64_t reboots;          /* (l) */
    volatile bool stop_requested, reset_requested; /* (a) */
    struct waitq state_wait;   /* woken when state changes or a vCPU parks */
    volatile unsigned running_vcpus; /* (a) vCPU threads not parked */
    struct vm_cpuid *cpuid;    /* (c) */
    uint64_t tsc_offset;       /* (l) guest TSC - TSC, of every vCPU whose guest has not set its own */
    uint64_t paused_tsc;       /* (l) TSC when time was stopped */
    volatile enum vm_generation { GENERATION_KNOWN, GENERATION_NEW, GENERATION_CHANGING } generation; /* (a) a copy: its id is to change first */
    bool load_due;             /* (l) it was reset, and its image is to be loaded before vCPU 0 enters the guest */
    uint64_t reset_ns;         /* (l) time_ns() of the last start or reset */
    bool last_life_triple_faulted; /* (l) */
    volatile bool dying;       /* (a) vm_destroy(): threads end */
    bool hvm_ready;            /* (c) */
    char reset_reason[64];     /* (l) */
    struct list_head snapshots;/* of struct vm_snapshot (vm/fork.c): commands only */
    char forked_from[CONFIG_NAME_MAX]; /* (c) "": made by itself */
    uint64_t output_lost_told; /* how many bytes `vm console` has said are lost: commands only */
    struct list_head node;     /* LOCK_RANK_VM_LIST */
};

/* ---- life cycle (vm/vm.c, make.c); console thread context: may block ------------------------------------------------ */
enum vm_result { VM_OK, VM_NO_MEMORY, VM_NAME_IN_USE, VM_NO_SUCH_FILE, VM_BAD_IMAGE, VM_BAD_STATE, VM_BAD_CONFIG, VM_LIMIT };
/* On failure *why (size >= 160) says what was wrong and where. */
enum vm_result vm_create(const struct config_vm *cfg, const char *name, struct vm **out, char *why);
enum vm_result vm_start(struct vm *vm, char *why);
enum vm_result vm_pause(struct vm *vm, char *why);    /* returns when every vCPU is parked */
enum vm_result vm_resume(struct vm *vm, char *why);
enum vm_result vm_stop(struct vm *vm, char *why);     /* forced power-off; returns when stopped */
/* Has the vCPUs' threads follow cpu_weight, cpu_cap and affinity of `cfg`, which become the VM's. */
enum vm_result vm_set_scheduling(struct vm *vm, const struct config_vm *cfg, char *why);
enum vm_result vm_destroy(struct vm *vm, char *why);  /* stops first; gives back all memory */
struct vm *vm_find(const char *name);

/* ---- copies (vm/fork.c); as above ----------------------------------------------------------------------------- */
#define VM_FORK_MAX 256u
#define VM_SNAPSHOTS_MAX 16u
/* Makes `count` VMs that are what this one, running or paused, is now, and start unless `paused`. PREFIXn with the lowest free numbers n;
 * prefix NULL: NAME-f. All or none; this VM goes on in any case. */
enum vm_result vm_fork(struct vm *vm, const char *prefix, unsigned count, bool paused, struct vm **children, char *why);
enum vm_result vm_snapshot(struct vm *vm, const char *name, char *why);
/* A VM that has stopped runs again. */
enum vm_result vm_restore(struct vm *vm, const char *name, char *why);
enum vm_result vm_snapshot_delete(struct vm *vm, const char *name, char *why);
struct vm_snapshot_info { const char *name; uint64_t taken_ns /* time_ns() */, own_pages /* that nobody else holds */; };
/* Oldest first; index from 0. False: there are no more. */
bool vm_snapshot_info(struct vm *vm, unsigned index, struct vm_snapshot_info *out);
void vm_for_each(bool (*cb)(struct vm *vm, void *arg), void *arg);
const char *vm_state_name(enum vm_state s);
const char *vcpu_state_name(enum vcpu_state s);
/* From vCPU threads and device models (any context but interrupt): ask for the end of the VM. First reason wins. */
void vm_request_stop(struct vm *vm, int exit_code, const char *fmt, ...) PRINTF_LIKE(3, 4);
void vm_request_reset(struct vm *vm, const char *why);
/* Memory of a VM that not every VM needs, and that is its overhead from then on: *slot, unless another vCPU was faster; NULL still: there is
 * none. In whole pages. vCPU threads. */
void vm_alloc_late(struct vm *vm, void **slot, size_t bytes);
/* Set once at boot by core/main.c. */
void vm_init(const struct hvm_ops *ops, const struct boot_info *bi);
const struct hvm_ops *hvm(void);

/* ---- vCPU (vm/run.c) -------------------------------------------------------------------------------------- */
void vcpu_kick(struct vcpu *v);          /* any context: wake it if it sleeps, make it exit if it runs */
/* Around the entry: vm/shortcut.h. vm/fpu.c: the guest's vector registers into the CPU; interrupts off. */
void fpu_load(struct vcpu *v);
/* vm/cpuid.c: EAX..EDX of the guest from its EAX, ECX. */
void cpuid_answer(struct vcpu *v);
/* vm/regs.c: general registers, RIP, RFLAGS and DR0..3 as INIT leaves them, and *r likewise for the back end to take. */
void vcpu_init_registers(struct vcpu *v, struct vcpu_sregs *r);
void vcpu_inject_exception(struct vcpu *v, uint8_t vector, bool has_error, uint32_t error_code);
void vcpu_inject_gp(struct vcpu *v);     /* #GP(0) */
void vcpu_inject_ud(struct vcpu *v);
void vcpu_inject_pf(struct vcpu *v, uint64_t cr2, uint32_t error_code);
void vcpu_advance_rip(struct vcpu *v, unsigned len); /* also clears the interrupt shadow and RF */
/* Length of the instruction at RIP (hardware's, or decoded from guest memory). 0: could not be fetched; an exception
 * was injected or the VM stopped, and the caller just returns to the guest. */
unsigned vcpu_insn_len(struct vcpu *v);

/* ---- guest virtual addresses (vm/guest_walk.c) ------------------------------------------------------------ */
enum guest_walk_result { GUEST_WALK_OK, GUEST_WALK_FAULT /* *pf_error, inject #PF */, GUEST_WALK_BAD_GPA };
/* Translates by the guest's own tables in its current mode, with its permission bits. `access`: enum dmm_access;
 * `user`: CPL 3. */
enum guest_walk_result guest_walk(struct vcpu *v, uint64_t gva, unsigned access, bool user, uint64_t *gpa, uint32_t *pf_error);

/* ---- interrupts towards a vCPU: supplied by vdev/ -------------------------------------------------------------- */
struct vm_irq_ops {
    /* Highest-priority deliverable vector of this vCPU right now (TPR considered), or -1. */
    int (*pending)(struct vcpu *v);
    /* The class of what only TPR held back when pending() last looked; 0: nothing. */
    uint8_t (*masked)(const struct vcpu *v);
    void (*accept)(struct vcpu *v, uint8_t vector); /* the guest takes it: IRR -> ISR */
    bool (*has_any)(struct vcpu *v);                /* anything pending that can wake HLT */
    void (*tpr_changed)(struct vcpu *v, uint8_t cr8);
    uint8_t (*get_cr8)(struct vcpu *v);
    /* KVM's paravirtual EOI: the guest's word, which stays where it is until another or NULL is set. vCPU's thread, or it is parked. */
    void (*set_pv_eoi)(struct vcpu *v, uint32_t *word);
    /* An edge-triggered fixed interrupt, or an NMI. Any context. False: its APIC is off. */
    bool (*post)(struct vcpu *v, bool nmi, uint8_t vector);
};
struct vm_platform_ops { /* set once by core/main.c */
    bool (*create)(struct vm *vm, char *why);   /* devices, without a state before reset() or load(); ACPI tables not yet */
    void (*destroy)(struct vm *vm);
    void (*reset)(struct vm *vm);                /* as at power-on; vCPUs parked */
    void (*pause)(struct vm *vm, bool paused);   /* stops/starts virtual timers */
    bool (*vcpu_create)(struct vcpu *v);         /* likewise */
    void (*vcpu_destroy)(struct vcpu *v);
    void (*vcpu_reset)(struct vcpu *v);
    /* Writes firmware tables (ACPI) into guest memory; returns the gpa of the RSDP, 0 if there is none. */
    uint64_t (*write_firmware_tables)(struct vm *vm);
    /* What a copy of a VM must have of its devices, and of a vCPU's local APIC, in so many bytes. The VM is paused and its vCPUs are parked. */
    size_t saved_bytes, vcpu_saved_bytes;
    void (*save)(struct vm *vm, void *out);
    void (*load)(struct vm *vm, const void *in);
    void (*vcpu_save)(struct vcpu *v, void *out);
    void (*vcpu_load)(struct vcpu *v, const void *in);
    /* Gives the guest another generation id and tells it, before any of its vCPUs runs. RETRY: done; else what the page at *gfn waits for. */
    enum dmm_fault_result (*change_generation)(struct vm *vm, gfn_t *gfn);
    /* MSRs the platform owns (APIC base, x2APIC range, TSC deadline). False: not mine. *gp: inject #GP. */
    bool (*rdmsr)(struct vcpu *v, uint32_t msr, uint64_t *value, bool *gp);
    bool (*wrmsr)(struct vcpu *v, uint32_t msr, uint64_t value, bool *gp);
    void (*tsc_changed)(struct vcpu *v);         /* the guest has set its TSC; vCPU's thread */
    struct vm_irq_ops irq;
};
void vm_set_platform(const struct vm_platform_ops *ops);
const struct vm_platform_ops *vm_platform(void);

#endif
