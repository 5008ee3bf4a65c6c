"""What stands on a machine's screen, read back: QEMU writes the picture to a file, and every cell is compared with the font that
lib/fbtext.c draws with. Only text in that font and raster is found, so a screen that shows anything else is a blank one here."""
import os
import re

from machine import ROOT, Failure

GLYPH_LINE = re.compile(r'"([0-9a-v]{7})"')


def _number(name, source):
    return int(re.search(rf"#define {name} (\d+)", source).group(1))


class Font:
    def __init__(self):
        with open(os.path.join(ROOT, "lib", "fbtext.c"), encoding="ascii") as f:
            source = f.read()
        table = source[source.index("font[95]"):source.index("static unsigned")]
        glyphs = GLYPH_LINE.findall(table)
        if len(glyphs) != 95:
            raise Failure(f"the font has {len(glyphs)} characters")
        self.width, self.height = _number("CELL_WIDTH", source), _number("CELL_HEIGHT", source)
        self.doubled_from = _number("WIDE_SCREEN", source)
        blank = self.width - _number("GLYPH_WIDTH", source)
        self.characters = {}
        for n, glyph in enumerate(glyphs):
            rows = [int(digit, 32) << blank for digit in glyph] + [0] * (self.height - len(glyph))
            self.characters[tuple(rows)] = chr(0x20 + n)


def _picture(path):
    """Width, height, and the pixels of a binary PPM as bytes, three each."""
    with open(path, "rb") as f:
        data = f.read()
    head = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", data)
    if not head:
        raise Failure(f"QEMU's screendump is no PPM: {data[:20]!r}")
    return int(head.group(1)), int(head.group(2)), data[head.end():]


def text_on_screen(m, path):
    """Its lines, a character that is not in the font as NUL."""
    m.ask_qemu("screendump", filename=path)
    width, height, pixels = _picture(path)
    os.remove(path)
    font = Font()
    scale = 2 if width >= font.doubled_from else 1
    lines = []
    for top in range(0, height - font.height * scale + 1, font.height * scale):
        rows = [pixels[3 * width * y:3 * width * (y + 1):3 * scale] for y in range(top, top + font.height * scale, scale)]
        cells = []
        for left in range(0, width // scale - font.width + 1, font.width):
            bits = tuple(sum(1 << (font.width - 1 - x) for x in range(font.width) if row[left + x]) for row in rows)
            cells.append(font.characters.get(bits, "\0"))
        lines.append("".join(cells).rstrip())
    return lines
