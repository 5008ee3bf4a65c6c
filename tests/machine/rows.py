"""What a row is: a function that drives machines, registered by name. It gets a Bench, which makes the machines and ends them."""
import hashlib
import os
import subprocess
import time

from machine import BACKENDS, ROOT, Failure

OUT = os.path.join(ROOT, "build", "machine") # with a folder for each back end
ROWS = {}


class Row:
    def __init__(self, name, run, timeout, memory, backends, why, quick, audit, cpus, model=None):
        self.name, self.run, self.timeout, self.memory, self.audit = name, run, timeout, memory, audit
        self.backends, self.why, self.quick, self.cpus, self.model = backends, why, quick, cpus, model


def row(name, timeout=60, memory="512M", backends=tuple(BACKENDS), why=None, quick=(), audit=True, cpus=1, model=None):
    """timeout: seconds for the whole row on QEMU. backends: where it runs, and why not on the others. quick: back ends on which `make
    test` runs it although they are slow. audit: `mem audit` must be clean on the last machine when the function is done. cpus: of the
    machine. model: of CPU, as the emulator calls it, if the usual one lacks what the row is about; such a row is for one back end."""
    def register(function):
        if name in ROWS:
            raise ValueError(f"two rows {name}")
        if not set(backends) | set(quick) <= set(BACKENDS) or not set(quick) <= set(backends):
            raise ValueError(f"row {name}: back ends {backends}, quick {quick}")
        if (set(backends) == set(BACKENDS)) != (why is None):
            raise ValueError(f"row {name} is for {', '.join(backends)}; why= says why not for all, and only then")
        if model and len(backends) != 1:
            raise ValueError(f"row {name}: {model} is no CPU of all of {backends}")
        ROWS[name] = Row(name, function, timeout, memory, backends, why, quick, audit, cpus, model)
        return function
    return register


def require(condition, message):
    if not condition:
        raise Failure(message)


def guest(name):
    """A file of build/; its absence is a failure of the build, not a reason to skip."""
    path = os.path.join(ROOT, "build", name)
    require(os.path.isfile(path), f"build/{name} was not built")
    return path


class Bench:
    """The machines of one row, one after the other."""

    def __init__(self, this, backend, slow):
        self.row = this
        self.out = os.path.join(OUT, backend)
        self.kind = BACKENDS[backend]
        self.slow = self.kind.slow * slow
        self.deadline = time.monotonic() + this.timeout * self.slow
        self.log_path = os.path.join(self.out, this.name + ".log")
        self.machine = None
        self.panicked = None # the first panic of any of its machines
        os.makedirs(self.out, exist_ok=True)
        open(self.log_path, "w", encoding="utf-8").close()

    def _image(self, config, files, options):
        """Its name comes from what is in it, so a row that boots several times with the same files makes one image."""
        base = os.path.join(self.out, self.row.name)
        if config is not None:
            with open(base + ".conf", "w", encoding="latin-1", newline="") as f:
                f.write(config)
        tool, suffix = self.kind.medium
        image = f"{base}.{hashlib.sha256(repr((config, files, options)).encode()).hexdigest()[:8]}{suffix}"
        command = [tool, "--unchecked", *options] + (["--config", base + ".conf"] if config is not None else [])
        for name, path in files.items():
            command += ["--add", f"{path}={name}"]
        made = subprocess.run(command + [image], cwd=ROOT, capture_output=True, text=True, check=False)
        require(made.returncode == 0, f"{tool}: {made.stderr.strip() or made.stdout.strip()}")
        return image

    def power_on(self, config="", files=None, memory=None, cpu=None, extra=(), kind=None, cpus=None, image_options=()):
        """A fresh machine with this palimpsest.conf (None: without one) and these {name: path} files on its disk. The options are for the
        tools that start it, and that make its image."""
        self.power_off()
        self.kind = kind or self.kind
        self.image = self._image(config, files or {}, image_options)
        self.machine = self.kind(self.image, self.log_path, memory or self.row.memory, self.deadline, cpu or self.row.model, extra)
        self.machine.slow = self.slow
        self.machine.cpus = cpus or self.row.cpus
        self.machine.start()
        return self.machine

    def boot(self, *args, **kwargs):
        """The same, up to the prompt. Firmware that has its instructions counted takes longer, and a multiple of that on a busy host."""
        m = self.power_on(*args, **kwargs)
        m.prompt(200 if any("--icount" in word for word in kwargs.get("extra", ())) else 60)
        return m

    def check_panics(self):
        """A panic that nobody waited behind fails the row as well."""
        if self.machine and self.machine.panicked and not self.panicked:
            self.panicked = self.machine.panicked
        require(not self.panicked, self.panicked)

    def power_off(self):
        if self.machine:
            self.panicked = self.panicked or self.machine.panicked
            self.machine.kill()
            self.machine = None
            os.remove(self.image)

    def bytes_file(self, name, data):
        """A file of given bytes to put on a disk."""
        path = os.path.join(self.out, f"{self.row.name}.{name}")
        with open(path, "wb") as f:
            f.write(data)
        return path
