/* palimpsest.conf: every key, every complaint with its line, files named once, and mutations of a good file that must neither crash
 * nor leave a configuration that breaks its own rules.
 * TEST-SOURCES: lib/config.c lib/cpuset.c lib/string.c */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "lib/config.h"
#include "lib/string.h"

static struct config c;
static struct config_error err;

static bool parse(const char *text)
{
    memset(&err, 0xff, sizeof(err));
    size_t len = strlen(text);
    char *exact = malloc(len ? len : 1); /* no terminator: a read past the end is caught */
    memcpy(exact, text, len);
    bool ok = config_parse(&c, exact, len, &err);
    free(exact);
    return ok;
}

static const char full[] =
    "# comment\r\n"
    "; another\n"
    "\n"
    "[hypervisor]\n"
    "  log = debug  \n"
    "\tconsole=ttyS0,9600\n"
    "file = spare\n"
    "secure-groups = tenants  x.y\n"
    "[vm alpha]\n"
    "memory = 512M\n"
    "min = 64M\n"
    "max = 256M\n"
    "vcpus = 4\n"
    "weight = 10000\n"
    "autostart = no\n"
    "debug-exit = on\n"
    "group = x.y\n"
    "class = strict\n"
    "kernel = /guests\\a.elf\n"
    "initrd = root.img\n"
    "cmdline = a=b  c = \"d\" # kept\n"
    "module = m1\n"
    "module = m2   with  arguments = 1\n"
    "[vm  b-eta_1.x]\n"
    "kernel = k\n"
    "count = 3"; /* no newline at the end */

static void test_full(void **state)
{
    assert_true(parse(full));
    assert_int_equal(c.log_level, 3);
    assert_int_equal(c.console_baud, 9600);
    assert_int_equal(c.vm_count, 2);
    const struct config_vm *a = &c.vms[0], *b = &c.vms[1];
    assert_string_equal(a->name, "alpha");
    assert_int_equal(c.secure_group_count, 2);
    assert_string_equal(c.secure_groups[0], "tenants");
    assert_string_equal(c.secure_groups[1], "x.y");
    assert_int_equal(a->line, 9);
    assert_int_equal(a->memory_bytes, MIB(512));
    assert_int_equal(a->min_bytes, MIB(64));
    assert_int_equal(a->max_bytes, MIB(256));
    assert_int_equal(a->vcpus, 4);
    assert_int_equal(a->weight, 10000);
    assert_int_equal(a->count, 1);
    assert_false(a->autostart);
    assert_true(a->debug_exit);
    assert_string_equal(a->group, "x.y");
    assert_int_equal(a->class, 2);
    assert_string_equal(a->kernel, "guests/a.elf");
    assert_string_equal(a->initrd, "root.img");
    assert_string_equal(a->cmdline, "a=b  c = \"d\" # kept");
    assert_int_equal(a->module_count, 2);
    assert_string_equal(a->modules[0].file, "m1");
    assert_string_equal(a->modules[0].args, "");
    assert_string_equal(a->modules[1].file, "m2");
    assert_string_equal(a->modules[1].args, "with  arguments = 1");
    assert_string_equal(b->name, "b-eta_1.x");
    assert_int_equal(b->memory_bytes, MIB(128));
    assert_int_equal(b->max_bytes, MIB(128));
    assert_int_equal(b->min_bytes, 0);
    assert_int_equal(b->vcpus, 1);
    assert_int_equal(b->weight, 100);
    assert_true(b->autostart);
    assert_false(b->debug_exit);
    char name[CONFIG_NAME_MAX];
    assert_true(config_instance_name(b, 2, name, sizeof(name)));
    assert_string_equal(name, "b-eta_1.x2");
}

/* A file's name may stand in quotes; the command line is the guest's, quotes and all. */
#define VM "[vm a]\nkernel = k\n" /* two good lines, the third is the wrong one */

static void test_quoted_files(void **state)
{
    assert_true(parse("[hypervisor]\nfile = \"spare\"\n[vm a]\nkernel = \"/guests\\a.elf\"\ninitrd = \"root image\"\nmodule = \"m\" \"x\"\n"
                      "cmdline = \"quiet\"\n"));
    assert_string_equal(c.files[0], "spare");
    assert_string_equal(c.vms[0].kernel, "guests/a.elf");
    assert_string_equal(c.vms[0].initrd, "root image");
    assert_string_equal(c.vms[0].modules[0].file, "m");
    assert_string_equal(c.vms[0].modules[0].args, "\"x\"");
    assert_string_equal(c.vms[0].cmdline, "\"quiet\"");
    assert_true(parse(VM "module = \"m n\" x y\nmodule = \"\\o\"\n"));
    assert_string_equal(c.vms[0].modules[0].file, "m n");
    assert_string_equal(c.vms[0].modules[0].args, "x y");
    assert_string_equal(c.vms[0].modules[1].file, "o");
    assert_false(parse("[vm a]\nkernel = \"\"\n"));
    assert_non_null(strstr(err.text, "no file named"));
}

static void test_defaults(void **state)
{
    static const char *const nothing[] = {"", "\n", "   ", "# only\n#comments", "\xef\xbb\xbf# a mark\n", "\r\n\r\n"};
    for (unsigned n = 0; n < ARRAY_SIZE(nothing); n++) {
        assert_true(parse(nothing[n]));
        assert_int_equal(c.vm_count, 0);
        assert_int_equal(c.log_level, 2);
        assert_int_equal(c.console_baud, 115200);
    }
    assert_true(parse("[hypervisor]\nsecure-groups = a  b-2\tc\n[vm v]\nkernel = k\ngroup = web\nclass = insured\n[vm w]\nkernel = k\n"));
    assert_int_equal(c.secure_group_count, 3);
    assert_string_equal(c.secure_groups[1], "b-2");
    assert_string_equal(c.vms[0].group, "web");
    assert_int_equal(c.vms[0].class, 1);
    assert_string_equal(c.vms[1].group, "");
    assert_int_equal(c.vms[1].class, 0);
    assert_true(parse("[hypervisor]\nconsole = ttyS0\n"));
    assert_int_equal(c.console_baud, 115200);
}

#define TEN "0123456789"
#define HUNDRED TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN

static const struct { const char *text; uint32_t line; const char *says; } wrong[] = {
    {"memory = 1M\n", 1, "before the first [section]"},
    {"\n\nnonsense\n", 3, "neither key = value"},
    {"[hypervisor]\n = 3\n", 2, "no key"},
    {"[hypervisor\nlog = info\n", 1, "no closing ]"},
    {"[]\n", 1, "unknown section []"},
    {"[\n", 1, "no closing ]"},
    {"[vm]\n", 1, "unknown section [vm]"},
    {"[vm ]\n", 1, "no VM name"},
    {"[vmx a]\n", 1, "unknown section [vmx a]"},
    {"[vm a b]\nkernel=k\n", 1, "\"a b\" is no VM name"},
    {"[vm -a]\nkernel=k\n", 1, "is no VM name"},
    {"[vm " TEN TEN TEN "12]\nkernel = k\n", 1, "is no VM name"},
    {"[hypervisor]\n[hypervisor]\n", 2, "[hypervisor] is given twice"},
    {"[hypervisor]\nlogg = info\n", 2, "unknown key \"logg\""},
    {"[hypervisor]\nlog = loud\n", 2, "\"loud\" is none of"},
    {"[hypervisor]\nlog = info\nlog = info\n", 3, "log is given twice"},
    {"[hypervisor]\nconsole = ttyS1\n", 2, "\"ttyS1\" is not ttyS0"},
    {"[hypervisor]\nconsole = ttyS0,fast\n", 2, "is no number"},
    {"[hypervisor]\nconsole = ttyS0,200000\n", 2, "not between"},
    {"[hypervisor]\nconsole = ttyS0,100000\n", 2, "cannot make 100000 baud"},
    {"[hypervisor]\nfile =\n", 2, "no file named"},
    {"[hypervisor]\nfile = \\\n", 2, "file: no file named"},
    {VM "initrd = /\n", 3, "initrd: no file named"},
    {"[hypervisor]\nsecure-groups =\n", 2, "no name given"},
    {"[hypervisor]\nsecure-groups = a b/c\n", 2, "\"b/c\" is no name"},
    {"[hypervisor]\nsecure-groups = a\nsecure-groups = b\n", 3, "given twice"},
    {"[hypervisor]\nsecure-groups = a b c d e f g h i j k l m n o p q\n", 2, "more than 16 groups"},
    {"[hypervisor]\nsecure-groups = " TEN TEN TEN TEN "\n", 2, "too long"},
    {VM "group = a b\n", 3, "\"a b\" is no name"},
    {VM "group =\n", 3, "\"\" is no name"},
    {VM "class = gold\n", 3, "\"gold\" is none of"},
    {VM "class = strict\nclass = strict\n", 4, "class is given twice"},
    {"[hypervisor]\nfile = ok\nfile = ../x\n", 3, ".. is not allowed"},
    {VM "file = x\n", 3, "unknown key \"file\""},
    {"[vm a]\nmemory = 1M\n\n[vm b]\nkernel = k\n", 1, "vm a: no kernel given"},
    {"\n[vm a]\n", 2, "vm a: no kernel given"},
    {VM "kernel = l\n", 3, "kernel is given twice in [vm a]"},
    {VM "colour = red\n", 3, "unknown key \"colour\""},
    {VM "memory = \n", 3, "is no size"},
    {VM "memory = 5K\n", 3, "not a multiple of 4K"},
    {VM "memory = 512K\n", 3, "less than 1M"},
    {VM "memory = 65T\n", 3, "more than 64T"},
    {VM "memory = 99999999999T\n", 3, "is no size"},
    {VM "max = 0\n", 3, "more than 0"},
    {VM "max = 256M\n", 1, "max is more than memory"},
    {VM "min = 256M\n", 1, "min is more than max"},
    {VM "min = 3\n", 3, "not a multiple"},
    {VM "vcpus = 0\n", 3, "not between 1 and 64"},
    {VM "vcpus = 65\n", 3, "not between 1 and 64"},
    {VM "vcpus = many\n", 3, "is no number"},
    {VM "weight = 0\n", 3, "not between 1 and 10000"},
    {VM "count = 0\n", 3, "not between 1 and 256"},
    {VM "count = 257\n", 3, "not between"},
    {VM "autostart = perhaps\n", 3, "neither yes nor no"},
    {VM "debug-exit = 2\n", 3, "neither yes nor no"},
    {"[vm a]\nkernel =\n", 2, "kernel: no file named"},
    {"[vm a]\nkernel = a/../b\n", 2, ".. is not allowed"},
    {"[vm a]\nkernel = " HUNDRED "0123456789xy\n", 2, "longer than 111"},
    {VM "module = " HUNDRED "0123456789xyz args\n", 3, "longer than 111"},
    {VM "module =\n", 3, "no file named"},
    {VM "module = m " HUNDRED HUNDRED HUNDRED "\n", 3, "arguments longer"},
    {VM "module=m\nmodule=m\nmodule=m\nmodule=m\nmodule=m\nmodule=m\nmodule=m\nmodule=m\nmodule=m\n", 11, "more than 8 modules"},
    {VM "module = \"m n\n", 3, "module: \"m: the quote is not closed"},
    {"[vm a]\nkernel = \"\n", 2, "kernel: \": the quote is not closed"},
    {VM TEN TEN TEN TEN " = 1\n", 3, "class kernel initrd cmdline module"},
    {"[vm a]\rkernel = k\r", 1, "byte 0x0d in column 7"},
    {VM "\r\rcpu-cap = 1\r\n", 3, "byte 0x0d in column 1"},
    {VM "cmdline = \x01\n", 3, "byte 0x01 in column 11"},
    {VM "#\x7f\x1b\n", 3, "byte 0x1b in column 3"},
    {"[vm a]\nkernel=k\n[vm a]\nkernel=k\n", 3, "already made by line 1"},
    {"[vm a1]\nkernel=k\n[vm a]\ncount = 2\nkernel=k\n", 3, "vm a1: the name is already made by line 1"},
    {"[vm " TEN TEN TEN "1]\nkernel = k\ncount = 2\n", 1, "too long for count = 2"},
};

static void test_every_complaint(void **state)
{
    for (unsigned n = 0; n < ARRAY_SIZE(wrong); n++) {
        if (parse(wrong[n].text))
            fail_msg("accepted: %s", wrong[n].text);
        if (err.line != wrong[n].line || !strstr(err.text, wrong[n].says))
            fail_msg("%s-> line %u: %s; expected line %u: ...%s...", wrong[n].text, err.line, err.text, wrong[n].line, wrong[n].says);
    }
}

static void test_long(void **state)
{
    static char text[70 * 40 + 5000];
    char *p = text;
    for (unsigned n = 0; n < CONFIG_MAX_VMS; n++)
        p += sprintf(p, "[vm v%u]\nkernel = k\n", n);
    assert_true(parse(text));
    assert_int_equal(c.vm_count, CONFIG_MAX_VMS);
    sprintf(p, "[vm last]\nkernel = k\n");
    assert_false(parse(text));
    assert_int_equal(err.line, 2 * CONFIG_MAX_VMS + 1);
    assert_non_null(strstr(err.text, "more than 64 [vm]"));

    p = text + sprintf(text, "[hypervisor]\n");
    for (unsigned n = 0; n < CONFIG_MAX_FILES; n++)
        p += sprintf(p, "file = f%u\n", n);
    assert_true(parse(text));
    assert_int_equal(c.file_count, CONFIG_MAX_FILES);
    sprintf(p, "file = last\n");
    assert_false(parse(text));
    assert_int_equal(err.line, CONFIG_MAX_FILES + 2);

    for (unsigned len = CONFIG_CMDLINE_MAX - 2; len < CONFIG_CMDLINE_MAX + 300; len++) {
        p = text + sprintf(text, VM "cmdline = ");
        memset(p, 'x', len);
        p[len] = 0;
        bool ok = parse(text);
        assert_int_equal(ok, len < CONFIG_CMDLINE_MAX);
        assert_int_equal(ok ? strlen(c.vms[0].cmdline) : err.line, ok ? len : 3);
    }
}

static void test_names(void **state)
{
    static const char *const good[] = {"a", "0", "A-b_c.d", TEN TEN TEN "x"};
    static const char *const bad[] = {"", "-a", "a b", "a/b", "\xc3\xa4", TEN TEN TEN "xy", "a\n"};
    for (unsigned n = 0; n < ARRAY_SIZE(good); n++)
        assert_true(config_name_valid(good[n]));
    for (unsigned n = 0; n < ARRAY_SIZE(bad); n++)
        assert_false(config_name_valid(bad[n]));
}

static void test_console_keys(void **state)
{
    struct config_vm vm;
    config_vm_defaults(&vm, "x");
    assert_false(config_vm_check(&vm, &err));
    assert_non_null(strstr(err.text, "no kernel"));
    assert_true(config_set_vm_key(&vm, "kernel", "k", &err));
    assert_true(config_vm_check(&vm, &err));
    assert_true(config_set_vm_key(&vm, "memory", "64M", &err));
    assert_true(config_set_vm_key(&vm, "max", "32M", &err) && vm.max_bytes == MIB(32));
    static const char *const classes[] = {"best-effort", "insured", "strict"};
    for (unsigned n = 0; n < ARRAY_SIZE(classes); n++)
        assert_true(config_set_vm_key(&vm, "class", classes[n], &err) && vm.class == n);
    assert_true(config_set_vm_key(&vm, "group", TEN TEN TEN "x", &err));
    assert_false(config_set_vm_key(&vm, "group", TEN TEN TEN "xy", &err)); /* and what was given before stays */
    assert_string_equal(vm.group, TEN TEN TEN "x");
    assert_true(config_vm_check(&vm, &err));
    assert_false(config_set_vm_key(&vm, "name", "y", &err));
    assert_false(config_set_vm_key(&vm, "", "y", &err));
    assert_int_equal(err.line, 0); /* no file to have lines */
    config_vm_defaults(&vm, "not a name");
    assert_true(config_set_vm_key(&vm, "kernel", "k", &err));
    assert_false(config_vm_check(&vm, &err));
}

/* ---- the files ------------------------------------------------------------------------------------------------------- */

struct seen { char text[200]; unsigned count, stop_at; };

static bool note(const char *file, void *arg)
{
    struct seen *s = arg;
    strcat(s->text, file);
    strcat(s->text, " ");
    return ++s->count != s->stop_at;
}

static void test_files(void **state)
{
    struct seen all = {.stop_at = 0}, two = {.stop_at = 2};
    assert_true(parse("[vm a]\nkernel = k\ninitrd = i\nmodule = m\nmodule = i x\n[vm b]\nkernel = k\nmodule = m y\nmodule = n\nmodule = n\n"));
    config_for_each_file(&c, note, &all);
    assert_string_equal(all.text, "k i m n ");
    config_for_each_file(&c, note, &two);
    assert_string_equal(two.text, "k i ");
    struct seen listed = {.stop_at = 0};
    assert_true(parse("[vm a]\nkernel = k\ninitrd = i\n[hypervisor]\nfile = x\nfile = k\nfile = /x\nfile = dir\\y\n"));
    config_for_each_file(&c, note, &listed);
    assert_string_equal(listed.text, "x k dir/y i ");
}

/* ---- mutation -------------------------------------------------------------------------------------------------------- */

static bool named(const char *file, void *arg)
{
    assert_true(*file && strnlen(file, CONFIG_FILE_MAX) < CONFIG_FILE_MAX && !strstr(file, ".."));
    return true;
}

/* What the rest of the hypervisor relies on without looking again. */
static void check_rules(void)
{
    assert_true(c.secure_group_count <= CONFIG_MAX_SECURE_GROUPS);
    for (uint32_t n = 0; n < c.secure_group_count; n++)
        assert_true(config_name_valid(c.secure_groups[n]));
    assert_true(c.vm_count <= CONFIG_MAX_VMS && c.log_level <= 3 && c.console_baud && 115200 % c.console_baud == 0);
    for (uint32_t n = 0; n < c.vm_count; n++) {
        const struct config_vm *vm = &c.vms[n];
        assert_true(config_vm_check(vm, &err));
        assert_true(config_name_valid(vm->name));
        assert_true(vm->memory_bytes >= MIB(1) && vm->memory_bytes <= BIT64(46) && vm->memory_bytes % PAGE_SIZE == 0);
        assert_true(vm->min_bytes <= vm->max_bytes && vm->max_bytes && vm->max_bytes <= vm->memory_bytes);
        assert_true((vm->min_bytes | vm->max_bytes) % PAGE_SIZE == 0);
        assert_true(vm->vcpus >= 1 && vm->vcpus <= CONFIG_MAX_VCPUS && vm->weight >= 1 && vm->count >= 1 && vm->count <= CONFIG_MAX_COUNT);
        assert_true(vm->class <= 2 && (!vm->group[0] || config_name_valid(vm->group)));
        assert_true(vm->module_count <= CONFIG_MAX_MODULES && vm->line);
        assert_true(strnlen(vm->cmdline, sizeof(vm->cmdline)) < sizeof(vm->cmdline));
    }
    config_for_each_file(&c, named, NULL);
}

static void test_mutations(void **state)
{
    static const char *const pieces[] = {"[vm alpha]\n", "\n", "=", "]", "kernel = k\n", "count = 256\n", "0x", "T", "..", "\x80", "\t", "[vm b"};
    char text[2 * sizeof(full)];
    unsigned accepted = 0;
    srand(1);
    for (unsigned round = 0; round < 30000; round++) {
        size_t len = sizeof(full) - 1;
        memcpy(text, full, len);
        for (int changes = rand() % 3 + 1; changes > 0; changes--) {
            const char *piece = pieces[(size_t)rand() % ARRAY_SIZE(pieces)];
            size_t at = (size_t)rand() % len, n = (size_t)rand() % 12, piece_len = strlen(piece);
            switch (rand() % 4) {
            case 0: text[at] = (char)rand(); break;
            case 1: /* out with some */
                n = MIN(n, len - 1 - at);
                memmove(text + at, text + at + n, len - at - n);
                len -= n;
                break;
            case 2: /* in with some */
                memmove(text + at + piece_len, text + at, len - at);
                memcpy(text + at, piece, piece_len);
                len += piece_len;
                break;
            case 3: len = at + 1; break;
            }
        }
        char *exact = malloc(len);
        uint32_t lines = 1;
        memcpy(exact, text, len);
        for (size_t i = 0; i < len; i++)
            lines += text[i] == '\n';
        if (config_parse(&c, exact, len, &err)) {
            accepted++;
            check_rules();
        } else {
            assert_true(err.line >= 1 && err.line <= lines);
            assert_in_range(strnlen(err.text, sizeof(err.text)), 5, sizeof(err.text) - 1);
        }
        free(exact);
    }
    assert_in_range(accepted, 3000, 27000); /* else the mutations prove little */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full), cmocka_unit_test(test_defaults), cmocka_unit_test(test_every_complaint), cmocka_unit_test(test_long),
        cmocka_unit_test(test_names), cmocka_unit_test(test_quoted_files), cmocka_unit_test(test_console_keys), cmocka_unit_test(test_files),
        cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
