/* TEST-SOURCES: vm/fork.c */
/*
 * Forks and snapshots with the n-th request for memory refused, for n = 1, 2, ... until none is: the state's, the image's, each child's. Whatever fails,
 * the VM goes on as it was, no child is left, no image is held and no block kept; the reason has words; and the same command succeeds afterwards.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "lib/string.h"
#include "vm/life.h"
#include "vm/saved.h"

/* ---- what fork.c stands on ------------------------------------------------------------------------------------------------------------ */

static unsigned requests, refused_at;    /* 0: never */
static int blocks, held;                 /* of the heap; images' holders beside VMs */
static int64_t overhead;
static unsigned listed, alive, in_command, stopped, going, loaded;
static struct vm parent;
static struct vm *on_list[8];

static bool refuse(void) { return ++requests == refused_at; }

void *kzalloc(size_t bytes)
{
    if (refuse())
        return NULL;
    blocks++;
    return calloc(1, bytes);
}
void kfree(void *p)
{
    blocks -= p != NULL;
    free(p);
}

struct vm_saved *vm_save(struct vm *vm)
{
    assert_int_equal(vm->state, VM_PAUSED);
    struct vm_saved *s = kzalloc(sizeof(*s));
    if (s)
        s->bytes = sizeof(*s);
    return s;
}
void vm_load(struct vm *vm, const struct vm_saved *s)
{
    assert_int_equal(s->bytes, sizeof(*s));
    assert_true(vm->state != VM_RUNNING);
    loaded++;
}
void vm_give_up_pins(struct vm *vm) { assert_int_equal(vm->state, VM_PAUSED); }

enum dmm_freeze_result dmm_space_freeze(struct dmm_space *s, struct dmm_image **out)
{
    if (refuse())
        return DMM_FREEZE_NO_MEMORY;
    held++;
    *out = (struct dmm_image *)&held;
    return DMM_FREEZE_OK;
}
void dmm_image_release(struct dmm_image *image)
{
    assert_ptr_equal(image, &held);
    held--;
}
bool dmm_space_restore(struct dmm_space *s, struct dmm_image *image)
{
    assert_ptr_equal(image, &held);
    return !refuse();
}
uint64_t dmm_image_pages(const struct dmm_image *image) { return 7; }
void dmm_space_add_overhead(struct dmm_space *s, uint64_t bytes) { overhead += (int64_t)bytes; }

void vm_command_begin(void) { assert_int_equal(in_command++, 0); }
void vm_command_end(void) { assert_int_equal(in_command--, 1); }
enum vm_result vm_refuse(char *why, enum vm_result r, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, VM_WHY_MAX, fmt, ap);
    va_end(ap);
    return r;
}
enum vm_result vm_bad_state(const struct vm *vm, const char *what, char *why) { return vm_refuse(why, VM_BAD_STATE, "can not be %s", what); }
struct vm *vm_lookup(const char *name)
{
    for (unsigned n = 0; n < listed; n++)
        if (!strcmp(on_list[n]->name, name))
            return on_list[n];
    return NULL;
}
enum vm_result vm_make_like(const struct vm *like, struct dmm_image *image, const char *name, struct vm **out, char *why)
{
    assert_int_equal(like->state, VM_PAUSED);
    assert_ptr_equal(image, &held);
    assert_true(held > 0);
    if (refuse())
        return vm_refuse(why, VM_NO_MEMORY, "no memory for %s", name);
    *out = calloc(1, sizeof(**out));
    snprintf((*out)->name, sizeof((*out)->name), "%s", name);
    list_init(&(*out)->snapshots);
    alive++;
    return VM_OK;
}
void vm_publish(struct vm *vm) { on_list[listed++] = vm; }
void vm_unmake(struct vm *vm)
{
    assert_null(vm_lookup(vm->name));
    assert_true(vm->state != VM_RUNNING);
    alive--;
    free(vm);
}
enum vm_result vm_stand_still(struct vm *vm, char *why)
{
    assert_int_equal(vm->state, VM_RUNNING);
    vm->state = VM_PAUSED;
    stopped++;
    return VM_OK;
}
void vm_go_on(struct vm *vm)
{
    assert_int_equal(vm->state, VM_PAUSED);
    vm->state = VM_RUNNING;
    going++;
}
void vm_set_state(struct vm *vm, enum vm_state s) { vm->state = s; }
void vm_wait_parked(struct vm *vm) {}
uint64_t time_ns(void) { return 5; }
void log_write(enum log_level level, const char *fmt, ...) {}
bool str_copy(char *dst, size_t size, const char *src) { return (size_t)snprintf(dst, size, "%s", src) < size; }
bool config_name_valid(const char *name) { return *name; }

static void pause_platform(struct vm *vm, bool pause) { assert_true(pause && vm != &parent); }
static const struct vm_platform_ops platform = {.pause = pause_platform};
const struct vm_platform_ops *vm_platform(void) { return &platform; }

/* ---- commands ---------------------------------------------------------------------------------------------------------------------------- */

enum { CHILDREN = 3 };
static struct vm *children[CHILDREN];

static enum vm_result fork_three(char *why) { return vm_fork(&parent, NULL, CHILDREN, false, children, why); }
static enum vm_result snapshot(char *why) { return vm_snapshot(&parent, "kept", why); }
static enum vm_result restore(char *why) { return vm_restore(&parent, "kept", why); }

static void forget_children(void)
{
    while (listed) {
        struct vm *child = on_list[--listed];
        assert_int_equal(child->state, VM_RUNNING);
        child->state = VM_PAUSED;
        vm_unmake(child);
    }
}

static void start(enum vm_state state)
{
    memset(&parent, 0, sizeof(parent));
    strcpy(parent.name, "a");
    list_init(&parent.snapshots);
    parent.state = state;
    refused_at = requests = stopped = going = loaded = 0;
}

/* How many requests it makes: of each, what is left when it is refused. */
static unsigned refuse_each(enum vm_result (*command)(char *), enum vm_state state, bool with_snapshot)
{
    unsigned n = 1;
    for (bool done = false; !done; n++) {
        char why[VM_WHY_MAX] = "";
        start(state == VM_STOPPED ? VM_PAUSED : state);
        if (with_snapshot)
            assert_int_equal(snapshot(why), VM_OK);
        parent.state = state;
        int blocks_before = blocks, held_before = held;
        int64_t overhead_before = overhead;
        requests = stopped = going = loaded = 0;
        refused_at = n;
        enum vm_result r = command(why);
        done = requests < n;
        if (!done) {
            assert_int_equal(r, VM_NO_MEMORY);
            assert_true(why[0]);
            assert_int_equal(parent.state, state);
            assert_int_equal(going, stopped);
            assert_int_equal(loaded, command == fork_three ? n - MIN(n, 3u) : 0);
            assert_int_equal(blocks, blocks_before);
            assert_int_equal(held, held_before);
            assert_int_equal(overhead, overhead_before);
            assert_int_equal(alive + listed, 0);
            refused_at = 0;
            r = command(why);
        }
        assert_int_equal(r, VM_OK);
        assert_int_equal(alive, listed);
        forget_children();
        vm_drop_snapshots(&parent);
        assert_int_equal(blocks, 0);
        assert_int_equal(held, 0);
        assert_int_equal(overhead, 0);
    }
    return n - 2;
}

static void test_each_request_refused(void **state)
{
    assert_int_equal(refuse_each(fork_three, VM_RUNNING, false), 2 + CHILDREN);
    assert_int_equal(refuse_each(fork_three, VM_PAUSED, true), 2 + CHILDREN);
    assert_int_equal(refuse_each(snapshot, VM_RUNNING, false), 3);
    assert_int_equal(refuse_each(snapshot, VM_PAUSED, false), 3);
    assert_int_equal(refuse_each(restore, VM_RUNNING, true), 1);
    assert_int_equal(refuse_each(restore, VM_PAUSED, true), 1);
    assert_int_equal(refuse_each(restore, VM_STOPPED, true), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_each_request_refused) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
