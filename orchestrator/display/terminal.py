"""Detects what an output stream can show: colours, width, and characters beyond ASCII."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from typing import TextIO

NARROW, COMMON, WIDE = 60, 80, 120  # columns: minimum, default, maximum

_CODES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "cyan": "36",
}
# Replacements of characters that an encoding does not have.
_PLAIN = str.maketrans(
    {"✓": "+", "✗": "x", "·": "-", "–": "-", "—": "-", "×": "x", "→": ">", "…": "~", "█": "#",
     "░": ".", "▶": ">", "│": "|", "●": "*"}
)  # fmt: skip


@dataclass(frozen=True)
class TerminalStyle:
    """How to write to a stream: colours, encoding, width."""

    colour: bool = False
    unicode: bool = True
    width: int = COMMON

    def paint(self, text: str, *styles: str) -> str:
        """``text`` in colours, if enabled; basic ones, visible on dark and light backgrounds."""
        if not self.colour or not text:
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"

    def encodable(self, text: str) -> str:
        """``text`` with characters that the stream can show."""
        if self.unicode:
            return text
        return text.translate(_PLAIN).encode("ascii", "backslashreplace").decode("ascii")


def style_of(stream: TextIO) -> TerminalStyle:
    """What ``stream`` can show.

    ``NO_COLOR`` (https://no-color.org) overrides ``FORCE_COLOR``, and both override detection.
    """
    # A stream within this process has no encoding and accepts all characters.
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "")
    columns = shutil.get_terminal_size((COMMON, 24)).columns
    return TerminalStyle(
        colour=_colour(stream),
        unicode=encoding.startswith("utf"),
        width=max(NARROW, min(WIDE, columns)),
    )


def is_screen(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal that obeys control characters, unlike that of an editor."""
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def _colour(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return is_screen(stream)


def stdout_style() -> TerminalStyle:
    """What standard output can show."""
    return style_of(sys.stdout)
