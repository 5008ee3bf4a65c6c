/* A small machine for DMM on the host: memory with holes, an image, boot files; what DMM wants of the layers below; a model TLB's hooks. */
#ifndef TESTS_FAKE_DMM_HOST_H
#define TESTS_FAKE_DMM_HOST_H

#include <setjmp.h>

#include "include/abi/boot_info.h"
#include "include/hv/dmm.h"
#include "include/hv/p2m.h"

#define HOST_FILE_PAGES 24u

extern const struct p2m_format p2m_format_fake; /* p2m_fake.c */
extern struct boot_info host_boot_info;
extern jmp_buf *host_panic_jmp; /* where a panic goes; NULL: the test aborts */
extern char host_panic_text[256];

/* A fresh machine with about `mib` MiB of usable memory in three ranges, frame_init() and dmm_init() done. Once a process. */
void host_machine_init(unsigned mib);
mfn_t host_file_mfn(void); /* HOST_FILE_PAGES of them; page n is filled with host_file_byte(n) */
uint8_t host_file_byte(unsigned page);
/* dmm_audit(), each violation printed; the test fails unless there is none. */
void host_audit(void);
uint64_t host_random(uint64_t below); /* deterministic; HOST_SEED in the environment changes it */
/* Makes the calling thread CPU `id`. */
void host_become_cpu(unsigned id);

#endif
