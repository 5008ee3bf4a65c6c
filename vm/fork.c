/*
 * Copies of a VM: forks, which live beside it, and snapshots, to which it can return. Both are the same two things, memory frozen into an
 * image that spaces inherit from (mm/dmm) and the state of everything else at that moment (saved.h), and both are taken while the VM
 * stands still, as in a pause: so no time passes for the guest, in the original or in any copy.
 *
 * The order is what makes failure harmless. Names, and memory for the state, come first; freezing leaves the VM as it was, only that
 * it inherits from the image like everybody else; children are on no list until all of them are complete. Whatever fails, the children made so
 * far are taken apart and the VM goes on.
 *
 * A copy is told so: its generation id is another one before it first runs (vdev/vgenid.c). The id is written by the first of its vCPUs that is
 * about to enter the guest, not here: that page would be the first that the copy takes over, and for a child that nobody has started yet the last.
 */
#include "vm/life.h"

#include "core/log.h"
#include "core/time.h"
#include "lib/string.h"
#include "mm/mm.h"
#include "vm/saved.h"

struct vm_snapshot {
    struct list_head node;
    char name[CONFIG_NAME_MAX];
    uint64_t taken_ns;
    struct dmm_image *image;
    struct vm_saved *state;
};

/* ---- standing still ---------------------------------------------------------------------------------------------------------- */

/* Until let_go(). *ran: it was running. */
static enum vm_result hold(struct vm *vm, const char *what, bool *ran, char *why)
{
    *ran = vm->state == VM_RUNNING;
    if (*ran) {
        enum vm_result r = vm_stand_still(vm, why);
        if (r != VM_OK)
            return r;
    } else if (vm->state != VM_PAUSED) {
        return vm_bad_state(vm, what, why);
    }
    vm_give_up_pins(vm);
    return VM_OK;
}

static void let_go(struct vm *vm, bool ran)
{
    if (ran)
        vm_go_on(vm);
}

static enum vm_result freeze(struct vm *vm, struct dmm_image **image, char *why)
{
    switch (dmm_space_freeze(vm->space, image)) {
    case DMM_FREEZE_OK: return VM_OK;
    case DMM_FREEZE_PINNED: return vm_refuse(why, VM_BAD_STATE, "%s: some of its memory is pinned", vm->name);
    default: return vm_refuse(why, VM_NO_MEMORY, "no frames left to freeze the memory of %s", vm->name);
    }
}

/* The state of a VM that stands still and its memory, which it shares from now on. */
static enum vm_result capture(struct vm *vm, struct vm_saved **state, struct dmm_image **image, char *why)
{
    *state = vm_save(vm);
    if (!*state)
        return vm_refuse(why, VM_NO_MEMORY, "no memory for the state of %s", vm->name);
    enum vm_result r = freeze(vm, image, why);
    if (r != VM_OK)
        kfree(*state);
    return r;
}

/* ---- fork ---------------------------------------------------------------------------------------------------------------------- */

struct fork {
    struct vm *parent;
    const char *prefix;
    struct vm **children;
    unsigned made, next_number;
    char name[CONFIG_NAME_MAX]; /* of the next child */
    struct dmm_image *image;
    struct vm_saved *state;
};

/* f->name: the next PREFIXn that no VM has. Children that are on no list yet have lower numbers. */
static enum vm_result next_name(struct fork *f, char *why)
{
    do {
        int len = f->prefix ? snprintf(f->name, CONFIG_NAME_MAX, "%s%u", f->prefix, f->next_number++)
                            : snprintf(f->name, CONFIG_NAME_MAX, "%s-f%u", f->parent->name, f->next_number++);
        if (len >= (int)CONFIG_NAME_MAX)
            return vm_refuse(why, VM_BAD_CONFIG, "%.31s...: the name of a child would be longer than %u characters: give name=PREFIX", f->name,
                             CONFIG_NAME_MAX - 1);
    } while (vm_lookup(f->name));
    if (!config_name_valid(f->name))
        return vm_refuse(why, VM_BAD_CONFIG, "\"%.40s\" is no name for a VM: letters, digits, _ . and -", f->name);
    return VM_OK;
}

static enum vm_result make_child(struct fork *f, char *why)
{
    struct vm *child;
    enum vm_result r = vm_make_like(f->parent, f->image, f->name, &child, why);
    if (r != VM_OK)
        return r;
    f->children[f->made++] = child;
    str_copy(child->forked_from, sizeof(child->forked_from), f->parent->name);
    child->reset_ns = time_ns();
    vm_platform()->pause(child, true);
    vm_load(child, f->state);
    vm_set_state(child, VM_PAUSED);
    return VM_OK;
}

static enum vm_result make_children(struct fork *f, unsigned count, char *why)
{
    enum vm_result r = capture(f->parent, &f->state, &f->image, why);
    if (r != VM_OK)
        return r;
    for (unsigned n = 0; r == VM_OK && n < count; n++) {
        if (n)
            r = next_name(f, why);
        if (r == VM_OK)
            r = make_child(f, why);
    }
    dmm_image_release(f->image);
    kfree(f->state);
    return r;
}

static enum vm_result do_fork(struct fork *f, unsigned count, bool paused, char *why)
{
    bool ran;
    if (!count || count > VM_FORK_MAX)
        return vm_refuse(why, VM_LIMIT, "%u children: 1 to %u at a time", count, VM_FORK_MAX);
    enum vm_result r = next_name(f, why); /* a prefix that will not do is refused before anything is held */
    if (r == VM_OK)
        r = hold(f->parent, "forked", &ran, why);
    if (r != VM_OK)
        return r;
    r = make_children(f, count, why);
    let_go(f->parent, ran);
    for (unsigned n = 0; n < f->made; n++) {
        if (r != VM_OK) {
            vm_unmake(f->children[n]);
            continue;
        }
        vm_publish(f->children[n]);
        let_go(f->children[n], !paused);
    }
    if (r == VM_OK)
        log_info("vm: %s forked: %s%s%s", f->parent->name, f->children[0]->name, count > 1 ? " .. " : "",
                 count > 1 ? f->children[count - 1]->name : "");
    return r;
}

enum vm_result vm_fork(struct vm *vm, const char *prefix, unsigned count, bool paused, struct vm **children, char *why)
{
    struct fork f = {.parent = vm, .prefix = prefix, .children = children};
    vm_command_begin();
    enum vm_result r = do_fork(&f, count, paused, why);
    vm_command_end();
    return r;
}

/* ---- snapshots ----------------------------------------------------------------------------------------------------------------- */

static struct vm_snapshot *find_snapshot(struct vm *vm, const char *name)
{
    list_for_each(s, &vm->snapshots, struct vm_snapshot, node)
        if (!strcmp(s->name, name))
            return s;
    return NULL;
}

static unsigned snapshot_count(struct vm *vm)
{
    unsigned n = 0;
    list_for_each(s, &vm->snapshots, struct vm_snapshot, node)
        n++;
    return n;
}

static uint64_t heap_bytes_of(const struct vm_snapshot *s) { return sizeof(*s) + s->state->bytes; }

static void drop(struct vm *vm, struct vm_snapshot *s)
{
    list_del(&s->node);
    dmm_space_add_overhead(vm->space, -heap_bytes_of(s));
    dmm_image_release(s->image);
    kfree(s->state);
    kfree(s);
}

void vm_drop_snapshots(struct vm *vm)
{
    list_for_each_safe(s, next, &vm->snapshots, struct vm_snapshot, node)
        drop(vm, s);
}

static enum vm_result take_snapshot(struct vm *vm, const char *name, char *why)
{
    bool ran;
    if (!config_name_valid(name))
        return vm_refuse(why, VM_BAD_CONFIG, "\"%.40s\" is no name for a snapshot: letters, digits, _ . and -, at most %u", name,
                         CONFIG_NAME_MAX - 1);
    if (find_snapshot(vm, name))
        return vm_refuse(why, VM_NAME_IN_USE, "%s has a snapshot of the name %s", vm->name, name);
    if (snapshot_count(vm) == VM_SNAPSHOTS_MAX)
        return vm_refuse(why, VM_LIMIT, "%s has %u snapshots, which is the most", vm->name, VM_SNAPSHOTS_MAX);
    struct vm_snapshot *s = kzalloc(sizeof(*s));
    if (!s)
        return vm_refuse(why, VM_NO_MEMORY, "no memory for a snapshot");
    enum vm_result r = hold(vm, "kept in a snapshot", &ran, why);
    if (r != VM_OK) {
        kfree(s);
        return r;
    }
    r = capture(vm, &s->state, &s->image, why);
    if (r == VM_OK) {
        str_copy(s->name, sizeof(s->name), name);
        s->taken_ns = time_ns();
        list_add_tail(&vm->snapshots, &s->node);
        dmm_space_add_overhead(vm->space, heap_bytes_of(s));
    } else {
        kfree(s);
    }
    let_go(vm, ran);
    return r;
}

static enum vm_result no_snapshot(const struct vm *vm, const char *name, char *why)
{
    return vm_refuse(why, VM_NO_SUCH_FILE, "%s has no snapshot of the name %.40s (see `vm snapshots`)", vm->name, name);
}

/* Parked, without pins, in state PAUSED. *ran: to go on afterwards. */
static enum vm_result hold_for_restore(struct vm *vm, bool *ran, char *why)
{
    if (vm->state != VM_STOPPED)
        return hold(vm, "restored", ran, why);
    vm_wait_parked(vm);
    *ran = true;
    return VM_OK;
}

static enum vm_result restore(struct vm *vm, const char *name, char *why)
{
    bool ran, stopped = vm->state == VM_STOPPED;
    struct vm_snapshot *s = find_snapshot(vm, name);
    if (!s)
        return no_snapshot(vm, name, why);
    enum vm_result r = hold_for_restore(vm, &ran, why);
    if (r != VM_OK)
        return r;
    if (!dmm_space_restore(vm->space, s->image)) {
        let_go(vm, ran && !stopped);
        return vm_refuse(why, VM_NO_MEMORY, "%s: no frames left to return to the snapshot", vm->name);
    }
    vm_load(vm, s->state);
    vm->exit_code = -1;
    vm_set_state(vm, VM_PAUSED);
    let_go(vm, ran);
    log_info("vm: %s returned to its snapshot %s", vm->name, name);
    return VM_OK;
}

static enum vm_result delete_snapshot(struct vm *vm, const char *name, char *why)
{
    struct vm_snapshot *s = find_snapshot(vm, name);
    if (!s)
        return no_snapshot(vm, name, why);
    drop(vm, s);
    return VM_OK;
}

#define SNAPSHOT_COMMAND(name, fn)                                                                         \
    enum vm_result name(struct vm *vm, const char *snapshot, char *why)                                    \
    {                                                                                                      \
        vm_command_begin();                                                                                \
        enum vm_result r = fn(vm, snapshot, why);                                                          \
        vm_command_end();                                                                                  \
        return r;                                                                                          \
    }
SNAPSHOT_COMMAND(vm_snapshot, take_snapshot)
SNAPSHOT_COMMAND(vm_restore, restore)
SNAPSHOT_COMMAND(vm_snapshot_delete, delete_snapshot)
#undef SNAPSHOT_COMMAND

bool vm_snapshot_info(struct vm *vm, unsigned index, struct vm_snapshot_info *out)
{
    list_for_each(s, &vm->snapshots, struct vm_snapshot, node) {
        if (index-- > 0)
            continue;
        *out = (struct vm_snapshot_info){.name = s->name, .taken_ns = s->taken_ns, .own_pages = dmm_image_pages(s->image)};
        return true;
    }
    return false;
}
