/* What the commands of cmd_core.c need from above. */
#ifndef HV_CORE_CMD_CORE_H
#define HV_CORE_CMD_CORE_H
#include "include/hv/types.h"
struct boot_info;
struct core_power_ops {
    void (*reboot)(void); /* neither returns */
    void (*off)(void);
};
/* Both must stay valid for ever. Once, before the console thread starts. */
void cmd_core_init(const struct boot_info *bi, const struct core_power_ops *ops);
const char *hv_version(void);
#endif
