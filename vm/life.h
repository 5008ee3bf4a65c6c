/* What the commands that make, copy and end VMs share (vm.c, make.c, fork.c). Console thread context, between vm_command_begin() and vm_command_end(). */
#ifndef HV_VM_LIFE_H
#define HV_VM_LIFE_H

#include "vm/vm_internal.h"

#define VM_WHY_MAX 160

/* One command at a time: no two change any VM. */
void vm_command_begin(void);
void vm_command_end(void);
/* Says why (VM_WHY_MAX), and returns r. */
enum vm_result vm_refuse(char *why, enum vm_result r, const char *fmt, ...) PRINTF_LIKE(3, 4);
enum vm_result vm_bad_state(const struct vm *vm, const char *what, char *why); /* "... is stopped and can not be `what`" */
struct vm *vm_lookup(const char *name);
const struct boot_info *vm_boot_info(void);

/* Registers and devices as at power-on. All vCPUs are parked, or not started yet. */
void vm_power_on_state(struct vm *vm);
/* A VM that is CREATED and on no list, of the configuration of another one and with memory inherited from its image. What vm_load() sets is undefined. */
enum vm_result vm_make_like(const struct vm *like, struct dmm_image *image, const char *name, struct vm **out, char *why);
void vm_publish(struct vm *vm);          /* on the list from now on */
void vm_withdraw(struct vm *vm);         /* and no more */
void vm_unmake(struct vm *vm);           /* on no list; all vCPUs parked or never started */

/* RUNNING -> PAUSED: every vCPU is parked and time stands still. */
enum vm_result vm_stand_still(struct vm *vm, char *why);
void vm_go_on(struct vm *vm);            /* PAUSED -> RUNNING */
void vm_set_state(struct vm *vm, enum vm_state s);
void vm_wait_parked(struct vm *vm);
void vm_drop_snapshots(struct vm *vm);   /* fork.c */

#endif
