"""Several CPUs: the machine's, the guests', and memory that is taken away on one while another uses it."""
import re
import struct

from machine import QemuBiosMachine, QemuMachine
from rows import guest, require, row
from rows_linux import HYPERVISOR, linux, linux_files, to_shell
from rows_tiny import create, expect_ok, on_disk


def guest_cpus(m):
    """The CPUs that guests run on, by number. QEMU has one more than it was asked for (tools/run-qemu), which is none of them."""
    said = m.json("cpu")
    cpus = []
    for part in said["guests_on"].split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    require(said["online"] == len(cpus) + m.spare_cpus(), f"CPUs: {said}")
    return cpus


@row("smp-boot", timeout=120, cpus=4, quick=("vmx",))
def smp_boot(bench):
    """Every CPU that ACPI lists runs threads; none is left out."""
    m = bench.boot()
    require(len(guest_cpus(m)) == 4, f"guests run on {guest_cpus(m)} of 4 CPUs")
    top = m.json("top", 20)
    require([c["id"] for c in top["pcpus"]] == list(range(4 + m.spare_cpus())), f"top shows {top['pcpus']}")
    m = bench.boot(cpus=2)
    require(len(guest_cpus(m)) == 2, f"guests run on {guest_cpus(m)} of 2 CPUs")


class OddCpusMachine(QemuMachine):
    """Four CPUs, of which the second has no nested paging and the third no SVM."""

    arguments = ["-smp", "1,maxcpus=4,sockets=4,cores=1,threads=1"]
    for _id, _without in ((1, ",npt=off"), (2, ",svm=off"), (3, "")):
        arguments += ["-device", f"EPYC-x86_64-cpu,socket-id={_id},die-id=0,core-id=0,thread-id=0{_without}"]


@row("smp-odd", timeout=300, backends=("svm",), why="Bochs has as many CPUs of one model")
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


ABSENT = 77 # the number of a local APIC that no machine here has


def madt(apic_ids):
    """An ACPI table (6.4, 5.2.12) with these local APICs and what emulated PCs have besides: an I/O APIC, the 8254 at its input 2, interrupts of
    PCI by level, NMI at LINT1."""
    body = struct.pack("<II", 0xfee00000, 1)
    body += b"".join(struct.pack("<BBBBI", 0, 8, n, apic_id, 1) for n, apic_id in enumerate(apic_ids))
    body += struct.pack("<BBBBII", 1, 12, 0, 0, 0xfec00000, 0)
    body += b"".join(struct.pack("<BBBBIH", 2, 10, 0, irq, gsi, flags) for irq, gsi, flags in
                     ((0, 2, 0), (5, 5, 13), (9, 9, 13), (10, 10, 13), (11, 11, 13)))
    body += struct.pack("<BBBHB", 4, 6, 0xff, 0, 1)
    table = bytearray(struct.pack("<4sIBB6s8sI4sI", b"APIC", 36 + len(body), 3, 0, b"PALIMP", b"ABSENT", 1, b"TEST", 1) + body)
    table[9] = -sum(table) & 0xff
    return bytes(table)


def stamps(m, pattern):
    """When the machine logged it, in seconds of its own."""
    return [float(found) for found in re.findall(rf"\[ *(\d+\.\d+)\] [^\n]*{pattern}", "\n".join(m.json("log")))]


@row("smp-absent", timeout=300, cpus=2, backends=("svm",), why="the table is that of QEMU's machine")
def smp_absent(bench):
    """ACPI names a CPU that is not there, before and after one that is: it is waited for, but not long, reported and left out. The others
    work, also those that have got a number behind it; so does a guest on them. Time is a count of instructions, so the limit can be measured."""
    table = bench.bytes_file("APIC", madt((0, 1, ABSENT, 2, ABSENT + 1)))
    m = bench.boot(*on_disk("smp.elf"), kind=QemuBiosMachine, image_options=("--acpi-instead", f"APIC={table}"), extra=("--icount=3",))
    said = [stamps(m, f"smp: the CPU with APIC id {n} is left out: it does not answer") for n in (ABSENT, ABSENT + 1)]
    require([len(s) for s in said] == [1, 1] and len(stamps(m, "smp: 3 CPUs, 2 left out")) == 1, f"reports: {m.json('log')}")
    waited = said[1][0] - said[0][0] # half a second is the limit; one that answered was started meanwhile
    require(0.5 <= waited < 0.7, f"the machine waited {waited} s for a CPU")
    require(guest_cpus(m) == [1, 3], f"guests run on {guest_cpus(m)}")
    require([c["id"] for c in m.json("top", 20)["pcpus"]] == [0, 1, 3], "CPUs in use")
    create(m, "g", "smp.elf", "mode=all loops=1", "64M", "vcpus=3")
    expect_ok(m, "g", "smp: ok", 120)


@row("smp-tiny", timeout=420, cpus=2)
def smp_tiny(bench):
    """vCPUs that check each other's memory, interrupts, clocks and locks: one, two, four and sixteen of them."""
    m = bench.boot(*on_disk("smp.elf"))
    require(len(guest_cpus(m)) == 2, "CPUs in use")
    for vcpus in (1, 2, 4, 16):
        create(m, f"v{vcpus}", "smp.elf", f"mode=all loops=1 seed={vcpus}", "64M", f"vcpus={vcpus}")
        text = expect_ok(m, f"v{vcpus}", "smp: ok", 240) # sixteen that spin on two CPUs take 100 s and more on a slow host
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


def fair(m, weights):
    """Each has its part by weight in every second, within 5 %. What DMM's own threads take is nobody's."""
    for _ in range(2):
        got = shares(m, 1)
        for name, weight in weights.items():
            ideal = 2 * weight / sum(weights.values())
            require(abs(got[name] - ideal) <= 0.05 * ideal, f"{name}: weight {weight} got {got[name]:.3f} of a CPU, not {ideal:.3f}: {got}")


def weigh(m, **weights):
    for name, weight in weights.items():
        m.command(f"vm set {name} cpu-weight={weight}")
    fair(m, weights)


@row("smp-shares", timeout=400, cpus=2, quick=("vmx",))
def smp_shares(bench):
    """CPU time by weight, within 5 % over a second, among three, four and five vCPUs; a cap; pinning; all changed while the guests run. Time is
    a count of instructions: what the host does meanwhile is in nobody's share."""
    m = bench.boot(*on_disk("hello64.elf"), extra=("--icount=3",) if bench.kind is QemuMachine else ())
    weights = {"a": 100, "b": 150, "c": 200, "d": 250}
    for name, weight in weights.items():
        create(m, name, "hello64.elf", "spin", "16M", f"cpu-weight={weight}")
    fair(m, weights)
    create(m, "e", "hello64.elf", "spin", "16M")
    weigh(m, a=500, b=300, c=200, d=100, e=100)
    m.json("vm destroy d")
    m.json("vm destroy e")
    weigh(m, a=100, b=100, c=100)
    weigh(m, a=100, b=150, c=100)
    m.command("vm set a cpu-cap=10")
    got = shares(m, 2)
    require(got["a"] <= 0.10 * 1.05 + 0.002, f"a cap of 10 % and {got}")
    require(sum(got.values()) > 1.9, f"what the cap leaves is not used: {got}")
    m.command("vm set a cpu-cap=0 affinity=1")
    m.command("vm set b affinity=1")
    m.until("vm show a", lambda v: v["vcpus"][0]["pcpu"] == 1, 20, "a on CPU 1")
    m.until("vm show b", lambda v: v["vcpus"][0]["pcpu"] == 1, 20, "b on CPU 1")
    require("none of the CPUs" in m.command("vm set b affinity=7"), "a CPU that does not exist is accepted")
    require(m.vm("b")["vcpus"][0]["pcpu"] == 1, "b has left CPU 1")


def linux_interrupts(m):
    """{name: counts by CPU} of the interrupts that a Linux guest's CPUs send each other."""
    lines = re.findall(r"(RES|CAL|TLB): +((?:\d+ +)+)", m.shell("cat /proc/interrupts", 60))
    return {name: [int(count) for count in counts.split()] for name, counts in lines}


@row("smp-linux", timeout=400, memory="768M", cpus=2)
def smp_linux(bench):
    """Linux with two and with four vCPUs on two CPUs: memory that is written, copied and checked by all at once; translations that are changed
    under the others; wake-ups across CPUs."""
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
        before = linux_interrupts(m)
        rounds = 200 // vcpus
        text = m.shell(f"smpcheck {rounds} {vcpus}", 150)
        require(f"smpcheck: ok cpus={vcpus} rounds={rounds} " in text, f"{name}: {text}")
        after = linux_interrupts(m)
        for kind in ("RES", "CAL", "TLB"):
            require(len(after[kind]) == vcpus and all(a > b for a, b in zip(after[kind], before[kind])),
                    f"{name}: {kind} interrupts by CPU: {before[kind]}, then {after[kind]}")
        m.detach()


@row("smp-time", timeout=400, cpus=2)
def smp_time(bench):
    """TSC and KVM's clock on four vCPUs that read them in turn, while the VM is paused and resumed and its vCPUs are moved about."""
    m = bench.boot(*on_disk("smp.elf"))
    create(m, "t", "smp.elf", "mode=clock loops=10 forever", "32M", "vcpus=4")
    seen = loops(m, "t", r"smp: loop (\d+) ok")
    one, two = guest_cpus(m)
    for n in range(6):
        m.command(f"vm set t affinity={('all', one, two)[n % 3]}")
        m.json("vm pause t")
        m.command("version")
        m.json("vm resume t")
        seen = loops(m, "t", r"smp: loop (\d+) ok")
    v = m.vm("t")
    require(v["state"] == "running" and v["reboots"] == 0, f"after {seen} loops: {v}")
