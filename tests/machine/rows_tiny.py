"""The small multiboot guests of guests/tiny: each says what it found and ends with a code."""
import re

from rows import guest, require, row

HYPERVISOR = "[hypervisor]\nlog = info\n"


def on_disk(*names):
    """(configuration that loads these files for `vm create`, the files)."""
    return HYPERVISOR + "".join(f"file = {name}\n" for name in names), {name: guest("guests/" + name) for name in names}


def create(m, name, kernel, arguments="", memory="32M", more=""):
    m.json(f'vm create {name} kernel={kernel} memory={memory} debug-exit=yes "cmdline={arguments}" {more}', 60)


def outcome(m, name, timeout=60):
    """All that a guest printed until it stopped, and its exit code ((value << 1) | 1)."""
    v = m.vm_stopped(name, timeout)
    m.send(f"vm console {name}\r")
    m.expect(rf"console of {re.escape(name)}; Ctrl-\] leaves it\r\n", 20)
    start = m.cursor
    end = m.expect(rf"left the console of {re.escape(name)}: it has stopped", 20)
    m.prompt()
    return m.text[start:end.start()].replace("\r", ""), v["exit_code"]


def expect_ok(m, name, said, timeout=60):
    text, code = outcome(m, name, timeout)
    require(code == 1, f"{name} ended with code {code}: {text[-600:]}")
    require(re.search(said, text), f"{name} did not say /{said}/ but: {text[-600:]}")
    return text


@row("guest-hello", quick=("vmx", "svm-bochs"))
def guest_hello(bench):
    """Multiboot by 32-bit ELF, 64-bit ELF and address fields, PVH, and Linux's 32-bit protocol: memory map, command line, modules, exit code."""
    kernels = ("hello.elf", "hello64.elf", "hello.bin", "hello-pvh.elf", "hello.bzimage")
    config, files = on_disk(*kernels)
    files["mod"] = bench.bytes_file("mod", b"\xca\xfe\xba\xbe" + bytes(5000))
    m = bench.boot(config + "file = mod\n", files)
    for n, kernel in enumerate(kernels):
        linux = "bzimage" in kernel
        create(m, f"h{n}", kernel, "first second=2", more="initrd=mod" if linux else '"module=mod its arguments" module=mod')
        text = expect_ok(m, f"h{n}", r"hello: done")
        require(re.search(r'cmdline ".*first second=2"', text), f"{kernel}: command line: {text}")
        arguments = "" if linux else "(mod )?its arguments"
        require(re.search(rf'module 5004 bytes "{arguments}" begins ca fe ba be', text), f"{kernel}: modules: {text}")
        low = re.search(r"memory 0{16} \+ 0{11}([0-9a-f]{5}) type 1", text)
        high = re.search(r"memory 0{10}100000 \+ ([0-9a-f]{16}) type 1", text)
        require(low and high and int(high.group(1), 16) == (31 << 20), f"{kernel}: memory map of 32 MiB: {text}")
        require(f"hello: {'Linux' if linux else 'PVH' if 'pvh' in kernel else 'multiboot'} ok" in text, f"{kernel}: another protocol: {text}")
    v, text = m.vm("h0"), m.command("vm show h0")
    said = {"kernel": "hello.elf", "initrd": "", "modules": [{"file": "mod", "arguments": "its arguments"}, {"file": "mod", "arguments": ""}],
            "resident_large_pages": 0, "zero_pages": 0, "shared_pages": 0, "empty_pages": 8192, "min_pages": 0, "max_pages": 8192, "weight": 100}
    require(all(v[key] == value for key, value in said.items()) and v["cmdline"].endswith("first second=2"), f"vm show -j: {v}")
    require(v["overhead_bytes"] == 4096 * (v["p2m_pages"] + v["state_pages"]) + v["heap_bytes"], f"the overhead does not add up: {v}")
    require(v["age_s"] < 120 and f"rip {v['vcpus'][0]['rip']}," in text, f"vm show, and with -j: {text}\n{v}")
    policy = m.json("policy show demand")
    require(set(policy["ranges"]) == set(policy["params"]) and all(r["min"] <= policy["params"][name] <= r["max"] and r["help"]
            for name, r in policy["ranges"].items()), f"policy show -j: {policy}")
    create(m, "code", "hello64.elf", "code=21")
    text, code = outcome(m, "code")
    require(code == 43, f"exit code {code}, not 43")
    require(m.vm("code")["exit_code"] == 43 and re.search(r"code +stopped .*43", m.command("vm list")), "vm list does not show the code")
    m.json("vm start code")
    require(outcome(m, "code")[1] == 43, "its second life")
    create(m, "wide", "hello.elf", "code=74565")
    require(outcome(m, "wide")[1] == 149131, f"a code beyond a byte: {m.vm('wide')}")


@row("guest-5g", quick=("vmx",))
def guest_5g(bench):
    """A guest with ten times the machine's memory, part of it above 4 GiB of its address space."""
    m = bench.boot(*on_disk("hello.elf"))
    create(m, "big", "hello.elf", "high", "5G")
    text = expect_ok(m, "big", r"hello: 31 words above 4 GiB, 0 wrong")
    require("memory 0000000100000000 + 0000000080000000 type 1" in text, f"the memory map: {text}")


@row("guest-ends", timeout=90)
def guest_ends(bench):
    """A guest that halts, one that spins, one that resets itself over and over: all can be paused and destroyed, none disturbs the console."""
    config, files = on_disk("hello64.elf")
    m = bench.boot(config, files)
    names = ["halted", "resetting"] + ["spinning"] * bench.kind.preempts
    create(m, "halted", "hello64.elf", "halt")
    if bench.kind.preempts:
        create(m, "spinning", "hello64.elf", "spin")
    m.vm_until("halted", lambda v: v["vcpus"][0]["state"] == "halted", 20, "a halted vCPU")
    create(m, "resetting", "hello64.elf", "reset")
    m.vm_until("resetting", lambda v: v["reboots"] > 5, 30, "some resets")
    for name in names:
        m.json(f"vm pause {name}")
        require(m.vm(name)["state"] == "paused", f"{name} is not paused")
        m.json(f"vm resume {name}")
    for name in names:
        m.json(f"vm destroy {name}", 30)
    require(m.json("vm list")["vms"] == [], "something is left")


@row("guest-debug-exit-off")
def guest_debug_exit_off(bench):
    """Without debug-exit = yes the port is nobody's."""
    config, files = on_disk("hello64.elf")
    m = bench.boot(config, files)
    m.json('vm create h kernel=hello64.elf memory=32M "cmdline=code=3"')
    m.attach("h")
    m.expect("hello: done", 20)
    m.send("\x1d")
    m.expect("left the console of h", 20)
    m.prompt()
    require(m.vm("h")["exit_code"] is None, f"a code without the device: {m.vm('h')}")


@row("guest-memtest", timeout=180, quick=("vmx", "svm-bochs"))
def guest_memtest(bench):
    """Every order of first touch, alone and together, on more than half of the memory of each."""
    config, files = on_disk("memtest.elf")
    m = bench.boot(config, files)
    small, large = (48, 256) if bench.kind.slow == 1 else (16, 48)
    for n, order in enumerate(("seq", "rev", "random", "stride")):
        create(m, order, "memtest.elf", f"order={order} seed={n + 3} loops=2", f"{small}M")
    for order in ("seq", "rev", "random", "stride"):
        text = expect_ok(m, order, r"memtest: ok", 150)
        require("loop 2 ok" in text and int(re.search(r"(\d+) pages", text).group(1)) > small * 128, f"{order}: {text}")
        m.json(f"vm destroy {order}")
    create(m, "large", "memtest.elf", "seed=9", f"{large}M")
    expect_ok(m, "large", r"memtest: ok", 150)


@row("mem-exhausted-tiny", timeout=180, memory="256M", backends=("svm", "vmx"),
     why="its guests compute with interrupts off for long, which Bochs's VMRUN lets them")
def mem_exhausted_tiny(bench):
    """Three guests that together want more than there is: those without a frame wait, and as each ends the others go on."""
    config, files = on_disk("memtest.elf")
    m = bench.boot(config, files)
    names = ["a", "b", "c"]
    for n, name in enumerate(names):
        create(m, name, "memtest.elf", f"forever order=random seed={n}", "160M")
    m.until("vm list", lambda a: all(v["state"] == "stalled" for v in a["vms"]), 90, "all stalled")
    m.audit()
    m.json("vm destroy b")
    m.until("vm list", lambda a: any(v["state"] == "running" for v in a["vms"]) or None, 20, "one going on")
    m.until("vm list", lambda a: any(v["state"] == "stalled" for v in a["vms"]), 60, "one stalled again")
    m.json("vm destroy a")
    m.vm_until("c", lambda v: v["state"] == "running", 20, "c going on")
    m.attach("c")
    m.expect(r"memtest: loop 2 ok", 90)
    m.detach()
    require("WRONG" not in m.text, "memory went wrong")
    require(m.vm("c")["resident_pages"] > (150 << 20) >> 12, "c does not hold what it wrote")


@row("mem-exhausted-reset", timeout=120, memory="256M", backends=("svm", "vmx"),
     why="its guests compute with interrupts off for long, which Bochs's VMRUN lets them")
def mem_exhausted_reset(bench):
    """A guest that resets itself while others take the frames it gives back: it waits, can be paused, and starts anew when there are some."""
    m = bench.boot(*on_disk("memtest.elf", "hello.elf"))
    create(m, "r", "hello.elf", "reset")
    m.vm_until("r", lambda v: v["reboots"] > 2, 20, "some resets")
    for n, name in enumerate(("a", "b")):
        create(m, name, "memtest.elf", f"forever order=random seed={n}", "160M")
    m.until("vm list", lambda a: all(v["state"] == "stalled" for v in a["vms"]), 90, "all stalled")
    reboots = m.vm("r")["reboots"]
    m.json("vm pause r")
    m.audit()
    m.json("vm resume r")
    m.vm_until("r", lambda v: v["state"] == "stalled", 20, "r stalled again")
    require(m.vm("r")["reboots"] == reboots, "r was reset without memory to start in")
    m.json("vm destroy a")
    m.vm_until("r", lambda v: v["reboots"] > reboots, 30, "r going on")
    m.vm_until("b", lambda v: v["state"] == "running", 20, "b going on")
