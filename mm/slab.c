/*
 * Small objects. Sizes are rounded up to a class (powers of two and the steps half-way between them, 16 bytes to 2 KiB); each
 * class cuts single frames into objects. A page starts with its header, so that kfree() finds the class by
 * rounding the pointer down: no size is passed and no table is searched. A page whose objects are all free goes back to the
 * frame allocator at once, except one kept per class against see-saws. Objects above half a page come in whole pages of the
 * virtual region (mm/vmap.c); a short list keeps their sizes.
 *
 * Free objects are chained through their first word, and in debug builds the rest is filled with 0x6b and checked when the
 * object is handed out again: a write through a stale pointer stops at the next allocation rather than corrupting.
 */
#include "core/lock.h"
#include "core/log.h"
#include "include/hv/dmm.h"
#include "lib/list.h"
#include "lib/string.h"
#include "mm/mm.h"
#include "mm/vmap.h"

#define SLAB_MAGIC 0x62616c73u
#define POISON 0x6b

static const uint16_t class_bytes[] = {16, 32, 48, 64, 128, 192, 256, 384, 512, 768, 1024, 1984};

struct slab_page {
    struct list_head node;     /* on its class's list while it has a free object */
    void *free;                /* chain of free objects */
    uint16_t used, total;
    uint16_t class_index;
    uint32_t magic;
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct slab_page) == 64, "objects of 64 bytes and more stay 64-byte aligned");

struct large { struct list_head node; void *p; uint64_t pages; };

static struct spinlock slab_lock = SPINLOCK_INIT(LOCK_RANK_SLAB, "slab");
static struct slab_class { struct list_head partial; unsigned empty_pages; } classes[ARRAY_SIZE(class_bytes)];
static struct list_head large_list = LIST_INIT(large_list);
static uint64_t bytes_in_use;

static unsigned class_of(size_t bytes)
{
    unsigned c = 0;
    while (c < ARRAY_SIZE(class_bytes) && class_bytes[c] < bytes)
        c++;
    return c;
}

static void poison(void *object, unsigned bytes)
{
    if (HV_DEBUG)
        memset((char *)object + sizeof(void *), POISON, bytes - sizeof(void *));
}

static void check_poison(const unsigned char *object, unsigned bytes)
{
    for (unsigned i = sizeof(void *); HV_DEBUG && i < bytes; i++)
        if (object[i] != POISON)
            panic("slab: object %p of %u bytes was written at +%u after it was freed", object, bytes, i);
}

/* A page of free objects for class c, on its list; false: no frame. */
static bool grow(unsigned c)
{
    mfn_t m = frame_alloc(0, 0, FRAME_HV_HEAP, NULL);
    if (!mfn_valid(m))
        return false;
    struct slab_page *page = mfn_to_hva(m);
    unsigned bytes = class_bytes[c];
    *page = (struct slab_page){.class_index = (uint16_t)c, .total = (uint16_t)((PAGE_SIZE - sizeof(*page)) / bytes),
                               .magic = SLAB_MAGIC};
    for (unsigned i = page->total; i-- > 0;) {
        void **object = (void **)((char *)(page + 1) + i * bytes);
        poison(object, bytes);
        *object = page->free;
        page->free = object;
    }
    list_add(&classes[c].partial, &page->node);
    classes[c].empty_pages++;
    return true;
}

static void *alloc_small(unsigned c)
{
    struct slab_class *class = &classes[c];
    spin_lock(&slab_lock);
    if (!class->partial.next)
        list_init(&class->partial);
    if (list_empty(&class->partial) && !grow(c)) {
        spin_unlock(&slab_lock);
        return NULL;
    }
    struct slab_page *page = list_first(&class->partial, struct slab_page, node);
    void *object = page->free;
    page->free = *(void **)object;
    class->empty_pages -= page->used++ == 0;
    if (!page->free)
        list_del(&page->node);
    bytes_in_use += class_bytes[c];
    spin_unlock(&slab_lock);
    check_poison(object, class_bytes[c]);
    return memset(object, 0, class_bytes[c]);
}

static void free_small(struct slab_page *page, void *object)
{
    struct slab_class *class = &classes[page->class_index];
    unsigned bytes = class_bytes[page->class_index];
    if (page->magic != SLAB_MAGIC || ((uintptr_t)object - (uintptr_t)(page + 1)) % bytes)
        panic("slab: kfree(%p) of what is no object", object);
    bool give_back = false;
    spin_lock(&slab_lock);
    poison(object, bytes);
    if (!page->free)
        list_add(&class->partial, &page->node);
    *(void **)object = page->free;
    page->free = object;
    bytes_in_use -= bytes;
    if (--page->used == 0) {
        give_back = class->empty_pages > 0;
        if (give_back)
            list_del(&page->node);
        else
            class->empty_pages++;
    }
    spin_unlock(&slab_lock);
    if (give_back) {
        page->magic = 0;
        frame_free(hva_to_mfn(page), 0);
    }
}

static void *alloc_large(uint64_t pages)
{
    struct large *l = alloc_small(class_of(sizeof(*l)));
    if (!l)
        return NULL;
    l->pages = pages;
    l->p = vmap_alloc(pages);
    if (!l->p) {
        kfree(l);
        return NULL;
    }
    spin_lock(&slab_lock);
    list_add(&large_list, &l->node);
    bytes_in_use += pages * PAGE_SIZE;
    spin_unlock(&slab_lock);
    return l->p;
}

static void free_large(void *p)
{
    struct large *found = NULL;
    spin_lock(&slab_lock);
    list_for_each(l, &large_list, struct large, node)
        if (l->p == p) {
            found = l;
            break;
        }
    if (!found)
        panic("slab: kfree(%p) of what is no object", p);
    list_del(&found->node);
    bytes_in_use -= found->pages * PAGE_SIZE;
    spin_unlock(&slab_lock);
    vmap_free(p, found->pages);
    kfree(found);
}

void *kzalloc(size_t bytes)
{
    unsigned c = class_of(bytes);
    return c < ARRAY_SIZE(class_bytes) ? alloc_small(c) : alloc_large(ALIGN_UP(bytes, PAGE_SIZE) / PAGE_SIZE);
}

void kfree(void *p)
{
    if (!p)
        return;
    if (vmap_contains(p))
        free_large(p);
    else
        free_small((struct slab_page *)((uintptr_t)p & PAGE_MASK), p);
}

uint64_t kheap_bytes_in_use(void)
{
    return __atomic_load_n(&bytes_in_use, __ATOMIC_RELAXED);
}
