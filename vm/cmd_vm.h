/* Between the files of `vm ...`: cmd_vm.c has the command, cmd_fork.c its subcommands that copy. */
#ifndef HV_VM_CMD_VM_H
#define HV_VM_CMD_VM_H

#include "core/console.h"
#include "vm/life.h"

/* argv[1] is the subcommand, argv[2] the VM's name, which has been found. */
enum cmd_result cmd_vm_fork(struct cmd_ctx *c, struct vm *vm);
enum cmd_result cmd_vm_snapshot(struct cmd_ctx *c, struct vm *vm);
enum cmd_result cmd_vm_snapshots(struct cmd_ctx *c, struct vm *vm);
enum cmd_result cmd_vm_restore(struct cmd_ctx *c, struct vm *vm);
enum cmd_result cmd_vm_snapshot_delete(struct cmd_ctx *c, struct vm *vm);
/* The list of a VM's snapshots as the value of the key that was just written. */
void cmd_vm_json_snapshots(struct json_writer *w, struct vm *vm);
void cmd_vm_list_snapshots(struct vm *vm);
void cmd_vm_complete_fork(int argn, char **argv, void (*add)(const char *candidate, void *arg), void *arg);

#endif
