"""What a guest finds when it looks closely: guests/tiny/platform.c judges the virtual PC item by item."""
import re

from rows import require, row
from rows_tiny import create, on_disk, outcome


@row("guest-platform", timeout=120, quick=("vmx", "svm-bochs"))
def guest_platform(bench):
    config, files = on_disk("platform.elf")
    m = bench.boot(config, files)
    create(m, "p", "platform.elf")
    text, code = outcome(m, "p", 100)
    end = re.search(r"platform: (\d+) ok, (\d+) failed", text)
    require(end, f"it did not come to its end: {text[-800:]}")
    require(code == 1 and end.group(2) == "0", "\n".join(line for line in text.splitlines() if not line.endswith(" ok")))
