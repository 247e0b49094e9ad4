"""Runs the demo on a terminal of its own and draws what stands on it in the end, as SVG."""

from __future__ import annotations

import io
import os
import pty
import re
import struct
import sys
import tempfile
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COLUMNS, ROWS = 104, 60
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "demo.svg"
# No font from another site: the reader's own monospace does.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code, monospace", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace"
)
TEXT = re.compile(
    r'x="(?P<left>[\d.]+)" (?P<y>y="[\d.]+") textLength="(?P<length>[\d.]+)" (?P<clip>[^>]+)>'
    r"(?P<blanks>(?:&#160;)+)"
)
CELL = 12.0
"""Width of a letter in the picture: 20 units high, 0.6 as wide."""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="hami-") as place:
        output, status = on_terminal(
            [sys.executable, "-P", "-m", "hami", "sandbox", "demo", "--once", "--dir", place]
        )
    lines = on_screen(output)
    if status != 0:
        sys.exit("\n".join(lines))
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), legacy_windows=False)
    for line in ["\x1b[1;32m$\x1b[0m make demo", *lines]:
        console.print(Text.from_ansi(line), soft_wrap=True)
    svg = console.export_svg(
        title="hami", theme=MONOKAI, code_format=FORMAT, unique_id="demo", font_aspect_ratio=0.6
    )
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(TEXT.sub(without_margin, svg), encoding="utf-8")


def without_margin(text: re.Match[str]) -> str:
    """A piece of text that begins at its first letter: some viewers drop blanks in front."""
    blanks = len(text["blanks"]) // len("&#160;")
    left = float(text["left"]) + blanks * CELL
    length = float(text["length"]) - blanks * CELL
    return f'x="{left:g}" {text["y"]} textLength="{length:g}" {text["clip"]}>' if length else ">"


def on_terminal(command: list[str]) -> tuple[str, int]:
    """All that the command wrote to its terminal, and its exit status."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS=str(COLUMNS), LINES=str(ROWS))
        os.execv(command[0], command)
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    output = bytearray()
    while True:
        try:
            output += os.read(terminal, 65536)
        except OSError:  # how Linux says that nobody has the terminal open any more
            break
    return output.decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def on_screen(output: str) -> list[str]:
    """The lines that remain, colours kept: cursor up and line erasing are all that rich uses."""
    lines, row = [""], 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token.endswith("A") and token.startswith("\x1b["):
            row = max(0, row - int(token[2:-1] or 1))
        elif token == "\x1b[2K":
            lines[row] = ""
        elif token != "\r" and not token.startswith("\x1b[?"):
            lines[row] += token
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


main()
