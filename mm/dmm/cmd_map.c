/*
 * `mem map VM`: what the VM's memory is, page by page, as runs of one state; with -j, where its nested table is, and those of the images behind it.
 *
 * The latter is for a program outside that looks at a dump of the machine's memory and draws its own conclusions: it must not have to believe what
 * we think is there, so it gets no more than the roots and who may share with whom. States are read region by region, each under its lock, and
 * printed after that: a VM that runs is shown as it was at several moments.
 */
#include "mm/dmm/cmd_map.h"

#include "lib/string.h"
#include "mm/dmm/frame.h"
#include "mm/dmm/p2m.h"
#include "mm/dmm/space.h"

#define LARGE_MARK 0x80u               /* in a 2 MiB mapping */
static uint8_t states[LARGE_PAGES];    /* of the region at hand: enum p2m_type. The console is one thread */

struct run { uint64_t first, pages; uint8_t state; };

static void print_run(const struct run *run)
{
    if (run->pages && run->state != P2M_HOLE)
        con_printf("%011lx..%011lx %10lu  %s%s\n", (unsigned long)run->first, (unsigned long)(run->first + run->pages - 1), (unsigned long)run->pages,
                   p2m_type_name((enum p2m_type)(run->state & ~LARGE_MARK)), run->state & LARGE_MARK ? " 2M" : "");
}

/* No entries of its own yet. */
static void read_untouched(const struct dmm_space *s, uint64_t n)
{
    struct region *from;
    uint8_t state = image_of(s, n, &from) ? P2M_INHERITED : P2M_EMPTY;
    for (unsigned k = 0; k < LARGE_PAGES; k++)
        states[k] = space_ram_in(s, n * LARGE_PAGES + k, n * LARGE_PAGES + k + 1) ? state : P2M_HOLE;
}

static void read_region(struct dmm_space *s, uint64_t n)
{
    bool outermost = dmm_enter();
    struct region *r = region_of(s, gfn_of(n * LARGE_PAGES));
    struct spinlock *lock = r ? &r->lock : &s->build_lock;
    spin_lock(lock);
    if (!r)
        read_untouched(s, n);
    for (unsigned k = 0; r && k < LARGE_PAGES; k++) {
        unsigned level;
        p2m_entry_t e = p2m_read(p2m_leaf(r, gfn_of(n * LARGE_PAGES + k), &level));
        states[k] = (uint8_t)(s->format->type_of(e, level) | (s->format->is_large(e, level) ? LARGE_MARK : 0));
    }
    spin_unlock(lock);
    dmm_leave(outermost);
}

static bool print_runs(struct dmm_space *s)
{
    struct run run = {0};
    for (uint64_t n = 0; n < s->region_count; n++) {
        if (!dmm_space_acquire(s->id))
            return false;
        read_region(s, n);
        dmm_space_release(s);
        for (unsigned k = 0; k < LARGE_PAGES; k++, run.pages++) {
            if (run.pages && states[k] == run.state)
                continue;
            print_run(&run);
            run = (struct run){ .first = n * LARGE_PAGES + k, .state = states[k] };
        }
    }
    print_run(&run);
    return true;
}

struct search { const char *name; struct dmm_space *found; };

static bool is_named(struct dmm_space *s, void *arg)
{
    struct search *search = arg;
    if (strcmp(dmm_space_name(s), search->name) == 0)
        search->found = s;
    return !search->found;
}

/* In the order in which a region that the VM has not taken over is looked for: its image first, that one's image next. */
static void images_json(struct json_writer *w, struct dmm_space *s)
{
    json_key(w, "images");
    json_array_begin(w);
    bool stays = dmm_space_acquire(s->id); /* and with it the images */
    for (const struct dmm_space *image = stays ? s->base : NULL; image; image = image->base)
        json_u64(w, dmm_space_root_hpa(image));
    if (stays)
        dmm_space_release(s);
    json_array_end(w);
}

enum cmd_result cmd_mem_map(struct cmd_ctx *c, const char *name)
{
    struct search search = { .name = name };
    dmm_for_each_space(is_named, &search);
    struct dmm_space *s = search.found;
    if (!s)
        return cmd_error(c, "no VM %s has memory", name);
    const char *group = dmm_group_name(s->group);
    if (!c->want_json) {
        con_printf("nested table (%s) at %lx, group %s\n%-24s %10s  %s\n", s->format->name, (unsigned long)dmm_space_root_hpa(s), group ? group : "-",
                   "gfn", "pages", "state");
        return print_runs(s) ? CMD_OK : cmd_error(c, "the memory of %s is being cleared", name);
    }
    json_object_begin(c->json);
    json_kv_string(c->json, "name", name);
    json_kv_u64(c->json, "root", dmm_space_root_hpa(s));
    images_json(c->json, s);
    json_kv_string(c->json, "format", s->format->name);
    json_kv_string(c->json, "group", group ? group : "");
    json_kv_u64(c->json, "pages", s->ram_pages);
    json_object_end(c->json);
    return CMD_OK;
}
