"""The console as a person meets it: keys, history, completion, and input that no person would type."""
import random
import re

from machine import LOG_LINE, PROMPT
from rows import require, row
from rows_tiny import create, on_disk

HYPERVISOR = "[hypervisor]\nlog = info\n"
LEFT, RIGHT, UP, DOWN, HOME, END, DELETE = ("\x1b[" + s for s in ("D", "C", "A", "B", "H", "F", "3~"))
CTRL = {c: chr(ord(c) - 64) for c in "ABCDEFKLNPUW"}

# What is typed, and the line that it must come to; the line is shown by asking help for a command that does not exist.
EDITS = [
    ("help zz" + LEFT + "y", "zyz"),
    ("help zx" + "\x7f" + "y", "zy"),
    ("help zab" + LEFT + LEFT + DELETE, "zb"),
    ("zz" + HOME + "help " + END + "q", "zzq"),
    ("zz" + CTRL["A"] + "help " + CTRL["E"] + "r", "zzr"),
    ("help z1234" + CTRL["B"] * 2 + CTRL["K"], "z12"),
    ("wrong words" + CTRL["U"] + "help zu", "zu"),
    ("help zw wrong" + CTRL["W"] + "\x7f", "zw"),
    ("help zl" + CTRL["L"] + "m", "zlm"),
    ("help zf" + CTRL["A"] + CTRL["F"] * 6 + "e", "zef"),
    ("help zd" + CTRL["B"] + CTRL["D"] + "e", "ze"),
    ("help \"z y\"", "z y"),
    ("help z\\\"q # comment", 'z"q'),
    ("help z" + "\x1b[5~" + "\x1b[200~" + "\x1bOQ" + "k", "zk"), # keys that mean nothing here
]


@row("console-editing")
def console_editing(bench):
    m = bench.boot(HYPERVISOR)

    def asked(typed):
        m.send(typed + "\r")
        return m.expect(r'no command "([^\r\n]*)"(?=\r?\n)', 10).group(1)

    for typed, word in EDITS:
        got = asked(typed)
        require(got == word, f"typed {typed!r}: the line came to {got!r}, not {word!r}")
        m.prompt(10)

    for word in ("h1", "h2", "h3"):
        asked("help " + word)
        m.prompt(10)
    require(asked(UP * 2) == "h2", "two steps up is not the line before the last")
    m.prompt(10)
    require(asked(UP * 3 + DOWN) == "h3", "up and down again") # after h2 was entered anew: h2 h3 h2
    m.prompt(10)
    require(asked("help new" + CTRL["P"] + CTRL["N"]) == "new", "the line being typed did not survive the history")
    m.prompt(10)

    m.send("vers\t")
    m.expect("vers" + "ion ", 10)
    m.send("\r")
    m.expect(r"palimpsest \d", 10)
    m.prompt(10)
    m.send("po\t")
    m.expect("po")
    m.send("\t")
    m.expect(r"\npolicy +poweroff|\npoweroff +policy", 10)
    m.send("\x03")
    m.prompt(10)
    require("policy" in m.command("mem au\t\x15help"), "help after a dropped line")


@row("console-unknown")
def console_unknown(bench):
    m = bench.boot(HYPERVISOR)
    require(m.command("frobnicate") == 'error: no command "frobnicate"; help lists them', "unknown command")
    require("did you mean version" in m.command("verzion"), "no hint for verzion")
    require("usage: module list" in m.command("module"), "no usage for module")
    require(m.command("vm pause") == "error: usage: vm start|pause|resume|stop|destroy NAME", "more than the usage of vm pause")
    require('mem does not know "frames"; usage: mem' in m.command("mem frames"), "mem frames")
    for command in ("version", "cpu", "threads", "reboot", "slow"):
        require(m.command(command + " now").startswith("error: usage: " + command), f"{command} took a word that means nothing")
    require("quote" in m.command('help "abc'), "an open quote was not refused")
    require("words" in m.command("help" + " x" * 60), "61 words were not refused")
    require("usage" in m.json("module", error=True) and "no command" in m.json("nothing", error=True), "errors as JSON")
    require(m.command("") == "" and m.command("   # only a comment") == "", "an empty line did something")
    require("error" in m.command("log level loud") and "error" in m.command("policy show nothing"), "wrong values")
    require("nothing" in m.json("policy show nothing", error=True), "error without the name")
    require("ghost" in m.json("vm show ghost", error=True), "vm show of no VM")


@row("console-flood", timeout=90)
def console_flood(bench):
    """An overlong line is cut with a bell, and whatever bytes come, the console is there afterwards."""
    m = bench.boot(HYPERVISOR)
    m.send("help ")
    for n in range(40):
        m.send(f"{n:03}" + "x" * 97)
        m.expect(f"{n:03}.*x|\a", 20) # not more than the input ring holds, until its echo is there
    require("\a" in m.text, "4000 characters rang no bell")
    m.send("\r")
    m.expect(r'error: no command "000x{97}001x', 20)
    m.prompt(20)
    random.seed(1)
    for _ in range(30):
        noise = bytes(random.choice([random.randrange(256), 0x1b, 0x5b, 9, 13, 0x7f, 3]) for _ in range(200))
        m.send_at_once(noise.replace(b"r", b"").replace(b"p", b"").decode("latin-1")) # by no chance reboot or poweroff
        m.resync()
    m.send_at_once("a" * 20000) # far more than is taken in while a line is drawn: what does not fit is dropped
    m.resync()
    require("version" in m.command("help"), "no help after the flood")


@row("console-log")
def console_log(bench):
    """A log line does not disturb the line being typed; `log level` decides what is shown, and everything is kept."""
    m = bench.boot(*on_disk("memtest.elf"))
    lines = m.command("log", log_lines=True).split("\n")
    require(len(lines) > 4 and all(LOG_LINE.match(line) for line in lines), f"log: {lines[-3:]}")
    require(m.json("log") == [line for line in lines], "log -j differs from log")
    create(m, "a", "memtest.elf", f"pages=1000 loops={300 // bench.kind.slow}", "16M") # ends while the next command is being typed, which is logged
    m.send("vers")
    m.expect("vers", 20)
    m.expect(r"\] vm: a stopped: debug exit[^\n]*\n[^\n]*" + re.escape(PROMPT) + "[^\\n]*vers", 60) # and drawn again, below
    m.send("ion\r")
    m.expect(r"palimpsest \d\S* \(debug\), booted by", 10)
    m.prompt()
    for level, shown in (("error", False), ("info", True)):
        require(m.json(f"log level {level}")["level"] == level, "log level -j")
        start, name = m.cursor, f"at-{level}"
        m.json(f'vm create {name} kernel=memtest.elf memory=16M autostart=no')
        m.json(f"vm start {name}")
        m.json(f"vm stop {name}")
        line = f"vm: {name} starts:"
        require((line in m.text[start:]) == shown, f"at level {level}: {m.text[start:]}")
        require(any(line in kept for kept in m.json("log")), f"at level {level} it was not kept")
