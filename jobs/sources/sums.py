"""Lists of digests as people publish them: ``SHA256SUMS`` and ``FILE.sha256``."""

from __future__ import annotations

import re

from jobs.model import Digest

LISTS = ("SHA256SUMS", "sha256sums.txt")  # names, beside the files that they list
MOST = 16 << 20  # bytes; a longer one is no such list

# coreutils' form, `HEX  name` or `HEX *name`, and BSD's, `SHA256 (name) = HEX`
_LINE = re.compile(r"\\?([0-9a-fA-F]{64})(?:[ \t]+\*?(.+))?")
_BSD = re.compile(r"SHA256 ?\((.+)\) ?= ?([0-9a-fA-F]{64})")


def parse(text: str) -> dict[str, Digest]:
    """Digests by name (without a leading ``./``; empty where a line holds a digest alone)."""
    found = {}
    for line in text.splitlines():
        line = line.strip()
        if match := _BSD.fullmatch(line):
            name, value = match.groups()
        elif match := _LINE.fullmatch(line):
            value, name = match[1], match[2] or ""
        else:
            continue
        found[name.strip().removeprefix("./")] = Digest("sha256", value.lower())
    return found
