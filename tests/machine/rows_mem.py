"""Memory: the books, and what happens when there is none left."""
import re

from rows import require, row
from rows_linux import HYPERVISOR, linux, linux_files, to_shell
from rows_tiny import create, expect_ok, on_disk


@row("mem-audit")
def mem_audit(bench):
    m = bench.boot(HYPERVISOR + linux("a"), linux_files())
    for _ in range(5): # while the guest boots and faults
        text = m.command("mem audit", 60)
        require(re.match(r"audit: ok, \d+ frames, \d+ pages$", text), f"mem audit: {text}")
        m.vm_until("a", lambda v, n=m.vm("a")["resident_pages"]: v["resident_pages"] > n, 30, "more resident pages")
    mem = m.json("mem")
    one = mem["vms"][0]
    require(sum(one[k] for k in ("resident_pages", "image_shared_pages", "shared_pages", "zero_pages", "empty_pages")) ==
            one["configured_pages"], f"the pages of the VM do not add up: {one}")
    require(sum(mem["frames"].values()) == mem["total_pages"], f"the frames do not add up: {mem}")
    require(mem["frames"]["guest"] >= one["resident_pages"] > 0, f"guest frames: {mem}")
    free = mem["free_pages"]
    m.json("vm destroy a")
    mem = m.json("mem")
    require(mem["vms"] == [] and mem["frames"]["guest"] == 0 and mem["free_pages"] > free, f"after destroy: {mem}")


@row("mem-exhausted", timeout=240, memory="512M")
def mem_exhausted(bench):
    """Two guests want more than there is: whoever finds no frame waits, with the reason shown, and goes on when there is one again."""
    m = bench.boot(HYPERVISOR + linux("a", "448M") + linux("b", "448M"), linux_files())
    for name in ("a", "b"):
        to_shell(m, name, 150)
        m.send("memcheck 320M > /tmp/out; echo memcheck-$? >> /tmp/out\n")
        m.detach()
    stalled = m.until("vm list", lambda a: all(v["state"] == "stalled" for v in a["vms"]) and a["vms"], 120, "both stalled")
    require(stalled, "stalled")
    for name in ("a", "b"):
        require("no free frame" in m.vm(name)["reason"], f"the reason: {m.vm(name)['reason']}")
        require(re.search(rf"{name} +stalled .*no free frame", m.command("vm list")), "vm list shows no reason")
    refused = m.json("vm create c kernel=vmlinuz memory=64M min=64M", error=True)
    require("min" in refused or "memory" in refused, f"a VM that can not be had: {refused}")
    m.audit()
    m.json("vm destroy a")
    m.vm_until("b", lambda v: v["state"] == "running", 20, "b running again")
    m.attach("b")
    m.send("\n")
    out = m.shell("while ! grep memcheck- /tmp/out; do sleep 1; done; cat /tmp/out", 120)
    require(f"memcheck: ok {320 << 20} bytes" in out and "memcheck-0" in out, f"b: {out}")
    m.detach()
    require(m.vm("b")["reboots"] == 0, "b was reset")


@row("mem-maximum", timeout=120)
def mem_maximum(bench):
    """A VM at its own maximum stalls alone; it can still be looked at and ended."""
    m = bench.boot(HYPERVISOR + linux("a", "256M").replace("memory", "max = 64M\nmemory", 1) + linux("b", "128M"), linux_files())
    m.vm_until("a", lambda v: v["state"] == "stalled", 60, "a stalled")
    v = m.vm("a")
    require("maximum of 65536 KiB" in v["reason"] and v["charged_pages"] <= 16384, f"a: {v}")
    to_shell(m, "b")
    require(m.shell("echo $((6*7))") == "42", "b does not run")
    m.detach()
    m.command("vm pause a")
    require(m.vm("a")["state"] == "paused", "a stalled VM can not be paused")
    m.command("vm resume a")
    m.vm_until("a", lambda v: v["state"] == "stalled", 20, "a stalled again")
    m.json("vm stop a")
    require(m.vm("a")["state"] == "stopped" and m.vm("a")["charged_pages"] == 0, f"a stopped: {m.vm('a')}")


@row("mem-zero-store", timeout=180, quick=("vmx",))
def mem_zero_store(bench):
    """Zeros stored to whole untouched pages need no frame, and every byte and register is as without us."""
    m = bench.boot(*on_disk("zero.elf"))
    m.command("policy set demand zero_store 1")
    m.command("policy set demand large_free_percent 101")
    for seed in (1, 2):
        create(m, "z", "zero.elf", f"seed={seed} pages=128 clear=6000 runs=150", "32M", "max=8M")
        expect_ok(m, "z", "zero: ok", 120)
        causes = {f["cause"]: f["count"] for f in m.json("stat z")["faults"]}
        require(causes.get("zero-store", 0) >= 5900, f"pages cleared without a frame: {causes}")
        m.json("vm destroy z")
    m.command("policy set demand zero_store 0")
    create(m, "z", "zero.elf", "seed=3 pages=128 clear=1000 runs=150", "16M")
    expect_ok(m, "z", "zero: ok", 120)
    causes = {f["cause"]: f["count"] for f in m.json("stat z")["faults"]}
    require(causes.get("zero-store", 0) == 0, f"pages cleared without a frame though nobody asked for it: {causes}")
