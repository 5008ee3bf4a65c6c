"""Hostile guests: whatever one tries, the hypervisor and its other guests go on. guests/tiny/README.md has the modes."""
import re

from rows import require, row
from rows_tiny import create, expect_ok, on_disk, outcome


def boot(bench):
    """A machine with a guest that tests its memory for ever beside the hostile ones."""
    config, files = on_disk("hostile.elf", "memtest.elf")
    m = bench.boot(config, files)
    create(m, "witness", "memtest.elf", f"pages={600 if bench.kind.preempts else 30} order=random forever")
    return m


def check_witness(m):
    """It has gone on since the last look, and has found every word as it wrote it."""
    seen = -1
    for _ in range(2):
        m.attach("witness")
        loop = int(m.expect(r"memtest: loop (\d+) ok", 60).group(1))
        m.detach()
        require(loop > seen, f"the witness stands at loop {loop}")
        seen = loop
    v = m.vm("witness")
    require(v["state"] == "running" and v["reboots"] == 0, f"the witness: {v}")


def survives(bench, modes, memory="32M", seeds=(1, 2), counts=None):
    """counts: {mode: rounds} where they are not to be the guest's own."""
    m = boot(bench)
    for mode in modes:
        for seed in seeds:
            name = f"{mode}{seed}"
            more = (f" count={counts[mode]}" if counts else "") + (f" lenient={bench.kind.lenient}" if bench.kind.lenient else "")
            create(m, name, "hostile.elf", f"mode={mode} seed={seed}{more}", memory)
            expect_ok(m, name, f"hostile: mode={mode} survived", 90)
            m.json(f"vm destroy {name}")
    check_witness(m)


@row("hostile-io", timeout=200)
def hostile_io(bench):
    """Ports, addresses where nothing is, port strings from and to bad places."""
    if bench.kind.slow == 1:
        survives(bench, ("ports", "hole", "stringio"))
    else: # all of it takes seven minutes
        survives(bench, ("ports", "hole", "stringio"), seeds=(3,), counts={"ports": 1000, "hole": 300, "stringio": 40})


@row("hostile-mmio", timeout=200, quick=("vmx",))
def hostile_mmio(bench):
    """Instructions of all kinds on device windows, against a model of what each must do."""
    survives(bench, ("mmio",))


@row("hostile-cpu", timeout=200)
def hostile_cpu(bench):
    """CPUID leaves, MSRs, control registers, privileged and virtualization instructions."""
    survives(bench, ("cpuid", "msrs", "crs", "virt"))


@row("hostile-interrupts", timeout=200, backends=("svm", "vmx"), why="Bochs delivers a single-stepping SVM guest's #DB to the host")
def hostile_interrupts(bench):
    """Storms of interrupts and exceptions, and interrupt controllers and timers programmed with nonsense."""
    flood = ["irqflood"] if bench.kind.slow == 1 else [] # timers at 1 MHz leave a CPU of 50 MHz no time for anything else
    survives(bench, ["intstorm", "apic", "pic"] + flood)


@row("hostile-garbage", timeout=200, backends=("svm", "vmx"), why="any guest can end Bochs's AMD side, or keep it to itself")
def hostile_garbage(bench):
    """Random bytes executed, with handlers that go on elsewhere; clock records in bad places."""
    survives(bench, ("garbage", "pvclock"))
    m = bench.machine
    for seed in (1, 2, 3) if bench.kind.survives_garbage else (): # in ring 0 it may do anything to itself: end with any code, or hang
        name = f"ring0-{seed}"
        create(m, name, "hostile.elf", f"mode=garbage0 seed={seed}")
        m.vm_until(name, lambda v: v["state"] == "stopped" or v["vcpus"][0]["exits"] > 5000, 90, f"{name} ended, or has run a while")
        m.json(f"vm destroy {name}")
    check_witness(m)


@row("hostile-real", timeout=200, backends=("svm", "vmx"), why="Bochs clears EFER.LMA before the SVM exit for the write to CR0")
def hostile_real(bench):
    """16-bit code that exits, paging of two and three levels, virtual-8086 mode, task switches."""
    survives(bench, ["realmode", "vm86"] + ["tasks"] * bench.kind.switches_tasks)
    if not bench.kind.switches_tasks:
        create(bench.machine, "tasks", "hostile.elf", "mode=tasks")
        reason = bench.machine.vm_stopped("tasks", 30)["reason"]
        require("task switch at rip=0x" in reason, f"tasks: {reason}")


@row("hostile-outside", timeout=150, quick=("vmx",))
def hostile_outside(bench):
    """Page tables, stacks, descriptor tables outside memory, instructions not emulated, endless faults: the VM stops and says why."""
    m = boot(bench)
    modes = ["walk-hole", "walk-mmio", "walk-far", "walk-leaf", "walk-string", "stack-hole", "stack-mmio", "stack-call", "idt-hole", "gdt-mmio", "unemulated"]
    for mode in modes + ["fault-loop"] * bench.kind.survives_triple_fault:
        create(m, mode, "hostile.elf", f"mode={mode}")
        v = m.vm_stopped(mode, 60)
        require("rip=0x" in v["reason"] and v["exit_code"] is None, f"{mode}: {v['reason']}, code {v['exit_code']}")
        m.json(f"vm destroy {mode}")
    create(m, "walk-self", "hostile.elf", "mode=walk-self") # a page table in memory may be its own child
    expect_ok(m, "walk-self", "hostile: mode=walk-self survived", 60)
    check_witness(m)


@row("hostile-ends", timeout=150, backends=("svm", "vmx"), why="Bochs ends with an SVM guest's triple fault", quick=("vmx",))
def hostile_ends(bench):
    """Guests that end or hang themselves: each shows why, and all can be destroyed."""
    m = boot(bench)
    for mode in ("init", "reset"): # they reset themselves again and again
        create(m, mode, "hostile.elf", f"mode={mode}")
        m.vm_until(mode, lambda v: v["reboots"] > 2, 60, f"{mode}: some resets")
        m.json(f"vm destroy {mode}")
    create(m, "spin", "hostile.elf", "mode=spin")
    create(m, "halt", "hostile.elf", "mode=halt")
    create(m, "triple", "hostile.elf", "mode=triple")
    v = m.vm_stopped("triple", 60)
    require("triple fault" in v["reason"] and v["reboots"] == 1, f"triple: {v}")
    require(re.search(r"triple +stopped .*triple fault at rip=0x", m.command("vm list")), "vm list shows no reason")
    m.vm_until("halt", lambda a: a["vcpus"][0]["state"] == "halted", 20, "a halted vCPU")
    require(m.vm("spin")["state"] == "running", "the one that spins")
    create(m, "cr3", "hostile.elf", "mode=cr3")
    text, code = outcome(m, "cr3")
    require(code == 1 or "entry refused" in m.vm("cr3")["reason"], f"cr3 ended with {code}: {text}")
    check_witness(m)
    for name in ("spin", "halt", "triple", "cr3", "witness"):
        m.json(f"vm destroy {name}")
