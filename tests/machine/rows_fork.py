"""Forks and snapshots: copies that share memory and are told apart by what they write."""
import re

from rows import guest, require, row
from rows_linux import HYPERVISOR, linux, linux_files, to_shell
from rows_smp import loops
from rows_tiny import create, expect_ok, on_disk, outcome


def rounds(m, name, times=1):
    """Another so many lines that say so: the guest works and finds nothing wrong."""
    m.attach(name)
    for _ in range(times):
        match = m.expect(r"fork: (?:round (\d+) ok|WRONG.*\n|tiny:.*\n)", 90)
        require(match.group(1), f"{name}: {match.group(0)}")
    m.detach()
    return int(match.group(1))


def new_id(m, name):
    """Waits until the guest says which generation it is."""
    m.attach(name)
    match = m.expect(r"fork: (?:id ([0-9a-f]{32})|WRONG.*\n)", 90)
    require(match.group(1), f"{name}: {match.group(0)}")
    m.detach()
    return match.group(1)


def fork(m, name, more=""):
    return [child["name"] for child in m.json(f"vm fork {name} {more}", 90)["children"]]


def all_run(m, *names):
    for name in names:
        v = m.vm(name)
        require(v["state"] == "running" and v["reboots"] == 0, f"{name}: {v}")


@row("fork-tiny", timeout=180, quick=("vmx",))
def fork_tiny(bench):
    """A guest that checks itself is forked while it runs: memory, registers, timer and interrupts of each copy are its own from then on."""
    m = bench.boot(*on_disk("fork.elf"))
    create(m, "a", "fork.elf", "pages=400")
    ids = [new_id(m, "a")]
    rounds(m, "a")
    children = fork(m, "a", "3")
    require(children == ["a-f0", "a-f1", "a-f2"], f"names: {children}")
    m.audit()
    ids += [new_id(m, name) for name in children]
    require(len(set(ids)) == 4, f"generation ids: {ids}")
    for name in ["a"] + children:
        rounds(m, name, 2)
    require(m.vm("a-f1")["forked_from"] == "a" and len({m.vm(n)["id"] for n in ["a"] + children}) == 4, "their identity")
    m.json("vm destroy a") # the children have what they need
    grandchild, = fork(m, "a-f0", "name=x paused=yes")
    require(grandchild == "x0" and m.vm("x0")["state"] == "paused" and m.vm("a-f0")["state"] == "running", "fork name= paused=yes")
    m.json("vm destroy a-f0")
    rounds(m, "a-f1")
    m.json("vm resume x0")
    ids.append(new_id(m, "x0"))
    require(len(set(ids)) == 5, f"generation ids: {ids}")
    rounds(m, "x0", 2)
    m.json("vm pause a-f1")
    again = fork(m, "a-f1", "2") # of a paused one; it stays so
    require(again == ["a-f1-f0", "a-f1-f1"] and m.vm("a-f1")["state"] == "paused", f"of a paused VM: {again}")
    for name in again:
        rounds(m, name)
    all_run(m, "x0", "a-f2", *again)


@row("fork-smp", timeout=300, cpus=2, quick=("vmx",))
def fork_smp(bench):
    """vCPUs that check each other's memory, interrupts, clocks and locks go on doing so in every copy."""
    m = bench.boot(*on_disk("smp.elf"))
    vcpus = 4 if bench.kind.slow == 1 else 2
    create(m, "a", "smp.elf", "mode=all pages=300 loops=1 forever", "32M", f"vcpus={vcpus}")
    loops(m, "a", r"smp: loop (\d+) ok")
    names = ["a"]
    for _ in range(3): # at three different moments
        names += fork(m, "a")
        loops(m, "a", r"smp: loop (\d+) ok")
    m.audit()
    for name in names:
        first = loops(m, name, r"smp: loop (\d+) ok")
        require(loops(m, name, r"smp: loop (\d+) ok") > first, f"{name} stands still")
    all_run(m, *names)


@row("fork-snapshot-tiny", timeout=180, quick=("vmx",))
def fork_snapshot_tiny(bench):
    """Returned to a snapshot again and again: memory, devices and time are as they were, and the guest is told."""
    m = bench.boot(*on_disk("fork.elf"))
    create(m, "a", "fork.elf", "pages=400 rounds=60")
    ids = [new_id(m, "a")]
    m.json("vm snapshot a early")
    for _ in range(3):
        at = rounds(m, "a", 2)
        m.json("vm restore a early")
        ids.append(new_id(m, "a"))
        require(rounds(m, "a") <= at, "it did not return")
    require(len(set(ids)) == 4, f"generation ids: {ids}")
    m.audit()
    m.json("vm pause a")
    m.json("vm snapshot a late")
    m.json("vm restore a early")
    require(m.vm("a")["state"] == "paused", "a paused VM runs after a restore")
    require([s["name"] for s in m.json("vm snapshots a")["snapshots"]] == ["early", "late"], "the list")
    child, = fork(m, "a") # of a restored one
    m.json("vm resume a")
    text, code = outcome(m, "a", 120)
    require(code == 1 and "fork: ok" in text, f"a: {text[-400:]}")
    expect_ok(m, child, "fork: ok", 120)
    m.json("vm restore a late") # what has stopped runs again
    require(m.vm("a")["state"] == "running", "a stopped VM that is restored does not run")
    m.json("vm snapshot-delete a early")
    require([s["name"] for s in m.vm("a")["snapshots"]] == ["late"], "the list")
    m.audit()
    text, code = outcome(m, "a", 120)
    require(code == 1 and "fork: ok" in text, f"a again: {text[-400:]}")


@row("fork-linux", timeout=300, memory="1G")
def fork_linux(bench):
    """Debian at its prompt: each copy has its own memory, files, processes and clock, and its own console."""
    m = bench.boot(HYPERVISOR + linux("a", "128M"), linux_files())
    to_shell(m, "a", 150)
    m.shell("echo parent > /tmp/who; (while :; do date +%s > /tmp/next; mv /tmp/next /tmp/clock; sleep 1; done) & true")
    m.shell("memcheck 16M 1 7")
    uptime = float(m.shell("cut -d' ' -f1 /proc/uptime"))
    m.detach()
    children = fork(m, "a", "3")
    m.audit()
    for n, name in enumerate(children):
        m.attach(name)
        m.send("\n")
        m.expect(r":/# ", 60)
        require(m.shell("cat /tmp/who") == "parent", f"{name} has lost the file")
        m.shell(f"echo {name} > /tmp/who; memcheck 24M 1 {n + 1}", 90)
        require(m.shell("A=$(cat /tmp/clock); until [ $(cat /tmp/clock) -gt $A ]; do sleep 1; done; echo goes on", 60) == "goes on",
                f"{name}: a process of before the fork")
        require(0 <= float(m.shell("cut -d' ' -f1 /proc/uptime")) - uptime < 200, f"{name}: time jumped")
        m.detach()
    m.attach("a")
    m.send("\n")
    m.expect(r":/# ", 60)
    require(m.shell("cat /tmp/who") == "parent", "something of a child in the parent")
    m.detach()
    for name in children:
        m.attach(name)
        m.send("\n")
        m.expect(r":/# ", 60)
        require(m.shell("cat /tmp/who") == name, f"something of another copy in {name}")
        require("BUG" not in m.shell("dmesg | tail -30") and "stall" not in m.shell("dmesg | tail -30"), f"{name}: dmesg")
        m.detach()
    all_run(m, "a", *children)
    m.json(f"vm stop {children[0]}")
    m.json(f"vm start {children[0]}") # a life of its own
    to_shell(m, children[0], 150)
    require("No such" in m.shell("cat /tmp/who 2>&1 || true"), "a fresh boot with old files")
    m.detach()


@row("fork-snapshot-linux", timeout=300, memory="1G")
def fork_snapshot_linux(bench):
    m = bench.boot(HYPERVISOR + linux("a", "128M"), linux_files())
    to_shell(m, "a", 150)
    m.shell("echo first > /tmp/state")
    m.detach()
    m.json("vm snapshot a s1")
    free = m.frames()[0]
    for n in range(3):
        m.attach("a")
        m.send("\n")
        m.expect(r":/# ", 60)
        require(m.shell("cat /tmp/state") == "first", "not what it was at the snapshot")
        m.shell(f"echo changed > /tmp/state; memcheck 32M 1 {n}; rm -r /bin/v*", 90)
        m.detach()
        m.json("vm restore a s1")
    m.attach("a")
    m.send("\n")
    m.expect(r":/# ", 60)
    require(m.shell("cat /tmp/state; ls /bin/vi") == "first\n/bin/vi", "not what it was at the snapshot")
    m.shell("sleep 2; echo c > /tmp/x")
    m.send("poweroff\n")
    m.expect("it has stopped: .*off", 60)
    m.prompt()
    m.json("vm restore a s1")
    m.attach("a")
    m.send("\n")
    m.expect(r":/# ", 60)
    require(m.shell("ls /tmp") == "state", "after power-off and restore")
    m.detach()
    require(abs(m.frames()[0] - free) < 8192, "frames have got lost")


@row("fork-loop", timeout=300, memory="512M", quick=("vmx",))
def fork_loop(bench):
    """Forked and destroyed twenty times: the books balance all the while, and when all is gone no frame is missing."""
    m = bench.boot(*on_disk("fork.elf"))
    for forks in (1, 20): # what is made once for all VMs, is made the first time
        create(m, "a", "fork.elf", "pages=300")
        rounds(m, "a")
        for n in range(forks):
            names = fork(m, "a", "2")
            require(names == ["a-f0", "a-f1"], f"names: {names}")
            if n % 5 == 0:
                rounds(m, names[0])
                m.audit()
            for name in names:
                m.json(f"vm destroy {name}")
        rounds(m, "a")
        m.audit()
        held = sum(m.json("mem")["frames"][kind] for kind in ("guest", "shared", "rmap", "p2m"))
        require(held < 4000, f"{held} frames for a guest of 300 pages and what it was before")
        m.json("vm destroy a")
        mem = m.json("mem")
        if forks == 1:
            first = mem["frames"]
    require(mem["vms"] == [] and not any(mem["frames"][kind] for kind in ("guest", "shared", "p2m", "vm-state")), f"left: {mem}")
    require(mem["frames"]["rmap"] <= 1, f"reverse maps are left: {mem}")
    require(mem["frames"]["hv-heap"] <= first["hv-heap"] + 8, f"frames of ours: {first}, then {mem['frames']}")


@row("fork-policies", timeout=400, memory="512M", cpus=2)
def fork_policies(bench):
    """Pages are moved, protected, merged and collapsed at random while guests that check every word are forked, destroyed and returned to snapshots."""
    m = bench.boot(*on_disk("fork.elf", "smp.elf"))
    m.command("policy set churn rate 5000")
    m.command("policy set dedup cpu_percent 50")
    m.command("policy set dedup idle_seconds 0")
    for policy in ("churn", "dedup", "large"):
        m.command(f"policy on {policy}")
    create(m, "a", "fork.elf", "pages=600")
    create(m, "s", "smp.elf", "mode=all pages=300 loops=1 forever", "32M", "vcpus=2")
    m.json("vm snapshot s begin")
    rounds(m, "a")
    for n in range(6 if bench.kind.slow == 1 else 2):
        children = fork(m, "a", "2") + fork(m, "s")
        rounds(m, children[0])
        loops(m, children[2], r"smp: loop (\d+) ok")
        m.audit()
        m.json(f"vm snapshot a n{n}")
        rounds(m, "a")
        m.json(f"vm restore a n{n // 2}")
        m.json("vm restore s begin")
        for name in children[n % 2:]: # every other time one lives on
            m.json(f"vm destroy {name}")
        rounds(m, "a")
        loops(m, "s", r"smp: loop (\d+) ok")
    names = [v["name"] for v in m.json("vm list")["vms"]]
    require("a" in names and "s" in names and len(names) > 2, f"VMs: {names}")
    all_run(m, *names)
    for name in names:
        m.json(f"vm destroy {name}")
    for policy in ("churn", "dedup", "large"):
        m.command(f"policy off {policy}")
    mem = m.json("mem")
    require(not any(mem["frames"][kind] for kind in ("guest", "shared", "p2m", "vm-state")), f"left: {mem}")


@row("fork-refused", timeout=120)
def fork_refused(bench):
    """What can not be done says why, and does nothing."""
    m = bench.boot(*on_disk("fork.elf", "hello64.elf"))
    long_name = "n" * 29
    create(m, "off", "hello64.elf", more="autostart=no")
    create(m, "a", "fork.elf", "pages=50", more="min=8M")
    create(m, long_name, "hello64.elf", "halt")
    refusals = {
        "vm fork nobody": "no VM of the name", "vm fork off": "created and can not be forked", "vm snapshot off s": "created and can not be",
        "vm fork a 0": "1 to 256", "vm fork a 257": "1 to 256", "vm fork a x": "neither a number", "vm fork a shape=round": "name=PREFIX",
        "vm fork a paused=perhaps": "name=PREFIX", "vm fork a name=a/b": "no name for a VM",
        "vm fork a name=": "name=PREFIX", "vm fork a name=x name=y": "given twice", f"vm fork {long_name}": "longer than 31",
        "vm restore a s": "no snapshot of the name s", "vm snapshot-delete a s": "no snapshot of the name s", "vm snapshot a b/c": "no name for a snapshot",
        "vm fork a 200": "min = 8192 KiB can not be promised",
    }
    for line, why in refusals.items():
        said = m.json(line, error=True)
        require(why in said, f"`{line}`: {said}")
    rounds(m, "a", 2)
    require(sorted(v["name"] for v in m.json("vm list")["vms"]) == sorted(["a", "off", long_name]), "children of a fork that failed")
    m.audit()
    for n in range(16):
        m.json(f"vm snapshot a s{n}")
    require("which is the most" in m.json("vm snapshot a s16", error=True), "a seventeenth snapshot")
    m.json("vm snapshot-delete a s3")
    require("a snapshot of the name s4" in m.json("vm snapshot a s4", error=True), "a name twice")
    m.audit()
    m.json("vm restore a s15")
    rounds(m, "a")
    m.json("vm stop a")
    require("stopped and can not be forked" in m.json("vm fork a", error=True), "a fork of a stopped VM")
    m.json("vm start a")
    require(len(m.json("vm snapshots a")["snapshots"]) == 15, "snapshots after a new start")
    rounds(m, "a")
    m.json("vm destroy a")


@row("fork-stalled", timeout=180)
def fork_stalled(bench):
    """A VM that waits for memory can be forked; both can be looked at, and go when they are told to."""
    m = bench.boot(*on_disk("memtest.elf"))
    create(m, "a", "memtest.elf", "forever", "48M", "max=16M")
    m.vm_until("a", lambda v: v["state"] == "stalled", 60, "a stalled")
    child, = fork(m, "a")
    require(m.vm("a")["state"] in ("running", "stalled"), "the parent")
    m.vm_until(child, lambda v: v["state"] in ("running", "stalled"), 20)
    m.audit()
    m.json(f"vm destroy {child}")
    m.json("vm snapshot a s")
    m.json("vm restore a s")
    m.json("vm destroy a")
    require(m.frames()[1] == 0, "guest frames are left")


def writes_on(m, name, times=1):
    """Another so many rounds of a guest of guests/tiny/share."""
    m.attach(name)
    for _ in range(times):
        match = m.expect(r"share: (?:round (\d+) ok|ERROR.*\n)|tiny:.*\n", 150)
        require(match.group(1), f"{name}: {match.group(0)}")
    m.detach()


@row("fork-writers", timeout=400, cpus=2, quick=("vmx",))
def fork_writers(bench):
    """Forks of guests that write at random on all vCPUs, while pages are merged between parents and children, moved, protected and broken."""
    m = bench.boot(*on_disk("share.elf"))
    m.command("policy off dedup") # ends its pause
    for key, value in (("cpu_percent", 80), ("pages_per_second", 100000000), ("idle_seconds", 0), ("break_large_percent", 0),
                       ("breaks_max", 255)):
        m.command(f"policy set dedup {key} {value}")
    m.command("policy on dedup")
    m.command("policy set churn rate 2000")
    m.command("policy on churn")
    pages = 1500 if bench.kind.slow == 1 else 300
    for n, name in enumerate(("a", "b")):
        create(m, name, "share.elf", f"mode=writers seed={n} pages={pages}", "32M", "vcpus=2 group=web")
    rounds_of_forks = 3 if bench.kind.slow == 1 else 1
    for n in range(rounds_of_forks):
        for name in ("a", "b"):
            writes_on(m, name)
            children = fork(m, name, f"name={name}{n}-")
            writes_on(m, name)
            for child in children:
                writes_on(m, child)
        m.audit()
        if n:
            m.json(f"vm destroy a{n - 1}-0")
            m.json("vm destroy b0-0" if n == 1 else "vm destroy b1-0")
    m.command("policy off churn")
    m.until("policy show dedup", lambda a: a["counters"]["merged"] > pages and a["counters"]["zeroed"] > pages // 8, 90, "pages merged")
    for v in m.json("vm list")["vms"]:
        writes_on(m, v["name"])
        all_run(m, v["name"])
