/* The state diagram: the code's against the one that docs/memory-states.md documents, for every pair of states and level; and
 * p2m_transition() refuses every other change, and a wrong idea of what is there.
 * TEST-SOURCES: mm/dmm/frame.c mm/dmm/frame_alloc.c mm/dmm/space.c mm/dmm/write_log.c mm/dmm/pool.c mm/dmm/p2m.c mm/dmm/fault.c mm/dmm/hist.c
   mm/dmm/guest_access.c mm/dmm/policy.c mm/dmm/audit.c mm/dmm/share.c mm/dmm/rmap.c mm/dmm/merge.c
   mm/dmm/scan.c mm/dmm/group.c mm/dmm/image.c mm/dmm/collapse.c mm/dmm/bill.c mm/dmm/move.c tests/unit/fake/dmm_host.c tests/unit/fake/p2m_fake.c */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "mm/dmm/p2m.h"
#include "tests/unit/fake/dmm_host.h"

static enum p2m_change documented[P2M_TYPE_COUNT][P2M_TYPE_COUNT][5];

static enum p2m_type type_named(const char *name)
{
    for (unsigned t = 0; t < P2M_TYPE_COUNT; t++)
        if (strcmp(p2m_type_name((enum p2m_type)t), name) == 0)
            return (enum p2m_type)t;
    fail_msg("docs/memory-states.md: no state %s", name);
    return P2M_HOLE;
}

static int read_document(void **state)
{
    char line[256], from[32], to[32], levels[32], kind[32];
    unsigned rows = 0;
    bool inside = false;
    FILE *f = fopen("docs/memory-states.md", "r");
    if (!f)
        return -1;
    while (fgets(line, sizeof(line), f)) {
        if (strncmp(line, "<!-- ", 5) == 0)
            inside = strstr(line, "transitions") != NULL;
        if (!inside || sscanf(line, "| %31[A-Z_] | %31[A-Z_] | %31[0-9 ] | %31[a-z] |", from, to, levels, kind) != 4)
            continue;
        rows++;
        for (const char *l = levels; *l; l++)
            if (*l != ' ')
                documented[type_named(from)][type_named(to)][*l - '0'] =
                    strcmp(kind, "adds") == 0 ? P2M_CHANGE_ADDS :
                    strcmp(kind, "frame") == 0 ? P2M_CHANGE_BY_FRAME : P2M_CHANGE_REMOVES;
    }
    fclose(f);
    host_machine_init(16);
    return rows >= 10 ? 0 : -1;
}

static struct dmm_space *make_space(void)
{
    static struct dmm_space_config cfg = { .name = "t", .vm_id = 1, .pages = 2048, .format = &p2m_format_fake };
    struct dmm_space *s;
    assert_int_equal(dmm_space_create(&cfg, &s), DMM_CREATE_OK);
    return s;
}

static p2m_entry_t entry_of(enum p2m_type t, unsigned level)
{
    const struct p2m_format *f = &p2m_format_fake;
    if (t == P2M_TABLE)
        return f->make_table(MIB(8));
    return t <= P2M_LAST_NONPRESENT ? f->make_nonpresent(t, 0) : f->make_leaf(t, mfn_of(512 * 3), level);
}

/* False: it panicked. */
static bool try_transition(struct dmm_space *s, p2m_entry_t *slot, unsigned level, enum p2m_type from, enum p2m_type to)
{
    jmp_buf here;
    host_panic_jmp = &here;
    bool ok = setjmp(here) == 0;
    if (ok)
        p2m_transition(s, slot, level, from, to, entry_of(to, level));
    host_panic_jmp = NULL;
    return ok;
}

static void test_every_pair(void **state)
{
    struct dmm_space *s = make_space();
    unsigned legal = 0;
    for (unsigned from = 0; from < P2M_TYPE_COUNT; from++)
        for (unsigned to = 0; to < P2M_TYPE_COUNT; to++)
            for (unsigned level = 1; level <= 4; level++) {
                enum p2m_change want = documented[from][to][level];
                assert_int_equal(p2m_change_of((enum p2m_type)from, (enum p2m_type)to, level), want);
                p2m_entry_t slot = entry_of((enum p2m_type)from, level), before = slot;
                uint64_t generation = dmm_space_flush_generation(s);
                bool ok = try_transition(s, &slot, level, (enum p2m_type)from, (enum p2m_type)to);
                assert_int_equal(ok, want != P2M_CHANGE_ILLEGAL);
                assert_int_equal(slot, ok ? entry_of((enum p2m_type)to, level) : before);
                assert_int_equal(dmm_space_flush_generation(s) - generation, want == P2M_CHANGE_REMOVES);
                legal += ok;
                if (want != P2M_CHANGE_BY_FRAME)
                    continue;
                slot = p2m_format_fake.make_leaf((enum p2m_type)from, mfn_of(7), level); /* not the frame that it becomes */
                assert_true(try_transition(s, &slot, level, (enum p2m_type)from, (enum p2m_type)to));
                assert_int_equal(dmm_space_flush_generation(s) - generation, 1);
            }
    assert_true(legal >= 12);
}

/* Legal by name, but the entry is of another type than the caller believes: refused as well. */
static void test_wrong_belief(void **state)
{
    struct dmm_space *s = make_space();
    for (unsigned actual = 0; actual < P2M_TYPE_COUNT; actual++)
        for (unsigned believed = 0; believed < P2M_TYPE_COUNT; believed++)
            for (unsigned to = 0; to < P2M_TYPE_COUNT; to++) {
                p2m_entry_t slot = entry_of((enum p2m_type)actual, 1), before = slot;
                if (actual == believed || !documented[believed][to][1])
                    continue;
                assert_false(try_transition(s, &slot, 1, (enum p2m_type)believed, (enum p2m_type)to));
                assert_int_equal(slot, before);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_every_pair), cmocka_unit_test(test_wrong_belief) };
    return cmocka_run_group_tests(tests, read_document, NULL);
}
