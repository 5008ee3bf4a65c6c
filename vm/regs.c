/* A vCPU's registers as a whole: as INIT leaves them, and in reports. Which of them a back end keeps where is its own business. */
#include "vm/vm_internal.h"

#include "lib/string.h"
#include "x86/cpu.h"

/* APM 2, 14.1.3 "processor initialization state"; SDM 3, table 10-1, column INIT. Limits and types as real mode has them. */
void vcpu_init_registers(struct vcpu *v, struct vcpu_sregs *r)
{
    enum { DATA = 0x0093, CODE = 0x009b, LDT = 0x0082, TSS = 0x008b };
    *r = (struct vcpu_sregs){.cr0 = CR0_ET | CR0_CD | CR0_NW, .dr6 = 0xffff0ff0, .dr7 = 0x400, .pat = PAT_RESET};
    for (unsigned n = SEG_ES; n <= SEG_GS; n++)
        r->seg[n] = (struct vcpu_seg){.attr = DATA, .limit = 0xffff};
    r->seg[SEG_CS] = (struct vcpu_seg){.selector = 0xf000, .attr = CODE, .limit = 0xffff, .base = 0xffff0000};
    r->seg[SEG_LDTR] = (struct vcpu_seg){.attr = LDT, .limit = 0xffff};
    r->seg[SEG_TR] = (struct vcpu_seg){.attr = TSS, .limit = 0xffff};
    r->gdtr.limit = r->idtr.limit = 0xffff;

    memset(v->gpr, 0, sizeof(v->gpr));
    v->gpr[GPR_RDX] = cpuid(CPUID_LEAF_FEATURES, 0).eax; /* family, model, stepping */
    v->rip = 0xfff0;
    v->rflags = RFLAGS_FIXED1;
    memset(v->dr, 0, sizeof(v->dr));
    v->dr_changed = true;
}

void vcpu_dump(struct vcpu *v, void (*line)(const char *))
{
    static const char *const gprs[GPR_COUNT] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                                "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};
    static const char *const segs[SEG_COUNT] = {"es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"};
    struct vcpu_sregs r;
    char text[160];
    hvm()->get_sregs(v, &r);
    snprintf(text, sizeof(text), "rip %016lx rflags %08lx cpl %u", v->rip, v->rflags, hvm()->cpl(v));
    line(text);
    for (unsigned n = 0; n < GPR_COUNT; n += 4) {
        snprintf(text, sizeof(text), "%-3s %016lx %-3s %016lx %-3s %016lx %-3s %016lx", gprs[n], v->gpr[n], gprs[n + 1], v->gpr[n + 1],
                 gprs[n + 2], v->gpr[n + 2], gprs[n + 3], v->gpr[n + 3]);
        line(text);
    }
    for (unsigned n = 0; n < SEG_COUNT; n++) {
        snprintf(text, sizeof(text), "%-4s %04x base %016lx limit %08x attr %04x", segs[n], r.seg[n].selector, r.seg[n].base, r.seg[n].limit,
                 r.seg[n].attr);
        line(text);
    }
    snprintf(text, sizeof(text), "gdtr %016lx/%04x idtr %016lx/%04x efer %lx dr6 %08lx dr7 %08lx", r.gdtr.base, r.gdtr.limit, r.idtr.base,
             r.idtr.limit, r.efer, r.dr6, r.dr7);
    line(text);
    snprintf(text, sizeof(text), "cr0 %08lx cr2 %016lx cr3 %016lx cr4 %08lx cr8 %lx", r.cr0, r.cr2, r.cr3, r.cr4, r.cr8);
    line(text);
    hvm()->dump(v, line);
}
