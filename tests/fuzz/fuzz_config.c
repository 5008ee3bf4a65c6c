/* Any bytes as palimpsest.conf, and each line "key=value" of them as keys of `vm create`: what is accepted keeps the rules that the rest
 * of the hypervisor relies on, what is refused says where and why.
 * FUZZ-SOURCES: lib/config.c lib/cpuset.c lib/string.c */
#include <stdint.h>
#include <stdlib.h>

#include "lib/config.h"
#include "lib/string.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct config c;

static void need(bool condition)
{
    if (!condition)
        abort();
}

static bool check_file(const char *file, void *arg)
{
    need(*file && strnlen(file, CONFIG_FILE_MAX) < CONFIG_FILE_MAX && !strstr(file, ".."));
    return true;
}

static void check_vm(const struct config_vm *vm)
{
    struct config_error err;
    char name[CONFIG_NAME_MAX];
    need(config_vm_check(vm, &err) && config_name_valid(vm->name));
    need(vm->memory_bytes >= MIB(1) && vm->memory_bytes <= BIT64(46) && vm->memory_bytes % PAGE_SIZE == 0);
    need(vm->min_bytes % PAGE_SIZE == 0 && vm->max_bytes % PAGE_SIZE == 0 && vm->min_bytes <= vm->memory_bytes);
    need(vm->max_bytes <= vm->memory_bytes && vm->vcpus >= 1 && vm->vcpus <= CONFIG_MAX_VCPUS && vm->weight >= 1);
    need(vm->count >= 1 && vm->count <= CONFIG_MAX_COUNT && vm->module_count <= CONFIG_MAX_MODULES);
    need(config_instance_name(vm, vm->count - 1, name, sizeof(name)) && config_name_valid(name));
    need(vm->class <= 2 && (!vm->group[0] || config_name_valid(vm->group)));
    need(strnlen(vm->cmdline, sizeof(vm->cmdline)) < sizeof(vm->cmdline));
}

static void as_file(const char *text, size_t size)
{
    struct config_error err = {0};
    if (!config_parse(&c, text, size, &err)) {
        size_t len = strnlen(err.text, sizeof(err.text));
        need(len > 4 && len < sizeof(err.text));
        return;
    }
    need(c.vm_count <= CONFIG_MAX_VMS && c.log_level <= 3 && c.console_baud && 115200 % c.console_baud == 0);
    need(c.secure_group_count <= CONFIG_MAX_SECURE_GROUPS);
    for (uint32_t n = 0; n < c.secure_group_count; n++)
        need(config_name_valid(c.secure_groups[n]));
    for (uint32_t n = 0; n < c.vm_count; n++) {
        check_vm(&c.vms[n]);
        need(c.vms[n].line && c.vms[n].max_bytes);
    }
    config_for_each_file(&c, check_file, NULL);
}

static void as_keys(const char *text, size_t size)
{
    struct config_vm vm;
    struct config_error err = {0};
    char *copy = malloc(size + 1), *line = copy;
    memcpy(copy, text, size);
    copy[size] = 0;
    bool good = true;
    config_vm_defaults(&vm, "fuzz");
    while (line && good) { /* vm create stops at the first that is refused */
        char *next = strchr(line, '\n'), *value;
        if (next)
            *next++ = 0;
        value = strchr(line, '=');
        if (value) {
            *value++ = 0;
            good = config_set_vm_key(&vm, line, value, &err);
        }
        line = next;
    }
    if (good && config_vm_check(&vm, &err))
        check_vm(&vm);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    as_file((const char *)data, size);
    as_keys((const char *)data, size);
    return 0;
}
