/*
 * The configuration as the loaders see it: only a list of files. It is parsed here to learn them, and core parses the text again. An
 * error stops the boot, for there is a reader in front of the machine now and perhaps none later.
 */
#include "boot/image.h"
#include "lib/config.h"
#include "lib/string.h"

static void need(struct boot_info *bi, const char *section, const char *key, const char *name)
{
    if (!*name)
        return;
    for (uint32_t i = 0; i < bi->file_count; i++)
        if (strcmp(bi->files[i].name, name) == 0)
            return;
    loader_need_file(bi, section, key, name);
}

static void need_all(struct boot_info *bi, const struct config *c)
{
    for (uint32_t i = 0; i < c->vm_count; i++) {
        const struct config_vm *vm = &c->vms[i];
        char section[CONFIG_NAME_MAX + 4];
        snprintf(section, sizeof(section), "vm %s", vm->name);
        need(bi, section, "kernel", vm->kernel);
        need(bi, section, "initrd", vm->initrd);
        for (uint32_t j = 0; j < vm->module_count; j++)
            need(bi, section, "module", vm->modules[j].file);
    }
    for (uint32_t i = 0; i < c->file_count; i++)
        need(bi, "hypervisor", "file", c->files[i]);
}

void loader_read_config(struct boot_info *bi)
{
    struct config_error err = {0};
    struct config *c = loader_keep(sizeof(*c), "the configuration");
    config_defaults(c);
    if (!config_parse(c, (const char *)bi->config_hpa, bi->config_size, &err)) {
        if (err.line)
            loader_print(CONFIG_PATH ":%u: %s", err.line, err.text);
        else
            loader_print(CONFIG_PATH ": %s", err.text);
        loader_halt("the configuration has an error");
    }
    need_all(bi, c);
    loader_free(c, sizeof(*c));
}
