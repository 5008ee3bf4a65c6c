"""
Everything that can be told to the console, in any order, to guests that check every word they wrote.

SEED=N chooses another order, STEPS=N how long it goes on: `SEED=7 STEPS=400 make test-machine ROWS=vm-monkey`. What guests and policies do
meanwhile depends on time, so a seed repeats the commands and no more.
"""
import os
import random

from rows import require, row
from rows_tiny import on_disk

GUESTS = (("share.elf", "mode=writers pages={pages} seed={seed}"), ("fork.elf", "pages={pages}"), ("memtest.elf", "forever order=random seed={seed}"),
          ("smp.elf", "mode=mem pages=200 loops=1 seed={seed} forever"), ("share.elf", "mode=hold pages={pages} seed={seed}"))


class Monkey:
    def __init__(self, m, seed):
        self.m, self.random, self.made, self.refused = m, random.Random(seed), 0, 0
        self.policies = {p["name"]: m.json(f"policy show {p['name']}")["ranges"] for p in m.json("policy list")}

    def tell(self, line, timeout=150):
        self.refused += self.m.answer(line, timeout)[1] is not None

    def names(self):
        return [v["name"] for v in self.m.json("vm list")["vms"]]

    def any(self):
        return self.random.choice(self.names() or ["nobody"])

    # ---- what it does ----------------------------------------------------------------------------------------------------

    def create(self):
        r = self.random
        kernel, arguments = r.choice(GUESTS)
        self.made += 1
        line = f'vm create g{self.made} kernel={kernel} memory={r.choice((8, 24, 32, 48))}M vcpus={r.choice((1, 1, 2, 3))} debug-exit=yes'
        line += f' "cmdline={arguments.format(pages=r.choice((50, 400, 900)), seed=r.randrange(4))}"'
        for key, values in (("group", ("web", "vault")), ("class", ("strict", "insured", "best-effort")), ("max", ("6M", "16M")), ("min", ("2M", "12M"))):
            if r.random() < 0.3:
                line += f" {key}={r.choice(values)}"
        self.tell(line)

    def start(self): self.tell(f"vm start {self.any()}")
    def stop(self): self.tell(f"vm stop {self.any()}")
    def pause(self): self.tell(f"vm pause {self.any()}")
    def resume(self): self.tell(f"vm resume {self.any()}")
    def destroy(self): self.tell(f"vm destroy {self.any()}")
    def fork(self): self.tell(f"vm fork {self.any()} {self.random.randint(1, 3)} {self.random.choice(('', 'paused=yes'))}")
    def snapshot(self): self.tell(f"vm snapshot {self.any()} s{self.random.randrange(4)}")
    def restore(self): self.tell(f"vm restore {self.any()} s{self.random.randrange(4)}")
    def forget(self): self.tell(f"vm snapshot-delete {self.any()} s{self.random.randrange(4)}")
    def sweep(self): self.tell("dedup sweep")
    def secure(self): self.tell(f"group secure {self.random.choice(('web', 'vault'))} {self.random.choice(('on', 'off'))}")

    def set_vm(self):
        setting = self.random.choice(("class=strict", "class=insured", "class=best-effort", "cpu-weight=300", "cpu-cap=20", "cpu-cap=0", "affinity=0", "affinity=all"))
        self.tell(f"vm set {self.any()} {setting}")

    def switch(self): self.tell(f"policy {self.random.choice(('on', 'on', 'off'))} {self.random.choice(list(self.policies))}")

    def set_policy(self):
        name = self.random.choice(list(self.policies))
        for key, limits in self.random.sample(list(self.policies[name].items()), min(1, len(self.policies[name]))):
            value = self.random.choice((limits["min"], limits["max"], self.random.randint(limits["min"], limits["max"])))
            self.tell(f"policy set {name} {key} {value}")

    def look(self):
        name = self.any()
        self.tell(self.random.choice(("mem", "mem bill", f"mem bill {name}", f"mem map {name}", f"stat {name}", "stat", "threads", "top", f"vm show {name}",
                                      f"vm snapshots {name}", "group list", "policy show dedup", "cpu", "slow")))

    def attach(self):
        running = [v["name"] for v in self.m.json("vm list")["vms"] if v["state"] != "stopped"] # from the others one is thrown out again
        if running:
            self.m.attach(self.random.choice(running))
            self.m.send(self.random.choice(("k", "w", "")))
            self.m.detach()

    def wait(self): self.m.pause(self.random.random())
    def audit(self): self.m.audit()

    # ---- and how often -----------------------------------------------------------------------------------------------------

    WEIGHTS = {"create": 6, "start": 2, "stop": 1, "pause": 3, "resume": 6, "destroy": 5, "fork": 6, "snapshot": 4, "restore": 5, "forget": 2, "sweep": 2,
               "secure": 1, "set_vm": 2, "switch": 2, "set_policy": 3, "look": 3, "attach": 2, "wait": 6, "audit": 2}

    def step(self):
        getattr(self, self.random.choices(list(self.WEIGHTS), list(self.WEIGHTS.values()))[0])()
        for v in self.m.json("vm list")["vms"]:
            require(v["state"] != "stopped" or v["reason"] == "stopped by command", f"{v['name']} has stopped: {v}")


def monkey(bench, seed, steps):
    m = bench.boot(*on_disk(*{kernel for kernel, _ in GUESTS}))
    m.note(f"seed {seed}")
    one = Monkey(m, seed)
    for _ in range(steps):
        one.step()
    require(one.made > steps // 30 and one.refused < steps * 3 // 4, f"{one.made} VMs made, {one.refused} of {steps} refused: it does too little")
    for name in one.names():
        m.json(f"vm destroy {name}", 60)
    for name in one.policies:
        one.tell(f"policy off {name}")
    m.audit()
    mem = m.json("mem")
    require(not any(mem["frames"][kind] for kind in ("guest", "shared", "p2m", "vm-state")), f"left: {mem}")


@row("vm-monkey", timeout=600, memory="256M", cpus=2, quick=("vmx",))
def vm_monkey(bench):
    """VMs are made, forked, paused, restored, destroyed, and policies turned, at random, on a machine that is too small for them."""
    monkey(bench, int(os.environ.get("SEED", "1")), int(os.environ.get("STEPS", "120" if bench.kind.slow == 1 else "40")))
