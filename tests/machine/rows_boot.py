"""From power-on to the prompt, and everything that stops on the way with a message."""
import os
import re
import time

from machine import NEW_PROMPT, PROMPT, ROOT, QemuBiosMachine, QemuIsoMachine, QemuMachine
from rows import guest, require, row
from screen import text_on_screen

HYPERVISOR = "[hypervisor]\nlog = info\n"
COMMANDS = ("help", "version", "cpu", "log", "threads", "module list", "mem", "mem audit", "policy", "policy list", "vm list", "stat")


@row("boot-prompt", quick=("vmx", "svm-bochs"))
def boot_prompt(bench):
    blob = bytes(range(256)) * 20
    m = bench.boot(HYPERVISOR + "[vm a]\nkernel = blob.bin\nautostart = no\n[vm many]\nkernel = blob.bin\nautostart = no\ncount = 12\n",
                   {"blob.bin": bench.bytes_file("blob", blob)})
    require(len(m.json("vm list")["vms"]) == 13, "the prompt came before the VMs of the configuration")
    require(re.search(r"^palimpsest \d\S* \(debug\), booted by palimpsest-(efi|multiboot2)", m.command("version")), "version says too little")
    require("TSC" in m.command("cpu") and m.json("cpu")["tsc_khz"] > 1000, "cpu knows no TSC frequency")
    require(re.search(r"blob\.bin +5120 ", m.command("module list")), "module list lacks the boot file")
    require(any(f["name"] == "blob.bin" and f["bytes"] == len(blob) for f in m.json("module list")), "module list -j lacks it")
    require("booted by" in m.command("log", log_lines=True), "log does not begin at the start")
    require("console" in m.command("threads"), "threads lacks the console's")
    names = [c["name"] for c in m.json("help")]
    missing = {"vm", "mem", "stat", "policy", "reboot", "poweroff"} - set(names)
    require(not missing, f"no command {missing}")
    for name in names:
        require(m.command("help " + name).count("\n") >= 1, f"help {name} says nothing")
        require(name in m.command("help"), f"help lacks {name}")
    for line in COMMANDS:
        m.json(line)
    mem = m.json("mem")
    require(sum(mem["frames"].values()) == mem["total_pages"] and mem["free_pages"] ==
            mem["frames"]["free"] + mem["frames"]["free-zeroed"], f"mem: the frames by type do not add up: {mem}")


@row("boot-reboot-poweroff", audit=False)
def boot_ends(bench):
    for command in ("reboot", "poweroff"):
        m = bench.boot(HYPERVISOR)
        m.send(command + "\r")
        m.expect("palimpsest: (rebooting|powering off)", 10)
        m.expect_end(20)


@row("boot-without-config")
def boot_without_config(bench):
    m = bench.power_on(None)
    m.expect(r"no .palimpsest\.conf", 40)
    m.prompt()
    require(m.json("module list") == [], "files without a configuration")


MALFORMED = [
    (HYPERVISOR + "[vm a]\nkernel = k\nmemroy = 4M\n", 5, 'unknown key "memroy"'),
    ("log = info\n", 1, "before the first"),
    (HYPERVISOR + "\n# text\n[vm a\nkernel = k\n", 5, "closing"),
    ("[vm a]\r\nmemory = lots\r\nkernel = k\r\n", 2, "is no size"),
    ("[vm a]\nkernel = k\ncount = 3\n[vm a1]\nkernel = k\n", 4, "already made by line 1"),
    ("[vm a]\nkernel = k\n\x01\n", 3, "0x01"),
]


@row("boot-bad-config", timeout=150, audit=False)
def boot_bad_config(bench):
    for text, line, what in MALFORMED:
        m = bench.power_on(text)
        m.expect(rf"palimpsest\.conf:{line}: .*{re.escape(what)}", 40)
        m.expect("halt", 10)
        require(not NEW_PROMPT.search(m.text), "a prompt after a configuration that cannot be used")


@row("boot-missing-file", audit=False)
def boot_missing_file(bench):
    for key in ("kernel = here\ninitrd = sub/gone.img", "kernel = gone.img", "kernel = here\nmodule = gone.img -v"):
        m = bench.power_on(HYPERVISOR + f"[vm a]\n{key}\n", {"here": bench.bytes_file("here", b"x")})
        m.expect(r"\[vm a\] (initrd|kernel|module): cannot read \S*gone\.img: \S", 40)
        m.expect("halt", 10)


@row("boot-little-memory", backends=("svm",), why="Bochs's BIOS and GRUB leave other amounts free", audit=False)
def boot_little_memory(bench):
    m = bench.power_on(HYPERVISOR + "[vm a]\nkernel = big\nautostart = no\n", {"big": bench.bytes_file("big", bytes(40 << 20))},
                       memory="64M")
    m.expect(r"(too little memory: needs \d+ MiB|needs \d+ MiB in one piece, firmware has \d+ MiB free)", 40)
    m.expect("halt", 10)
    bench.boot(HYPERVISOR, memory="96M").audit() # small is not too small


@row("boot-no-svm", backends=("svm",), why="takes SVM away from QEMU's CPU", audit=False)
def boot_no_svm(bench):
    for cpu, said in (("qemu64,-svm", "neither AMD SVM nor Intel VMX"), ("EPYC,-npt", "SVM but no nested paging")):
        m = bench.power_on(HYPERVISOR, cpu=cpu)
        m.expect("halted: .*" + said, 40)


@row("boot-no-ept", backends=("vmx",), why="takes Bochs's older Intel CPUs", audit=False, quick=("vmx",))
def boot_no_ept(bench):
    """Three generations: VMX alone, EPT without real-mode guests, and a CPU that can run none of our 64-bit code to say so."""
    for cpu, said in (("core2_penryn_t9600", "Intel VMX but no EPT"), ("corei5_lynnfield_750", "no unrestricted guest"), ("pentium_mmx", "no long mode")):
        m = bench.power_on(None, cpu=cpu)
        m.expect("halted: .*" + said, 40)


@row("boot-iso", timeout=200, memory="1G", backends=("svm",), why="every row boots the ISO there")
def boot_iso(bench):
    """The ISO by UEFI and by BIOS, as a CD, as a disk and as a USB stick; each runs a guest whose kernel came by GRUB."""
    for kind in (QemuIsoMachine, QemuBiosMachine):
        for medium in ("cd", "disk", "usb"):
            m = bench.boot(HYPERVISOR + "[vm h]\nkernel = hello64.elf\nmemory = 16M\ndebug-exit = yes\ncmdline = code=5\n",
                           {"hello64.elf": guest("guests/hello64.elf")}, kind=kind, extra=("--boot-from", medium))
            require("multiboot2" in m.command("version"), "not booted by GRUB")
            require(m.vm_stopped("h", 30)["exit_code"] == 11, f"the guest: {m.vm('h')}")
            m.audit()


@row("boot-usb", timeout=90, backends=("svm",), why="Bochs's BIOS boots no USB stick")
def boot_usb(bench):
    m = bench.boot(HYPERVISOR, extra=("--boot-from", "usb"))
    m.command("version")


def screen_until(bench, test, what):
    """The screen's lines when test(lines) is true: serial line and screen are written one after the other."""
    m = bench.machine
    limit = time.monotonic() + 20 * m.slow
    while True:
        lines = text_on_screen(m, os.path.join(bench.out, bench.row.name + ".ppm"))
        if test(lines):
            return lines
        require(time.monotonic() < limit, f"the screen does not show {what}, but:\n" + "\n".join(line for line in lines if line)[:2000])
        m.pause(0.2)


@row("boot-screen", timeout=150, backends=("svm",), why="only QEMU is asked for its screen")
def boot_screen(bench):
    """What the serial line says stands on the screen too, by UEFI's frame buffer and by GRUB's; when it is full it starts at the top."""
    for kind in (QemuMachine, QemuBiosMachine):
        m = bench.boot(HYPERVISOR, kind=kind, extra=("--vga",))
        first = m.seen(r"\] (hvm: using svm)")
        lines = screen_until(bench, lambda lines: PROMPT.strip() in lines, "a prompt")
        require(first and any(line.endswith("hvm: using svm") for line in lines), f"the log is not on the screen: {lines}")
        require(sum("palimpsest 0." in line and "booted by" in line for line in lines) >= 1, f"no first line: {lines}")
        require(any("] frames: " in line for line in lines), "what is said before the devices are there is not on the screen")
        said = m.command("policy list").split("\n")
        screen_until(bench, lambda lines: any(lines[n:n + len(said)] == said for n in range(len(lines))), "what a command printed")
        for _ in range(len(lines) // 10 + 1): # fills the rest of the screen
            m.command("help vm")
        version = m.command("version")
        lines = screen_until(bench, lambda lines: PROMPT.strip() in lines and version[:60] in "\n".join(lines), "the last command's line")
        at = next(n for n, line in enumerate(lines) if line.startswith(version[:60]))
        require(not any("hvm: using svm" in line for line in lines[:at]), "it did not start over at the top")

@row("boot-screen-halt", timeout=60, audit=False, backends=("svm",), why="only QEMU is asked for its screen")
def boot_screen_halt(bench):
    """An error before the hypervisor runs stands on the screen as well."""
    m = bench.power_on("[vm a]\nkernel = k\nmemroy = 4M\n", kind=QemuBiosMachine, extra=("--vga",))
    m.expect("halt", 40)
    screen_until(bench, lambda lines: any(line.startswith('palimpsest.conf:3: unknown key "memroy"') for line in lines) and
                 any(line.startswith("palimpsest: halted: ") for line in lines), "why it halted")


@row("boot-damaged", timeout=90, audit=False, backends=("svm",), why="the loaders are the same; QEMU starts both")
def boot_damaged(bench):
    """A loader of whose packed hypervisor one bit is wrong says so and stops."""
    build = os.path.join(ROOT, os.environ["PALIMPSEST_BUILD"])
    for option, name, kind in (("--efi", "BOOTX64.EFI", QemuMachine), ("--mb2", "palimpsest.mb2", QemuBiosMachine)):
        with open(os.path.join(build, name), "rb") as f:
            loader = bytearray(f.read())
        packed = loader.index(b"PLMZ")
        loader[packed + 100000] ^= 0x10
        m = bench.power_on(HYPERVISOR, kind=kind, image_options=(option, bench.bytes_file(name, loader)))
        m.expect("palimpsest: halted: the hypervisor image inside of the loader is damaged", 40)
