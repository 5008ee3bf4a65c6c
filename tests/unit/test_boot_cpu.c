/* Which CPUs the loader takes, and what it says of the others. No MSR is read that the CPU has not got: that would end in the firmware's handler. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "boot/cpu.c"

struct cpu { uint32_t leaf1_ecx, leaf1_edx, ext_ecx, ext_edx, ext_max, svm_edx; uint64_t cr4, vm_cr, feature_control, procbased, procbased2; };

enum { LM = 1 << 29, NX = 1 << 20, APIC = 1 << 9, SVM = 1 << 2, VMX = 1 << 5 };
static const struct cpu amd = {.leaf1_edx = APIC, .ext_ecx = SVM, .ext_edx = LM | NX, .ext_max = 0x8000001f, .svm_edx = 1};
static const struct cpu intel = {.leaf1_ecx = VMX, .leaf1_edx = APIC, .ext_edx = LM | NX, .ext_max = 0x80000008,
                                 .procbased = 0xf7f9fffe0401e172, .procbased2 = 0x000000ff00000000};
static struct cpu now;
static jmp_buf halted;
static char said[256];

static struct cpuid_regs cpuid(uint32_t leaf)
{
    switch (leaf) {
    case 1: return (struct cpuid_regs){.ecx = now.leaf1_ecx, .edx = now.leaf1_edx};
    case 0x80000000: return (struct cpuid_regs){.eax = now.ext_max};
    case 0x80000001: return (struct cpuid_regs){.ecx = now.ext_ecx, .edx = now.ext_edx};
    case 0x8000000a: return (struct cpuid_regs){.edx = now.svm_edx};
    default: fail_msg("leaf %#x", leaf); return (struct cpuid_regs){0};
    }
}

static uint64_t rdmsr(uint32_t msr)
{
    if (msr == 0xc0010114 && (now.ext_ecx & SVM))
        return now.vm_cr;
    if (msr == 0x3a && (now.leaf1_ecx & VMX))
        return now.feature_control;
    if (msr == 0x482 && (now.leaf1_ecx & VMX))
        return now.procbased;
    if (msr == 0x48b && (now.leaf1_ecx & VMX) && now.procbased >> 63)
        return now.procbased2;
    fail_msg("rdmsr %#x: #GP", msr);
    return 0;
}

static uint64_t read_cr4(void) { return now.cr4; }

void loader_halt(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(said, sizeof(said), fmt, ap);
    va_end(ap);
    longjmp(halted, 1);
}

/* What it says; "" if it goes on. */
static const char *check(struct cpu c)
{
    now = c;
    said[0] = 0;
    if (!setjmp(halted))
        loader_check_cpu();
    return said;
}

#define WITH(base, ...) ({ struct cpu c_ = base; __VA_ARGS__; c_; })
#define assert_says(cpu, text) assert_non_null(strstr(check(cpu), text))

static void good_ones(void **state)
{
    assert_string_equal(check(amd), "");
    assert_string_equal(check(intel), "");
    assert_string_equal(check(WITH(amd, c_.vm_cr = 1 << 3)), ""); /* locked, and on */
    for (unsigned control = 0; control < 8; control++) /* unlocked, or locked and on outside SMX */
        if (!(control & 1) || (control & 4))
            assert_string_equal(check(WITH(intel, c_.feature_control = control)), "");
}

static void locked_by_firmware(void **state)
{
    assert_says(WITH(amd, c_.vm_cr = 1 << 4), "firmware has disabled it (VM_CR.SVMDIS)");
    assert_says(WITH(amd, c_.vm_cr = 3 << 3), "firmware has disabled it (VM_CR.SVMDIS)");
    assert_says(WITH(intel, c_.feature_control = 1), "firmware has locked it off (IA32_FEATURE_CONTROL)");
    assert_says(WITH(intel, c_.feature_control = 3), "firmware has locked it off"); /* on inside SMX only */
}

static void not_there(void **state)
{
    assert_says(WITH(amd, c_.svm_edx = 0), "no nested paging");
    assert_says(WITH(amd, c_.ext_max = 0x80000008), "no nested paging");
    assert_says(WITH(intel, c_.procbased &= ~BIT64(63)), "Intel VMX but no EPT");
    assert_says(WITH(intel, c_.procbased2 &= ~BIT64(33)), "Intel VMX but no EPT");
    assert_says(WITH(intel, c_.procbased2 &= ~BIT64(39)), "Intel VMX and EPT but no unrestricted guest");
    assert_string_equal(check(WITH(intel, c_.procbased2 = BIT64(33) | BIT64(39))), "");
    assert_says(WITH(amd, c_.ext_ecx = 0), "neither AMD SVM nor Intel VMX");
    assert_null(strstr(check(WITH(intel, c_.leaf1_ecx = 0)), "hypervisor"));
    assert_says(WITH(intel, c_.leaf1_ecx = 1u << 31), "under another hypervisor");
    assert_says(WITH(amd, c_.ext_edx = NX), "no long mode");
    assert_says(WITH(amd, c_.ext_max = 0x80000000), "no long mode");
    assert_says(WITH(amd, c_.ext_edx = LM), "no NX pages");
    assert_says(WITH(intel, c_.leaf1_edx = 0), "no local APIC");
    assert_says(WITH(intel, c_.cr4 = 1 << 12), "5-level paging");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(good_ones), cmocka_unit_test(locked_by_firmware), cmocka_unit_test(not_there)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
