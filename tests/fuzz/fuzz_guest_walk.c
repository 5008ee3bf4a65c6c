/* FUZZ-SOURCES: vm/guest_walk.c */
/*
 * The guest's page tables, which are whatever the guest has put there, in all four modes. Guest memory is a few pages; what the input says of
 * control registers and CPU comes first. Whatever the tables hold: nothing in them changes but accessed and dirty bits that are set; what was
 * translated is translated the same again, and then nothing changes at all; who may write may read; and a fault names the access it was.
 */
#include <stdlib.h>
#include <string.h>
#include "vm/vm_internal.h"
#include "x86/cpu.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { PAGES = 6, ACCESSED = 0x20, DIRTY = 0x40, HEAD = 24 };
static uint64_t ram[PAGES * PAGE_SIZE / 8];
static uint64_t cr0, cr3, cr4, efer;
static unsigned pins;
static bool no_memory; /* for a copy of a page that is to be written to */

static struct cpu_info info;
const struct cpu_info *cpu_info(void) { return &info; }

bool dmm_peek_u64(struct dmm_space *s, uint64_t gpa, uint64_t *out)
{
    (void)s;
    if (gpa >= sizeof(ram))
        return false;
    *out = ram[gpa / 8];
    return true;
}

void *dmm_pin(struct dmm_space *s, gfn_t gfn, bool write, enum dmm_fault_result *why)
{
    (void)s, (void)why;
    if (gfn.v >= PAGES || !write)
        abort(); /* it was read from there */
    pins += !no_memory;
    return no_memory ? NULL : ram + gfn.v * PAGE_SIZE / 8;
}
void dmm_unpin(struct dmm_space *s, gfn_t gfn) { (void)s, (void)gfn; pins--; }

static uint64_t get_reg(struct vcpu *v, enum vcpu_reg r)
{
    (void)v;
    return r == VCPU_CR0 ? cr0 : r == VCPU_CR3 ? cr3 : r == VCPU_CR4 ? cr4 : efer;
}
static const struct hvm_ops ops = {.get_reg = get_reg};
const struct hvm_ops *hvm(void) { return &ops; }

static void check_changes(const uint64_t *before, bool may_dirty)
{
    for (unsigned n = 0; n < sizeof(ram) / 8; n++) {
        uint64_t changed = ram[n] ^ before[n], bits = ACCESSED | (may_dirty ? DIRTY : 0);
        if ((changed & ~ram[n]) || (changed & ~(bits | bits << 32)))
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint64_t before[PAGES * PAGE_SIZE / 8];
    struct vm vm = {0};
    struct vcpu v = {.vm = &vm};
    uint64_t gva, gpa = 0, again = 0;
    uint32_t error = 0, other;
    if (size < HEAD)
        return 0;
    memcpy(&gva, data, 8);
    memcpy(&cr3, data + 8, 8);
    cr3 %= sizeof(ram) + PAGE_SIZE;
    cr0 = CR0_PE | (data[16] & 1 ? CR0_PG : 0) | (data[16] & 2 ? CR0_WP : 0);
    cr4 = (data[16] & 4 ? CR4_PAE : 0) | (data[16] & 8 ? CR4_PSE : 0) | (data[16] & 16 ? CR4_SMEP : 0) | (data[16] & 32 ? CR4_SMAP : 0);
    efer = (data[16] & 64 ? EFER_NXE : 0) | (data[16] & 128 ? EFER_LMA | EFER_LME : 0);
    unsigned access = (const unsigned[]){DMM_READ, DMM_READ | DMM_WRITE, DMM_EXEC}[data[17] % 3];
    bool user = data[18] & 1;
    v.rflags = data[18] & 2 ? RFLAGS_AC : 0;
    no_memory = data[18] & 4;
    info.phys_bits = 36 + data[19] % 17;
    memset(ram, 0, sizeof(ram));
    memcpy(ram, data + HEAD, size - HEAD < sizeof(ram) ? size - HEAD : sizeof(ram));
    memcpy(before, ram, sizeof(ram));

    enum guest_walk_result r = guest_walk(&v, gva, access, user, &gpa, &error);
    check_changes(before, access & DMM_WRITE);
    if (pins || (r != GUEST_WALK_OK && r != GUEST_WALK_FAULT && r != GUEST_WALK_BAD_GPA))
        abort();
    if (r == GUEST_WALK_FAULT && (!!(error & 2) != !!(access & DMM_WRITE) || !!(error & 4) != user || (error & ~31u)))
        abort();
    if (r != GUEST_WALK_OK)
        return 0;
    if ((gpa ^ gva) & (PAGE_SIZE - 1) || gpa >> 52)
        abort();
    memcpy(before, ram, sizeof(ram));
    /* A page directory pointer of PAE has reserved bits where other entries have the dirty one: a table that is both may be spoilt by its first use. */
    bool pae = (cr4 & CR4_PAE) && !(efer & EFER_LMA);
    enum guest_walk_result second = guest_walk(&v, gva, access, user, &again, &other);
    if (second == GUEST_WALK_OK ? again != gpa || memcmp(before, ram, sizeof(ram)) : !pae)
        abort();
    if (second == GUEST_WALK_OK && (access & DMM_WRITE) && (guest_walk(&v, gva, DMM_READ, user, &again, &other) != GUEST_WALK_OK || again != gpa))
        abort();
    return 0;
}
