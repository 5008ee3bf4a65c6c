/* TEST-SOURCES: core/ksyms.c */
/*
 * Symbol lookup in tables that tools/gen-ksyms itself has made: of the hypervisor where it has been built, of this program, and of made-up
 * names. Every function is looked for at its first and last byte. Then the tables are damaged, which must never read or write outside
 * (the sanitizers watch) nor run for ever.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>
#include "core/ksyms.h"
#include "lib/string.h"
#include <cmocka.h>

const uint32_t ksym_first = 0, ksym_table_bytes = 0, ksym_character_count = 0, ksym_pair_count = 0; /* the image's own: empty here */
const uint8_t ksym_characters[] = {0}, ksym_pairs[] = {0}, ksym_table[] = {0};

#define BASE UINT64_C(0xffffffff80000000)
#define MAX_FUNCTIONS 20000

static struct { uint64_t addr; char name[256]; } functions[MAX_FUNCTIONS];
static uint32_t count;
static uint64_t text_end;
static struct ksym_table table;

/* ---- the generator's C source, read back ------------------------------------------------------------------------------------ */

static char *source;

/* The numbers behind `=` of the definition of `what`, in memory of exactly their number. */
static uint8_t *values(const char *what, uint32_t *n)
{
    char start[80];
    snprintf(start, sizeof(start), " %s __attribute__", what);
    char *s = strstr(source, start);
    assert_non_null(s);
    s = strchr(s, '=') + 1;
    size_t bytes = strcspn(s, ";");
    uint8_t *out = malloc(bytes + 1);
    *n = 0;
    for (char *end = s + bytes; (s += strspn(s, " \n{},")) < end; ) {
        unsigned long value = strtoul(s, &s, 10);
        assert_in_range(value, 0, 255);
        out[(*n)++] = (uint8_t)value;
    }
    return realloc(out, *n);
}

static uint32_t value(const char *what)
{
    char start[80];
    snprintf(start, sizeof(start), " %s __attribute__", what);
    char *s = strstr(source, start);
    assert_non_null(s);
    return (uint32_t)strtoul(strchr(s, '=') + 1, NULL, 10);
}

/* The table for functions[], by way of a listing as of nm. */
static void generate(void)
{
    char list[] = "/tmp/ksyms-XXXXXX", command[128];
    FILE *f = fdopen(mkstemp(list), "w");
    for (uint32_t i = 0; i < count; i++)
        fprintf(f, "%016lx t %s\n", functions[i].addr, functions[i].name);
    fprintf(f, "%016lx T hv_text_end\n%016lx D not_code\n", text_end, text_end + 4096);
    fclose(f);
    snprintf(command, sizeof(command), "python3 tools/gen-ksyms <%s", list);
    f = popen(command, "r");
    size_t size = 0, room = 1 << 20, got;
    source = malloc(room);
    while ((got = fread(source + size, 1, room - size - 1, f)) > 0) {
        size += got;
        if (size > room / 2)
            source = realloc(source, room *= 2);
    }
    source[size] = '\0';
    assert_int_equal(pclose(f), 0);
    unlink(list);
    uint32_t n;
    table.base = BASE + value("ksym_first");
    table.characters = values("ksym_characters[]", &n);
    table.character_count = value("ksym_character_count");
    assert_int_equal(n, table.character_count);
    table.pairs = values("ksym_pairs[]", &n);
    table.pair_count = value("ksym_pair_count");
    assert_true(n == 2 * table.pair_count || !table.pair_count);
    table.functions = values("ksym_table[]", &n);
    table.bytes = value("ksym_table_bytes");
    assert_true(n == table.bytes || !table.bytes);
    free(source);
}

static void drop(void)
{
    free((void *)table.characters);
    free((void *)table.pairs);
    free((void *)table.functions);
    count = 0;
}

/* ---- every function at its first and last byte -------------------------------------------------------------------------------- */

static void expect(uint64_t addr, const char *name, uint64_t offset, uint64_t size)
{
    struct ksym s;
    assert_true(ksym_find(&table, addr, &s));
    assert_int_equal(strncmp(s.name, name, KSYM_NAME_MAX - 1), 0);
    assert_int_equal(s.offset, offset);
    assert_int_equal(s.size, size);
}

static void expect_all(void)
{
    struct ksym s;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t end = i + 1 < count ? functions[i + 1].addr : text_end, size = end - functions[i].addr;
        expect(functions[i].addr, functions[i].name, 0, size);
        expect(end - 1, functions[i].name, size - 1, size);
    }
    assert_false(ksym_find(&table, functions[0].addr - 1, &s));
    assert_false(ksym_find(&table, text_end, &s));
    assert_false(ksym_find(&table, 0, &s));
    assert_false(ksym_find(&table, UINT64_MAX, &s));
}

/* The functions of a program, moved to where ours lie. False: there is no such program. */
static bool list_program(const char *path)
{
    char command[256], line[512], name[256], kind;
    unsigned long addr, first = 0;
    if (access(path, R_OK) != 0)
        return false;
    snprintf(command, sizeof(command), "nm -n %s", path);
    FILE *f = popen(command, "r");
    while (count < MAX_FUNCTIONS && fgets(line, sizeof(line), f)) {
        if (sscanf(line, "%lx %c %255s", &addr, &kind, name) != 3 || !strchr("tTwW", kind) || strncmp(name, "hv_", 3) == 0)
            continue;
        first = first ? first : addr & ~UINT64_C(4095);
        addr += BASE - first;
        if (count && functions[count - 1].addr == addr)
            continue; /* another name for the same */
        functions[count].addr = addr;
        strcpy(functions[count++].name, name);
    }
    pclose(f);
    text_end = functions[count - 1].addr + 100;
    return true;
}

static void real_programs(void **state)
{
    char self[200] = "";
    assert_true(readlink("/proc/self/exe", self, sizeof(self) - 1) > 0);
    const char *programs[] = {self, "build/release/palimpsest.elf", "build/debug/palimpsest.elf"};
    for (int i = 0; i < 3; i++)
        if (list_program(programs[i])) {
            assert_in_range(count, 20, MAX_FUNCTIONS);
            generate();
            expect_all();
            drop();
        }
}

static void invent(uint32_t number, uint32_t max_size)
{
    static const char *const words[] = {"page", "take", "frame", "x", "vcpu", "run", "Map", "0", "cold.", "of"};
    uint64_t at = BASE + (uint32_t)rand() % 3 * 16;
    for (count = 0; count < number; count++) {
        functions[count].addr = at;
        functions[count].name[0] = '\0';
        for (int n = 1 + rand() % 16; n; n--) {
            strcat(functions[count].name, words[rand() % 10]);
            strcat(functions[count].name, n > 1 ? "_" : "");
        }
        at += 1 + (uint32_t)rand() % max_size;
    }
    text_end = at;
    generate();
}

static void made_up(void **state)
{
    static const uint32_t sizes[] = {1, 2, 127, 128, 5000, 3000000};
    srand(1);
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        invent(1 + (uint32_t)rand() % 200, sizes[i]);
        expect_all();
        drop();
    }
}

static void empty_table(void **state)
{
    struct ksym s;
    char buf[40];
    count = 0;
    text_end = BASE + 4096;
    generate();
    assert_false(ksym_find(&table, BASE, &s));
    assert_false(ksym_find(&table, BASE + 0x40, &s));
    assert_string_equal(ksym_format(buf, sizeof(buf), 0x1234), "0x1234");
    drop();
}

/* What is found in a damaged table may be wrong, but it is a name of at most 63 characters. */
static void damaged(void **state)
{
    struct ksym s;
    srand(2);
    invent(150, 300);
    for (int round = 0; round < 30000; round++) {
        uint8_t *parts[] = {(uint8_t *)table.functions, (uint8_t *)table.pairs, (uint8_t *)table.characters};
        uint32_t sizes[] = {table.bytes, 2 * table.pair_count, table.character_count};
        int part = rand() % 3;
        uint8_t *at = parts[part] + (uint32_t)rand() % sizes[part], was = *at;
        *at = (uint8_t)rand();
        if (ksym_find(&table, BASE + (uint32_t)rand() % (uint32_t)(text_end - BASE + 100), &s))
            assert_true(memchr(s.name, 0, sizeof(s.name)));
        *at = was;
    }
    uint32_t whole = table.bytes; /* cut off anywhere: memory of exactly that size, so that the sanitizer sees a byte too many */
    const uint8_t *functions_whole = table.functions;
    for (table.bytes = 0; table.bytes < whole; table.bytes++) {
        table.functions = memcpy(malloc(table.bytes + 1), functions_whole, table.bytes);
        table.functions = realloc((void *)table.functions, table.bytes + !table.bytes);
        assert_false(ksym_find(&table, text_end - 1, &s));
        free((void *)table.functions);
    }
    table.functions = functions_whole;
    expect_all();
    drop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(real_programs), cmocka_unit_test(made_up), cmocka_unit_test(empty_table),
                                       cmocka_unit_test(damaged)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
