"""A machine under test: an emulator, its serial line, and what a tester does with one: wait for text, type, ask the console.

A thread reads the line all the time, so the emulator never blocks on us, and judges each line at once: a panic of the hypervisor, or
an emulator that ends (every reset ends it), fails whoever waits now. Nothing here sleeps: all waiting is for text, with a limit.

What makes a prompt certain: the line editor redraws it after a carriage return, but a new prompt follows a line feed. Log lines may
come at any point; they are told by their time stamp and never taken for output of a command.
"""
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROMPT = "palimpsest> "
NEW_PROMPT = re.compile(r"\n" + re.escape(PROMPT))
PANIC = re.compile(r"\*\*\* PANIC on pcpu .*\n")
HALTED = re.compile(r"palimpsest: halted: .*\n")
ESCAPES = re.compile(r"\x1b\[[0-9;=?]*[A-Za-z]")
LOG_LINE = re.compile(r"^\[ *\d+\.\d{6}\] ")
DETACH = "\x1d"


class Failure(Exception):
    """What a row found wrong; its text is shown to the person."""


running = set() # every machine that is on, for kill_all()


def kill_group(process):
    """The emulator with whatever it has started, unless all have ended."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def kill_all():
    for machine in list(running):
        kill_group(machine.process)


class Machine:
    """One power-on. Subclasses say which command starts the emulator with its serial line on stdin and stdout, what makes its boot
    medium, and how many times slower than QEMU it may be."""

    medium = ("tools/mkimage", ".img")
    slow = 1
    cpus = 1
    preempts = True                         # interrupts end the run of a guest that has turned them off
    survives_triple_fault = True            # a guest's is an exit, and not the emulator's end
    lenient = ""                            # what the hostile guest must not try, because the CPU has it wrong by itself
    survives_garbage = False                # nothing that a guest executes at CPL 0 ends the emulator: QEMU gives up on a bad TSS
    switches_tasks = True                   # a guest's task switch is the CPU's own work; else it stops the VM

    def __init__(self, image, log_path, memory="512M", deadline=None, cpu=None, extra=()):
        self.image, self.memory, self.cpu, self.extra = image, memory, cpu, extra
        self.deadline = deadline            # of the whole row, time.monotonic()
        self.text, self.cursor = "", 0      # all output; where the next expect() starts
        self.wake = threading.Condition()
        self.ended = None                   # exit status of the emulator
        self.panicked = None
        self.end_expected = False
        self.syncs = 0
        self.log = open(log_path, "a", encoding="utf-8")
        self.started = time.monotonic()
        self.process = None

    def emulator_command(self):
        raise NotImplementedError

    def spare_cpus(self):
        """CPUs beyond those asked for, on which the hypervisor runs no guests."""
        return 0

    # ---- life --------------------------------------------------------------------------------------------------------

    def start(self, inherit=()):
        command = self.emulator_command()
        self.log.write("# " + " ".join(command) + "\n")
        self.errors = open(self.log.name + ".stderr", "w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
                                        start_new_session=True, pass_fds=inherit)
        running.add(self)
        threading.Thread(target=self._read, daemon=True).start()

    def kill(self):
        if self.process is None:
            return
        with self.wake:
            self.end_expected = True
        kill_group(self.process)
        self.process.wait()
        with self.wake:
            self.wake.wait_for(lambda: self.ended is not None, 10)
        for stream in (self.process.stdin, self.process.stdout, self.errors, self.log):
            try:
                stream.close()
            except BrokenPipeError:
                pass # what was typed last never reached the machine
        if os.path.getsize(self.errors.name) == 0:
            os.remove(self.errors.name)
        running.discard(self)
        self.process = None

    def _read(self):
        line = b""
        while data := os.read(self.process.stdout.fileno(), 65536):
            with self.wake:
                self.text += data.decode("latin-1")
                if (hit := PANIC.search(self.text, max(0, len(self.text) - len(data) - 400))) and not self.panicked:
                    self.panicked = hit.group(0).strip()
                line += data
                *whole, line = line.split(b"\n")
                for one in whole:
                    self._log(one)
                self.wake.notify_all()
        if line:
            self._log(line)
        status = self.process.wait()
        with self.wake:
            self.ended = status
            self.wake.notify_all()

    def _log(self, line):
        shown = re.sub(r"[^\x20-\x7e\t]", lambda m: f"\\x{ord(m.group()):02x}", line.rstrip(b"\r").decode("latin-1"))
        self.log.write(f"{time.monotonic() - self.started:9.3f} {shown}\n")
        self.log.flush()

    def note(self, text):
        """A line of ours among the machine's in the log."""
        self.log.write(f"{time.monotonic() - self.started:9.3f} # {text}\n")

    # ---- text --------------------------------------------------------------------------------------------------------

    def tail(self, lines=20):
        with self.wake:
            text = ESCAPES.sub("", self.text[-20000:])
        return [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")][-lines:]

    def _stderr(self):
        self.errors.flush()
        with open(self.errors.name, encoding="utf-8", errors="replace") as f:
            return f.read().strip()[-400:]

    def _wait(self, test, timeout, what):
        """Until test() is true under the lock; the row's own deadline counts too."""
        limit = time.monotonic() + timeout * self.slow
        limit = min(limit, self.deadline) if self.deadline else limit
        begun = time.monotonic()
        with self.wake:
            while not (result := test()):
                if self.panicked and "*** halted ***" in self.text:
                    raise Failure(f"{self.panicked}\n  while waiting for {what}")
                if self.ended is not None and not self.end_expected:
                    raise Failure(f"the machine was reset or the emulator ended (status {self.ended}) while waiting for {what}"
                                  f"\n  {self._stderr()}")
                if halted := HALTED.search(self.text, self.cursor):
                    raise Failure(f"{halted.group().strip()}\n  while waiting for {what}")
                left = limit - time.monotonic()
                if left <= 0:
                    panic = f"{self.panicked}\n  " if self.panicked else ""
                    raise Failure(f"{panic}waited {time.monotonic() - begun:.1f} s for {what}")
                self.wake.wait(min(left, 5 if self.panicked else left))
            return result

    def expect(self, pattern, timeout=30):
        """The match of the pattern (text or compiled) in what came since the last match."""
        regex = re.compile(pattern) if isinstance(pattern, str) else pattern
        match = self._wait(lambda: regex.search(self.text, self.cursor), timeout, f"/{regex.pattern}/".replace("\n", "\\n"))
        self.cursor = match.end()
        return match

    def expect_end(self, timeout=30):
        """The machine switches itself off or resets."""
        self.end_expected = True
        self._wait(lambda: self.ended is not None, timeout, "the machine to end")

    def seen(self, pattern):
        """Every match so far, wherever the cursor is."""
        with self.wake:
            return re.findall(pattern, self.text)

    def send(self, text):
        """Types; a machine whose line loses what comes too fast does it slowly."""
        self.send_at_once(text)

    def send_at_once(self, text):
        try:
            self.process.stdin.write(text.encode("latin-1"))
            self.process.stdin.flush()
        except BrokenPipeError:
            self._wait(lambda: False, 5, "the machine to take input")

    # ---- the console ---------------------------------------------------------------------------------------------------

    def prompt(self, timeout=60):
        self.expect(NEW_PROMPT, timeout)

    def output_since(self, start, log_lines=False):
        """Lines as a person sees them between a mark and the prompt that was just matched."""
        text = ESCAPES.sub("", self.text[start:self.cursor - len(PROMPT)])
        lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
        return [line for line in lines[:-1] if log_lines or not LOG_LINE.match(line)]

    def command(self, line, timeout=30, log_lines=False):
        """Types a line at the prompt; what it prints, without what is logged meanwhile."""
        start = self.cursor
        self.send(line + "\r")
        self.prompt(timeout)
        return "\n".join(self.output_since(start, log_lines)[1:]) # the first line is the echo

    def resync(self, timeout=60):
        """A prompt with nothing pending, after input of which some may have been dropped or is still being worked on."""
        limit = time.monotonic() + timeout * self.slow
        while True:
            self.syncs += 1
            self.send(f"\x03\x03help sync{self.syncs}\r")
            try:
                self.expect(f'no command "sync{self.syncs}"', 2)
                return self.prompt(10)
            except Failure:
                if self.panicked or self.ended is not None or time.monotonic() > limit:
                    raise

    def answer(self, line, timeout=30):
        """The one line of JSON that the command prints with -j, and what it says of an error, or None."""
        text = self.command(line + " -j", timeout)
        try:
            value = json.loads(text)
        except ValueError:
            raise Failure(f"`{line} -j` printed no line of JSON: {text[:300]!r}") from None
        return value, value["error"] if isinstance(value, dict) and set(value) == {"error"} else None

    def json(self, line, timeout=30, error=False):
        """The same; an error is a failure, or the other way round."""
        value, said = self.answer(line, timeout)
        if error and said is None:
            raise Failure(f"`{line}` was to be refused; it printed {str(value)[:300]}")
        if said is not None and not error:
            raise Failure(f"`{line}`: {said}")
        return said if error else value

    # ---- guests --------------------------------------------------------------------------------------------------------

    def attach(self, name):
        self.send(f"vm console {name}\r")
        self.expect(rf"console of {re.escape(name)}; Ctrl-\] leaves it\r\n", 20)

    def detach(self):
        self.send(DETACH)
        self.expect(r"left the console of", 20)
        self.prompt(20)

    def shell(self, line, timeout=30):
        """A command in the Linux guest whose console is attached; what it printed. It must succeed."""
        self.send(f"echo begin-$?; {line}; echo status-$?\n")
        match = self.expect(re.compile(r"begin-\d+\r\n(.*?)status-(\d+)\r\n", re.S), timeout)
        self.expect(r"\S*# ", 20)
        text = ESCAPES.sub("", match.group(1)).replace("\r", "").strip()
        if match.group(2) != "0":
            raise Failure(f"in the guest, `{line}` ended with status {match.group(2)}: {text}")
        return text

    def vm(self, name):
        return self.json(f"vm show {name}")

    def vm_until(self, name, test, timeout=60, what=None):
        """Waits until test(what vm show says) is true. A VM that stops when that is not what is waited for ends the wait."""
        def look(answer):
            if test(answer):
                return answer
            if answer["state"] == "stopped":
                raise Failure(f"{name} stopped: {answer['reason']}")
            return None
        return self.until(f"vm show {name}", look, timeout, what)

    def vm_stopped(self, name, timeout=60):
        return self.vm_until(name, lambda v: v["state"] == "stopped", timeout, f"{name} stopped")

    def frames(self):
        """Frames that nobody has, and those of all guests."""
        mem = self.json("mem")
        return mem["free_pages"], mem["frames"]["guest"]

    def until(self, line, test, timeout=60, what=None):
        """Asks `line -j` until test(answer) is true; the question itself paces this, as its answer takes the guest's time."""
        limit = time.monotonic() + timeout * self.slow
        while True:
            answer = self.json(line)
            if result := test(answer):
                return result
            if time.monotonic() >= min(limit, self.deadline or limit):
                raise Failure(f"`{line}` did not come to show {what or 'what was expected'} within {timeout} s: {answer}")
            self.pause(0.3)

    def pause(self, seconds):
        """Lets the machine run between two looks, unless it dies first."""
        with self.wake:
            self.wake.wait_for(lambda: self.panicked or self.ended is not None, seconds)

    def post_mortem(self):
        """What can be told of a machine that did not do what it should, in its log."""

    def dump(self, path):
        """The machine's memory, byte for byte, in a file."""
        raise Failure("this back end has no way to get at the machine's memory")

    def audit(self):
        result = self.json("mem audit", 60)
        if result.get("ok") is not True:
            raise Failure("mem audit: " + "; ".join(result.get("lines", [])) + f" ({result})")


class QemuMachine(Machine):
    """Beside its serial line it has a socket to QEMU's monitor (QMP), whose other end QEMU inherits."""

    arguments = ()                          # QEMU's own, after those of tools/run-qemu

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.monitor, self.monitor_inside = socket.socketpair()

    def start(self, inherit=()):
        super().start((*inherit, self.monitor_inside.fileno()))
        self.monitor_inside.close()
        self.monitor_lines = self.monitor.makefile("rw", encoding="utf-8")
        self.monitor_lines.write('{"execute": "qmp_capabilities", "id": "hello"}\n')

    def kill(self):
        super().kill()
        self.monitor.close()

    def spare_cpus(self):
        return int(self.cpus > 1)

    def emulator_command(self):
        command = ["tools/run-qemu", "--image", self.image, "--memory", self.memory, "--serial", "stdio", "--accel", "tcg",
                   "--no-reboot", "--cpus", str(self.cpus), *self.extra]
        if self.cpu:
            command += ["--cpu", self.cpu]
        return command + ["--", "-chardev", f"socket,id=monitor,fd={self.monitor_inside.fileno()}", "-mon", "chardev=monitor,mode=control",
                          *self.arguments]

    def ask_qemu(self, command, timeout=60, **arguments):
        """A command of QEMU's monitor; its answer."""
        limit = timeout * self.slow
        self.monitor.settimeout(min(limit, max(1, self.deadline - time.monotonic())) if self.deadline else limit)
        try:
            self.monitor_lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            self.monitor_lines.flush()
            while line := self.monitor_lines.readline():
                answer = json.loads(line) # a greeting, and events, come in between
                if answer.get("id") == "hello":
                    continue
                if "error" in answer:
                    raise Failure(f"QEMU's {command}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise Failure(f"QEMU's {command}: {error}") from None
        raise Failure(f"QEMU's monitor has closed the line at {command}")

    def post_mortem(self):
        """Where each CPU is, and what waits at its local APIC: tells a hang from a wait."""
        self.deadline = None # it is over
        looks = ["info registers -a"] + [f"info lapic {n}" for n in range(self.cpus + self.spare_cpus())] + ["info pic"]
        for look in looks * 2: # has it moved meanwhile?
            for line in self.ask_qemu("human-monitor-command", 5, **{"command-line": look}).splitlines():
                if line.strip() and not re.match(r"[FXY][PM][RM]", line):
                    self.note(line.rstrip())

    def dump(self, path):
        size = int(self.memory[:-1]) << {"M": 20, "G": 30}[self.memory[-1]]
        if size > 2 << 30:
            raise Failure("memory above 2 GiB does not begin where that below it ends")
        self.ask_qemu("pmemsave", 120, val=0, size=size, filename=os.path.abspath(path))


class QemuIsoMachine(QemuMachine):
    """The hybrid ISO instead of the disk image; a hybrid is a disk as well, which is how QEMU gets it unless a row says `--boot-from cd`."""

    medium = ("tools/mkiso", ".iso")


class QemuBiosMachine(QemuIsoMachine):
    """The ISO on QEMU's other firmware, SeaBIOS: what tools/run-qemu would start, without the UEFI flash."""

    def emulator_command(self):
        command = super().emulator_command()
        printed = subprocess.run([command[0], "--print", *command[1:]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        words, kept = shlex.split(printed), []
        for n, word in enumerate(words):
            if "if=pflash" not in word and not (word == "-drive" and "if=pflash" in words[n + 1]):
                kept.append(word)
        return kept


class BochsMachine(Machine):
    """Intel's side: no other emulator here has VMX. It boots by BIOS and GRUB, and is slow."""

    medium = ("tools/mkiso", ".iso")
    slow = 6
    lenient = "cr5,dr8"                     # the one is there, and a write to the other exits as one to DR0
    survives_garbage = True
    switches_tasks = False
    model = ()                              # tools/run-bochs's own: Intel with all that we use
    fifo = 8                                # bytes typed ahead of their echo: its UART drops what its FIFO has no room for
    silence = 0.5                           # seconds until what was typed counts as something that does not echo

    def send(self, text):
        for n in range(0, len(text), self.fifo):
            part = text[n:n + self.fifo]
            echo = max(re.split(r"[^ -~]", part), key=len)
            with self.wake:
                before = len(self.text)
            self.send_at_once(part)
            with self.wake: # what does not echo, or not like this, has had time enough
                self.wake.wait_for(lambda: len(self.text) > before or self._over(), self.silence)
                self.wake.wait_for(lambda: echo in ESCAPES.sub("", self.text[max(0, before - 8):]) or self._over(), 0.5)

    def _over(self):
        return self.panicked or self.ended is not None

    def emulator_command(self):
        return ["tools/run-bochs", "--image", self.image, "--memory", self.memory, "--serial", "stdio", "--no-reboot",
                "--cpus", str(self.cpus), *(("--model", self.cpu) if self.cpu else self.model), *self.extra]


class BochsAmdMachine(BochsMachine):
    """AMD's side once more, on a CPU that saves next RIP and keeps the interrupt shadow across VMRUN: QEMU's does neither. (Model ryzen
    would serve too, but its XSAVEC overwrites the XSAVE header.) VM_CR, which every real one has, is missing, so unknown MSRs must
    be readable."""

    model = ("--model", "trinity_apu", "--lenient-msrs")
    lenient = "cr5,dr8,gd,cr2"              # an intercepted #DB leaves DR7.GD on, VMRUN does not load CR2
    switches_tasks = True
    preempts = False                        # VMRUN of a guest whose IF is 0 holds back the host's interrupts until IF is 1 or the next exit
    silence = 20                            # so such a guest may have the machine to itself for a while
    survives_triple_fault = False           # Bochs knows no exit for it


BACKENDS = {"svm": QemuMachine, "vmx": BochsMachine, "svm-bochs": BochsAmdMachine}
