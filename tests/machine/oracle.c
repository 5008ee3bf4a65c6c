/*
 * The oracle of sharing: how many frames a machine's VMs need at least, and how many they have, from a dump of its memory.
 *
 *     oracle DUMP NAME:FORMAT:ROOT[,IMAGE...]:GROUP...
 *
 * It shares no code with the hypervisor and believes none of its counters: DUMP is the machine's physical memory, byte for byte, and a VM is what the
 * CPU would find from the root of its nested table (ROOT, hexadecimal; FORMAT npt). A 2 MiB region that it does
 * not have it inherits from the first of its images that does (IMAGE, a root each), and only reads. Two pages are equal if memcmp() says so. VMs of one GROUP
 * may share; one without a group, only with itself.
 *
 * Pages that a VM has on boot files' frames are counted apart: those are shared by all, and were never worth a scan. All others would need
 * a frame each without sharing; at best each content needs one in each group, and one in the whole machine if it is one word throughout.
 * What lies between is what can be saved, and the hypervisor's part of it is `percent`; what it missed is counted by the size of the
 * mapping, and apart where it is inherited: nobody looks there before it is touched. `saved` are all pages, boot files' too, less the
 * frames that the VMs have.
 *
 * Never right, and so the last line's status: a frame of two groups (or of two VMs without one) whose content is not one word throughout;
 * a frame that somebody may write to and that has two users; a "zero page" that is not zero; an entry that leads out of memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096u
#define VMS_MAX 64
#define TREES_MAX 16 /* a VM's own and its images' */
enum { PRESENT = 1, WRITABLE = 2, LARGE = 1 << 7 };

/* include/hv/p2m.h and svm/npt.c: the type is in bits 55..52; written down once more, so that a change there does not go unnoticed. */
enum type { HOLE, EMPTY, SEALED = 9, INHERITED, TABLE, RW, SHARED_RO, ZERO_RO, IMAGE_RO, TYPES };
static const char *const type_names[TYPES] = {
    [HOLE] = "HOLE", [EMPTY] = "EMPTY", [2] = "2", [3] = "3", [4] = "4", [5] = "5", [6] = "6", [7] = "7", [8] = "MMIO", [SEALED] = "SEALED",
    [INHERITED] = "INHERITED", [TABLE] = "TABLE", [RW] = "RW", [SHARED_RO] = "SHARED_RO", [ZERO_RO] = "ZERO_RO", [IMAGE_RO] = "IMAGE_RO",
};

struct vm { const char *name, *group; uint64_t root[TREES_MAX], pages[TYPES], in_large; unsigned trees, set; };
struct page { uint64_t frame; unsigned vm, set; enum type type; bool large, inherited; uint64_t gfn; };

static const uint8_t *memory;
static uint64_t frames;
static struct vm vms[VMS_MAX];
static unsigned vm_count;
static struct page *pages;
static size_t page_count, page_room;
static uint64_t outside, not_zero, foreign, writable_twice;

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    fprintf(stderr, "oracle: ");
    vfprintf(stderr, format, ap);
    fprintf(stderr, "\n");
    va_end(ap);
    exit(2);
}

static const uint8_t *content(uint64_t frame) { return memory + frame * PAGE; }

static bool is_one_word(uint64_t frame) { return memcmp(content(frame), content(frame) + 8, PAGE - 8) == 0; }

static bool is_zero(uint64_t frame)
{
    static const uint8_t zero[8];
    return is_one_word(frame) && memcmp(content(frame), zero, 8) == 0;
}

/* ---- what the VMs have ------------------------------------------------------------------------------------------------------- */

static void add_page(unsigned vm, uint64_t gfn, uint64_t frame, enum type type, bool large, bool inherited)
{
    if (frame >= frames) {
        outside++;
        return;
    }
    if (page_count == page_room) {
        page_room = page_room ? page_room * 2 : 1 << 16;
        pages = realloc(pages, page_room * sizeof(*pages));
        if (!pages)
            die("out of memory");
    }
    not_zero += type == ZERO_RO && !is_zero(frame);
    pages[page_count++] = (struct page){frame, vm, vms[vm].set, type, large, inherited, gfn};
}

static enum type type_of(uint64_t entry) { return (enum type)(entry >> 52 & 15); }
static uint64_t frame_of(uint64_t entry) { return (entry & UINT64_C(0x000ffffffffff000)) / PAGE; }

/* What an image may write to, nobody does: the image is run by no CPU. */
static void add_leaf(unsigned vm, uint64_t gfn, uint64_t entry, unsigned level, bool inherited)
{
    enum type type = type_of(entry), counts_as = type;
    uint64_t count = level == 2 ? 512 : 1, frame = frame_of(entry);
    bool present = entry & PRESENT;
    if (present != (type > TABLE) || (present && (bool)(entry & WRITABLE) != (type == RW)))
        die("%s: entry %016" PRIx64 " of gfn %" PRIx64 " is no %s", vms[vm].name, entry, gfn, type_names[type]);
    if (inherited && (present || type == SEALED))
        counts_as = INHERITED;
    vms[vm].pages[counts_as] += type == HOLE ? 0 : count;
    vms[vm].in_large += counts_as == RW && level == 2 ? count : 0;
    if (type == SEALED)
        frame = ~(entry >> 12) & UINT64_C(0xffffffffff);
    if (present || type == SEALED)
        for (uint64_t n = 0; n < count; n++)
            add_page(vm, gfn + n, frame + n, inherited && type == RW ? SHARED_RO : type, level == 2, inherited);
}

static uint64_t entry_at(uint64_t table, unsigned n)
{
    uint64_t entry = 0;
    if (table >= frames)
        outside++;
    else
        memcpy(&entry, content(table) + n * 8, sizeof(entry));
    return entry;
}

/* The region's level-2 entry in the first tree that has one. */
static void add_region(unsigned vm, const uint64_t *entry, uint64_t gfn)
{
    unsigned tree = 0;
    while (tree + 1 < vms[vm].trees && (!entry[tree] || type_of(entry[tree]) == INHERITED))
        tree++;
    uint64_t e = entry[tree];
    if (!(e & PRESENT) || (e & LARGE))
        add_leaf(vm, gfn, e, 2, tree > 0);
    else
        for (unsigned n = 0; n < 512; n++)
            add_leaf(vm, gfn + n, entry_at(frame_of(e), n), 1, tree > 0);
}

/* The tables at one place of all the VM's trees; 0: there is none. */
static void walk(unsigned vm, const uint64_t *table, unsigned level, uint64_t gfn)
{
    for (unsigned n = 0; n < 512; n++) {
        uint64_t entry[TREES_MAX] = {0}, below[TREES_MAX] = {0}, at = gfn + ((uint64_t)n << (level - 1) * 9);
        bool any = false;
        for (unsigned tree = 0; tree < vms[vm].trees; tree++) {
            entry[tree] = table[tree] ? entry_at(table[tree], n) : 0;
            if (level > 2 && entry[tree] && (!(entry[tree] & PRESENT) || (entry[tree] & LARGE)))
                die("%s: entry %016" PRIx64 " at level %u", vms[vm].name, entry[tree], level);
            below[tree] = frame_of(entry[tree]);
            any |= entry[tree];
        }
        if (any && level > 2)
            walk(vm, below, level - 1, at);
        else if (any)
            add_region(vm, entry, at);
    }
}

/* ---- contents ------------------------------------------------------------------------------------------------------------------ */

/* A set of contents: a page stands for all that are equal to it and may share with it. */
struct slot { uint64_t hash; const struct page *page; };
static struct slot *table;
static size_t table_size;

static uint64_t hash_of(uint64_t frame)
{
    uint64_t h = 0, word;
    for (unsigned n = 0; n < PAGE; n += 8) {
        memcpy(&word, content(frame) + n, 8);
        h = (h ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        h ^= h >> 32;
    }
    return h;
}

/* True: no page before it had this content and may share with it. */
static bool is_new(const struct page *p)
{
    uint64_t hash = hash_of(p->frame);
    bool global = is_one_word(p->frame);
    for (size_t n = hash & (table_size - 1);; n = (n + 1) & (table_size - 1)) {
        const struct page *q = table[n].page;
        if (!q) {
            table[n] = (struct slot){hash, p};
            return true;
        }
        if (table[n].hash == hash && (global || q->set == p->set) &&
            (q->frame == p->frame || memcmp(content(q->frame), content(p->frame), PAGE) == 0))
            return false;
    }
}

static int by_frame(const void *a, const void *b)
{
    const struct page *p = a, *q = b;
    return p->frame < q->frame ? -1 : p->frame > q->frame;
}

/* All users of one frame, pages[first] to pages[end - 1]. */
static void check_users(size_t first, size_t end)
{
    bool across = false, writable = false;
    for (size_t n = first; n < end; n++) {
        across |= pages[n].set != pages[first].set && pages[n].type != IMAGE_RO;
        writable |= pages[n].type == RW;
    }
    bool is_foreign = across && !is_one_word(pages[first].frame), twice = writable && end - first > 1;
    for (size_t n = first; (is_foreign || twice) && foreign + writable_twice < 10 && n < end; n++)
        fprintf(stderr, "oracle: frame %" PRIx64 " is %s's at gfn %" PRIx64 ", %s\n", pages[n].frame, vms[pages[n].vm].name, pages[n].gfn,
                type_names[pages[n].type]);
    foreign += is_foreign;
    writable_twice += twice;
}

/* ---- the verdict ------------------------------------------------------------------------------------------------------------------ */

struct verdict { uint64_t with_frame, used, best, zero, one_word, saved, missed_large, missed_small, missed_inherited; };

/* One frame and its users, pages[first] to pages[end - 1]. */
static void judge_frame(struct verdict *v, size_t first, size_t end)
{
    bool counts = false, own = false, needed = false, inherited = true, zero = is_zero(pages[first].frame), one_word = is_one_word(pages[first].frame);
    for (size_t n = first; n < end; n++) {
        v->saved++;
        if (pages[n].type == IMAGE_RO)
            continue;
        bool is_first = is_new(&pages[n]);
        counts = true;
        needed |= is_first;
        inherited &= pages[n].inherited;
        own |= pages[n].type != ZERO_RO;
        v->best += is_first;
        v->with_frame++;
        v->zero += zero;
        v->one_word += one_word && !zero;
    }
    v->used += counts;
    v->saved -= own;
    if (counts && !needed)
        ++*(inherited ? &v->missed_inherited : pages[first].large ? &v->missed_large : &v->missed_small);
}

/* Frames that are shared come first: what is found again after them is what was missed. */
static void judge(struct verdict *v)
{
    for (table_size = 1; table_size < page_count * 2 + 1;)
        table_size *= 2;
    table = calloc(table_size, sizeof(*table));
    if (!table)
        die("out of memory");
    qsort(pages, page_count, sizeof(*pages), by_frame);
    for (unsigned pass = 0; pass < 2; pass++)
        for (size_t first = 0, end; first < page_count; first = end) {
            for (end = first; end < page_count && pages[end].frame == pages[first].frame;)
                end++;
            if ((pages[first].type == RW) != pass)
                continue;
            judge_frame(v, first, end);
            check_users(first, end);
        }
}

static void print_vm(const struct vm *vm)
{
    printf("{\"name\":\"%s\",\"group\":\"%s\",\"in_large\":%" PRIu64, vm->name, vm->group, vm->in_large);
    for (unsigned t = EMPTY; t < TYPES; t++)
        if (vm->pages[t])
            printf(",\"%s\":%" PRIu64, type_names[t], vm->pages[t]);
    printf("}");
}

static void print_verdict(const struct verdict *v)
{
    uint64_t possible = v->with_frame - v->best, reached = v->with_frame - v->used;
    printf("{\"vms\":[");
    for (unsigned n = 0; n < vm_count; n++) {
        printf("%s", n ? "," : "");
        print_vm(&vms[n]);
    }
    printf("],\"pages\":%" PRIu64 ",\"zero_pages\":%" PRIu64 ",\"one_word_pages\":%" PRIu64 ",\"frames_best\":%" PRIu64 ",\"frames_used\":%" PRIu64
           ",\"possible\":%" PRIu64 ",\"reached\":%" PRIu64 ",\"percent\":%.2f,\"saved\":%" PRIu64 ",\"missed_in_2m\":%" PRIu64 ",\"missed\":%" PRIu64
           ",\"missed_inherited\":%" PRIu64
           ",\"foreign\":%" PRIu64 ",\"writable_twice\":%" PRIu64 ",\"not_zero\":%" PRIu64 ",\"outside\":%" PRIu64 "}\n",
           v->with_frame, v->zero, v->one_word, v->best, v->used, possible, reached, possible ? 100.0 * (double)reached / (double)possible : 100.0,
           v->saved, v->missed_large, v->missed_small, v->missed_inherited, foreign, writable_twice, not_zero, outside);
}

/* ---- arguments ---------------------------------------------------------------------------------------------------------------------- */

static void open_dump(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0)
        die("%s: %s", path, strerror(errno));
    frames = (uint64_t)st.st_size / PAGE;
    memory = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (memory == MAP_FAILED)
        die("%s: %s", path, strerror(errno));
    close(fd);
}

static void add_vm(char *text)
{
    struct vm *vm = &vms[vm_count];
    char *part[4] = {text}, *end;
    for (unsigned n = 1; n < 4; n++) {
        char *colon = strchr(part[n - 1], ':');
        if (!colon)
            die("\"%s\" is not NAME:FORMAT:ROOT[,IMAGE...]:GROUP", text);
        *colon = 0;
        part[n] = colon + 1;
    }
    if (vm_count == VMS_MAX || strcmp(part[1], "npt") != 0)
        die("%s: %s", part[0], vm_count == VMS_MAX ? "too many VMs" : "its format is not npt");
    *vm = (struct vm){.name = part[0], .group = part[3], .set = vm_count};
    for (end = part[2]; vm->trees < TREES_MAX && (!vm->trees || *end == ','); vm->trees++) {
        uint64_t root = strtoull(end + (vm->trees > 0), &end, 16);
        if (!root || root % PAGE)
            die("%s: root %" PRIx64, part[0], root);
        vm->root[vm->trees] = root / PAGE;
    }
    if (*end)
        die("%s: \"%s\" is left over of its roots", part[0], end);
    for (unsigned n = 0; n < vm_count; n++)
        if (*vm->group && strcmp(vms[n].group, vm->group) == 0)
            vm->set = vms[n].set;
    vm_count++;
}

int main(int argc, char **argv)
{
    struct verdict v = {0};
    if (argc < 3)
        die("usage: oracle DUMP NAME:FORMAT:ROOT[,IMAGE...]:GROUP...");
    open_dump(argv[1]);
    for (int n = 2; n < argc; n++)
        add_vm(argv[n]);
    for (unsigned n = 0; n < vm_count; n++)
        walk(n, vms[n].root, 4, 0);
    judge(&v);
    print_verdict(&v);
    return foreign || writable_twice || not_zero || outside ? 1 : 0;
}
