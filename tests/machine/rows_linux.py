"""Debian's kernel as a guest: unmodified, with the root of guests/build-initramfs."""
import os
import re

from machine import ROOT
from rows import guest, require, row

HYPERVISOR = "[hypervisor]\nlog = info\n"
READY = "guest ready"
LINUX = """[vm {name}]
memory = {memory}
kernel = vmlinuz
initrd = initramfs.img
cmdline = console=ttyS0 panic=-1 hostname={name} {more}
"""


def linux_files():
    return {"vmlinuz": guest("guest-kernel/vmlinuz"), "initramfs.img": guest("guests/initramfs.img")}


def linux(name, memory="256M", more="quiet"):
    return LINUX.format(name=name, memory=memory, more=more)


def to_shell(m, name, timeout=120):
    m.attach(name)
    m.expect(READY, timeout)
    m.expect(r":/# ", 30)


@row("guest-linux-two", timeout=240, memory="1G", quick=("vmx",))
def guest_linux_two(bench):
    """What `make run` starts."""
    with open(os.path.join(ROOT, "guests", "demo.conf"), encoding="utf-8") as f:
        m = bench.boot(f.read(), linux_files())
    for name in ("debian0", "debian1"):
        to_shell(m, name, 180)
        require(m.shell("hostname") in ("debian", name), "hostname")
        require("Linux" in m.shell("uname -a"), "uname")
        require(m.shell("echo $((6*7))") == "42", "arithmetic in the guest's shell")
        m.detach()
    vms = {v["name"]: v for v in m.json("mem")["vms"]}
    for name in ("debian0", "debian1"):
        require(vms[name]["configured_pages"] == (256 << 20) >> 12, f"{name}: configured")
        require(0 < vms[name]["resident_pages"] < vms[name]["configured_pages"], f"{name} is not paged on demand: {vms[name]}")
        initrd_pages = os.path.getsize(linux_files()["initramfs.img"]) >> 12
        require(vms[name]["image_shared_pages"] >= initrd_pages, f"{name} has an initrd of its own: {vms[name]}")
        require(vms[name]["resident_large_pages"] > 0, f"{name} has no 2 MiB mapping: {vms[name]}")
    touches = {f["cause"]: f["count"] for f in m.json("stat")["faults"]}
    require(touches.get("first-touch-2m", 0) > 0, f"no first touch got 2 MiB: {touches}")
    to = m.json("stat debian0")
    require(any(e["count"] > 0 for e in to["exits"]), f"stat counts nothing: {to}")


@row("guest-linux-shares-files", timeout=150, memory="1G")
def guest_linux_shares_files(bench):
    """Untouched parts of kernel and initrd cost no frames: they are the boot file's own, read-only, in each VM."""
    m = bench.boot(HYPERVISOR + linux("a") + "autostart = no\n" + linux("b") + "autostart = no\n", linux_files())
    for name in ("a", "b"):
        before = m.frames()[0]
        m.command(f"vm start {name}")
        m.vm_until(name, lambda v: v["image_shared_pages"] > 500, 30, "pages mapped from the boot files")
        m.command(f"vm pause {name}")
        v = m.vm(name)
        require(v["image_shared_pages"] > 500, f"{name}: {v['image_shared_pages']} pages mapped from the boot files")
        stat = m.json(f"stat {name}")
        faults = sum(e["tsc"] for e in stat["exits"] if e["reason"] == "nested page fault")
        causes = {f["cause"]: f["count"] * f["mean_tsc"] for f in stat["faults"]}
        loader = causes.pop("image-map")
        require(faults < sum(causes.values()) + loader // 2, f"{name}: the loader's work counts as faults: {stat}")
        require(before - m.frames()[0] < v["resident_pages"] + 200, f"{name} took more frames than it has resident: {v}")


@row("guest-linux-memory", timeout=240, memory="512M")
def guest_linux_memory(bench):
    """Two guests of 256 MiB check 160 MiB each, both at the same time, on a machine that can hold both."""
    m = bench.boot(HYPERVISOR + linux("a") + linux("b"), linux_files(), memory="768M")
    for seed, name in enumerate(("a", "b"), 1):
        to_shell(m, name, 150)
        require("MiB of memory" in m.text, "the guest says how much memory it has")
        m.send(f"memcheck 160M 2 {seed} > /tmp/out; echo memcheck-$? >> /tmp/out\n")
        m.detach()
    for seed, name in enumerate(("a", "b"), 1):
        m.attach(name)
        m.send("\n")
        out = m.shell("while ! grep memcheck- /tmp/out; do sleep 1; done; cat /tmp/out", 150)
        require(f"memcheck: ok {160 << 20} bytes seed {seed}" in out and "memcheck-0" in out, f"{name}: {out}")
        m.detach()
        require(m.vm(name)["resident_pages"] > (160 << 20) >> 12, f"{name} has fewer pages than it wrote")


@row("guest-linux-mp-table", timeout=300, memory="768M", cpus=2)
def guest_linux_mp_table(bench):
    """Without ACPI, or without what ACPI says of interrupts, the generic kernel (the cloud one reads no MP table) has both its CPUs, and the
    serial line's interrupts come through the I/O APIC."""
    files = dict(linux_files(), vmlinuz=guest("guest-generic/vmlinuz"))
    for more in ("acpi=off", "acpi=noirq"):
        m = bench.boot(HYPERVISOR + linux("a", more=f"quiet {more}") + "vcpus = 2\n", files)
        to_shell(m, "a", 150)
        require(more in m.shell("cat /proc/cmdline"), "the command line")
        require(m.shell("grep -c ^processor /proc/cpuinfo") == "2", f"{more}: not two CPUs: {m.shell('dmesg | grep -i -e smp -e mp-table')}")
        interrupts = m.shell("cat /proc/interrupts")
        serial = re.search(r"^ *4: +(\d+) +(\d+) +IO-APIC +4-edge +ttyS0", interrupts, re.M)
        require(serial and int(serial[1]) + int(serial[2]) > 10, f"{more}: {interrupts}")
        require(not re.search(r"XT-PIC(?! +cascade)", interrupts), f"{more}: interrupts of the PICs: {interrupts}")
        ticks = re.search(r"^ *LOC: +(\d+) +(\d+)", interrupts, re.M)
        require(ticks and int(ticks[1]) > 10 and int(ticks[2]) > 10, f"{more}: a CPU without a timer: {interrupts}")
        require(("acpi" in m.shell("ls /sys/firmware").split()) == (more == "acpi=noirq"), f"{more}: ACPI is on or off")
        m.detach()


@row("guest-linux-ends", timeout=240, memory="512M")
def guest_linux_ends(bench):
    """Power-off and reboot from inside, kernel panic, and a new start after each."""
    m = bench.boot(HYPERVISOR + linux("a"), linux_files())
    to_shell(m, "a")
    m.send("poweroff\n")
    m.expect("left the console of a: it has stopped: .*off", 60)
    m.prompt()
    v = m.vm("a")
    require(v["resident_pages"] == 0 and v["charged_pages"] == 0 and v["state"] == "stopped", f"after power-off: {v}")
    m.command("vm start a")
    to_shell(m, "a")
    m.send("reboot\n")
    m.expect(READY, 120)
    m.expect(r":/# ", 30)
    m.detach()
    require(m.vm("a")["reboots"] >= 1, "the reset is not counted")
    m.attach("a")
    m.send("echo c > /proc/sysrq-trigger\n")
    m.expect("Kernel panic", 30)
    m.expect(READY, 120) # panic=-1: reboots at once
    m.detach()


@row("vm-console", timeout=150)
def vm_console(bench):
    """Ctrl-] leaves; what a guest said meanwhile is shown on the next attach; keys reach the guest."""
    m = bench.boot(HYPERVISOR + linux("a"), linux_files())
    m.vm_until("a", lambda v: v["vcpus"][0]["exits"] > 100)
    to_shell(m, "a")
    m.send("(sleep 1; echo later-$((40+2))) &\n")
    m.detach()
    require("later-42" not in m.command("version"), "output of a detached guest came through")
    m.attach("a")
    m.expect("later-42", 30)
    m.send("echo cat-$((1+1)); cat\n")
    m.expect("cat-2\r\n", 20)
    m.send("echoed line\n")
    m.expect("echoed line\r\necho" + "ed line\r\n", 20)
    m.send("\x03") # Ctrl-C is the guest's
    m.expect(r":/# ", 20)
    big = m.shell("i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); done", 60)
    require(big.startswith("line 0\n") and big.endswith("line 399") and len(big.split("\n")) == 400, "output lost while attached")
    m.send("(sleep 1; i=0; while [ $i -lt 1500 ]; do echo filling the ring $i; i=$((i+1)); done; echo end of flood) &\n")
    m.detach()
    m.vm_until("a", lambda v: v["output_dropped_bytes"] > 0, 90, "a ring that overflows")
    m.attach("a")
    m.expect(r"bytes of older output are lost\)", 20)
    m.expect("end of flood", 60)
    m.detach()
    start = m.cursor
    m.attach("a")
    m.send("\n")
    m.expect(r":/# ", 20)
    m.detach()
    require("are lost" not in m.text[start:], "output that was lost before is said to be lost again")
    m.command("vm destroy a")
    require("a" not in [v["name"] for v in m.json("vm list")["vms"]], "destroyed, and still in the list")


@row("vm-lifecycle-50", timeout=240, memory="512M")
def vm_lifecycle_50(bench):
    """Created, paused, resumed, destroyed, each time in the middle of its work; afterwards as many frames are free as before."""
    files = dict(linux_files(), **{"memtest.elf": guest("guests/memtest.elf")})
    m = bench.boot(HYPERVISOR + "".join(f"file = {name}\n" for name in files), files)
    before = None
    for n in range(51):
        name = f"g{n}"
        if n % bench.kind.slow == 0: # Linux where the emulator is quick, else now and then
            m.json(f'vm create {name} memory=128M kernel=vmlinuz initrd=initramfs.img "cmdline=console=ttyS0 quiet"', 60)
        else:
            m.json(f'vm create {name} memory=32M kernel=memtest.elf "cmdline=forever order=random"', 60)
        m.vm_until(name, lambda v: v["vcpus"][0]["exits"] > 200, 20, "some exits")
        m.json(f"vm pause {name}")
        exits = m.vm(name)["vcpus"][0]["exits"]
        m.command("version")
        require(m.vm(name)["vcpus"][0]["exits"] == exits, "a paused VM makes exits")
        m.json(f"vm resume {name}")
        m.vm_until(name, lambda v, seen=exits: v["vcpus"][0]["exits"] > seen, 20, "exits after resume")
        m.json(f"vm destroy {name}")
        if n == 0:
            before = m.frames() # the first leaves pages of small objects behind, for the next
    after = m.frames()
    require(after == before, f"frames free and of guests: before {before}, after 50 lives {after}")


@row("vm-states", timeout=60)
def vm_states(bench):
    """Every command in every state: does its work or says why not."""
    m = bench.boot(HYPERVISOR + linux("a") + "autostart = no\n", linux_files())
    create = "vm create b memory=64M kernel=vmlinuz autostart=no"
    for line, said in (("vm pause a", None), ("vm resume a", None), ("vm create a kernel=vmlinuz", "a"), ("vm create 'x kernel=vmlinuz", "name"),
                       ("vm create c", "no kernel"), ("vm create c kernel=vmlinuz memory=64M memory=64M", "twice"),
                       ("vm create c kernel=vmlinuz memory=64T", "addresses"), ("vm create c kernel=vmlinuz max=4K", "max = 4 KiB is too little"), ("vm create c kernel=vmlinuz memory=3", "memory"), ("vm create c kernel", "key=value"),
                       ("vm create c kernel=nothere", "nothere"), ("vm start c", "no VM"), ("vm show c", "c"), ("vm destroy c", "c"),
                       ("vm create c kernel=vmlinuz memory=16M", "memory"), ("vm create c kernel=vmlinuz min=900M memory=900M", "min"),
                       ("vm frobnicate a", 'does not know "frobnicate"; usage'), ("vm", "usage"), ("stat c", "c")):
        refused = m.json(line, error=True)
        require(said is None or said in refused, f"`{line}`: {refused}")
    m.json(create)
    require(m.vm("b")["state"] == "created", "autostart=no")
    made = m.json("vm create n memory=64M kernel=vmlinuz autostart=no count=3")
    require([(v["name"], v["state"]) for v in made] == [(f"n{k}", "created") for k in range(3)], f"count=3: {made}")
    refused = m.json("vm create n memory=64M kernel=vmlinuz autostart=no count=4", error=True)
    require("n0: there is a VM" in refused, refused)
    m.json("vm destroy n1")
    for k in (0, 2):
        m.json(f"vm destroy n{k}")
    m.json(create.replace(" b ", " m1 "))
    refused = m.json("vm create m memory=64M kernel=vmlinuz autostart=no count=2", error=True)
    require("m1: there is a VM" in refused and "there are 1 from m0 on" in refused, refused)
    for k in (0, 1):
        m.json(f"vm destroy m{k}")
    require(m.command("vm set b cpu-weight=7") == "b changed", "vm set says nothing")
    m.json("vm start a")
    for command, state in (("pause", "paused"), ("resume", "running"), ("pause", "paused"), ("stop", "stopped"), ("start", "running"),
                           ("stop", "stopped")):
        m.json(f"vm {command} a")
        require(m.vm("a")["state"] == state, f"after {command}: {m.vm('a')['state']}")
    m.json("vm resume a", error=True)
    m.json("vm start a")
    m.json("vm pause a")
    require("a is paused: resume" in m.json("vm start a", error=True), "start of a paused VM")
    m.json("vm destroy a")
    m.json("vm destroy b")
    require(m.json("vm list")["vms"] == [], "the list is not empty")


@row("vm-bad-image")
def vm_bad_image(bench):
    """Kernels that are cut off, or are none: the VM is refused with a reason, and nothing else happens."""
    with open(guest("guest-kernel/vmlinuz"), "rb") as f:
        kernel = f.read(1 << 20)
    elf = bytearray(b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\x3e\0\1\0\0\0" + bytes(40))
    images = {"cut.k": kernel[:100000], "short.k": kernel[:600], "zero.k": bytes(8192), "empty.k": b"", "elf.k": bytes(elf),
              "text.k": b"this is no kernel\n" * 50, "arm.k": bytes(elf[:18]) + b"\xb7" + bytes(elf[19:]),
              "proto.k": kernel[:0x206] + b"\x05\x02" + kernel[0x208:]}
    m = bench.boot(HYPERVISOR + "".join(f"[vm {n[:-2]}]\nkernel = {n}\nautostart = {'yes' if n == 'cut.k' else 'no'}\n" for n in images),
                   {n: bench.bytes_file(n, data) for n, data in images.items()})
    require("cut.k" in "\n".join(m.json("log")), "the log does not say why cut was not started")
    free = None
    for name in images:
        said = m.json(f"vm create x kernel={name} memory=64M", error=True)
        require(name in said and len(said) > len(name) + 15, f"{name}: {said}")
        free = free or m.frames()
        require(m.frames() == free, f"{name}: frames were lost")
    require(not any(v["state"] == "running" for v in m.json("vm list")["vms"]), "something runs")
    said = m.json("vm start zero", error=True)
    require("zero.k" in said and m.vm("zero")["state"] == "created", f"zero: {said}, {m.vm('zero')}")
