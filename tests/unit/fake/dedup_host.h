/* What the scanner is run with on the host beside dmm_host.h: a console that says nothing. With VMS, PAGES and vms[] of a test: its guests' contents. */
#ifndef HV_TESTS_DEDUP_HOST_H
#define HV_TESTS_DEDUP_HOST_H

void con_printf(const char *fmt, ...) { }
enum cmd_result cmd_error(struct cmd_ctx *c, const char *fmt, ...) { return CMD_FAILED; }
void json_object_begin(struct json_writer *w) { }
void json_object_end(struct json_writer *w) { }
void json_kv_u64(struct json_writer *w, const char *key, uint64_t value) { }

/* A content: 0 is zero, up to 99 one word throughout, above that a page like no other. */
UNUSED static void make_page(uint64_t *page, uint64_t content)
{
    for (unsigned n = 0; n < 512; n++)
        page[n] = content < 100 ? content * UINT64_C(0x0101010101010101) : (content * 512 + n) * UINT64_C(0x9e3779b97f4a7c15);
}

#ifdef VMS
static void host_write(struct vm *v, uint64_t g, uint64_t content)
{
    static uint64_t page[512];
    make_page(page, content);
    assert_int_equal(dmm_write_guest(v->s, g * PAGE_SIZE, page, PAGE_SIZE), DMM_FAULT_RETRY);
    v->content[g] = content;
}

static void check_all(void)
{
    static uint64_t page[512], want[512];
    for (unsigned k = 0; k < VMS; k++)
        for (uint64_t g = 0; vms[k].s && g < PAGES; g++) {
            make_page(want, vms[k].content[g]);
            assert_int_equal(dmm_read_guest(vms[k].s, g * PAGE_SIZE, page, PAGE_SIZE), DMM_FAULT_RETRY);
            if (memcmp(page, want, PAGE_SIZE))
                fail_msg("vm %u gfn %lx does not hold content %lu", k, g, vms[k].content[g]);
        }
    host_audit();
}
#endif

#endif
