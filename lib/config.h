/*
 * palimpsest.conf: the parser, pure C, used by the loader (which files to read) and by core (which VMs to start),
 * and for `vm create NAME key=value ...` (config_set_vm_key). Untrusted input: everything is validated here, every
 * error names file, line and what was wrong.
 *
 *   # comment                     [hypervisor]  log = info|debug|warn|error, console = ttyS0[,115200], file = FILE (repeatable),
 *                                 secure-groups = NAME NAME...
 *   [vm NAME]                     memory = 512M   vcpus = 1   kernel = FILE   initrd = FILE   cmdline = TEXT
 *                                 module = FILE [ARGS] (repeatable)   autostart = yes|no   count = N
 *                                 min = SIZE   max = SIZE   weight = N   debug-exit = yes|no
 *                                 cpu-weight = N   cpu-cap = PERCENT   affinity = CPUS[/CPUS]...
 *                                 group = NAME   class = strict|insured|best-effort
 */
#ifndef HV_LIB_CONFIG_H
#define HV_LIB_CONFIG_H
#include "include/hv/types.h"
#include "lib/cpuset.h"

#define CONFIG_NAME_MAX 32      /* VM names: [a-z A-Z 0-9 _ . -], including the NUL */
#define CONFIG_FILE_MAX 112     /* = BOOT_NAME_MAX */
#define CONFIG_CMDLINE_MAX 2048 /* Linux's limit, with the NUL */
#define CONFIG_MAX_VMS 64       /* sections; count= may multiply them, up to CONFIG_MAX_COUNT each */
#define CONFIG_MAX_COUNT 256
#define CONFIG_MAX_MODULES 8
#define CONFIG_MAX_FILES 32      /* file = : for `vm create` later */
#define CONFIG_MAX_VCPUS 64
#define CONFIG_MAX_SECURE_GROUPS 16
#define CONFIG_AFFINITY_MAX 256

struct config_module { char file[CONFIG_FILE_MAX]; char args[256]; };

struct config_vm {
    char name[CONFIG_NAME_MAX];
    uint64_t memory_bytes;  /* multiple of 4 KiB, 1 MiB..; default 128M */
    uint64_t min_bytes, max_bytes; /* pool limits; default 0 and memory_bytes */
    uint32_t vcpus, weight, count; /* defaults 1, 100, 1 */
    uint32_t cpu_weight, cpu_cap; /* of each vCPU against others'; percent of a CPU at most, 0: no limit. Defaults 100, 0 */
    char affinity[CONFIG_AFFINITY_MAX]; /* default "all" */
    bool autostart, debug_exit; /* defaults yes, no */
    char group[CONFIG_NAME_MAX]; /* shares pages with the others of it; "": with nobody */
    uint32_t class;         /* enum dmm_class's numbers: 0 best-effort (default), 1 insured, 2 strict */
    char kernel[CONFIG_FILE_MAX], initrd[CONFIG_FILE_MAX]; /* "" = none; kernel is required */
    char cmdline[CONFIG_CMDLINE_MAX];
    uint32_t module_count;
    struct config_module modules[CONFIG_MAX_MODULES];
    uint32_t line;          /* of its section header, for messages */
};

struct config {
    uint32_t log_level;     /* enum log_level's numbers; default 2 (info) */
    uint32_t console_baud;  /* default 115200 */
    uint32_t file_count;
    char files[CONFIG_MAX_FILES][CONFIG_FILE_MAX];
    uint32_t secure_group_count;
    char secure_groups[CONFIG_MAX_SECURE_GROUPS][CONFIG_NAME_MAX];
    uint32_t vm_count;
    struct config_vm vms[CONFIG_MAX_VMS];
};

struct config_error { uint32_t line; char text[256]; }; /* line 0: not tied to a line */

void config_defaults(struct config *c);
/* Parses `len` bytes (need not be terminated). False: *err says what and where, *c is unspecified. */
bool config_parse(struct config *c, const char *text, size_t len, struct config_error *err);
void config_vm_defaults(struct config_vm *vm, const char *name);
/* One key of a VM, as in the file or on the console. False: err->text says why. */
bool config_set_vm_key(struct config_vm *vm, const char *key, const char *value, struct config_error *err);
/* Checks what only makes sense at the end (kernel given, min <= max <= memory...). */
bool config_vm_check(const struct config_vm *vm, struct config_error *err);
/* Where vCPU n may run: "0-3" is for all, "0/1/2-3" for one after the other, the last for all that follow. False: malformed. */
bool config_affinity(const char *text, unsigned vcpu, struct cpu_set *out);
bool config_name_valid(const char *name);
/* Instance i (0..count-1): NAME if count is 1, else NAMEi. False if it does not fit. */
bool config_instance_name(const struct config_vm *vm, uint32_t i, char *out, size_t size);
/* Calls cb for each distinct file named; cb returns false to stop. */
void config_for_each_file(const struct config *c, bool (*cb)(const char *file, void *arg), void *arg);
#endif
