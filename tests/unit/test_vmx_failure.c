/* TEST-SOURCES: vmx/failure.c */
/* What a refusal of VMX is called: each number of SDM 3, 31.4 and 27.8 has its words, and each way for VMXON to fail is told from the others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include "vmx/failure.h"

static char why[VMX_WHY_BYTES];

static const char *vmxon(enum vmx_outcome how, uint64_t error)
{
    memset(why, 'x', sizeof(why));
    vmx_vmxon_failure(how, error, why);
    assert_non_null(memchr(why, 0, sizeof(why)));
    return why;
}

static const char *entry(uint32_t reason, uint64_t qualification)
{
    memset(why, 'x', sizeof(why));
    vmx_entry_failure(reason, qualification, why);
    assert_non_null(memchr(why, 0, sizeof(why)));
    return why;
}

static void three_ways_for_vmxon_to_fail(void **state)
{
    assert_string_equal(vmxon(VMX_SUCCEEDED, 0), "");
    assert_non_null(strstr(vmxon(VMX_FAIL_INVALID, 15), "VMXON: VMfailInvalid"));
    assert_null(strstr(why, "15")); /* there is no error number */
    assert_string_equal(vmxon(VMX_FAIL_VALID, 15), "VMXON: VM-instruction error 15, VMXON executed in VMX root operation");
    assert_string_equal(vmxon(VMX_FAIL_VALID, 99), "VMXON: VM-instruction error 99, unknown VM-instruction error");
    assert_non_null(strstr(vmxon(VMX_FAULTED, 0), "VMXON: #GP"));
}

static void instruction_errors_by_number(void **state)
{
    assert_string_equal(vmx_error_name(7), "VM entry with invalid control field(s)");
    assert_string_equal(vmx_error_name(8), "VM entry with invalid host-state field(s)");
    assert_string_equal(vmx_error_name(12), "VMREAD/VMWRITE from/to unsupported VMCS component");
    assert_string_equal(vmx_error_name(28), "Invalid operand to INVEPT/INVVPID");
    for (uint32_t n = 0; n < 40; n++) /* those that the table lacks */
        assert_int_equal(!strcmp(vmx_error_name(n), "unknown VM-instruction error"), n == 0 || n == 14 || n == 21 || n == 27 || n > 28);
}

static void entries_that_fail_after_the_controls(void **state)
{
    assert_string_equal(entry(0x80000021, 0), "VM-entry failure due to invalid guest state");
    assert_string_equal(entry(0x80000021, 2), "VM-entry failure due to invalid guest state: loading the PDPTEs");
    assert_string_equal(entry(0x80000021, 3), "VM-entry failure due to invalid guest state: an NMI while blocking by STI");
    assert_string_equal(entry(0x80000021, 4), "VM-entry failure due to invalid guest state: the VMCS link pointer");
    assert_string_equal(entry(0x80000021, 1), "VM-entry failure due to invalid guest state: unknown qualification");
    assert_string_equal(entry(0x80000022, 3), "VM-entry failure due to MSR loading: entry 3 of the VM-entry MSR-load area");
    assert_string_equal(entry(0x80000029, 0), "VM-entry failure due to machine-check event");
    assert_string_equal(entry(0x80000001, UINT64_MAX), "VM-entry failure of unknown reason 1");
    entry(UINT32_MAX, UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(three_ways_for_vmxon_to_fail), cmocka_unit_test(instruction_errors_by_number),
                                       cmocka_unit_test(entries_that_fail_after_the_controls)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
