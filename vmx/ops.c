/*
 * One round trip into the guest, and the back end's list of operations.
 *
 * Translations are tagged twice (SDM 3, 29.4): what comes from EPT alone by the table's root, what comes from the guest's own
 * paging by its VPID too. INVEPT for the root forgets both kinds, and is due when the space's generation moved (mm/dmm took
 * something away) or the vCPU comes from another CPU, where it may have left translations long ago. The guest's own side is stale
 * when one of its control registers was written for it; that costs one step of a counter: take a VPID that nobody has used since the
 * last INVVPID of all, and make that one when they run out. Without VPID every entry empties that side by itself.
 * The two exits that guests cause by the million, CPUID and first touches, are answered between two entries (vm/shortcut.h).
 *
 * The space's generation is read after the vCPU counts as in the guest: whoever moves it later sees the vCPU there and
 * interrupts it, whoever moved it earlier is seen here.
 */
#include "vmx/vmx.h"

#include "core/log.h"
#include "include/hv/dmm.h"
#include "lib/string.h"
#include "vm/shortcut.h"
#include "x86/idt.h"
#include "x86/percpu.h"

#define VPID_COUNT 0x10000u /* 0 is the hypervisor's */

/* 27.3.1.4: these are 0 in RFLAGS, and bit 1 is 1 */
#define RFLAGS_LEGAL UINT64_C(0x3f7fd5)

__attribute__((noinline)) static void begin_vpids_again(struct vmx_cpu *c)
{
    c->next_vpid = 1;
    c->vpid_generation++;
    invvpid(INVVPID_ALL, &(struct vmx_invalidation){0});
}

static void take_vpid(struct vmx_cpu *c)
{
    if (unlikely(c->next_vpid == VPID_COUNT))
        begin_vpids_again(c);
    vmwrite(VMCS_VPID, c->next_vpid++);
}

/* After the space was frozen (a fork, a snapshot) the root is another; or logging is to begin or end, which costs no look of its own this way. */
__attribute__((noinline)) static void renew_nested(struct vmx_vcpu *s, uint64_t root)
{
    __atomic_exchange_n(&s->ept_root, root, __ATOMIC_SEQ_CST); /* before vmx_log_update() looks: see log.c */
    s->eptp.what = root | vmx_features()->eptp_bits;
    vmwrite(VMCS_EPTP, s->eptp.what);
    vmx_log_update(s);
}

static inline void forget_nested(struct vcpu *v, struct vmx_vcpu *s)
{
    uint64_t root = dmm_space_root_hpa(v->space);
    if (unlikely(root != s->ept_root))
        renew_nested(s, root);
    invept(vmx_features()->invept_type, &s->eptp);
}

/* Whatever changes CPUs comes by here first: what it left there is of long ago, of both kinds. */
static inline void forget_linear(struct vcpu *v, struct vmx_vcpu *s, struct vmx_cpu *c)
{
    if (!s->vpid_generation) {
        v->flush_gen_seen = 0;
        if (c->dr_owner == v)
            c->dr_owner = NULL;
    }
    if (vmx_features()->vpid)
        take_vpid(c);
    s->vpid_generation = c->vpid_generation;
    s->flush_linear = false;
}

static inline void prepare_translation(struct vcpu *v, struct vmx_vcpu *s, struct vmx_cpu *c)
{
    uint64_t generation = dmm_space_flush_generation(v->space);
    if (unlikely(s->flush_linear || s->vpid_generation != c->vpid_generation))
        forget_linear(v, s, c);
    if (unlikely(v->flush_gen_seen != generation)) {
        forget_nested(v, s);
        v->flush_gen_seen = generation;
    }
}

/* An exit leaves DR7 without any breakpoint armed, so the guest's DR0..3 may stay in the registers while we run. */
static void load_breakpoints(struct vcpu *v, struct vmx_cpu *c)
{
    if (likely(!(vmread(VMCS_GUEST_DR7) & 0xff)) || (c->dr_owner == v && !v->dr_changed))
        return;
    write_dr0(v->dr[0]);
    write_dr1(v->dr[1]);
    write_dr2(v->dr[2]);
    write_dr3(v->dr[3]);
    v->dr_changed = false;
    c->dr_owner = v;
}

static void load_registers(struct vcpu *v, struct vmx_vcpu *s)
{
    if (v->rip != s->rip)
        vmwrite(VMCS_GUEST_RIP, v->rip);
    if (v->gpr[GPR_RSP] != s->rsp)
        vmwrite(VMCS_GUEST_RSP, v->gpr[GPR_RSP]);
    if (v->rflags != s->rflags)
        vmwrite(VMCS_GUEST_RFLAGS, (v->rflags & RFLAGS_LEGAL) | RFLAGS_FIXED1);
    if (read_cr2() != s->cr2)
        write_cr2(s->cr2);
}

static void save_registers(struct vcpu *v, struct vmx_vcpu *s)
{
    s->cr2 = read_cr2();
    v->rip = s->rip = vmread(VMCS_GUEST_RIP);
    v->gpr[GPR_RSP] = s->rsp = vmread(VMCS_GUEST_RSP);
    v->rflags = s->rflags = vmread(VMCS_GUEST_RFLAGS);
}

/* The NMI that ended the run blocks further ones until an IRET: its handler's, which is called as the CPU would have. */
static void take_nmi(void)
{
    if (VMX_EVENT_TYPE(vmread(VMCS_EXIT_INTERRUPTION)) == VMX_EVENT_NMI)
        asm volatile("int %0" :: "i"(X86_NMI) : "memory");
}

/* The controls or our own state were refused: the guest has not run. One VM is lost, the others need not be. */
static void report_refusal(struct vcpu *v, enum vmx_entry_result r, struct vm_exit *out)
{
    uint64_t error = r == VMX_ENTRY_FAILED ? vmread(VMCS_INSTRUCTION_ERROR) : 0;
    log_error("vmx: vm%u.vcpu%u: %s failed: %s", v->vm->id, v->id, vmx_of(v)->launched ? "VMRESUME" : "VMLAUNCH",
              r == VMX_ENTRY_FAILED ? vmx_error_name((uint32_t)error) : "no current VMCS");
    *out = (struct vm_exit){.kind = VM_EXIT_INVALID_STATE, .raw_code = error};
}

/* True: answered, enter again. False: whatever is done twice then, save_registers(), may be. */
bool vmx_exited_cpuid(struct vcpu *v, struct vmx_vcpu *s)
{
    uint64_t rflags = vmread(VMCS_GUEST_RFLAGS);
    v->rip = vmread(VMCS_GUEST_RIP);
    if (!vcpu_shortcut_cpuid(v, rflags, (unsigned)vmread(VMCS_EXIT_INSTRUCTION_LENGTH)))
        return false;
    vmwrite(VMCS_GUEST_RIP, v->rip);
    vmx_clear_shadow();
    vmx_arm_timer(s, rflags);
    return true;
}

static inline bool ask_dmm(struct vcpu *v, uint64_t q)
{
    _Static_assert(VMX_EPT_WRITE == DMM_WRITE && VMX_EPT_EXEC << 2 == DMM_EXEC, "bits that are just moved");
    unsigned access = DMM_READ | (unsigned)(q & VMX_EPT_WRITE) | (unsigned)(q & VMX_EPT_EXEC) << 2;
    if ((q & (VMX_EPT_LINEAR_VALID | VMX_EPT_FINAL)) == VMX_EPT_LINEAR_VALID)
        access |= DMM_WALK;
    return vcpu_shortcut_fault(v, gpa_to_gfn(vmread(VMCS_GUEST_PHYSICAL_ADDRESS)), access);
}

/* An EPT violation: resolved with interrupts on. True: enter again; what the VMCS has of registers has not been read. False: the long way, which does
 * all this again but for asking DMM. The timer alone depends on what the guest has done since the last entry. */
bool vmx_exited_fault(struct vcpu *v, struct vmx_vcpu *s)
{
    uint64_t q = vmread(VMCS_EXIT_QUALIFICATION);
    if (unlikely((vmread(VMCS_IDT_VECTORING) & VMX_EVENT_VALID) || q & VMX_EPT_NMI_UNBLOCKED))
        return false;
    s->event = 0;
    vcpu_entry_end(v);
    sti();
    bool resolved = ask_dmm(v, q);
    cli();
    if (unlikely(!resolved || !vcpu_entry_begin(v))) {
        s->fault_told = true;
        s->fault_resolved = resolved;
        return false;
    }
    prepare_translation(v, s, vmx_this_cpu());
    vmx_arm_timer(s, vmread(VMCS_GUEST_RFLAGS));
    return true;
}

static inline bool fault_resolved(struct vcpu *v, struct vmx_vcpu *s)
{
    if (likely(s->fault_told)) {
        s->fault_told = false;
        return s->fault_resolved;
    }
    return ask_dmm(v, vmread(VMCS_EXIT_QUALIFICATION));
}

static inline enum vmx_entry_result enter(struct vcpu *v, struct vmx_vcpu *s)
{
    struct vmx_cpu *c = vmx_this_cpu();
    prepare_translation(v, s, c);
    load_breakpoints(v, c);
    vmx_lazy_load(s);
    vmx_inject_entering(v);
    load_registers(v, s);
    enum vmx_entry_result r = vmx_enter(v, s, s->launched);
    if (unlikely(r != VMX_ENTRY_EXITED))
        return r;
    if (likely(!(s->reason & VMX_REASON_ENTRY_FAILURE)))
        s->launched = true;
    save_registers(v, s);
    vmx_inject_exited(v);
    if (unlikely(s->reason == VMX_REASON_EXCEPTION_OR_NMI))
        take_nmi();
    return VMX_ENTRY_EXITED;
}

void vmx_run(struct vcpu *v, struct vm_exit *out)
{
    struct vmx_vcpu *s = vmx_of(v);
    enum vmx_entry_result r;
    vmx_current(v);
    if (unlikely(!vmx_load_pdptes(v))) {
        out->kind = VM_EXIT_INTR;
        return;
    }
    do {
        cli();
        if (unlikely(!vcpu_entry_begin(v))) {
            sti();
            out->kind = VM_EXIT_INTR;
            return;
        }
        r = enter(v, s);
        vcpu_entry_end(v);
        sti();
    } while (likely(r == VMX_ENTRY_EXITED) && s->reason == VMX_REASON_EPT_VIOLATION && fault_resolved(v, s));
    if (likely(r == VMX_ENTRY_EXITED))
        vmx_decode_exit(v, out);
    else
        report_refusal(v, r, out);
}

/* ---- reports ---------------------------------------------------------------------------------------------------------------- */

/* The fields that entries are refused over, by name. */
static void dump_fields(void (*line)(const char *))
{
    static const struct { enum vmcs_field field; const char *name; } shown[] = {
#define SHOWN(name) {VMCS_##name, #name}
        SHOWN(PIN_CONTROLS), SHOWN(PROC_CONTROLS), SHOWN(PROC2_CONTROLS), SHOWN(EXIT_CONTROLS), SHOWN(ENTRY_CONTROLS), SHOWN(EPTP),
        SHOWN(GUEST_CR0), SHOWN(GUEST_CR4), SHOWN(INTERRUPTIBILITY), SHOWN(ACTIVITY_STATE), SHOWN(PENDING_DEBUG), SHOWN(GUEST_RFLAGS),
        SHOWN(ENTRY_INTERRUPTION), SHOWN(IDT_VECTORING), SHOWN(EXIT_INTERRUPTION), SHOWN(GUEST_PHYSICAL_ADDRESS), SHOWN(INSTRUCTION_ERROR),
#undef SHOWN
    };
    char text[160];
    size_t used = 0;
    for (size_t n = 0; n < ARRAY_SIZE(shown); n++) {
        uint64_t value = 0;
        bool ok = vmread_safe(shown[n].field, &value);
        used += (size_t)snprintf(text + used, sizeof(text) - used, ok ? "%s %#lx  " : "%s ?  ", shown[n].name, value);
        if (n % 3 == 2 || n == ARRAY_SIZE(shown) - 1) {
            line(text);
            used = 0;
        }
    }
}

void vmx_dump(struct vcpu *v, void (*line)(const char *))
{
    char text[160];
    vmx_current(v);
    snprintf(text, sizeof(text), "vmcs: exit %s (%#x) qualification %#lx", vmx_reason_name(VMX_REASON_BASIC(vmx_of(v)->reason)),
             vmx_of(v)->reason, vmread(VMCS_EXIT_QUALIFICATION));
    line(text);
    if (vmx_of(v)->reason & VMX_REASON_ENTRY_FAILURE) {
        vmx_entry_failure(vmx_of(v)->reason, vmread(VMCS_EXIT_QUALIFICATION), text);
        line(text);
    }
    dump_fields(line);
}

const struct hvm_ops hvm_ops_vmx = {
    .name = "vmx",
    .p2m_format = &p2m_format_ept,
#define OP(ret, fn, args) .fn = vmx_##fn,
    HVM_OPS(OP)
#undef OP
};
