# The tiny guests: build/guests/NAME.elf (ELF32) and, for hello, hello64.elf (ELF64), hello.bin (address fields in the header), hello-pvh.elf, hello.bzimage.

TINY       := $(filter-out tiny,$(notdir $(basename $(wildcard guests/tiny/*.c))))
TINY_FLAGS := -std=gnu17 -Iguests/tiny -Os -ffreestanding -nostdlib -fno-pic -fno-pie -mcmodel=small -mno-red-zone -mgeneral-regs-only \
              -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none -ffunction-sections -Wall -Wextra -Werror
TINY_OUT   := $(TINY:%=build/guests/%.elf) build/guests/hello64.elf build/guests/hello.bin build/guests/hello-pvh.elf build/guests/hello.bzimage

build/guests/obj/%.o: guests/tiny/%.c guests/tiny/tiny.h $(wildcard guests/tiny/*/*.h) guests/rules.mk
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(TINY_FLAGS) -c $< -o $@

build/guests/obj/start.o: guests/tiny/start.asm guests/rules.mk
	$(call say,NASM,$<)
	@mkdir -p $(@D)
	$(Q)$(NASM) -f elf64 -Werror -o $@ $<

build/guests/obj/start-flat.o: guests/tiny/start.asm guests/rules.mk
	$(call say,NASM,$< (flat))
	@mkdir -p $(@D)
	$(Q)$(NASM) -f elf64 -Werror -DFLAT -o $@ $<

build/guests/obj/start-pvh.o: guests/tiny/start.asm guests/rules.mk
	$(call say,NASM,$< (pvh))
	@mkdir -p $(@D)
	$(Q)$(NASM) -f elf64 -Werror -DPVH -o $@ $<

build/guests/obj/start-bzimage.o: guests/tiny/start.asm guests/rules.mk
	$(call say,NASM,$< (bzimage))
	@mkdir -p $(@D)
	$(Q)$(NASM) -f elf64 -Werror -DBZIMAGE -o $@ $<

TINY_LINK = $(LD) -nostdlib -static -z noexecstack -z max-page-size=4096 --no-warn-rwx-segments --build-id=none -s -T $(filter %.ld,$^)

# A guest of several files: those in a folder of its name are linked with it.
HOSTILE := $(patsubst guests/tiny/%.c,build/guests/obj/%.o,$(wildcard guests/tiny/hostile/*.c))
build/guests/obj/hostile.elf64: $(HOSTILE)
PLATFORM := $(patsubst guests/tiny/%.c,build/guests/obj/%.o,$(wildcard guests/tiny/platform/*.c))
build/guests/obj/platform.elf64: $(PLATFORM)
build/guests/obj/bench.elf64 build/guests/obj/smp.elf64 build/guests/obj/share.elf64: build/guests/obj/lib/cpus.o

build/guests/obj/%.elf64: build/guests/obj/start.o build/guests/obj/tiny.o build/guests/obj/%.o guests/tiny/tiny.ld
	$(call say,LD,$@)
	$(Q)$(TINY_LINK) -o $@ $(filter %.o,$^)

build/guests/hello64.elf: build/guests/obj/hello.elf64
	$(Q)cp $< $@

build/guests/%.elf: build/guests/obj/%.elf64
	$(Q)objcopy -O elf32-i386 $< $@

build/guests/hello.bin: build/guests/obj/start-flat.o build/guests/obj/tiny.o build/guests/obj/hello.o guests/tiny/tiny.ld
	$(call say,LD,$@)
	$(Q)$(TINY_LINK) --oformat binary -o $@ $(filter %.o,$^)

build/guests/hello-pvh.elf: build/guests/obj/start-pvh.o build/guests/obj/tiny.o build/guests/obj/hello.o guests/tiny/pvh.ld
	$(call say,LD,$@)
	$(Q)$(TINY_LINK) -o $@ $(filter %.o,$^)

build/guests/hello.bzimage: build/guests/obj/start-bzimage.o build/guests/obj/tiny.o build/guests/obj/hello.o guests/tiny/bzimage.ld
	$(call say,LD,$@)
	$(Q)$(TINY_LINK) --oformat binary -o $@ $(filter %.o,$^)

tiny-guests: $(TINY_OUT)
.PHONY: tiny-guests
