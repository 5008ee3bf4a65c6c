/* VMX instructions for host tests: the current VMCS is an array, and writing a read-only field or one that is not listed ends the test. */
#ifndef HV_VMX_INSN_H
#define HV_VMX_INSN_H

#include <stdlib.h>
#include "include/hw/vmcs.h"
#include "x86/cpu.h"

extern uint64_t host_vmcs[0x8000];

static inline bool host_vmcs_has(unsigned field)
{
    switch (field) {
#define F(name, width, type, index, number) case number: return true;
        VMCS_FIELDS(F)
#undef F
    default: return false;
    }
}

static inline uint64_t vmread(enum vmcs_field field)
{
    if (!host_vmcs_has(field))
        abort();
    return host_vmcs[field];
}

static inline bool vmread_safe(enum vmcs_field field, uint64_t *value)
{
    *value = host_vmcs[field];
    return true;
}

/* As the CPU keeps it: cut to the field's width. */
static inline void vmwrite(enum vmcs_field field, uint64_t value)
{
    if (!host_vmcs_has(field) || ((unsigned)field >> 10 & 3) == VMCS_EXIT_INFO)
        abort();
    unsigned width = (unsigned)field >> 13 & 3;
    host_vmcs[field] = width == VMCS_W16 ? (uint16_t)value : width == VMCS_W32 ? (uint32_t)value : value;
}

#endif
