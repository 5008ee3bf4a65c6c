/*
 * palimpsest.conf, read twice: by the loader, which must know the files to load, and by core, which starts the VMs. The
 * keys of a VM are a table of names and setters, which `vm create NAME key=value` uses as well, so that the two
 * cannot drift apart. A line is copied out, checked for bytes that are no text, trimmed, and only then looked at.
 */
#include "lib/config.h"
#include "lib/string.h"

#define LINE_MAX_BYTES (CONFIG_CMDLINE_MAX + 64)

static PRINTF_LIKE(2, 3) bool fail(struct config_error *err, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->text, sizeof(err->text), fmt, ap);
    va_end(ap);
    return false;
}

bool config_name_valid(const char *name)
{
    size_t len = strnlen(name, CONFIG_NAME_MAX);
    if (len == 0 || len == CONFIG_NAME_MAX || name[0] == '-')
        return false;
    for (; *name; name++)
        if (!((*name >= 'a' && *name <= 'z') || (*name >= 'A' && *name <= 'Z') || (*name >= '0' && *name <= '9') ||
              *name == '_' || *name == '.' || *name == '-'))
            return false;
    return true;
}

void config_vm_defaults(struct config_vm *vm, const char *name)
{
    memset(vm, 0, sizeof(*vm));
    str_copy(vm->name, sizeof(vm->name), name);
    vm->memory_bytes = MIB(128);
    vm->max_bytes = 0; /* until config_vm_check(): as much as memory */
    vm->vcpus = 1;
    vm->weight = 100;
    vm->cpu_weight = 100;
    str_copy(vm->affinity, sizeof(vm->affinity), "all");
    vm->count = 1;
    vm->autostart = true;
}

void config_defaults(struct config *c)
{
    memset(c, 0, sizeof(*c));
    c->log_level = 2;
    c->console_baud = 115200;
}

/* ---- values ---------------------------------------------------------------------------------------------------- */

static bool set_size(uint64_t *out, const char *key, const char *value, struct config_error *err)
{
    if (!str_to_size(value, out))
        return fail(err, "%s: \"%.40s\" is no size (like 512M or 2G)", key, value);
    if (*out & (PAGE_SIZE - 1))
        return fail(err, "%s: %.40s is not a multiple of 4K", key, value);
    if (*out > BIT64(46))
        return fail(err, "%s: %.40s is more than 64T", key, value);
    return true;
}

static bool set_number(uint32_t *out, uint64_t min, uint64_t max, const char *key, const char *value, struct config_error *err)
{
    uint64_t v;
    if (!str_to_u64(value, &v))
        return fail(err, "%s: \"%.40s\" is no number", key, value);
    if (v < min || v > max)
        return fail(err, "%s: %.40s is not between %llu and %llu", key, value, (unsigned long long)min, (unsigned long long)max);
    *out = (uint32_t)v;
    return true;
}

static bool set_flag(bool *out, const char *key, const char *value, struct config_error *err)
{
    bool yes = !strcmp(value, "yes") || !strcmp(value, "on") || !strcmp(value, "true") || !strcmp(value, "1");
    bool no = !strcmp(value, "no") || !strcmp(value, "off") || !strcmp(value, "false") || !strcmp(value, "0");
    if (!yes && !no)
        return fail(err, "%s: \"%.40s\" is neither yes nor no", key, value);
    *out = yes;
    return true;
}

/* May stand in quotes, as at the console and in tools/mkimage. */
static bool set_file(char *out, const char *key, const char *value, struct config_error *err)
{
    size_t len = strlen(value);
    bool quoted = len > 1 && value[0] == '"' && value[len - 1] == '"';
    if (!quoted && value[0] == '"')
        return fail(err, "%s: %.40s: the quote is not closed", key, value);
    value += quoted;
    len -= 2 * quoted;
    bool rooted = len && (value[0] == '/' || value[0] == '\\');
    value += rooted;
    len -= rooted;
    if (!len)
        return fail(err, "%s: no file named", key);
    if (strstr(value, ".."))
        return fail(err, "%s: \"%.40s\": .. is not allowed", key, value);
    if (len >= CONFIG_FILE_MAX)
        return fail(err, "%s: file name longer than %d characters", key, CONFIG_FILE_MAX - 1);
    memcpy(out, value, len);
    out[len] = 0;
    for (; *out; out++)
        if (*out == '\\')
            *out = '/';
    return true;
}

static bool set_module(struct config_vm *vm, const char *key, const char *value, struct config_error *err)
{
    if (vm->module_count == CONFIG_MAX_MODULES)
        return fail(err, "%s: more than %d modules", key, CONFIG_MAX_MODULES);
    struct config_module *m = &vm->modules[vm->module_count];
    const char *quote = value[0] == '"' ? strchr(value + 1, '"') : NULL;
    const char *space = strchr(quote ? quote : value, ' ');
    char file[CONFIG_FILE_MAX + 3]; /* with quotes, and what is to be found too long */
    size_t len = space ? (size_t)(space - value) : strlen(value);
    if (len >= sizeof(file))
        return fail(err, "%s: file name longer than %d characters", key, CONFIG_FILE_MAX - 1);
    memcpy(file, value, len);
    file[len] = 0;
    while (space && *space == ' ')
        space++;
    if (!set_file(m->file, key, file, err))
        return false;
    if (!str_copy(m->args, sizeof(m->args), space ? space : ""))
        return fail(err, "%s: arguments longer than %zu characters", key, sizeof(m->args) - 1);
    vm->module_count++;
    return true;
}

bool config_affinity(const char *text, unsigned vcpu, struct cpu_set *out)
{
    char part[CONFIG_AFFINITY_MAX];
    for (unsigned n = 0;; n++) {
        const char *slash = strchr(text, '/');
        size_t len = slash ? (size_t)(slash - text) : strlen(text);
        if (len >= sizeof(part))
            return false;
        memcpy(part, text, len);
        part[len] = 0;
        if (n == vcpu || !slash)
            return cpu_set_parse(out, part);
        text = slash + 1;
    }
}

static bool set_affinity(struct config_vm *vm, const char *key, const char *value, struct config_error *err)
{
    struct cpu_set set;
    for (unsigned n = 0; n < CONFIG_MAX_VCPUS; n++)
        if (!config_affinity(value, n, &set))
            return fail(err, "%s: \"%.40s\" is no list of CPUs (like 0-3,5 for all vCPUs, or 0/1/2-3 for one after the other)", key, value);
    if (!str_copy(vm->affinity, sizeof(vm->affinity), value))
        return fail(err, "%s: longer than %d characters", key, CONFIG_AFFINITY_MAX - 1);
    return true;
}

static bool set_group(char *group, const char *key, const char *value, struct config_error *err)
{
    if (!config_name_valid(value))
        return fail(err, "%s: \"%.40s\" is no name (letters, digits, _ . -; at most %d)", key, value, CONFIG_NAME_MAX - 1);
    str_copy(group, CONFIG_NAME_MAX, value);
    return true;
}

static bool set_class(uint32_t *class, const char *value, struct config_error *err)
{
    static const char *const names[] = {"best-effort", "insured", "strict"};
    for (uint32_t n = 0; n < ARRAY_SIZE(names); n++)
        if (!strcmp(value, names[n])) {
            *class = n;
            return true;
        }
    return fail(err, "class: \"%.40s\" is none of strict, insured, best-effort", value);
}

enum vm_key { KEY_MEMORY, KEY_MIN, KEY_MAX, KEY_VCPUS, KEY_WEIGHT, KEY_CPU_WEIGHT, KEY_CPU_CAP, KEY_AFFINITY, KEY_COUNT,
    KEY_AUTOSTART, KEY_DEBUG_EXIT, KEY_GROUP, KEY_CLASS, KEY_KERNEL, KEY_INITRD,
    KEY_CMDLINE, KEY_MODULE, KEY_NONE };

static const char *const vm_key_names[] = {
    [KEY_MEMORY] = "memory", [KEY_MIN] = "min", [KEY_MAX] = "max", [KEY_VCPUS] = "vcpus", [KEY_WEIGHT] = "weight",
    [KEY_CPU_WEIGHT] = "cpu-weight", [KEY_CPU_CAP] = "cpu-cap", [KEY_AFFINITY] = "affinity",
    [KEY_COUNT] = "count", [KEY_AUTOSTART] = "autostart", [KEY_DEBUG_EXIT] = "debug-exit",
    [KEY_GROUP] = "group", [KEY_CLASS] = "class", [KEY_KERNEL] = "kernel",
    [KEY_INITRD] = "initrd", [KEY_CMDLINE] = "cmdline", [KEY_MODULE] = "module",
};

static enum vm_key find_key(const char *key)
{
    for (unsigned k = 0; k < ARRAY_SIZE(vm_key_names); k++)
        if (!strcmp(key, vm_key_names[k]))
            return (enum vm_key)k;
    return KEY_NONE;
}

bool config_set_vm_key(struct config_vm *vm, const char *key, const char *value, struct config_error *err)
{
    err->line = 0;
    switch (find_key(key)) {
    case KEY_MEMORY:
        if (!set_size(&vm->memory_bytes, key, value, err))
            return false;
        return vm->memory_bytes >= MIB(1) ? true : fail(err, "memory: %.40s is less than 1M", value);
    case KEY_MIN: return set_size(&vm->min_bytes, key, value, err);
    case KEY_MAX:
        if (!set_size(&vm->max_bytes, key, value, err))
            return false;
        return vm->max_bytes ? true : fail(err, "max: must be more than 0");
    case KEY_VCPUS: return set_number(&vm->vcpus, 1, CONFIG_MAX_VCPUS, key, value, err);
    case KEY_WEIGHT: return set_number(&vm->weight, 1, 10000, key, value, err);
    case KEY_CPU_WEIGHT: return set_number(&vm->cpu_weight, 1, 10000, key, value, err);
    case KEY_CPU_CAP: return set_number(&vm->cpu_cap, 0, 100, key, value, err);
    case KEY_AFFINITY: return set_affinity(vm, key, value, err);
    case KEY_COUNT: return set_number(&vm->count, 1, CONFIG_MAX_COUNT, key, value, err);
    case KEY_AUTOSTART: return set_flag(&vm->autostart, key, value, err);
    case KEY_DEBUG_EXIT: return set_flag(&vm->debug_exit, key, value, err);
    case KEY_GROUP: return set_group(vm->group, key, value, err);
    case KEY_CLASS: return set_class(&vm->class, value, err);
    case KEY_KERNEL: return set_file(vm->kernel, key, value, err);
    case KEY_INITRD: return set_file(vm->initrd, key, value, err);
    case KEY_CMDLINE:
        if (!str_copy(vm->cmdline, sizeof(vm->cmdline), value))
            return fail(err, "cmdline: longer than %d characters", CONFIG_CMDLINE_MAX - 1);
        return true;
    case KEY_MODULE: return set_module(vm, key, value, err);
    case KEY_NONE: break;
    }
    return fail(err, "unknown key \"%.32s\"; a VM has: memory min max vcpus weight cpu-weight cpu-cap affinity count autostart debug-exit group "
                "class kernel initrd cmdline module",
                key);
}

bool config_vm_check(const struct config_vm *vm, struct config_error *err)
{
    err->line = vm->line;
    uint64_t max = vm->max_bytes ? vm->max_bytes : vm->memory_bytes;
    if (!config_name_valid(vm->name))
        return fail(err, "\"%.32s\" is no VM name (letters, digits, _ . -; at most %d)", vm->name, CONFIG_NAME_MAX - 1);
    if (!vm->kernel[0])
        return fail(err, "vm %s: no kernel given", vm->name);
    if (max > vm->memory_bytes)
        return fail(err, "vm %s: max is more than memory", vm->name);
    if (vm->min_bytes > max)
        return fail(err, "vm %s: min is more than max", vm->name);
    char last[CONFIG_NAME_MAX];
    if (!config_instance_name(vm, vm->count - 1, last, sizeof(last)))
        return fail(err, "vm %s: the name is too long for count = %u", vm->name, vm->count);
    return true;
}

bool config_instance_name(const struct config_vm *vm, uint32_t i, char *out, size_t size)
{
    int n = vm->count == 1 ? snprintf(out, size, "%s", vm->name) : snprintf(out, size, "%s%u", vm->name, i);
    return n > 0 && (size_t)n < size;
}

/* ---- the file --------------------------------------------------------------------------------------------------- */

enum section { SECTION_NONE, SECTION_HYPERVISOR, SECTION_VM };

struct parser {
    struct config *c;
    struct config_error *err;
    enum section section;
    struct config_vm *vm;      /* SECTION_VM */
    uint32_t line;
    uint32_t keys_seen;        /* bit per enum vm_key, or per hypervisor key */
    bool hypervisor_seen;
};

/* Names with blanks between them. */
static bool set_secure_groups(struct parser *p, const char *value)
{
    char name[CONFIG_NAME_MAX];
    while (*value) {
        size_t len = 0;
        while (value[len] && value[len] != ' ' && value[len] != '\t')
            len++;
        if (len >= sizeof(name))
            return fail(p->err, "secure-groups: \"%.40s\" is too long for a name", value);
        memcpy(name, value, len);
        name[len] = 0;
        if (p->c->secure_group_count == CONFIG_MAX_SECURE_GROUPS)
            return fail(p->err, "secure-groups: more than %d groups", CONFIG_MAX_SECURE_GROUPS);
        if (!set_group(p->c->secure_groups[p->c->secure_group_count++], "secure-groups", name, p->err))
            return false;
        for (value += len; *value == ' ' || *value == '\t'; value++)
            ;
    }
    return p->c->secure_group_count ? true : fail(p->err, "secure-groups: no name given");
}

static bool set_hypervisor_key(struct parser *p, const char *key, const char *value)
{
    static const char *const levels[] = {"error", "warn", "info", "debug"};
    uint32_t bit = !strcmp(key, "log") ? 1 : !strcmp(key, "console") ? 2 : !strcmp(key, "secure-groups") ? 4 : 0;
    if (!strcmp(key, "file")) {
        if (p->c->file_count == CONFIG_MAX_FILES)
            return fail(p->err, "file: more than %d files", CONFIG_MAX_FILES);
        return set_file(p->c->files[p->c->file_count++], key, value, p->err);
    }
    if (!bit)
        return fail(p->err, "unknown key \"%.32s\" in [hypervisor]; it has: log console file secure-groups", key);
    if (p->keys_seen & bit)
        return fail(p->err, "%s is given twice", key);
    p->keys_seen |= bit;
    if (bit == 4)
        return set_secure_groups(p, value);
    if (bit == 1) {
        for (uint32_t i = 0; i < ARRAY_SIZE(levels); i++)
            if (!strcmp(value, levels[i])) {
                p->c->log_level = i;
                return true;
            }
        return fail(p->err, "log: \"%.40s\" is none of error, warn, info, debug", value);
    }
    if (strncmp(value, "ttyS0", 5) || (value[5] && value[5] != ','))
        return fail(p->err, "console: \"%.40s\" is not ttyS0 or ttyS0,BAUD", value);
    if (!value[5])
        return true;
    if (!set_number(&p->c->console_baud, 300, 115200, "console", value + 6, p->err))
        return false;
    return 115200 % p->c->console_baud == 0 ? true : fail(p->err, "console: a 16550 cannot make %u baud", p->c->console_baud);
}

static bool set_key(struct parser *p, const char *key, const char *value)
{
    if (p->section == SECTION_NONE)
        return fail(p->err, "\"%.32s\" stands before the first [section]", key);
    if (p->section == SECTION_HYPERVISOR)
        return set_hypervisor_key(p, key, value);
    enum vm_key k = find_key(key);
    if (k != KEY_NONE && k != KEY_MODULE) {
        if (p->keys_seen & (1u << k))
            return fail(p->err, "%s is given twice in [vm %s]", key, p->vm->name);
        p->keys_seen |= 1u << k;
    }
    bool ok = config_set_vm_key(p->vm, key, value, p->err);
    p->err->line = p->line; /* it knows of no lines */
    return ok;
}

/* `a` could have an instance called `name`. */
static bool instance_named(const struct config_vm *a, const char *name)
{
    char buf[CONFIG_NAME_MAX];
    for (uint32_t i = 0; i < a->count; i++)
        if (config_instance_name(a, i, buf, sizeof(buf)) && !strcmp(buf, name))
            return true;
    return false;
}

static bool finish_vm(struct parser *p)
{
    struct config_vm *vm = p->vm;
    if (!vm)
        return true;
    p->vm = NULL;
    if (!vm->max_bytes)
        vm->max_bytes = vm->memory_bytes;
    if (!config_vm_check(vm, p->err))
        return false;
    for (uint32_t v = 0; v < p->c->vm_count; v++) {
        struct config_vm *other = &p->c->vms[v];
        char name[CONFIG_NAME_MAX];
        for (uint32_t i = 0; other != vm && i < vm->count; i++)
            if (config_instance_name(vm, i, name, sizeof(name)) && instance_named(other, name)) {
                p->err->line = vm->line;
                return fail(p->err, "vm %s: the name is already made by line %u", name, other->line);
            }
    }
    return true;
}

static bool begin_section(struct parser *p, char *head)
{
    size_t len = strlen(head);
    if (!finish_vm(p))
        return false;
    p->err->line = p->line;
    p->keys_seen = 0;
    if (head[len - 1] != ']')
        return fail(p->err, "section \"%.40s\" has no closing ]", head);
    head[len - 1] = 0;
    head++;
    if (!strcmp(head, "hypervisor")) {
        if (p->hypervisor_seen)
            return fail(p->err, "[hypervisor] is given twice");
        p->hypervisor_seen = true;
        p->section = SECTION_HYPERVISOR;
        return true;
    }
    if (strncmp(head, "vm ", 3))
        return fail(p->err, "unknown section [%.40s]; there are [hypervisor] and [vm NAME]", head);
    for (head += 3; *head == ' '; head++)
        ;
    if (!config_name_valid(head))
        return fail(p->err, "\"%.40s\" is no VM name (letters, digits, _ . -; at most %d)", head, CONFIG_NAME_MAX - 1);
    if (p->c->vm_count == CONFIG_MAX_VMS)
        return fail(p->err, "more than %d [vm] sections", CONFIG_MAX_VMS);
    p->vm = &p->c->vms[p->c->vm_count++];
    config_vm_defaults(p->vm, head);
    p->vm->line = p->line;
    p->section = SECTION_VM;
    return true;
}

static char *trim(char *s)
{
    while (*s == ' ' || *s == '\t')
        s++;
    size_t len = strlen(s);
    while (len && (s[len - 1] == ' ' || s[len - 1] == '\t' || s[len - 1] == '\r'))
        s[--len] = 0;
    return s;
}

static bool parse_line(struct parser *p, char *line)
{
    char *s = trim(line);
    if (!*s || *s == '#' || *s == ';')
        return true;
    if (*s == '[')
        return begin_section(p, s);
    char *eq = strchr(s, '=');
    if (!eq)
        return fail(p->err, "\"%.40s\" is neither key = value, [section], nor # comment", s);
    *eq = 0;
    char *key = trim(s);
    if (!*key)
        return fail(p->err, "no key before =");
    return set_key(p, key, trim(eq + 1));
}

bool config_parse(struct config *c, const char *text, size_t len, struct config_error *err)
{
    struct parser p = {.c = c, .err = err};
    char line[LINE_MAX_BYTES];
    config_defaults(c);
    if (len >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) { /* an editor's UTF-8 mark */
        text += 3;
        len -= 3;
    }
    while (len) {
        const char *nl = memchr(text, '\n', len);
        size_t n = nl ? (size_t)(nl - text) : len;
        err->line = ++p.line;
        if (n >= sizeof(line))
            return fail(err, "the line is longer than %zu bytes", sizeof(line) - 1);
        for (size_t i = 0; i < n; i++)
            if ((unsigned char)text[i] < 0x20 && text[i] != '\t' && !(text[i] == '\r' && i + 1 == n))
                return fail(err, "byte 0x%02x in column %zu is no text", (unsigned char)text[i], i + 1);
        memcpy(line, text, n);
        line[n] = 0;
        if (!parse_line(&p, line))
            return false;
        n += nl != NULL;
        text += n;
        len -= n;
    }
    return finish_vm(&p);
}

/* ---- the files it names ------------------------------------------------------------------------------------------- */

static const char *file_of(const struct config_vm *vm, unsigned i)
{
    return i == 0 ? vm->kernel : i == 1 ? vm->initrd : vm->modules[i - 2].file;
}

static bool named_before(const struct config *c, uint32_t v, unsigned i, const char *file)
{
    for (uint32_t w = 0; w <= v; w++)
        for (unsigned j = 0; j < 2 + c->vms[w].module_count && (w < v || j < i); j++)
            if (!strcmp(file_of(&c->vms[w], j), file))
                return true;
    return false;
}

static bool listed_before(const struct config *c, uint32_t end, const char *file)
{
    for (uint32_t n = 0; n < end; n++)
        if (!strcmp(c->files[n], file))
            return true;
    return false;
}

void config_for_each_file(const struct config *c, bool (*cb)(const char *file, void *arg), void *arg)
{
    for (uint32_t n = 0; n < c->file_count; n++)
        if (!listed_before(c, n, c->files[n]) && !cb(c->files[n], arg))
            return;
    for (uint32_t v = 0; v < c->vm_count; v++)
        for (unsigned i = 0; i < 2 + c->vms[v].module_count; i++) {
            const char *file = file_of(&c->vms[v], i);
            if (*file && !listed_before(c, c->file_count, file) && !named_before(c, v, i, file) && !cb(file, arg))
                return;
        }
}
