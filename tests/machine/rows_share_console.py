"""What the console says about sharing: groups, classes, who pays, what is set aside, and why a VM waits."""
import re

from rows import require, row
from rows_tiny import create, on_disk

COLUMNS = ("resident_pages", "image_shared_pages", "shared_pages", "zero_pages", "inherited_pages", "empty_pages")
PARTS = ("private", "shared", "boot_file", "inherited", "overhead")


def readable(m, line):
    """The text of a command, no line of which is too long to be read."""
    text = m.command(line)
    long = [shown for shown in text.splitlines() if len(shown.rstrip()) > 150]
    require(not long, f"`{line}`: lines of more than 150 columns: {long}")
    return text


def holds(m, name, group, more=""):
    create(m, name, "share.elf", f"mode=hold seed={ord(name)} pages=1000", "16M", f"group={group} {more}")
    m.vm_until(name, lambda v: v["vcpus"][0]["state"] == "halted", 60, "filled its pages")


def verified(m, name):
    m.attach(name)
    m.send("v")
    found = m.expect(r"share: (verified 1000 pages|ERROR.*\n)|tiny:.*\n", 60)
    require(found.group(1) == "verified 1000 pages", f"{name}: {found.group(0)}")
    m.detach()


def vms(m):
    """`mem`, and its VMs by name, whose pages add up."""
    mem = m.json("mem")
    for v in mem["vms"]:
        require(sum(v[key] for key in COLUMNS) == v["configured_pages"], f"the pages of {v['name']} do not add up: {v}")
    return mem, {v["name"]: v for v in mem["vms"]}


def group(m, name):
    return {g["name"]: g for g in m.json("group list")}.get(name)


def check_bill(m):
    """The bills add up to frames that there are, and are the same one by one."""
    mem, all_vms = vms(m)
    bills = {b["name"]: b for b in m.json("mem bill", 60)}
    require(set(bills) == set(all_vms), f"bills for {sorted(bills)}, VMs {sorted(all_vms)}")
    for name, bill in bills.items():
        require(bill["total_millipages"] == sum(bill[f"{part}_millipages"] for part in PARTS), f"the parts do not add up: {bill}")
        require(bill["private_millipages"] == 1000 * all_vms[name]["resident_pages"], f"private pages: {bill} {all_vms[name]}")
        require(m.json(f"mem bill {name}", 60) == [bill], f"the bill of {name} alone is another")
    frames, billed = mem["frames"]["shared"], sum(b["shared_millipages"] for b in bills.values())
    require(0.99 * frames <= billed / 1000 <= frames, f"{frames} shared frames, {billed} thousandths are billed")
    text = readable(m, "mem bill")
    for name, v in all_vms.items():
        require(re.search(rf"^{name} .*\n +\d+ KiB of 16384 are its own; .*\n +in group g, {v['class']}: ", text, re.M), f"{name}: no words: {text}")
    return bills


def check_mem_text(m, mem):
    text = readable(m, "mem")
    header = next(line for line in text.splitlines() if line.startswith("VM (KiB)"))
    require(all(name in header for name in ("shared", "boot file", "inherited", "cover", "overhead")), f"columns: {header}")
    require(f"{mem['saved_pages'] * 4} KiB" in text and f"{mem['reserve_pages'] * 4}" in text, f"totals: {text}")


def check_refusals(m):
    for line, said in (("vm set a class=gold", "none of"), ("vm set a group=other", "can not be changed"), ("group secure nobody on", "no group nobody"),
                       ("mem bill nobody", "no VM"), ("vm create x kernel=share.elf group=a/b", "no name")):
        error = m.json(line, error=True)
        require(said in error, f"`{line}`: {error}")
    require(m.vm("a")["state"] == "running" and vms(m)[1]["a"]["class"] == "strict", "a refused command had an effect")


def check_classes(m):
    """What is set aside follows the class at once."""
    mem, v = vms(m)
    require(v["a"]["class"] == "strict" and v["a"]["covered_pages"] >= v["a"]["shared_pages"] > 0, f"a: {v['a']}")
    require(v["b"]["class"] == "best-effort" and v["b"]["covered_pages"] == 0, f"b: {v['b']}")
    require(mem["covered_pages"] == v["a"]["covered_pages"] and mem["promised_pages"] == 0 and mem["reserve_pages"] > 0, f"set aside: {mem}")
    strict = v["a"]["covered_pages"]
    m.json("vm set a class=insured")
    insured = vms(m)[1]["a"]
    require(insured["class"] == "insured" and 0 < insured["covered_pages"] < strict, f"insured: {insured}")
    m.json("vm set a class=best-effort")
    require(vms(m)[0]["covered_pages"] == 0, "frames are set aside for nobody")
    m.json("vm set a class=strict")
    require(vms(m)[1]["a"]["covered_pages"] == strict, "strict again")


def check_groups(m):
    """The secure mode: switched on it seals what is scanned, and counts what that costs."""
    g = group(m, "g")
    _, v = vms(m)
    require(g["members"] == 2 and g["shared_pages"] == v["a"]["shared_pages"] + v["b"]["shared_pages"], f"group g: {g} {v}")
    require(not g["secure"] and g["traps"] == 0 and g["sealed_pages"] == 0, f"group g: {g}")
    require(group(m, "s")["secure"] and group(m, "s")["members"] == 0, f"group s, of the configuration: {group(m, 's')}")
    require(re.search(r"^g +2 .*\n(.*\n)*s +secure +0 |^s +secure +0 .*\n(.*\n)*g +2 ", readable(m, "group"), re.M), m.command("group list"))
    require(m.json("group secure g on")["secure"] is True, "group secure g on")
    holds(m, "c", "g")
    m.json("dedup sweep", 120)
    m.json("dedup sweep", 120)
    sealed = group(m, "g")
    require(sealed["members"] == 3 and sealed["sealed_pages"] > 0, f"nothing is sealed: {sealed}")
    for name in "abc":
        verified(m, name)
    shown = m.json("group secure g off")
    require(not shown["secure"] and shown["traps"] > 0 and shown["mean_trap_ns"] > 0, f"what it has cost: {shown}")
    m.json("vm destroy c")


def why_it_waits(m):
    """A VM at its own maximum, and one that is refused what is set aside for a strict one."""
    create(m, "full", "share.elf", "mode=hold seed=9 pages=3000", "32M", "max=4M")
    m.vm_until("full", lambda v: v["state"] == "stalled", 60, "stalled")
    require("maximum of 4096 KiB" in m.vm("full")["reason"], f"the reason: {m.vm('full')['reason']}")
    require(re.search(r"^\d+ +full +stalled .*maximum of 4096 KiB", readable(m, "vm list"), re.M), "vm list does not say why")
    shown = readable(m, "vm show full")
    require(re.search(r"^state +stalled: .*maximum of 4096 KiB", shown, re.M), "vm show does not say why")
    require(re.search(r"^sharing +with itself only, best-effort: 0 KiB", shown, re.M), f"vm show does not say whom it shares with: {shown}")
    m.until("mem bill full", lambda b: "maximum of 4096 KiB" in b[0]["waits"], 20, "a bill that says why")
    require(m.vm("a")["group"] == "g" and m.vm("a")["class"] == "strict", f"vm show of a: {m.vm('a')}")
    require(m.json("mem bill a", 60)[0]["waits"] == "", "a waits for nothing")
    m.json("vm destroy full")
    create(m, "greedy", "memtest.elf", "forever order=seq", "1G")
    m.vm_until("greedy", lambda v: v["state"] == "stalled", 120, "stalled")
    reason = m.vm("greedy")["reason"]
    require("best-effort" in reason and "set aside" in reason, f"the reason: {reason}")
    require(re.search(r"greedy +stalled .*set aside", readable(m, "vm list")), "vm list does not say why")
    m.json("vm set a class=best-effort") # nothing is set aside now: there is really nothing left soon
    m.until("vm list", lambda a: any(v["name"] == "greedy" and v["state"] == "stalled" and "no free frame" in v["reason"] for v in a["vms"]),
            60, "the frames that were set aside")
    m.json("vm destroy greedy")


@row("share-commands", timeout=240, backends=("svm",), why="the console is the same on all")
def share_commands(bench):
    config, files = on_disk("share.elf", "memtest.elf")
    m = bench.boot(config + "secure-groups = s\n", files)
    m.command("policy off dedup") # but for the sweeps that are asked for
    m.command("policy off large")
    m.command("policy set dedup break_large_percent 0")
    holds(m, "a", "g", "class=strict")
    holds(m, "b", "g")
    _, before = vms(m)
    require(all(before[name]["group"] == "g" and before[name]["shared_pages"] == 0 for name in "ab"), f"before: {before}")
    m.json("dedup sweep", 120)
    m.json("dedup sweep", 120)
    mem, after = vms(m)
    require(after["a"]["shared_pages"] > 100 and after["b"]["shared_pages"] > 100, f"little was merged: {after}")
    owed = sum(after[name][f"{what}_pages"] for name in "ab" for what in ("shared", "zero", "image_shared", "inherited"))
    require(mem["saved_pages"] == owed - mem["frames"]["shared"], f"saved: {mem}")
    check_mem_text(m, mem)
    check_refusals(m)
    check_classes(m)
    bills = check_bill(m)
    require(bills["a"]["sharers_max"] >= 2 and bills["a"]["shared_millipages"] < 1000 * after["a"]["shared_pages"], f"a: {bills['a']}")
    check_groups(m)
    for name in "ab":
        verified(m, name)
    check_bill(m)
    why_it_waits(m)
    m.audit()
