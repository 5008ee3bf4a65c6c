"""Several CPUs: the machine's, the guests', and memory that is taken away on one while another uses it."""
import re

from machine import QemuMachine
from rows import guest, require, row
from rows_linux import HYPERVISOR, linux, linux_files, to_shell
from rows_tiny import create, expect_ok, on_disk


def online(m):
    return m.json("cpu")["online"]


@row("smp-boot", timeout=120, cpus=4, quick=("vmx",))
def smp_boot(bench):
    """Every CPU that ACPI lists runs threads; none is left out."""
    m = bench.boot()
    require(online(m) == 4, f"{online(m)} of 4 CPUs are in use")
    top = m.json("top", 20)
    require([c["id"] for c in top["pcpus"]] == [0, 1, 2, 3], f"top shows {top['pcpus']}")
    m = bench.boot(cpus=2)
    require(online(m) == 2, f"{online(m)} of 2 CPUs are in use")


class OddCpusMachine(QemuMachine):
    """Four CPUs, of which the second has no nested paging and the third no SVM."""

    arguments = ["-smp", "1,maxcpus=4,sockets=4,cores=1,threads=1"]
    for _id, _without in ((1, ",npt=off"), (2, ",svm=off"), (3, "")):
        arguments += ["-device", f"EPYC-x86_64-cpu,socket-id={_id},die-id=0,core-id=0,thread-id=0{_without}"]


@row("smp-odd", timeout=150, backends=("svm",), why="Bochs has as many CPUs of one model")
def smp_odd(bench):
    """CPUs that cannot do what the boot CPU can are left out, each with the reason; the others run guests."""
    config, files = on_disk("smp.elf")
    m = bench.boot(config, files, kind=OddCpusMachine)
    log = m.command("log", log_lines=True)
    for said in ("APIC id 1 is left out: SVM without nested paging", "APIC id 2 is left out: the CPU has no SVM", "smp: 2 CPUs, 2 left out"):
        require(said in log, f"the log lacks `{said}`")
    require(m.json("cpu")["online"] == 2 and len(m.json("top", 20)["pcpus"]) == 2, "two CPUs in use")
    create(m, "s", "smp.elf", "mode=all loops=1 seed=1", "64M", "vcpus=4")
    expect_ok(m, "s", "smp: ok", 120)
    m.json("vm destroy s")


@row("smp-tiny", timeout=240, cpus=2)
def smp_tiny(bench):
    """vCPUs that check each other's memory, interrupts, clocks and locks: one, two, four and sixteen of them."""
    m = bench.boot(*on_disk("smp.elf"))
    require(online(m) == 2, "CPUs in use")
    for vcpus in (1, 2, 4, 16):
        create(m, f"v{vcpus}", "smp.elf", f"mode=all loops=1 seed={vcpus}", "64M", f"vcpus={vcpus}")
        text = expect_ok(m, f"v{vcpus}", "smp: ok", 120)
        require(f"smp: {vcpus} vCPUs" in text, f"not {vcpus} vCPUs: {text}")
        m.json(f"vm destroy v{vcpus}")


@row("smp-flood", timeout=90, cpus=2, backends=("svm",), why="its guests print on one CPU while the other shows it, which takes Bochs long")
def smp_flood(bench):
    """A guest that prints for ever on another CPU than the console's: Ctrl-] leaves it, each time, and the console goes on."""
    m = bench.boot(*on_disk("hello.elf"))
    for n in range(2):
        create(m, f"f{n}", "hello.elf", "flood")
    for n in range(4):
        m.attach(f"f{n % 2}")
        m.expect(r"again and again\r\n", 20)
        m.detach()
    require(all(v["state"] == "running" for v in m.json("vm list")["vms"]), "one has ended")


@row("smp-many", timeout=240, cpus=4)
def smp_many(bench):
    """Three VMs of four vCPUs at once on four CPUs."""
    m = bench.boot(*on_disk("smp.elf"))
    for n in range(3):
        create(m, f"m{n}", "smp.elf", f"mode=all loops=1 seed={n}", "64M", "vcpus=4")
    for n in range(3):
        expect_ok(m, f"m{n}", "smp: ok", 150)


def churn_counts(m):
    text = m.command("policy show churn")
    return {key: int(value) for key, value in re.findall(r"^ *(\w+) +(\d+)\r?$", text, re.M)}


def loops(m, name, pattern):
    """The number in the last such line that it has printed since the last look."""
    m.attach(name)
    number = int(m.expect(pattern, 90).group(1))
    m.detach()
    return number


@row("smp-churn", timeout=300, cpus=2)
def smp_churn(bench):
    """Pages are moved, write-protected, broken and re-formed at random under guests that check every word, one with four vCPUs."""
    m = bench.boot(*on_disk("smp.elf", "memtest.elf"))
    m.command("policy set demand large_free_percent 0")
    m.until("mem", lambda a: a["frames"]["free-zeroed"] >= a["total_pages"] // 32 + 4 * 512, 90, "zeroed frames of 2 MiB in stock")
    m.command("policy set churn rate 20000")
    m.command("policy on churn")
    create(m, "smp", "smp.elf", "mode=mem pages=6000 loops=1 forever", "48M", "vcpus=4")
    create(m, "one", "memtest.elf", "pages=6000 order=random forever", "48M")
    names = ("moved", "protected", "broken", "reformed")
    m.until("version", lambda _: all(churn_counts(m).get(k, 0) > (500 if k in names[:2] else 0) for k in names), 120,
            "pages moved, protected, broken and re-formed")
    first = loops(m, "smp", r"smp: loop (\d+) ok"), loops(m, "one", r"memtest: loop (\d+) ok")
    m.audit()
    again = loops(m, "smp", r"smp: loop (\d+) ok"), loops(m, "one", r"memtest: loop (\d+) ok")
    require(again[0] > first[0] and again[1] > first[1], f"loops {first}, then {again}")
    for v in m.json("vm list")["vms"]:
        require(v["state"] == "running" and v["reboots"] == 0, f"{v}")
    m.command("policy off churn")


def shares(m, seconds):
    """CPU time per vCPU thread over an interval, as a part of one CPU."""
    top = m.json(f"top {seconds}", seconds + 30)
    return {t["name"].split(".")[0]: t["run_ns"] / top["interval_ns"] for t in top["threads"] if t["priority"] == "vcpu"}


@row("smp-shares", timeout=200, cpus=2, quick=("vmx",))
def smp_shares(bench):
    """CPU time by weight, within 5 % over seconds; a cap; pinning; all changed while the guests run."""
    m = bench.boot(*on_disk("hello64.elf"))
    weights = {"a": 100, "b": 150, "c": 200, "d": 250}
    for name, weight in weights.items():
        create(m, name, "hello64.elf", "spin", "16M", f"cpu-weight={weight}")
    got = shares(m, 6)
    for name, weight in weights.items():
        ideal = 2 * weight / sum(weights.values())
        require(abs(got[name] - ideal) <= 0.05 * ideal + 0.002, f"{name}: weight {weight} got {got[name]:.3f} of a CPU, not {ideal:.3f}: {got}")
    m.command("vm set a cpu-cap=10")
    got = shares(m, 6)
    require(got["a"] <= 0.10 * 1.05 + 0.002, f"a cap of 10 % and {got}")
    require(sum(got.values()) > 1.9, f"what the cap leaves is not used: {got}")
    m.command("vm set a cpu-cap=0 affinity=1")
    m.command("vm set b affinity=1")
    m.until("vm show a", lambda v: v["vcpus"][0]["pcpu"] == 1, 20, "a on CPU 1")
    m.until("vm show b", lambda v: v["vcpus"][0]["pcpu"] == 1, 20, "b on CPU 1")
    require("none of the CPUs" in m.command("vm set b affinity=7"), "a CPU that does not exist is accepted")
    require(m.vm("b")["vcpus"][0]["pcpu"] == 1, "b has left CPU 1")


@row("smp-linux", timeout=400, memory="768M", cpus=2)
def smp_linux(bench):
    """Linux with two and with four vCPUs on two CPUs: memory that is written, copied and checked by all at once."""
    two = linux("two").replace("[vm two]\n", "[vm two]\nvcpus = 2\n")
    four = linux("four").replace("[vm four]\n", "[vm four]\nvcpus = 4\n")
    m = bench.boot(HYPERVISOR + two + four, linux_files())
    for name, vcpus in (("two", 2), ("four", 4)):
        to_shell(m, name, 200)
        require(m.shell("nproc") == str(vcpus), f"{name}: nproc says {m.shell('nproc')}")
        m.shell("work() { dd if=/dev/urandom of=/tmp/r$1 bs=64k count=24 2>/dev/null; s=$(md5sum </tmp/r$1); "
                "for k in 1 2 3; do cp /tmp/r$1 /tmp/c$1; [ \"$(md5sum </tmp/c$1)\" = \"$s\" ] || echo WRONG $1; rm /tmp/c$1; done; "
                "echo done-$1; }")
        text = m.shell("for i in 1 2 3 4 5 6; do work $i & done; wait; cat /proc/stat | grep -c '^cpu[0-9]'", 150)
        require(text.count("done-") == 6 and "WRONG" not in text and text.split()[-1] == str(vcpus), f"{name}: {text}")
        m.detach()


@row("smp-time", timeout=150, cpus=2)
def smp_time(bench):
    """TSC and KVM's clock on four vCPUs that read them in turn, while the VM is paused and resumed and its vCPUs are moved about."""
    m = bench.boot(*on_disk("smp.elf"))
    create(m, "t", "smp.elf", "mode=clock loops=10 forever", "32M", "vcpus=4")
    seen = loops(m, "t", r"smp: loop (\d+) ok")
    for n in range(6):
        m.command(f"vm set t affinity={('all', '0', '1')[n % 3]}")
        m.json("vm pause t")
        m.command("version")
        m.json("vm resume t")
        seen = loops(m, "t", r"smp: loop (\d+) ok")
    v = m.vm("t")
    require(v["state"] == "running" and v["reboots"] == 0, f"after {seen} loops: {v}")
