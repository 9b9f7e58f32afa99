"""Lists of digests as people publish them: ``SHA256SUMS`` and ``FILE.sha256``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from msgspec import structs

from jobs.model import Digest, SourceFile

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


def beside(folder: Path) -> dict[str, Digest]:
    """The digests that a list in a local ``folder`` has, by name; empty where there is none."""
    for name in LISTS:
        text = _text(folder / name)
        if text is not None:
            return parse(text)
    return {}


def with_digest(file: SourceFile, listed: Mapping[str, Digest]) -> SourceFile:
    """A local ``file`` with its digest: the listed one, or that of ``FILE.sha256`` beside it."""
    digest = listed.get(file.name)
    if digest is None and (text := _text(Path(f"{file.locator}.sha256"))) is not None:
        digest = next(iter(parse(text).values()), None)
    return structs.replace(file, digest=digest)


def _text(path: Path) -> str | None:
    try:
        if not path.is_file() or path.stat().st_size > MOST:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
