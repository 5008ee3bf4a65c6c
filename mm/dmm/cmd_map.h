/* `mem map`, for the `mem` command. */
#ifndef HV_MM_DMM_CMD_MAP_H
#define HV_MM_DMM_CMD_MAP_H

#include "core/console.h"

enum cmd_result cmd_mem_map(struct cmd_ctx *c, const char *name);

#endif
