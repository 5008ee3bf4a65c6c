/*
 * Placing the hypervisor and building the page tables that core starts on.
 *
 * The image is one physical block, 2 MiB-aligned, so that core may map it with large pages or small ones. It is mapped
 * here with 4 KiB pages and the rights of its ELF segments: W^X holds from the first instruction. The direct map and the identity
 * map are the same tables reached through two entries of the top level, of which only the former says no-execute:
 * the loader's own code must run between the load of CR3 and the jump, and nothing else may.
 */
#include "boot/image.h"
#include "boot/unpack.h"
#include "lib/string.h"

extern const uint8_t packed_image[], packed_image_end[]; /* boot/embed.asm */

static const uint8_t *image; /* unpacked: an ELF file */

struct elf_header {
    uint8_t ident[16];
    uint16_t type, machine;
    uint32_t version;
    uint64_t entry, phoff, shoff;
    uint32_t flags;
    uint16_t ehsize, phentsize, phnum, shentsize, shnum, shstrndx;
};
struct elf_segment {
    uint32_t type, flags;
    uint64_t offset, vaddr, paddr, filesz, memsz, align;
};
_Static_assert(sizeof(struct elf_header) == 64 && sizeof(struct elf_segment) == 56, "ELF-64");
#define ELF_PT_LOAD 1
#define ELF_PF_X 1
#define ELF_PF_W 2

#define PTE_P BIT64(0)
#define PTE_W BIT64(1)
#define PTE_PS BIT64(7)
#define PTE_NX BIT64(63)
#define PTE_ADDR GENMASK64(51, 12)

static const struct elf_segment *segment(unsigned i)
{
    const struct elf_header *h = (const struct elf_header *)image;
    return (const struct elf_segment *)(image + h->phoff + i * sizeof(struct elf_segment));
}

/* It stays until core takes all loader memory: the page tables are made from its segments. Returns its bytes. */
static uint64_t unpack_image(void)
{
    size_t packed_bytes = (size_t)(packed_image_end - packed_image), bytes = 0;
    enum unpack_result r = unpack_size(packed_image, packed_bytes, &bytes);
    if (r == UNPACK_OK) {
        uint8_t *out = loader_keep(bytes, "unpacking the hypervisor image");
        uint64_t before = hosted_begin();
        r = unpack(packed_image, packed_bytes, out, bytes);
        hosted_end(before);
        image = out;
    }
    if (r != UNPACK_OK)
        loader_halt("the hypervisor image inside of the loader is damaged (%s): copy or download the loader again",
                    r == UNPACK_NO_HEADER ? "no header" : "its checksum or structure is wrong");
    return bytes;
}

/* Ours and not untrusted, but a broken build should say so rather than triple-fault. Returns the span in bytes. */
static uint64_t check_image(const struct elf_header *h, uint64_t file_bytes)
{
    uint64_t span = 0;
    if (file_bytes < sizeof(*h) || memcmp(h->ident, "\177ELF\2\1", 6) != 0 || h->machine != 62 ||
        h->phentsize != sizeof(struct elf_segment) || h->phoff + (uint64_t)h->phnum * h->phentsize > file_bytes)
        loader_halt("the hypervisor image inside of the loader is not an x86-64 ELF file");
    for (unsigned i = 0; i < h->phnum; i++) {
        const struct elf_segment *s = segment(i);
        if (s->type != ELF_PT_LOAD)
            continue;
        if (s->vaddr < HV_LINK_BASE || !IS_ALIGNED(s->vaddr, PAGE_SIZE) || s->filesz > s->memsz ||
            s->offset + s->filesz > file_bytes || s->memsz > MIB(64))
            loader_halt("the hypervisor image inside of the loader has a malformed segment %u", i);
        span = MAX(span, s->vaddr - HV_LINK_BASE + s->memsz);
    }
    return ALIGN_UP(span, PAGE_SIZE);
}

uint64_t loader_place_image(struct boot_info *bi)
{
    uint64_t bytes = unpack_image();
    const struct elf_header *h = (const struct elf_header *)image;
    uint64_t span = check_image(h, bytes);

    uint64_t block = (uint64_t)loader_keep(span + LARGE_SIZE - PAGE_SIZE, "the hypervisor image");
    uint64_t block_end = block + span + LARGE_SIZE - PAGE_SIZE;
    uint64_t base = ALIGN_UP(block, LARGE_SIZE);
    if (base > block)
        loader_free((void *)block, base - block);
    if (base + span < block_end)
        loader_free((void *)(base + span), block_end - base - span);

    for (unsigned i = 0; i < h->phnum; i++) {
        const struct elf_segment *s = segment(i);
        if (s->type == ELF_PT_LOAD)
            memcpy((void *)(base + (s->vaddr - HV_LINK_BASE)), image + s->offset, s->filesz);
    }
    bi->image_hpa = base;
    bi->image_size = span;
    return h->entry;
}

/* The next-level table that entry `i` of `table` points to, made if it is not there. */
static uint64_t *table_below(uint64_t *table, size_t i)
{
    if (!(table[i] & PTE_P))
        table[i] = (uint64_t)loader_keep(PAGE_SIZE, "page tables") | PTE_P | PTE_W;
    return (uint64_t *)(table[i] & PTE_ADDR);
}

static void map_direct(uint64_t *pml4, uint64_t base, uint64_t end)
{
    for (uint64_t hpa = ALIGN_DOWN(base, LARGE_SIZE); hpa < end; hpa += LARGE_SIZE) {
        uint64_t *pdpt = table_below(pml4, hpa >> 39);
        table_below(pdpt, hpa >> 30 & 511)[hpa >> 21 & 511] = hpa | PTE_P | PTE_W | PTE_PS;
    }
}

static void map_image(uint64_t *pml4, const struct boot_info *bi)
{
    const struct elf_header *h = (const struct elf_header *)image;
    for (unsigned i = 0; i < h->phnum; i++) {
        const struct elf_segment *s = segment(i);
        uint64_t rights = (s->flags & ELF_PF_W ? PTE_W : 0) | (s->flags & ELF_PF_X ? 0 : PTE_NX);
        if (s->type != ELF_PT_LOAD)
            continue;
        for (uint64_t va = s->vaddr; va < s->vaddr + s->memsz; va += PAGE_SIZE) {
            uint64_t *pd = table_below(table_below(pml4, va >> 39 & 511), va >> 30 & 511);
            table_below(pd, va >> 21 & 511)[va >> 12 & 511] = (bi->image_hpa + (va - HV_LINK_BASE)) | rights | PTE_P;
        }
    }
}

uint64_t loader_build_tables(const struct boot_info *bi, const struct memmap *m)
{
    uint64_t *pml4 = loader_keep(PAGE_SIZE, "page tables");
    size_t direct = HV_DIRECTMAP_BASE >> 39 & 511;
    map_direct(pml4, 0, GIB(4));
    for (size_t i = 0; i < m->count; i++) {
        uint64_t end = m->in[i].base + m->in[i].size;
        if (!boot_mem_is_ram(m->in[i].type))
            continue;
        if (end > (512 - direct) * 512 * GIB(1) / 2) /* leaves the upper half of the half to core's other regions */
            loader_halt("memory at %llx is beyond what the direct map can hold", (unsigned long long)m->in[i].base);
        map_direct(pml4, m->in[i].base, end);
    }
    for (size_t i = 0; i < direct / 2; i++)
        if (pml4[i] & PTE_P)
            pml4[direct + i] = pml4[i] | PTE_NX;
    map_image(pml4, bi);
    return (uint64_t)pml4;
}
