"""Sharing: guests whose memory is merged and un-shared while they check every byte of it."""
import json
import os
import re
import subprocess

from rows import guest, require, row
from rows_linux import HYPERVISOR, linux, linux_files, to_shell
from rows_tiny import create, expect_ok, on_disk

NO_DUMP = "it needs a dump of the machine's memory, which only QEMU makes"


def show(m, policy):
    return m.json(f"policy show {policy}")["counters"]


def says(m, name, pattern, timeout=90, key=None):
    """The next line of the guest that matches; one that tells of an error ends the wait. Presses a key first."""
    m.attach(name)
    if key:
        m.send(key)
    match = m.expect(rf"share: (?:{pattern}|ERROR.*\n)|tiny:.*\n", timeout)
    require("ERROR" not in match.group(0) and "tiny:" not in match.group(0), f"{name}: {match.group(0).strip()}")
    m.detach()
    return match


def sums(text):
    """Number of each round, and the sum over what the guest has read in it."""
    return re.findall(r"(round \d+ ok sum=[0-9a-f]{16}|verified \d+ pages sum=[0-9a-f]{16})", text)


def eager(m):
    """The scanner takes all that it can get, and no mapping is too good for it."""
    for key, value in (("cpu_percent", 80), ("pages_per_second", 100000000), ("idle_seconds", 0), ("break_large_percent", 0)):
        m.command(f"policy set dedup {key} {value}")
    m.command("policy on dedup")


@row("share-off", timeout=240, cpus=2, quick=("vmx",))
def share_off(bench):
    """What a guest reads is the same with the scanner on and off."""
    m = bench.boot(*on_disk("share.elf"))
    found = {}
    for scanner in ("off", "on"):
        m.command("policy off dedup")
        if scanner == "on":
            eager(m)
        before = show(m, "dedup")
        create(m, scanner, "share.elf", "mode=writers seed=7 pages=3000 rounds=6", "32M", "vcpus=2")
        found[scanner] = sums(expect_ok(m, scanner, "share: ok", 150))
        after = show(m, "dedup")
        merged = after["merged"] + after["zeroed"] - before["merged"] - before["zeroed"]
        require((merged > 0) == (scanner == "on"), f"scanner {scanner}: {merged} pages merged: {after}")
    require(len(found["on"]) == 7 and found["on"] == found["off"], f"the guest's own sums differ: {found}")


@row("share-writers", timeout=400, cpus=2)
def share_writers(bench):
    """Writers on every vCPU while pages are merged, moved, protected, broken and re-formed under them."""
    m = bench.boot(*on_disk("share.elf"))
    m.command("policy set demand large_free_percent 0")
    eager(m)
    m.command("policy set churn rate 5000")
    m.command("policy on churn")
    names = [f"w{n}" for n in range(3)]
    for n, name in enumerate(names):
        create(m, name, "share.elf", f"mode=writers seed={n} pages=2000", "32M", "vcpus=2")
    first = {name: int(says(m, name, r"round (\d+) ok").group(1)) for name in names}
    m.until("policy show dedup", lambda a: a["counters"]["merged"] > 3000 and a["counters"]["zeroed"] > 1000, 150, "pages merged")
    m.until("policy show churn", lambda a: a["counters"]["moved"] > 1000 and a["counters"]["protected"] > 1000, 60, "pages moved")
    m.audit()
    for name in names:
        later = int(says(m, name, r"round (\d+) ok").group(1))
        require(later > first[name], f"{name}: round {first[name]}, then {later}")
        v = m.vm(name)
        require(v["state"] == "running" and v["reboots"] == 0, f"{v}")
    m.command("policy off churn")


# ---- by the CPUs' own log of what they write to ------------------------------------------------------------------------------


def sweeps(m, count):
    """That many more of the background's."""
    begun = show(m, "dedup")["sweeps"]
    return m.until("policy show dedup", lambda a: a["counters"]["sweeps"] >= begun + count and a["counters"], 120, f"{count} more sweeps")


@row("share-log", timeout=200, backends=("vmx",), why="no other emulated CPU logs what it writes to", quick=("vmx",), cpus=2,
     model="corei7_skylake_x")
def share_log(bench):
    """Sweeps pass by what the CPUs' logs say nothing of; what is written to there is found; who writes a lot does without a log."""
    m = bench.boot(*on_disk("share.elf"))
    require(m.seen("page-modification logging"), "the CPU has none, or the log of the boot does not say so")
    m.command("policy off dedup")
    m.command("policy off large")
    create(m, "h", "share.elf", "mode=storm seed=3 pages=12000", "64M")
    says(m, "h", "holds", 120)
    state_pages = m.vm("h")["state_pages"]
    eager(m)
    quiet = m.until("policy show dedup", lambda a: a["counters"]["vms_that_log"] == 1 and a["counters"]["regions_unchanged"] > 100 and a["counters"],
                    120, "regions passed by")
    v = m.vm("h")
    require(v["state_pages"] == state_pages + 1, f"a log is a frame of the VM's state: {state_pages} before, now {v['state_pages']}")
    require(v["overhead_bytes"] == 4096 * (v["p2m_pages"] + v["state_pages"]) + v["heap_bytes"], f"the overhead does not add up: {v}")
    m.audit()
    before, after = sweeps(m, 1), sweeps(m, 20)
    looked, passed = after["regions"] - before["regions"], after["regions_unchanged"] - before["regions_unchanged"]
    require(passed > 10 * looked and after["merged"] == before["merged"], f"{looked} regions looked at, {passed} passed by")
    require(after["pages_hashed"] - before["pages_hashed"] < 100, f"pages are hashed again: {after}")
    # A byte in each page: all logs are full many times over, and what was shared is taken apart and looked at anew.
    says(m, "h", "wrote", 120, key="w")
    says(m, "h", "verified", 120)
    full = m.until("policy show dedup", lambda a: a["counters"]["pages_hashed"] > after["pages_hashed"] + 9000 and a["counters"], 120,
                   "what was written to hashed again")
    require(full["log_full"] > quiet["log_full"] and full["log_pages"] > quiet["log_pages"] + 500, f"the logs: {quiet}, then {full}")
    says(m, "h", "verified", 120, key="v")
    m.audit()
    # At rest again; then its writes during the sweeps, and the end of the logs with the scanner.
    m.until("policy show dedup", lambda a: a["counters"]["vms_that_log"] == 1 and a["counters"]["regions_unchanged"] > full["regions_unchanged"] + 200,
            120, "regions passed by again")
    create(m, "w", "share.elf", "mode=writers seed=5 pages=3000", "32M", "vcpus=2")
    first = int(says(m, "w", r"round (\d+) ok").group(1))
    sweeps(m, 10)
    require(int(says(m, "w", r"round (\d+) ok").group(1)) > first, "the writer stands still")
    require(show(m, "dedup")["vms_that_log"] == 1, "a VM that writes all the time keeps a log")
    m.audit()
    m.command("policy off dedup")
    m.until("policy show dedup", lambda a: a["counters"]["vms_that_log"] == 0, 30, "the logs' end")
    require(m.vm("h")["state_pages"] == state_pages, "a log that nobody reads is still there")
    says(m, "h", "verified", 120, key="v")


# ---- by the oracle ------------------------------------------------------------------------------------------------------


def ask_oracle(bench, m, names, told_wrong=None):
    """What a program that knows nothing but the machine's memory says of these VMs, which must be at rest. told_wrong: {VM: group it is not in}; then
    it must find something that is never right."""
    dump = os.path.join(bench.out, bench.row.name + ".dump")
    maps = [m.json(f"mem map {name}") for name in names]
    try:
        m.dump(dump)
        roots = [",".join(f"{root:x}" for root in [a["root"], *a["images"]]) for a in maps]
        told = [f"{a['name']}:{a['format']}:{r}:{(told_wrong or {}).get(a['name'], a['group'])}" for a, r in zip(maps, roots)]
        result = subprocess.run([guest("machine/oracle"), dump, *told], capture_output=True, text=True, check=False, timeout=120)
    finally:
        if os.path.exists(dump):
            os.remove(dump)
    m.note("oracle: " + result.stdout.strip())
    require(result.returncode == (1 if told_wrong else 0), f"the oracle: {result.stderr.strip()} {result.stdout.strip()}")
    return json.loads(result.stdout)


def counters_agree(m, said):
    """What the hypervisor counts is what is in its tables. These are all VMs that there are."""
    mem = m.json("mem")
    require(mem["saved_pages"] == said["saved"], f"`mem` says {mem['saved_pages']} pages are saved, the oracle {said}")
    shown = {v["name"]: v for v in mem["vms"]}
    for mine in said["vms"]:
        for key, states in (("resident_pages", ("RW",)), ("shared_pages", ("SHARED_RO", "SEALED")), ("sealed_pages", ("SEALED",)),
                            ("zero_pages", ("ZERO_RO",)), ("image_shared_pages", ("IMAGE_RO",)), ("inherited_pages", ("INHERITED",)), ("resident_large_pages", ("in_large",))):
            there = sum(mine.get(state, 0) for state in states)
            require(shown[mine["name"]][key] == there, f"{mine['name']}: `mem` says {key} = {shown[mine['name']][key]}, the oracle {mine}")


VMS = 4


def start_linux(bench, large, count=VMS):
    """Linux guests of one image in one group, each with its own seed, host name and addresses, at their shells; nothing was shared so far."""
    names = [f"debian{n}" for n in range(count)]
    config = "".join(linux(name, "128M", f"quiet seed={n + 1}") + "group = web\nautostart = no\n" for n, name in enumerate(names))
    m = bench.boot(HYPERVISOR + config, linux_files())
    m.command("policy off dedup")
    if not large:
        m.command("policy off large")
        m.command("policy set demand large_free_percent 101")
    for name in names:
        m.json(f"vm start {name}")
    where = set()
    for name in names:
        to_shell(m, name, 200)
        require(m.shell("hostname") == name, "hostname")
        where.add(m.shell("grep ' _text$' /proc/kallsyms"))
        m.detach()
    require(len(where) > 1, f"all kernels are at {where}")
    return m, names


def each(m, verb, names):
    for name in names:
        m.json(f"vm {verb} {name}")


def found(m, said, before):
    """Percent of what a sweep could find that it found; pages that read as zero from the start are no merit of its."""
    possible = said["possible"] - sum(v.get("ZERO_RO", 0) for v in before["vms"])
    missed = said["frames_used"] - said["frames_best"]
    m.note(f"oracle: {100 - 100 * missed / possible:.2f} % of {possible} pages")
    require(possible > VMS * 1000, f"there is hardly anything to share: {said}")
    return 100 - 100 * missed / possible


def still_there(m, names):
    each(m, "resume", names)
    for name in names:
        m.attach(name)
        require(m.shell("hostname; md5sum /bin/busybox").split()[0] == name, f"{name} afterwards")
        m.detach()


@row("share-oracle", timeout=400, memory="1G", backends=("svm",), why=NO_DUMP)
def share_oracle(bench):
    """Guests run and do nothing: one sweep finds nearly everything that could be shared."""
    m, names = start_linux(bench, False)
    each(m, "pause", names)
    before = ask_oracle(bench, m, names)
    require(before["foreign"] == 0 and before["percent"] < 10, f"something was shared before the sweep: {before}")
    each(m, "resume", names)
    m.json("dedup sweep", 120)
    each(m, "pause", names)
    after = ask_oracle(bench, m, names)
    counters_agree(m, after)
    percent = found(m, after, before)
    require(percent >= 98, f"one sweep found {percent:.2f} %: {after}")
    still_there(m, names)


@row("share-oracle-large", timeout=400, memory="1G", backends=("svm",), why=NO_DUMP)
def share_oracle_large(bench):
    """The same on 2 MiB mappings, with the scanner as it is by default."""
    m, names = start_linux(bench, True)
    each(m, "pause", names)
    before = ask_oracle(bench, m, names)
    require(sum(v["in_large"] for v in before["vms"]) > before["pages"] / 2, f"no 2 MiB mappings: {before}")
    each(m, "resume", names)
    m.json("dedup sweep", 120)
    each(m, "pause", names)
    after = ask_oracle(bench, m, names)
    counters_agree(m, after)
    percent = found(m, after, before)
    require(percent >= 98, f"one sweep found {percent:.2f} %: {after}")
    still_there(m, names)


@row("share-oracle-forks", timeout=500, memory="1G", backends=("svm",), why=NO_DUMP)
def share_oracle_forks(bench):
    """Two guests, forks of both that go on, forks of these, and some that nobody has started: what they inherit counts, and one sweep finds the rest."""
    m, parents = start_linux(bench, False, 2)
    running = []
    for parent in parents:
        running += [child["name"] for child in m.json(f"vm fork {parent} 2", 90)["children"]]
    for name in running[1:3]:
        running += [child["name"] for child in m.json(f"vm fork {name}", 90)["children"]]
    for n, name in enumerate(running): # each does something of its own, and something that all do
        m.attach(name)
        m.shell(f"i=0; while [ $i -lt 2000 ]; do echo {n % 3} line $i; i=$((i + 1)); done > /tmp/file; md5sum /bin/busybox /tmp/file")
        m.detach()
    m.json(f"vm snapshot {running[0]} kept")
    names = parents + running + [m.json(f"vm fork {name} paused=yes", 90)["children"][0]["name"] for name in (parents[0], running[0])]
    each(m, "pause", parents + running)
    before = ask_oracle(bench, m, names)
    counters_agree(m, before)
    require(sum(v.get("INHERITED", 0) for v in before["vms"]) > 20000, f"hardly anything is inherited: {before}")
    each(m, "resume", parents + running)
    m.json("dedup sweep", 120)
    each(m, "pause", parents + running)
    after = ask_oracle(bench, m, names)
    counters_agree(m, after)
    wrong = ask_oracle(bench, m, names, {names[-1]: "other"}) # it has nothing but what it inherits
    require(wrong["foreign"] > 1000, f"the oracle does not see what is inherited across groups: {wrong}")
    require(after["saved"] > before["saved"] + 1000, f"the sweep found little: {before} {after}")
    looked_at = after["possible"] - after["missed_inherited"] # a sweep does not look where nobody has been since the fork
    m.note(f"oracle: {100 - 100 * after['missed'] / looked_at:.2f} % of {looked_at} pages, {after['percent']} % with what nobody has touched")
    require(after["missed"] <= 0.02 * looked_at and after["missed_in_2m"] == 0, f"forks and one sweep share {after['percent']} %: {after}")
    m.json(f"vm destroy {parents[0]}")
    m.json(f"vm destroy {running[1]}")
    left = [name for name in names if name not in (parents[0], running[1])]
    counters_agree(m, ask_oracle(bench, m, left))
    each(m, "resume", [name for name in running if name in left])
    for name in [name for name in running if name in left]:
        m.attach(name)
        require(m.shell("tail -n 1 /tmp/file").endswith("line 1999"), f"{name} afterwards")
        m.detach()


@row("share-groups", timeout=240, backends=("svm",), why=NO_DUMP)
def share_groups(bench):
    """VMs of two groups, of a secure one, and of none: between them nothing is shared but pages of one word throughout."""
    config, files = on_disk("share.elf")
    m = bench.boot(config + "secure-groups = vault\n", files)
    m.command("policy off dedup")
    m.command("policy set dedup break_large_percent 0")
    groups = {"a0": "web", "a1": "web", "b0": "data", "b1": "data", "s0": "vault", "s1": "vault", "x": "", "y": ""}
    for n, (name, group) in enumerate(groups.items()):
        create(m, name, "share.elf", f"mode=hold seed={n} pages=2000", "32M", f"group={group}" if group else "")
        says(m, name, "holds")
    m.json("dedup sweep", 60)
    each(m, "pause", groups)
    said = ask_oracle(bench, m, groups)
    counters_agree(m, said)
    require(said["percent"] >= 98, f"{said}")
    wrong = ask_oracle(bench, m, groups, {"a0": "data"})
    require(wrong["foreign"] > 20, f"the oracle does not see what is shared across groups: {wrong}")
    for v in said["vms"]:
        secure = v["group"] == "vault"
        require((v.get("SEALED", 0) > 500) == secure and (v.get("SHARED_RO", 0) > 500) != secure, f"states of {v['name']}: {v}")
    each(m, "resume", groups)
    for name in groups:
        says(m, name, "verified", key="v")
    m.audit()
    m.json("vm destroy a0")
    m.json("vm destroy b1")
    for name in ("a1", "b0", "s0", "x"):
        says(m, name, "verified", key="v")


# ---- too little memory --------------------------------------------------------------------------------------------------------


WHY = "(no free frame|free are set aside for)"


def press(m, name, key):
    m.attach(name)
    m.send(key)
    m.detach()


@row("share-storm", timeout=400, cpus=2)
def share_storm(bench):
    """Everybody writes to everything at once, and there is not enough: who is best effort waits, and says why; who is strict does not."""
    m = bench.boot(*on_disk("share.elf"))
    m.command("policy off dedup")
    m.command("policy set dedup break_large_percent 0")
    pages = m.frames()[0] * 44 // 100
    names = [f"g{n}" for n in range(3)]
    create(m, "strict", "share.elf", "mode=storm seed=9 pages=2000", "32M", "group=web class=strict")
    says(m, "strict", "holds")
    for n, name in enumerate(names): # one after the other: all at once would not fit unshared
        create(m, name, "share.elf", f"mode=storm seed={n} pages={pages}", f"{pages // 256 + 16}M", "group=web class=best-effort")
        says(m, name, "holds", 120)
        m.json("dedup sweep", 120)
    require(m.frames()[0] > pages, f"{m.frames()[0]} frames are free, not enough for a start of {pages} pages")
    m.audit()
    for name in names:
        press(m, name, "w")
    stalled = m.until("vm list", lambda a: [v for v in a["vms"] if v["state"] == "stalled"], 120, "a VM that waits for frames")
    require(all(re.search(WHY, v["reason"]) for v in stalled), f"reasons: {[v['reason'] for v in stalled]}")
    require(re.search(r"g\d +stalled .*" + WHY, m.command("vm list")), "vm list shows no reason")
    says(m, "strict", "wrote", key="w")
    m.audit()
    require(all(v["state"] in ("running", "stalled") for v in m.json("vm list")["vms"]), "a VM ended")
    gone = stalled[0]["name"]
    m.json(f"vm destroy {gone}", 60)
    for name in [n for n in names if n != gone]:
        says(m, name, f"verified {pages} pages", 200)
        v = m.vm(name)
        require(v["state"] == "running" and v["reboots"] == 0, f"{v}")
    says(m, "strict", "verified")
