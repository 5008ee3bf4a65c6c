"""Secure groups: what the time of an access tells."""
import re

from machine import QemuMachine
from rows import require, row
from rows_tiny import create, on_disk


def breaks(m, name):
    """Writes to shared pages and accesses to sealed ones, so far."""
    return {cause: sum(f["count"] for f in m.json(f"stat {name}")["faults"] if f["cause"] == cause) for cause in ("cow-shared", "cow-sealed")}


def read_after_sweep(m, name, group, count, late=False):
    """A guest with so many pages of which there are two, and so many of which there is one, reads all after a sweep: median ticks, breaks by cause.
    Late: its group becomes secure only then, and there is another sweep."""
    create(m, name, "bench.elf", f"secure n={count}", "32M", f"group={group}")
    m.attach(name)
    m.expect(r"bench: waiting", 60)
    m.detach()
    m.json(f"vm pause {name}")
    swept = m.json("dedup sweep", 60)
    require(swept["merged"] >= count, f"{swept}")
    if late:
        require(m.json(f"group secure {group} on")["secure"], "group secure on")
        swept = m.json("dedup sweep", 60)
        require(swept["sealed"] >= 3 * count - swept["merged"], f"{swept}")
    vm = next(v for v in m.json("mem")["vms"] if v["name"] == name)
    before = breaks(m, name)
    m.json(f"vm resume {name}")
    m.attach(name)
    begun = m.cursor
    m.send("k")
    m.expect(r"bench: done", 60)
    medians = {figure: int(ticks) for figure, ticks in re.findall(r"bench: (\S+) median=(\d+)", m.text[begun:m.cursor])}
    m.expect(f"left the console of {name}: it has stopped", 20)
    m.prompt()
    after = breaks(m, name)
    return medians, {cause: after[cause] - before[cause] for cause in after}, vm


@row("share-secure", timeout=400, quick=("vmx",))
def share_secure(bench):
    """In a secure group the next access to what the scanner took up traps, merged or not, and takes as long, also if it was
    none when they were merged; in another a read tells nothing either."""
    config, files = on_disk("bench.elf")
    m = bench.boot(config + "secure-groups = vault\n", files, extra=("--icount",) if bench.kind is QemuMachine else ())
    m.command("policy off dedup")
    count = 240
    ticks, traps, vm = read_after_sweep(m, "plain", "web", count)
    require(traps["cow-shared"] + traps["cow-sealed"] < 50 and vm["sealed_pages"] == 0, f"reads are trapped: {traps}")
    free = ticks["read_again"]
    for name in ("vault", "late"):
        ticks, traps, vm = read_after_sweep(m, name, name, count, name == "late")
        require(vm["sealed_pages"] >= 3 * count, f"{name}: {vm['sealed_pages']} pages of {3 * count} are sealed")
        require(2 * count <= traps["cow-sealed"] <= vm["sealed_pages"], f"{name}: {traps['cow-sealed']} of {2 * count} reads trapped: {traps}")
        kinds = [ticks[f"read_{kind}"] for kind in ("alone", "equal", "many")]
        require(min(kinds) > 5 * max(free, ticks["read_again"]), f"{name}: a trap is not to be seen: {ticks}")
        require(max(kinds) < 1.1 * min(kinds), f"{name}: the time tells what was merged: {ticks}")
