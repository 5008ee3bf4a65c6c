# Palimpsest. `make help` lists the targets; everything that is made goes under build/.
#
# Two configurations live side by side: build/release, and build/debug (DEBUG=1: lock ranks, debug_assert). Sources are
# found by wildcard, so a new file needs no line here. `make` alone needs no network and no root; `make run` and `make
# test` first let tools/setup install what is missing.

MAKEFLAGS += --no-builtin-rules --no-builtin-variables
SHELL := /bin/bash
.DELETE_ON_ERROR:
.SUFFIXES:

CC     := gcc
LD     := ld
NASM   := nasm
NM     := nm
CLANG  := clang
PYTHON := python3

V ?= 0
ifeq ($(V),0)
Q := @
say = @printf '  %-6s %s\n' '$(1)' '$(2)'
else
Q :=
say = @:
endif

DEBUG ?= 0
CFG   := $(if $(filter 1,$(DEBUG)),debug,release)
OUT   := build/$(CFG)

# Files named on the command line of `make run` or `make image`: the configuration, and what it names.
CONFIG ?= guests/demo.conf
ADD    ?= build/guest-kernel/vmlinuz build/guests/initramfs.img

.PHONY: all image iso run setup test test-unit test-fuzz test-machine bench bench-run check check-headers clean help FORCE
all: $(OUT)/palimpsest.elf $(OUT)/BOOTX64.EFI $(OUT)/palimpsest.mb2

# --- the hypervisor ---------------------------------------------------------------------------------------------------

HV_DIRS := lib x86 core mm mm/dmm policies drivers vm svm vmx vdev
HV_C    := $(filter-out %/asm_offsets.c,$(foreach d,$(HV_DIRS),$(sort $(wildcard $(d)/*.c))))
HV_ASM  := boot/entry.asm boot/trampoline.asm $(foreach d,$(HV_DIRS),$(sort $(wildcard $(d)/*.asm)))
HV_OBJ  := $(HV_C:%.c=$(OUT)/obj/%.o) $(HV_ASM:%.asm=$(OUT)/obj/%.asm.o)
.SECONDARY:
OFFSETS := $(patsubst %.c,$(OUT)/gen/%.inc,$(foreach d,$(HV_DIRS),$(wildcard $(d)/asm_offsets.c)))

WARN     := -Wall -Wextra -Werror -Wmissing-prototypes -Wstrict-prototypes -Wshadow -Wundef
OPTIMIZE := -Os
HV_FLAGS = -std=gnu17 $(OPTIMIZE) -g -ffreestanding -nostdlib -fno-pic -mcmodel=kernel -mno-red-zone -mgeneral-regs-only -mpopcnt \
            -fno-omit-frame-pointer -fno-strict-aliasing -fno-asynchronous-unwind-tables -fstack-protector-strong \
            -ffunction-sections -fdata-sections \
            -mstack-protector-guard=global -fcf-protection=none -ffile-prefix-map=$(CURDIR)/= $(WARN) \
            -I. -DHV_HOST=0 -DHV_DEBUG=$(DEBUG)

# What guests cause by the thousand is compiled for speed; all the rest, most of the image, for size: the cache is left to the exit paths.
HOT  := lib/string core/lock core/thread core/timer core/waitq mm/dmm/fault mm/dmm/frame_alloc mm/dmm/guest_access mm/dmm/p2m mm/dmm/pool mm/dmm/rmap mm/dmm/share mm/dmm/scan mm/dmm/digest policies/dedup_table \
        vm/bus vm/cpuid vm/fpu vm/nfault vm/pio vm/run vdev/vlapic svm/exit svm/inject svm/npt svm/ops vmx/ept vmx/exit vmx/inject vmx/ops
$(filter $(HOT:%=$(OUT)/obj/%.o),$(HV_OBJ)): OPTIMIZE := -O2

$(OUT)/obj/%.o: %.c Makefile
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(HV_FLAGS) -MMD -MP -c $< -o $@

# Structure offsets for the assembler, taken from the compiler: a line `#define NAME value` among the assembly of
# <folder>/asm_offsets.c becomes `%define NAME value` in gen/<folder>/asm_offsets.inc.
$(OUT)/gen/%/asm_offsets.inc: %/asm_offsets.c Makefile
	$(call say,OFFSET,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(HV_FLAGS) -MMD -MP -MT $@ -MF $(@:.inc=.d) -S $< -o $(@:.inc=.s)
	$(Q)sed -n 's/^#define[[:space:]]\+\([A-Za-z0-9_]\+\)[[:space:]]\+\$$\?\(-\?[0-9]\+\).*/%define \1 \2/p' $(@:.inc=.s) >$@

$(OUT)/obj/%.asm.o: %.asm Makefile $(OFFSETS)
	$(call say,NASM,$<)
	@mkdir -p $(@D)
	$(Q)$(NASM) -f elf64 -g -F dwarf -Werror -I. -I $(OUT)/gen/ -DHV_DEBUG=$(DEBUG) -MD $(@:.o=.d) -MP -o $@ $<

# The symbol table for backtraces is made from a first link with an empty one. It sits behind everything that it
# describes (functions only, and .text comes first), so that adding it moves nothing; that is checked.
#
# What only tests, loaders or the debug build call is left out (--gc-sections); linker.ld keeps what nothing refers to by name.
HV_LINK = $(LD) -nostdlib -static --gc-sections -z noexecstack -z max-page-size=4096 --fatal-warnings --orphan-handling=error \
          -T linker.ld -o $@ $(HV_OBJ)

$(OUT)/obj/ksyms0.c: tools/gen-ksyms Makefile
	@mkdir -p $(@D)
	$(Q)$(PYTHON) tools/gen-ksyms </dev/null >$@

$(OUT)/obj/palimpsest.0.elf: $(HV_OBJ) $(OUT)/obj/ksyms0.o linker.ld
	$(call say,LD,$@)
	$(Q)$(HV_LINK) $(OUT)/obj/ksyms0.o

$(OUT)/obj/ksyms1.c: $(OUT)/obj/palimpsest.0.elf tools/gen-ksyms
	$(Q)$(NM) -n $< | $(PYTHON) tools/gen-ksyms >$@

$(OUT)/obj/ksyms%.o: $(OUT)/obj/ksyms%.c Makefile
	$(Q)$(CC) $(HV_FLAGS) -c $< -o $@

$(OUT)/palimpsest.elf: $(HV_OBJ) $(OUT)/obj/ksyms1.o linker.ld
	$(call say,LD,$@)
	$(Q)$(HV_LINK) $(OUT)/obj/ksyms1.o -Map $(OUT)/palimpsest.map
	$(Q)$(NM) -n $@ | $(PYTHON) tools/gen-ksyms | cmp -s - $(OUT)/obj/ksyms1.c || \
	    { echo "$@: the symbol table moved the code it describes" >&2; rm -f $@; exit 1; }

# A file that was added or removed changes what is linked though no object is newer.
$(OUT)/obj/sources: FORCE
	@mkdir -p $(@D)
	@echo '$(HV_OBJ)' | cmp -s - $@ || echo '$(HV_OBJ)' >$@
$(OUT)/obj/palimpsest.0.elf $(OUT)/palimpsest.elf: $(OUT)/obj/sources

# --- the UEFI application ---------------------------------------------------------------------------------------------

EFI_C     := $(filter-out boot/multiboot2%,$(sort $(wildcard boot/*.c lib/*.c)))
EFI_OBJ   := $(EFI_C:%.c=$(OUT)/efi/%.o) $(OUT)/efi/boot/embed.asm.o \
             $(OUT)/efi/boot/enter.asm.o
EFI_FLAGS := -std=gnu17 -Os -g -ffreestanding -fpic -fshort-wchar -mno-red-zone -mgeneral-regs-only \
             -fno-stack-protector -fno-strict-aliasing -fvisibility=hidden -fcf-protection=none \
             -fno-asynchronous-unwind-tables -ffile-prefix-map=$(CURDIR)/= $(WARN) -DGNU_EFI_USE_MS_ABI \
             -isystem /usr/include/efi -isystem /usr/include/efi/x86_64 -I. -DHV_HOST=0 -DHV_DEBUG=$(DEBUG)
GNU_EFI   := /usr/lib

$(OUT)/efi/%.o: %.c Makefile
	$(call say,CC,$< (efi))
	@mkdir -p $(@D)
	$(Q)$(CC) $(EFI_FLAGS) -MMD -MP -c $< -o $@

$(OUT)/palimpsest.stripped.elf: $(OUT)/palimpsest.elf
	$(Q)strip --strip-all -o $@ $<

# Packed by the library that the loaders unpack it with (boot/unpack.c). The one for GDB stays as it is.
LIBDEFLATE := $(shell $(CC) -print-file-name=libdeflate.a)
build/host/pack: tools/pack.c boot/unpack.c boot/unpack.h Makefile
	$(call say,HOSTCC,$<)
	@mkdir -p $(@D)
	@[ -r $(LIBDEFLATE) ] || { echo "libdeflate.a is missing (Debian: libdeflate-dev): run tools/setup" >&2; exit 1; }
	$(Q)$(CC) -std=gnu17 -O2 -Wall -Wextra -Wshadow -Werror -I. -DHV_HOST=1 -o $@ tools/pack.c boot/unpack.c $(LIBDEFLATE)

$(OUT)/palimpsest.packed: $(OUT)/palimpsest.stripped.elf build/host/pack
	$(call say,PACK,$@)
	$(Q)build/host/pack $< $@

$(OUT)/efi/boot/embed.asm.o: boot/embed.asm $(OUT)/palimpsest.packed Makefile
	$(call say,NASM,$<)
	@mkdir -p $(@D)
	$(Q)$(NASM) -f elf64 -Werror -I $(OUT)/ -o $@ $<

$(OUT)/efi/boot/enter.asm.o: boot/enter.asm Makefile
	$(call say,NASM,$<)
	@mkdir -p $(@D)
	$(Q)$(NASM) -f elf64 -Werror -o $@ $<

$(OUT)/efi/palimpsest-efi.so: $(EFI_OBJ) Makefile
	$(call say,LD,$@)
	$(Q)$(LD) -nostdlib -shared -Bsymbolic -z noexecstack -z nocombreloc --no-undefined -znorelro \
	    -T $(GNU_EFI)/elf_x86_64_efi.lds $(GNU_EFI)/crt0-efi-x86_64.o $(EFI_OBJ) -o $@ $(GNU_EFI)/libgnuefi.a $(LIBDEFLATE)

# objcopy stamps the file with this time: the same sources make the same bytes.
export SOURCE_DATE_EPOCH ?= 1704067200
$(OUT)/BOOTX64.EFI: $(OUT)/efi/palimpsest-efi.so
	$(call say,EFI,$@)
	$(Q)objcopy -j .text -j .sdata -j .data -j .dynamic -j .dynsym -j .rel -j .rela -j '.rel.*' -j '.rela.*' -j .reloc \
	    -j .rodata --target efi-app-x86_64 --subsystem=10 $< $@

# --- the multiboot2 loader: a flat file for GRUB ---------------------------------------------------------------------------

MB2_C     := $(filter-out boot/efi_%,$(sort $(wildcard boot/*.c lib/*.c)))
MB2_OBJ   := $(OUT)/mb2/boot/multiboot2.asm.o $(MB2_C:%.c=$(OUT)/mb2/%.o) $(OUT)/efi/boot/embed.asm.o $(OUT)/efi/boot/enter.asm.o
MB2_FLAGS := -std=gnu17 -Os -g -ffreestanding -fpie -mno-red-zone -mgeneral-regs-only -fno-stack-protector -fno-strict-aliasing \
             -fvisibility=hidden -fcf-protection=none -fno-asynchronous-unwind-tables -ffile-prefix-map=$(CURDIR)/= $(WARN) \
             -I. -DHV_HOST=0 -DHV_DEBUG=$(DEBUG)

$(OUT)/mb2/%.o: %.c Makefile
	$(call say,CC,$< (mb2))
	@mkdir -p $(@D)
	$(Q)$(CC) $(MB2_FLAGS) -MMD -MP -c $< -o $@

$(OUT)/mb2/boot/multiboot2.asm.o: boot/multiboot2.asm Makefile
	$(call say,NASM,$<)
	@mkdir -p $(@D)
	$(Q)$(NASM) -f elf64 -Werror -o $@ $<

$(OUT)/mb2/palimpsest-mb2.elf: $(MB2_OBJ) boot/multiboot2.ld Makefile
	$(call say,LD,$@)
	$(Q)$(LD) -nostdlib -pie --no-dynamic-linker -z noexecstack -z norelro -z max-page-size=4096 --no-undefined \
	    --no-warn-rwx-segments -T boot/multiboot2.ld -o $@ $(MB2_OBJ) $(LIBDEFLATE)

$(OUT)/palimpsest.mb2: $(OUT)/mb2/palimpsest-mb2.elf
	$(Q)objcopy -O binary -j .multiboot2 -j .text -j .rodata -j .rela -j .data --gap-fill 0 --pad-to $$($(NM) $< | \
	    sed -n 's/^0*\([0-9a-f]*\) . mb2_load_end$$/0x\1/p') $< $@

# --- images and running -----------------------------------------------------------------------------------------------

setup:
	$(Q)tools/setup

build/guest-kernel/vmlinuz:
	$(Q)tools/setup

build/guest-generic/vmlinuz:
	$(Q)tools/setup generic

include guests/rules.mk

build/guests/initramfs.img: $(shell find guests -type f 2>/dev/null)
	$(call say,GUEST,$@)
	@mkdir -p $(@D)
	$(Q)guests/build-initramfs $@

build/palimpsest.img: $(OUT)/BOOTX64.EFI $(CONFIG) $(foreach f,$(ADD),$(firstword $(subst =, ,$(f)))) tools/mkimage FORCE
	$(call say,IMAGE,$@)
	$(Q)tools/mkimage --efi $(OUT)/BOOTX64.EFI --config $(CONFIG) $(foreach f,$(ADD),--add $(f)) $@

image: build/palimpsest.img

# Boots by GRUB on BIOS and UEFI machines, from CD or written to a stick.
build/palimpsest.iso: $(OUT)/palimpsest.mb2 $(CONFIG) $(foreach f,$(ADD),$(firstword $(subst =, ,$(f)))) tools/mkiso FORCE
	$(call say,ISO,$@)
	$(Q)tools/mkiso --mb2 $(OUT)/palimpsest.mb2 --config $(CONFIG) $(foreach f,$(ADD),--add $(f)) $@

iso: build/palimpsest.iso

# QEMU's own options go into RUN, e.g. make run RUN="--memory 2G --gdb".
run: setup
	$(Q)$(MAKE) --no-print-directory image
	$(Q)tools/run-qemu --image build/palimpsest.img $(RUN)

# --- tests on the host ------------------------------------------------------------------------------------------------
#
# A test names the sources that it wants linked in its first lines: /* TEST-SOURCES: lib/config.c lib/string.c */ and
# libraries with TEST-LIBS; fuzz targets and benchmarks use FUZZ- and BENCH-.

tag = $(shell head -n 40 $(1) | tr '\n' ' ' | sed -n 's/.*$(2):\([^*]*\)\*.*/\1/p')
HOST_FLAGS  := -std=gnu17 -g -fno-omit-frame-pointer -Wall -Wextra -Werror -Wno-unused-parameter -DHV_HOST=1 \
               -Itests/unit/fake -I. -pthread
SANITIZE    := -fsanitize=address,undefined -fno-sanitize-recover=all
UNIT_FLAGS  := $(HOST_FLAGS) -O1 -DHV_DEBUG=1 $(SANITIZE)
FUZZ_FLAGS  := $(HOST_FLAGS) -O1 -DHV_DEBUG=1 $(SANITIZE) -fsanitize=fuzzer-no-link -Wno-unknown-warning-option
BENCH_FLAGS := $(HOST_FLAGS) -O2 -DHV_DEBUG=0

UNIT_SRC  := $(sort $(wildcard tests/unit/test_*.c))
FUZZ_SRC  := $(sort $(wildcard tests/fuzz/fuzz_*.c))
BENCH_SRC := $(sort $(wildcard tests/bench/bench_*.c))
UNIT_BIN  := $(UNIT_SRC:tests/unit/%.c=build/unit/%)
FUZZ_BIN  := $(FUZZ_SRC:tests/fuzz/%.c=build/fuzz/%)
BENCH_BIN := $(BENCH_SRC:tests/bench/%.c=build/bench/%)

build/unit/obj/%.o: %.c Makefile
	$(call say,CC,$< (unit))
	@mkdir -p $(@D)
	$(Q)$(CC) $(UNIT_FLAGS) -MMD -MP -c $< -o $@

build/fuzz/obj/%.o: %.c Makefile
	$(call say,CLANG,$< (fuzz))
	@mkdir -p $(@D)
	$(Q)$(CLANG) $(FUZZ_FLAGS) -MMD -MP -c $< -o $@

build/bench/obj/%.o: %.c Makefile
	$(call say,CC,$< (bench))
	@mkdir -p $(@D)
	$(Q)$(CC) $(BENCH_FLAGS) -MMD -MP -c $< -o $@

# host_program(source, kind, TAG, link command)
define host_program
build/$(2)/$(notdir $(basename $(1))): build/$(2)/obj/$(1:.c=.o) \
    $(patsubst %.c,build/$(2)/obj/%.o,$(call tag,$(1),$(3)-SOURCES)) Makefile
	$$(call say,LINK,$$@)
	$$(Q)$(4) -o $$@ $$(filter %.o,$$^) $(call tag,$(1),$(3)-LIBS) $(5)
endef
ifneq ($(filter test test-unit test-fuzz bench-run build/unit/% build/fuzz/% build/bench/%,$(MAKECMDGOALS)),)
$(foreach s,$(UNIT_SRC),$(eval $(call host_program,$(s),unit,TEST,$(CC) $(UNIT_FLAGS),-lcmocka)))
$(foreach s,$(FUZZ_SRC),$(eval $(call host_program,$(s),fuzz,FUZZ,$(CLANG) $(FUZZ_FLAGS) -fsanitize=fuzzer,)))
$(foreach s,$(BENCH_SRC),$(eval $(call host_program,$(s),bench,BENCH,$(CC) $(BENCH_FLAGS),)))
endif

# UNIT=prefix and FUZZ=prefix pick some; FUZZ_SECONDS is per fuzz target.
FUZZ_SECONDS ?= 60
test-unit: $(filter build/unit/test_$(UNIT)%,$(UNIT_BIN))
	$(Q)$(PYTHON) tools/test-host unit $^

test-fuzz: $(filter build/fuzz/fuzz_$(FUZZ)%,$(FUZZ_BIN))
	$(Q)$(PYTHON) tools/test-host fuzz --seconds $(FUZZ_SECONDS) $^

# --- tests on the emulator, and the whole -------------------------------------------------------------------------------

BACKEND ?= svm
ROWS    ?=
build/machine/oracle: tests/machine/oracle.c
	$(call say,HOSTCC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) -std=gnu17 -O2 -Wall -Wextra -Wshadow -Werror -o $@ $<

test-machine:
	$(Q)$(MAKE) --no-print-directory DEBUG=1 all build/machine/oracle tiny-guests build/guest-kernel/vmlinuz build/guest-generic/vmlinuz \
	    build/guests/initramfs.img
	$(Q)PALIMPSEST_BUILD=build/debug tests/machine/run --backend $(BACKEND) $(if $(ROWS),--rows $(ROWS)) $(if $(QUICK),--quick)

test: setup
	$(Q)$(PYTHON) tools/test-all

bench: setup
	$(Q)$(MAKE) --no-print-directory bench-run

bench-run: all tiny-guests $(BENCH_BIN) build/guest-kernel/vmlinuz build/guests/initramfs.img
	@for f in BOOTX64.EFI palimpsest.mb2; do stat -c %s $(OUT)/$$f | awk -v f=$$f '{ printf "image: %-15s %6.1f KiB  goal 256: %s\n", \
	    f, $$1 / 1024, $$1 <= 262144 ? "met" : "MISSED" }'; done
	@size $(OUT)/palimpsest.elf | awk 'NR == 2 { printf "image: %-15s %6.1f KiB text and data, %.1f KiB bss\n", "unpacked", ($$1 + $$2) / 1024, $$3 / 1024 }'
	$(Q)for b in $(BENCH_BIN); do $$b || exit 1; done
	$(Q)PALIMPSEST_BUILD=$(OUT) tests/bench/run
	$(Q)PALIMPSEST_BUILD=$(OUT) tests/bench/run --backend vmx
	$(Q)PALIMPSEST_BUILD=$(OUT) tests/bench/memory --slow 2

# --- static checks ----------------------------------------------------------------------------------------------------

HEADERS := $(sort $(foreach d,include/hv include/hw include/abi $(HV_DIRS),$(wildcard $(d)/*.h)))
check:
	$(Q)bad=0; $(PYTHON) tools/check-layers || bad=1; $(PYTHON) tools/check-style || bad=1; \
	    $(PYTHON) tools/check-models || bad=1; \
	    $(MAKE) --no-print-directory check-headers || bad=1; exit $$bad

# Each header must compile alone, so that the order of includes never matters.
check-headers:
	$(Q)bad=0; n=0; for h in $(HEADERS); do n=$$((n+1)); \
	    printf '#include "%s"\n' $$h | $(CC) $(HV_FLAGS) -Wno-unused-function -fsyntax-only -x c - || \
	    { echo "$$h does not compile alone" >&2; bad=$$((bad+1)); }; done; \
	    echo "headers: $$((n-bad)) passed, $$bad failed"; [ $$bad = 0 ]

clean:
	$(Q)rm -rf build/release build/debug build/host build/unit build/fuzz build/bench build/guests build/machine build/palimpsest.img build/palimpsest.iso

help:
	@echo 'make                  the hypervisor: build/release/palimpsest.elf and BOOTX64.EFI (DEBUG=1: build/debug)'
	@echo 'make image            build/palimpsest.img from CONFIG=file ADD="files"'
	@echo 'make iso              build/palimpsest.iso from the same: GRUB, for BIOS and UEFI, CD or stick'
	@echo 'make run              image, then boot it in QEMU; RUN="--memory 2G --cpus 1 --gdb" goes to tools/run-qemu'
	@echo 'make test             everything; the last line is "N passed, N failed"'
	@echo 'make test-unit        host tests (UNIT=prefix)'
	@echo 'make test-fuzz        fuzz targets (FUZZ=prefix FUZZ_SECONDS=60)'
	@echo 'make test-machine     whole-system tests in the emulator (BACKEND=svm ROWS=prefix)'
	@echo 'make bench            figures beside their goals'
	@echo 'make check            layering, headers that stand alone, style'
	@echo 'make setup            installs missing Debian packages, fetches the guest kernel'
	@echo 'make clean            removes what was built (keeps the fetched guest kernel)'
	@echo 'V=1 shows the commands'

-include $(shell find build -name '*.d' 2>/dev/null)
